"""Operators that join tensors, or choose entries by stored positions."""

from __future__ import annotations

import numpy as np
import torch

from lipverify.frontends.builder import Value
from lipverify.frontends.building.contraction import einsum
from lipverify.frontends.onnx import forms
from lipverify.frontends.onnx.call import Call
from lipverify.frontends.onnx.lowering import Stored
from lipverify.frontends.onnx.registry import lower
from lipverify.frontends.onnx.translators.placing import computed_indices

_MAX_BACKWARD = 1 << 20


@lower.register("Concat")
def _concat(c: Call) -> Value:
    operands = [x for x in c.operands() if isinstance(x, Value) or x.numel()]
    ranks = {x.rank if isinstance(x, Value) else x.ndim for x in operands}
    if len(ranks) != 1:
        raise c.invalid("its inputs have different numbers of axes")
    return c.build.concat(operands, forms.normalised(c, c.attribute("axis"), ranks.pop()))


@lower.register("Split")
def _split(c: Call) -> list[Value | Stored | None]:
    x = c.value()
    axis = forms.normalised(c, c.attribute("axis", 0), x.rank)
    ends = np.cumsum([0, *forms.split_sizes(c, x.source_shape[axis], len(c.used))])
    # A part without entries is a stored tensor: it depends on nothing.
    empty = np.zeros([0 if a == axis else n for a, n in enumerate(x.source_shape)], np.float32)
    return [
        None if not used else empty if start == stop else c.build.slice(x, axis, int(start), int(stop))
        for start, stop, used in zip(ends[:-1], ends[1:], c.used, strict=True)
    ]


@lower.register("Slice")
def _slice(c: Call) -> Value:
    x = c.value()
    for cut in forms.cuts(c, x.source_shape):
        if cut.step < 0 and x.source_shape[cut.axis] > _MAX_BACKWARD:
            raise c.refuse(f"takes an axis of size {x.source_shape[cut.axis]} backwards")
        x = c.build.slice(x, cut.axis, cut.start, cut.stop, cut.step)
    return x


@lower.register("Gather")
def _gather(c: Call) -> Value:
    if isinstance(c.raw(1), Value):
        raise computed_indices(c)
    x = c.value()
    indices = c.array(1, "index list")
    if indices.dtype.kind not in "iu":
        raise c.invalid(f"indices of type {indices.dtype}")
    axis = forms.normalised(c, c.attribute("axis", 0), x.rank)
    return c.build.gather(x, axis, torch.from_numpy(indices.astype(np.int64)))


@lower.register("TopK")
def _top_k(c: Call) -> list[Value]:
    """The k largest or smallest entries in order: the first k of a full sort."""
    x, b = c.value(), c.build
    axis = forms.normalised(c, c.attribute("axis", -1), x.rank)
    if c.version < 10:
        count = c.attribute("k")
    else:
        found = c.ints(1, "k") or []
        if len(found) != 1:
            raise c.invalid(f"k = {found[:8]} is not one number")
        count = found[0]
    size = x.source_shape[axis]
    if not 1 <= count <= size:
        raise c.invalid(f"the {count} largest entries of an axis of size {size}")
    if any(c.used[1:]):
        raise c.refuse("uses the positions of the largest entries, which jump", "use the values alone")
    if not c.flag("sorted", 1):
        raise c.refuse("gives the largest entries in no particular order", "export with sorted = 1")
    return [b.slice(b.sort(x, axis, bool(c.flag("largest", 1))), axis, 0, count)]


@lower.register("Trilu")
def _trilu(c: Call) -> Value:
    """The upper or lower triangle: entries times a stored mask of 0 and 1."""
    x = c.value()
    if x.rank < 2:
        raise c.invalid("needs a matrix")
    shift = int(c.scalar(1, "diagonal") or 0)
    rows, columns = x.source_shape[-2:]
    keep = torch.tril if not c.flag("upper", 1) else torch.triu
    mask = keep(torch.ones(rows, columns, dtype=c.build.dtype), max(min(shift, columns), -rows))
    return c.build.times(x, mask)


@lower.register("Einsum")
def _einsum(c: Call) -> Value:
    return einsum(c.build, c.attribute("equation"), c.operands())
