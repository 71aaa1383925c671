"""A program under construction: values as places in the results of steps, and an account of everything that is made.

Every array the reader makes is charged before it exists, so that no file asks for more memory or time than the account holds.
One sample is followed: an open first axis of the input has size 1; one of a fixed size belongs to the sample.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from lipverify.checkers.kernel.program import (
    MAX_SIZE,
    Affine,
    Array,
    Constant,
    Input,
    Lattice,
    Scalar,
    Step,
    View,
    checked,
)
from lipverify.checkers.reader.refusals import need
from lipverify.errors import NotCovered

ROOM, ROOM_PER_BYTE = 1 << 27, 1 << 4
"""Numbers and places in all arrays of one program, and a few for every source that is looked at; more for large files."""
WORK, WORK_PER_BYTE = 1 << 36, 1 << 10
"""Multiplications that evaluating all affine steps once may take."""
_SOURCE = 128
MAX_AXES = 12
FLOATS: tuple[np.dtype[Any], ...] = (np.dtype("<f2"), np.dtype("<f4"), np.dtype("<f8"))
INT4, UINT4, BFLOAT16 = (
    np.dtype([("int4", "i1")]),
    np.dtype([("uint4", "u1")]),
    np.dtype([("bfloat16", "<f4")]),
)
"""Types that numpy does not have, as records of one wider number: no operator takes them for that number by accident."""


class Value(NamedTuple):
    """Computed numbers: `places` [*shape] in the joined results of `sources`, -1 the number 0. kind: their type in the file."""

    sources: tuple[int, ...]
    places: Array
    kind: np.dtype[Any]

    @property
    def shape(self) -> tuple[int, ...]:
        return self.places.shape

    def showing(self, places: Array) -> Value:
        return self._replace(places=places)


class Stored(NamedTuple):
    """Numbers that no input changes. kind: their type in the file; array: they, of that type or as float64.

    The real numbers are within gamma(rounded) of those of the array, relatively.
    """

    array: Array
    kind: np.dtype[Any]
    rounded: int = 0

    @property
    def shape(self) -> tuple[int, ...]:
        return self.array.shape

    def showing(self, array: Array) -> Stored:
        return self._replace(array=array)


@dataclass(frozen=True)
class Missing:
    """A result that cannot be used, and why."""

    reason: str


Operand = Value | Stored | Missing | None


def stored(array: Array) -> Stored:
    """Numbers of the file."""
    return Stored(array, array.dtype)


class TooLarge(NotCovered):
    """The account of a program is spent: nothing more is read of the file."""


class Builder:
    """Steps so far. Raises NotCovered for what files of `size` bytes may not take, and numbers near the ends of float64."""

    def __init__(self, shape: Sequence[int], kind: np.dtype[Any], size: int) -> None:
        self.room, self.work = ROOM + ROOM_PER_BYTE * size, WORK + WORK_PER_BYTE * size
        self.steps: list[Step] = []
        self.constants: dict[tuple[int, int], tuple[Array, Value]] = {}
        self.charge(size_of(shape))
        need(min(shape, default=0) > 0, f"inputs of shape {list(shape)} are not covered by the checker")
        self.input = self.add(Input(View((), np.empty(0, np.int64)), math.prod(shape)), shape, kind)

    def charge(self, count: int) -> int:
        """Takes `count` numbers from the account."""
        self.room -= count
        if count < 0 or self.room < 0:
            raise TooLarge("a model too large to check")
        return count

    def positions(self, x: Value) -> Array:
        """The places of a value's numbers in its own view."""
        return np.arange(self.charge(x.places.size)).reshape(x.places.shape)

    def add(self, step: Step, shape: Sequence[int], kind: np.dtype[Any]) -> Value:
        need(math.prod(shape) == step.size, "a result of another size")
        self.charge(step.size)
        self.steps.append(checked(step, self.steps))
        return Value((len(self.steps) - 1,), np.arange(step.size).reshape(shape), kind)

    def view(self, x: Value) -> View:
        self.charge(x.places.size + _SOURCE * len(x.sources))
        return View(x.sources, x.places.ravel())

    # -- stored numbers

    def computed(self, x: Operand) -> Value:
        """A value; stored floats become a constant."""
        if isinstance(x, Stored):
            return self.constant(x)
        need(not isinstance(x, Missing), x.reason if isinstance(x, Missing) else "")
        assert isinstance(x, Value)
        return x

    def constant(self, x: Stored) -> Value:
        """Stored numbers as a step, made once; numbers that are rounded as multiples of 1."""
        key = id(x.array), x.rounded
        if key not in self.constants:
            self.charge(x.array.size)
            need(x.array.size > 0, "a tensor without numbers")
            values, rounded = weights(x)
            none = View((), np.empty(0, np.int64))
            if rounded:
                one = self.add(Constant(none, 1, np.ones(1)), (1,), x.kind)
                kernel, index = values.reshape(-1, 1, 1), np.zeros((values.size, 1, 1), np.int64)
                found = self.affine(one, kernel, index, values.shape, rounded)
            else:
                found = self.add(Constant(none, values.size, values.ravel()), values.shape, x.kind)
            # The array is kept, so that its identity stays its own.
            self.constants[key] = x.array, found
        return self.constants[key][1]

    # -- values

    def joined(self, values: Sequence[Value]) -> tuple[tuple[int, ...], list[Array]]:
        """Places of several values in one list of sources."""
        sources = tuple(dict.fromkeys(s for v in values for s in v.sources))
        if len(sources) == 1:
            return sources, [v.places for v in values]
        sizes = [self.steps[s].size for s in sources]
        starts = dict(zip(sources, np.cumsum([0, *sizes]).tolist(), strict=False))
        found = []
        for v in values:
            self.charge(v.places.size + sum(_SOURCE + self.steps[s].size for s in v.sources))
            table = [np.arange(self.steps[s].size) + starts[s] for s in v.sources]
            found.append(np.append(np.concatenate([*table, np.empty(0, np.int64)]), -1)[v.places])
        return sources, found

    def tidy(self, x: Value) -> Value:
        """The same numbers, without sources of which nothing is read."""
        if len(x.sources) < 2:
            return x
        self.charge(x.places.size + _SOURCE * len(x.sources))
        ends = np.cumsum([self.steps[s].size for s in x.sources])
        used = np.unique(np.searchsorted(ends, x.places[x.places >= 0], side="right"))
        if len(used) == len(x.sources):
            return x
        if not len(used):
            return x._replace(sources=x.sources[:1])  # every place is -1: no source is read
        starts = ends - [self.steps[s].size for s in x.sources]
        kept = [self.steps[x.sources[k]].size for k in used]
        shift = np.zeros(len(ends), np.int64)
        shift[used] = np.cumsum([0, *kept])[:-1] - starts[used]
        owner = np.searchsorted(ends, np.maximum(x.places, 0), side="right")
        places = np.where(x.places >= 0, x.places + shift[owner], -1)
        return Value(tuple(x.sources[k] for k in used), places, x.kind)

    # -- affine steps

    def affine(self, x: Value, kernel: Array, index: Array, shape: Sequence[int], rounded: int = 0,
               lattice: Lattice | None = None, offset: Array | None = None) -> Value:  # fmt: skip
        """kernel: [groups, out, terms]; index: [groups, positions, terms]; offset: anything that broadcasts to `shape`."""
        size = size_of(shape)
        self.charge(kernel.size + index.size + (size if offset is not None else 0))
        self.work -= index.size * kernel.shape[1]
        if self.work < 0:
            raise TooLarge("a model of too many multiplications to check")
        known = np.abs(kernel[kernel != 0])
        need(
            bool(((known >= 2.0**-500) & (known <= 2.0**500)).all()),
            "numbers near the ends of float64 are not covered by the checker",
        )
        offset = (
            None if offset is None else np.broadcast_to(np.asarray(offset, np.float64), shape).reshape(-1)
        )
        return self.add(Affine(self.view(x), size, kernel, index, offset, rounded, lattice), shape, x.kind)

    def scaled(self, x: Value, factor: Array | float, rounded: int = 0, offset: Array | None = None) -> Value:
        """Entry by entry factor * x + offset, all three broadcast."""
        shape = np.broadcast_shapes(x.shape, np.shape(factor), () if offset is None else offset.shape)
        self.charge(3 * size_of(shape))
        kernel = np.broadcast_to(np.float64(factor), shape).reshape(-1, 1, 1)
        x = Value(x.sources, np.broadcast_to(x.places, shape), x.kind)
        # A 1 that is rounded stands for another number.
        if not rounded and bool((kernel == 1).all()) and (offset is None or not offset.any()):
            return x
        return self.affine(x, kernel, np.arange(kernel.size).reshape(-1, 1, 1), shape, rounded, None, offset)

    def summed(self, x: Value, groups: Array, shape: Sequence[int], terms: Array, rounded: int = 0) -> Value:
        """Weighted sums of groups [n, count] of places in the view of x. terms: [count], or [n, count]."""
        if terms.ndim > 1 and bool((terms != terms[0]).any()):
            return self.affine(x, terms[:, None], groups[:, None], shape, rounded)
        return self.affine(x, np.atleast_2d(terms)[:1, None], groups[None], shape, rounded)

    def scalar(
        self,
        x: Value,
        law: str,
        settings: Mapping[str, float] | None = None,
        slopes: Array | None = None,
        rounded: int = 0,
    ) -> Value:
        """The activation `law` of every entry; rounded: of its settings, at most 1."""
        given = tuple(sorted((key, float(value)) for key, value in (settings or {}).items()))
        need(not any(math.isnan(v) for _, v in given), "a setting of an activation that is no number")
        step = Scalar(self.view(x), x.places.size, law, given, slopes, rounded)
        return self.add(step, x.shape, x.kind)


def size_of(shape: Sequence[int]) -> int:
    """How many numbers a shape holds, before any of them exists."""
    need(len(shape) <= MAX_AXES and all(n >= 0 for n in shape), "a tensor of too many axes")
    size = math.prod(shape)
    need(size <= MAX_SIZE, "a tensor too large to check")
    return size


def weights(x: Stored) -> tuple[Array, int]:
    """Stored floats as float64, and how many roundings are behind them."""
    need(x.kind in FLOATS, "integers where real numbers are expected")
    need(bool(np.isfinite(x.array).all()), "a tensor that is not finite")
    return x.array.astype(np.float64, copy=False), x.rounded


def real(x: Stored) -> Array:
    """Stored floats as float64, exactly."""
    values, rounded = weights(x)
    need(
        rounded == 0,
        "stored numbers that are rounded where exact ones are needed are not covered by the checker",
    )
    return values
