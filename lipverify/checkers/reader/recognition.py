"""What exporters take apart and the kernel knows as one: SiLU and GELU as products, sorts as pairs of maxima and minima."""

from __future__ import annotations

from typing import TypeGuard

import numpy as np

from lipverify.checkers.kernel.program import Affine, Array, Scalar, Step
from lipverify.checkers.reader.building import Builder, Value


def gate(p: Builder, x: Value, y: Value) -> Value | None:
    """x sigmoid(b x), and x (1 + erf(a x)), as one activation: where y is such a gate of x."""
    step, law = _behind(p, y), "Silu"
    if (
        _entrywise(step)
        and step.offset is not None
        and bool((step.kernel == 1).all() and (step.offset == 1).all())
    ):
        step, law = _source(p, step), "ErfGate"
    wanted = "Sigmoid" if law == "Silu" else "Erf"
    if not isinstance(step, Scalar) or step.law != wanted or x.shape != y.shape:
        return None
    inner, scale = _source(p, step), 1.0
    view = step.view
    # One rounding of the scale is as good as one of its product with x, which every curve allows for.
    if (
        _entrywise(inner)
        and inner.offset is None
        and inner.rounded <= 1
        and bool((inner.kernel == inner.kernel.flat[0]).all())
    ):
        scale, view = float(inner.kernel.flat[0]), inner.view
    for factor, read in ((1.0, step.view), (scale, view)):
        if read.sources == x.sources and np.array_equal(read.places, x.places.reshape(-1)):
            return p.scalar(x, law, {"beta" if law == "Silu" else "scale": factor})
    return None


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
