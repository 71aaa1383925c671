"""Groups of entries: pools, reductions, maxima and minima, sorts, reflections."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from lipverify.checkers.kernel.program import (
    Array,
    Order,
    Reflect,
)
from lipverify.checkers.reader.building import (
    Builder,
    Missing,
    Stored,
    Value,
)
from lipverify.checkers.reader.calls import Call, same_kind
from lipverify.checkers.reader.moves import Results, Run, axes_of, axis_of
from lipverify.checkers.reader.refusals import need
from lipverify.checkers.reader.sums import extreme, old_shapes, stacked
from lipverify.checkers.reader.windows import pool_windows


def _pool(p: Builder, c: Call) -> Results:
    x = c.value(p, 0)
    need(x.shape[0] == 1, "a pool over several samples")
    groups, shape = pool_windows(p, c, p.positions(x))
    if c.op == "MaxPool":
        # Only the order of positions, which nobody may use, depends on this.
        c.flag("storage_order", 0)
        return extreme(p, x, groups, shape, False), Missing(
            "positions of maxima are not covered by the checker"
        )
    return [_averaged(p, x, groups, shape, c.flag("count_include_pad", 0))]


def _averaged(p: Builder, x: Value, groups: Array, shape: Sequence[int], all_of_them: bool) -> Value:
    counts = (groups >= 0).sum(1)
    need(bool((counts > 0).all()), "a group without entries")
    counts = np.full_like(counts, groups.shape[1]) if all_of_them else counts
    p.charge(groups.size)
    return p.summed(x, groups, shape, np.ones(groups.shape[1]) / counts[:, None], 1)


def _global_pool(p: Builder, c: Call) -> Results:
    x = c.value(p, 0)
    need(x.places.ndim >= 3, "a pool without an image")
    groups, shape = (
        p.positions(x).reshape(math.prod(x.shape[:2]), -1),
        [*x.shape[:2], *(1,) * (x.places.ndim - 2)],
    )
    if c.op == "GlobalMaxPool":
        return [extreme(p, x, groups, shape, False)]
    return [_averaged(p, x, groups, shape, True)]


def _reduced(p: Builder, c: Call) -> Results:
    """Sums, means, maxima and minima over axes."""
    x = c.value(p, 0)
    n = x.places.ndim
    axes = c.listed(1, "axes", 13 if c.op == "ReduceSum" else 18)
    keep, idle = c.flag("keepdims", 1), False
    if c.words or c.version >= (13 if c.op == "ReduceSum" else 18):
        idle = c.flag("noop_with_empty_axes", 0)
    if not axes and idle:
        need(
            c.op in ("ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin"),
            "a reduction over nothing is not covered by the checker",
        )
        return [x]
    axes = axes or list(range(n))
    axes = axes_of(axes, n)
    shape = [1 if a in axes else s for a, s in enumerate(x.shape) if keep or a not in axes]
    if c.op in ("ReduceSumSquare", "ReduceL1", "ReduceL2"):
        x = p.scalar(x, "Abs" if c.op == "ReduceL1" else "Square")
    groups = (
        p.positions(x).transpose(*(a for a in range(n) if a not in axes), *axes).reshape(math.prod(shape), -1)
    )
    if c.op in ("ReduceMax", "ReduceMin"):
        return [extreme(p, x, groups, shape, c.op == "ReduceMin")]
    if c.op == "ReduceMean":
        return [_averaged(p, x, groups, shape, True)]
    found = p.summed(x, groups, shape, np.ones(groups.shape[1]))
    return [p.scalar(found, "Sqrt") if c.op == "ReduceL2" else found]


def _extremes(p: Builder, c: Call) -> Results:
    """Max and Min of several operands."""
    operands = c.all()
    need(
        not all(isinstance(x, Stored) for x in operands),
        f"{c.op} of stored tensors is not covered by the checker",
    )
    same_kind(operands, c.op)
    old_shapes(c, operands)
    values = [p.computed(x) for x in operands]
    return [extreme(p, *stacked(p, values), c.op == "Min")] if len(values) > 1 else [values[0]]


def _top(p: Builder, c: Call) -> Results:
    """The largest or smallest entries along an axis, in order: a sort, of which some are read."""
    x, count = c.value(p, 0), c.integers_at(1) if c.version >= 10 else [c.integer("k", None)]
    axis = axis_of(c.integer("axis", -1), x.places.ndim)
    largest, ordered = (c.flag("largest", 1), c.flag("sorted", 1)) if c.version >= 11 else (True, True)
    need(len(count) == 1 and 0 < count[0] <= x.shape[axis], "more entries than there are")
    need(ordered, "largest entries in no particular order are not covered by the checker")
    places = _sorted_along(p, x, axis, x.shape[axis], largest)
    kept = np.take(places.places, np.arange(count[0]), axis)
    positions_of = Missing("positions of the largest entries are not covered by the checker")
    return places._replace(places=kept), positions_of


def _sorted_along(p: Builder, x: Value, axis: int, group: int, descending: bool) -> Value:
    """x, consecutive groups along an axis sorted."""
    index: Array = np.moveaxis(p.positions(x), axis, -1)
    p.charge(3 * index.size)
    order = Order(p.view(x), index.size, np.ascontiguousarray(index).reshape(-1, group), True)
    places = p.add(order, [index.size], x.kind).places.reshape(-1, group)[:, :: -1 if descending else 1]
    return Value((len(p.steps) - 1,), np.moveaxis(places.reshape(index.shape), -1, axis), x.kind)


def _group_sort(p: Builder, c: Call) -> Results:
    """A word of certificates: consecutive groups along an axis, in ascending order unless `descending`."""
    x, axis, group = c.value(p, 0), c.integer("axis", None), c.integer("group", None)
    need(0 < axis < x.places.ndim and group > 0 and x.shape[axis] % group == 0, "groups")
    return [_sorted_along(p, x, axis, group, c.flag("descending", 0))]


def _reflected(p: Builder, c: Call) -> Results:
    """A word of certificates: on runs along an axis x where w'x > 0, else x - 2 w w'x / |w|^2."""
    x, axis = c.value(p, 0), c.integer("axis", None)
    vectors = c.reals(1, x.kind)
    need(vectors.ndim == 2 and bool(vectors.any(1).all()) and 0 < axis < x.places.ndim, "reflections")
    need(x.shape[axis] == vectors.size, "reflections of another size")
    known = np.abs(vectors[vectors != 0])
    need(
        bool(((known >= 2.0**-500) & (known <= 2.0**500)).all()),
        "numbers near the ends of float64 are not covered by the checker",
    )
    # The reflection does not change with the length of w: a power of two is exact.
    vectors = np.ldexp(vectors, -np.frexp(np.abs(vectors).max(1, keepdims=True))[1])
    index = np.ascontiguousarray(np.moveaxis(p.positions(x), axis, -1)).reshape(-1, *vectors.shape)
    p.charge(2 * index.size)
    return [p.add(Reflect(p.view(x), x.places.size, index, vectors), x.shape, x.kind)]


GROUPS: dict[str, tuple[str, Run]] = {
    "MaxPool": ("1 8 10 11 12 22", _pool),
    "AveragePool": ("7 10 11 19 22", _pool),
    **dict.fromkeys(("GlobalAveragePool", "GlobalMaxPool"), ("1 22", _global_pool)),
    "ReduceSum": ("1 11 13", _reduced),
    "ReduceMean": ("1 11 13 18", _reduced),
    **dict.fromkeys(("ReduceMax", "ReduceMin"), ("1 11 12 13 18 20", _reduced)),
    **dict.fromkeys(("ReduceSumSquare", "ReduceL1", "ReduceL2"), ("1 11 13 18", _reduced)),
    **dict.fromkeys(("Max", "Min"), ("6 8 12 13", _extremes)),
    "TopK": ("1 10 11 24", _top),
}
SORTS: dict[str, tuple[str, Run]] = {"GroupSort": ("", _group_sort), "Householder": ("", _reflected)}
