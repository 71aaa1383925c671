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
from lipverify.checkers.reader import runtimes
from lipverify.checkers.reader.agreement import agree
from lipverify.checkers.reader.onnx import read_onnx
from lipverify.errors import NotCovered
from lipverify.questions.deviation_proof import Asked, certified

Array = np.ndarray[Any, np.dtype[Any]]
KINDS = {"u1": TensorProto.UINT8, "i1": TensorProto.INT8}


def qdq(between: str | None = None, kind: str = "u1", zero: int = 100, scale: Array | float = 0.05, other: int | None = None,
        float_too: bool = False, ends: bool = True, zeros_as: tuple[int, ...] | None = None) -> bytes:  # fmt: skip
    """x, rounded, between two dense layers; `between`: an operator on the integers."""
    rng = np.random.default_rng(0)
    weights = [rng.standard_normal(s).astype(np.float32) for s in ((4, 6), (6, 3))]
    scales = np.asarray(scale, np.float32)
    zeros = np.full(scales.shape if zeros_as is None else zeros_as, zero, kind)
    back = zeros if other is None else np.full(zeros.shape, other, kind)
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


@pytest.mark.parametrize(("scale", "zeros_as"), [([0.05], ()), (0.05, (1,)), ([0.05], (1,))], ids=str)
def test_one_number_for_all_is_written_in_two_ways(scale: Any, zeros_as: tuple[int, ...]) -> None:
    """Quantisers of exporters write the scale of a bias as [1] and its zero point as []."""
    data = qdq(scale=scale, zeros_as=zeros_as)
    assert agree(data, program_of(data)).inputs >= 10
    x = np.random.default_rng(1).standard_normal((20, 4))
    assert np.array_equal(evaluate(program_of(data), x)[-1], evaluate(program_of(qdq()), x)[-1])


@pytest.mark.parametrize(("data", "words"), [
    (lambda: qdq("Relu", "i1"), "computed integers"), (lambda: qdq("Abs", "i1"), "computed integers"),
    (lambda: qdq(ends=False), "output of integers"),
    (lambda: qdq(scale=[0.1] * 6, zeros_as=()), "another size"), (lambda: qdq(scale=0.1, zeros_as=(6,)), "another size"),
    (lambda: qdq(scale=-0.1), "not positive"), (lambda: qdq(scale=[0.1, 0.1]), "another size"),
])  # fmt: skip
def test_what_integers_do_otherwise_is_refused(data: Callable[[], bytes], words: str) -> None:
    with pytest.raises(NotCovered, match=words):
        program_of(data())


def integers(
    op: str,
    *,
    wide: int = 1,
    columns: bool = False,
    cast: int = TensorProto.FLOAT,
    stored_floats: bool = False,
) -> bytes:
    """x, rounded, and a product of integers; `wide` makes the sum of weights large."""
    rng = np.random.default_rng(0)
    image = "Conv" in op
    shape = (4, 2, 3, 3) if image else (5, 4)
    weight = rng.integers(0, 255, (shape[0], shape[1] * wide, *shape[2:])).astype(np.uint8)
    weight = weight if image else np.ascontiguousarray(weight.T)
    first = weight.shape[1] if image else weight.shape[0]
    size = shape[0] if columns else 1
    stored: dict[str, Array] = {
        "s": np.float32(0.03), "z": np.uint8(80), "w": weight, "t": np.uint8(rng.integers(100, 150, size) if columns else 120),
        "v": rng.uniform(0.001, 0.003, size if columns else ()).astype(np.float32), "u": np.float32(0.4), "o": np.uint8(90),
        "b": rng.integers(-4000, 4000, shape[0]).astype(np.int32), "f": ((weight - 120.0) * 0.01).astype(np.float32),
        "g": np.float32(0.01),
    }  # fmt: skip
    if columns and image:
        stored["t"] = np.uint8(120)
    more = {"pads": [1, 1, 0, 1], "strides": [2, 1]} if image else {}
    nodes = [helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"])]
    if stored_floats:
        nodes.append(helper.make_node("QuantizeLinear", ["f", "g", "t"], ["w"]))
        del stored["w"]
    if op.startswith("QLinear"):
        last = ["b"] if image else []
        nodes += [helper.make_node(op, ["q", "s", "z", "w", "v", "t", "u", "o", *last], ["p"], **more),
                  helper.make_node("DequantizeLinear", ["p", "u", "o"], ["y"])]  # fmt: skip
    else:
        nodes += [helper.make_node(op, ["q", "w", "z", "t"], ["p"], **more), helper.make_node("Cast", ["p"], ["c"], to=cast),
                  helper.make_node("Mul", ["c", "g"], ["y"])]  # fmt: skip
    shapes = (["n", first, 5, 4], ["n", 4, 2, 4]) if image else (["n", first], ["n", 5])
    used = {name for node in nodes for name in node.input}
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in zip("xy", shapes, strict=True)]
    tensors = [numpy_helper.from_array(np.asarray(a), n) for n, a in stored.items() if n in used]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


@pytest.mark.parametrize("op", ["ConvInteger", "MatMulInteger"])
def test_sums_that_a_kernel_cuts_are_decided_by_the_reference(
    op: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kernels without VNNI hold two products in 16 bits: of one changed file of 100,000 onnxruntime made 10.56 for 11.55."""
    data = integers(op)
    program, make = read_onnx(data).program, runtimes.RUNTIMES["onnxruntime"]

    def cut(*given: Any) -> Any:
        name, run = make(*given)
        return name, lambda x: [y - 0.99 * (np.abs(y) > np.abs(y).mean()) for y in run(x)]

    assert agree(data, program, 0).evaluator.startswith("onnxruntime")
    monkeypatch.setitem(runtimes.RUNTIMES, "onnxruntime", cut)
    assert agree(data, program, 0).evaluator.startswith("onnx.reference")
    monkeypatch.setitem(runtimes.RUNTIMES, "reference", cut)
    with pytest.raises(NotCovered, match="another function"):
        agree(data, program, 0)


@pytest.mark.parametrize(("op", "settings"), [
    ("MatMulInteger", {}), ("ConvInteger", {}), ("ConvInteger", {"stored_floats": True}),
    ("QLinearMatMul", {}), ("QLinearConv", {}), ("QLinearConv", {"columns": True}),
], ids=str)  # fmt: skip
def test_products_of_integers_are_read_as_they_run(op: str, settings: dict[str, Any]) -> None:
    data = integers(op, **settings)
    program = program_of(data)
    assert agree(data, program).inputs >= 10
    size = program.steps[0].size
    x = 3 * np.random.default_rng(1).standard_normal((60, size)).astype(np.float32)
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    shape = (5, 4) if "Conv" in op else ()
    theirs = np.concatenate(
        [session.run(None, {"x": row.reshape(1, -1, *shape)})[0].reshape(1, -1) for row in x]
    )
    ours = evaluate(program, x.astype(np.float64))
    shown = ours[program.outputs[0].view.sources[0]][:, program.outputs[0].view.places]
    apart = np.abs(shown - theirs)
    # A tie may be rounded to either side, in few places; two integers lie .4 or at most .01 * 255 * 30 apart.
    assert (apart < 1e-3 * (1 + np.abs(theirs))).mean() > 0.995
    assert np.ptp(theirs) > 4


@pytest.mark.parametrize(("data", "words"), [
    (lambda: integers("MatMulInteger", wide=20000), "wrap around"), (lambda: integers("QLinearConv", wide=4000), "wrap around"),
    (lambda: integers("MatMulInteger", cast=TensorProto.FLOAT16), "rounds computed"),
])  # fmt: skip
def test_integers_that_may_overflow_are_refused(data: Callable[[], bytes], words: str) -> None:
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
        found = certified(Asked(f, other, box, "linf", [1.0], True, parts=16), Compute())
        assert found.issued is not None, found.reason
        bounds += found.upper
        x = 2 * np.random.default_rng(2).random((4000, 4)) - 1
        y = [evaluate(checkers.read_model(Path(str(m.origin.path))).program, x)[-1] for m in (f, other)]  # type: ignore[arg-type]
        assert np.abs(y[0] - y[1]).max() <= found.upper[0]
        assert lv.verify(found.issued, [f, other]).upper == found.upper[0]
    # One rounds to steps of .05, the other saturates at .255.
    assert bounds[0] < 0.5 < bounds[1]


def softmax_of_integers(opset: int, shape: list[int], **axis: int) -> bytes:
    settings = axis | {"domain": "com.microsoft", "opset": opset}
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("QLinearSoftmax", ["q", "s", "z", "t", "z"], ["p"], **settings),
        helper.make_node("DequantizeLinear", ["p", "t", "z"], ["y"]),
    ]
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, shape) for n in "xy"]
    stored = {"s": np.float32(0.05), "z": np.uint8(0), "t": np.float32(1 / 256)}
    tensors = [numpy_helper.from_array(np.asarray(a), n) for n, a in stored.items()]
    sets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], tensors)
    return bytes(helper.make_model(graph, opset_imports=sets, ir_version=8).SerializeToString())


@pytest.mark.parametrize("opset", [11, 13])
def test_a_softmax_of_integers_says_its_axis(opset: int, tmp_path: Path) -> None:
    """onnxruntime takes the last axis where none is given; the reader took that of the operator set: 0.001 for 100."""
    assert read_onnx(softmax_of_integers(opset, [1, 3, 1], axis=1)).program is not None
    with pytest.raises(NotCovered, match="without an axis"):
        read_onnx(softmax_of_integers(opset, [1, 3, 1]))
    (tmp_path / "m.onnx").write_bytes(softmax_of_integers(opset, [1, 3, 1]))
    with pytest.raises(lv.UnsupportedModel, match="says no axis"):
        lv.load(tmp_path / "m.onnx")


ALONE = [(13, [1, 3, 1], 2), (13, [1, 3, 1], -1), (13, [1, 1, 2], 1), (11, [1, 3, 1], 2), (7, [1, 1, 1], 1)]


@pytest.mark.parametrize(("opset", "shape", "axis"), ALONE, ids=str)
def test_a_softmax_of_integers_over_one_entry(
    opset: int, shape: list[int], axis: int, tmp_path: Path
) -> None:
    """It is 1, and onnxruntime's is 0, or -0.5, or 1.02."""
    data = softmax_of_integers(opset, shape, axis=axis)
    with pytest.raises(NotCovered, match="over one entry"):
        read_onnx(data)
    (tmp_path / "m.onnx").write_bytes(data)
    with pytest.raises(lv.UnsupportedModel, match="is over one entry"):
        lv.load(tmp_path / "m.onnx")


def test_a_softmax_of_integers_over_several_axes() -> None:
    """Before operator set 13 all axes from one on make a group, which one of length 1 may begin."""
    assert read_onnx(softmax_of_integers(11, [1, 1, 2], axis=1)).program is not None
