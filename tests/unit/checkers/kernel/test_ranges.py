"""Ranges, derivatives and multipliers hold what programs of every kind of step do, and wrong rules are noticed."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pytest

from lipverify.checkers.kernel import Condition, Program, Region, Subject, curves
from lipverify.checkers.kernel import elementary as elementary_of
from lipverify.checkers.kernel import jacobians as jacobians_of
from lipverify.checkers.kernel import neurons as neurons_of
from lipverify.checkers.kernel import ranges as ranges_of
from lipverify.checkers.kernel import signals as signals_of
from lipverify.checkers.kernel.curves import Lines
from lipverify.checkers.kernel.jacobians import gradients, jacobian_limit
from lipverify.checkers.kernel.multipliers import multipliers_hold
from lipverify.checkers.kernel.neurons import Differences, differences
from lipverify.checkers.kernel.program import Affine
from lipverify.checkers.kernel.ranges import Empty, Ranges
from lipverify.checkers.theories.radii import largest_where
from lipverify.errors import NotCovered
from tests.tiers import tier
from tests.unit.checkers.kernel.programs import (
    Array,
    Writing,
    ball,
    evaluate,
    jacobians,
    mlp,
    pictures,
    points,
)

NAMES = sorted(pictures(np.random.default_rng(0)))
ORDER = {"l1": 1.0, "l2": 2.0, "linf": np.inf}


def region_of(rng: np.random.Generator, inputs: int = 3) -> Region:
    region = ball(rng.uniform(-1, 1, inputs), 10 ** rng.uniform(-2, -0.3), str(rng.choice(["l2", "linf"])))
    if rng.random() < 0.3:
        region = region._replace(low=np.maximum(region.low, region.centre - 0.05))
    return region


def largest_gain(matrices: Array, first: float, last: float) -> float:
    """From below: the gain of unit vectors, corners for l_inf, and singular vectors."""
    n = matrices.shape[2]
    tries = [np.array(t) for t in itertools.product((-1.0, 1.0), repeat=n)] + list(np.eye(n))
    tries += [v[0] for v in np.linalg.svd(matrices)[2]]
    gains = [np.linalg.norm(matrices @ t, last, axis=1).max() / np.linalg.norm(t, first) for t in tries]
    return float(max(gains))


def values_are_inside(program: Program, rng: np.random.Generator) -> None:
    region, subject = region_of(rng), Subject(program)
    ranges = Ranges(subject.elements, region, ())
    low, high = ranges.chain.ranges(ranges.output)
    y = evaluate(program.steps, points(rng, region, 300))
    assert (y >= low - 1e-12).all()
    assert (y <= high + 1e-12).all()


@pytest.mark.parametrize("seed", range(12))
def test_leaves_hold_where_their_conditions_do(seed: int) -> None:
    """Any weights, any slopes below kinks, conditions of inputs and neurons; without any it is a bound as any other."""
    rng = np.random.default_rng([seed, 8])
    law, settings = [("Relu", {}), ("LeakyRelu", {"alpha": 0.1}), ("LeakyRelu", {"alpha": 3.0})][seed % 3]
    program = mlp(rng, (3, 6, 5, 2), law, **settings)
    region = ball(rng.uniform(-1, 1, 3), 10 ** rng.uniform(-1, 0.3), str(rng.choice(["l2", "linf"])))
    ranges = Ranges(Subject(program).elements, region, ())
    x = points(rng, region, 4000)
    read = {-1: x}
    for layer, size in enumerate((6, 5)):
        before = Program(program.steps[: 2 + 2 * layer])
        read[layer] = evaluate(before.steps, x).reshape(len(x), size)
    conditions = []
    for layer in rng.integers(-1, 2, size=int(rng.integers(0, 4))).tolist():
        entry = int(rng.integers(read[layer].shape[1]))
        at = float(rng.choice([0.0, np.median(read[layer][:, entry])]))
        conditions.append(Condition(layer, entry, at, bool(rng.random() < 0.5)))
    held = np.ones(len(x), dtype=bool)
    for c in conditions:
        value = read[c.layer][:, c.entry]
        held &= (value >= c.at) if c.above else (value <= c.at)
    y = evaluate(program.steps, x)[held, 0]
    row = ranges.output.rows([0])
    for _ in range(5):
        weights = (10 ** rng.uniform(-3, 1, len(conditions))).tolist()
        flat = {k: rng.uniform(0, 1, size) for k, size in enumerate((6, 5)) if rng.random() < 0.7}
        try:
            most = largest_where(ranges, row, conditions, weights, flat)
        except Empty:
            assert not held.any()
            return
        assert y.max(initial=-np.inf) <= float(most)
    plain = float(ranges.chain.largest(row)[0])
    assert float(largest_where(ranges, row, [], [], {})) == plain


def test_a_leaf_of_slopes_that_differ_knows_which_neuron_is_open() -> None:
    """x + (0, 5, 5) in a ball of radius 1: only the first neuron has a kink, and a slope of its own."""
    w = Writing(3)
    w.dense(np.eye(3), np.array([0.0, 5.0, 5.0]))
    w.scalar("PRelu", slopes=np.array([0.1, 0.2, 0.3]))
    w.dense(np.ones((1, 3)))
    ranges = Ranges(Subject(w.program()).elements, ball(np.zeros(3), 1.0), ())
    negative = signals_of.scaled(np.array([-1.0]), ranges.output)
    sides = ((True, ranges.output, 0.0, 13.0), (True, negative, 1.0, -8.0),
             (False, ranges.output, 0.1, 12.0), (False, negative, 0.0, -7.9))  # fmt: skip
    for above, row, weight, most in sides:
        found = largest_where(ranges, row, [Condition(0, 0, 0.0, above)], [weight], {})
        assert float(found) == pytest.approx(most, abs=1e-9)


def derivatives_are_inside(program: Program, rng: np.random.Generator) -> None:
    region, subject = region_of(rng), Subject(program)
    ranges = Ranges(subject.elements, region, ())
    end = len(subject.elements.steps) - 1
    found = differences(subject.elements, 0, end, ranges.slopes.get, cut=True)
    seen = jacobians(program.steps, points(rng, region._replace(radius=region.radius * 0.999), 100))
    some = list(gradients(found, ranges, found.output, True))
    assert (seen >= np.concatenate([g.low for g in some]) - 1e-7).all()
    assert (seen <= np.concatenate([g.high for g in some]) + 1e-7).all()
    for first, last in itertools.product(ORDER, ORDER):
        bound = jacobian_limit(found, ranges, found.output, (first, last))
        assert largest_gain(seen, ORDER[first], ORDER[last]) <= bound * (1 + 1e-6) + 1e-7


def multipliers_are_above(program: Program, rng: np.random.Generator) -> None:
    """The least limits that simple multipliers prove, over a ball and everywhere, against slopes."""
    region, subject = region_of(rng), Subject(program)
    seen = jacobians(program.steps, points(rng, region._replace(radius=region.radius * 0.999), 100))
    for local, weights in itertools.product((True, False), (None, np.full(3, 1.0))):
        try:
            slopes = Ranges(subject.elements, region, ()).slopes if local else {}
            found = differences(subject.elements, 0, len(subject.elements.steps) - 1, slopes.get)
        except NotCovered:
            assert not local
            continue
        proved = smallest(found, weights)
        assert largest_gain(seen, 2.0 if weights is None else np.inf, 2.0) <= proved * (1 + 1e-6) + 1e-7


def smallest(found: Differences, weights: Array | None) -> float:
    """The least limit, by bisection, that one of a few families of multipliers proves; infinity where none does."""
    best = np.inf
    for growth, first in itertools.product((1.0, 8.0), (0.7, 10.0)):
        own = [np.full(n, first * growth**k) for k, n in enumerate(found.sizes)]
        low, high = 1e-3, min(best, 1e4)
        if not multipliers_hold(found, found.output, own, high, weights):
            continue
        for _ in range(14):
            middle = float(np.sqrt(low * high))
            holds = multipliers_hold(found, found.output, own, middle, weights)
            low, high = (low, middle) if holds else (middle, high)
        best = high
    return best


ORACLES = [values_are_inside, derivatives_are_inside, multipliers_are_above]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("oracle", ORACLES, ids=lambda f: f.__name__)
def test_what_is_known_over_balls_holds(
    oracle: Callable[[Program, np.random.Generator], None], name: str
) -> None:
    for seed in range(1 if oracle is multipliers_are_above else tier(2, 3)):
        rng = np.random.default_rng(seed)
        program = pictures(rng)[name]
        if name == "implicit" and oracle is not multipliers_are_above:
            continue
        oracle(program, rng)


BILINEAR = [n for n in NAMES if neurons_of.bilinear(Subject(pictures(np.random.default_rng(0))[n]).elements)]


def cut_everywhere(x: signals_of.Signal) -> bool:
    return not any(np.isnan(m).any() for m in x.parts.values())


@pytest.mark.parametrize("name", BILINEAR)
@pytest.mark.parametrize("oracle", ORACLES[:2], ids=lambda f: f.__name__)
def test_sums_as_blocks_of_their_own_hold_as_much(
    oracle: Callable[[Program, np.random.Generator], None], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(neurons_of, "crowded", cut_everywhere)
    rng = np.random.default_rng(5)
    oracle(pictures(rng)[name], rng)


@pytest.mark.parametrize("name", [n for n in NAMES if "softmax" in n])
def test_softmax_of_many_terms_by_their_mean(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    few = Subject(pictures(np.random.default_rng(4))[name]).elements
    monkeypatch.setattr(elementary_of, "_PAIRED", 1)
    rng = np.random.default_rng(4)
    program = pictures(rng)[name]
    many, x = Subject(program).elements, rng.standard_normal((20, 3))
    assert len(many.layers) != len(few.layers)
    assert np.allclose(evaluate(many.steps, x), evaluate(few.steps, x), atol=1e-12)
    for oracle in ORACLES[:2]:
        oracle(program, np.random.default_rng(4))


def test_rows_that_are_alike() -> None:
    one = np.array(
        [[1.0, 2.0], [1.0, 2.0], [2.0, 1.0], [np.nan, 0.0], [np.nan, 0.0], [-0.0, 0.0], [0.0, 0.0]]
    )
    x = signals_of.Signal({0: one, 1: one[:, :1]}, None, 0, ends=np.arange(7.0) // 2 * np.ones((2, 1)))
    first, where = signals_of.alike(x)
    same = x.rows(first).rows(where)
    assert np.array_equal(same.parts[0], one, equal_nan=True)
    assert np.array_equal(same.ends, x.ends)
    assert where[0] == where[1]
    assert where[5] != where[6]  # of other ends
    # Unequal rows of one weighted sum stay apart.
    kernel = np.cos(np.array([1.0, 2.0]))
    two = signals_of.Signal({0: np.array([[kernel[1], 0.0], [0.0, kernel[0]]])})
    assert len(signals_of.alike(two)[0]) == 2


@pytest.mark.parametrize("name", NAMES)
def test_elementary_steps_compute_the_same(name: str) -> None:
    rng = np.random.default_rng(7)
    program, x = pictures(rng)[name], rng.standard_normal((20, 3))
    assert np.allclose(evaluate(Subject(program).elements.steps, x), evaluate(program.steps, x), atol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_parts_hold_what_fulfils_their_conditions(name: str) -> None:
    rng = np.random.default_rng(3)
    program = pictures(rng)[name]
    region, subject = region_of(rng), Subject(program)
    conditions = [
        Condition(-1, 0, float(region.centre[0]), True),
        Condition(0, 1, 0.0, bool(rng.random() < 0.5)),
    ]
    if name == "implicit":
        conditions = conditions[:1]
    x = points(rng, region, 3000)
    x = x[x[:, 0] >= region.centre[0]]
    if len(conditions) > 1:
        k = subject.elements.layers[0]
        step = subject.elements.steps[k]
        v = evaluate(subject.elements.steps[: step.view.sources[0] + 1], x)[:, step.view.places[1]]
        x = x[(v >= 0) == conditions[1].above]
    try:
        ranges = Ranges(subject.elements, region, conditions)
    except Empty:
        assert len(x) == 0
        return
    low, high = ranges.chain.ranges(ranges.output)
    y = evaluate(program.steps, x)
    assert (y >= low - 1e-12).all()
    assert (y <= high + 1e-12).all()


def narrowed(old: Callable[..., tuple[Array, Array]]) -> Callable[..., tuple[Array, Array]]:
    def wrong(*args: object) -> tuple[Array, Array]:
        low, high = old(*args)
        return low + (high - low) / 4, high - (high - low) / 4

    return wrong


def with_lines(change: Callable[[Lines], Lines]) -> Callable[[Callable[..., Lines]], Callable[..., Lines]]:
    return lambda old: lambda *args: change(old(*args))


WRONG: dict[str, tuple[object, str, Callable[..., object], str, Callable[[Program, np.random.Generator], None]]] = {
    "half the secant's offset": (curves, "secant", lambda old: lambda a, b: (old(a, b)[0], old(a, b)[1] / 2), "Relu {}",
                                 values_are_inside),
    "no offset above": (curves.Curve, "_kinked", with_lines(lambda x: x._replace(over=0 * x.over)), "Abs {}", values_are_inside),
    "ranges of slopes too narrow": (curves.Curve, "slopes", narrowed, "Tanh {}", derivatives_are_inside),
    "multipliers with too narrow slopes": (curves.Curve, "slopes", narrowed, "Silu {'beta': 1.7}", multipliers_are_above),
    "ranges of values too narrow": (curves.Curve, "around", narrowed, "Square {}", values_are_inside),
    "one line in place of two around slopes": (
        curves.Curve, "bent", lambda old: lambda c, a, b: (old(c, a, b)[0], *[sum(old(c, a, b)[1:]) / 2] * 2), "Exp {}",
        derivatives_are_inside),
    "chords of products exchanged": (
        jacobians_of, "_products", lambda old: lambda *a: (old(*a)[0]._replace(above=old(*a)[0].below), old(*a)[1]), "Tanh {}",
        derivatives_are_inside),
    "half of the products": (ranges_of.Ranges, "_product", lambda old: lambda self, k, step, v, ends, unknown: old(
        self, k, step, v, (ends[0] / 2 + ends[1] / 2, ends[1]), unknown), "product", values_are_inside),
    "slopes of the other factor": (
        neurons_of, "sprouted", lambda old: lambda key, v, *rest: old(key, v.rows(np.arange(v.height)[::-1]), *rest),
        "product", multipliers_are_above),
    "a sum in place of a matrix's norm": (jacobians_of, "_norm", lambda old: lambda m: float(np.abs(m).mean()), "Tanh {}",
                                          derivatives_are_inside),
    "rows without their constants": (jacobians_of, "_summed", lambda old: lambda g, s: old(g._replace(high=g.low), s), "Sin {}",
                                     derivatives_are_inside),
    "sums between lines too close": (ranges_of.Chain, "cut", lambda old: lambda self, v, ends: old(self, v, (
        ends[0] * 0.75 + ends[1] * 0.25, ends[1])), "product", values_are_inside),
    "sums of gradients between lines too close": (ranges_of.Chain, "cut", lambda old: lambda self, v, ends: old(self, v, (
        ends[0], ends[0] * 0.25 + ends[1] * 0.75)), "normalise True", derivatives_are_inside),
    "rows alike that are not": (ranges_of, "alike", lambda old: lambda x: (np.array([0]), np.zeros(x.height, np.int64)),
                                "product", values_are_inside),
    "softmax without its sum": (elementary_of._Writer, "softmax", lambda old: lambda self, x, g: self.scalar("Exp", x),
                                "softmax 3", values_are_inside),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_wrong_rules_are_noticed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    where, what, change, picture, oracle = WRONG[name]
    monkeypatch.setattr(where, what, change(getattr(where, what)))
    if what == "cut":
        monkeypatch.setattr(neurons_of, "crowded", cut_everywhere)

    def held() -> None:
        for seed in range(6):
            rng = np.random.default_rng(seed)
            oracle(pictures(rng)[picture], rng)

    with pytest.raises((AssertionError, NotCovered)):  # or bounds from two rules contradict each other
        held()


def exact_values_are_inside(rng: np.random.Generator) -> None:
    """A ball of radius 0 leaves no room but that for rounding: the value in exact arithmetic lies in it."""
    for _ in range(5):
        program, x = mlp(rng, (6, 20, 20, 3)), rng.standard_normal(6)
        ranges = Ranges(Subject(program).elements, ball(x, 0.0)._replace(low=x, high=x), ())
        exact = [Fraction(v) for v in x]
        for step in program.steps[1:]:
            if isinstance(step, Affine) and step.offset is not None:
                rows = zip(step.kernel[0].tolist(), step.offset.tolist(), strict=True)
                exact = [
                    sum((Fraction(a) * t for a, t in zip(r, exact, strict=True)), Fraction(c))
                    for r, c in rows
                ]
            else:
                exact = [max(t, Fraction(0)) for t in exact]
        low, high = (list(map(Fraction, end.tolist())) for end in ranges.chain.ranges(ranges.output))
        assert all(a <= t <= c for a, t, c in zip(low, exact, high, strict=True))
        assert max(c - a for a, c in zip(low, high, strict=True)) < 1e-9


def test_ranges_hold_exact_values() -> None:
    for seed in range(4):
        exact_values_are_inside(np.random.default_rng(seed))


def test_roundings_that_are_not_charged_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (ranges_of, signals_of, curves):
        monkeypatch.setattr(module, "TINY", 0.0)
    for module in (ranges_of, signals_of):
        monkeypatch.setattr(module, "gamma", lambda count: 0.0)
    with pytest.raises((AssertionError, NotCovered)):
        exact_values_are_inside(np.random.default_rng(0))
