"""Values on parts and on growing balls: kinks with slopes that are brought, parts that hold no input, constants outward."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Annotated, Any

import numpy as np

from lipverify.checkers.kernel import language as is_
from lipverify.checkers.kernel.arithmetic import Array, need
from lipverify.checkers.kernel.ranges import ENDS, FAR, Condition, Ranges, Region
from lipverify.checkers.kernel.ranges import Empty as NoInput
from lipverify.checkers.kernel.signals import Signal, scaled, stacked, total
from lipverify.checkers.kernel.theorems import (
    AtLeast,
    Constant,
    Emptiness,
    Facts,
    Known,
    Part,
    counted,
    picked,
    shown,
    theorem,
)
from lipverify.errors import NotCovered


def _flat(scope: is_.Scope, name: Any, size: int) -> Array | None:
    found = None if name is None else scope.array(name, (size,), positive=False)
    need(found is None or bool(((found >= 0) & (found <= 1)).all()), "slopes of lines outside [0, 1]")
    return found


def largest_where(
    known: Ranges,
    row: Signal,
    conditions: Sequence[Condition],
    weights: Sequence[float],
    flat: Mapping[int, Array],
) -> Fraction:
    """Upper bound of one row where these further conditions hold.

    Statement: what a condition says of a kink makes its lines narrower; flat: layer -> slopes in [0, 1] of the lines with
        max(v, 0) >= flat v. A condition holds as s (z - at) >= 0; weights times these only add to the row.
    """
    lines = {}
    for k, (f, (low, high), block, free) in known.kinks.items():
        own = [c for c in conditions if c.layer == k]
        low, high = low.copy(), high.copy()
        for c in own:
            # A neuron whose slope is known has no lines.
            at = int(np.searchsorted(free, c.entry))
            if at < len(free) and free[at] == c.entry:
                end, choose = (low, max) if c.above else (high, min)
                end[at] = choose(end[at], c.at)
        if bool((low > high).any()):
            raise NoInput
        if len(free) and (own or k in flat):
            slopes = f.slopes(low, high)
            lines[block] = f.lines(low, high, *slopes, flat[k][free] if k in flat else None)
    signed, limit = _farkas(conditions, weights)
    if not all(c.layer in known.reads for c in conditions):
        raise NotCovered("a condition on a layer of which nothing is known")
    rows = stacked([row, *(known.reads[c.layer].rows([c.entry]) for c in conditions)])
    most = float(known.chain.replaced(lines).largest(total(np.append(1.0, signed)[None], rows))[0])
    if not abs(most) < FAR:
        raise NotCovered(ENDS)
    return Fraction(most) - limit


def _farkas(conditions: Sequence[Condition], weights: Sequence[float]) -> tuple[Array, Fraction]:
    """Weights with the signs of their conditions, and what the sum of weighted values is at least."""
    signed = np.array([w if c.above else -w for w, c in zip(weights, conditions, strict=True)])
    terms = [Fraction(float(w)) * Fraction(c.at) for w, c in zip(signed, conditions, strict=True)]
    return signed, sum(terms, Fraction(0))


RegionIds = Annotated[
    tuple[int, ...], lambda s, v: s.distinct(v, lambda n: s.integer(n, 0, len(s.subject.regions)))
]
Flat = Annotated[
    tuple[Array | None, ...] | None,
    is_.or_null(lambda s, v: s.by_layer(v, lambda name, n: _flat(s, name, n))),
]


@theorem
def leaf(facts: Facts, *, ranges: is_.FactId, conditions: is_.Conditions, weights: is_.Limits, slopes: Flat,
         rows: is_.Target, sign: is_.Sign, limit: is_.Number) -> AtLeast | Emptiness:  # fmt: skip
    """A row of the last step on the part of a part where further conditions hold: kinks with the slopes that are brought."""
    known = facts.get(ranges, Known)
    counted(facts, known.ranges)
    need(rows.high == rows.low + 1, "several rows")
    need(len(weights) == len(conditions), "weights of other conditions")
    part = replace(known.part, conditions=(*known.part.conditions, *conditions))
    layers = facts.subject.layers(0, len(facts.subject.program.steps) - 1)
    flat = {k: s for k, s in zip(layers, slopes or (), strict=slopes is not None) if s is not None}
    row = scaled(np.array([-float(sign)]), picked(known.ranges.output, rows))
    try:
        most = largest_where(known.ranges, row, conditions, weights, flat)
    except NoInput:
        return Emptiness(part, Fraction(0))
    shown(most <= -Fraction(limit), f"a value that is not shown to be {limit!r}")
    return AtLeast(part, Fraction(limit), rows, sign)


@theorem
def empty(facts: Facts, *, ranges: is_.FactId, weights: is_.Limits) -> Emptiness:
    """A weighted sum of the conditions that is negative for every input of the part: 0 and that sum are below 0 (Farkas)."""
    known = facts.get(ranges, Known)
    need(len(weights) == len(known.part.conditions) > 0, "weights of other conditions")
    most = largest_where(known.ranges, known.ranges.output.rows([-1]), known.part.conditions, weights, {})
    shown(most < 0, "a part that is not shown to be empty")
    return Emptiness(known.part, Fraction(0))


@theorem
def walk(facts: Facts, *, value: is_.FactId, constants: is_.FactIds, regions: RegionIds) -> AtLeast:
    """From a ball outward: a value on it, less each constant times how much further its ball reaches than the one before."""
    inner, last = facts.get(value, AtLeast), len(facts.subject.program.steps) - 1
    need(inner.part.region is not None and not inner.part.conditions, "a value on no whole ball")
    need(0 < len(constants) == len(regions), "constants of other balls")
    limit, place = inner.limit, facts.subject.regions[inner.part.region or 0]
    for number, region in zip(constants, regions, strict=True):
        c, ball = facts.get(number, Constant), facts.subject.regions[region]
        need(c.rows == inner.rows and (c.start, c.end) == (0, last), "a constant of another function")
        # What holds on a larger ball, or on everything, holds on this one.
        need(not c.part.conditions and c.part.within is None, "a constant of no whole ball")
        need(
            c.part.region is None or _inside(ball, facts.subject.regions[c.part.region]),
            "a constant of another ball",
        )
        need(c.norms[0] == ball.norm, "a constant in another norm than that of its ball")
        need(_grows(place, ball), "balls that do not grow")
        limit -= c.limit * (Fraction(ball.radius) - Fraction(place.radius))
        place = ball
    return AtLeast(Part(regions[-1]), limit, inner.rows, inner.sign)


def _inside(a: Region, b: Region) -> bool:
    """Whether all of a is in b, around the same centre."""
    same = a.norm == b.norm and a.radius <= b.radius and np.array_equal(a.centre, b.centre)
    return same and bool(((b.low <= a.low) & (a.high <= b.high)).all())


def _grows(a: Region, b: Region) -> bool:
    """Whether b is the larger ball around one centre, and a is its part within the radius of a."""
    low = np.maximum(np.nextafter(a.centre - a.radius, -np.inf), b.low)
    high = np.minimum(np.nextafter(a.centre + a.radius, np.inf), b.high)
    same = a.norm == b.norm and a.radius <= b.radius and np.array_equal(a.centre, b.centre)
    return same and bool(((a.low <= low) & (high <= a.high)).all())
