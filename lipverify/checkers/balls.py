"""What values and gradients can be over a ball: neurons lie between lines, and linear functions are pushed back through them.

Nothing here is evidence: ranges, and slopes with them, are computed anew, with every rounding accounted for.
Source: Zhang et al., NeurIPS 2018 (arXiv 1811.00866) for values; Shi et al., NeurIPS 2022 (arXiv 2210.07394) for gradients.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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
    """below v + under <= w <= above v + over, and low <= w <= high."""

    below: Array
    under: Array
    above: Array
    over: Array
    low: Array
    high: Array


class Chain:
    """Blocks of neurons between lines of signals of the input, of constants and of earlier blocks."""

    def __init__(self, ball: Ball | None = None) -> None:
        self.ball = ball
        self.blocks: list[Signal] = []
        self.lines: list[Lines] = []
        self._ends: dict[int, tuple[Array, Array]] = {ONE: (np.ones(1), np.ones(1))}
        self._most: dict[int, Array] = {ONE: np.ones(1)}
        self._charges: list[tuple[Array, Array]] = []
        if ball is not None:
            self._ends[INPUT] = ball.low, ball.high
            reach = np.maximum(np.abs(ball.low), np.abs(ball.high))
            self._most[INPUT] = np.maximum(reach, np.abs(ball.centre) + ball.radius) * (1 + 2.0**-50)

    def put(self, v: Signal, lines: Lines) -> None:
        """One more block."""
        slope = np.maximum(np.abs(lines.below), np.abs(lines.above))
        offset = np.maximum(np.abs(lines.under), np.abs(lines.over))
        size, error = self._weighed(v)
        self._charges.append((slope * size + offset, slope * error))
        self._ends[len(self.blocks)] = lines.low, lines.high
        self._most[len(self.blocks)] = np.maximum(np.abs(lines.low), np.abs(lines.high))
        self.blocks.append(v)
        self.lines.append(lines)

    def ranges(self, x: Signal) -> tuple[Array, Array]:
        """Lower and upper bounds of the rows of a signal."""
        low, high = -self.largest(x._replace(parts={k: -m for k, m in x.parts.items()})), self.largest(x)
        if x.ends is not None:
            low, high = np.maximum(low, x.ends[0]), np.minimum(high, x.ends[1])
        # Far from the ends of float64 no underflow grows to TINY, and nothing overflows.
        if not bool(((low <= high) & (low > -(2.0**100)) & (high < 2.0**100)).all()):
            raise NotCovered("numbers over a ball near the ends of float64 are not covered by the checker")
        return low, high

    def largest(self, x: Signal) -> Array:
        """Upper bounds of the rows of a signal.

        Statement: before every step of the loop a row is at most the sum of part @ source over the parts, plus total, plus
            error. A neuron with a positive coefficient is replaced by its upper line, others by their lower line. Every bound
            on the way counts: what is replaced lies in a known range as well.
        Rounding: coefficients and constants come from fewer than n operations on terms whose sizes, times the largest
            values of their sources, are `charged`: a coefficient times (slope times the sizes of v, plus offset) at every
            step. 16 gamma_n covers products, sums, the bound at the end and the rounding of the charges.
        """
        rows = len(next(iter(x.parts.values())))
        n = sum(map(len, self._most.values()))
        if rows * n > _ROWS and rows > 1:
            step = max(1, _ROWS // n)
            return np.concatenate(
                [self.largest(x.rows(range(i, min(i + step, rows)))) for i in range(0, rows, step)]
            )
        unit, parts, total = 16.0 * gamma(n + 64), dict(x.parts), np.zeros(rows)
        size, error = self._weighed(x)
        error = error + unit * size + TINY
        best = self._over(parts) + error * (1.0 + 2.0**-20)
        for k in reversed(range(len(self.blocks))):
            if k not in parts:
                continue
            a, line, (size, off) = parts.pop(k), self.lines[k], self._charges[k]
            up, down = np.maximum(a, 0.0), np.minimum(a, 0.0)
            total = total + up @ line.over + down @ line.under
            error = error + np.abs(a) @ (unit * size + off)
            back = up * line.above + down * line.below
            for key, m in self.blocks[k].parts.items():
                parts[key] = parts[key] + back @ m if key in parts else back @ m
            best = np.minimum(best, self._over(parts) + total + error * (1.0 + 2.0**-20))
        return best

    def _weighed(self, x: Signal) -> tuple[Array, Array]:
        """For every row its terms, and their errors, at the largest values of the sources; roundings are charged by callers."""
        size = np.asarray(sum(x.size(k) @ self._most[k] for k in x.parts))
        small = TINY * sum(float(self._most[k].sum()) for k in x.parts) if x.rounds else 0.0
        return size, size * (2.0 * gamma(x.rounds)) + small

    def _over(self, parts: dict[int, Array]) -> Array:
        found = np.zeros(len(next(iter(parts.values()))))
        for key, a in parts.items():
            low, high = self._ends[key]
            value = np.maximum(a, 0.0) @ high + np.minimum(a, 0.0) @ low
            if key == INPUT and self.ball is not None and self.ball.norm == "l2":
                round_ = a @ self.ball.centre + self.ball.radius * np.sqrt((a * a).sum(1))
                value = np.minimum(value, round_)
            found = found + value
        return found


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


def prove_local(system: System, norms: tuple[str, str], outputs: Sequence[int] | None = None) -> float:
    """A constant of the network over the ball of the system, from ranges of J'g for every output g = e_i, or some of them.

    Statement: f(x) - f(y) = J (x - y) with J'g = V0'g + U'c, b = V'g + C'c, c_i = t_i b_i for some 0 <= t_i <= 1: gradients are
        a chain of blocks from the output to the input, in which c_i lies between min(b_i, 0) and max(b_i, 0). For a part of
        the ball J is the derivative, t_i that of a neuron at almost every x; where v_i = 0 its gradient is 0 almost everywhere
        (Evans, Gariepy, Measure Theory and Fine Properties of Functions, section 4.2). Parts that cover the ball prove its
        constant, which is the largest norm of a derivative.
    """
    rows, ends = [], []
    for low, high, chain, gradient in _gradients(
        system, range(system.outputs) if outputs is None else outputs
    ):
        ends.append((low, high))
        most = np.maximum(np.abs(low), np.abs(high)).max(initial=0.0)
        rows.append(most if norms[0] == "l1" else _summed(low, high, chain, gradient, norms[0] == "l2"))
    by_row, grown = np.array(rows), 1.0 + gamma(16)
    if norms[1] == "linf":
        return float(by_row.max(initial=0.0))
    total = _length(by_row, norms[1])
    first, last = (np.array(end) for end in zip(*ends, strict=True))
    entries = np.maximum(np.abs(first), np.abs(last))
    if norms[0] == "l1":
        total = min(total, max(_length(column, norms[1]) for column in entries.T))
    elif norms == ("l2", "l1"):
        total = min(total, _length(arith.sums(entries, 0), "l2"))
    elif norms == ("l2", "l2"):
        middle = first / 2 + last / 2
        apart = np.maximum(last - middle, middle - first) * grown + TINY
        total = min(total, _norm(entries), (_norm(middle) + _norm(apart)) * grown)
    return total


def _length(values: Array, norm: str) -> float:
    """Upper bound of the l1 or l2 norm of a vector."""
    squared = values * values if norm == "l2" else values
    return float(np.sqrt(arith.sums(squared)) * (1.0 + gamma(16)) if norm == "l2" else arith.sums(squared))


def _norm(matrix: Array) -> float:
    """Upper bound of the l2 norm of a matrix: a guess that is proved, or the root of largest row sum times column sum."""
    guess = np.linalg.norm(matrix, 2) * (1.0 + 2.0**-26 + 2.0**-51 * min(matrix.shape) ** 2) + TINY
    proved = arith.norms_at_most(matrix[None], 0.0, np.array([guess]))
    return float(guess) if proved else float(arith.interpolated(np.abs(matrix)))


def _summed(low: Array, high: Array, chain: Chain, gradient: Signal, squared: bool) -> float:
    """The sum of |J_j| or the root of that of J_j^2: entry by entry, and by the chords of these functions as one functional."""
    ends = [(v * v if squared else np.abs(v)) for v in (low, high)]
    slope = (ends[1] - ends[0]) / np.where(high > low, high - low, 1.0)
    rest = np.maximum(ends[0] - slope * low, ends[1] - slope * high)
    rest = rest + 2.0**-50 * (ends[0] + ends[1] + np.abs(slope) * (np.abs(low) + np.abs(high))) + TINY
    across = np.arange(len(low))
    row = mapped(Map((), across, 1, slope[None, None], across[None, None]), gradient)
    extra = float(rest.sum()) + float(arith.sums(rest)) * 2.0 * gamma(len(rest) + 8)
    joint = max(0.0, float(chain.largest(row)[0]) + extra) * (1.0 + 2.0**-50)
    best = min(float(arith.sums(np.maximum(*ends))), joint)
    return float(np.sqrt(best) * (1.0 + gamma(8))) if squared else best


def _gradients(system: System, outputs: Sequence[int]) -> Iterator[tuple[Array, Array, Chain, Signal]]:
    """For every output the ranges of its gradient at the input, with the chain and the signal they come from."""
    count, last = len(system.blocks), system.output
    rounds, growth = (max(getattr(s, f) for s in (*system.blocks, last)) for f in ("rounds", "growth"))
    behind: dict[int, Signal] = {}
    for key in (*range(count), INPUT):
        readers = [(count - 1 - k, b) for k, b in enumerate(system.blocks) if key in b.parts]
        parts, sizes = {j: b.parts[key].T for j, b in readers}, {j: b.size(key).T for j, b in readers}
        behind[key] = Signal(parts, sizes, rounds, False, growth)
    for row in outputs:
        chain = Chain()
        for key in (*reversed(range(count)), INPUT):
            b, width = behind[key], system.inputs if key == INPUT else system.sizes[key]
            entries, terms = (
                (last.parts[key], last.size(key)) if key in last.parts else [np.zeros((row + 1, width))] * 2
            )
            assert b.sizes is not None
            b = b._replace(
                parts=b.parts | {ONE: entries[row][:, None]}, sizes=b.sizes | {ONE: terms[row][:, None]}
            )
            low, high = chain.ranges(b)
            if key == INPUT:
                yield low, high, chain, b
                break
            (s, o), (r, p) = secant(low, high), secant(-high, -low)
            chain.put(b, Lines(r, -p, s, o, np.minimum(low, 0.0), np.maximum(high, 0.0)))
