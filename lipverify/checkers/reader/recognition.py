"""What exporters take apart and the kernel knows as one: SiLU and GELU as products, sorts as pairs of maxima and minima."""

from __future__ import annotations

from typing import TypeGuard

import numpy as np

from lipverify.checkers.kernel.program import Affine, Array, Scalar, Step
from lipverify.checkers.reader.building import Builder, Value


def gate(p: Builder, x: Value, y: Value) -> Value | None:
    """x sigmoid(b x), and x (1 + erf(a x)), as one activation: where y is such a gate of x, or of what x is a multiple of."""
    if x.shape != y.shape:
        return None
    step = _behind(p, x)
    if _entrywise(step) and step.offset is None and _uniform(step.kernel):
        base = Value(step.view.sources, step.view.places.reshape(x.shape), x.kind)
        inner = _gate(p, base, y)
        if inner is not None:
            return p.scaled(inner, float(step.kernel.flat[0]), step.rounded)
    return _gate(p, x, y)


def _gate(p: Builder, x: Value, y: Value) -> Value | None:
    step, law = _behind(p, y), "Silu"
    if (
        _entrywise(step)
        and step.offset is not None
        and not step.rounded
        and bool((step.kernel == 1).all() and (step.offset == 1).all())
    ):
        step, law = _source(p, step), "ErfGate"
    wanted = "Sigmoid" if law == "Silu" else "Erf"
    if not isinstance(step, Scalar) or step.law != wanted:
        return None
    inner, scale, rounded = _source(p, step), 1.0, 0
    view = step.view
    # One rounding of the scale is as good as one of its product with x, which every curve allows for.
    if _entrywise(inner) and inner.offset is None and inner.rounded <= 1 and _uniform(inner.kernel):
        scale, view, rounded = float(inner.kernel.flat[0]), inner.view, inner.rounded
    for factor, read, off in ((1.0, step.view, 0), (scale, view, rounded)):
        if read.sources == x.sources and np.array_equal(read.places, x.places.reshape(-1)):
            return p.scalar(x, law, {"beta" if law == "Silu" else "scale": factor}, None, off)
    return None


def extreme_of_difference(p: Builder, op: str, x: Value, y: Value) -> tuple[Value, Value, bool] | None:
    """a, b and whether it is their minimum: where x + y is relu(a - b) + b, or x - y is a - relu(a - b)."""
    if x.shape != y.shape:
        return None
    for relu, other in ((x, y), (y, x)) if op == "Add" else ((y, x),):
        sides = _difference(p, relu)
        if sides is not None and _same(p, sides[1 if op == "Add" else 0], other):
            return *sides, op == "Sub"
    return None


def _difference(p: Builder, relu: Value) -> tuple[Value, Value] | None:
    """a and b, where a value is relu(a - b), entry by entry."""
    step = p.steps[relu.sources[0]]
    if (
        len(relu.sources) != 1
        or not isinstance(step, Scalar)
        or step.law != "Relu"
        or bool((relu.places < 0).any())
    ):
        return None
    minus = p.steps[step.view.sources[0]] if len(step.view.sources) == 1 else None
    if (
        not isinstance(minus, Affine)
        or minus.kernel.shape != (1, 1, 2)
        or minus.offset is not None
        or minus.rounded
    ):
        return None
    at = step.view.places[relu.places]
    if list(minus.kernel.flat) != [1.0, -1.0] or bool((at < 0).any()) or bool((minus.index < 0).any()):
        return None
    p.charge(4 * at.size)
    a, b = (Value(minus.view.sources, minus.view.places[minus.index[0, at, k]], relu.kind) for k in (0, 1))
    return a, b


def _same(p: Builder, x: Value, y: Value) -> bool:
    """Whether two values of one shape are the same entries of the same steps."""
    _, (first, second) = p.joined([x, y])
    return np.array_equal(first, second)


def _uniform(kernel: Array) -> bool:
    return bool((kernel == kernel.flat[0]).all())


def _entrywise(step: Step | None) -> TypeGuard[Affine]:
    """Whether every entry of the result is a multiple of the same entry of what is read, plus a constant."""
    if not isinstance(step, Affine) or step.kernel.shape != (step.size, 1, 1):
        return False
    return np.array_equal(step.index.ravel(), np.arange(step.size))


def _whole(places: Array, step: Step) -> bool:
    return places.size == step.size and np.array_equal(places.reshape(-1), np.arange(step.size))


def _behind(p: Builder, x: Value) -> Step | None:
    """The step of which a value holds the whole result in order."""
    step = p.steps[x.sources[0]]
    return step if len(x.sources) == 1 and _whole(x.places, step) else None


def _source(p: Builder, step: Step) -> Step | None:
    """The step of which another reads the whole result in order."""
    if len(step.view.sources) != 1:
        return None
    before = p.steps[step.view.sources[0]]
    return before if _whole(step.view.places, before) else None
