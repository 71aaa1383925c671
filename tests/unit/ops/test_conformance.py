"""Every rule of every built-in operator against the conformance suite."""

from __future__ import annotations

import pytest
import torch

from lipverify import rules, testing
from tests.tiers import tier

CASES = testing.operator_cases()


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.mark.parametrize(
    ("case", "check"),
    [
        pytest.param(case, check, id=f"{check.__name__.removeprefix('check_')}-{case}")
        for case in CASES
        for check in testing.checks_for(case)
    ],
)
@pytest.mark.parametrize("seed", range(tier(1, 2)))
def test_rule_is_not_refuted(case: testing.OperatorCase, check, seed: int) -> None:
    check(case, seed)


def test_every_operator_has_a_case_and_the_rules_every_operator_needs() -> None:
    tested = {type(case.op) for case in CASES}
    for kind in rules.forward.coverage():
        if not kind.__module__.startswith("lipverify.ops") and not kind.__module__.startswith("lipverify.ir"):
            continue
        assert kind in tested, kind
        assert rules.gain.covers(kind), kind
        assert rules.interval.covers(kind), kind
