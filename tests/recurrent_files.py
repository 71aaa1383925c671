"""ONNX files of recurrent networks with open lengths, states and other inputs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from onnx import ModelProto, TensorProto, helper, numpy_helper

GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}


def network(
    kind: str = "GRU",
    *,
    sizes: Sequence[int | str] = ("steps", "batch", 2),
    batch_first: bool = False,
    hidden: int = 3,
    states: Sequence[int | str] | None = None,
    rate: bool = False,
    seed: int = 0,
) -> ModelProto:
    """One layer and a matrix behind its last state.

    sizes: of the input `x`; batch_first: it stands in that order, and a Transpose before the layer. states: sizes of the inputs
    `h` (and `c`), which it begins with; None for zeros. rate: an integer input `rate` chooses between two heads.
    """
    draw = np.random.default_rng(seed)
    gates, inputs = GATES[kind], int(sizes[-1])

    def random(*shape: int) -> np.ndarray:
        return (draw.standard_normal(shape) * 0.5).astype(np.float32)

    tensors = {
        "W": random(1, gates * hidden, inputs),
        "R": random(1, gates * hidden, hidden),
        "B": random(1, 2 * gates * hidden),
        "axes": np.array([0]),
        "head": random(hidden, 2),
        "other": random(hidden, 2),
        "wide": np.array(16000),
    }
    given = [helper.make_tensor_value_info("x", TensorProto.FLOAT, sizes)]
    begins = ["h", "c"][: 1 + (kind == "LSTM")] if states is not None else []
    given += [helper.make_tensor_value_info(name, TensorProto.FLOAT, states) for name in begins]
    nodes = []
    if batch_first:
        nodes.append(helper.make_node("Transpose", ["x"], ["rows"], perm=[1, 0, 2]))
    read = ["rows" if batch_first else "x", "W", "R", "B", "", *begins]
    nodes.append(helper.make_node(kind, read, ["", "last"], name="layer", hidden_size=hidden))
    nodes.append(helper.make_node("Squeeze", ["last", "axes"], ["state"]))
    if rate:
        given.append(helper.make_tensor_value_info("rate", TensorProto.INT64, []))
        nodes.append(helper.make_node("Equal", ["rate", "wide"], ["is_wide"]))
        branches = {}
        for branch, head in (("then_branch", "head"), ("else_branch", "other")):
            out = helper.make_tensor_value_info(f"{head}/y", TensorProto.FLOAT, None)
            body = [helper.make_node("MatMul", ["state", head], [f"{head}/y"])]
            branches[branch] = helper.make_graph(body, head, [], [out])
        nodes.append(helper.make_node("If", ["is_wide"], ["y"], name="rates", **branches))
    else:
        nodes.append(helper.make_node("MatMul", ["state", "head"], ["y"]))
    graph = helper.make_graph(
        nodes,
        "network",
        given,
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(array, name) for name, array in tensors.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
