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
TAIL = [node("Tanh", "e", "t"), node("Add", "to", "g")]
CUBED = [node("Mul", "xx", "s"), node("Mul", "sx", "k"), node("Mul", "kc", "m")]
POWER = [node("Pow", "xn", "k"), node("Mul", "kc", "m")]
SUM = [node("Add", "xm", "u"), node("Mul", "ua", "e"), *TAIL]
GIVEN = {"a": np.full(1, 0.75), "c": np.full(1, 0.0625), "n": np.full(1, 3.0), "o": ONE}
GATES = {
    "tanh of a cubic": ("TanhGate", gate([*CUBED, *SUM], GIVEN)),
    "tanh of a power": ("TanhGate", gate([*POWER, *SUM], GIVEN)),
    "tanh of a product": (
        "TanhGate",
        gate(
            [
                node("Mul", "xx", "s"),
                node("Mul", "sc", "k"),
                node("Add", "ko", "m"),
                node("Mul", "xm", "e"),
                *TAIL,
            ],
            GIVEN,
        ),
    ),
    "tanh of another cubic": (None, gate([*CUBED, *SUM], GIVEN | {"c": np.full(1, -0.0625)})),
    "tanh of a steep cubic": (None, gate([*CUBED, *SUM], GIVEN | {"c": np.full(1, 3.0)})),
    "tanh of several cubics": (None, gate([*CUBED, *SUM], GIVEN | {"c": np.array([0.1, 0.2, 0.3])})),
    "tanh of a square": (None, gate([*POWER, *SUM], GIVEN | {"n": TWO})),
    "tanh of mixed entries": (
        None,
        gate(
            [
                node("Gather", "xi", "z", axis=1),
                node("Mul", "xx", "s"),
                node("Mul", "sz", "k"),
                node("Mul", "kc", "m"),
                *SUM,
            ],
            GIVEN | {"i": np.array([1, 0, 2])},
        ),
    ),
    "tanh plus 2": (None, gate([*CUBED, *SUM], GIVEN | {"o": TWO})),
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
    assert ({"Silu", "ErfGate", "TanhGate"} & laws) == ({law} if law else set())
    assert any(isinstance(step, Product) for step in program.steps) is (law is None)
    x = rng.standard_normal((50, 3)).astype(np.float32)
    reference = ReferenceEvaluator(proto)
    y = np.concatenate([reference.run(None, {"x": row[None]})[0] for row in x])
    assert evaluate(program, x.astype(np.float64))[-1] == pytest.approx(y, abs=1e-5)
