"""Every planted wrong rule is refuted by a conformance check."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from lipverify import ops, rules, testing
from lipverify.ir.op import Op
from lipverify.rules import Rule
from tests.soundness.wrong_rules import MUTANTS, Wrong, interval_of_ends, line_slopes

CHECK = {
    "gain": testing.check_gain_not_below,
    "slopes": testing.check_slopes_enclose,
    "interval": testing.check_interval_encloses,
    "linear": testing.check_linear,
}


@pytest.mark.parametrize(
    ("rule", "kind", "wrong"), [pytest.param(*row[1:], id=row[0].replace(" ", "-")) for row in MUTANTS]
)
def test_mutant_is_refuted(rule: Rule[Any], kind: type[Op], wrong: Wrong) -> None:
    # That the right rules pass the same checks is tests/unit/ops/test_conformance.py.
    cases = [case for case in testing.operator_cases() if type(case.op) is kind]
    check, right = CHECK[rule.name], rule._answers[kind]
    with testing.replaced_rule(rule, kind, wrong(right)):
        assert any(refuted(check, case) for case in cases), "no case refutes this mutant"
    assert rule._answers[kind] is right


def refuted(check: Callable[[testing.OperatorCase], None], case: testing.OperatorCase) -> bool:
    try:
        check(case)
    except AssertionError:
        return True
    return False


@pytest.mark.parametrize("mutant", ["slope", "interval"])
def test_plug_in_authors_get_the_same_checks(mutant: str) -> None:
    rule, kind, wrong = (
        (rules.slopes, ops.Tanh, line_slopes(0.0, 0.9))
        if mutant == "slope"
        else (rules.interval, ops.Abs, interval_of_ends)
    )
    testing.check_operator(kind(), [(4,)])
    with (
        testing.replaced_rule(rule, kind, wrong(rule._answers[kind])),
        pytest.raises(AssertionError, match=kind.__name__),
    ):
        testing.check_operator(kind(), [(4,)])
    testing.check_operator(kind(), [(4,)])
