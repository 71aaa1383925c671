"""What values and gradients can be over a ball: neurons lie between lines, and linear functions are pushed back through them.

Nothing here is evidence: ranges, and slopes with them, are computed anew, with every rounding accounted for.
Source: Zhang et al., NeurIPS 2018 (arXiv 1811.00866) for values; Shi et al., NeurIPS 2022 (arXiv 2210.07394) for gradients.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from fractions import Fraction
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from lipverify.checkers import arithmetic as arith
from lipverify.checkers.arithmetic import TINY, Array, NotCovered, gamma
from lipverify.checkers.signals import INPUT, ONE, Signal, mapped, stacked
from lipverify.checkers.steps import Map

if TYPE_CHECKING:
    from lipverify.checkers.multipliers import System

_ROWS = 1 << 24


class Ball(NamedTuple):
    """|x - centre| <= radius in `norm`, and low <= x <= high, which hold the ball's own box unless they cut it."""

    centre: Array
    radius: float
    norm: str
    low: Array
    high: Array


class Split(NamedTuple):
    """Inputs for which an entry of what a layer of neurons reads (-1: of the input) is at least `at`, or at most `at`."""

    layer: int
    entry: int
    at: float
    above: bool


class Empty(Exception):
    """No input fulfils the conditions of a part."""


def met(splits: Sequence[Split], layer: int, low: Array, high: Array) -> tuple[Array, Array]:
    """Ranges within the conditions of a part."""
    low, high = low.copy(), high.copy()
    for s in splits:
        if s.layer == layer:
            end, choose = (low, max) if s.above else (high, min)
            end[s.entry] = choose(end[s.entry], s.at)
    if bool((low > high).any()):
        raise Empty
    return low, high


class Lines(NamedTuple):
    """below v + under <= w - also <= above v + over, and low <= w <= high."""

    below: Array
    under: Array
    above: Array
    over: Array
    low: Array
    high: Array
    also: Signal | None = None


class Chain:
    """Blocks of neurons between lines of signals of the input, of constants and of earlier blocks.

    A block may have lines of several kinds, of which each holds; `kinds` are those that bounds are tried with. part: whether the
    inputs are those of a part of the ball, which may be empty.
    """

    def __init__(self, ball: Ball | None = None, part: bool = False) -> None:
        self.ball, self.part = ball, part
        self.kinds: tuple[int, ...] = (0,)
        self.blocks: list[Signal] = []
        self.lines: list[tuple[Lines, ...]] = []
        self._reads: list[tuple[Array, Array] | None] = []
        self._ends: dict[int, tuple[Array, Array]] = {ONE: (np.ones(1), np.ones(1))}
        self._most: dict[int, Array] = {ONE: np.ones(1)}
        self._charges: list[list[tuple[Array, Array]]] = []
        self._terms = 1
        if ball is not None:
            self._ends[INPUT] = ball.low, ball.high
            reach = np.maximum(np.abs(ball.low), np.abs(ball.high))
            self._most[INPUT] = np.maximum(reach, np.abs(ball.centre) + ball.radius) * (1 + 2.0**-50)
            self._terms += len(reach)

    def continued(self) -> Chain:
        """A chain that more blocks can follow without changing this one."""
        other = copy(self)
        for name, value in vars(self).items():
            if isinstance(value, list | dict):
                setattr(other, name, copy(value))
        return other

    def put(self, v: Signal, *lines: Lines, reads: tuple[Array, Array] | None = None) -> None:
        """One more block. reads: what v is known to lie between."""
        size, error = self._weighed(v)
        charges = []
        for one in lines:
            slope = np.maximum(np.abs(one.below), np.abs(one.above))
            offset = np.maximum(np.abs(one.under), np.abs(one.over))
            more, off = (0.0, 0.0) if one.also is None else self._weighed(one.also)
            charges.append((slope * size + offset + more, slope * error + off))
        k, (low, high) = len(self.blocks), lines[0][4:6]
        self._ends[k], self._most[k] = (low, high), np.maximum(np.abs(low), np.abs(high))
        self._terms += len(low) * (1 + any(one.also is not None for one in lines))
        self.blocks.append(v)
        self.lines.append(lines)
        self._charges.append(charges)
        self._reads.append(reads)

    def ranges(self, x: Signal, kinds: tuple[int, ...] = ()) -> tuple[Array, Array]:
        """Lower and upper bounds of the rows of a signal.

        Raises:
            Empty: they contradict each other, and there is a part of a ball that holds no input.
        """
        negative = x._replace(parts={k: -m for k, m in x.parts.items()})
        low, high = -self.largest(negative, kinds), self.largest(x, kinds)
        if x.ends is not None:
            low, high = np.maximum(low, x.ends[0]), np.minimum(high, x.ends[1])
        if self.part and bool((low > high).any()):
            raise Empty
        # Far from the ends of float64 no underflow grows to TINY, and nothing overflows.
        if not bool(((low <= high) & (low > -(2.0**100)) & (high < 2.0**100)).all()):
            raise NotCovered("numbers over a ball near the ends of float64 are not covered by the checker")
        return low, high

    def largest(self, x: Signal, kinds: tuple[int, ...] = ()) -> Array:
        """Upper bounds of the rows of a signal.

        Statement: before every step of the loop a row is at most the sum of part @ source over the parts, plus total, plus
            error. A neuron with a positive coefficient is replaced by its upper line, others by their lower line. Every bound
            on the way counts: what is replaced lies in a known range as well.
        Rounding: coefficients and constants come from fewer than n operations on terms whose sizes, times the largest
            values of their sources, are `charged`: a coefficient times (slope times the sizes of v, plus offset) at every
            step. 16 gamma_n covers products, sums, the bound at the end and the rounding of the charges.
        """
        rows = len(next(iter(x.parts.values())))
        n = self._terms
        if rows * n > _ROWS and rows > 1:
            step = max(1, _ROWS // n)
            return np.concatenate(
                [self.largest(x.rows(range(i, min(i + step, rows))), kinds) for i in range(0, rows, step)]
            )
        unit = 16.0 * gamma(n + 64)
        size, error = self._weighed(x)
        error = error + unit * size + TINY
        best = self._over(x.parts) + error * (1.0 + 2.0**-20)
        for kind in kinds or self.kinds:
            best = np.minimum(best, self._walked(dict(x.parts), error, unit, kind))
        return best

    def _walked(self, parts: dict[int, Array], error: Array, unit: float, kind: int) -> Array:
        """The least bound on the way through lines of one kind, or of the first where a block has no others."""
        total, best = np.zeros_like(error), np.full_like(error, np.inf)
        for k in reversed(range(len(self.blocks))):
            if k not in parts:
                continue
            own = min(kind, len(self.lines[k]) - 1)
            a, line, (size, off), reads = (
                parts.pop(k),
                self.lines[k][own],
                self._charges[k][own],
                self._reads[k],
            )
            up, down = np.maximum(a, 0.0), np.minimum(a, 0.0)
            total = total + up @ line.over + down @ line.under
            error = error + np.abs(a) @ (unit * size + off)
            back = up * line.above + down * line.below
            if line.also is not None:
                _add(parts, a, line.also)
            slack = total + error * (1.0 + 2.0**-20)
            if reads is not None:
                known = np.maximum(back, 0.0) @ reads[1] + np.minimum(back, 0.0) @ reads[0]
                best = np.minimum(best, self._over(parts) + known + slack)
            _add(parts, back, self.blocks[k])
            best = np.minimum(best, self._over(parts) + slack)
        return best

    def _weighed(self, x: Signal) -> tuple[Array, Array]:
        """For every row its terms, and their errors, at the largest values of the sources; roundings are charged by callers."""
        size = np.asarray(sum(x.size(k) @ self._most[k] for k in x.parts))
        small = TINY * sum(float(self._most[k].sum()) for k in x.parts) if x.rounds else 0.0
        return size, size * (2.0 * gamma(x.rounds)) + small

    def _over(self, parts: dict[int, Array]) -> Array | float:
        found: Array | float = 0.0
        for key, a in parts.items():
            low, high = self._ends[key]
            value = np.maximum(a, 0.0) @ high + np.minimum(a, 0.0) @ low
            if key == INPUT and self.ball is not None and self.ball.norm == "l2":
                round_ = a @ self.ball.centre + self.ball.radius * np.sqrt((a * a).sum(1))
                value = np.minimum(value, round_)
            found = found + value
        return found


def _add(parts: dict[int, Array], a: Array, x: Signal) -> None:
    for key, m in x.parts.items():
        parts[key] = parts[key] + a @ m if key in parts else a @ m


def secant(low: Array, high: Array) -> tuple[Array, Array]:
    """Slope and offset of a line above max(v, 0) on [low, high]: s in [0, 1] and the larger of -s low and (1 - s) high."""
    width = np.where(high > low, high - low, 1.0)
    slope = np.clip(np.where(low >= 0, 1.0, np.where(high <= 0, 0.0, high / width)), 0.0, 1.0)
    offset = np.maximum(np.maximum(-slope * low, (1.0 - slope) * high), 0.0)
    return slope, np.where((low >= 0) | (high <= 0), 0.0, offset * (1.0 + 2.0**-50) + TINY)


def located(
    law: str, low: Array, high: Array, left: Array, ends: tuple[Array, Array]
) -> tuple[Array, Array, Array]:
    """Slopes and values on [first, last] of functions of two straight pieces through 0, of which the right one is y = x."""
    if law not in ("Relu", "LeakyRelu", "PRelu", "Abs"):
        raise NotCovered(f"slopes of {law} over a ball are not covered by the checker")
    first, last = ends
    free, known = (first < 0) & (last > 0), np.where(first >= 0, 1.0, left)
    a, b = (np.where(v < 0, left * v, v) for v in ends)
    around = np.sort(np.array([a, b, np.where(free, 0.0, a)]), axis=0)
    around = np.array(
        [around[0] - 2.0**-50 * np.abs(around[0]) - TINY, around[2] + 2.0**-50 * np.abs(around[2]) + TINY]
    )
    return np.where(free, low, known), np.where(free, high, known), around


def kinked(low: Array, high: Array, convex: Array) -> Lines:
    """Lines around neurons t max(v, 0), or t min(v, 0) where not convex, for any t between 1 - 2^-50 and 1; low < 0 < high."""
    (s, o), (r, p), zero = secant(low, high), secant(-high, -low), np.zeros_like(low)
    flat = np.where(high > -low, 1.0 - 2.0**-50, 0.0)
    steep = np.where(high > -low, 0.0, 1.0 - 2.0**-50)
    return Lines(np.where(convex, flat, r), np.where(convex, zero, -p), np.where(convex, s, steep),
                 np.where(convex, o, zero), np.where(convex, zero, low), np.where(convex, high, zero))  # fmt: skip


def prove_empty(system: System, weights: Sequence[float]) -> bool:
    """Whether no input fulfils all conditions: a sum of s_i (z_i - at_i) >= 0 with weights >= 0 that is negative everywhere.

    Source: Farkas' lemma, with linear bounds of the values z.
    """
    splits = system.splits
    if len(weights) != len(splits) or not weights or min(weights) < 0 or system.chain is None:
        return False
    signed = np.array([w if s.above else -w for w, s in zip(weights, splits, strict=True)])
    values = stacked([system.read[s.layer].rows([s.entry]) for s in splits])
    across = np.arange(len(splits))
    row = mapped(Map((), across, 1, signed[None, None], across[None, None]), values)
    limit = sum(
        (Fraction(float(w)) * Fraction(s.at) for w, s in zip(signed, splits, strict=True)), Fraction(0)
    )
    return bool(system.chain.largest(row)[0] < arith.below(limit))
