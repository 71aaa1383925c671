"""Branch and bound inside an audit: Ctrl-C keeps what is proved, and the deadline holds on a machine that grows slower."""

from __future__ import annotations

import itertools
import time

import numpy as np
import pytest
import torch

import lipverify as lv
from lipverify import ops, pipeline
from lipverify.analyzers.local import bab, tree
from lipverify.analyzers.local.analyzer import Local
from lipverify.analyzers.local.bab import LocalBaB, Trees
from lipverify.analyzers.local.frontier import Frontier, Leaf
from lipverify.analyzers.local.parts import Split
from lipverify.analyzers.local.sdp import LocalSDP, Smaller
from lipverify.analyzers.local.tree import Tree
from lipverify.analyzers.protocol import INTERRUPTED, Compute
from lipverify.falsify import Search
from lipverify.ir.certificate import Certificate
from lipverify.ir.graph import Graph
from lipverify.ir.norm import Norm
from lipverify.ir.region import Ball, Query
from tests.interrupts import Stop
from tests.networks import chain, tensor

BRIEF = Search(restarts=4, rounds=4, seconds=0.2)


def network(seed: int = 0) -> Graph:
    rng = np.random.default_rng(seed)
    sizes = [6, 24, 24, 3]
    return chain([tensor(rng, o, i, scale=(2 / i) ** 0.5) for i, o in itertools.pairwise(sizes)], ops.ReLU())


def around(count: int = 2, radius: float = 0.5) -> Ball:
    return Ball(torch.tensor(np.random.default_rng(1).standard_normal((count, 6))), radius)


def uppers(certificate: Certificate) -> torch.Tensor:
    assert certificate.upper is not None
    return certificate.upper


def test_an_interrupt_keeps_the_parts_so_far() -> None:
    """The first centre was improved, the second one keeps the bound it started from; the document says what happened."""
    graph, ball = network(), around()
    stopped = lv.audit(
        graph,
        norm="linf",
        region=ball,
        analyzers=["local", LocalBaB(sdp=False), "local:interval"],
        search=BRIEF,
        report=Stop("local-bab", 5),
    )
    local, row, after = stopped.rows
    assert row.interrupted
    assert row.certificate is not None
    assert local.certificate is not None
    first, found = uppers(local.certificate), uppers(row.certificate)
    assert float(found[0]) < float(first[0])
    # The certificate of `local` has a little room for the checker's proof.
    assert float(found[1]) <= float(first[1]) <= (1 + 1e-7) * float(found[1])
    # Far more parts than the interrupted run had; still more could only be lower.
    whole = uppers(LocalBaB(sdp=False, leaves=200).bound(graph, Query(Norm.LINF, Norm.LINF, ball), Compute()))
    assert bool((found >= whole * (1 - 1e-12)).all())
    assert bool((found >= torch.as_tensor(stopped.lower.value)).all())
    evidence = row.certificate.evidence
    assert isinstance(evidence, Trees)
    for leaves, upper in zip(evidence.centres, found, strict=True):
        # The checker's proof of a tree may need a little room.
        assert (
            max(leaf.upper for leaf in leaves)
            <= float(upper)
            <= (1 + 1e-7) * max(leaf.upper for leaf in leaves)
        )
    assert all(leaf.splits == () for leaf in evidence.centres[1])
    assert stopped.to_json()["results"][1]["notes"] == [INTERRUPTED]
    assert after.refused == "interrupted before it began"
    assert pipeline.exit_code(stopped) == 130


@pytest.mark.parametrize("moment", [1, 2, 5])
def test_an_interrupt_in_the_middle_of_a_step_loses_no_part(
    moment: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever it comes, the leaves still cover the ball: their shares of it, halved by every split, add up to one."""
    graph, query = network(), Query(Norm.L2, Norm.L2, around(1))
    plain, calls = tree.norm_bounds, itertools.count()

    def interrupted(*arguments: object, **options: object) -> object:
        if next(calls) == moment:
            raise KeyboardInterrupt
        return plain(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(tree, "norm_bounds", interrupted)
    found = LocalBaB(sdp=False, batch=4).bound(graph, query, Compute())
    assert found.interrupted
    assert isinstance(found.evidence, Trees)
    (leaves,) = found.evidence.centres
    assert float(uppers(found)) == max(leaf.upper for leaf in leaves)
    assert sum(0.5 ** len(leaf.splits) for leaf in leaves) == pytest.approx(1.0)


def test_an_interrupted_semidefinite_search_ends_the_tree(monkeypatch: pytest.MonkeyPatch) -> None:
    """The search answers Ctrl-C with its best bound: the tree must not go on as if nothing had happened."""
    calls = itertools.count()
    plain = tree.answer

    def answer(*arguments: object) -> object:
        next(calls)
        found = plain(*arguments)  # type: ignore[arg-type]
        return type(found)(**{**vars(found), "interrupted": True})

    monkeypatch.setattr(tree, "answer", answer)
    monkeypatch.setattr(tree, "IMPROVED", 0.0)
    query = Query(Norm.L2, Norm.L2, around(2))
    found = LocalBaB(batch=4).bound(network(), query, Compute())
    assert found.interrupted
    assert next(calls) == 1


def test_an_interrupt_of_local_sdp_keeps_local(monkeypatch: pytest.MonkeyPatch) -> None:
    graph, query = network(), Query(Norm.L2, Norm.L2, around())

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(LocalSDP, "_semidefinite", stop)
    found = LocalSDP().bound(graph, query, Compute())
    assert found.interrupted
    assert isinstance(found.evidence, Smaller)
    assert found.evidence.notes == (INTERRUPTED,)
    assert bool((uppers(found) <= uppers(Local().bound(graph, query, Compute()))).all())


def test_semidefinite_bounds_after_the_deadline_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the first centre has a turn; the others keep what was found before, in no ball above `local`."""
    graph, ball = network(), around(5)
    query = Query(Norm.LINF, Norm.LINF, ball)
    first = uppers(Local().bound(graph, query, Compute()))
    clock = itertools.count()
    monkeypatch.setattr(Compute, "remaining", lambda self: 1.0 if next(clock) == 0 else 0.0)
    found = LocalSDP().bound(graph, query, Compute(deadline=time.monotonic()))
    assert isinstance(found.evidence, Smaller)
    assert len(found.evidence.chosen) == 5
    assert all(found.evidence.names[k] != "lipsdp" for k in found.evidence.chosen[1:])
    assert bool((uppers(found) <= first).all())
    assert not found.interrupted


class Clock:
    """A machine on which every part takes longer than the one before."""

    def __init__(self, growth: float) -> None:
        self.now, self.cost, self.growth = 0.0, 0.05, growth

    def monotonic(self) -> float:
        return self.now

    def pass_parts(self, count: int) -> None:
        for _ in range(count):
            self.now += self.cost
            self.cost *= self.growth


@pytest.mark.parametrize("growth", [1.0, 1.02, 1.1])
@pytest.mark.parametrize("budget", [0.2, 5.0, 30.0])
def test_the_deadline_holds_on_a_busy_machine(
    growth: float, budget: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No step is begun that its pace puts behind the deadline; parts that grow slower by a tenth each overrun by one step."""
    clock = Clock(growth)
    plain = Tree._linear_bounds

    def slow(self: Tree, ranges: object, *arguments: object) -> object:
        found = plain(self, ranges, *arguments)  # type: ignore[arg-type]
        clock.pass_parts(len(ranges.output.lower))  # type: ignore[attr-defined]
        return found

    monkeypatch.setattr(Tree, "_linear_bounds", slow)
    for module in (tree, bab):
        monkeypatch.setattr(module.time, "monotonic", clock.monotonic)
    found = LocalBaB(sdp=False).bound(
        network(), Query(Norm.LINF, Norm.LINF, around(1, 1.0)), Compute(deadline=budget)
    )
    assert isinstance(found.evidence, Trees)
    assert clock.now <= budget + 3.0 * clock.cost
    if budget > 1.0:
        assert clock.now > 0.5 * budget
        assert float(uppers(found)) < float(
            uppers(Local().bound(network(), Query(Norm.LINF, Norm.LINF, around(1, 1.0)), Compute()))
        )


def test_a_frontier_exchanges_leaves_as_a_whole() -> None:
    split = Split("relu", 0, 0.0, True)
    roots = [Leaf((), (k, k + 1), upper, "root", 0, split) for k, upper in enumerate((3.0, 5.0))]
    frontier = Frontier(roots)
    assert frontier.upper == 5.0
    assert frontier.worst(4) == [roots[1]]
    done = Leaf((split,), (1, 2), 4.0, "chord", 1, None)
    still = Leaf((split,), (1, 2), 4.5, "chord", 1, split)
    frontier.exchange([roots[1]], [done, still])
    assert frontier.upper == 4.5
    assert frontier.worst(4) == [still]
    frontier.exchange([still], [])
    assert frontier.upper == 4.0
    assert frontier.worst(4) == []
    assert frontier.leaves() == [done, roots[0]]
