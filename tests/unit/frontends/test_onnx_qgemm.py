"""QGemm, which onnxruntime's quantiser writes for dense layers: read as it runs, by the importer and by the checker."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from onnx import helper

import lipverify as lv
from lipverify.checkers.evaluation import evaluate
from lipverify.checkers.kernel import Program
from lipverify.checkers.reader.agreement import agree
from lipverify.checkers.reader.onnx import read_onnx
from lipverify.errors import InvalidFile, NotCovered, UnsupportedModel
from lipverify.frontends.onnx import extract_onnx
from tests.onnx_models import Array, by_onnxruntime, model, node

IMPORTS = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]


def gemm(*, each: bool = False, shift: int = 0, bias: bool = True, rounded: bool = True, kind: type = np.uint8,
         without: int | None = None, wide: int = 1, moved: str | None = None, **flags: Any) -> Any:  # fmt: skip
    """x [n, 6], rounded, through a QGemm of 4 outputs. Weights of 7 bits: kernels without VNNI cut sums of others.

    each: a scale and a zero point (`shift`) for each column; rounded: the result too; without: an operand left out.
    """
    rng = np.random.default_rng(0)
    weight = rng.integers(-60, 60, (6 * wide, 4)).astype(np.int8)
    stored: dict[str, Array] = {
        "s": np.float32(0.05), "z": kind(13), "w": weight.T.copy() if flags.get("transB") else weight,
        "v": np.array([0.01, 0.02, 0.03, 0.04], np.float32) if each else np.float32(0.01),
        "t": np.full(4 if each else (), shift, np.int8), "b": rng.integers(-500, 500, 4).astype(np.int32),
        "u": np.float32(0.06), "o": kind(7),
    }  # fmt: skip
    operands = ["q", "s", "z", "w", "v", "t", "b" if bias else "", *(("u", "o") if rounded else ())]
    if without is not None:
        operands[without:] = ["", *operands[without + 1 :]] if without + 1 < len(operands) else []
    nodes = [node("QuantizeLinear", ["x", "s", "z"], ["q"])]
    result = "p" if rounded else "y"
    nodes.append(helper.make_node("QGemm", operands, [result], name="g", domain="com.microsoft", **flags))
    if moved is not None:
        nodes.append(node(moved, ["p"], ["m"]))
    if rounded:
        nodes.append(node("DequantizeLinear", ["p" if moved is None else "m", "u", "o"], ["y"]))
    used = {name for n in nodes for name in n.input}
    constants = {name: array for name, array in stored.items() if name in used}
    return model(nodes, ["n", 6 * wide], constants=constants, opset_imports=IMPORTS)


def shown(program: Program, x: Array) -> Array:
    view = program.outputs[0].view
    return evaluate(program, x.astype(np.float64))[view.sources[0]][:, view.places]


CASES: list[dict[str, Any]] = [
    {}, {"transB": 1}, {"each": True, "shift": 3}, {"each": True, "shift": 3, "transB": 1, "kind": np.int8},
    {"bias": False, "shift": -2}, {"rounded": False}, {"alpha": 0.5}, {"moved": "Flatten"},
]  # fmt: skip


@pytest.mark.parametrize("settings", CASES, ids=str)
def test_it_is_read_as_it_runs(settings: dict[str, Any]) -> None:
    source = gemm(**settings)
    x = 3 * np.random.default_rng(1).standard_normal((60, 6)).astype(np.float32)
    theirs = by_onnxruntime(source, x)[0]
    graph = extract_onnx(source).to(dtype=torch.float64)
    data = source.SerializeToString()
    program = read_onnx(data).program
    assert agree(data, program, 0).evaluator.startswith("onnxruntime")
    for ours in (lv.evaluate(graph, torch.from_numpy(x).double()).numpy(), shown(program, x)):
        apart = np.abs(ours - theirs)
        # A tie may be rounded to either side, in few places: one step of .06.
        assert (apart < 1e-5).mean() > 0.97
        assert apart.max() < 0.0601
    assert np.ptp(theirs) > 2


@pytest.mark.parametrize(("settings", "words"), [
    ({"transA": 1}, "transposes computed numbers"), ({"moved": "Relu"}, "does not take"),
    ({"without": 8}, "no zero point"), ({"without": 3}, "weight"), ({"without": 1}, "scale"),
])  # fmt: skip
def test_what_the_importer_does_not_take_is_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises((UnsupportedModel, InvalidFile), match=words):
        extract_onnx(gemm(**settings))


@pytest.mark.parametrize(("settings", "words"), [
    ({"transA": 1}, "turned"), ({"moved": "Relu"}, "of computed integers"), ({"without": 8}, "without its zero point"),
    ({"without": 3}, "lacks an operand"), ({"wide": 30_000}, "wrap around"),
])  # fmt: skip
def test_what_the_checker_does_not_take_is_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(NotCovered, match=words):
        read_onnx(gemm(**settings).SerializeToString())


def test_a_name_with_a_point_is_no_other_operator() -> None:
    source = gemm(rounded=False)
    for entry in source.graph.node:
        if entry.op_type == "QGemm":
            entry.op_type, entry.domain = "com.microsoft.QGemm", ""
    with pytest.raises(NotCovered, match="an operator called"):
        read_onnx(source.SerializeToString())
