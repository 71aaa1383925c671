"""Operators that onnxruntime writes between layers of integers: read as they run, by the importer and by the checker."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from onnx import helper

import lipverify as lv
from lipverify.checkers.evaluation import evaluate
from lipverify.checkers.reader.agreement import agree
from lipverify.checkers.reader.onnx import read_onnx
from lipverify.errors import LipverifyError, NotCovered
from lipverify.frontends.onnx import extract_onnx
from tests.onnx_models import Array, by_onnxruntime, model, node

IMPORTS = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
STEP = 0.02
"""Of the result."""


def chain(op: str, *, kind: type = np.uint8, operand: str = "twice", same: bool = False, without: str | None = None,
          other_zero: type | None = None, domain: str = "com.microsoft", **flags: Any) -> Any:  # fmt: skip
    """x [n, 2, 4, 5], rounded, through an operator of integers, and back to real numbers.

    operand: the second one: "twice" the first with another rounding, "stored", or "" for none. same: it has the scale of the
    result. without: a stored number left out.
    """
    rng = np.random.default_rng(0)
    other = (1, 2, 4, 5) if op == "Concat" else (2, 1, 5)
    shift = 0 if kind in (np.int8, np.int16) else 120
    stored: dict[str, Array] = {
        "s": np.float32(0.0311), "z": kind(shift), "t": np.float32(STEP if same else 0.017), "v": kind(7 if same else 5 + shift),
        "u": np.float32(STEP), "o": (other_zero or kind)(7), "c": (rng.integers(-90, 90, other) + shift).astype(kind),
        "p": np.array([0, 0, 1, 0, 0, 0, 2, 1], np.int64), "f": kind(9), "i": np.array([1, 0, 1], np.int64),
        "r": np.array([1, 1, 2, 2], np.float32),
    }  # fmt: skip
    rounds = [node("QuantizeLinear", ["x", "s", "z"], ["q"], axis=0)]
    second = {"twice": ["w", "t", "v"], "stored": ["c", "t", "v"], "": []}[operand]
    if operand == "twice":
        rounds.append(node("QuantizeLinear", ["x", "t", "v"], ["w"], axis=0))
    ends = {"Pad": ["p", "f"], "Gather": ["i"], "Split": [], "Resize": ["", "r"]}
    if op in ends:  # a move
        operands, back = ["q", *ends[op]], ["s", "z"]
    elif op == "Concat":
        operands, back = (
            (["q", "w"], ["s", "z"]) if not domain else (["u", "o", "q", "s", "z", *second], ["u", "o"])
        )
    else:
        operands, back = ["q", "s", "z", *second, "u", "o"], ["u", "o"]
    name = op if op in ends or not domain else f"QLinear{op}"
    operands = ["" if n == without else n for n in operands]
    domain = "" if op in ends else domain
    results = ["y0", "y1"] if op == "Split" else ["y0"]
    nodes = [*rounds, helper.make_node(name, operands, results, name="n", domain=domain, **flags),
             node("DequantizeLinear", [results[-1], *back], ["y"])]  # fmt: skip
    used = {n for each in nodes for n in each.input}
    return model(
        nodes,
        [1 if op == "Concat" else "n", 2, 4, 5],
        constants={n: a for n, a in stored.items() if n in used},
        opset_imports=IMPORTS,
    )


CASES: list[dict[str, Any]] = [
    {"op": "Add"}, {"op": "Add", "operand": "stored"}, {"op": "Add", "kind": np.int8}, {"op": "Mul"},
    {"op": "Mul", "operand": "stored", "kind": np.int8}, {"op": "Sigmoid", "operand": ""},
    {"op": "LeakyRelu", "operand": "", "alpha": 0.2, "kind": np.int8}, {"op": "LeakyRelu", "operand": ""},
    {"op": "AveragePool", "operand": "", "kernel_shape": [3, 2], "strides": [1, 2], "pads": [1, 0, 1, 1]},
    {"op": "AveragePool", "operand": "", "kernel_shape": [3, 2], "pads": [1, 0, 0, 1], "count_include_pad": 1, "kind": np.int8},
    {"op": "AveragePool", "operand": "", "kernel_shape": [3, 2], "strides": [1, 3]},
    {"op": "GlobalAveragePool", "operand": "", "channels_last": 0}, {"op": "GlobalAveragePool", "operand": "", "kind": np.int8},
    {"op": "Softmax", "operand": "", "axis": 3, "opset": 17}, {"op": "Concat", "axis": 1},
    {"op": "Concat", "axis": -1, "same": True},
    {"op": "Concat", "axis": 3, "operand": "stored", "same": True}, {"op": "Concat", "axis": 3, "operand": "stored"},
    {"op": "Concat", "axis": 2, "kind": np.int8}, {"op": "Concat", "axis": 1, "domain": ""},
    {"op": "Pad"}, {"op": "Pad", "kind": np.int8}, {"op": "Pad", "mode": "edge", "without": "f"}, {"op": "Gather", "axis": 3},
    {"op": "Split", "axis": 1}, {"op": "Resize", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"},
    {"op": "Resize", "kind": np.int8, "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"},
]  # fmt: skip


@pytest.mark.parametrize("settings", CASES, ids=str)
def test_it_is_read_as_it_runs(settings: dict[str, Any]) -> None:
    source = chain(**settings)
    x = np.random.default_rng(1).standard_normal((20, 2, 4, 5)).astype(np.float32)
    theirs = np.concatenate([by_onnxruntime(source, row[None])[0].reshape(1, -1) for row in x])
    data = source.SerializeToString()
    program = read_onnx(data).program
    assert agree(data, program, 0).evaluator.startswith("onnxruntime")
    view = program.outputs[0].view
    shown = evaluate(program, x.reshape(20, -1).astype(np.float64))[view.sources[0]][:, view.places]
    graph = extract_onnx(source).to(dtype=torch.float64)
    given = torch.from_numpy(x).double().reshape(20, *graph.input_shape)
    for ours in (lv.evaluate(graph, given).numpy().reshape(20, -1), shown):
        apart = np.abs(ours - theirs)
        # A tie may be rounded to either side, in few places: one step.
        assert (apart < 1e-5).mean() > 0.97
        assert apart.max() < 1.001 * STEP
    assert len(np.unique(theirs)) > 10


def test_products_of_two_results_are_read_as_they_run() -> None:
    stored = {"s": np.float32(0.03), "z": np.uint8(120), "t": np.float32(0.02), "v": np.uint8(90), "u": np.float32(0.05),
              "o": np.uint8(128)}  # fmt: skip
    nodes = [
        node("QuantizeLinear", ["x", "s", "z"], ["q"]), node("Transpose", ["x"], ["m"], perm=[0, 2, 1]),
        node("QuantizeLinear", ["m", "t", "v"], ["w"]), node("QLinearMatMul", ["q", "s", "z", "w", "t", "v", "u", "o"], ["p"]),
        node("DequantizeLinear", ["p", "u", "o"], ["y"]),
    ]  # fmt: skip
    source = model(nodes, ["n", 3, 4], constants=stored)
    x = np.random.default_rng(1).standard_normal((30, 3, 4)).astype(np.float32)
    theirs = by_onnxruntime(source, x)[0]
    ours = lv.evaluate(extract_onnx(source).to(dtype=torch.float64), torch.from_numpy(x).double()).numpy()
    assert (np.abs(ours - theirs) < 1e-5).mean() > 0.97
    assert np.abs(ours - theirs).max() < 0.0501
    data = source.SerializeToString()
    assert agree(data, read_onnx(data).program, 0).share <= 1


@pytest.mark.parametrize(("settings", "words"), [
    ({"op": "GlobalAveragePool", "operand": "", "channels_last": 1}, "channels"),
    ({"op": "Add", "without": "o"}, "no zero point|without a zero"),
 ({"op": "Add", "without": "s"}, "scale|lacks"),
    ({"op": "Resize", "mode": "linear"}, "with integers|interpolates"), ({"op": "Add", "without": "w"}, "missing|lacks"),
    ({"op": "Concat", "axis": 1, "without": "u"}, "missing|lacks"),
], ids=str)  # fmt: skip
def test_what_is_not_read_is_refused_by_both(settings: dict[str, Any], words: str) -> None:
    source = chain(**settings)
    with pytest.raises(LipverifyError, match=words):
        extract_onnx(source)
    with pytest.raises(NotCovered, match=words):
        read_onnx(source.SerializeToString())


def test_a_zero_point_of_another_type_is_refused() -> None:
    source = chain("Sigmoid", operand="", other_zero=np.int8)
    with pytest.raises(NotCovered, match="another type"):
        read_onnx(source.SerializeToString())
    with pytest.raises(LipverifyError):
        extract_onnx(source)
