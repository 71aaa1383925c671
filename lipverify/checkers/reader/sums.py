"""Sums, products and maxima of values, entry by entry, and batch normalisation."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from lipverify.checkers.kernel.arithmetic import held
from lipverify.checkers.kernel.program import (
    Array,
    Order,
    Product,
    Scalar,
    View,
)
from lipverify.checkers.reader.building import (
    Builder,
    Stored,
    Value,
    size_of,
    weights,
)
from lipverify.checkers.reader.calls import Call, same_kind
from lipverify.checkers.reader.choices import Sign, gated
from lipverify.checkers.reader.folding import fold, fold_integers
from lipverify.checkers.reader.masks import added, lost
from lipverify.checkers.reader.moves import Results, Run, array_of
from lipverify.checkers.reader.recognition import extreme_of_difference, gate
from lipverify.checkers.reader.refusals import need


def _arithmetic(p: Builder, c: Call) -> Results:
    """Add, Sub, Mul, Div of two operands, Sum and Mean of several; and a product with a sign, read as 1 or 0."""
    for place in (0, 1) if c.op == "Mul" else ():
        by = c.marked(place, Sign)
        if by is not None:
            return [gated(p, by, c.any(1 - place))]
    operands = c.all()
    need(c.op in ("Sum", "Mean") or len(operands) == 2, f"{c.op} of {len(operands)} operands")
    if all(isinstance(x, Stored) and x.kind.kind != "f" for x in operands):
        return [fold_integers(p, c.op, [array_of(x) for x in operands])]
    same_kind(operands, c.op)
    old_shapes(c, operands)
    if c.op == "Add" and any(lost(p, x) for x in operands):
        return [added(p, operands)]
    size_of(np.broadcast_shapes(*(x.shape for x in operands)))
    kept = [x for x in operands if isinstance(x, Stored)]
    if len(kept) == len(operands):
        found = fold(p, c.op, kept)
        if found is not None:
            return [found]
        operands[0] = p.computed(operands[0])
    if c.op in ("Sum", "Mean") or len(kept) == 0:
        return [combined(p, c.op, [p.computed(x) for x in operands])]
    place = int(isinstance(operands[0], Stored))
    x, other = operands[place], operands[1 - place]
    assert isinstance(x, Value)
    assert isinstance(other, Stored)
    a, rounded = weights(other)
    if c.op in ("Add", "Sub"):
        if rounded:
            return [combined(p, c.op, [p.computed(o) for o in operands])]
        minus = c.op == "Sub"
        return [p.scaled(x, -1.0 if minus and place else 1.0, 0, -a if minus and not place else a)]
    if c.op == "Div" and place:
        return [p.scaled(p.scalar(x, "Reciprocal"), a, rounded)]
    need(c.op != "Div" or bool(a.all()), "a division by zero")
    if c.op == "Mul":
        return [p.scaled(x, a, rounded)]
    # Powers of 2 have an exact reciprocal.
    exact = rounded == 0 and bool((np.abs(np.frexp(a)[0]) == 0.5).all())
    return [p.scaled(x, held(1.0 / a), 0 if exact else 2 * rounded + 1)]


def old_shapes(c: Call, operands: Sequence[Value | Stored]) -> None:
    """Before operator set 8 nothing is broadcast by operators of several operands."""
    if c.op in ("Sum", "Mean", "Max", "Min") and c.version < 8:
        need(
            len({array_of(x).shape for x in operands}) == 1,
            f"{c.op} of different sizes in operator set {c.version}",
        )


def combined(p: Builder, op: str, values: Sequence[Value]) -> Value:
    """Entry by entry, of computed values."""
    if op in ("Mul", "Div"):
        x, y = values
        gated = gate(p, x, y) or gate(p, y, x) if op == "Mul" else None
        return gated or _multiplied(p, x, p.scalar(y, "Reciprocal") if op == "Div" else y)
    found = extreme_of_difference(p, op, *values) if op in ("Add", "Sub") else None
    if found is not None:
        a, b, least = found
        return extreme(p, *stacked(p, [a, b]), least)
    terms = np.ones(len(values)) / (len(values) if op == "Mean" else 1)
    terms[1:] *= -1.0 if op == "Sub" else 1.0
    x, groups, shape = stacked(p, values)
    return p.summed(x, groups, shape, terms, int(op == "Mean"))


def stacked(p: Builder, values: Sequence[Value]) -> tuple[Value, Array, tuple[int, ...]]:
    """Values broadcast together: one value of all of them, groups [n, count] of its places, and the shape of a result."""
    shape = np.broadcast_shapes(*(v.shape for v in values))
    p.charge(3 * len(values) * size_of(shape))
    sources, places = p.joined(values)
    x = Value(sources, np.stack(np.broadcast_arrays(*places), -1), values[0].kind)
    return x, p.positions(x).reshape(-1, len(values)), shape


def extreme(p: Builder, x: Value, groups: Array, shape: Sequence[int], least: bool) -> Value:
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
    factor = held(weight / np.sqrt(var + epsilon), weight)
    return [p.scaled(p.scaled(x, 1.0, 0, -mean), factor, 4, bias)]


SUMS: dict[str, tuple[str, Run]] = {
    **dict.fromkeys(("Add", "Sub", "Mul", "Div"), ("7 13 14", _arithmetic)),
    **dict.fromkeys(("Sum", "Mean"), ("6 8 13", _arithmetic)),
    "Neg": ("6 13", _negated),
    "BatchNormalization": ("7 9 14 15", _batch_norm),
}
SCALE: dict[str, tuple[str, Run]] = {"Scale": ("", _scale)}
