"""Operators that join tensors, or choose entries by stored positions."""

from __future__ import annotations

import numpy as np
import torch

from lipverify.errors import UnsupportedModel
from lipverify.frontends.builder import Value
from lipverify.frontends.onnx import forms
from lipverify.frontends.onnx.call import Call
from lipverify.frontends.onnx.registry import lower

_MAX_BACKWARD = 1 << 20


@lower.register("Concat")
def _concat(c: Call) -> Value:
    operands = c.operands()
    ranks = {x.rank if isinstance(x, Value) else x.ndim for x in operands}
    if len(ranks) != 1:
        raise c.invalid("its inputs have different numbers of axes")
    return c.build.concat(operands, forms.normalised(c, c.attribute("axis"), ranks.pop()))


@lower.register("Split")
def _split(c: Call) -> list[Value | None]:
    x = c.value()
    axis = forms.normalised(c, c.attribute("axis", 0), x.rank)
    ends = np.cumsum([0, *forms.split_sizes(c, x.source_shape[axis], len(c.used))])
    return [
        c.build.slice(x, axis, int(start), int(stop)) if used else None
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
        raise _computed_indices(c)
    x = c.value()
    indices = c.array(1, "index list")
    if indices.dtype.kind not in "iu":
        raise c.invalid(f"indices of type {indices.dtype}")
    axis = forms.normalised(c, c.attribute("axis", 0), x.rank)
    return c.build.gather(x, axis, torch.from_numpy(indices.astype(np.int64)))


@lower.register("GatherElements", "GatherND")
def _gather_elements(c: Call) -> Value:
    if isinstance(c.raw(1), Value):
        raise _computed_indices(c)
    raise c.refuse(
        "gathering with an index for each entry is not covered", "use Gather with a stored index list"
    )


def _computed_indices(c: Call) -> UnsupportedModel:
    return c.refuse("chooses entries by computed numbers, which jumps", "use stored indices")


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
    """A contraction with one stored tensor: a matrix product over the shared indices, then a change of order."""
    equation = c.attribute("equation").replace(" ", "")
    left, arrow, right = equation.partition("->")
    terms = left.split(",")
    found = [(c.raw(i), term) for i, term in enumerate(terms)]
    values = [(x, term) for x, term in found if isinstance(x, Value)]
    stored = [(i, term) for i, (x, term) in enumerate(found) if isinstance(x, np.ndarray)]
    clean = all(term.isalpha() and len(set(term)) == len(term) for term in terms)
    if not (arrow and clean and len(values) == len(stored) == 1 and len(c.inputs) == 2):
        raise c.refuse(
            f"einsum {equation[:40]!r} is not covered", "contract with one stored tensor, or use MatMul"
        )
    (x, own), (position, other) = values[0], stored[0]
    weight = c.stored(position, "weight")
    if len(own) != x.rank or len(other) != weight.ndim:
        raise c.invalid(f"einsum {equation[:40]!r} does not fit its inputs")
    return _contract(c, x, own, weight, other, right)


def _contract(c: Call, x: Value, own: str, weight: torch.Tensor, other: str, right: str) -> Value:
    b = c.build
    inner = [i for i in own if i in other]
    new, kept = [i for i in other if i not in own], [i for i in own if i not in other]
    if any(i in right for i in inner) or sorted(right) != sorted([*kept, *new]):
        raise c.refuse("einsum with batched or dropped indices is not covered", "use MatMul and ReduceSum")
    sizes = dict(zip(other, weight.shape, strict=True))
    columns, rows = [sizes[i] for i in inner], [sizes[i] for i in new]
    matrix = weight.permute([other.index(i) for i in (*new, *inner)]).reshape(
        int(np.prod(rows, dtype=int)), int(np.prod(columns, dtype=int))
    )
    v = b.transpose(x, [own.index(i) for i in (*kept, *inner)])
    lead = list(v.source_shape[: len(kept)])
    product = b.linear(b.reshape(v, [*lead, matrix.shape[1]]), matrix.contiguous())
    order = [*kept, *new]
    return b.transpose(b.reshape(product, [*lead, *rows]), [order.index(i) for i in right])
