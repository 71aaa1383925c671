"""Files with If, Loop and Scan whose course is stored: a recurrent step on rows of the input, and a choice of two functions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

N, FLOAT, INT, BOOL = helper.make_node, TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL
info = helper.make_tensor_value_info
HIDDEN, INPUTS, STEPS = 3, 2, 4


def file_of(nodes: Sequence[Any], constants: dict[str, Any], wanted: str = "y") -> onnx.ModelProto:
    graph = helper.make_graph(
        list(nodes), "g", [info("x", FLOAT, [STEPS, 1, INPUTS])], [info(wanted, FLOAT, None)],
        [numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items()],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def draws(seed: int) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    shapes = {"u": (INPUTS, HIDDEN), "w": (HIDDEN, HIDDEN), "h0": (1, HIDDEN)}
    return {k: rng.standard_normal(shape).astype(np.float32) for k, shape in shapes.items()}


STEP = (
    N("MatMul", ["row", "u"], ["own"]), N("MatMul", ["h", "w"], ["kept"]), N("Add", ["own", "kept"], ["total"]),
    N("Tanh", ["total"], ["after"]), N("Mul", ["after", "after"], ["square"]),
)  # fmt: skip


def scan(**settings: Any) -> onnx.ModelProto:
    body = helper.make_graph(
        STEP, "body", [info("h", FLOAT, [1, HIDDEN]), info("row", FLOAT, [1, INPUTS])],
        [info("after", FLOAT, None), info("square", FLOAT, None)],
    )  # fmt: skip
    return file_of([N("Scan", ["h0", "x"], ["end", "y"], num_scan_inputs=1, body=body, **settings)], draws(0))


def loop(stop: int | None = None, count: int | None = STEPS) -> onnx.ModelProto:
    going = N("Less", ["k", "last"], ["on"]) if stop is not None else N("Identity", ["going"], ["on"])
    body = helper.make_graph(
        [N("Gather", ["x", "k"], ["row"], axis=0), *STEP, going], "body",
        [info("k", INT, []), info("going", BOOL, []), info("h", FLOAT, [1, HIDDEN])],
        [info("on", BOOL, None), info("after", FLOAT, None), info("square", FLOAT, None)],
    )  # fmt: skip
    more = {"count": np.int64(count or 0), "go": np.array(True), "last": np.int64(stop or 0)}
    node = N("Loop", ["" if count is None else "count", "go", "h0"], ["end", "y"], body=body)
    return file_of([node], draws(1) | more)


def branch(which: bool) -> onnx.ModelProto:
    bodies = {
        f"{name}_branch": helper.make_graph(
            [N(op, ["x"], [f"{name}_y"])], name, [], [info(f"{name}_y", FLOAT, None)]
        )
        for name, op in (("then", "Tanh"), ("else", "Sigmoid"))
    }
    return file_of([N("If", ["which"], ["y"], **bodies)], {"which": np.array(which)})


def files() -> list[onnx.ModelProto]:
    """One of each kind and course."""
    return [
        scan(),
        scan(scan_input_directions=[1], scan_output_directions=[1], scan_output_axes=[1]),
        scan(scan_output_axes=[-1]),
        loop(),
        loop(stop=1),
        loop(stop=2, count=None),
        branch(True),
        branch(False),
    ]
