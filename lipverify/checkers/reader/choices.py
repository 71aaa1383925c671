"""Choices by the sign of a computed tensor, where they do not jump: x above 0 and a multiple of x below."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lipverify.checkers.kernel.program import Affine
from lipverify.checkers.reader.building import Builder, Missing, Operand, Stored, Value
from lipverify.checkers.reader.calls import Call
from lipverify.checkers.reader.refusals import need

_READ = "a comparison of computed numbers is not covered by the checker"


@dataclass(frozen=True)
class Sign(Missing):
    """Where x > 0 or x >= 0 holds (above), or the opposite; true and false, or 1 and 0."""

    x: Value
    above: bool


def compared(c: Call) -> Sign | None:
    """x > 0, 0 < x and the like, of a computed tensor and stored zeros; None: nothing is computed."""
    left, right = c.any(0), c.any(1)
    if isinstance(left, Stored) and isinstance(right, Stored):
        return None
    x, other = (left, right) if isinstance(left, Value) else (right, left)
    need(isinstance(other, Stored) and other.kind == x.kind and c.op != "Equal", _READ)
    assert isinstance(x, Value)
    assert isinstance(other, Stored)
    need(_zeros(other, x), _READ)
    return Sign(_READ, x, c.op.startswith("Greater") == (x is left))


def selected(p: Builder, by: Sign, on: Operand, off: Operand) -> Value:
    """`on` where the sign holds, `off` elsewhere.

    Raises:
        NotCovered: the upper one is not what is compared, or the lower one no stored multiple of it. Then it may jump.
    """
    x, (upper, lower) = by.x, (on, off) if by.above else (off, on)
    p.charge(2 * x.places.size)
    if isinstance(lower, Stored) and _zeros(lower, x):
        return gated(p, Sign(_READ, x, True), upper)
    if isinstance(upper, Stored) and _zeros(upper, x):
        return gated(p, Sign(_READ, x, False), lower)
    slope = _multiple(p, x, lower)
    need(slope is not None and _multiple(p, x, upper) == 1.0, _READ)
    assert slope is not None
    return p.scalar(x, "LeakyRelu", {"alpha": slope})


def gated(p: Builder, by: Sign, factor: Operand) -> Value:
    """c x where the sign holds, 0 elsewhere: c relu(x), or -c relu(-x)."""
    slope = _multiple(p, by.x, factor)
    need(slope is not None, _READ)
    assert slope is not None
    one = 1.0 if by.above else -1.0
    return p.scaled(p.scalar(p.scaled(by.x, one), "Relu"), one * slope)


def _zeros(a: Stored, x: Value) -> bool:
    """Whether a stored tensor is 0 everywhere, of the type of x, and of a shape that makes x no larger."""
    small = len(a.array.shape) <= len(x.shape) and np.broadcast_shapes(a.array.shape, x.shape) == x.shape
    return small and a.kind == x.kind and not a.rounded and not a.array.any()


def _multiple(p: Builder, x: Value, y: Operand) -> float | None:
    """c where y is c x for one stored number c: x itself, or a step that scales all of x."""
    if not isinstance(y, Value) or y.kind != x.kind or y.shape != x.shape:
        return None
    if y.sources == x.sources and np.array_equal(y.places, x.places):
        return 1.0
    step = p.steps[y.sources[0]]
    plain = isinstance(step, Affine) and len(y.sources) == 1 and step.kernel.shape == (x.places.size, 1, 1)
    if not plain or not np.array_equal(y.places.ravel(), np.arange(x.places.size)):
        return None
    assert isinstance(step, Affine)
    own = step.view.sources == x.sources and np.array_equal(step.view.places, x.places.ravel())
    entry = np.array_equal(step.index.ravel(), np.arange(x.places.size))
    exact = step.rounded == 0 and step.offset is None and step.lattice is None
    factor = float(step.kernel.flat[0])
    return factor if own and entry and exact and bool((step.kernel == factor).all()) else None
