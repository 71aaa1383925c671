"""Scores of which some are -infinity, as masks of attention make them. A softmax alone reads them: e to that power is 0."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lipverify.checkers.kernel.program import Array, Softmax, View
from lipverify.checkers.reader.building import Builder, Missing, Operand, Stored, Value, size_of, weights
from lipverify.checkers.reader.calls import same_kind
from lipverify.checkers.reader.refusals import need

_READ = "infinities ahead of anything but a softmax are not covered by the checker"


@dataclass(frozen=True)
class Masked(Missing):
    """Numbers where `kept` [*shape] says so, -infinity elsewhere."""

    value: Value
    kept: Array


def lost(p: Builder, x: Operand) -> bool:
    """Whether stored numbers hold -infinity."""
    if not isinstance(x, Stored) or x.array.dtype.kind != "f":
        return False
    p.charge(x.array.size)
    return bool(np.isneginf(x.array).any())


def added(p: Builder, operands: Sequence[Value | Stored]) -> Masked:
    """Computed numbers plus a stored mask: -infinity plus a number is -infinity."""
    x, mask = operands if isinstance(operands[0], Value) else operands[::-1]
    need(isinstance(x, Value) and isinstance(mask, Stored), _READ)
    assert isinstance(x, Value)
    assert isinstance(mask, Stored)
    same_kind([x, mask], "Add")
    p.charge(4 * size_of(np.broadcast_shapes(x.shape, mask.shape)))
    there = ~np.isneginf(mask.array)
    offset, rounded = weights(mask.showing(np.where(there, mask.array, 0)))
    need(rounded == 0, "a mask of rounded numbers is not covered by the checker")
    y = p.scaled(x, 1.0, 0, offset)
    y = y.showing(np.broadcast_to(y.places, np.broadcast_shapes(x.shape, mask.shape)))
    return Masked(_READ, y, np.broadcast_to(there, y.shape))


def chosen(p: Builder, condition: Array, a: Value | Stored, b: Value | Stored) -> Masked:
    """One of two tensors, by a stored condition: computed numbers, and a stored mask."""
    same_kind([a, b], "Where")
    shape = np.broadcast_shapes(condition.shape, a.shape, b.shape)
    p.charge(6 * size_of(shape))
    sides = []
    for x in (a, b):
        there = ~np.isneginf(x.array) if isinstance(x, Stored) else np.ones(x.shape, bool)
        finite = x.showing(np.where(there, x.array, 0)) if isinstance(x, Stored) else x
        sides.append((p.computed(finite), np.broadcast_to(there, shape)))
    sources, places = p.joined([value for value, _ in sides])
    value = p.tidy(Value(sources, np.where(condition, *places), a.kind))
    return Masked(_READ, value, np.where(condition, sides[0][1], sides[1][1]))


def kept_softmax(p: Builder, x: Value, kept: Array, index: Array) -> Value:
    """Softmax of every line of index [lines, count] of positions of x over the entries that are kept [*shape of x]; 0 for others.

    Raises:
        NotCovered: of a line nothing is kept; a runtime makes no number of it.
    """
    p.charge(6 * index.size)
    mask, shown, start = kept.reshape(-1)[index], x.places.ravel(), 0
    counts = mask.sum(1)
    need(bool((counts > 0).all()), "a softmax over no entry")
    sources: list[int] = []
    places = np.full(index.size, -1)
    # Lines of one length are one step.
    for count in np.unique(counts):
        own = index[counts == count][mask[counts == count]]
        groups = np.arange(own.size).reshape(-1, count)
        y = p.add(Softmax(View(x.sources, shown[own]), own.size, groups), [own.size], x.kind)
        places[own] = start + y.places
        sources.extend(y.sources)
        start += own.size
    return Value(tuple(sources), places.reshape(x.shape), x.kind)


def lines_of(p: Builder, x: Value, axis: int, rest: bool = False) -> Array:
    """Positions of x [lines, count] along an axis; rest: along all axes from this one on."""
    places = p.positions(x)
    p.charge(2 * places.size)
    if rest:
        return places.reshape(math.prod(x.shape[:axis]), -1)
    return np.ascontiguousarray(np.moveaxis(places, axis, -1)).reshape(-1, x.shape[axis])
