"""What values can be over a region: neurons lie between lines, and linear functions are pushed back through them.

Nothing here is evidence: ranges, and slopes with them, are computed anew, with every rounding accounted for.
Source: Zhang et al., NeurIPS 2018 (arXiv 1811.00866); McCormick, Mathematical Programming 10 (1976), for products.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from itertools import combinations, permutations
from typing import NamedTuple

import numpy as np

from lipverify.checkers.kernel.account import STEP, charge, held, returned
from lipverify.checkers.kernel.arithmetic import TINY, Array, gamma, need
from lipverify.checkers.kernel.curves import Curve, Lines, curve
from lipverify.checkers.kernel.elementary import Elementary, Largest, Ranged, Within, met
from lipverify.checkers.kernel.neurons import Slopes, bilinear, everywhere, follow
from lipverify.checkers.kernel.program import Implicit, Product, Scalar, Step
from lipverify.checkers.kernel.signals import (
    INPUT,
    ONE,
    ROW,
    Signal,
    alike,
    identity,
    mapped,
    product,
    scaled,
    sprouted,
    stacked,
)
from lipverify.errors import NotCovered

_ROWS, FAR = 1 << 24, 2.0**100
ENDS = "numbers over a ball near the ends of float64 are not covered by the checker"


class Region(NamedTuple):
    """|x - centre| <= radius in `norm` (l2 or linf), and low <= x <= high, which hold the ball's own box unless they cut it."""

    centre: Array
    radius: float
    norm: str
    low: Array
    high: Array


class Condition(NamedTuple):
    """Inputs for which an entry of what a layer reads (-1: of the input) is at least `at`, or at most `at`."""

    layer: int
    entry: int
    at: float
    above: bool


class Empty(Exception):
    """No input fulfils the conditions of a part."""


class Chain:
    """Blocks of neurons between lines of signals of the input, of constants and of earlier blocks.

    A block may have lines of several kinds, of which each holds; `kinds` are those that bounds are tried with. part: whether the
    inputs are those of a part of the region, which may be empty. stops: the blocks at which bounds on the way are looked at, sums
    (`cut`); None: all blocks. Chains that differ in the numbers of their lines alone are one, which takes [many, n] for them and
    gives [many, rows] (`continued`).
    """

    def __init__(self, region: Region | None = None, part: bool = False) -> None:
        self.region, self.part = region, part
        self.kinds: tuple[int, ...] = (0,)
        self.stops: set[int] | None = None
        self.blocks: list[dict[int, Array]] = []
        self._weights: list[Slopes] = []
        self.lines: list[tuple[Lines, ...]] = []
        self._reads: list[Slopes | None] = []
        self._ends: dict[int, Slopes] = {ONE: (np.ones(1), np.zeros(1))}
        self._most: dict[int, Array] = {ONE: np.ones(1)}
        self._charges: list[list[Slopes]] = []
        self._terms = self._many = 1
        if region is not None:
            self._ends[INPUT] = _around(region.low, region.high)
            reach = np.maximum(np.abs(region.low), np.abs(region.high))
            self._most[INPUT] = np.maximum(reach, np.abs(region.centre) + region.radius) * (1 + 2.0**-50)
            self._terms += len(reach)

    def continued(self, many: int = 0) -> Chain:
        """A chain that more blocks can follow without changing this one; or so many, whose source ROW is the number of each."""
        other = copy(self)
        for name, value in vars(self).items():
            if isinstance(value, list | dict | set):
                setattr(other, name, copy(value))
        if many:
            other._many, other._most[ROW] = many, np.eye(many)
            other._ends[ROW] = np.eye(many), np.zeros(many)
        return other

    def put(self, v: Signal, *lines: Lines, reads: Slopes | None = None) -> int:
        """One more block, and its number. reads: what v is known to lie between.

        Where v has several numbers for every neuron, all first ones and then all second ones, so have the slopes of its lines.
        """
        weighed = self._weighed(v)
        charges = [self._charged(one, weighed) for one in lines]
        k, (low, high), n = len(self.blocks), lines[0][4:6], lines[0].low.shape[-1]
        self._ends[k], self._most[k] = _around(low, high), np.maximum(np.abs(low), np.abs(high))
        self._terms += max(v.height, n) + n * any(one.also is not None for one in lines)
        self.blocks.append(_thin(v.parts))
        self._weights.append(weighed)
        self.lines.append(lines)
        self._charges.append(charges)
        self._reads.append(reads)
        return k

    def cut(self, v: Signal, ends: Slopes) -> int:
        """A block that is v itself, between two lines that are one."""
        one, zero = np.ones(v.height), np.zeros(v.height)
        key = self.put(v, Lines(one, zero, one, zero, *ends))
        assert self.stops is not None
        self.stops.add(key)
        return key

    def _charged(self, one: Lines, weighed: Slopes) -> Slopes:
        if not all(bool((np.abs(f) < FAR).all()) for f in one[:6]):
            raise NotCovered(ENDS)
        slope = np.maximum(np.abs(one.below), np.abs(one.above))
        offset = np.maximum(np.abs(one.under), np.abs(one.over))
        terms = (slope * part for part in weighed)
        size, error = (t.reshape(*t.shape[:-1], -1, offset.shape[-1]).sum(-2) for t in terms)
        if one.also is not None:
            more, off = (np.abs(one.also[0]) * part for part in self._weighed(one.also[1]))
            size, error = size + more, error + off
        return size + offset, error

    def replaced(self, lines: dict[int, Lines]) -> Chain:
        """The chain with other lines of some blocks, narrower ones or others of the kinks they lie around."""
        other = self.continued()
        for k, one in lines.items():
            other.lines[k] = (one,)
            other._charges[k] = [self._charged(one, self._weights[k])]
        return other

    def ranges(self, x: Signal, kinds: tuple[int, ...] = ()) -> Slopes:
        """Lower and upper bounds of the rows of a signal; infinite where nothing is known.

        Raises:
            Empty: they contradict each other, and there is a part of a region that holds no input.
        """
        before = held()
        found = self._between(x, kinds)
        returned(before - held())  # what bounds are read from is let go
        return found

    def _between(self, x: Signal, kinds: tuple[int, ...]) -> Slopes:
        if self.stops is not None:
            first, where = alike(x)
            if len(first) < x.height:
                low, high = self._between(x.rows(first), kinds)
                return low[..., where], high[..., where]
        unknown = np.any([np.isnan(m).any(1) for m in x.parts.values()], axis=0)
        x = x.rows(np.where(unknown, -1, np.arange(x.height))) if unknown.any() else x
        negative = x._replace(parts={k: -m for k, m in x.parts.items()})
        if self.stops is None:
            low, high = -self.largest(negative, kinds), self.largest(x, kinds)
        else:
            both = self.largest(stacked([negative, x]), kinds)
            low, high = -both[..., : x.height], both[..., x.height :]
        if x.ends is not None:
            low, high = np.maximum(low, x.ends[0]), np.minimum(high, x.ends[1])
        if self.part and bool((low > high).any()):
            raise Empty
        # Far from the ends of float64 no underflow grows to TINY, and nothing overflows.
        if not bool(((low <= high) & (low > -FAR) & (high < FAR)).all()):
            raise NotCovered(ENDS)
        return np.where(unknown, -np.inf, low), np.where(unknown, np.inf, high)

    def largest(self, x: Signal, kinds: tuple[int, ...] = ()) -> Array:
        """Upper bounds of the rows of a signal.

        Statement: before every step of the loop a row is at most the sum of part @ source over the parts, plus total, plus
            error. A neuron with a positive coefficient is replaced by its upper line, others by their lower line. Neurons
            p_i v of one v with coefficients a_i are a v with a between the smallest and the largest a_i, so at most
            min a_i v + (max a_i - min a_i) max(v, 0). Every bound on the way counts: what is replaced lies in a known range too.
        Rounding: coefficients and constants come from fewer than n operations on terms whose sizes, times the largest
            values of their sources, are `charged`: a coefficient times (slope times the sizes of v, plus offset) at every
            step. 16 gamma_n covers products, sums, the bound at the end and the rounding of the charges.
        """
        rows, n = x.height, self._terms
        if rows * n * self._many > _ROWS and rows > 1:
            step = max(1, _ROWS // (n * self._many))
            cuts = (x.rows(range(i, min(i + step, rows))) for i in range(0, rows, step))
            return np.concatenate([self.largest(cut, kinds) for cut in cuts], -1)
        unit = 16.0 * gamma(n + 64)
        size, error = self._weighed(x)
        error = error + unit * size + TINY
        best = self._over(x.parts, {}) + error * (1.0 + 2.0**-20)
        for kind in kinds or self.kinds:
            best = np.minimum(best, self._walked(dict(x.parts), error, unit, kind))
        # A bound on the way that overflows says nothing, and neither NaN nor minus infinity is a bound.
        return np.where(np.isfinite(best), best, np.inf)

    def _walked(self, parts: dict[int, Array], error: Array, unit: float, kind: int) -> Array:
        """The least bound on the way through lines of one kind, or of the last where a block has fewer."""
        charge(0, 8 * self._terms * self._many * error.shape[-1])
        constant, best = np.zeros_like(error), np.full_like(error, np.inf)
        known: dict[int, tuple[Array, Array]] = {}
        for k in reversed(range(len(self.blocks))):
            if k not in parts:
                continue
            own = min(kind, len(self.lines[k]) - 1)
            a, line, reads = parts.pop(k), self.lines[k][own], self._reads[k]
            size, off = self._charges[k][own]
            up, down = _sides(a, line.among)
            weight = np.abs(a) if line.among is None else up + 2.0 * np.abs(down)
            error = error + _at(weight, unit * size + off)
            if line.also is not None:
                _add(parts, a * line.also[0][..., None, :], line.also[1].parts)
            stop = self.stops is None or k in self.stops
            if self.stops is None or not stop:  # a sum is what it reads
                constant = constant + _at(up, line.over) + _at(down, line.under)
                if (times := line.above.shape[-1] // line.over.shape[-1]) > 1:
                    up, down = (np.tile(side, times) for side in (up, down))
                a = up * line.above[..., None, :] + down * line.below[..., None, :]
            slack = constant + error * (1.0 + 2.0**-20)
            if reads is not None and stop:
                read = np.maximum(a, 0.0) @ reads[1] + np.minimum(a, 0.0) @ reads[0]
                best = np.minimum(best, self._over(parts, known) + read + slack)
            _add(parts, a, self.blocks[k])
            if stop or max(parts, default=ONE) < 0:
                best = np.minimum(best, self._over(parts, known) + slack)
        return best

    def _weighed(self, x: Signal) -> Slopes:
        """For every row its terms, and their errors, at the largest values of the sources; roundings are charged by callers."""
        charge(0, 4 * sum(m.size for m in x.parts.values()))
        size = np.asarray(sum(_at(x.size(k), self._most[k]) for k in x.parts))
        small = TINY * sum(float(self._most[k].sum()) for k in x.parts) if x.rounds else 0.0
        return size, size * (2.0 * gamma(x.rounds)) + small

    def _over(self, parts: dict[int, Array], known: dict[int, tuple[Array, Array]]) -> Array | float:
        """The most that the sum of the parts can be. known: arrays, and what was found for them, as not all change at a step."""
        for key, a in parts.items():
            if key not in known or known[key][0] is not a:
                known[key] = a, self._reach(key, a)
        return sum((known[key][1] for key in parts), 0.0)

    def _reach(self, key: int, a: Array) -> Array:
        middle, apart = self._ends[key]
        value = _at(a, middle) + _at(np.abs(a), apart)
        if key == INPUT and self.region is not None and self.region.norm == "l2":
            value = np.minimum(value, a @ self.region.centre + self.region.radius * np.sqrt((a * a).sum(-1)))
        return value


def _at(a: Array, values: Array) -> Array:
    """The rows of a, of one chain or of many, at the values of a source."""
    return np.asarray((a @ values[..., None])[..., 0])


def _thin(parts: dict[int, Array]) -> dict[int, Array]:
    """The parts without those that are 0, and diagonals as vectors: between gates most parts are one or the other."""
    found = {}
    for key, m in parts.items():
        count, line = np.count_nonzero(m), np.diagonal(m)
        if count:
            found[key] = line if len(line) * len(line) == m.size and np.count_nonzero(line) == count else m
    return found


def _around(low: Array, high: Array) -> Slopes:
    """The middle of intervals, and how far they reach from there: one product less than with both ends."""
    middle = low / 2 + high / 2
    return middle, np.maximum(high - middle, middle - low) * (1.0 + 2.0**-50)


def _sides(a: Array, among: Array | None) -> Slopes:
    """Coefficients of the lines above and below; one each for neurons among which weights are shared."""
    if among is None:
        return np.maximum(a, 0.0), np.minimum(a, 0.0)
    charge(0, 2 * a.size // a.shape[-1] * among.size)
    least = most = a[..., among[:, 0]]
    for column in among.T[1:]:
        least, most = np.minimum(least, a[..., column]), np.maximum(most, a[..., column])
    return most - least, least


def _add(parts: dict[int, Array], a: Array, block: dict[int, Array]) -> None:
    for key, m in block.items():
        found = a * m if m.ndim == 1 else product(a, m)
        parts[key] = parts[key] + found if key in parts else found


class Ranges:
    """Ranges of what all layers of a program read over a part of a region, and the slopes that follow.

    within: what every layer reads lies there. reads: what a layer reads (-1: the input), of layers with conditions and with
    slopes that `bends` knows by lines: (curve or, for products, None, ends). slopes: of every layer; of implicit layers those
    everywhere. kinks: of layers of two lines through 0 the curve, ends and block of the neurons, and which they are. outputs: the
    last step, in one or several forms.
    """

    def __init__(self, p: Elementary, region: Region, conditions: Sequence[Condition]) -> None:
        self.program, self.conditions, self.chain = p, tuple(conditions), Chain()
        self.reads: dict[int, Signal] = {}
        self.within: dict[int, Slopes] = {}
        self.slopes: dict[int, Slopes] = {}
        self.bends: dict[int, tuple[Curve | None, Slopes]] = {}
        self.kinks: dict[int, tuple[Curve, Slopes, int, Array]] = {}
        self._box = self._met(-1, region.low, region.high)
        self.chain = Chain(region._replace(low=self._box[0], high=self._box[1]), bool(conditions))
        cut = self._cut if bilinear(p) else None
        self.chain.stops = None if cut is None else set()
        self.output = follow(p, 0, len(p.steps) - 1, self._layer, self._known, cut)
        need(all(c.layer in self.reads for c in conditions), "a condition on an implicit layer")

    @property
    def outputs(self) -> tuple[Signal, ...]:
        return (self.output,)

    def _met(self, layer: int, low: Array, high: Array) -> Slopes:
        """Ranges within the conditions of the part."""
        charge(0, STEP + 512 * len(self.conditions))
        low, high = low.copy(), high.copy()
        for c in self.conditions:
            if c.layer == layer:
                end, choose = (low, max) if c.above else (high, min)
                end[c.entry] = choose(end[c.entry], c.at)
        if bool((low > high).any()):
            raise Empty
        return low, high

    def _layer(self, k: int, step: Step, v: Signal) -> Signal:
        if isinstance(step, Implicit):
            return Signal({ONE: np.full((step.size, 1), np.nan)})
        if k < 0 or any(c.layer == k for c in self.conditions):
            self.reads[k] = v
        if k < 0:
            return v._replace(ends=np.array(self._box))
        low, high = self.within[k] = self._met(k, *self.chain.ranges(v))
        unknown = ~(np.isfinite(low) & np.isfinite(high))
        if unknown.any():
            v = v.rows(np.where(unknown, -1, np.arange(v.height)))
            low, high = np.where(unknown, 0.0, low), np.where(unknown, 0.0, high)
        known = self._scalar
        if isinstance(step, Product | Largest):
            known = self._product if isinstance(step, Product) else self._largest
        return known(k, step, v, (low, high), unknown)

    def _scalar(self, k: int, step: Step, v: Signal, ends: Slopes, unknown: Array) -> Signal:
        assert isinstance(step, Scalar)
        f = curve(step.law, step.settings, step.slopes)
        first, last = f.slopes(*ends)
        if unknown.any():
            most = everywhere(step)
            self.slopes[k] = np.where(unknown, most[0], first), np.where(unknown, most[1], last)
        else:
            self.slopes[k] = first, last
            if not f.jumps:
                self.reads[k], self.bends[k] = v, (f, ends)
        # Where the slope of two lines through 0 is known, the result is a multiple of what is read.
        free = np.flatnonzero((last > first) | (not f.kinks))
        lines, factor = f.lines(*ends, first, last), np.where((last > first) | (not f.kinks), 0.0, first)
        within = np.array(lines[4:6])
        if f.step is not None:
            # What is rounded is known as what it was and an error: what other signals have in common with it is not lost.
            factor, lines = np.ones(step.size), _less(lines, *ends)
        y = self._grown(k, v, factor, free, Lines(*(part[free] for part in lines[:6])), ends)
        if f.kinks and f.step is None and not unknown.any():
            self.reads[k] = v
            own = f if step.slopes is None else curve(step.law, step.settings, step.slopes[free])
            self.kinks[k] = own, (ends[0][free], ends[1][free]), len(self.chain.blocks) - 1, free
        return _forgotten(y._replace(ends=within), unknown)

    def _product(self, k: int, step: Step, v: Signal, ends: Slopes, unknown: Array) -> Signal:
        """w = x y: with the middles a of x and b of y, w - a y = b x - a b + (x - a)(y - b)."""
        n, swapped = step.size, np.roll(np.arange(len(ends[0])), step.size)
        least, most = np.where(unknown, -np.inf, ends[0]), np.where(unknown, np.inf, ends[1])
        self.slopes[k] = least[swapped], most[swapped]
        if not unknown.any():
            self.reads[k], self.bends[k] = v, (None, ends)
        low, high = ends
        middle, apart = _around(low, high)
        a, b, rest = middle[:n], middle[n:], apart[:n] * apart[n:]
        corners = np.array([p[:n] * q[n:] for p in ends for q in ends])
        slack = 2.0**-49 * (np.abs(a * b) + rest + np.abs(corners).max(0)) + TINY
        bottom, top = corners.min(0) - slack, corners.max(0) + slack
        if isinstance(step, Within):
            bottom, top = np.maximum(bottom, step.least), np.minimum(top, step.most)
        also = a, v.rows(np.arange(n, 2 * n))
        lines = Lines(b, -a * b - rest - slack, b, rest - a * b + slack, bottom, top, also)
        x = v.rows(np.arange(n))
        y = self._grown(k, x, np.zeros(n), np.arange(n), lines, (low[:n], high[:n]))
        return _forgotten(y._replace(ends=np.array([bottom, top])), unknown[:n] | unknown[n:])

    def _largest(self, k: int, step: Step, v: Signal, ends: Slopes, unknown: Array) -> Signal:
        """The largest of terms, of which only those count that no other one exceeds everywhere.

        Statement: for weights c_i in [0, 1], max_j x_j - sum_i c_i x_i <= max_j ((1 - c_j) u_j - sum over i != j of c_i l_i).
            Terms that are left out for another one are smaller, or equal and later: that cannot go in a circle.
        """
        n, places = step.size, step.view.places.reshape(-1, step.size)
        low, high = (end.reshape(-1, n) for end in ends)
        lost, possible, at = (
            np.asarray(unknown.reshape(-1, n).any(0)),
            np.ones(low.shape, dtype=bool),
            np.arange(n),
        )
        charge(0, 8 * low.size * len(low))
        for i, j in permutations(range(len(low)), 2):
            same = (places[i] == places[j]) | (high[i] <= low[j])
            possible[i] &= ~((high[i] < low[j]) | (same & (j < i))) | lost
        for i, j in combinations(range(len(low)), 2):
            rows = np.flatnonzero(possible[i] & possible[j] & ~lost & (places[i] >= 0) & (places[j] >= 0))
            if len(rows):
                pairs = np.stack([i * n + rows, j * n + rows], 1)
                least, most = self.chain.ranges(mapped(np.array([[[1.0, -1.0]]]), pairs[None], v))
                possible[i, rows] &= ~(most < 0)
                possible[j, rows] &= ~(least > 0)
        alone = possible.sum(0) == 1
        self.slopes[k] = (possible & alone).astype(float).ravel(), possible.astype(float).ravel()
        bottom, top = low.max(0), np.where(possible, high, -np.inf).max(0)
        best = np.where(possible, low / 2 + high / 2, -np.inf).argmax(0)
        base, free = v.rows(best * n + at), np.flatnonzero(~alone & ~lost)
        y = sprouted(len(self.chain.blocks), base, 1.0 * alone, free)
        if len(free):
            one, reads = 1.0 * (np.arange(len(low))[:, None] == best[free]), (low[:, free], high[:, free])
            # A term that is left out counts as one that is always the least that the maximum can be.
            u, l = (np.where(possible[:, free], end, bottom[free]) for end in reads[::-1])
            order = np.sort(l, 0)
            others = np.where(np.arange(len(l))[:, None] == l.argmax(0), order[-2], order[-1])
            excess = np.maximum(u - others, 0.0) * possible[:, free]
            whole = excess.sum(0)
            c = np.clip(np.where(whole > 0, excess / np.where(whole > 0, whole, 1.0), one), 0.0, 1.0)
            over = ((1.0 - c) * u - ((c * l).sum(0) - c * l)).max(0)
            size = np.maximum(np.abs(l), np.abs(u)).sum(0)
            lines = Lines(
                one.ravel(),
                np.zeros(len(free)),
                c.ravel(),
                over + 2.0**-44 * size + TINY,
                bottom[free],
                top[free],
            )
            every = (np.arange(len(low))[:, None] * n + free).ravel()
            self.chain.put(v.rows(every), lines, reads=(reads[0].ravel(), reads[1].ravel()))
        return _forgotten(y._replace(ends=np.array([bottom, top])), lost)

    def _cut(self, y: Signal) -> Signal:
        ends = self.chain.ranges(y)
        key = self.chain.cut(y, ends)
        return identity(key, y.height)._replace(growth=y.growth, ends=np.array(ends))

    def _grown(self, k: int, v: Signal, factor: Array, free: Array, lines: Lines, ends: Slopes) -> Signal:
        """The results of layer k: factor times v, and in the rows `free` a number each of a new block."""
        if not len(free):
            return scaled(factor, v)
        key = self.chain.put(v.rows(free), lines, reads=(ends[0][free], ends[1][free]))
        return sprouted(key, v, factor, free)

    def _known(self, step: Step, x: Signal, y: Signal) -> Signal:
        if isinstance(step, Ranged):
            low, high = self.chain.ranges(y)
            return _forgotten(y._replace(ends=np.array([low, high])), ~np.isfinite(low))
        return met(step, x, y)


def _less(lines: Lines, low: Array, high: Array) -> Lines:
    """Lines around w - v, from those around w with slopes of at most 1, and v in [low, high]."""
    below, above = lines.below - 1.0, lines.above - 1.0
    slack = (
        2.0**-49 * (np.maximum(np.abs(low), np.abs(high)) + np.abs(lines.under) + np.abs(lines.over)) + TINY
    )
    # A slope of at most 0: the lowest end of the lower line is at the largest v.
    bottom = np.maximum(below * high + lines.under, lines.low - high) - slack
    top = np.minimum(above * low + lines.over, lines.high - low) + slack
    return Lines(below, lines.under - slack, above, lines.over + slack, bottom, top)


def _forgotten(y: Signal, unknown: Array) -> Signal:
    """The signal with rows of which nothing is known."""
    if not unknown.any():
        return y
    hidden = np.where(unknown, np.nan, 0.0)
    parts = y.parts | {ONE: y.parts.get(ONE, 0.0) + hidden[:, None]}
    sizes = None if y.sizes is None else y.sizes | {ONE: y.sizes.get(ONE, 0.0) + hidden[:, None]}
    return y._replace(parts=parts, sizes=sizes, ends=None if y.ends is None else y.ends + hidden)
