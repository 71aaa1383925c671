"""Whole maxima: values and derivatives over a ball lie where the kernel says, and wrong rules for them are noticed."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from lipverify.checkers.kernel import jacobians, ranges
from lipverify.checkers.kernel.elementary import Largest
from lipverify.checkers.kernel.jacobians import jacobian_limit
from lipverify.checkers.kernel.language import Subject
from lipverify.checkers.kernel.neurons import differences
from lipverify.checkers.kernel.program import Order, Program, View
from lipverify.checkers.kernel.ranges import Ranges
from lipverify.errors import NotCovered
from tests.tiers import tier
from tests.unit.checkers.kernel.programs import Array, Writing, ball, pooled, results

NORMS = ("linf", "linf"), ("l2", "l2"), ("l1", "linf")


def overlapping(rng: np.random.Generator) -> Program:
    """Windows that share entries, some of them short of terms, without a ReLU; then one with."""
    w = Writing(4)
    w.dense(rng.standard_normal((9, 4)), 0.3 * rng.standard_normal(9))
    view = View((1,), np.arange(9))
    w.put(Order(view, 4, np.array([[0, 1, 2], [2, 3, -1], [-1, 4, 5], [5, 6, 8]]), False))
    w.dense(rng.standard_normal((6, 4)), -1.0 + 0.1 * rng.standard_normal(6))
    w.sort(2, whole=False)
    w.scalar("Relu")
    w.dense(rng.standard_normal((2, 3)))
    return w.program()


def wrong(program: Program, rng: np.random.Generator, radius: float, norm: str = "linf") -> bool:
    """Whether a value or a difference quotient leaves what is said of it."""
    n = program.steps[0].size
    region = ball(0.3 * rng.standard_normal(n), radius, norm)
    subject = Subject(program, [region])
    known = Ranges(subject.whole, region, ())
    end = len(subject.whole.steps) - 1
    found = differences(subject.whole, 0, end, known.slopes.get)
    step = rng.uniform(-1.0, 1.0, (400, n)) * rng.uniform(0.0, 1.0, (400, 1))
    if norm == "l2":
        step /= np.maximum(1.0, np.linalg.norm(step, axis=1, keepdims=True))
    x = region.centre + radius * step
    y = results(program.steps, x)[-1]
    low, high = known.chain.ranges(known.output)
    if bool((y < low).any() or (y > high).any()):
        return True
    # Derivatives along directions, from points so near that kinks between them are rare: the median of three is no accident.
    slopes = []
    for _ in range(3):
        d = np.sign(rng.standard_normal(x.shape))
        small = 1e-7
        slopes.append((results(program.steps, x + small * d)[-1] - y) / small)
    most = jacobian_limit(found, known, found.output, ("linf", "linf"))
    return bool(np.abs(slopes).max() > most * (1.0 + 1e-5) + 1e-6)


PROGRAMS: list[Callable[[np.random.Generator], Program]] = [
    lambda rng: pooled(rng, (3, 12, 6, 2), 3),
    lambda rng: pooled(rng, (4, 8, 8, 3), 2, relu=False),
    overlapping,
]


@pytest.mark.parametrize("make", range(len(PROGRAMS)))
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_values_and_derivatives_lie_inside(make: int, norm: str) -> None:
    for seed in range(tier(3, 200)):
        rng = np.random.default_rng(seed)
        program = PROGRAMS[make](rng)
        assert any(isinstance(step, Largest) for step in Subject(program).whole.steps)
        assert not wrong(program, rng, [0.02, 0.3, 1.0][seed % 3], norm), seed


@pytest.mark.parametrize("norms", NORMS, ids=str)
def test_never_looser_than_comparators_where_one_window_is_open(norms: tuple[str, str]) -> None:
    """On one layer of maxima nothing but the elimination of the weights differs."""
    rng = np.random.default_rng(3)
    program = pooled(rng, (4, 12, 2), 3)
    region = ball(np.zeros(4), 0.2, norms[0] if norms[0] != "l1" else "linf")
    subject, found = Subject(program, [region]), []
    for p in (subject.elements, subject.whole):
        known = Ranges(p, region, ())
        between = differences(p, 0, len(p.steps) - 1, known.slopes.get)
        found.append(jacobian_limit(between, known, between.output, norms))
    assert found[1] <= found[0] * (1.0 + 1e-12)


def _no_floor(a: Array, among: Array | None) -> tuple[Array, Array]:
    """The smallest coefficient of a maximum's terms is forgotten."""
    up, down = SIDES(a, among)
    return up, (down if among is None else np.maximum(down, 0.0))


def _first_alone(a: Array, among: Array | None) -> tuple[Array, Array]:
    """Only the first term of a maximum counts."""
    return SIDES(a, among if among is None else among[:, :1])


SIDES = ranges._sides


@pytest.mark.parametrize("mutant", [_no_floor, _first_alone])
def test_a_wrong_elimination_of_weights_is_noticed(
    mutant: Callable[..., tuple[Array, Array]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ranges, "_sides", mutant)
    noticed = 0
    for rng in map(np.random.default_rng, range(12)):
        try:
            noticed += wrong(PROGRAMS[0](rng), rng, 0.3)
        except NotCovered:
            noticed += 1  # ends that cross
    assert noticed


def test_a_chord_that_is_too_low_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def low(least: Array, most: Array) -> tuple[Array, Array]:
        slope, offset = SECANT(least, most)
        return slope, 0.0 * offset

    monkeypatch.setattr(jacobians, "secant", low)
    assert any(wrong(PROGRAMS[0](rng), rng, 0.3) for rng in map(np.random.default_rng, range(12)))


SECANT = jacobians.secant
