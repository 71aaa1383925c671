"""Products of matrices: with stored ones as affine steps, of two computed ones as products and sums."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from lipverify.checkers.kernel.program import (
    Affine,
    Array,
    Product,
    View,
    checked,
)
from lipverify.checkers.reader.building import (
    Builder,
    Stored,
    Value,
    real,
    size_of,
    weights,
)
from lipverify.checkers.reader.calls import Call, same_kind
from lipverify.checkers.reader.folding import multiplied
from lipverify.checkers.reader.moves import Results, Run, array_of, like
from lipverify.checkers.reader.refusals import need
from lipverify.checkers.reader.sums import combined


def _matmul(p: Builder, c: Call) -> Results:
    a, b = c.any(0), c.any(1)
    same_kind([a, b], c.op)
    return [product(p, a, b)]


def product(p: Builder, a: Value | Stored, b: Value | Stored, factor: float = 1.0) -> Value:
    """A matrix product with numpy's rules for axes: stacks of matrices, and vectors at either end."""
    need(array_of(a).ndim > 0 and array_of(b).ndim > 0, "a product of matrices with a number")
    left, right = array_of(a).ndim == 1, array_of(b).ndim == 1
    first = array_of(a)[None] if left else array_of(a)
    second = array_of(b)[:, None] if right else array_of(b)
    (n, k), m = first.shape[-2:], second.shape[-1]
    need(second.shape[-2] == k > 0, "matrices of different sizes")
    lead = np.broadcast_shapes(first.shape[:-2], second.shape[:-2])
    p.charge(size_of((*lead, n, k)) + size_of((*lead, k, m)))
    shape = [*lead, *(() if left else (n,)), *(() if right else (m,))]
    if isinstance(a, Value) and isinstance(b, Value):
        y = _of_computed(p, a._replace(places=first), b._replace(places=second), lead, factor)
    elif isinstance(b, Stored):
        x = p.computed(a)
        y = _by_stored(
            p,
            x.showing(x.places[None] if left else x.places),
            b.showing(np.swapaxes(second, -1, -2)),
            lead,
            factor,
        )
    else:
        assert isinstance(a, Stored)
        y = _by_stored(p, b.showing(np.swapaxes(second, -1, -2)), a.showing(first), lead, factor)
        y = y.showing(np.swapaxes(y.places, -1, -2))
    return y._replace(places=y.places.reshape(shape))


def _by_stored(p: Builder, x: Value, by: Stored, lead: tuple[int, ...], factor: float) -> Value:
    """x [*, n, k] times transposed weights [*, m, k]: [*lead, n, m]. One matrix for all is one group."""
    (n, k), m = x.shape[-2:], by.shape[-2]
    values, rounded = weights(by)
    weight, more = multiplied(values, factor)
    full = np.broadcast_to(x.places, (*lead, n, k))
    groups = 1 if weight.ndim == 2 else math.prod(lead)
    kernel = weight if weight.ndim == 2 else np.broadcast_to(weight, (*lead, m, k))
    index = np.arange(full.size).reshape(groups, -1, k)
    y = p.affine(
        x._replace(places=full),
        kernel.reshape(groups, m, k),
        index,
        (groups, m, index.shape[1]),
        rounded + more,
    )
    return y._replace(places=np.swapaxes(y.places, -1, -2).reshape(*lead, n, m))


def _of_computed(p: Builder, x: Value, y: Value, lead: tuple[int, ...], factor: float) -> Value:
    """x [*, n, k] times y [*, k, m]: all products, and their sums."""
    (n, k), m = x.shape[-2:], y.shape[-1]
    grid = (*lead, n, m, k)
    p.charge(4 * size_of(grid))
    sources, (rows, columns) = p.joined([x, y])
    spread = rows[..., :, None, :], np.swapaxes(columns, -1, -2)[..., None, :, :]
    views = [View(sources, np.broadcast_to(z, grid).reshape(-1)) for z in spread]
    terms = p.add(Product(views[0], math.prod(grid), views[1]), grid, x.kind)
    return p.summed(terms, p.positions(terms).reshape(-1, k), (*lead, n, m), np.full(k, factor))


def _gemm(p: Builder, c: Call) -> Results:
    """alpha A B + beta C, C broadcast."""
    a, b, c_ = c.any(0), c.any(1), c.operand(2)
    alpha, beta = c.number("alpha", 1.0), c.number("beta", 1.0)
    turned: list[Value | Stored] = []
    for x, name in ((a, "transA"), (b, "transB")):
        # A certificate's Gemm is a linear map of the last axis.
        need(array_of(x).ndim == 2 or (c.words and x is a), "a Gemm of tensors that are no matrices")
        flipped = np.swapaxes(array_of(x), -1, -2) if c.flag(name, 0) else array_of(x)
        turned.append(x.showing(flipped))
    same_kind([x for x in (a, b, c_) if x is not None], c.op)
    y = product(p, turned[0], turned[1], alpha)
    if c_ is None:
        return [y]
    need(np.broadcast_shapes(array_of(c_).shape, y.shape) == y.shape, "a bias of another size")
    if isinstance(c_, Stored):
        bias, rounded = multiplied(real(c_), beta)
        need(rounded == 0, "a scaled bias that rounds is not covered by the checker")
        return [shifted(p, y, bias)]
    return [combined(p, "Add", [y, p.scaled(c_, beta)])]


def shifted(p: Builder, y: Value, bias: Array) -> Value:
    """y + bias, within the affine step that y is the whole result of."""
    step = p.steps[y.sources[0]]
    if (
        y.sources != (len(p.steps) - 1,)
        or not isinstance(step, Affine)
        or step.offset is not None
        or y.places.size != step.size
    ):
        return p.scaled(y, 1.0, 0, bias)
    p.charge(step.size)
    offset = np.empty(step.size)
    offset[y.places.reshape(-1)] = np.broadcast_to(bias, y.shape).reshape(-1)
    p.steps[-1] = checked(replace(step, offset=offset), p.steps[:-1])
    return y


def _einsum(p: Builder, c: Call) -> Results:
    """One operand moved, or a product of two: every letter stands once in each, and none is summed within one operand."""
    operands, equation = c.all(), c.text("equation", "").replace(" ", "")
    need(
        equation.count("->") == 1 and len(operands) in (1, 2),
        "an equation that is not covered by the checker",
    )
    read, written = equation.split("->")
    terms = read.split(",")
    plain = all(w.isalpha() and w.isascii() and len(set(w)) == len(w) for w in (*terms, written))
    need(plain and len(terms) == len(operands), "an equation that is not covered by the checker")
    shapes = [array_of(x).shape for x in operands]
    need(all(len(w) == len(s) for w, s in zip(terms, shapes, strict=True)), "an equation for other axes")
    sizes = [(letter, n) for w, s in zip(terms, shapes, strict=True) for letter, n in zip(w, s, strict=True)]
    need(len(set(sizes)) == len(dict(sizes)), "an equation for other sizes")
    size = dict(sizes)
    need(set(written) <= set(size), "an equation that is not covered by the checker")
    if len(terms) == 1:
        need(set(written) == set(terms[0]), "an equation that is not covered by the checker")
        return [like(p, operands[0], array_of(operands[0]).transpose([terms[0].index(n) for n in written]))]
    same_kind(operands, c.op)
    both = [n for n in terms[0] if n in terms[1]]
    batch, summed = [n for n in both if n in written], [n for n in both if n not in written]
    free = [[n for n in w if n not in both] for w in terms]
    need(all(n in written for w in free for n in w), "an equation that is not covered by the checker")
    order = [[*batch, *free[0], *summed], [*batch, *summed, *free[1]]]
    parts = [[batch, free[0], summed], [batch, summed, free[1]]]
    turned: list[Value | Stored] = []
    for x, w, letters, groups in zip(operands, terms, order, parts, strict=True):
        array = array_of(x).transpose([w.index(n) for n in letters])
        array = array.reshape([math.prod(size[n] for n in group) for group in groups])
        turned.append(x.showing(array))
    y = product(p, turned[0], turned[1])
    found = [*batch, *free[0], *free[1]]
    places = y.places.reshape([size[n] for n in found]).transpose([found.index(n) for n in written])
    return [y._replace(places=places)]


MATRICES: dict[str, tuple[str, Run]] = {
    "Gemm": ("7 9 11 13", _gemm),
    "MatMul": ("1 9 13", _matmul),
    "Einsum": ("12 28", _einsum),
}
