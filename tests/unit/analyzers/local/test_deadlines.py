"""A deadline ends refinement wherever it stands: what is left holds, is said, and takes no further time."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from lipverify import ops, pipeline
from lipverify.analyzers.lipsdp import regions
from lipverify.analyzers.lipsdp.norms import Answer
from lipverify.analyzers.lipsdp.solver import seconds_for_proof
from lipverify.analyzers.lipsdp.system import Couplings
from lipverify.analyzers.local.analyzer import ENDED, JacobianRows, Local, LocalInterval, first_bound
from lipverify.analyzers.local.sdp import LocalSDP, Smaller
from lipverify.analyzers.product import Product
from lipverify.analyzers.protocol import Compute
from lipverify.falsify import Search
from lipverify.interpreter import evaluate
from lipverify.ir.certificate import Certificate
from lipverify.ir.graph import Graph
from lipverify.ir.norm import Norm
from lipverify.ir.op import Op
from lipverify.ir.region import Ball, Query
from lipverify.propagation import bounds
from tests.networks import chain, tensor

BRIEF = Search(restarts=4, rounds=4, seconds=0.2)
LATE = Compute(deadline=0.0)


def network(activation: Op) -> Graph:
    rng = np.random.default_rng(3)
    sizes = [6, 20, 20, 20, 3]
    return chain([tensor(rng, o, i, scale=(2 / i) ** 0.5) for i, o in itertools.pairwise(sizes)], activation)


def around(count: int = 2, radius: float = 0.3) -> Ball:
    return Ball(torch.tensor(np.random.default_rng(1).standard_normal((count, 6))), radius, "linf")


def question(count: int = 2) -> Query:
    return Query(Norm.LINF, Norm.LINF, around(count))


def notes(certificate: Certificate) -> tuple[str, ...]:
    assert isinstance(certificate.evidence, JacobianRows | Smaller)
    return certificate.evidence.notes


def uppers(certificate: Certificate) -> torch.Tensor:
    assert certificate.upper is not None
    return certificate.upper


def after(calls: int) -> Callable[[], bool]:
    """A clock that runs out after so many looks at it."""
    count = itertools.count()
    return lambda: next(count) >= calls


@pytest.mark.parametrize("method", ["linear", "alpha"])
@pytest.mark.parametrize("calls", [0, 1, 2, 4, 7])
def test_ranges_hold_wherever_they_end(method: str, calls: int, rng: np.random.Generator) -> None:
    graph, ball = network(ops.ReLU()), around()
    plain, widest = (bounds(graph, ball, method=m) for m in (method, "interval"))
    found = bounds(graph, ball, method=method, expired=after(calls))
    exact = graph.to(dtype=torch.float64)
    x = ball.center + 0.3 * torch.tensor(rng.uniform(-1, 1, (200, 1, 6)))
    for name, box in found.items():
        assert bool((box.lower >= widest[name].lower).all() and (box.upper <= widest[name].upper).all())
        assert bool((box.lower <= plain[name].upper).all())
    y = evaluate(exact, x.reshape(-1, 6)).reshape(200, 2, 3)
    assert bool(((found.output.lower <= y) & (y <= found.output.upper)).all())
    if calls == 0:
        assert all(torch.equal(found[name].upper, widest[name].upper) for name in found)


@pytest.mark.parametrize("activation", [ops.ReLU(), ops.Tanh(), ops.LeakyReLU(0.1)], ids=str)
def test_local_holds_wherever_it_ends(
    activation: Op, monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator
) -> None:
    graph, query = network(activation), question()
    done = uppers(Local(with_product=False).bound(graph, query, Compute()))
    loosest = uppers(LocalInterval().bound(graph, query, LATE))
    exact = graph.to(dtype=torch.float64)
    x = (around().center + 0.3 * torch.tensor(rng.uniform(-1, 1, (100, 1, 6)))).reshape(-1, 6)
    slopes = torch.func.vmap(torch.func.jacrev(lambda p: evaluate(exact, p[None])[0]))(x)
    seen = slopes.abs().sum(2).amax(1).reshape(100, 2).amax(0)
    found = []
    for calls in (0, 1, 2, 3, 5, 8, 13, 10**6):
        clock = after(calls)
        monkeypatch.setattr(Compute, "expired", lambda self, clock=clock: clock())
        found.append(uppers(Local(with_product=False).bound(graph, query, Compute())))
        monkeypatch.undo()
        assert bool((found[-1] >= seen).all())
        assert bool((found[-1] <= loosest * (1 + 1e-9)).all())
    assert torch.equal(found[-1], done)
    assert bool((found[0] > done).all())


def test_a_deadline_that_has_passed_is_said() -> None:
    graph, query = network(ops.ReLU()), question()
    late, done = (Local().bound(graph, query, compute) for compute in (LATE, Compute()))
    assert notes(late) == (ENDED,)
    assert notes(done) == ()
    assert bool((uppers(done) <= uppers(late)).all())
    result = pipeline.audit(
        graph, norm="linf", region=query.region, analyzers=["local"], budget=1e-9, search=BRIEF
    )
    assert result.to_json()["results"][0]["notes"] == [ENDED]


def test_what_goes_on_from_local_is_never_above_what_local_found() -> None:
    """Where the time is too short for a second `local`, the first one counts."""
    graph, query = network(ops.ReLU()), question()
    done = Local().bound(graph, query, Compute())
    assert first_bound(graph, query, LATE) is done
    assert bool((uppers(LocalSDP().bound(graph, query, LATE)) <= uppers(done)).all())
    # Another question is not answered by it, however alike.
    other = first_bound(graph, question(), LATE)
    assert other is not done
    assert notes(other) == (ENDED,)
    found = LocalSDP().bound(graph, question(), LATE)
    assert notes(found) == (ENDED,)


def test_a_centre_that_would_not_end_in_time_is_not_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first centre shows the pace: 3 s for its system, 4 s for start and certificate."""
    graph, query = network(ops.ReLU()), question(5)
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    compute = Compute(deadline=24.0)
    plain = regions.coupled_form

    def form(*arguments: Any) -> Couplings:
        now[0] += 3.0
        return plain(*arguments)

    def method(system: object, share: Compute) -> Answer:
        now[0] += 4.0
        return Answer(1.0, 0.0, (), (), (), False, 4.0)

    monkeypatch.setattr(regions, "_evidence", lambda *arguments: Local())
    found = regions.over_region(LocalSDP(), graph, query, compute, method, form, optional=True)
    # Three centres take 21 s; the fourth would end at 28.
    assert len(uppers(found)) == 3
    assert now[0] == 21.0


def test_time_for_the_proof() -> None:
    compute = Compute(deadline=time.monotonic() + 100.0)
    assert seconds_for_proof(1.0, compute) == 3.0
    assert seconds_for_proof(1e3, compute) == pytest.approx(75.0, rel=0.01)
    assert seconds_for_proof(1.0, Compute()) == 3.0


@dataclass(frozen=True)
class Told:
    """Remembers its deadline."""

    heard: list[float]
    name: ClassVar[str] = "told"

    def reject(self, graph: Graph, query: Query) -> str | None:
        return None

    def bound(self, graph: Graph, query: Query, compute: Compute) -> Certificate:
        self.heard.append(compute.remaining())
        return replace(Product().bound(graph, query, compute), made_by=repr(self))


def test_analyzers_share_what_is_left_of_the_budget() -> None:
    heard: list[float] = []
    pipeline.audit(network(ops.ReLU()), analyzers=[Told(heard)] * 3, budget=60.0, search=BRIEF)
    left = 60.0 * pipeline.SEARCHED  # the rest is for proofs
    for share, parts in zip(heard, (3, 2, 1), strict=True):
        assert left / parts - 2.0 < share <= left / parts
        # Nobody used its time, so there is more for the next.
    assert heard[0] < heard[1] < heard[2]
