"""Values as functionals of rows of families: what is the same stays the same, whatever rounding did to it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from lipverify.checkers.kernel.arithmetic import TINY, Array, sums

UP = 1.0 + 2.0**-46
"""More than the few roundings of any one line below."""
DOWN = 1.0 - 2.0**-46


class Shared(NamedTuple):
    """Of scores (X u + x)'(Y v + y), for both factors: numbers of their vectors, numbers of their constants, and slopes without
    what is common to all scores that share the vector of this factor, where the constants of the other are equal."""

    vectors: tuple[Array, Array]
    constants: tuple[Array, Array]
    slopes: tuple[Array, Array]


@dataclass(frozen=True)
class Family:
    """Vectors of one width: of each its largest l2 norm, [count], and its constant, slope 2^power, [count].

    step, kind: which one it is of, and what it does. average: each holds weights that are not negative and sum to 1, and slope
    bounds the l1 norm of its change. nearby: of weights by distances, a family and its rows [count, width] that are compared.
    """

    step: int
    kind: str
    width: int
    slope: Array
    size: Array
    power: int = 0
    average: bool = False
    shared: Shared | None = None
    nearby: tuple[int, Array] | None = None


class Part(NamedTuple):
    """What entries read of one family, in up to S rows each: the rows [size, S], -1 for none, and the places [size, S] of
    coefficients among base [places, width], which are known within `error` of the same shape."""

    family: int
    rows: Array
    places: Array
    base: Array
    error: Array


class Form(NamedTuple):
    """Entries as functionals of rows, plus constants: places [size] among numbers that are known within `error`, -1 for 0.

    One place is one real number, whatever rounding did to it, and one place of a part one real vector: entries of the same rows
    and places are the same functional. Stored numbers that are rounded have places of their own: equal ones may stand for others.
    """

    parts: tuple[Part, ...]
    places: Array
    base: Array
    error: Array

    @property
    def most(self) -> Array:
        """The largest they can be in size: [size]."""
        known = np.append((np.abs(self.base) + self.error) * UP, 0.0)
        return np.where(self.places < 0, 0.0, known[self.places])

    def take(self, entries: Array) -> Form:
        """Some entries, -1 the number 0: [any shape] flat."""
        e = entries.reshape(-1)
        gone = e < 0
        parts = []
        for p in self.parts:
            rows, places = np.where(gone[:, None], -1, p.rows[e]), np.where(gone[:, None], -1, p.places[e])
            if (rows >= 0).any():
                parts.append(p._replace(rows=rows, places=places))
        return Form(tuple(parts), np.where(gone, -1, self.places[e]), self.base, self.error)


def lines(v: Array) -> Array:
    return np.ascontiguousarray(v).reshape(-1, v.shape[-1])


def length(v: Array) -> float:
    return float(np.sqrt(sums(v * v * UP, None)) * UP) if v.any() else 0.0


def distinct(rows: Array) -> Array:
    """The distinct numbers >= 0 of every line [n, m], in order, -1 behind them: [n, most]."""
    ordered = np.sort(rows, 1)
    new = (ordered >= 0) & np.concatenate(
        [np.ones((len(rows), 1), dtype=bool), ordered[:, 1:] != ordered[:, :-1]], 1
    )
    most = max(int(new.sum(1).max(initial=0)), 1)
    place = np.cumsum(new, 1) - 1
    found = np.full((len(rows), most), -1, dtype=np.int64)
    line, column = np.nonzero(new)
    found[line, place[line, column]] = ordered[line, column]
    return found


def sets_of(marks: Array) -> Array:
    """Entries with equal marks [size, m], as sets [count, most] with -1 behind the shorter ones."""
    _, which = np.unique(marks, axis=0, return_inverse=True)
    which = which.reshape(-1)
    order = np.argsort(which, kind="stable")
    counts = np.bincount(which)
    starts = np.cumsum(counts) - counts
    found = np.full((len(counts), int(counts.max())), -1, dtype=np.int64)
    found[which[order], np.arange(len(order)) - starts[which[order]]] = order
    return found


def identities(f: Form) -> Array:
    """A number for every entry, the same for entries that are the same functional."""
    table = np.concatenate([*(v for p in f.parts for v in (p.rows, p.places)), f.places[:, None]], 1)
    return np.asarray(np.unique(table, axis=0, return_inverse=True)[1]).reshape(-1)


def constants(f: Form, sets: Array) -> Array:
    """A number for every vector, the same for those whose constants are the same real numbers."""
    return np.asarray(np.unique(f.places[sets], axis=0, return_inverse=True)[1]).reshape(-1)


def bare(parts: tuple[Part, ...], size: int) -> Form:
    """A form without constants."""
    return Form(parts, np.full(size, -1), np.zeros(0), np.zeros(0))


def shifted(values: Array, power: int) -> Array:
    """values 2^power from above, where small ones underflow; what is no number stays none."""
    return np.asarray(np.where(values != 0, np.ldexp(values, power) + TINY, 0.0))


def times(factor: Array | float, value: Array) -> Array:
    """A product of numbers >= 0 that broadcast, rounded up, never to 0; 0 times what has no bound is 0."""
    factor = np.asarray(factor)
    there = (factor != 0) & (value != 0)
    return np.asarray(
        np.where(there, np.where(there, factor, 0.0) * np.where(there, value, 0.0) * UP + TINY, 0.0)
    )


def joined(forms: Sequence[Form]) -> Form:
    if len(forms) == 1:
        return forms[0]
    sizes = [len(f.places) for f in forms]
    parts = []
    for family in dict.fromkeys(p.family for f in forms for p in f.parts):
        own = [next((p for p in f.parts if p.family == family), None) for f in forms]
        most = max(p.rows.shape[1] for p in own if p is not None)
        base = np.cumsum([0, *(0 if p is None else len(p.base) for p in own)])
        rows, places = (np.full((sum(sizes), most), -1, dtype=np.int64) for _ in range(2))
        start = 0
        for p, n, b in zip(own, sizes, base, strict=False):
            if p is not None:
                rows[start : start + n, : p.rows.shape[1]] = p.rows
                places[start : start + n, : p.rows.shape[1]] = np.where(p.places < 0, -1, p.places + b)
            start += n
        there = [p for p in own if p is not None]
        parts.append(
            Part(
                family,
                rows,
                places,
                *(np.concatenate([getattr(p, name) for p in there]) for name in ("base", "error")),
            )
        )
    starts = np.cumsum([0, *(len(f.base) for f in forms)])
    of = [np.where(f.places < 0, -1, f.places + start) for f, start in zip(forms, starts, strict=False)]
    return Form(tuple(parts), np.concatenate(of), *(np.concatenate([f[k] for f in forms]) for k in (2, 3)))
