"""Radii that a later run goes on growing: never smaller, from the trees of before, with a certificate that stands."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from lipverify import ops
from lipverify.analyzers.protocol import Compute
from lipverify.ir.graph import Graph
from lipverify.ir.norm import Norm
from lipverify.robustness.journal import Journal
from lipverify.robustness.plan import Plan
from lipverify.robustness.points import answer, answered, prepare
from lipverify.robustness.run import radii
from tests.networks import chain, tensor


def network(seed: int = 0) -> tuple[Graph, torch.Tensor]:
    rng = np.random.default_rng(seed)
    graph = chain([tensor(rng, 12, 4), tensor(rng, 12, 12), tensor(rng, 3, 12)], ops.ReLU())
    return graph, torch.tensor(rng.standard_normal((2, 4)))


@pytest.mark.parametrize("method", ["branching", "auto"])
def test_a_search_goes_on_from_trees(method: str) -> None:
    graph, x = network()
    plan = Plan(Norm.LINF, method, leaves=4, harder_looks=1)
    work = prepare(graph, plan, Compute())
    first = answer(work, 0, x[0], None)
    assert 0.0 < first.radius < float(first.attack_radius or 0.0)
    more = answered(work, 0, x[0], None, 60.0, replace(first, cut=True))
    assert more.radius > first.radius
    assert more.by_method["branching"] == more.radius
    assert more.carried is not None
    assert any(r > first.radius for r in more.carried.trees)
    assert more.seconds > first.seconds
    assert more.attack_radius == first.attack_radius
    # It is worth nothing more: the same record, with its proof.
    again = answered(work, 0, x[0], None, 1e-6, more)
    assert (again.radius, again.carried) == (more.radius, more.carried)


def test_an_example_inside_what_was_certified_withdraws_both() -> None:
    graph, x = network()
    plan = Plan(Norm.LINF, "branching", leaves=4)
    work = prepare(graph, plan, Compute())
    first = answer(work, 0, x[0], None)
    assert first.attack_radius is not None
    wrong = answered(work, 0, x[0], None, 60.0, replace(first, radius=2.0 * first.attack_radius))
    assert (wrong.refuted, wrong.radius) == (True, 0.0)


@pytest.mark.parametrize("norm", [Norm.LINF, Norm.L2])
def test_a_journal_with_another_time_is_gone_on_with(norm: Norm, tmp_path: Path) -> None:
    graph, x = network(1)
    found = []
    for seconds in (1e-3, 20.0):
        plan = Plan(norm, seconds=seconds)
        question = {"plan": {k: v for k, v in plan.to_json().items() if k != "seconds"}}
        with Journal(tmp_path / "journal", question, resume=bool(found)) as journal:
            found.append(radii(graph, x, plan=plan, journal=journal))
    before, after = ([record.radius for record in run.records] for run in found)
    assert all(b >= a for a, b in zip(before, after, strict=True))
    assert all(record.checked for record in found[1].records)
    # Without a limit nothing that is done is done again.
    plan = Plan(norm)
    question = {"plan": {k: v for k, v in plan.to_json().items() if k != "seconds"}}
    with Journal(tmp_path / "journal", question, resume=True) as journal:
        again = radii(graph, x, plan=plan, journal=journal)
    assert [record.radius for record in again.records] == after
