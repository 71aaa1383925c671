"""Models between QuantizeLinear and DequantizeLinear: read as they run, and refused where integers do something else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

import lipverify as lv
from lipverify import checkers
from lipverify.analyzers.protocol import Compute
from lipverify.checkers.evaluation import evaluate
from lipverify.checkers.kernel import Program
from lipverify.checkers.reader.agreement import agree
from lipverify.checkers.reader.onnx import read_onnx
from lipverify.errors import NotCovered
from lipverify.questions.deviation_proof import Asked, certified

Array = np.ndarray[Any, np.dtype[Any]]
KINDS = {"u1": TensorProto.UINT8, "i1": TensorProto.INT8}


def qdq(between: str | None = None, kind: str = "u1", zero: int = 100, scale: Array | float = 0.05, other: int | None = None,
        float_too: bool = False, ends: bool = True) -> bytes:  # fmt: skip
    """x, rounded, between two dense layers; `between`: an operator on the integers."""
    rng = np.random.default_rng(0)
    weights = [rng.standard_normal(s).astype(np.float32) for s in ((4, 6), (6, 3))]
    scales = np.asarray(scale, np.float32)
    zeros = np.full(scales.shape, zero, kind)
    back = zeros if other is None else np.full(scales.shape, other, kind)
    stored = {"v": weights[0], "w": weights[1], "s": scales, "z": zeros, "b": back}
    nodes = [
        helper.make_node("MatMul", ["x", "v"], ["a"]),
        helper.make_node("Relu", ["a"], ["r"]),
        helper.make_node("QuantizeLinear", ["r", "s", "z"], ["q"], axis=1),
        *([] if between is None else [helper.make_node(between, ["q"], ["p"])]),
        helper.make_node("DequantizeLinear", ["q" if between is None else "p", "s", "b"], ["d"], axis=1),
        helper.make_node("MatMul", ["d", "w"], ["y"]),
    ]
    if float_too:
        nodes = [helper.make_node("MatMul", ["x", "v"], ["a"]), helper.make_node("Relu", ["a"], ["r"]),
                 helper.make_node("MatMul", ["r", "w"], ["y"])]  # fmt: skip
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])],
        [
            helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3])
            if ends
            else helper.make_tensor_value_info("q", KINDS[kind], ["n", 6])
        ],
        [numpy_helper.from_array(a, n) for n, a in stored.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(model.SerializeToString())


def program_of(data: bytes) -> Program:
    return read_onnx(data).program


@pytest.mark.parametrize(("kind", "zero", "scale"), [
    ("u1", 0, 0.05), ("u1", 100, 0.05), ("i1", -128, 0.02), ("i1", 5, [0.05]), ("u1", 3, [0.01, 0.02, 0.03, 0.04, 0.05, 0.06]),
], ids=str)  # fmt: skip
def test_models_are_read_as_they_run(kind: str, zero: int, scale: Any) -> None:
    data = qdq(kind=kind, zero=zero, scale=scale)
    found = agree(data, program_of(data))
    assert found.inputs >= 10
    x = np.random.default_rng(1).standard_normal((50, 4)).astype(np.float32)
    theirs = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]
    ours = evaluate(program_of(data), x.astype(np.float64))
    shown = ours[program_of(data).outputs[0].view.sources[0]][:, program_of(data).outputs[0].view.places]
    assert np.abs(shown - theirs).max() < 1e-4


@pytest.mark.parametrize(("data", "words"), [
    (lambda: qdq("Relu", "i1"), "computed integers"), (lambda: qdq("Abs", "i1"), "computed integers"),
    (lambda: qdq(ends=False), "output of integers"),
    (lambda: qdq(scale=-0.1), "not positive"), (lambda: qdq(scale=[0.1, 0.1]), "another size"),
])  # fmt: skip
def test_what_integers_do_otherwise_is_refused(data: Callable[[], bytes], words: str) -> None:
    with pytest.raises(NotCovered, match=words):
        program_of(data())


@pytest.mark.parametrize("between", ["Identity", "Flatten"])
def test_moves_of_integers_are_moves(between: str) -> None:
    data = qdq(between)
    agree(data, program_of(data))


def test_another_zero_point_behind_is_another_model() -> None:
    """Saturating and shifting: what the file says is what counts, and a runtime agrees."""
    first, second = (qdq(other=other) for other in (None, 90))
    agree(second, program_of(second))
    with pytest.raises(NotCovered, match="another function"):
        agree(second, program_of(first))


def test_a_quantised_file_has_a_certificate_of_its_deviation(tmp_path: Path) -> None:
    paths = {}
    for name, data in (
        ("float", qdq(float_too=True)),
        ("int8", qdq(zero=0)),
        ("cut", qdq(zero=0, scale=0.001)),
    ):
        paths[name] = tmp_path / f"{name}.onnx"
        paths[name].write_bytes(data)
        onnx.checker.check_model(paths[name])
    f, g, h = (lv.load(path) for path in paths.values())
    box = lv.InputBox((4,), -1.0, 1.0)
    bounds = []
    for other in (g, h):
        found = certified(Asked(f, other, box, "linf", [1.0], True), Compute())
        assert found.issued is not None, found.reason
        bounds += found.upper
        x = 2 * np.random.default_rng(2).random((4000, 4)) - 1
        y = [evaluate(checkers.read_model(Path(str(m.origin.path))).program, x)[-1] for m in (f, other)]  # type: ignore[arg-type]
        assert np.abs(y[0] - y[1]).max() <= found.upper[0]
        assert lv.verify(found.issued, [f, other]).upper == found.upper[0]
    # One rounds to steps of .05, the other saturates at .255.
    assert bounds[0] < 0.5 < bounds[1]
