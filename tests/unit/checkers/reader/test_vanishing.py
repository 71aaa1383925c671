"""Products and quotients of stored numbers that underflow: a count of roundings does not bound what they lost."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from lipverify.checkers.kernel.arithmetic import held
from lipverify.checkers.reader import Model, model_of_bytes
from lipverify.errors import NotCovered
from tests.onnx_models import in_double, node

S, L = 2.0**-600, 2.0**600


def read(nodes: list[Any], shape: tuple[int, ...] = (1, 1), **stored: Any) -> Model:
    return model_of_bytes("m.onnx", in_double(nodes, shape, stored).SerializeToString())


def folded(op: str, names: str = "a b") -> list[Any]:
    return [node(op, names.split(), ["w"]), node("Mul", ["x", "w"], ["y"])]


CASES: dict[str, tuple[list[Any], dict[str, Any]]] = {
    "product": (folded("Mul"), {"a": [S], "b": [S]}),
    "product of opposite signs": (folded("Mul"), {"a": [S], "b": [-S]}),
    "quotient": (folded("Div"), {"a": [S], "b": [L]}),
    "square": (folded("Pow"), {"a": [S], "b": 2.0}),
    "beside another number": (folded("Mul"), {"a": [S, 1.0], "b": [S, 1.0]}),
    "alpha": ([node("Gemm", ["x", "w"], ["y"], alpha=2.0**-149)], {"w": [[2.0**-930]]}),
    "beta": ([node("Gemm", ["x", "w", "c"], ["y"], beta=2.0**-149)], {"w": [[1.0]], "c": [2.0**-930]}),
    "batch normalisation": (
        [node("BatchNormalization", ["x", "s", "b", "m", "v"], ["y"])],
        {"s": [S], "b": [0.0], "m": [0.0], "v": [2.0**1000]},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_what_vanishes_is_not_covered(case: str) -> None:
    nodes, stored = CASES[case]
    found = read(nodes, (1, 2) if case == "beside another number" else (1, 1), **stored)
    assert found.program is None
    assert "float64 rounds to 0" in found.reason


def test_a_0_among_the_factors_is_exact() -> None:
    for nodes, stored in (
        (folded("Mul"), {"a": [0.0, 1.0], "b": [S, 1.0]}),
        ([node("Gemm", ["x", "w"], ["y"], alpha=0.5)], {"w": [[0.0, 1.0], [1.0, 0.0]]}),
    ):
        found = read(nodes, (1, 2), **stored)
        assert found.program is not None, found.reason


def test_every_result_needs_a_factor_of_its_own() -> None:
    a, b = np.array([0.0, 1.0, S]), np.array([[S], [0.0]])
    with pytest.raises(NotCovered):
        held(a * b, a, b)
    assert not held(a[:2] * b[1:], a[:2], b[1:]).any()
