"""Results of steps as linear functions of an input and of neurons, with a bound on every entry's error."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from lipverify.checkers.kernel.account import charge
from lipverify.checkers.kernel.arithmetic import TINY, Array, gamma
from lipverify.errors import NotCovered

_CHUNK, _NARROW, _FEW, _THIN = 1 << 23, 256, 4, 32
INPUT, ONE, ROW = -1, -2, -3
"""Sources that are no neurons: the input, the number 1 before constants, and 1 for one of many chains, 0 for the others."""
Parts = dict[int, Array]


class Signal(NamedTuple):
    """Sum over sources of matrix @ source; exact entries differ by at most gamma(rounds) times the sizes, and underflows.

    parts: source -> [size, source size], never empty; sizes: of all terms, None where they are the absolute entries. plain:
    every row copies one entry or none of each source, so that products with it are exact. growth: log2 of what steps can make of
    an underflow of 2^-1074. ends: [2, size], what the results are known to lie between over a region. least: log2 of a lower
    bound of the sizes that are not 0; far from underflow a size of 0 is an entry of 0.
    """

    parts: Parts
    sizes: Parts | None = None
    rounds: int = 0
    plain: bool = False
    growth: float = 0.0
    ends: Array | None = None
    least: float = 0.0

    @property
    def height(self) -> int:
        return len(next(iter(self.parts.values())))

    def size(self, key: int) -> Array:
        return np.abs(self.parts[key]) if self.sizes is None else self.sizes[key]

    def errors(self, key: int) -> Array:
        return self.size(key) * (2.0 * gamma(self.rounds)) + (TINY if self.rounds else 0.0)

    def rows(self, index: Sequence[int] | Array) -> Signal:
        """Some rows; -1 gives zeros."""
        at = np.asarray(index, dtype=np.int64)
        sizes = None if self.sizes is None else {k: _taken(m, at) for k, m in self.sizes.items()}
        ends = None if self.ends is None else np.append(self.ends, [[0.0], [0.0]], 1)[:, at]
        return self._replace(parts={k: _taken(m, at) for k, m in self.parts.items()}, sizes=sizes, ends=ends)


def alike(x: Signal) -> tuple[Array, Array]:
    """Rows of which none is missing, as numbers of rows, and for every row which of these it is equal to."""
    columns = [*x.parts.values(), *(x.sizes or {}).values()]
    columns += [] if x.ends is None else [x.ends.T]
    charge(0, 4 * sum(m.size for m in columns))
    # Rows are compared with the first of those with the same weighted sum: NaN and unequal ones stand for themselves.
    sums = sum(m @ np.cos(np.arange(1.0, m.shape[1] + 1)) for m in columns)
    _, first, where = np.unique(sums, return_index=True, return_inverse=True)
    equal = np.all([(m == m[first[where]]).all(1) for m in columns], axis=0)
    others = np.flatnonzero(~equal)
    where[others] = len(first) + np.arange(len(others))
    return np.concatenate([first, others]), where


def product(a: Array, m: Array) -> Array:
    """a @ m. Rows that begin at one column, as those of one position of a convolution do, go together over what they read."""
    if a.ndim > 2:
        return product(a.reshape(-1, a.shape[-1]), m).reshape(*a.shape[:-1], -1)
    charge(0, a.size * m.shape[1])
    if a.size < _CHUNK >> 6 or m.shape[1] < _THIN:
        return a @ m
    known = a != 0
    if 4 * np.count_nonzero(known) > a.size:
        return a @ m
    first, out = known.argmax(1), np.zeros((len(a), m.shape[1]))
    order = first.argsort(kind="stable")
    for rows in np.split(order, np.flatnonzero(np.diff(first[order])) + 1):
        own = m[read := known[rows].any(0)]
        written = own.any(0)
        out[np.ix_(rows, written)] = a[np.ix_(rows, read)] @ own[:, written]
    return out


def identity(key: int, size: int) -> Signal:
    charge(size * size)
    return Signal({key: np.eye(size)}, None, 0, True)


def stored(key: int, matrix: Array) -> Signal:
    """A matrix of stored numbers."""
    charge(matrix.size)
    sizes = np.abs(matrix[matrix != 0])
    growth = math.log2(max(1.0, float(sizes.max(initial=0.0)) * matrix.shape[1]))
    return Signal({key: matrix}, None, 0, False, growth, None, min(0.0, math.log2(sizes.min(initial=1.0))))


def _taken(m: Array, index: Array) -> Array:
    """Rows of m, zeros where the index is -1. Rows that follow one another are shown, not copied."""
    if len(index) and 0 <= index[0] <= index[-1] < len(m) and (np.diff(index) == 1).all():
        return m[index[0] : index[-1] + 1]
    charge(index.size * m.shape[1])
    none = index < 0
    out = m[index] if not none.all() else np.empty((len(index), m.shape[1]))
    out[none] = 0.0
    return out


def stacked(signals: Sequence[Signal]) -> Signal:
    """Rows of several signals, one after another."""
    if len(signals) == 1:
        return signals[0]
    some = {k: m for s in signals for k, m in s.parts.items()}

    def joined(k: int, sizes: bool) -> Array:
        own = [(s.size(k) if sizes else s.parts[k]) if k in s.parts else np.zeros((s.height, some[k].shape[1]))
               for s in signals]  # fmt: skip
        charge(sum(m.size for m in own))
        return np.concatenate(own)

    sizes = None if all(s.sizes is None for s in signals) else {k: joined(k, True) for k in some}
    known = [s.ends for s in signals if s.ends is not None]
    return Signal({k: joined(k, False) for k in some}, sizes, max(s.rounds for s in signals),
                  all(s.plain for s in signals), max(s.growth for s in signals),
                  np.concatenate(known, 1) if len(known) == len(signals) else None,
                  min(s.least for s in signals))  # fmt: skip


def scaled(factor: Array, x: Signal) -> Signal:
    """Row by row times factor [size]."""
    return mapped(factor[:, None, None], np.arange(len(factor))[:, None, None], x)


def total(factor: Array, x: Signal) -> Signal:
    """The rows factor [rows, size] @ x."""
    return mapped(factor[None], np.arange(factor.shape[1])[None, None], x)


def added(first: Signal, second: Signal) -> Signal:
    """The sum, with one rounding more where sources are in both; without ends."""
    common = first.parts.keys() & second.parts.keys()
    charge(2 * sum(first.parts[k].size for k in common))
    parts = first.parts | second.parts | {k: first.parts[k] + second.parts[k] for k in common}
    exact = not common and first.sizes is None and second.sizes is None
    sizes = None if exact else {k: x.size(k) for x in (first, second) for k in x.parts}
    sizes = sizes and sizes | {k: first.size(k) + second.size(k) for k in common}
    again, plain = bool(common), first.plain and second.plain and not common
    return Signal(parts, sizes, max(first.rounds, second.rounds) + again, plain,
                  max(first.growth, second.growth) + again, None, min(first.least, second.least))  # fmt: skip


def sprouted(key: int, v: Signal, factor: Array, free: Array) -> Signal:
    """factor [rows] times v, plus, in the rows `free`, a number each of the source `key`, which v is no function of."""
    charge(v.height * len(free))
    if len(free) and key in v.parts:
        raise ValueError("neurons that are functions of themselves")
    spread = np.zeros((v.height, len(free)))
    spread[free, np.arange(len(free))] = 1.0
    if len(free) and not factor.any():
        return Signal({key: spread}, None, 0, True, v.growth)
    copies = bool(np.isin(factor, (0.0, 1.0)).all())
    y = v.rows(np.where(factor > 0, np.arange(v.height), -1)) if copies else scaled(factor, v)
    if not len(free):
        return y
    sizes = None if y.sizes is None else y.sizes | {key: spread}
    return y._replace(parts=y.parts | {key: spread}, sizes=sizes)


def mapped(kernel: Array, index: Array, x: Signal, offset: Array | None = None, rounded: int = 0) -> Signal:
    """The map of an `Affine` step on what its view shows, without its offset unless that is given."""

    def image(kernel: Array, m: Array) -> Array:
        (g, p, t), width = index.shape, m.shape[1]
        charge(g * p * kernel.shape[1] * width)
        if kernel.shape[1] == 1 and t <= _FEW:
            charge(0, index.size * width)
            shown = (_taken(m, index[:, :, k].ravel()).reshape(g, p, width) for k in range(t))
            terms = (kernel[:, 0, k, None, None] * rows for k, rows in enumerate(shown))
            return np.asarray(sum(terms)).reshape(-1, width)
        if p * g == 1 or width <= _NARROW:
            m = np.concatenate([m, np.zeros((1, width))])
            out, step = np.empty((g, kernel.shape[1], p, width)), max(1, _CHUNK // index.size)
            for i in range(0, width, step):
                charge(0, index.size * kernel.shape[1] * min(step, width - i))
                out[..., i : i + step] = np.swapaxes(kernel[:, None] @ m[:, i : i + step][index], 1, 2)
            return out.reshape(-1, width)
        # What one position of a convolution reads depends on few columns, and on nothing where activations are off.
        out, known = np.zeros((g, kernel.shape[1], p, width)), m != 0
        alive = np.append(known.any(1), False)
        for i, j in np.ndindex(g, p):
            on = alive[index[i, j]]
            at = index[i, j][on]
            columns = known[at].any(0).nonzero()[0]
            charge(0, at.size * (width + kernel.shape[1] * columns.size))
            out[i][:, j, columns] = kernel[i][:, on] @ m[at[:, None], columns]
        return out.reshape(-1, width)

    parts = {key: image(kernel, m) for key, m in x.parts.items()}
    absolute, terms = np.abs(kernel), kernel.shape[2]
    # Behind an entry with one term there is no sum, and no product where one factor is 0, 1 or -1.
    one = terms == 1 and (x.plain or bool(np.isin(absolute, (0.0, 1.0)).all()))
    if x.plain and not one:
        known = (absolute != 0).astype(np.float64)
        one = max(image(known, 1.0 * (m != 0)).max(initial=0) for m in x.parts.values()) <= 1
    rounds = x.rounds + rounded + (0 if one else terms + 2)
    sizes = {key: image(absolute, x.size(key)) for key in x.parts} if rounds else None
    if offset is not None:
        sizes = sizes or {key: np.abs(m) for key, m in parts.items()}
        sizes[ONE] = sizes.get(ONE, 0.0) + np.abs(offset)[:, None]
        parts[ONE], rounds = parts.get(ONE, 0.0) + offset[:, None], rounds + 1
    growth = x.growth + math.log2(max(1.0, float(absolute.sum(2).max()) * 2, terms))
    if growth > 600:
        raise NotCovered("a network whose numbers may leave the range of float64 is not covered")
    least = x.least + math.log2(min(1.0, float(absolute[absolute > 0].min(initial=1.0))))
    plain = one and x.plain and offset is None and bool(np.isin(kernel, (0.0, 1.0)).all())
    ends = None
    if x.ends is not None:
        middle, slack = x.ends.sum(0)[:, None] / 2, 4.0 * gamma(terms + rounded + 8)
        apart = np.maximum(x.ends[1][:, None] - middle, middle - x.ends[0][:, None]) * (1.0 + slack) + TINY
        shift = np.zeros((1, 1)) if offset is None else offset[:, None]
        centre, spread = image(kernel, middle) + shift, image(absolute, apart)
        spread = spread + slack * (image(absolute, np.abs(middle) + apart) + np.abs(shift)) + TINY
        ends = np.concatenate([centre - spread, centre + spread], 1).T
    return Signal(parts, sizes, rounds, plain, growth, ends, least)
