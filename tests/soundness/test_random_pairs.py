"""No sampled difference of two random networks leaves its proved range; the same search finds planted mistakes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

import lipverify as lv
from lipverify import ops, rules
from lipverify.combine import carry, difference
from lipverify.ir.interval import Interval
from lipverify.ops import change
from lipverify.rules import Plane, Relaxation
from lipverify.testing import replaced_rule
from tests import networks
from tests.soundness.pairs import Outcome, check
from tests.tiers import tier

BLOCKS, COUNT = 4, tier(100, 10_000)


@pytest.mark.parametrize("block", range(BLOCKS))
def test_no_difference_leaves_its_range(block: int) -> None:
    torch.set_num_threads(1)
    outcome = Outcome()
    for seed in range(block * 1_000_000, block * 1_000_000 + COUNT // BLOCKS):
        check(seed, outcome)
    assert outcome.pairs > COUNT // BLOCKS * 0.6
    assert outcome.reach > 0.99  # the ranges are close to what they hold, or nothing was tested


def found_wrong(seeds: range) -> bool:
    for seed in seeds:
        try:
            check(seed, Outcome())
        except (AssertionError, lv.InternalError):
            return True
    return False


@contextmanager
def planted(where: Any, name: str, wrong: Callable[..., Any]) -> Iterator[None]:
    right = getattr(where, name)
    setattr(where, name, lambda *args: wrong(right, *args))
    try:
        yield
    finally:
        setattr(where, name, right)


def test_a_dropped_part_of_the_weights_is_noticed() -> None:
    """(W_f - W_g) h is left out: the interpreter refuses the graph before any bound is made."""

    def wrong(right, x, y) -> Any:
        return (
            torch.zeros_like(x.double()),
            torch.zeros_like(x.double()),
        )

    with planted(carry, "exact_difference", wrong):
        assert found_wrong(range(20))


def swapped(right: Callable[..., Relaxation]) -> Callable[..., Relaxation]:
    def wrong(op: change.Change, *boxes: Interval) -> Relaxation:
        found = right(op, *boxes)
        high = found.upper
        return Relaxation(
            found.lower, Plane(tuple(-slope for slope in high.slopes), high.offset), found.entries
        )

    return wrong


def narrow(right: Callable[..., Interval]) -> Callable[..., Interval]:
    """The chord of the carried difference with its ends swapped."""

    def wrong(op: change.Change, *boxes: Interval) -> Interval:
        found = right(op, *boxes)
        return Interval(found.lower, torch.maximum(found.lower, torch.minimum(found.upper, -found.lower)))

    return wrong


@pytest.mark.parametrize(("rule", "wrong"), [(rules.relax, swapped), (rules.interval, narrow)])
def test_wrong_rules_of_the_change_are_found(rule: Any, wrong: Callable[..., Any]) -> None:
    with replaced_rule(rule, ops.Change, wrong(rule._answers[ops.Change])):
        assert found_wrong(range(60))


def spread_pair() -> tuple[lv.Graph, lv.Graph, Tensor]:
    """Weights that differ by less than half an ulp of the larger one: 1e8 against 1e8 + 1e-8 in another entry's size."""
    first = torch.tensor([[1e8, 1e-8]], dtype=torch.float64)
    second = torch.tensor([[-1e-8, 1e8]], dtype=torch.float64)
    f, g = (networks.chain([weight]) for weight in (first, second))
    return f, g, (first - second)


def test_the_rounding_of_a_difference_of_weights_is_part_of_it() -> None:
    f, g, _ = spread_pair()
    found = difference(f, g)
    # At x = (-1, 1): 1e8 (-1) + 1e-8 - (1e-8 + 1e8) = -2e8 exactly, while 1e8 + 1e-8 rounds to 1e8 twice.
    x = torch.tensor([[1.0, 1.0]], dtype=torch.float64)
    box = lv.bounds(found.graph, lv.Ball(x, 1e-300, "linf"), method="interval").output
    exact = 2e-8  # (1e8 + 1e-8) - (1e8 - 1e-8)
    assert float(box.lower) <= exact <= float(box.upper)
    own = [
        node for node in found.graph.nodes if node.name.startswith("d.") and isinstance(node.op, ops.Linear)
    ]
    assert len(own) == 2  # the difference and what it lost by rounding

    def wrong(right, a, b) -> Any:
        return (right(a, b)[0], torch.zeros_like(a.double()))

    with planted(carry, "exact_difference", wrong):
        only = difference(f, g)
    own = [
        node for node in only.graph.nodes if node.name.startswith("d.") and isinstance(node.op, ops.Linear)
    ]
    assert sum(float(node.op.weight.sum()) for node in own) != exact  # type: ignore[attr-defined]
