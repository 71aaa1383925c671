"""Which input varies, what the others are fixed at, which output is meant, and which parts of a file count at all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

import lipverify as lv
from lipverify.errors import InvalidFile, UnsupportedModel, UsageError
from lipverify.falsify import Search
from lipverify.frontends.onnx import extract_onnx
from tests.command import lipverify as run
from tests.onnx_models import agrees, model, node, random

pytestmark = pytest.mark.usefixtures("asked_again")

W = np.array([[1.0, 2.0], [3.0, 4.0], [0.0, 1.0]], np.float32)


def several(opset: int = 13, ir: int = 8) -> Any:
    """y = rate * (obs W) + state, with a whole number `rate` and a state of open batch size; t passes the state through."""
    nodes = [
        node("MatMul", ["obs", "w"], ["a"]),
        node("Cast", ["rate"], ["r"], to=TensorProto.FLOAT),
        node("Mul", ["a", "r"], ["b"]),
        node("Add", ["b", "state"], ["y"]),
        node("Identity", ["state"], ["t"]),
        node("Softmax", ["a"], ["p"]),
    ]
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "g",
        [
            info("obs", TensorProto.FLOAT, ["n", 3]),
            info("state", TensorProto.FLOAT, ["n", 2]),
            info("rate", TensorProto.INT64, []),
        ],
        [info(name, TensorProto.FLOAT, ["n", 2]) for name in "ytp"],
        [numpy_helper.from_array(W, "w")],
    )
    return helper.make_model(graph, ir_version=ir, opset_imports=[helper.make_opsetid("", opset)])


@pytest.fixture
def path(tmp_path: Path) -> Path:
    found = tmp_path / "several.onnx"
    onnx.save(several(), found)
    return found


def test_inputs_that_the_output_does_not_need_are_no_inputs(path: Path) -> None:
    graph = lv.load(path, output="p")
    assert (graph.input.name, graph.origin.part) == ("obs", 'output "p" of the model')
    assert "MatMul" not in lv.load(path, output=1, input="state").operators()


def test_inputs_are_fixed(path: Path) -> None:
    graph = lv.load(path, input="obs", constants={"rate": 3, "state": [0.5, -1.0]})
    x = torch.tensor([[1.0, 2.0, -1.0]])
    assert torch.allclose(lv.evaluate(graph, x), 3 * (x @ torch.from_numpy(W)) + torch.tensor([0.5, -1.0]))
    assert graph.origin.part == 'the model with input "rate" fixed at 3, input "state" fixed at [0.5, -1.0]'
    assert 'input "rate" fixed at 3' in graph.origin.notes
    other = lv.load(path, input="state", constants={"rate": 3, "obs": np.ones((1, 3), np.float32)})
    assert other.input_shape == (2,)


@pytest.mark.parametrize(
    ("settings", "error", "match"),
    [
        ({}, UnsupportedModel, r'3 inputs \("obs", "state", "rate"\); choose one with --input NAME and fix'),
        (
            {"input": "obs"},
            UnsupportedModel,
            r'also depends on "state", "rate"; fix them, for example --constant',
        ),
        ({"input": "nothing"}, UsageError, r'no input "nothing"; the model has "obs", "state", "rate"'),
        ({"input": "obs", "constants": {"obs": 1}}, UsageError, "both the input and a constant"),
        ({"input": "obs", "constants": {"rate": 0.5, "state": 0}}, UsageError, "takes numbers of type int64"),
        ({"input": "obs", "constants": {"rate": 1, "state": np.nan}}, UsageError, "finite numbers only"),
        (
            {"input": "obs", "constants": {"rate": 1, "state": [1, 2, 3]}},
            UsageError,
            r"has shape \['\?', 2\]",
        ),
        ({"input": "state", "output": "p"}, UsageError, 'does not depend on input "state"'),
        ({"output": "q"}, UsageError, 'no output "q"; the model has 0: "y", 1: "t", 2: "p"'),
    ],
)
def test_choices_that_make_no_sense(path: Path, settings: Any, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        lv.load(path, **settings)


def test_command_line(path: Path) -> None:
    state = path.parent / "state.npy"
    np.save(state, np.array([[0.5, 1.0]], np.float32))
    fixed = ["--input", "obs", "--constant", "rate=2", "--constant", f"state={state}"]
    done = run("audit", str(path), *fixed, "--json")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["query"]["of"].startswith('the model with input "rate" fixed at 2')
    assert document["best"]["upper"] == pytest.approx(2 * np.linalg.norm(W, 2))
    assert run("inspect", str(path), "--output", "p").returncode == 0
    for wrong in (
        ["--constant", "rate"],
        ["--constant", "rate=1", "--constant", "rate=2"],
        ["--constant", "rate=x"],
    ):
        assert run("audit", str(path), "--input", "obs", *wrong).returncode == 2
    assert run("inspect", "zoo:digits-relu-mlp", "--output", "logits").returncode == 2


def test_stored_defaults_of_inputs(path: Path) -> None:
    source = several()
    source.graph.initializer.append(numpy_helper.from_array(np.int64(5), "rate"))
    graph = extract_onnx(source, output=0, input="obs", constants={"state": 0})
    assert 'input "rate" has its stored default' in graph.origin.notes
    changed = extract_onnx(source, output=0, input="obs", constants={"state": 0, "rate": 2})
    x = torch.ones(1, 3)
    assert torch.allclose(lv.evaluate(graph, x), 2.5 * lv.evaluate(changed, x))


# -- numbers without end


def test_masks_of_minus_infinity() -> None:
    mask = np.triu(np.full((4, 4), -np.inf, np.float32), 1)
    spelled = [
        node("MatMul", ["x", "w"], ["a"]),
        node("Mul", ["a", "half"], ["h"]),
        node("Add", ["h", "m"], ["b"]),
        node("Reshape", ["b", "s"], ["c"]),
        node("Softmax", ["c"], ["d"], axis=-1),
        node("Reshape", ["d", "t"], ["y"]),
    ]
    stored = {
        "w": random(4, 4),
        "half": np.float32(0.5),
        "m": mask,
        "s": np.array([1, 2, 2, 4]),
        "t": np.array([1, 4, 4]),
    }
    graph = agrees(model(spelled, [1, 4, 4], 13, stored))
    assert "MaskedSoftmax" in graph.operators()
    chosen = [node("Where", ["c", "x", "low"], ["b"]), node("Softmax", ["b"], ["y"], axis=-1)]
    agrees(
        model(chosen, ["n", 4], 13, {"c": np.array([True, False, True, True]), "low": np.float32(-np.inf)})
    )
    attention = [node("Attention", ["x", "x", "x"], ["y"], is_causal=1)]
    agrees(model(attention, [1, 2, 3, 4], 23))


def test_files_with_infinities_have_bounds_without_proof(tmp_path: Path) -> None:
    nodes = [node("MatMul", ["x", "w"], ["a"]), node("Clip", ["a", "lo", "hi"], ["y"])]
    stored = {"w": W, "lo": np.float32(0), "hi": np.float32(np.inf)}
    onnx.save(model(nodes, [1, 3], 13, stored), tmp_path / "clip.onnx")
    (row,) = lv.audit(lv.load(tmp_path / "clip.onnx"), analyzers="product", search=Search(seconds=0.1)).rows
    assert row.certificate is not None
    assert row.upper == pytest.approx(np.linalg.norm(W, 2))


def test_extremes_without_limits() -> None:
    low = np.array([-np.inf, 0.5, -np.inf, 1.0], np.float32)
    agrees(model([node("Max", ["x", "low"], ["y"])], ["n", 4], 13, {"low": low}))
    agrees(model([node("Min", ["x", "high"], ["y"])], ["n", 4], 13, {"high": -low}))
    graph = agrees(model([node("Max", ["x", "low"], ["y"])], ["n", 4], 13, {"low": np.float32(-np.inf)}))
    assert graph.operators() == {}
    agrees(
        model(
            [node("Clip", ["x", "a", "b"], ["y"])],
            ["n", 4],
            13,
            {"a": np.float32(0), "b": np.float32(np.inf)},
        )
    )


@pytest.mark.parametrize(
    "nodes",
    [
        [node("MatMul", ["x", "m"], ["y"])],
        [node("Add", ["x", "m"], ["b"]), node("Relu", ["b"], ["y"])],
        [node("Add", ["x", "m"], ["y"])],
        [node("Mul", ["x", "m"], ["y"])],
        [node("Softmax", ["x"], ["s"]), node("Add", ["s", "all"], ["b"]), node("Softmax", ["b"], ["y"])],
    ],
)
def test_infinities_that_no_bound_exists_for(nodes: Any) -> None:
    stored = {"m": np.triu(np.full((4, 4), -np.inf, np.float32), 1), "all": np.full(4, -np.inf, np.float32)}
    with pytest.raises((InvalidFile, UnsupportedModel), match="infinity"):
        extract_onnx(model(nodes, [1, 4, 4], 13, stored))


# -- versions and types


@pytest.mark.parametrize("opset", [1, 5, 6])
def test_old_operator_sets_are_converted(opset: int) -> None:
    nodes = [
        node("Gemm", ["x", "w", "b"], ["a"], **({"broadcast": 1} if opset < 7 else {})),
        node("Relu", ["a"], ["y"]),
    ]
    graph = extract_onnx(model(nodes, [1, 3], opset, {"w": W, "b": random(2)}))
    assert any(
        note.startswith(f"converted from version {opset} of the ONNX operators to 7")
        for note in graph.origin.notes
    )
    assert graph.operators() == {"Linear": 1, "ReLU": 1}


@pytest.mark.parametrize("opset", range(22, onnx.defs.onnx_opset_version() + 1))
def test_new_operator_sets(opset: int) -> None:
    nodes = [
        node("MatMul", ["x", "w"], ["a"]),
        node("Relu", ["a"], ["b"]),
        node("Reshape", ["b", "s"], ["y"]),
    ]
    agrees(model(nodes, [1, 3], opset, {"w": W, "s": np.array([1, 2])}))


def test_newer_operators_than_were_read(monkeypatch: pytest.MonkeyPatch) -> None:
    from lipverify.frontends.onnx import walk

    monkeypatch.setitem(walk.NEWEST, "Relu", 13)
    with pytest.raises(UnsupportedModel, match='Relu "y_node": version 14 of this operator is newer'):
        extract_onnx(model([node("Relu", ["x"], ["y"])], ["n", 3], 17))


@pytest.mark.parametrize(
    ("op", "stored", "reason"),
    [
        ("MatMul", W.astype(np.float16), "mix a tensor.float. and a tensor.float16."),
        ("MatMul", W.astype(np.int8), "tensor.int8., which this operator does not take"),
        ("Add", np.ones(3, np.int64), "mix a tensor.float. and a tensor.int64."),
    ],
)
def test_types_that_an_operator_does_not_take(op: str, stored: Any, reason: str) -> None:
    source = model([node(op, ["x", "w"], ["y"])], [1, 3], 13, {"w": stored})
    with pytest.raises(InvalidFile, match=reason):
        extract_onnx(source)


def test_what_no_reader_takes_is_not_taken_here() -> None:
    source = model([node("Relu", ["x"], ["y"])], [1, 3], 13)
    source.graph.node[0].doc_string = "fine"
    source.graph.node.append(node("Nothing", ["x"], ["z"]))
    source.graph.output.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, [1, 3]))
    extract_onnx(source, output=0)
    source.graph.name = ""  # which onnx.checker demands, and onnxruntime does not
    extract_onnx(source, output=0)


def test_wrongly_declared_outputs_are_noted() -> None:
    source = model([node("Relu", ["x"], ["y"])], [1, 3], 13)
    source.graph.output[0].type.tensor_type.shape.dim.add().dim_value = 1
    source.graph.output[0].type.tensor_type.shape.dim.add().dim_value = 4
    graph = extract_onnx(source)
    assert 'output "y" is declared as [1, 4]; the model computes [1, 3]' in graph.origin.notes


def test_single_numbers_as_inputs() -> None:
    nodes = [node("Pow", ["b", "x"], ["a"]), node("MatMul", ["a", "w"], ["y"])]
    graph = extract_onnx(model(nodes, [], 13, {"b": np.array([2.0, 3.0, 0.5], np.float32), "w": W}))
    assert (graph.input_shape, graph.output_shape) == ((), (2,))
