"""What exporters take apart and the kernel knows as one: SiLU and GELU as products, sorts as pairs of maxima and minima."""

from __future__ import annotations

import itertools
from fractions import Fraction
from typing import TypeGuard

import numpy as np

from lipverify.checkers.kernel.program import Affine, Array, Product, Scalar, Step, View, sizes_of
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
        if isinstance(step, Scalar) and step.law == "Tanh":
            return _tanh_gate(p, x, step)
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


def _tanh_gate(p: Builder, x: Value, tanh: Scalar) -> Value | None:
    """x (1 + tanh(s x + c x^3)), as tanh GELU is written, of numbers that are exact."""
    found = _Polynomials(p, x).of(tanh.view)
    if (
        found is None
        or len(found) not in (2, 4)
        or found[0] != 0
        or found[1] == 0
        or found[2:3] not in ((), (0,))
    ):
        return None
    scale, cubic = found[1], found[3] if len(found) == 4 else Fraction(0)
    exact = Fraction(float(scale)) == scale and Fraction(float(cubic)) == cubic
    if not exact or not 0 <= cubic / scale**3 <= 1:
        return None
    return p.scalar(x, "TanhGate", {"scale": float(scale), "cubic": float(cubic)})


_DEGREE, _VISITS = 3, 16


class _Polynomials:
    """Values as polynomials of one value, entry by entry: coefficients of 1, x, x^2, ..; None where they are none."""

    def __init__(self, p: Builder, x: Value) -> None:
        self.p, self.visits = p, 0
        self.base = self._entries(View(x.sources, x.places.reshape(-1)))

    def _entries(self, view: View) -> tuple[Array, Array] | None:
        """Which step every number belongs to, and its place there; None where one is the number 0."""
        if not len(view.places) or bool((view.places < 0).any()):
            return None
        self.p.charge(2 * len(view.places) + len(view.sources))
        ends = np.cumsum([0, *sizes_of(view, self.p.steps)])
        owner = np.searchsorted(ends, view.places, side="right") - 1
        return np.array(view.sources)[owner], view.places - ends[owner]

    def of(self, view: View) -> tuple[Fraction, ...] | None:
        self.visits += 1
        entries = self._entries(view)
        if entries is None or self.base is None or self.visits > _VISITS:
            return None
        if all(np.array_equal(mine, base) for mine, base in zip(entries, self.base, strict=True)):
            return Fraction(0), Fraction(1)
        step = self.p.steps[int(entries[0][0])]
        if bool((entries[0] != entries[0][0]).any()) or not _whole(entries[1], step):
            return None
        if isinstance(step, Affine) and not step.rounded:
            return self._of_sum(step)
        power = {"Square": 2, "Power": 3}.get(step.law, 0) if isinstance(step, Scalar) else 0
        if isinstance(step, Scalar) and power and (power == 2 or step.settings == (("exponent", 3.0),)):
            found = self.of(step.view)
            return _times(found, _times(found, found) if power == 3 else found)
        if isinstance(step, Product):
            return _times(self.of(step.view), self.of(step.other))
        return None

    def _of_sum(self, step: Affine) -> tuple[Fraction, ...] | None:
        """A multiple and a constant, or the sum of two values."""
        if _entrywise(step) and _uniform(step.kernel) and (step.offset is None or _uniform(step.offset)):
            found = self.of(step.view)
            start = 0.0 if step.offset is None else float(step.offset.flat[0])
            factor = Fraction(float(step.kernel.flat[0]))
            return _plus(_times(found, (factor,)), (Fraction(start),))
        if step.kernel.shape != (1, 1, 2) or step.offset is not None or bool((step.index < 0).any()):
            return None
        total: tuple[Fraction, ...] | None = ()
        for k in (0, 1):
            found = self.of(View(step.view.sources, step.view.places[step.index[0, :, k]]))
            factor = Fraction(float(step.kernel[0, 0, k]))
            total = _plus(total, _times(found, (factor,)))
        return total


def _plus(a: tuple[Fraction, ...] | None, b: tuple[Fraction, ...] | None) -> tuple[Fraction, ...] | None:
    if a is None or b is None:
        return None
    return tuple(s + t for s, t in itertools.zip_longest(a, b, fillvalue=Fraction(0)))


def _times(a: tuple[Fraction, ...] | None, b: tuple[Fraction, ...] | None) -> tuple[Fraction, ...] | None:
    if a is None or b is None or len(a) + len(b) - 2 > _DEGREE:
        return None
    found = [Fraction(0)] * (len(a) + len(b) - 1)
    for (i, s), (j, t) in itertools.product(enumerate(a), enumerate(b)):
        found[i + j] += s * t
    return tuple(found)


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
