"""Choices by the sign of a computed tensor: ReLUs and what else does not jump, as programs write them; all others are refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import TensorProto

from lipverify.checkers.reader import model_of_bytes
from lipverify.checkers.reader.agreement import agree
from lipverify.errors import UnsupportedModel
from lipverify.frontends.onnx import extract_onnx
from tests.onnx_models import agrees, model, node

ZERO = {"zero": np.float32(0), "c": np.float32(0.1), "one": np.float32(1), "half": np.float32(0.5)}
ABOVE = node("Greater", ["x", "zero"], ["s"])
LEAKY = node("Mul", ["x", "c"], ["b"])
FLOAT = node("Cast", ["s"], ["f"], to=TensorProto.FLOAT)
NOT = node("Not", ["s"], ["n"])

CONTINUOUS: dict[str, tuple[list[Any], str]] = {
    "relu": ([ABOVE, node("Where", ["s", "x", "zero"], ["y"])], "ReLU"),
    "relu, zero first": (
        [node("LessOrEqual", ["zero", "x"], ["s"]), node("Where", ["s", "x", "zero"], ["y"])], "ReLU",
    ),
    "relu by what is not so": ([ABOVE, NOT, node("Where", ["n", "zero", "x"], ["y"])], "ReLU"),
    "the part below": ([ABOVE, node("Where", ["s", "zero", "x"], ["y"])], "Clip"),
    "leaky": ([node("GreaterOrEqual", ["x", "zero"], ["s"]), LEAKY, node("Where", ["s", "x", "b"], ["y"])], "LeakyReLU"),
    "leaky from below": ([node("Less", ["x", "zero"], ["s"]), LEAKY, node("Where", ["s", "b", "x"], ["y"])], "LeakyReLU"),
    "magnitude": ([ABOVE, node("Neg", ["x"], ["b"]), node("Where", ["s", "x", "b"], ["y"])], "LeakyReLU"),
    "times": ([ABOVE, FLOAT, node("Mul", ["x", "f"], ["y"])], "ReLU"),
    "a multiple, times": ([ABOVE, FLOAT, LEAKY, node("Mul", ["f", "b"], ["y"])], "ReLU"),
    "two halves": (
        [ABOVE, FLOAT, NOT, node("Cast", ["n"], ["g"], to=TensorProto.FLOAT), LEAKY, node("Mul", ["x", "f"], ["p"]),
         node("Mul", ["b", "g"], ["q"]), node("Add", ["p", "q"], ["y"])],
        "Clip",
    ),
}  # fmt: skip
ELU = [
    ABOVE, node("Exp", ["x"], ["e"]), node("Sub", ["e", "one"], ["m"]), node("Mul", ["m", "half"], ["b"]),
    node("Where", ["s", "x", "b"], ["y"]),
]  # fmt: skip


@pytest.mark.parametrize("name", CONTINUOUS)
def test_what_does_not_jump_is_read_on_both_sides(name: str) -> None:
    nodes, kind = CONTINUOUS[name]
    source = model(nodes, ["N", 6], 13, ZERO)
    graph = agrees(source)
    assert kind in graph.operators()
    found = model_of_bytes("m.onnx", source.SerializeToString())
    assert found.program is not None, found.reason
    agree(source.SerializeToString(), found.program)


def test_an_elu_in_parts() -> None:
    graph = agrees(model(ELU, ["N", 6], 13, ZERO))
    assert graph.operators()["ELU"] == 1


OTHERS: dict[str, tuple[list[Any], str]] = {
    "a step": ([ABOVE, node("Where", ["s", "one", "zero"], ["y"])], "not seen to meet"),
    "another number below": ([ABOVE, node("Where", ["s", "x", "one"], ["y"])], "not seen to meet"),
    "an exponential that does not meet": (
        [ABOVE, node("Exp", ["x"], ["e"]), node("Where", ["s", "x", "e"], ["y"])], "not seen to meet",
    ),
    "another threshold": ([node("Greater", ["x", "one"], ["s"]), node("Where", ["s", "x", "zero"], ["y"])], "not seen to meet"),
    "the sign as a number": ([ABOVE, node("Cast", ["s"], ["y"], to=TensorProto.FLOAT)], "comparison"),
    "the sign, twice": ([ABOVE, FLOAT, node("Mul", ["f", "f"], ["y"])], "comparison"),
    "the sign, added": ([ABOVE, FLOAT, node("Add", ["x", "f"], ["y"])], "comparison"),
    "the sign, summed": ([ABOVE, FLOAT, node("ReduceSum", ["f"], ["y"])], "comparison"),
    "half of another tensor": (
        [ABOVE, FLOAT, node("Exp", ["x"], ["e"]), node("Mul", ["e", "f"], ["y"])], "comparison",
    ),
    "an equation": ([node("Equal", ["x", "zero"], ["s"]), node("Where", ["s", "zero", "x"], ["y"])], "jumps"),
}  # fmt: skip


@pytest.mark.parametrize("name", OTHERS)
def test_others_are_refused_on_both_sides(name: str) -> None:
    nodes, reason = OTHERS[name]
    source = model(nodes, ["N", 6], 13, ZERO)
    with pytest.raises(UnsupportedModel, match=reason):
        extract_onnx(source)
    found = model_of_bytes("m.onnx", source.SerializeToString())
    assert found.program is None
    assert found.reason


@pytest.mark.parametrize("place", [1, 2])
def test_zeros_that_make_more_of_a_tensor_are_no_sign(place: int) -> None:
    """A stored tensor of zeros that broadcasts x to a larger one: the result is no ReLU of x alone."""
    zeros = {"wide": np.zeros((3, 1, 6), np.float32), **ZERO}
    names = ["x", "zero"] if place == 2 else ["x", "wide"]
    below = "wide" if place == 2 else "zero"
    nodes = [node("Greater", names, ["s"]), node("Where", ["s", "x", below], ["y"])]
    source = model(nodes, ["N", 6], 13, zeros)
    with pytest.raises(UnsupportedModel, match=r"jumps|not seen to meet"):
        extract_onnx(source)
    assert model_of_bytes("m.onnx", source.SerializeToString()).program is None
