"""Two networks in one program, with the differences of their layers carried along.

Legend: a, b what two layers read, phi and psi what they are, e = b - a, w = psi(b) - phi(a); A, B, E ranges.
Source: differential analysis, ReluDiff (ICSE 2020, arXiv 2001.03662), NeuroDiff (arXiv 2009.09943), VeryDiff (arXiv 2410.20207).

Which layers are paired needs no trust: w = psi(b) - phi(a) is what a new block stands for, whatever a and b are, and psi(b) is
written as phi(a) + w from there on. What both networks have in common cancels where linear functions of these are subtracted.
A layer may be written by some neurons of another, in any order: a then are these.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, NamedTuple

import numpy as np

from lipverify.checkers.kernel import language as is_
from lipverify.checkers.kernel.account import charge
from lipverify.checkers.kernel.arithmetic import TINY, Array, need
from lipverify.checkers.kernel.curves import Curve, Lines, curve, secant
from lipverify.checkers.kernel.elementary import Elementary, behind
from lipverify.checkers.kernel.neurons import Slopes, follow
from lipverify.checkers.kernel.program import MAX_SIZE, Scalar, Step, same
from lipverify.checkers.kernel.ranges import Condition, Empty, Ranges, Region
from lipverify.checkers.kernel.signals import Signal, added, sprouted, stacked
from lipverify.checkers.kernel.theorems import Emptiness, Facts, Known, Part, known_over, theorem
from lipverify.errors import NotCovered

_NEAR = 2.0**-49


class Base(NamedTuple):
    """What a layer is written by: all neurons of another, or these."""

    layer: int
    kept: Array | None = None

    def rows(self, x: Signal) -> Signal:
        return x if self.kept is None else x.rows(self.kept)

    def entries(self, x: Slopes) -> Slopes:
        return x if self.kept is None else (x[0][self.kept], x[1][self.kept])


class Carried(Ranges):
    """Ranges, and the results of some layers written as those of others plus a change.

    pairs: layer -> the one it is written by, which is not computed from it: no neuron is written by itself.
    """

    def __init__(
        self, p: Elementary, region: Region, conditions: Sequence[Condition], pairs: Mapping[int, Base]
    ) -> None:
        self._pairs, self._bases = pairs, {base.layer for base in pairs.values()}
        self._reads: dict[int, tuple[Signal, Slopes]] = {}
        self._results: dict[int, Signal] = {}
        self._forms: dict[int, tuple[Array, Array, int]] = {}
        super().__init__(p, region, conditions)
        steps = {k: step for k, n in enumerate(p.layers) if isinstance(step := p.steps[n], Scalar)}
        for layer, base in pairs.items():
            pair = layer, base.layer
            fits = all(k in steps for k in pair)
            fits = fits and steps[layer].size == (
                steps[base.layer].size if base.kept is None else len(base.kept)
            )
            need(fits, "a pair of layers that are no scalar functions of as many numbers")
            one, other = (p.layers[k] for k in pair)
            need(one not in behind(p.steps, other), "a layer that is written by what is computed from it")
            if not all(np.isfinite(self._reads[k][1]).all() for k in pair):
                raise NotCovered("a pair of layers of which nothing is known is not covered by the checker")
        self._steps = steps
        # Intervals belong to the numbers, in whatever form: they are known from the forms before.
        self.carried = follow(p, 0, len(p.steps) - 1, self._again, lambda step, x, y: y._replace(ends=None))
        del self._reads, self._results, self._forms

    @property
    def outputs(self) -> tuple[Signal, ...]:
        return self.output, self.carried

    def _layer(self, k: int, step: Step, v: Signal) -> Signal:
        y = super()._layer(k, step, v)
        within = self.within.get(k, (np.full(1, -np.inf), np.full(1, np.inf)))
        if k in self._pairs or k in self._bases:
            self._reads[k] = v, within
        if not isinstance(step, Scalar) or not np.isfinite(within).all():
            self._forms.pop(k, None)
        if k in self._bases or k not in self._forms:
            self._results[k] = y._replace(ends=None)
        return y

    def _grown(self, k: int, v: Signal, factor: Array, free: Array, lines: Lines, ends: Slopes) -> Signal:
        self._forms[k] = factor, free, len(self.chain.blocks)
        return super()._grown(k, v, factor, free, lines, ends)

    def _again(self, k: int, step: Step, v: Signal) -> Signal:
        """The results of a layer in their other form."""
        v = v._replace(ends=None)
        if k < 0:
            return v
        if k in self._pairs:
            return self._changed(k, self._pairs[k], v)
        if k not in self._forms:
            return self._results[k]
        factor, free, key = self._forms[k]
        return sprouted(key, v, factor, free)

    def _changed(self, k: int, base: Base, v: Signal) -> Signal:
        """psi(b) = phi(a) + w."""
        (b, within_b), (a, within_a) = self._reads[k], self._reads[base.layer]
        a, within_a, h = base.rows(a), base.entries(within_a), base.rows(self._results[base.layer])
        e = _minus(v, a)
        low, high = self._least_of(e, _minus(b, a), within_a, within_b)
        first, second = self._steps[base.layer], self._steps[k]
        slopes = first.slopes if first.slopes is None or base.kept is None else first.slopes[base.kept]
        one, other = (first.law, first.settings, slopes), (second.law, second.settings, second.slopes)
        phi, psi = curve(*one), curve(*other)
        alike = same(one, other) and not (first.rounded or second.rounded)
        steep = _quotients(phi, within_a, within_b) if alike else None
        factor, free = np.zeros(len(low)), np.arange(len(low))
        if steep is not None and phi.kinks:
            fixed = steep[0] == steep[1]
            factor, free = np.where(fixed, steep[0], 0.0), np.flatnonzero(~fixed)
        lines, reads = _lines(phi, psi, (low, high), within_a, within_b, steep)
        if not len(free):
            return added(h, sprouted(0, e, factor, free))
        thrice = np.concatenate([free + n * len(low) for n in range(3)])
        own = Lines(*(part[thrice if len(part) > len(low) else free] for part in lines[:6]))
        block = stacked([x._replace(ends=None).rows(free) for x in (e, a, b)])
        key = self.chain.put(block, own, reads=(reads[0][thrice], reads[1][thrice]))
        return added(h, sprouted(key, e, factor, free))

    def _least_of(self, e: Signal, apart: Signal, within_a: Slopes, within_b: Slopes) -> Slopes:
        """What e lies between: carried, side by side, and as the difference of two intervals."""
        low, high = self.chain.ranges(e)
        first, last = self.chain.ranges(apart)
        grown = 1.0 + 2.0**-52
        margin = (np.abs(within_b) + np.abs(within_a[::-1])).max(0) * (grown - 1.0) + TINY
        low = np.maximum(np.maximum(low, first), within_b[0] - within_a[1] - margin)
        high = np.minimum(np.minimum(high, last), within_b[1] - within_a[0] + margin)
        if self.chain.part and bool((low > high).any()):
            raise Empty
        return low, high


def _minus(b: Signal, a: Signal) -> Signal:
    return added(b, a._replace(parts={k: -m for k, m in a.parts.items()}))


def _quotients(f: Curve, a: Slopes, b: Slopes) -> Slopes | None:
    """Difference quotients of one function between points of A and of B: slopes on the hull of both."""
    found = f.slopes(np.minimum(a[0], b[0]), np.maximum(a[1], b[1]))
    return found if bool((np.isfinite(found[0]) & np.isfinite(found[1])).all()) else None


def _lines(
    phi: Curve, psi: Curve, e: Slopes, a: Slopes, b: Slopes, steep: Slopes | None
) -> tuple[Lines, Slopes]:
    """Lines around w over e, a and b, and what these three lie between: of two valid lines the better one in the middle.

    Statement: psi(b) <= p b + r and phi(a) >= q a + s give w <= c e + (c - q) a + (p - c) b + r - s for every c, as e = b - a;
        with c = p or q one of a, b is left. And w = t e with t in [k, K], where phi = psi has these quotients: chords of
        max(k e, K e) and min(k e, K e).
    """
    on_a, on_b = phi.lines(*a, *phi.slopes(*a)), psi.lines(*b, *psi.slopes(*b))
    most = [np.maximum(np.abs(x[0]), np.abs(x[1])) for x in (e, a, b)]
    middle = (a[0] / 4 + a[1] / 4) + (b[0] / 4 + b[1] / 4)
    apart = e[0] / 2 + e[1] / 2
    places = np.array([apart, middle - apart / 2, middle + apart / 2])

    def side(p: Array, r: Array, q: Array, s: Array, chord: Slopes | None, sign: float) -> Slopes:
        c = np.where(np.abs(p) < np.abs(q), p, q)
        rest = np.array([c - q, p - c])
        slack = _NEAR * (np.abs(rest[0]) * most[1] + np.abs(rest[1]) * most[2] + np.abs(r) + np.abs(s)) + TINY
        slopes, offset = np.array([c, *rest]), r - s + sign * slack
        if chord is not None:
            zero = np.zeros_like(chord[0])
            value = sign * ((slopes * places).sum(0) + offset)
            better = sign * (chord[0] * places[0] + chord[1]) < value
            slopes = np.where(better, np.array([chord[0], zero, zero]), slopes)
            offset = np.where(better, chord[1], offset)
        return slopes.ravel(), offset

    above = below = None
    low, high = on_b.low - on_a.high, on_b.high - on_a.low
    margin = _NEAR * (np.abs(on_b.low) + np.abs(on_b.high) + np.abs(on_a.low) + np.abs(on_a.high)) + TINY
    low, high = low - margin, high + margin
    if steep is not None:
        (s, o), (t, u) = secant(*e), secant(-e[1], -e[0])
        k, span = steep[0], steep[1] - steep[0]
        slack = _NEAR * (np.abs(steep[0]) + np.abs(steep[1])) * most[0] + TINY
        above, below = (k + span * s, span * o + slack), (k + span * t, -span * u - slack)
        corners = np.array([x * y for x in steep for y in e])
        low, high = np.maximum(low, corners.min(0) - slack), np.minimum(high, corners.max(0) + slack)
    under, least = side(on_b.below, on_b.under, on_a.above, on_a.over, below, -1.0)
    over, largest = side(on_b.above, on_b.over, on_a.below, on_a.under, above, 1.0)
    reads = tuple(np.concatenate([x[end] for x in (e, a, b)]) for end in (0, 1))
    return Lines(under, least, over, largest, low, high), (reads[0], reads[1])


def _pairs(scope: is_.Scope, value: Any) -> dict[int, Base]:
    """[[layer, the one it is written by, which it is no part of], or with a list of the neurons of that one...]."""
    need(isinstance(value, list), "a list")
    found = {}
    elements = scope.subject.elements
    for pair in value:
        need(isinstance(pair, list) and len(pair) in (2, 3), "a pair of layers")
        one, other = (scope.integer(k, 0, len(elements.layers)) for k in pair[:2])
        need(one != other and one not in found, "a pair of layers")
        kept = None
        if len(pair) == 3:
            size = elements.size(other)
            need(isinstance(pair[2], list) and 0 < len(pair[2]) <= MAX_SIZE, "a list of neurons")
            charge(len(pair[2]))
            kept = np.array([scope.integer(k, 0, size) for k in pair[2]], np.int64)
        found[one] = Base(other, kept)
    return found


Pairs = Annotated[dict[int, Base], _pairs]


@theorem
def carried(
    facts: Facts, *, region: is_.RegionId, conditions: is_.Conditions, pairs: Pairs
) -> Known | Emptiness:
    """The same, and the results of layers written as those of others plus a change: what they have in common cancels."""
    return known_over(facts, Part(region, conditions), lambda p, r, c: Carried(p, r, c, pairs))
