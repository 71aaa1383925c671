"""Constants from ranges of all derivatives: gradients are a chain from the output to the input, behind that of the values.

Neurons of a maximum share one gradient, in parts p_i >= 0 of sum 1 (`Chain.largest`): where two terms are equal, so are their
gradients almost everywhere.
Source: Shi et al., NeurIPS 2022 (arXiv 2210.07394); McCormick, Mathematical Programming 10 (1976), for slopes that are functions
of the values; Girard, HSCC 2005, for gradients around the middle of all slopes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from lipverify.checkers.kernel import arithmetic as arith
from lipverify.checkers.kernel.account import charge
from lipverify.checkers.kernel.arithmetic import TINY, Array, gamma
from lipverify.checkers.kernel.curves import Lines, secant
from lipverify.checkers.kernel.neurons import Differences
from lipverify.checkers.kernel.ranges import Chain, Ranges
from lipverify.checkers.kernel.signals import INPUT, ROW, Signal, total
from lipverify.errors import NotCovered

_MANY, _AT_ONCE = 64, 1 << 18
"""Rows whose gradients are found together, and coefficients for them at a time, unless one row needs more."""


class Gradient(NamedTuple):
    """low <= J'g <= high for some rows g, [rows, entries], with the chain and the signal they come from."""

    low: Array
    high: Array
    chain: Chain
    signal: Signal


def jacobian_limit(
    found: Differences,
    ranges: Ranges | None,
    output: Signal,
    norms: tuple[str, str],
    free: Array | None = None,
) -> float:
    """A constant of the rows `output` of the differences. free: entries of the input that move (`moving`), None: all.

    Statement: a constant is the largest norm of a derivative almost everywhere, of the part or of parts that cover it. J'g =
        V0'g + U'c, b = V'g + C'c, c_i = s_i b_i with s_i in the range of slopes of neuron i: a chain of blocks from the output to
        the input. At kinks s_i does not matter: where v_i is one the gradient of v_i is 0 almost everywhere (Evans, Gariepy,
        Measure Theory and Fine Properties of Functions, section 4.2). Elsewhere s_i = phi'(v_i): a chain behind that of values.
    """
    rows, ends = [np.zeros(0)], []
    # Sums of sizes take entries one by one and together: the middle of all slopes adds nothing.
    for g in gradients(found, ranges, output, norms != ("linf", "linf"), free):
        ends.append((g.low, g.high))
        most = np.maximum(np.abs(g.low), np.abs(g.high)).max(1, initial=0.0)
        rows.append(most if norms[0] == "l1" else _summed(g, norms[0] == "l2"))
    by_row, grown = np.concatenate(rows), 1.0 + gamma(16)
    if norms[1] == "linf":
        return float(by_row.max(initial=0.0))
    best = _length(by_row, norms[1])
    first, last = (np.concatenate(end) for end in zip(*ends, strict=True))
    entries = np.maximum(np.abs(first), np.abs(last))
    if norms[0] == "l1":
        best = min(best, max(_length(column, norms[1]) for column in entries.T))
    elif norms == ("l2", "l1"):
        best = min(best, _length(arith.sums(entries, 0), "l2"))
    elif norms == ("l2", "l2"):
        middle = first / 2 + last / 2
        apart = np.maximum(last - middle, middle - first) * grown + TINY
        best = min(best, _norm(entries), (_norm(middle) + _norm(apart)) * grown)
    return best


def _length(values: Array, norm: str) -> float:
    """Upper bound of the l1 or l2 norm of a vector."""
    squared = values * values if norm == "l2" else values
    return float(np.sqrt(arith.sums(squared)) * (1.0 + gamma(16)) if norm == "l2" else arith.sums(squared))


def _norm(matrix: Array) -> float:
    """Upper bound of the l2 norm of a matrix: a guess that is proved, or the root of largest row sum times column sum."""
    charge(matrix.size, 16 * matrix.size * min(matrix.shape))
    guess = np.linalg.norm(matrix, 2) * (1.0 + 2.0**-26 + 2.0**-51 * min(matrix.shape) ** 2) + TINY
    proved = arith.norms_at_most(matrix[None], 0.0, np.array([guess]))
    return float(guess) if proved else float(arith.interpolated(np.abs(matrix)))


def _summed(g: Gradient, squared: bool) -> Array:
    """Of every row the sum of |J_j| or the root of that of J_j^2: entry by entry, and by the chords of these functions as one
    functional."""
    low, high = g.low, g.high
    ends = [(v * v if squared else np.abs(v)) for v in (low, high)]
    slope = (ends[1] - ends[0]) / np.where(high > low, high - low, 1.0)
    rest = np.maximum(ends[0] - slope * low, ends[1] - slope * high)
    rest = rest + 2.0**-50 * (ends[0] + ends[1] + np.abs(slope) * (np.abs(low) + np.abs(high))) + TINY
    extra = rest.sum(1) + arith.sums(rest, 1) * (2.0 * gamma(rest.shape[1] + 8))
    most = g.chain.largest(total(slope, g.signal)).diagonal()
    joint = np.maximum(0.0, most + extra) * (1.0 + 2.0**-50)
    best = np.minimum(arith.sums(np.maximum(*ends), 1), joint)
    return np.asarray(np.sqrt(best) * (1.0 + gamma(8)) if squared else best)


def moving(ranges: Ranges | None, start: int) -> Array | None:
    """Entries of the input that have more than one value in a part; None for all of them, and behind other steps than the input.

    Statement: where a segment of inputs is in the part for a while, entries with one value there do not move along it, and what
        their derivatives are does not matter. A segment that only crosses the part is in it almost nowhere.
    """
    region = None if ranges is None else ranges.chain.region
    if region is None or start != 0:
        return None
    free = np.flatnonzero(region.low < region.high)
    return free if 0 < len(free) < len(region.low) else None


def gradients(
    found: Differences, ranges: Ranges | None, output: Signal, middle: bool, free: Array | None = None
) -> Iterator[Gradient]:
    """The ranges of the gradients of all rows of `output`, some at a time, of the entries `free` of the input alone.

    middle: whether to try lines around the middle of all slopes too.
    """
    explicit(found)
    count, bends, values = len(found.blocks), dict[int, _Bend](), Chain()
    if ranges is not None:
        bends = {k: _bend(ranges, *layer) for k, layer in enumerate(found.layers) if layer[0] in ranges.bends}
        values = ranges.chain if bends else values
    base = len(values.blocks)
    rounds, growth = (max(getattr(s, f) for s in (*found.blocks, output)) for f in ("rounds", "growth"))
    behind: dict[int, Signal] = {}
    for key in (*range(count), INPUT):
        readers = [(base + count - 1 - k, b) for k, b in enumerate(found.blocks) if key in b.parts]
        parts, sizes = {j: b.parts[key].T for j, b in readers}, {j: b.size(key).T for j, b in readers}
        behind[key] = Signal(parts, sizes, rounds, False, growth)
    widest = max(found.sizes, default=1)
    at_once = max(1, min(_MANY, _AT_ONCE // (widest * max(widest, found.inputs))))
    for first in range(0, output.height, at_once):
        g = output.rows(range(first, min(first + at_once, output.height)))
        charge(2 * found.inputs * g.height)  # the rows of all gradients are kept
        chain = values.continued(g.height)
        chain.kinds = (0, 1) if bends else (0,)
        # Lines that follow the values are the better ones nearly always: alone they take half the time.
        inner = (1,) if found.cuts else ()
        chain.stops = set(chain.stops or ()) if found.cuts else None
        for key in (*reversed(range(count)), INPUT):
            b, n = behind[key], found.inputs if key == INPUT else found.sizes[key]
            entries, terms = (g.parts[key].T, g.size(key).T) if key in g.parts else np.zeros((2, n, g.height))
            b = b._replace(parts=b.parts | {ROW: entries}, sizes=(b.sizes or {}) | {ROW: terms})
            if key == INPUT:
                b = b if free is None else b.rows(free)
                yield Gradient(*chain.ranges(b, (*chain.kinds, 2) if middle else chain.kinds), chain, b)
                break
            if key in found.among:
                chain.put(*_shared(chain, b, found.among[key]))
                continue
            low, high = chain.ranges(b, inner)
            if key in found.cuts:
                chain.cut(b, (low, high))
                continue
            chord, around = _products(found.spans[key], low, high)
            joint = chord if key not in bends else _coupled(chord, found.spans[key], low, high, bends[key])
            chain.put(b, chord, joint, around)


def explicit(found: Differences) -> None:
    if any(k in b.parts for k, b in enumerate(found.blocks)):
        raise NotCovered("no gradients through implicit layers: take constants before and behind them")


def _products(q: Array, low: Array, high: Array) -> tuple[Lines, Lines]:
    """Lines around s b with s in [0, q], b in [low, high]: chords of max(0, q b) and min(0, q b); and around the middle s."""
    (s, o), (r, t), most = secant(low, high), secant(-high, -low), np.maximum(np.abs(low), np.abs(high))
    slack, m = 2.0**-49 * q * most + TINY, q / 2
    half = m * most + slack
    ends = np.minimum(q * low, 0.0) - slack, np.maximum(q * high, 0.0) + slack
    return Lines(q * r, -q * t - slack, q * s, q * o + slack, *ends), Lines(m, -half, m, half, *ends)


def _shared(chain: Chain, b: Signal, among: Array) -> tuple[Signal, Lines]:
    """Lines around p_i b with p_i >= 0 of sum 1: the terms of one maximum read the same b."""
    b = b.rows(among[:, 0])
    low, high = chain.ranges(b)
    (slope, offset), one = secant(low, high), np.ones(low.shape[-1])
    ends = np.zeros((2, len(low), int(among.max()) + 1))
    ends[0][:, among], ends[1][:, among] = np.minimum(low, 0.0)[..., None], np.maximum(high, 0.0)[..., None]
    return b, Lines(one, 0.0 * one, slope, offset, ends[0], ends[1], None, among)


class _Bend(NamedTuple):
    """k v + under <= s <= k v + over for slopes s, and |v| <= reach."""

    k: Array
    under: Array
    over: Array
    reach: Array
    v: Signal


def _bend(ranges: Ranges, layer: int, free: Array, least: Array) -> _Bend:
    """Lines around slopes less `least` as functions of the values; for products one factor is the slope of the other."""
    f, (low, high) = ranges.bends[layer]
    at = free if f is not None else np.roll(np.arange(len(low)), len(low) // 2)[free]
    low, high = low[at], high[at]
    zero = np.zeros(len(at))
    k, under, over = (zero + 1.0, zero, zero) if f is None else f.bent(low, high)
    slack = 2.0**-50 * (np.abs(under) + np.abs(over) + np.abs(least)) + TINY
    v = ranges.reads[layer].rows(at)._replace(ends=None)
    return _Bend(k, under - least - slack, over - least + slack, np.maximum(np.abs(low), np.abs(high)), v)


def _coupled(chord: Lines, q: Array, low: Array, high: Array, bend: _Bend) -> Lines:
    """Lines around s b where s in [0, q] itself lies between lines k v + under and k v + over.

    Statement: s b <= high s and s b <= q b + low s - q low, and so is their mean; -(s b) = s (-b).
    """
    k, under, over, reach, v = bend
    factor, m, most = (low / 2 + high / 2) * k, q / 2, np.maximum(np.abs(low), np.abs(high))

    def above(low: Array, high: Array) -> Array:
        first, last = (end * np.where(end >= 0, over, under) for end in (low, high))
        return np.asarray((first + last - q * low) / 2)

    slack = 2.0**-48 * most * (q + np.abs(under) + np.abs(over) + np.abs(k) * reach) + TINY
    return chord._replace(below=m, under=-above(-high, -low) - slack, above=m, over=above(low, high) + slack,
                          also=(factor, v))  # fmt: skip
