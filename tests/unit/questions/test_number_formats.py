"""Copies in every format that quantisers and exporters write: each is read by the checker and has a proved deviation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from ml_dtypes import bfloat16
from onnx import TensorProto, helper, numpy_helper

import lipverify as lv
from lipverify.checkers.evaluation import evaluate
from lipverify.checkers.reader import model_of_bytes
from lipverify.checkers.reader.agreement import agree
from lipverify.checkers.reader.onnx import read_onnx
from lipverify.checkers.reader.openings import Around
from lipverify.checkers.reader.runtimes import RUNTIMES
from lipverify.errors import NotCovered

Array = np.ndarray[Any, np.dtype[Any]]
RNG = np.random.default_rng(0)
V, W, B = (RNG.standard_normal(s).astype(np.float32) / 2 for s in ((4, 6), (6, 3), (6,)))


def written(
    nodes: list[onnx.NodeProto], stored: list[onnx.TensorProto], kind: int = TensorProto.FLOAT
) -> bytes:
    ends = [helper.make_tensor_value_info(n, kind, ["n", s]) for n, s in (("x", 4), ("y", 3))]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], stored)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def tensors(**arrays: Array | np.generic) -> list[onnx.TensorProto]:
    return [numpy_helper.from_array(np.asarray(array), name) for name, array in arrays.items()]


def node(op: str, inputs: str, output: str, **settings: Any) -> onnx.NodeProto:
    return helper.make_node(op, inputs.split(), [output], **settings)


def dense() -> list[onnx.NodeProto]:
    return [
        node("MatMul", "x v", "m"),
        node("Add", "m b", "a"),
        node("Relu", "a", "r"),
        node("MatMul", "r w", "y"),
    ]


def original() -> bytes:
    return written(dense(), tensors(v=V, w=W, b=B))


def steps(array: Array, most: int) -> tuple[Array, np.float32]:
    scale = np.float32(np.abs(array).max() / most)
    return np.rint(array / scale), scale


def integer_products(spelling: str) -> bytes:
    """Products of integers, the numbers of every layer rounded in front of it."""
    (v, s), (w, t) = steps(V, 127), steps(W, 127)
    stored: dict[str, Any] = {
        "v": v.astype(np.int8),
        "w": w.astype(np.int8),
        "z": np.uint8(128),
        "o": np.uint8(0),
        "n": np.int8(0),
    }
    stored |= {"i": np.float32(1 / 120), "j": np.float32(3 / 250), "k": np.float32(0.03), "b": B}
    if spelling == "MatMulInteger":
        stored |= {"f": np.float32(s / 120), "g": np.float32(t * np.float32(3 / 250))}
        nodes = [
            node("QuantizeLinear", "x i z", "xq"), node("MatMulInteger", "xq v z n", "p"), node("Cast", "p", "c", to=1),
            node("Mul", "c f", "m"), node("Add", "m b", "a"), node("Relu", "a", "r"), node("QuantizeLinear", "r j o", "rq"),
            node("MatMulInteger", "rq w o n", "q"), node("Cast", "q", "d", to=1), node("Mul", "d g", "y"),
        ]  # fmt: skip
        del stored["k"]
    else:
        stored |= {"f": s, "g": t}
        nodes = [
            node("QuantizeLinear", "x i z", "xq"), node("QLinearMatMul", "xq i z v f n k z", "p"),
            node("DequantizeLinear", "p k z", "m"), node("Add", "m b", "a"), node("Relu", "a", "r"),
            node("QuantizeLinear", "r j o", "rq"), node("QLinearMatMul", "rq j o w g n k z", "q"),
            node("DequantizeLinear", "q k z", "y"),
        ]  # fmt: skip
    return written(nodes, tensors(**stored))


def int4() -> bytes:
    """Weights alone, in four bits, with one scale for every column."""
    nodes, stored = dense(), tensors(b=B)
    for name, weight in (("v", V), ("w", W)):
        scale = (np.abs(weight).max(0) / 7).astype(np.float32)
        whole = np.rint(weight / scale).astype(np.int8)
        stored.append(helper.make_tensor(f"{name}4", TensorProto.INT4, whole.shape, whole.flatten().tolist()))
        stored += tensors(**{f"{name}s": scale})
        nodes.insert(0, node("DequantizeLinear", f"{name}4 {name}s", name, axis=1))
    return written(nodes, stored)


def narrow(kind: str) -> bytes:
    """Weights in 16 bits, cast to float32 where they are used."""
    nodes, stored = dense(), []
    for name, array in (("v", V), ("w", W), ("b", B)):
        stored += tensors(**{f"{name}16": array.astype(np.float16 if kind == "float16" else bfloat16)})
        nodes.insert(0, node("Cast", f"{name}16", name, to=TensorProto.FLOAT))
    return written(nodes, stored)


def whole_graph(kind: str) -> bytes:
    """Everything in 16 bits, input and output too."""
    number, told = (
        (np.float16, TensorProto.FLOAT16) if kind == "float16" else (bfloat16, TensorProto.BFLOAT16)
    )
    return written(dense(), tensors(v=V.astype(number), w=W.astype(number), b=B.astype(number)), told)


COPIES = {
    "MatMulInteger": lambda: integer_products("MatMulInteger"), "QLinearMatMul": lambda: integer_products("QLinearMatMul"),
    "int4 weights": int4, "float16 weights": lambda: narrow("float16"), "bfloat16 weights": lambda: narrow("bfloat16"),
    "float16 graph": lambda: whole_graph("float16"), "bfloat16 graph": lambda: whole_graph("bfloat16"),
}  # fmt: skip


@pytest.mark.parametrize("name", COPIES)
def test_deviations_of_copies_are_proved(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lipverify.questions.deviation_proof.PARTS", 8)
    monkeypatch.setattr("lipverify.questions.splitting.MOST_INPUTS", 0)
    paths = [tmp_path / "float.onnx", tmp_path / "copy.onnx"]
    for path, data in zip(paths, (original(), COPIES[name]()), strict=True):
        path.write_bytes(data)
    f, g = map(lv.load, paths)
    answer = lv.deviation(f, g, lv.InputBox((4,), -1.0, 1.0))
    assert answer.lower <= answer.upper
    if name == "bfloat16 graph":
        assert answer.rigour == lv.Rigour.REAL
        assert "element type 16" in str(answer.proved.reason)
        return
    assert answer.issued is not None, answer.proved
    assert answer.rigour == lv.Rigour.CHECKED, answer.proved
    assert 0 < answer.lower <= answer.upper < 2.0
    assert lv.verify(answer.issued, [f, g]).upper == answer.upper


@pytest.mark.parametrize(("name", "seed"), [("QLinearMatMul", 4203959950), ("MatMulInteger", 92)])
def test_large_inputs_that_an_evaluator_overflows_at_decide_nothing(name: str, seed: int) -> None:
    data = COPIES[name]()
    program = model_of_bytes("m.onnx", data).program
    assert program is not None
    around = Around(np.zeros(4), -np.ones(4), np.ones(4))
    assert agree(data, program, seed, regions=[around]).share < 1.0
    far = np.array([[0.3, -1.0, 1e20, -4e8]])
    wanted, *others = (
        RUNTIMES[make](data, "x", ["y"])[1](far)[0] for make in ("onnxruntime", "reference", "wide")
    )
    for found in others:
        np.testing.assert_allclose(found, wanted, rtol=1e-6)


@pytest.mark.parametrize(
    ("scale", "axis", "version"),
    [(0.5, {}, 19), ([0.5, 1e-6], {"axis": 1}, 19), ([[1e6, 0.5]], {"axis": 0, "block_size": 3}, 21)],
)
def test_quantisers_saturate_far_out(scale: object, axis: dict[str, int], version: int) -> None:
    """One scale, one for each column, one for each block of rows."""
    nodes = [node("QuantizeLinear", "x s z", "q", **axis), node("DequantizeLinear", "q s z", "y", **axis)]
    steps = np.array(scale, np.float32)
    source = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [3, 2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [3, 2])], tensors(s=steps, z=np.zeros(steps.shape, np.int8)),
    )  # fmt: skip
    data = helper.make_model(
        source, opset_imports=[helper.make_opsetid("", version)], ir_version=10
    ).SerializeToString()
    x = np.array([[1.0, -3e30], [4e8, 1e-6], [-2e20, 0.25]])
    wanted, found = (RUNTIMES[make](data, "x", ["y"])[1](x)[0] for make in ("onnxruntime", "reference"))
    np.testing.assert_array_equal(found, wanted)


def test_numbers_of_four_bits_are_no_others() -> None:
    """Every one of the 16 numbers of both types, an odd count; and rounding computed numbers to four bits is refused."""
    for kind, low in ((TensorProto.INT4, -8), (TensorProto.UINT4, 0)):
        whole = np.arange(15) + low
        stored = [helper.make_tensor("q", kind, (15, 1), whole.tolist()), *tensors(s=np.float32(0.5))]
        nodes = [node("DequantizeLinear", "q s", "w"), node("MatMul", "x w", "y")]
        ends = [
            helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n", size])
            for n, size in (("x", 15), ("y", 1))
        ]
        graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], stored)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
        program = read_onnx(model.SerializeToString()).program
        assert np.array_equal(evaluate(program, np.eye(15))[-1][:, 0], 0.5 * whole)
    nodes = [
        node("QuantizeLinear", "x s z", "q"),
        node("DequantizeLinear", "q s z", "d"),
        node("MatMul", "d w", "y"),
    ]
    zero = helper.make_tensor("z", TensorProto.INT4, (), [0])
    with pytest.raises(NotCovered):
        read_onnx(written(nodes, [*tensors(s=np.float32(0.1), w=V[:, :3]), zero]))
