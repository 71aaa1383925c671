"""Budgets of questions about directions: what is cut says so, and what was found stays."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import lipverify as lv
from lipverify.analyzers.protocol import Compute
from lipverify.errors import BudgetEnded
from lipverify.monotonicity import run
from lipverify.monotonicity.branching import Branching, Settings
from lipverify.monotonicity.pairs import PairSearch
from lipverify.monotonicity.slopes import PartialDerivatives


def network() -> lv.Graph:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 1))
    return lv.extract(module.eval(), torch.randn(2, 2))


def test_a_budget_that_ends_ahead_of_the_first_ranges_is_undecided(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "OWED", -1.0)
    with pytest.raises(lv.Undecided, match="before any range of a slope was known; give a larger --budget"):
        lv.monotone(network(), (-1.0, 1.0), budget=1e-9)


def test_ranges_of_slopes_end_with_the_budget_also_inside_a_box() -> None:
    graph = network().to(dtype=torch.float64)
    pairs = PairSearch(graph, 0, torch.full((2,), -1.0).double(), torch.full((2,), 1.0).double())
    partials = PartialDerivatives(graph, 0, torch.device("cpu"))
    over = Compute(deadline=0.0)
    proof = Branching(partials, pairs, 0, 1, Settings(), over).run()
    assert not proof.holds
    assert proof.boxes == 0


def test_directions_stay_real_where_the_proof_has_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    def late(*_: Any) -> Any:
        raise BudgetEnded("the budget ended")

    graph = lv.extract(nn.Linear(1, 1).eval(), torch.randn(2, 1))
    whole = lv.monotone(graph, (-1.0, 1.0))
    assert whole.findings[0].checked
    monkeypatch.setattr(run, "certified", late)
    cut = lv.monotone(graph, (-1.0, 1.0))
    assert cut.findings[0].verdict is whole.findings[0].verdict
    assert not cut.findings[0].checked
    assert "the budget ended" in cut.findings[0].unchecked
    assert cut.issued is None
