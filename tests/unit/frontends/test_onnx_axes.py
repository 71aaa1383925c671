"""Which axis is the batch, which sizes are open, and what several samples at once may do to each other."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper

from lipverify.errors import UnsupportedModel, UsageError
from lipverify.frontends.onnx import extract_onnx
from lipverify.interpreter import evaluate
from tests.onnx_models import agrees, ints, model, node, random

pytestmark = pytest.mark.usefixtures("asked_again")


def kinds(graph: object) -> list[str]:
    return [n.op.kind() for n in graph.nodes[1:]]  # type: ignore[attr-defined]


# -- axes


def test_weights_times_a_vector_without_batch_axis() -> None:
    nodes = [node("MatMul", ["w", "x"], ["a"]), node("Add", ["a", "b"], ["c"]), node("Relu", ["c"], ["y"])]
    graph = agrees(model(nodes, [5], 10, {"w": random(3, 5), "b": random(3)}), batched=False)
    assert graph.input_shape == (5,)
    assert "no batch axis" in graph.origin.notes[0]


@pytest.mark.parametrize("left", [True, False])
def test_a_vector_times_a_stack_of_matrices(left: bool) -> None:
    names, shape = (["x", "w"], (2, 5, 3)) if left else (["w", "x"], (2, 3, 5))
    graph = agrees(model([node("MatMul", names, ["y"])], [5], 13, {"w": random(*shape)}), batched=False)
    assert graph.output_shape == (2, 3)


def test_a_stored_number_takes_the_type_of_the_input() -> None:
    nodes = [node("CastLike", ["c", "x"], ["d"]), node("Mul", ["x", "d"], ["y"])]
    assert kinds(agrees(model(nodes, ["N", 6], 19, {"c": np.float16(0.5)}))) == ["Scale"]


@pytest.mark.parametrize("kind", [TensorProto.INT4, TensorProto.UINT4])
def test_a_stored_number_does_not_take_four_bits(kind: int) -> None:
    """16 becomes 0 there, and stayed 16."""
    nodes = [
        node("CastLike", ["c", "b"], ["q"]),
        node("Cast", ["q"], ["d"], to=1),
        node("Mul", ["x", "d"], ["y"]),
    ]
    source = model(nodes, [1, 1], 21, {"c": np.array([16.0], np.float32)})
    source.graph.initializer.append(helper.make_tensor("b", kind, [1], [0]))
    with pytest.raises(UnsupportedModel, match="converts to integers of four bits"):
        agrees(source)


def test_squeezing_everything_keeps_the_samples_apart() -> None:
    graph = agrees(model([node("Squeeze", ["x"], ["y"])], ["N", 1, 6], 13))
    assert graph.output_shape == (6,)


def test_a_convolution_over_several_fixed_samples_takes_all_of_them_as_one() -> None:
    nodes = [node("Conv", ["x", "w"], ["y"])]
    graph = agrees(model(nodes, [8, 2, 5, 5], 13, {"w": random(3, 2, 3, 3)}), batched=False)
    assert graph.input_shape == (8, 2, 5, 5)


def test_a_fixed_first_axis_larger_than_one_belongs_to_the_sample() -> None:
    graph = agrees(model([node("ReduceSum", ["x"], ["y"], axes=[0], keepdims=0)], [3, 4], 11), batched=False)
    assert graph.input_shape == (3, 4)
    assert graph.output_shape == (4,)


def test_channels_last_with_transposes() -> None:
    nodes = [
        node("Transpose", ["x"], ["a"], perm=[0, 3, 1, 2]),
        node("Conv", ["a", "k"], ["b"]),
        node("Transpose", ["b"], ["c"], perm=[0, 2, 3, 1]),
        node("Flatten", ["c"], ["d"]),
        node("Gemm", ["d", "w"], ["y"]),
    ]
    agrees(model(nodes, ["N", 6, 5, 2], 13, {"k": random(3, 2, 3, 3), "w": random(36, 4)}))


def test_the_batch_axis_may_move() -> None:
    nodes = [
        node("Transpose", ["x"], ["a"], perm=[1, 0, 2]),
        node("MatMul", ["a", "w"], ["b"]),
        node("ReduceMean", ["b"], ["y"], axes=[0], keepdims=0),
    ]
    graph = agrees(model(nodes, ["N", 3, 4], 13, {"w": random(4, 2)}))
    assert graph.output_shape == (2,)


def test_products_of_computed_tensors() -> None:
    nodes = [
        node("MatMul", ["x", "q"], ["a"]), node("MatMul", ["x", "k"], ["b"]), node("Transpose", ["b"], ["bt"], perm=[0, 2, 1]),
        node("MatMul", ["a", "bt"], ["s"]), node("Softmax", ["s"], ["p"]), node("MatMul", ["p", "x"], ["y"]),
    ]  # fmt: skip
    agrees(model(nodes, ["N", 3, 4], 13, {"q": random(4, 4), "k": random(4, 4)}))


def test_open_sizes_are_given_by_the_user() -> None:
    source = model([node("GlobalAveragePool", ["x"], ["y"])], ["N", 3, "H", "W"], 13)
    with pytest.raises(UnsupportedModel, match=r"\[\?, 3, \?, \?\] leaves sizes open; .*--input-shape"):
        extract_onnx(source)
    assert extract_onnx(source, input_shape=(3, 5, 4)).input_shape == (3, 5, 4)
    assert extract_onnx(source, input_shape=(1, 3, 5, 4)).input_shape == (3, 5, 4)
    for wrong in ((4, 5, 4), (3, 5), (0, 5, 4)):
        with pytest.raises(UsageError, match="input shape"):
            extract_onnx(source, input_shape=wrong)


def test_an_input_without_a_declared_shape() -> None:
    source = model([node("Relu", ["x"], ["y"])], ["N", 6])
    source.graph.input[0].type.tensor_type.ClearField("shape")
    with pytest.raises(UnsupportedModel, match="no declared shape"):
        extract_onnx(source)
    assert extract_onnx(source, input_shape=(6,)).input_shape == (6,)


# -- several samples at once


def test_samples_that_influence_each_other_are_refused() -> None:
    centred = [node("ReduceMean", ["x"], ["m"], axes=[0]), node("Sub", ["x", "m"], ["y"])]
    with pytest.raises(UnsupportedModel, match="batch axis"):
        extract_onnx(model(centred, ["N", 6], 13))
    # With a batch fixed at one the same nodes are the function they compute: zero.
    graph = extract_onnx(model(centred, [1, 6], 13))
    assert float(evaluate(graph, torch.ones(1, 6)).abs().max()) == 0.0


def test_results_that_depend_on_the_number_of_samples_are_refused() -> None:
    nodes = [
        node("Shape", ["x"], ["s"]), node("Gather", ["s", "zero"], ["n"]), node("Cast", ["n"], ["f"], to=TensorProto.FLOAT),
        node("Div", ["x", "f"], ["y"]),
    ]  # fmt: skip
    with pytest.raises(UnsupportedModel, match="how many there are"):
        extract_onnx(model(nodes, ["N", 6], 13, {"zero": np.int64(0)}))


def test_rows_that_only_lie_beside_each_other_hold_for_one_sample() -> None:
    nodes = [node("Reshape", ["x", "s"], ["a"]), node("Relu", ["a"], ["y"])]
    graph = extract_onnx(model(nodes, ["N", 6], 13, {"s": ints(-1, 3)}))
    assert graph.output_shape == (2, 3)
    assert any("holds for a batch of one sample" in note for note in graph.origin.notes)


def test_a_shape_written_for_one_sample_is_noted() -> None:
    nodes = [node("Reshape", ["x", "s"], ["a"]), node("MatMul", ["a", "w"], ["y"])]
    graph = extract_onnx(model(nodes, ["N", 2, 3], 13, {"s": ints(1, 6), "w": random(6, 2)}))
    assert any("batches of one sample only" in note for note in graph.origin.notes)
