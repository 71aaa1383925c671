"""Operators that compute, in the words of ONNX, as primitive steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from lipverify.checkers.kernel.program import (
    Affine,
    Array,
    Implicit,
    Normalise,
    Order,
    Product,
    Reflect,
    Scalar,
    Softmax,
    View,
    checked,
)
from lipverify.checkers.reader.building import (
    FLOATS,
    Builder,
    Missing,
    Stored,
    Value,
    real,
    size_of,
    stored,
    weights,
)
from lipverify.checkers.reader.calls import Call, same_kind
from lipverify.checkers.reader.folding import FOLDED, fold, fold_integers, fold_one, is_short
from lipverify.checkers.reader.moves import MOVES, Results, array_of, axes_of, axis_of, like, moving, repeat
from lipverify.checkers.reader.recognition import gate
from lipverify.checkers.reader.refusals import need, shown
from lipverify.checkers.reader.windows import conv, conv_transpose, pool_windows

Run = Callable[[Builder, Call], Results]


def run(p: Builder, c: Call) -> Results:
    """The results of one operator.

    Raises:
        NotCovered: an operator, version, setting, operand or result that is not read.
    """
    versions, translate = (WORDS if c.words else OPERATORS).get(c.op, ("", None))
    need(translate is not None, f"operator {shown(c.op)} is not covered by the checker")
    assert translate is not None
    if not c.words:
        need(
            _covers(versions, c.version), f"{c.op} of operator set {c.version} is not covered by the checker"
        )
    results = translate(p, c)
    c.finish()
    need(len(results) >= c.results, f"{c.op} with more results than the checker covers")
    return results


def _covers(versions: str, opset: int) -> bool:
    """versions: since when each definition holds; one with ! in front is not read."""
    known = [(int(v.lstrip("!")), v[0] != "!") for v in versions.split()]
    return max([pair for pair in known if pair[0] <= opset], default=(0, False))[1]


# -- sums and products of values


def _exact(a: Array, b: Array | float) -> tuple[Array, int]:
    """a b in float64, and how many roundings are behind it: none where both hold at most 24 bits, as float32 does."""
    short = is_short(a) and is_short(np.asarray(b))
    product = np.asarray(a * b)
    power = np.ndim(b) == 0 and abs(math.frexp(float(b))[0]) == 0.5
    return product, 0 if short or power else 1


def _arithmetic(p: Builder, c: Call) -> Results:
    """Add, Sub, Mul, Div of two operands, Sum and Mean of several."""
    operands = c.all()
    need(c.op in ("Sum", "Mean") or len(operands) == 2, f"{c.op} of {len(operands)} operands")
    if all(isinstance(x, Stored) and x.kind.kind != "f" for x in operands):
        return [fold_integers(p, c.op, [array_of(x) for x in operands])]
    same_kind(operands, c.op)
    _old_shapes(c, operands)
    size_of(np.broadcast_shapes(*(x.shape for x in operands)))
    kept = [x for x in operands if isinstance(x, Stored)]
    if len(kept) == len(operands):
        found = fold(p, c.op, kept)
        if found is not None:
            return [found]
        operands[0] = p.computed(operands[0])
    if c.op in ("Sum", "Mean") or len(kept) == 0:
        return [_combined(p, c.op, [p.computed(x) for x in operands])]
    place = int(isinstance(operands[0], Stored))
    x, other = operands[place], operands[1 - place]
    assert isinstance(x, Value)
    assert isinstance(other, Stored)
    a, rounded = weights(other)
    if c.op in ("Add", "Sub"):
        if rounded:
            return [_combined(p, c.op, [p.computed(o) for o in operands])]
        minus = c.op == "Sub"
        return [p.scaled(x, -1.0 if minus and place else 1.0, 0, -a if minus and not place else a)]
    if c.op == "Div" and place:
        return [p.scaled(p.scalar(x, "Reciprocal"), a, rounded)]
    need(c.op != "Div" or bool(a.all()), "a division by zero")
    return [p.scaled(x, a if c.op == "Mul" else 1.0 / a, rounded if c.op == "Mul" else 2 * rounded + 1)]


def _old_shapes(c: Call, operands: Sequence[Value | Stored]) -> None:
    """Before operator set 8 nothing is broadcast by operators of several operands."""
    if c.op in ("Sum", "Mean", "Max", "Min") and c.version < 8:
        need(
            len({array_of(x).shape for x in operands}) == 1,
            f"{c.op} of different sizes in operator set {c.version}",
        )


def _combined(p: Builder, op: str, values: Sequence[Value]) -> Value:
    """Entry by entry, of computed values."""
    if op in ("Mul", "Div"):
        x, y = values
        found = gate(p, x, y) or gate(p, y, x) if op == "Mul" else None
        return found or _multiplied(p, x, p.scalar(y, "Reciprocal") if op == "Div" else y)
    terms = np.ones(len(values)) / (len(values) if op == "Mean" else 1)
    terms[1:] *= -1.0 if op == "Sub" else 1.0
    x, groups, shape = _stacked(p, values)
    return p.summed(x, groups, shape, terms, int(op == "Mean"))


def _stacked(p: Builder, values: Sequence[Value]) -> tuple[Value, Array, tuple[int, ...]]:
    """Values broadcast together: one value of all of them, groups [n, count] of its places, and the shape of a result."""
    shape = np.broadcast_shapes(*(v.shape for v in values))
    p.charge(3 * len(values) * size_of(shape))
    sources, places = p.joined(values)
    x = Value(sources, np.stack(np.broadcast_arrays(*places), -1), values[0].kind)
    return x, p.positions(x).reshape(-1, len(values)), shape


def _multiplied(p: Builder, x: Value, y: Value) -> Value:
    shape = np.broadcast_shapes(x.shape, y.shape)
    p.charge(2 * size_of(shape))
    views = [View(v.sources, np.broadcast_to(v.places, shape).reshape(-1)) for v in (x, y)]
    return p.add(Product(views[0], math.prod(shape), views[1]), shape, x.kind)


def _negated(p: Builder, c: Call) -> Results:
    x = c.any(0)
    return [
        x.showing(-x.array) if isinstance(x, Stored) and x.kind.kind == "f" else p.scaled(c.value(p, 0), -1.0)
    ]


def _scale(p: Builder, c: Call) -> Results:
    """A word of certificates: x * scale + shift."""
    x = c.value(p, 0)
    scale, shift = c.optional(1, x.kind), c.optional(2, x.kind)
    return [p.scaled(x, 1.0 if scale is None else scale, 0, shift)]


# -- matrices


def _matmul(p: Builder, c: Call) -> Results:
    a, b = c.any(0), c.any(1)
    same_kind([a, b], c.op)
    return [_product(p, a, b)]


def _product(p: Builder, a: Value | Stored, b: Value | Stored, factor: float = 1.0) -> Value:
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
    weight, more = _exact(values, factor)
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
        need(array_of(x).ndim == 2, "a Gemm of tensors that are no matrices")
        flipped = array_of(x).T if c.flag(name, 0) else array_of(x)
        turned.append(x.showing(flipped))
    same_kind([x for x in (a, b, c_) if x is not None], c.op)
    need(alpha != 0, "a Gemm without its product is not covered by the checker")
    y = _product(p, turned[0], turned[1], alpha)
    if c_ is None:
        return [y]
    need(np.broadcast_shapes(array_of(c_).shape, y.shape) == y.shape, "a bias of another size")
    if isinstance(c_, Stored):
        bias, rounded = _exact(real(c_), beta)
        need(rounded == 0, "a scaled bias that rounds is not covered by the checker")
        return [_shifted(p, y, bias)]
    return [_combined(p, "Add", [y, p.scaled(c_, beta)])]


def _shifted(p: Builder, y: Value, bias: Array) -> Value:
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


def _batch_norm(p: Builder, c: Call) -> Results:
    """weight (x - mean) / sqrt(var + epsilon) + bias, with stored statistics."""
    x = c.value(p, 0)
    need(x.places.ndim >= 2, "batch normalisation of a vector")
    read = [c.reals(k, x.kind) for k in range(1, 5)]
    need(all(a.shape == (x.shape[1],) for a in read), "batch normalisation of another size")
    weight, bias, mean, var = (a.reshape(-1, *(1,) * (x.places.ndim - 2)) for a in read)
    epsilon, _ = c.number("epsilon", 1e-5), c.number("momentum", 0.9)
    need(
        epsilon >= 0 and bool((var >= 0).all()) and bool((var + epsilon > 0).all()),
        "batch normalisation by no positive variance",
    )
    if c.version >= 14 or c.words:
        need(not c.flag("training_mode", 0), "statistics of the batch are not covered by the checker")
    elif c.version < 9:
        need(c.flag("spatial", 1), "batch normalisation of single places is not covered by the checker")
    need(c.results == 1, "statistics of the batch are not covered by the checker")
    return [p.scaled(p.scaled(x, 1.0, 0, -mean), weight / np.sqrt(var + epsilon), 4, bias)]


# -- groups: pools, reductions, maxima


def _pool(p: Builder, c: Call) -> Results:
    x = c.value(p, 0)
    need(x.shape[0] == 1, "a pool over several samples")
    groups, shape = pool_windows(p, c, p.positions(x))
    if c.op == "MaxPool":
        # Only the order of positions, which nobody may use, depends on this.
        c.flag("storage_order", 0)
        return _extreme(p, x, groups, shape, False), Missing(
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
        return [_extreme(p, x, groups, shape, False)]
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
    if c.op in ("ReduceSumSquare", "ReduceL1"):
        x = p.scalar(x, "Square" if c.op == "ReduceSumSquare" else "Abs")
    groups = (
        p.positions(x).transpose(*(a for a in range(n) if a not in axes), *axes).reshape(math.prod(shape), -1)
    )
    if c.op in ("ReduceMax", "ReduceMin"):
        return [_extreme(p, x, groups, shape, c.op == "ReduceMin")]
    if c.op == "ReduceMean":
        return [_averaged(p, x, groups, shape, True)]
    return [p.summed(x, groups, shape, np.ones(groups.shape[1]))]


def _extremes(p: Builder, c: Call) -> Results:
    """Max and Min of several operands."""
    operands = c.all()
    need(
        not all(isinstance(x, Stored) for x in operands),
        f"{c.op} of stored tensors is not covered by the checker",
    )
    same_kind(operands, c.op)
    _old_shapes(c, operands)
    values = [p.computed(x) for x in operands]
    return [_extreme(p, *_stacked(p, values), c.op == "Min")] if len(values) > 1 else [values[0]]


def _extreme(p: Builder, x: Value, groups: Array, shape: Sequence[int], least: bool) -> Value:
    """Maxima of groups of places; a minimum is -max(-x). max(relu(x)) = relu(max(x)): fewer neurons behind the maximum."""
    source = p.steps[x.sources[0]]
    relu = not least and len(x.sources) == 1 and isinstance(source, Scalar) and source.law == "Relu"
    if relu and bool((x.places >= 0).all()):
        p.charge(x.places.size)
        x = Value(source.view.sources, source.view.places[x.places], x.kind)
    else:
        relu = False
    x = p.scaled(x, -1.0) if least else x
    p.charge(groups.size)
    y = p.add(Order(p.view(x), len(groups), groups, False), shape, x.kind)
    if relu:
        return p.scalar(y, "Relu")
    return p.scaled(y, -1.0) if least else y


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


# -- layers with a group as a whole


def _softmax(p: Builder, c: Call) -> Results:
    """Along an axis; before operator set 13 over all axes from one on."""
    x = c.value(p, 0)
    n, old = x.places.ndim, c.version < 13 and not c.words
    axis = axis_of(c.integer("axis", 1 if old else -1), n)
    index = (
        p.positions(x).reshape(math.prod(x.shape[:axis]), -1)
        if old
        else np.moveaxis(p.positions(x), axis, -1)
    )
    p.charge(2 * index.size)
    groups = np.ascontiguousarray(index).reshape(-1, index.shape[-1])
    return [_in_place(p, x, Softmax(p.view(x), x.places.size, groups), groups)]


def _in_place(p: Builder, x: Value, step: Softmax | Normalise, groups: Array) -> Value:
    """The results of a step, which come in the order of its groups, where their arguments were."""
    p.charge(2 * groups.size)
    y = p.add(step, [groups.size], x.kind)
    places = np.empty(groups.size, np.int64)
    places[groups.reshape(-1)] = y.places
    return y._replace(places=places.reshape(x.shape))


def _layer_norm(p: Builder, c: Call) -> Results:
    """LayerNormalization and RMSNormalization: over all axes from one on."""
    x = c.value(p, 0)
    axis, centred = axis_of(c.integer("axis", -1), x.places.ndim), c.op == "LayerNormalization"
    epsilon, _ = c.number("epsilon", 1e-5), c.integer("stash_type", 1)
    need(c.results == 1, "statistics of a normalisation are not covered by the checker")
    tail = x.shape[axis:]
    scale = c.optional(1, x.kind)
    bias = c.optional(2, x.kind) if centred else None
    return [
        _normalised(p, x, p.positions(x).reshape(-1, math.prod(tail)), tail, scale, bias, epsilon, centred)
    ]


def _normalised(p: Builder, x: Value, groups: Array, tail: Sequence[int], scale: Array | None, bias: Array | None,
                epsilon: float, centred: bool) -> Value:  # fmt: skip
    """scale, bias: anything that broadcasts to a group of shape `tail`, or [groups, count]."""
    need(epsilon > 0, "a normalisation without epsilon is not covered by the checker")
    p.charge(3 * groups.size)

    def full(a: Array | None, default: float) -> Array:
        a = np.full(1, default) if a is None else a
        if a.shape == groups.shape and len(tail) != 2:
            return np.ascontiguousarray(a)
        need(np.broadcast_shapes(a.shape, tuple(tail)) == tuple(tail), "a weight of another size")
        row = np.broadcast_to(a, tuple(tail)).reshape(1, -1)
        return np.ascontiguousarray(np.broadcast_to(row, groups.shape))

    step = Normalise(p.view(x), x.places.size, groups, full(scale, 1.0), full(bias, 0.0), epsilon, centred)
    return _in_place(p, x, step, groups)


def _group_norm(p: Builder, c: Call) -> Results:
    """InstanceNormalization, one group for each channel, and GroupNormalization with weights for each channel."""
    x = c.value(p, 0)
    need(x.places.ndim >= 3 and x.shape[0] == 1, "a normalisation of another shape")
    channels = x.shape[1]
    count = channels if c.op == "InstanceNormalization" else c.integer("num_groups", None)
    need(count > 0 and channels % count == 0, "groups of channels")
    epsilon = c.number("epsilon", 1e-5)
    if c.version >= 21:
        c.integer("stash_type", 1)
    scale, bias = c.reals(1, x.kind), c.reals(2, x.kind)
    need(scale.shape == bias.shape == (channels,), "weights of another size")
    groups = p.positions(x).reshape(count, -1)
    p.charge(4 * groups.size)
    each = math.prod(x.shape[2:])
    full = [np.repeat(a, each).reshape(groups.shape) for a in (scale, bias)]
    step = Normalise(p.view(x), x.places.size, groups, full[0], full[1], epsilon, True)
    need(epsilon > 0, "a normalisation without epsilon is not covered by the checker")
    return [_in_place(p, x, step, groups)]


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
    y = _product(p, turned[0], turned[1])
    found = [*batch, *free[0], *free[1]]
    places = y.places.reshape([size[n] for n in found]).transpose([found.index(n) for n in written])
    return [y._replace(places=places)]


def _implicit(p: Builder, c: Call) -> Results:
    """A word of certificates: the z with z = phi(W z + U x + b)."""
    x = c.value(p, 0)
    recurrent, inputs, bias = c.reals(1, x.kind), c.reals(2, x.kind), c.optional(3, x.kind)
    law = c.text("activation", "")
    need(
        x.places.ndim == 2 and law in _SETTINGS and law not in ("PRelu",),
        "this implicit layer is not covered by the checker",
    )
    settings = {key: c.number(key, default) for key, default in _SETTINGS[law].items()}
    need(
        recurrent.shape == (len(inputs), len(inputs))
        and inputs.ndim == 2
        and inputs.shape[1] == x.places.size,
        "an implicit layer",
    )
    known = np.abs(np.concatenate([recurrent.ravel(), inputs.ravel()]))
    need(
        bool(((known[known > 0] >= 2.0**-400) & (known[known > 0] <= 2.0**400)).all()),
        "numbers near the ends of float64 are not covered by the checker",
    )
    p.charge(recurrent.size + inputs.size)
    given = tuple(sorted(settings.items()))
    return [
        p.add(Implicit(p.view(x), len(inputs), recurrent, inputs, bias, law, given), (1, len(inputs)), x.kind)
    ]


# -- activations

# ONNX name -> settings with their defaults. The names of laws are those of `kernel.curves`.
_SETTINGS: dict[str, dict[str, float]] = {
    **{name: {} for name in ("Relu", "Abs", "Tanh", "Sigmoid", "Erf", "Softsign", "Mish", "HardSwish", "Sin", "Cos", "Exp", "Log",
                             "Sqrt", "Reciprocal", "Tanhshrink", "LogSigmoid", "Gelu")},
    "LeakyRelu": {"alpha": 0.01}, "Elu": {"alpha": 1.0}, "Celu": {"alpha": 1.0},
    "Selu": {"alpha": 1.67326319217681884765625, "gamma": 1.05070102214813232421875},
    "HardSigmoid": {"alpha": 0.2, "beta": 0.5}, "Softplus": {"beta": 1.0}, "Silu": {"beta": 1.0},
}  # fmt: skip


def _activation(p: Builder, c: Call) -> Results:
    given = c.any(0)
    folded = fold_one(p, c.op, given) if isinstance(given, Stored) else None
    if folded is not None:
        return [folded]
    x, law = p.computed(given), c.op
    if c.op == "Gelu":
        kind = c.text("approximate", "none")
        need(kind in ("none", "tanh"), "an unknown approximation")
        law = "GeluTanh" if kind == "tanh" else law
    own = {} if (law == "Softplus" and not c.words) or c.op == "Gelu" else _SETTINGS[law]
    settings = {key: c.number(key, default) for key, default in own.items()}
    need(law != "Celu" or settings["alpha"] > 0, "a Celu with a setting that is not positive")
    if law == "Softplus":
        settings = settings or {"beta": 1.0}
        need(settings["beta"] != 0, "a setting of an activation")
    return [p.scalar(x, law, settings)]


def _log_softmax(p: Builder, c: Call) -> Results:
    """The logarithm of the softmax."""
    (y,) = _softmax(p, c)
    assert isinstance(y, Value)
    return [p.scalar(y, "Log")]


def _thresholded(p: Builder, c: Call) -> Results:
    """A ReLU where the threshold is 0; elsewhere a function that jumps."""
    need(c.number("alpha", 1.0) == 0, "a function that jumps is not covered by the checker")
    return [p.scalar(c.value(p, 0), "Relu")]


def _shrink(p: Builder, c: Call) -> Results:
    """x moved towards 0 by up to `bias`, where the threshold is as large: x - clip(x). Elsewhere it jumps."""
    x, bias, threshold = c.value(p, 0), c.number("bias", 0.0), c.number("lambd", 0.5)
    need(bias == threshold and bias > 0, "a function that jumps is not covered by the checker")
    return [_combined(p, "Sub", [x, p.scalar(x, "Clip", {"min": -bias, "max": bias})])]


def _swish(p: Builder, c: Call) -> Results:
    return [p.scalar(c.value(p, 0), "Silu", {"beta": c.number("alpha", 1.0)})]


def _prelu(p: Builder, c: Call) -> Results:
    x = c.value(p, 0)
    slopes = c.reals(1, x.kind)
    need(np.broadcast_shapes(slopes.shape, x.shape) == x.shape, "slopes of another size")
    p.charge(x.places.size)
    return [p.scalar(x, "PRelu", None, np.broadcast_to(slopes, x.shape).reshape(-1).copy())]


def _clip(p: Builder, c: Call) -> Results:
    x = c.value(p, 0)
    if c.words or c.version < 11:
        low, high = c.limit("min", -math.inf), c.limit("max", math.inf)
    else:
        ends = [c.optional(k, x.kind) for k in (1, 2)]
        need(all(e is None or e.size == 1 for e in ends), "ends of a clip")
        low, high = (
            default if e is None else float(e.reshape(-1)[0])
            for e, default in zip(ends, (-math.inf, math.inf), strict=True)
        )
    need(low <= high and low < math.inf and high > -math.inf, "ends of a clip")
    settings = {key: v for key, v in (("min", low), ("max", high)) if math.isfinite(v)}
    return [p.scalar(x, "Clip", settings)] if settings else [x]


def _power(p: Builder, c: Call) -> Results:
    """x to a stored power that is the same for every entry."""
    x = c.any(0)
    exponents = np.array(c.number("exponent", None)) if c.words else c.stored(1)
    need(
        exponents.size > 0 and exponents.dtype.kind in "fi" and bool((exponents == exponents.flat[0]).all()),
        "several powers",
    )
    shape = np.broadcast_shapes(exponents.shape, x.shape)
    size_of(shape)
    exponent = float(exponents.flat[0])
    folded = (
        fold_one(p, {2.0: "Square", 0.5: "Sqrt", -1.0: "Reciprocal"}.get(exponent, ""), x)
        if isinstance(x, Stored)
        else None
    )
    if folded is not None:
        return [folded.showing(np.broadcast_to(folded.array, shape))]
    x = p.computed(x)
    x = x.showing(np.broadcast_to(x.places, shape))
    need(0 < abs(exponent) <= 8, "a power that is not covered by the checker")
    if exponent == 1:
        return [x]
    law = {2.0: "Square", 0.5: "Sqrt", -1.0: "Reciprocal"}.get(exponent)
    return [p.scalar(x, law) if law else p.scalar(x, "Power", {"exponent": exponent})]


def _cast(p: Builder, c: Call) -> Results:
    """To a type that holds every number of the first exactly."""
    x = c.any(0)
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
    if isinstance(x, Value):
        need(
            kind in FLOATS and kind.itemsize >= x.kind.itemsize,
            "a conversion that rounds computed numbers is not covered by the checker",
        )
        return [x._replace(kind=kind)]
    if x.kind in FLOATS and kind in FLOATS and kind.itemsize >= x.kind.itemsize:
        return [x._replace(kind=kind)]
    need(x.rounded == 0, "a conversion of numbers that are rounded is not covered by the checker")
    with np.errstate(all="ignore"):
        found = x.array.astype(kind)
        back = found.astype(x.array.dtype)
    same = bool((back == x.array).all()) and (kind.kind != "f" or bool(np.isfinite(found).all()))
    need(same, "a conversion that rounds is not covered by the checker")
    return [stored(found)]


_OLD = "6 13 14"
OPERATORS: dict[str, tuple[str, Run]] = {
    **MOVES, **FOLDED,
    "Gemm": ("7 9 11 13", _gemm), "MatMul": ("1 9 13", _matmul),
    "Conv": ("1 11 22", conv), "ConvTranspose": ("1 11 22", conv_transpose),
    **dict.fromkeys(("Add", "Sub", "Mul", "Div"), ("7 13 14", _arithmetic)),
    **dict.fromkeys(("Sum", "Mean"), ("6 8 13", _arithmetic)), "Neg": ("6 13", _negated),
    "BatchNormalization": ("7 9 14 15", _batch_norm),
    "MaxPool": ("1 8 10 11 12 22", _pool), "AveragePool": ("7 10 11 19 22", _pool),
    **dict.fromkeys(("GlobalAveragePool", "GlobalMaxPool"), ("1 22", _global_pool)),
    "ReduceSum": ("1 11 13", _reduced), "ReduceMean": ("1 11 13 18", _reduced),
    **dict.fromkeys(("ReduceMax", "ReduceMin"), ("1 11 12 13 18 20", _reduced)),
    **dict.fromkeys(("ReduceSumSquare", "ReduceL1"), ("1 11 13 18", _reduced)),
    **dict.fromkeys(("Max", "Min"), ("6 8 12 13", _extremes)), "TopK": ("1 10 11 24", _top),
    "Softmax": ("1 11 13", _softmax), "LogSoftmax": ("1 11 13", _log_softmax),
    "LayerNormalization": ("17", _layer_norm), "RMSNormalization": ("23", _layer_norm),
    "Relu": (_OLD, _activation), "LeakyRelu": ("6 16", _activation), "PRelu": ("7 9 16", _prelu),
    **dict.fromkeys(("Abs", "Tanh", "Sigmoid", "Exp", "Log", "Sqrt", "Reciprocal"), ("6 13", _activation)),
    "InstanceNormalization": ("6 22", _group_norm), "GroupNormalization": ("21", _group_norm),
    "Einsum": ("12 28", _einsum), "CastLike": ("15 19 21 23 24 25", _cast),
    "ThresholdedRelu": ("10 22", _thresholded), "Shrink": ("9", _shrink),
    "Erf": ("9 13", _activation), "Gelu": ("20", _activation), "Swish": ("24", _swish),
    **dict.fromkeys(("Elu", "Selu", "HardSigmoid"), ("6 22", _activation)), "Celu": ("12 28", _activation),
    "HardSwish": ("14 22", _activation), "Mish": ("18 22", _activation),
    **dict.fromkeys(("Softplus", "Softsign"), ("1 22", _activation)), **dict.fromkeys(("Sin", "Cos"), ("7 22", _activation)),
    "Clip": ("6 11 12 13", _clip), "Pow": ("7 12 13 15", _power), "Cast": ("6 9 13 19 21 23 24 25 28", _cast),
}  # fmt: skip
"""Operator -> the versions of its definition that are read, and how."""

_TAKEN = (
    "Gemm MatMul Conv ConvTranspose Add Sub Mul Div BatchNormalization MaxPool AveragePool ReduceSum ReduceMean ReduceMax "
    "ReduceMin Max Min Softmax LayerNormalization RMSNormalization PRelu Clip Concat Reshape Transpose Slice Gather Pad Expand "
    "DepthToSpace Identity Flatten Squeeze Unsqueeze Sum Mean Neg Pow"
)
WORDS: dict[str, tuple[str, Run]] = {
    **{name: ("", OPERATORS[name][1]) for name in _TAKEN.split()},
    **dict.fromkeys(_SETTINGS, ("", _activation)),
    "Scale": ("", _scale), "GroupSort": ("", _group_sort), "Householder": ("", _reflected), "Implicit": ("", _implicit),
    "Repeat": ("", moving(repeat)),
}  # fmt: skip
"""The operators in which a certificate states an architecture: those of ONNX that the front ends speak, and a few beside them."""
