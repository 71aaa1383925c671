"""Gates that exporters write out are read as one activation, what is only like them as a product."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx.reference import ReferenceEvaluator

from lipverify.checkers import model_of_bytes
from lipverify.checkers.evaluation import evaluate
from lipverify.checkers.kernel.program import Product, Scalar
from tests.onnx_models import model, node


def gate(middle: list[Any], constants: dict[str, Any]) -> Any:
    return model([*middle, node("Mul", "xg", "y")], [1, 3], constants=constants)


ONE, TWO = np.ones(1), np.full(1, 2.0)
ERF = [node("Mul", "xa", "e"), node("Erf", "e", "f")]
GATES = {
    "sigmoid": ("Silu", gate([node("Sigmoid", "x", "g")], {})),
    "erf of one scale": ("ErfGate", gate([*ERF, node("Add", "fo", "g")], {"a": np.full(1, 0.7), "o": ONE})),
    "erf": (None, gate([*ERF, node("Add", "fo", "g")], {"a": np.array([0.7, -1.2, 3.0]), "o": ONE})),
    "erf plus 2": (None, gate([*ERF, node("Add", "fo", "g")], {"a": ONE, "o": TWO})),
    "tanh": (None, gate([node("Tanh", "x", "g")], {})),
    "erf of a sum": (
        None,
        gate([node("Add", "xo", "e"), node("Erf", "e", "f"), node("Add", "fo", "g")], {"o": ONE}),
    ),
    "sigmoid of mixed entries": (
        None,
        gate([node("Gather", "xi", "e", axis=1), node("Sigmoid", "e", "g")], {"i": np.array([1, 0, 2])}),
    ),
}


@pytest.mark.parametrize("name", list(GATES))
def test_gates_are_recognised_and_nothing_like_them(name: str, rng: np.random.Generator) -> None:
    law, proto = GATES[name]
    read = model_of_bytes("gate.onnx", proto.SerializeToString())
    assert read.program is not None, read.reason
    program = read.program.ending(0)
    laws = {step.law for step in program.steps if isinstance(step, Scalar)}
    assert ({"Silu", "ErfGate"} & laws) == ({law} if law else set())
    assert any(isinstance(step, Product) for step in program.steps) is (law is None)
    x = rng.standard_normal((50, 3)).astype(np.float32)
    reference = ReferenceEvaluator(proto)
    y = np.concatenate([reference.run(None, {"x": row[None]})[0] for row in x])
    assert evaluate(program, x.astype(np.float64))[-1] == pytest.approx(y, abs=1e-5)
