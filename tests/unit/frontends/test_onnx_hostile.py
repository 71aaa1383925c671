"""Graphs built to exhaust time or memory: refused before anything large is allocated, within seconds."""

from __future__ import annotations

import resource
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from lipverify.errors import LipverifyError, UnsupportedModel
from lipverify.frontends.onnx import extract_onnx
from tests.clocks import within
from tests.onnx_models import agrees, ints, model, node, random

pytestmark = pytest.mark.usefixtures("asked_again")
HUGE = 2**40


def refused(
    nodes: Sequence[Any], reason: str, constants: Any = None, shape: Any = (1, 6), megabytes: int = 300
) -> None:
    source = model(nodes, shape, 13, constants)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with within(5), pytest.raises(LipverifyError, match=reason) as caught:
        extract_onnx(source)
    assert caught.value.exit_code in (2, 5)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1000 * megabytes


FILL = numpy_helper.from_array(np.array([1.0], np.float32))


@pytest.mark.parametrize(
    ("first", "constants"),
    [
        (node("ConstantOfShape", ["s"], ["c"], value=FILL), {"s": ints(HUGE)}),
        (node("ConstantOfShape", ["s"], ["c"], value=FILL), {"s": ints(2**31, 2**31, 2**31)}),
        (node("Expand", ["w", "s"], ["c"]), {"w": random(1), "s": ints(HUGE, 6)}),
        (node("Tile", ["w", "s"], ["c"]), {"w": random(2, 2), "s": ints(2**20, 2**20)}),
        (
            node("Range", ["a", "b", "d"], ["c"]),
            {"a": np.float32(0), "b": np.float32(1e30), "d": np.float32(1)},
        ),
        (node("Range", ["a", "b", "d"], ["c"]), {"a": np.int64(0), "b": np.int64(HUGE), "d": np.int64(1)}),
        (node("Pad", ["w", "p"], ["c"]), {"w": random(2, 2), "p": ints(0, HUGE, 0, 0)}),
        (
            node("OneHot", ["i", "n", "v"], ["c"]),
            {"i": ints(0, 1), "n": np.int64(HUGE), "v": np.array([0, 1], np.float32)},
        ),
        (node("Gather", ["w", "i"], ["c"], axis=0), {"w": random(1, 2**14), "i": np.zeros(2**14, np.int64)}),
        (node("Add", ["w", "v"], ["c"]), {"w": random(2**14, 1), "v": random(1, 2**14)}),
        (node("MatMul", ["w", "v"], ["c"]), {"w": random(2**14, 1), "v": random(1, 2**14)}),
        (node("Gemm", ["w", "v"], ["c"], transB=1), {"w": random(2**14, 1), "v": random(2**14, 1)}),
    ],
)
def test_stored_tensors_that_would_be_huge(first: Any, constants: Any) -> None:
    refused(
        [first, node("Add", ["x", "c"], ["y"])],
        f'{first.op_type} "c_node".*more than 67108864 bytes',
        constants,
    )


def test_ranges_that_never_end() -> None:
    stored = {"a": np.float32(0), "b": np.float32(5), "d": np.float32(0)}
    refused([node("Range", ["a", "b", "d"], ["c"]), node("Add", ["x", "c"], ["y"])], "never ends", stored)


def test_many_folds_share_one_account() -> None:
    nodes = [node("ConstantOfShape", ["s"], [f"c{i}"], value=FILL) for i in range(100)]
    nodes += [node("Sum", ["x", *(f"c{i}" for i in range(100))], ["y"])]
    refused(nodes, "too much to compute", {"s": ints(2**22, 1)}, megabytes=1200)


def test_folds_that_only_read_are_counted() -> None:
    nodes = [node("ReduceSum", ["w"], [f"c{i}"], keepdims=0) for i in range(5000)]
    nodes += [node("Sum", ["x", *(f"c{i}" for i in range(5000))], ["y"])]
    refused(nodes, "too much to compute", {"w": np.zeros(2**20, np.float32)})


@pytest.mark.parametrize(
    ("nodes", "constants"),
    [
        ([node("Expand", ["x", "s"], ["y"])], {"s": ints(HUGE, 1, 64)}),
        ([node("Tile", ["x", "s"], ["y"])], {"s": ints(1, HUGE)}),
        ([node("Pad", ["x", "p"], ["y"])], {"p": ints(0, HUGE, 0, 0)}),
        ([node("Resize", ["x", "", "s"], ["y"])], {"s": np.array([1, 1e12], np.float32)}),
        ([node("Gather", ["x", "i"], ["y"], axis=0)], {"i": np.zeros(2**22, np.int32)}),
    ],
)
def test_computed_tensors_that_would_be_huge(nodes: Any, constants: Any) -> None:
    refused(nodes, nodes[0].op_type, constants, (1, 64))


def test_a_tensor_joined_with_itself_forty_times() -> None:
    nodes = [node("Concat", [f"a{i}", f"a{i}"], [f"a{i + 1}"], axis=1) for i in range(40)]
    nodes = [node("Identity", ["x"], ["a0"]), *nodes, node("Identity", ["a40"], ["y"])]
    refused(nodes, "numbers, more than")


def test_forty_doublings_have_two_to_the_forty_paths() -> None:
    nodes = [node("Add", [f"a{i}", f"a{i}"], [f"a{i + 1}"]) for i in range(40)]
    nodes = [node("Identity", ["x"], ["a0"]), *nodes, node("Identity", ["a40"], ["y"])]
    with within(10):
        graph = agrees(model(nodes, [1, 6]))
    assert graph.operators() == {"Add": 40}


def test_a_stack_of_a_million_matrices() -> None:
    refused(
        [node("MatMul", ["x", "w"], ["y"])],
        "more than 4096 stored matrices",
        {"w": np.zeros((2**18, 1, 1), np.float32)},
        (1, 1, 1),
    )


def test_a_convolution_that_never_ends() -> None:
    nodes = [node("Expand", ["x", "s"], ["a"]), node("Conv", ["a", "w"], ["y"])]
    stored = {"s": ints(1, 16, 2048, 2048), "w": np.zeros((16, 16, 33, 33), np.float32)}
    refused(nodes, "multiplications", stored, (1, 1, 1, 1))


def test_a_window_larger_than_its_tensor() -> None:
    refused([node("Conv", ["x", "w"], ["y"])], "Conv", {"w": random(1, 1, 9, 9)}, (1, 1, 4, 4))
    refused([node("MaxPool", ["x"], ["y"], kernel_shape=[9, 9])], "MaxPool", shape=(1, 1, 4, 4))
    refused([node("MaxPool", ["x"], ["y"], kernel_shape=[2**40, 1])], "MaxPool", shape=(1, 1, 4, 4))


def test_a_long_chain_ends() -> None:
    count = 3000
    nodes = [node("Relu", [f"a{i}"], [f"a{i + 1}"]) for i in range(count)]
    nodes = [node("Identity", ["x"], ["a0"]), *reversed(nodes), node("Identity", [f"a{count}"], ["y"])]
    with within(20):
        assert len(extract_onnx(model(nodes, [1, 6])).nodes) == count + 1


def test_many_nodes_of_one_name() -> None:
    nodes = [helper.make_node("Relu", [f"a{i}"], [f"a{i + 1}"], name="same") for i in range(3000)]
    source = model([node("Identity", ["x"], ["a0"]), *nodes, node("Identity", ["a3000"], ["y"])], [1, 6])
    with within(10):
        assert len({n.name for n in extract_onnx(source, check=False)}) == 3001


def test_a_hundred_thousand_nodes() -> None:
    nodes = [node("Relu", [f"a{i}"], [f"a{i + 1}"]) for i in range(100_000)]
    refused([node("Identity", ["x"], ["a0"]), *nodes, node("Identity", ["a100000"], ["y"])], "50000 nodes")


def test_a_cycle() -> None:
    nodes = [node("Add", ["x", "b"], ["a"]), node("Relu", ["a"], ["b"]), node("Tanh", ["b"], ["y"])]
    refused(nodes, "cycle")


def test_a_huge_input() -> None:
    refused([node("Relu", ["x"], ["y"])], "numbers; give a smaller", shape=(1, 2**40))


def test_a_function_that_explodes() -> None:
    standard = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
    functions = []
    for i in range(40):
        inner = ("Relu", "") if i == 0 else (f"F{i - 1}", "own")
        body = [
            helper.make_node(inner[0], ["a"], ["t"], domain=inner[1]),
            helper.make_node(inner[0], ["t"], ["b"], domain=inner[1]),
        ]
        functions.append(helper.make_function("own", f"F{i}", ["a"], ["b"], body, standard))
    source = model(
        [helper.make_node("F39", ["x"], ["y"], domain="own")],
        [1, 6],
        functions=functions,
        opset_imports=standard,
    )
    with pytest.raises(UnsupportedModel, match="expand to more than"):
        extract_onnx(source)


def test_a_function_that_calls_itself() -> None:
    standard = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
    body = [helper.make_node("F", ["a"], ["b"], domain="own")]
    source = model(
        [helper.make_node("F", ["x"], ["y"], domain="own")], [1, 6], opset_imports=standard,
        functions=[helper.make_function("own", "F", ["a"], ["b"], body, standard)],
    )  # fmt: skip
    with pytest.raises(UnsupportedModel, match="calls itself"):
        extract_onnx(source)


def test_a_model_in_memory_is_held_to_the_rules_for_files() -> None:
    source = model(
        [node("MatMul", ["x", "w"], ["y"])], [1, 6], 13, {"w": np.full((6, 2), np.nan, np.float32)}
    )
    with pytest.raises(LipverifyError, match="NaN"):
        extract_onnx(source)
    source = model([node("Relu", ["x"], ["y"])], [1, 6])
    source.graph.input[0].type.tensor_type.elem_type = TensorProto.STRING
    with pytest.raises(UnsupportedModel, match="element type 8"):
        extract_onnx(source)
