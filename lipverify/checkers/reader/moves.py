"""Operators that move numbers and change none: on places of computed numbers, and on stored numbers alike."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from lipverify.checkers.kernel.program import Array
from lipverify.checkers.reader.building import (
    BFLOAT16,
    FLOATS,
    INT4,
    MAX_AXES,
    UINT4,
    Builder,
    Missing,
    Operand,
    Stored,
    Value,
    size_of,
    stored,
)
from lipverify.checkers.reader.calls import Call, same_kind
from lipverify.checkers.reader.choices import Sign, selected
from lipverify.checkers.reader.masks import chosen, lost
from lipverify.checkers.reader.refusals import need

Move = Callable[[Builder, Call, Array], Array]
Results = Sequence[Operand]
Run = Callable[[Builder, Call], Results]


def array_of(x: Value | Stored) -> Array:
    return x.places if isinstance(x, Value) else x.array


def like(p: Builder, x: Value | Stored, array: Array) -> Value | Stored:
    """The operand with its numbers moved."""
    p.charge(array.size)
    return p.tidy(x.showing(array)) if isinstance(x, Value) else x.showing(array)


def moving(move: Move) -> Callable[[Builder, Call], Results]:
    """An operator that moves the numbers of its first operand."""

    def run(p: Builder, c: Call) -> Results:
        x = c.any(0)
        found = move(p, c, array_of(x))
        need(isinstance(x, Stored) or found.size > 0, f"{c.op} with an empty result")
        return [like(p, x, found)]

    return run


def axis_of(axis: int, count: int) -> int:
    need(-count <= axis < count, "an axis that is not there")
    return axis % count


def axes_of(axes: Sequence[int], count: int) -> list[int]:
    found = sorted(axis_of(a, count) for a in axes)
    need(len(set(found)) == len(found), "an axis twice")
    return found


def reshape(p: Builder, c: Call, x: Array) -> Array:
    target = c.listed(1, "shape", 5)
    need(target is not None, "a reshape without a shape")
    assert target is not None
    zero = c.version >= 14 and c.flag("allowzero", 0)
    need(not (zero and 0 in target and -1 in target), "a reshape")
    need(all(n >= -1 for n in target) and len(target) <= MAX_AXES, "a reshape")
    if not zero:
        need(all(n != 0 or k < x.ndim for k, n in enumerate(target)), "a reshape")
        target = [x.shape[k] if n == 0 else n for k, n in enumerate(target)]
    return _shaped(x, target)


def _shaped(x: Array, target: Sequence[int]) -> Array:
    known = math.prod(n for n in target if n != -1)
    need(list(target).count(-1) <= 1 and (known > 0 or -1 not in target), "a reshape")
    full = [x.size // known if n == -1 else n for n in target]
    need(math.prod(full) == x.size, "a reshape to another size")
    return x.reshape(full)


def flatten(p: Builder, c: Call, x: Array) -> Array:
    axis = c.integer("axis", 1)
    need((-x.ndim if c.version >= 11 else 0) <= axis <= x.ndim, "an axis that is not there")
    axis += x.ndim if axis < 0 else 0
    return x.reshape(math.prod(x.shape[:axis]), -1 if x.size else math.prod(x.shape[axis:]))


def squeeze(p: Builder, c: Call, x: Array) -> Array:
    axes = c.listed(1, "axes", 13)
    if axes is None:
        return np.asarray(np.squeeze(x))
    kept = axes_of(axes, x.ndim)
    need(all(x.shape[a] == 1 for a in kept), "an axis that is not 1")
    return np.asarray(np.squeeze(x, tuple(kept)))


def unsqueeze(p: Builder, c: Call, x: Array) -> Array:
    axes = c.listed(1, "axes", 13)
    need(axes is not None and x.ndim + len(axes) <= MAX_AXES, "unsqueeze without axes")
    assert axes is not None
    return np.expand_dims(x, tuple(axes_of(axes, x.ndim + len(axes))))


def cut(p: Builder, c: Call, x: Array) -> Array:
    """Slice: every axis once; ends beyond the tensor are its ends."""
    starts, ends, axes = (
        c.listed(k + 1, name, 10, True) for k, name in enumerate(("starts", "ends", "axes"))
    )
    steps = c.listed(4, "steps", 10, True) if c.words or c.version >= 10 else None
    need(starts is not None and ends is not None, "a slice without ends")
    assert starts is not None
    assert ends is not None
    axes = list(range(len(starts))) if axes is None else [axis_of(a, x.ndim) for a in axes]
    steps = [1] * len(starts) if steps is None else steps
    need(len(starts) == len(ends) == len(axes) == len(steps) and len(set(axes)) == len(axes), "a slice")
    need(all(a < x.ndim for a in axes) and all(steps), "a slice")
    kept = [slice(None)] * x.ndim
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        first, last, step = _range(start, end, step, x.shape[axis])
        kept[axis] = slice(first, None if last < 0 else last, step)
    return x[tuple(kept)]  # a view: a small part of a large tensor costs nothing more


def _range(start: int, end: int, step: int, size: int) -> tuple[int, int, int]:
    """First, end and step within an axis, as ONNX clamps them."""
    start, end = (n + size if n < 0 else n for n in (start, end))
    # Where a slice runs backwards from before the first entry, runtimes disagree.
    need(step > 0 or start >= 0, "a slice")
    low, high = (0, size) if step > 0 else (-1, size - 1)
    start, end = max(start, 0), max(end, low)
    start, end = min(start, high), min(end, high)
    return start, end, max(-size - 1, min(step, size + 1))


def transpose(p: Builder, c: Call, x: Array) -> Array:
    order = c.integers("perm", range(x.ndim)[::-1])
    need(sorted(order) == list(range(x.ndim)), "a transposition")
    return x.transpose(order)


def gather(p: Builder, c: Call, x: Array) -> Array:
    index, axis = c.stored(1), axis_of(c.integer("axis", 0), x.ndim)
    need(index.dtype in (np.dtype("<i8"), np.dtype("<i4")), "indices that are no integers")
    need(bool(((index >= -x.shape[axis]) & (index < x.shape[axis])).all()), "an index that is not there")
    p.charge(size_of((*x.shape[:axis], *index.shape, *x.shape[axis + 1 :])))
    return np.take(x, index, axis)


def expand(p: Builder, c: Call, x: Array) -> Array:
    target = c.listed(1, "shape", 8)
    need(target is not None and len(target) <= MAX_AXES and all(n >= 1 for n in target), "an expansion")
    assert target is not None
    shape = np.broadcast_shapes(x.shape, tuple(target))
    p.charge(size_of(shape))
    return np.broadcast_to(x, shape)


def tile(p: Builder, c: Call, x: Array) -> Array:
    factors = c.integers_at(1)
    need(len(factors) == x.ndim and min(factors, default=1) >= 1, "a repetition")
    p.charge(size_of([n * k for n, k in zip(x.shape, factors, strict=True)]))
    return np.tile(x, factors)


def repeat(p: Builder, c: Call, x: Array) -> Array:
    """Every entry so often along every axis (a word of certificates)."""
    factors = c.integers("factors", None)
    need(len(factors) == x.ndim and min(factors, default=1) >= 1, "a repetition")
    p.charge(2 * size_of([n * k for n, k in zip(x.shape, factors, strict=True)]))
    for axis, factor in enumerate(factors):
        x = np.repeat(x, factor, axis)
    return x


def depth_to_space(p: Builder, c: Call, x: Array) -> Array:
    """Channels to space; mode CRD: the block comes after the channel."""
    n = c.integer("blocksize", None)
    mode = c.text("mode", "DCR") if c.words or c.version >= 11 else "DCR"
    need(mode in ("DCR", "CRD") and x.ndim == 4 and 0 < n <= x.shape[1] and x.shape[1] % n**2 == 0, "blocks")
    batch, channels, *image = x.shape
    later, inner = mode == "CRD", channels // n**2
    x = x.reshape(batch, inner, n, n, *image) if later else x.reshape(batch, n, n, inner, *image)
    x = x.transpose(0, 1, 4, 2, 5, 3) if later else x.transpose(0, 3, 4, 1, 5, 2)
    return x.reshape(batch, inner, n * image[0], n * image[1])


def space_to_depth(p: Builder, c: Call, x: Array) -> Array:
    n = c.integer("blocksize", None)
    mode = c.text("mode", "DCR") if c.version >= 28 else "DCR"
    need(
        x.ndim == 4 and n > 0 and x.shape[2] % n == 0 and x.shape[3] % n == 0 and mode in ("DCR", "CRD"),
        "blocks",
    )
    batch, channels, height, width = x.shape
    order = (0, 1, 3, 5, 2, 4) if mode == "CRD" else (0, 3, 5, 1, 2, 4)
    x = x.reshape(batch, channels, height // n, n, width // n, n).transpose(order)
    return x.reshape(batch, channels * n**2, height // n, width // n)


# -- operators of several operands or results


def concat(p: Builder, c: Call) -> Results:
    values = c.all()
    axis = axis_of(c.integer("axis", None), array_of(values[0]).ndim)
    shapes = [array_of(v).shape for v in values]
    need(len({len(s) for s in shapes}) == 1, "tensors of different axes")
    need(len({s[:axis] + s[axis + 1 :] for s in shapes}) == 1, "tensors of different sizes")
    size_of((*shapes[0][:axis], sum(s[axis] for s in shapes), *shapes[0][axis + 1 :]))
    kept = [v for v in values if isinstance(v, Stored)]
    if len(kept) == len(values):
        need(len({v.kind for v in kept}) == 1, "tensors of different types")
        p.charge(sum(v.array.size for v in kept))
        return [
            Stored(np.concatenate([v.array for v in kept], axis), kept[0].kind, max(v.rounded for v in kept))
        ]
    kind = values[0].kind if _whole(values) else same_kind(values, c.op)
    full = [_numbers(p, v) for v in values if array_of(v).size]
    sources, places = p.joined(full)
    p.charge(sum(a.size for a in places))
    return [p.tidy(Value(sources, np.concatenate(places, axis), kind))]


def _whole(values: Sequence[Value | Stored]) -> bool:
    """Whether these are integers of one type, some of them computed: numbers that a runtime only moves."""
    return len({v.kind for v in values}) == 1 and values[0].kind.kind in "iu"


def _numbers(p: Builder, x: Value | Stored) -> Value:
    """Computed numbers; stored ones, integers of a few bits too, as a constant."""
    if isinstance(x, Value) or x.kind in FLOATS:
        return p.computed(x)
    need(x.array.dtype.kind in "iu" and x.array.dtype.itemsize <= 4, "integers beside computed numbers")
    return p.computed(Stored(x.array.astype(np.float64), FLOATS[2]))


def where(p: Builder, c: Call) -> Results:
    """One of two tensors, by a stored condition or by a sign."""
    by = c.marked(0, Sign)
    if by is not None:
        return [selected(p, by, c.any(1), c.any(2))]
    condition, a, b = c.stored(0), c.any(1), c.any(2)
    need(condition.dtype == np.dtype("?"), "a condition that is no truth value")
    full = np.broadcast_shapes(condition.shape, array_of(a).shape, array_of(b).shape)
    p.charge(3 * size_of(full))
    if isinstance(a, Stored) and isinstance(b, Stored):
        need(a.kind == b.kind, "tensors of different types")
        return [Stored(np.where(condition, a.array, b.array), a.kind, max(a.rounded, b.rounded))]
    if lost(p, a) or lost(p, b):
        return [chosen(p, condition, a, b)]
    kind = same_kind([a, b], c.op)
    # A tensor of which nothing is chosen is not read at all.
    first_one = np.broadcast_to(condition, full)
    if bool(first_one.all()) or not bool(first_one.any()):
        x = p.computed(a if first_one.flat[0] else b)
        return [x._replace(places=np.broadcast_to(x.places, full))]
    sources, (first, second) = p.joined([p.computed(a), p.computed(b)])
    return [p.tidy(Value(sources, np.where(condition, first, second), kind))]


def split(p: Builder, c: Call) -> Results:
    x = c.any(0)
    array = array_of(x)
    axis, count = axis_of(c.integer("axis", 0), array.ndim), c.results
    sizes, length = c.listed(1, "split", 13), array.shape[axis]
    if c.version >= 18 and not c.words:
        told = c.integer("num_outputs", -1)
        need((told == -1) == (sizes is not None) and told in (-1, count), "parts of another number")
        part = -(-length // count)
        sizes = [part] * (count - 1) + [length - part * (count - 1)] if sizes is None else sizes
    if sizes is None:
        need(length % count == 0, "parts of different sizes")
        sizes = [length // count] * count
    need(len(sizes) == count and sum(sizes) == length and min(sizes) >= 1, "parts of another size")
    starts = np.cumsum([0, *sizes])
    return [
        like(p, x, np.take(array, np.arange(s, s + n), axis)) for s, n in zip(starts, sizes, strict=False)
    ]


_MODES = {"reflect": "reflect", "edge": "edge", "wrap": "wrap"}


def pad(p: Builder, c: Call) -> Results:
    """A padding with a constant reads that constant: a step of its own, unless it is 0."""
    x, mode = c.any(0), c.text("mode", "constant")
    array, pads = array_of(x), c.listed(1, "pads", 11)
    fill = _filling(c, x)
    axes = list(range(array.ndim))
    if c.version >= 18 and not c.words and c.operand(3) is not None:
        axes = [axis_of(a, array.ndim) for a in c.integers_at(3)]
    need(pads is not None and len(pads) == 2 * len(axes) and len(set(axes)) == len(axes), "a padding")
    assert pads is not None
    pairs = [(0, 0)] * array.ndim
    for k, axis in enumerate(axes):
        pairs[axis] = pads[k], pads[k + len(axes)]
    p.charge(size_of([n + a + b for n, (a, b) in zip(array.shape, pairs, strict=True)]))
    need(array.size > 0, "a padding of nothing")
    if min(min(pair) for pair in pairs) < 0:
        # A negative padding cuts; runtimes agree about that where a constant is written beside it.
        ends = [(max(-a, 0), n - max(-b, 0)) for n, (a, b) in zip(array.shape, pairs, strict=True)]
        need(mode == "constant" and all(a < b for a, b in ends), "a padding")
        array = array[tuple(slice(a, b) for a, b in ends)]
        pairs = [(max(a, 0), max(b, 0)) for a, b in pairs]
    if mode == "constant" and isinstance(x, Value):
        inner = p.tidy(Value(x.sources, np.pad(array, pairs, constant_values=-1), x.kind))
        added = np.pad(np.zeros(array.shape, bool), pairs, constant_values=True)
        return [inner if fill == 0 or not added.any() else _filled(p, inner, added, fill)]
    if mode == "constant":
        return [like(p, x, np.pad(array, pairs, constant_values=fill))]
    need(mode in _MODES and (mode != "wrap" or c.words or c.version >= 19), "a padding")
    # A padding that reflects twice, or wraps around twice, is one that runtimes disagree about.
    beyond = any(max(pair) >= n for pair, n in zip(pairs, array.shape, strict=True))
    need(mode == "edge" or not beyond, "a padding beyond the tensor")
    padded: Array = np.pad(array, pairs, mode=mode)  # type: ignore[call-overload]
    return [like(p, x, padded)]


def _filling(c: Call, x: Value | Stored) -> int | float:
    """The number that a padding with a constant writes: integers as they are, which float64 does not hold."""
    if c.words or c.version < 11:
        return c.number("value", 0.0)
    if c.operand(2) is None:
        return 0.0
    value, kind = c.stored(2), x.kind
    same = c.any(2).kind == kind
    need(value.size == 1 and value.ndim <= 1 and same, "a padding with another type of numbers")
    need(kind.kind in "iu" or bool(np.isfinite(value).all()), "a padding that is not finite")
    found: int | float = value.reshape(-1)[0].item()
    return found


def _filled(p: Builder, x: Value, where: Array, fill: int | float) -> Value:
    """x, with `fill` where the padding is."""
    need(abs(fill) < 1 << 53 or x.kind in FLOATS, "a padding with a number that float64 does not hold")
    constant = p.constant(Stored(np.full(1, float(fill)), FLOATS[2]))
    sources, (inner, place) = p.joined([x, constant])
    return Value(sources, np.where(where, place[0], inner), x.kind)


def shape(p: Builder, c: Call) -> Results:
    """The shape for one sample, as stored integers."""
    found = array_of(c.any(0)).shape
    start, end = (c.integer("start", 0), c.integer("end", len(found))) if c.version >= 15 else (0, len(found))
    return [
        stored(
            np.array(found[slice(*(max(-len(found), min(n, len(found))) for n in (start, end)))], np.int64)
        )
    ]


def triangle(p: Builder, c: Call) -> Results:
    """Numbers on one side of a diagonal; 0 on the other."""
    x, upper = c.any(0), c.flag("upper", 1)
    array, shift = array_of(x), c.stored(1) if c.operand(1) is not None else np.zeros((), np.int64)
    need(array.ndim >= 2 and shift.size == 1 and shift.dtype == np.dtype("<i8"), "a triangle")
    k = max(-array.shape[-2] - 1, min(array.shape[-1] + 1, int(shift.reshape(-1)[0])))
    rows, columns = np.arange(array.shape[-2])[:, None], np.arange(array.shape[-1])
    kept = columns >= rows + k if upper else columns <= rows + k
    zero = -1 if isinstance(x, Value) else np.zeros((), array.dtype)
    return [like(p, x, np.where(kept, array, zero))]


def identity(p: Builder, c: Call) -> Results:
    return [c.any(0)]


def dropout(p: Builder, c: Call) -> Results:
    """The identity, outside training."""
    if c.version < 12:
        c.number("ratio", 0.5)
    else:
        c.integer("seed", 0)
        need(c.operand(1) is None or c.stored(1).size == 1, "a dropout")
        need(
            c.operand(2) is None or not c.stored(2).any(),
            "a dropout in training mode is not covered by the checker",
        )
    return c.any(0), Missing("the mask of a dropout is not covered by the checker")


def cast(p: Builder, c: Call) -> Results:
    """To a type that holds every number of the first exactly. A sign becomes 1 and 0."""
    by = c.marked(0, Sign)
    x = by.x if by is not None else c.any(0)
    target = c.integer("to", None) if c.op == "Cast" else 0
    if c.version >= 19:
        c.flag("saturate", 1)
    if c.version >= 24:
        c.text("round_mode", "up")
    kinds: dict[int, np.dtype[Any]] = {
        1: FLOATS[1],
        10: FLOATS[0],
        11: FLOATS[2],
        7: np.dtype("<i8"),
        6: np.dtype("<i4"),
    }
    need(target in kinds or c.op == "CastLike", "a conversion that is not covered by the checker")
    kind = kinds[target] if c.op == "Cast" else c.any(1).kind
    # Types that numpy lacks are held in wider ones, which would keep what they round.
    need(kind.names is None, "a conversion to a type that rounds is not covered by the checker")
    if by is not None:
        need(kind == by.x.kind, "a comparison of computed numbers is not covered by the checker")
        return [by]
    if isinstance(x, Stored) and x.kind in (BFLOAT16, INT4, UINT4):
        need(kind in FLOATS[1:], "a conversion that is not covered by the checker")
        p.charge(x.array.size)
        return [stored(x.array[(x.kind.names or ())[0]].astype(kind))]
    if isinstance(x, Value):
        need(
            kind in (FLOATS if x.kind in FLOATS else FLOATS[1:]) and kind.itemsize >= x.kind.itemsize,
            "a conversion that rounds computed numbers is not covered by the checker",
        )
        return [x._replace(kind=kind)]
    if x.kind in FLOATS and kind in FLOATS and kind.itemsize >= x.kind.itemsize:
        return [x._replace(kind=kind)]
    # Sums and products of stored numbers are exact here, and rounded to their type by a runtime.
    with np.errstate(all="ignore"):
        own = x.rounded == 0 and bool((x.array.astype(x.kind) == x.array).all())
    need(own, "a conversion of numbers that are rounded is not covered by the checker")
    with np.errstate(all="ignore"):
        found = x.array.astype(kind)
        back = found.astype(x.array.dtype)
    same = bool((back == x.array).all()) and (kind.kind != "f" or bool(np.isfinite(found).all()))
    need(same, "a conversion that rounds is not covered by the checker")
    return [stored(found)]


MOVES: dict[str, tuple[str, Run]] = {
    "Identity": ("1 13 14 16 19 21 23 24 25", identity),
    "Dropout": ("7 10 12 13 22", dropout),
    "Shape": ("1 13 15 19 21 23 24 25", shape),
    "Concat": ("4 11 13", concat),
    "Split": ("2 11 13 18", split),
    "Pad": ("2 11 13 18 19 21 23 24 25", pad),
    "Reshape": ("5 13 14 19 21 23 24 25", moving(reshape)),
    "Flatten": ("1 9 11 13 21 23 24 25", moving(flatten)),
    "Squeeze": ("1 11 13 21 23 24 25", moving(squeeze)),
    "Unsqueeze": ("1 11 13 21 23 24 25", moving(unsqueeze)),
    "Slice": ("1 10 11 13", moving(cut)),
    "Transpose": ("1 13 21 23 24 25", moving(transpose)),
    "Gather": ("1 11 13", moving(gather)),
    "Expand": ("8 13", moving(expand)),
    "Tile": ("6 13", moving(tile)),
    "Where": ("9 16", where),
    "Trilu": ("14", triangle),
    "Cast": ("6 9 13 19 21 23 24 25 28", cast),
    "CastLike": ("15 19 21 23 24 25", cast),
    "DepthToSpace": ("1 11 13 28", moving(depth_to_space)),
    "SpaceToDepth": ("1 13 28", moving(space_to_depth)),
}
"""Operator -> the versions of its definition that are read, and how."""
