"""Whole ONNX graphs as exporters write them: shape chains, weights in every place, one batch axis or none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from lipverify import ops
from lipverify.errors import ExtractionMismatch, InvalidFile, UnsupportedModel, UsageError
from lipverify.frontends.onnx import extract_onnx, lower
from lipverify.frontends.onnx.call import Call
from lipverify.interpreter import evaluate
from tests.onnx_models import agrees, by_onnxruntime, ints, model, node, random

pytestmark = pytest.mark.usefixtures("asked_again")


def kinds(graph: object) -> list[str]:
    return [n.op.kind() for n in graph.nodes[1:]]  # type: ignore[attr-defined]


# -- constants


def test_a_flatten_spelled_with_shape_gather_concat_disappears() -> None:
    nodes = [
        node("Shape", ["x"], ["s"]),
        node("Gather", ["s", "zero"], ["n"], axis=0),
        node("Unsqueeze", ["n", "zeros"], ["n1"]),
        node("Concat", ["n1", "rest"], ["target"], axis=0),
        node("Reshape", ["x", "target"], ["flat"]),
        node("MatMul", ["flat", "w"], ["y"]),
    ]
    stored = {"zero": np.int64(0), "zeros": ints(0), "rest": ints(-1), "w": random(12, 3)}
    graph = agrees(model(nodes, ["N", 3, 4], 17, stored))
    assert kinds(graph) == ["Reshape", "Linear"]
    assert graph.origin.notes == ()  # moving whole numbers about is no arithmetic on weights


@pytest.mark.parametrize("op", ["Add", "Sub", "Mul", "Div", "Pow", "PRelu", "Max", "Min", "Sum", "Mean"])
def test_stored_operands_widen_one_another(op: str) -> None:
    """Each of two has an axis of 1 that the other one widens: onnx adds means up in place, which such shapes do not allow."""
    wide = (3, 4, 2) if op == "PRelu" else (3, 1, 2)  # slopes widen nothing
    stored = {"a": np.abs(random(*wide)) + 0.5, "b": random(1, 4, 1, seed=1)}
    several = ["a", "b", "a"] if op in ("Max", "Min", "Sum", "Mean") else ["a", "b"]
    nodes = [node(op, several, ["c"]), node("Add", ["x", "c"], ["y"])]
    assert kinds(agrees(model(nodes, ["N", 3, 4, 2], 17, stored), reader=by_onnxruntime)) == ["Scale"]


def test_left_overs_of_exporters_are_folded() -> None:
    """Expand(ConstantOfShape), Where(Equal), Range and Cast on sizes."""
    nodes = [
        node("Shape", ["x"], ["s"]),
        node("Slice", ["s", "one", "two"], ["width"]),
        node(
            "ConstantOfShape", ["width"], ["ones"], value=numpy_helper.from_array(np.array([1.0], np.float32))
        ),
        node("Equal", ["width", "minus"], ["is"]),
        node("Where", ["is", "one", "width"], ["chosen"]),
        node("Squeeze", ["chosen"], ["count"]),
        node("Range", ["start", "count", "step"], ["positions"]),
        node("Cast", ["positions"], ["floats"], to=TensorProto.FLOAT),
        node("Add", ["floats", "ones"], ["shift"]),
        node("Size", ["x"], ["total"]),
        node("Cast", ["total"], ["divisor"], to=TensorProto.FLOAT),
        node("Add", ["x", "shift"], ["moved"]),
        node("Div", ["moved", "divisor"], ["y"]),
    ]
    stored = {"one": ints(1), "two": ints(2), "minus": ints(-1), "start": np.int64(0), "step": np.int64(1)}
    graph = agrees(model(nodes, [1, 6], 13, stored))
    assert kinds(graph) == ["Scale", "DivideBy"]
    assert "stored numbers alone" in graph.origin.notes[0]


@pytest.mark.parametrize(
    ("name", "value", "wanted"),
    [
        ("value", numpy_helper.from_array(random(6)), random(6)),
        ("value_float", 2.5, np.full(6, 2.5)),
        ("value_floats", [1.0, 2, 3, 4, 5, 6], np.arange(1, 7)),
    ],
)
def test_constant_nodes_in_all_forms(name: str, value: object, wanted: np.ndarray) -> None:
    graph = agrees(
        model([node("Constant", [], ["c"], **{name: value}), node("Mul", ["x", "c"], ["y"])], ["N", 6])
    )
    np.testing.assert_allclose(evaluate(graph, torch.ones(1, 6))[0], wanted, rtol=1e-7)


@pytest.mark.parametrize(("name", "value"), [("value_int", 1), ("value_ints", [1])])
def test_constant_nodes_with_whole_numbers(name: str, value: object) -> None:
    nodes = [node("Constant", [], ["a"], **{name: value}), node("Gather", ["x", "a"], ["y"], axis=1)]
    graph = agrees(model(nodes, ["N", 6], 13))
    assert kinds(graph)[0] == "Slice"


def test_dense_weight_behind_a_stored_reshape() -> None:
    nodes = [node("Reshape", ["w", "s"], ["flat"]), node("MatMul", ["x", "flat"], ["y"])]
    graph = agrees(model(nodes, ["N", 12], 8, {"w": random(3, 2, 2, 5), "s": ints(12, 5)}))
    assert kinds(graph) == ["Linear"]


def test_dequantised_weights_are_weights() -> None:
    nodes = [node("DequantizeLinear", ["q", "scale", "zero"], ["w"]), node("MatMul", ["x", "w"], ["y"])]
    stored = {
        "q": np.arange(-6, 6, dtype=np.int8).reshape(6, 2),
        "scale": np.float32(0.1),
        "zero": np.int8(1),
    }
    assert kinds(agrees(model(nodes, ["N", 6], 13, stored), reader=by_onnxruntime)) == ["Linear"]


def test_dequantised_weights_with_a_scale_for_each_column() -> None:
    nodes = [node("DequantizeLinear", ["q", "scale"], ["w"], axis=-1), node("MatMul", ["x", "w"], ["y"])]
    stored = {"q": np.arange(12, dtype=np.uint8).reshape(6, 2), "scale": np.array([0.1, 0.3], np.float32)}
    graph = agrees(model(nodes, ["N", 6], 13, stored), reader=by_onnxruntime)
    np.testing.assert_allclose(graph.nodes[1].op.weight[1], stored["q"][:, 1] * np.float32(0.3), rtol=1e-7)  # type: ignore[attr-defined]


def test_half_precision_weights_keep_their_type() -> None:
    nodes = [node("Gemm", ["x", "w", "b"], ["a"]), node("Relu", ["a"], ["y"])]
    stored = {"w": random(6, 3).astype(np.float16), "b": random(3).astype(np.float16)}
    graph = extract_onnx(model(nodes, ["N", 6], 13, stored, kind=TensorProto.FLOAT16))
    assert graph.dtype is torch.float16
    check = graph.origin.import_check
    assert check is not None
    assert check.max_abs_difference < 1e-3 * check.max_abs_output


def test_double_precision_is_checked_in_double() -> None:
    w = np.random.default_rng(0).standard_normal((6, 3))
    source = model([node("MatMul", ["x", "w"], ["y"])], ["N", 6], 13, kind=TensorProto.DOUBLE)
    source.graph.initializer.append(numpy_helper.from_array(w, "w"))
    graph = extract_onnx(source)
    assert graph.dtype is torch.float64
    assert graph.origin.import_check.max_abs_difference < 1e-12  # type: ignore[union-attr]


def test_a_branch_whose_condition_is_stored_is_taken() -> None:
    def branch(name: str, op: str) -> object:
        result = helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
        return helper.make_graph([node(op, ["x"], [name])], name, [], [result])

    nodes = [
        node("Shape", ["x"], ["s"]),
        node("Size", ["s"], ["rank"]),
        node("Equal", ["rank", "two"], ["flat"]),
        node("If", ["flat"], ["a"], then_branch=branch("t", "Tanh"), else_branch=branch("e", "Relu")),
        node("Neg", ["a"], ["y"]),
    ]
    assert kinds(agrees(model(nodes, ["N", 6], 13, {"two": np.int64(2)}))) == ["Tanh", "Scale"]


def test_functions_of_the_model_are_expanded() -> None:
    standard = [helper.make_opsetid("", 17)]
    body = [
        helper.make_node("Sigmoid", ["a"], ["s"]),
        helper.make_node("Mul", ["a", "s"], ["b"]),
    ]
    swish = helper.make_function("own", "Swish", ["a"], ["b"], body, standard)
    twice = helper.make_function(
        "own", "Twice", ["a"], ["b"],
        [helper.make_node("Swish", ["a"], ["t"], domain="own"), helper.make_node("Swish", ["t"], ["b"], domain="own")],
        [*standard, helper.make_opsetid("own", 1)],
    )  # fmt: skip
    source = model(
        [helper.make_node("Twice", ["x"], ["y"], domain="own")], ["N", 6], 17,
        functions=[swish, twice], opset_imports=[*standard, helper.make_opsetid("own", 1)],
    )  # fmt: skip
    assert kinds(agrees(source)) == ["Sigmoid", "Mul"] * 2


# -- order and names


def test_unsorted_nodes_are_sorted() -> None:
    nodes = [node("Tanh", ["b"], ["y"]), node("Relu", ["a"], ["b"]), node("MatMul", ["x", "w"], ["a"])]
    graph = extract_onnx(model(nodes, ["N", 6], 13, {"w": random(6, 4)}))
    assert kinds(graph) == ["Linear", "ReLU", "Tanh"]


def test_both_names_of_the_standard_domain_are_one() -> None:
    first, second = node("Relu", ["x"], ["a"]), node("Tanh", ["a"], ["y"])
    second.domain = "ai.onnx"
    source = model([first, second], ["N", 6], opset_imports=[helper.make_opsetid("ai.onnx", 13)])
    assert kinds(extract_onnx(source)) == ["ReLU", "Tanh"]


def test_nodes_without_names_and_with_the_same_name() -> None:
    nodes = [helper.make_node("Relu", ["x"], ["a"]), helper.make_node("Tanh", ["a"], ["b"], name="t"),
             helper.make_node("Tanh", ["b"], ["y"], name="t")]  # fmt: skip
    graph = agrees(model(nodes, ["N", 6]))
    assert [n.name for n in graph.nodes] == ["x", "a", "t", "t.1"]


def test_what_no_output_needs_is_ignored() -> None:
    nodes = [node("Floor", ["x"], ["dead"]), node("Relu", ["x"], ["y"])]
    assert kinds(agrees(model(nodes, ["N", 6]))) == ["ReLU"]


def test_one_of_several_outputs() -> None:
    nodes = [
        node("Relu", ["x"], ["a"]),
        node("ArgMax", ["x"], ["b"], axis=1),
        node("MatMul", ["x", "w"], ["c"]),
    ]
    source = model(nodes, ["N", 6], 13, {"w": random(6, 2)}, ["a", "c"])
    assert [extract_onnx(source)[name].shape for name in extract_onnx(source).outputs] == [(6,), (2,)]
    source.graph.output.insert(1, helper.make_tensor_value_info("b", TensorProto.INT64, None))
    with pytest.raises(UnsupportedModel, match=r'ArgMax "b_node" .* not continuous'):
        extract_onnx(source)
    assert extract_onnx(source, output=2).output_shape == (2,)
    with pytest.raises(UsageError, match="there is no output 3"):
        extract_onnx(source, output=3)


def test_an_output_that_is_stored_or_the_input_itself() -> None:
    source = model([node("Relu", ["x"], ["a"])], ["N", 6], 13, {"c": random(4)}, ["a", "c", "x"])
    graph = extract_onnx(source)
    assert [graph[name].op.kind() for name in graph.outputs] == ["ReLU", "Constant", "Input"]


# -- files, origins, the check


def test_a_file_has_an_origin(tmp_path: Path) -> None:
    import hashlib

    path = tmp_path / "net.onnx"
    source = model([node("Relu", ["x"], ["y"])], ["N", 6])
    path.write_bytes(source.SerializeToString())
    graph = extract_onnx(path)
    assert graph.origin.format == "onnx"
    assert graph.origin.path is not None
    assert Path(graph.origin.path).name == "net.onnx"
    assert graph.origin.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert extract_onnx(source).digest == graph.digest


def test_external_data_is_read_for_files_only(tmp_path: Path) -> None:
    source = model([node("MatMul", ["x", "w"], ["y"])], ["N", 6], 13, {"w": random(6, 3)})
    onnx.save_model(
        source, str(tmp_path / "net.onnx"), save_as_external_data=True, location="w.bin", size_threshold=0
    )
    assert (tmp_path / "w.bin").exists()
    graph = extract_onnx(tmp_path / "net.onnx")
    assert "w.bin" in graph.origin.notes[0]
    bare = onnx.load(str(tmp_path / "net.onnx"), load_external_data=False)
    with pytest.raises(UsageError, match="external data"):
        extract_onnx(bare)


def test_the_model_given_is_not_changed() -> None:
    source = model([node("Relu", ["x"], ["y"])], ["N", 6])
    before = source.SerializeToString()
    extract_onnx(source)
    assert source.SerializeToString() == before


def test_a_wrong_translation_is_caught_and_located(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(c: Call) -> object:
        return c.build.elementwise(ops.LeakyReLU(0.01), c.value())

    monkeypatch.setitem(lower.translators, ("", "Relu"), wrong)
    nodes = [node("MatMul", ["x", "w"], ["a"]), node("Relu", ["a"], ["b"]), node("MatMul", ["b", "v"], ["y"])]
    with pytest.raises(ExtractionMismatch, match='the first tensor that differs is "b"'):
        extract_onnx(model(nodes, ["N", 6], 13, {"w": random(6, 4), "v": random(4, 2)}))


def test_a_model_that_no_reader_runs_is_not_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    def translate(c: Call) -> object:
        return c.value()

    monkeypatch.setitem(lower.translators, ("elsewhere", "Same"), translate)
    source = model(
        [helper.make_node("Same", ["x"], ["y"], domain="elsewhere")], ["N", 6],
        opset_imports=[helper.make_opsetid("", 13), helper.make_opsetid("elsewhere", 1)],
    )  # fmt: skip
    with pytest.raises(ExtractionMismatch, match="no reader runs the model"):
        extract_onnx(source)
    assert extract_onnx(source, check=False).origin.import_check is None


def test_without_onnxruntime_the_evaluator_of_onnx_is_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    graph = extract_onnx(model([node("Relu", ["x"], ["y"])], ["N", 6]))
    assert graph.origin.import_check is not None
    assert graph.origin.import_check.reference == f"onnx {onnx.__version__} reference"


def test_an_initialiser_that_is_also_an_input_is_stored() -> None:
    source = model([node("MatMul", ["x", "w"], ["y"])], ["N", 6], 8, {"w": random(6, 3)})
    assert [value.name for value in source.graph.input] == ["x", "w"]
    assert kinds(agrees(source)) == ["Linear"]


def test_conversions_between_wide_types_are_noted() -> None:
    nodes = [node("Cast", ["x"], ["a"], to=TensorProto.DOUBLE), node("Relu", ["a"], ["b"]),
             node("Cast", ["b"], ["y"], to=TensorProto.FLOAT)]  # fmt: skip
    graph = agrees(model(nodes, ["N", 6], 13))
    assert kinds(graph) == ["ReLU"]
    assert any("float64" in note for note in graph.origin.notes)


def test_a_damaged_file(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    path.write_bytes(model([node("Relu", ["x"], ["y"])], ["N", 6]).SerializeToString()[:-7])
    with pytest.raises(InvalidFile):
        extract_onnx(path)
