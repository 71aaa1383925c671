"""Formulas as data: evaluated outward, written in words, read back from JSON."""

from __future__ import annotations

import json

import pytest
import torch

from lipverify.errors import InternalError, UsageError
from lipverify.ir.interval import Interval
from lipverify.questions.formula import KINDS, Formula, fact, number, of


def box(low: list[float], high: list[float]) -> Interval:
    return Interval(torch.tensor([low], dtype=torch.float64), torch.tensor([high], dtype=torch.float64))


def test_values_lie_in_what_is_evaluated() -> None:
    facts = {"v": box([-3.0, 1.0], [2.0, 4.0])}
    for formula, low, high in (
        (of("largest", of("absolute", fact("v"))), 1.0, 4.0),
        (of("length", fact("v")), 1.0, 5.0),
        (of("largest", of("product", fact("v"), number(2.0))), 2.0, 8.0),
        (of("root", of("largest", of("absolute", fact("v")))), 1.0, 2.0),
    ):
        found = formula.evaluate(facts)
        assert found.lower.item() <= low <= high <= found.upper.item()
        assert found.upper.item() <= high * (1 + 1e-14)
        assert found.lower.item() >= low * (1 - 1e-14)


def test_a_formula_survives_json_and_names_its_facts() -> None:
    formula = of("quotient", of("sum", of("largest", fact("a")), number(0.1)), of("length", fact("b")))
    assert formula.facts() == ("a", "b")
    again = Formula.from_json(json.loads(json.dumps(formula.to_json())))
    assert again == formula
    assert str(again) == "(largest entry of a + 0.1) / length of b"
    for wrong in (["median", "a"], ["sum", "a"], [], 3, None):
        with pytest.raises(UsageError):
            Formula.from_json(wrong)


def test_wrong_formulas_are_our_own_mistakes() -> None:
    with pytest.raises(InternalError, match="was not given"):
        fact("v").evaluate({})
    with pytest.raises(InternalError):
        of("sum", fact("a"))
    assert all(kind.words.count("{}") == kind.parts for kind in KINDS.values())
