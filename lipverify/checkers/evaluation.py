"""A program evaluated in float64, and how far float32 (or another type) may be from that.

The kernel proves nothing with this: it is how the reader is held against a runtime, and how tests look at a program.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from lipverify.checkers.kernel.account import charge
from lipverify.checkers.kernel.curves import curve
from lipverify.checkers.kernel.program import (
    Affine,
    Array,
    Constant,
    Implicit,
    Input,
    Normalise,
    Order,
    Product,
    Program,
    Reflect,
    Scalar,
    Softmax,
    Step,
    View,
    by_source,
    views_of,
)
from lipverify.errors import NotCovered

_ROUNDS = 4000
"""Rounds of the fixed point of an implicit layer."""
_PIECEWISE = ("Relu", "LeakyRelu", "PRelu", "Abs", "Clip", "Round")


def evaluate(program: Program, x: Array) -> list[Array]:
    """The results of all steps. x: [batch, inputs]; results: [batch, size], float64.

    Raises:
        NotCovered: a law that has no values, or an implicit layer whose fixed point is not found.
    """
    return [values for values, _ in _walk(program, x, None)]


def shown(view: View, results: Sequence[Array]) -> Array:
    """What a view shows of results [batch, size]: [batch, n]."""
    batch = max((len(r) for r in results), default=0)
    found = np.zeros((batch, len(view.places)))
    for source, at, places in by_source(view, [results[s].shape[1] for s in view.sources]):
        found[:, at] = results[source][:, places]
    return found


def evaluate_with_deviations(program: Program, x: Array, unit: float) -> tuple[list[Array], list[Array]]:
    """What all outputs show, and standard deviations of the same computed with relative roundings of `unit`: [batch, n] each.

    The model: the roundings of a sum are independent, each of the size of its terms taken as a root of squares, and pass
    through later steps as deviations do. It is no bound; it says on which scale a difference means another function.
    """
    last = dict.fromkeys((s for o in program.outputs for s in o.view.sources), len(program.steps))
    for k in range(len(program.steps) - 1, -1, -1):
        for view in views_of(program.steps[k]):
            for s in view.sources:
                last.setdefault(s, k)
    pairs = _walk(program, x, unit, last)
    values, deviations = [p[0] for p in pairs], [p[1] for p in pairs]
    return [shown(o.view, values) for o in program.outputs], [
        shown(o.view, deviations) for o in program.outputs
    ]


def absorbed(program: Program, x: Array) -> list[Array]:
    """How much each output [n] changes from x[0] to x[1] by terms that sums in float64 lose beside larger ones. x: [2, inputs].

    To first order: a sum that changes by less than `_ABSORBED` of its scale has lost that change, which passes through later
    steps as deviations do. 0 where nothing is lost: terms that cancel are no smaller than their sum. It is no bound.
    """
    results, lost = [p[0] for p in _walk(program, x, None)], []
    with np.errstate(all="ignore"):
        for k, step in enumerate(program.steps):
            charge(0)
            if isinstance(step, Input | Constant):
                lost.append(np.zeros((1, step.size)))
                continue
            read, before = ([shown(view, of) for view in views_of(step)] for of in (results, lost))
            lost.append(_lost(step, read[0], read[-1], results[k], before[0], before[-1]))
        return [shown(o.view, lost)[0] for o in program.outputs]


_ABSORBED = 2.0**-44


def behind(program: Program, start: int, places: Array) -> list[Array]:
    """Which entries of each output, [n], may depend on results of the step `start` at these places: by how steps are joined."""
    marks = [np.zeros((1, step.size)) for step in program.steps]
    marks[start][0, places] = 1.0
    for k, step in enumerate(program.steps[start + 1 :], start + 1):
        x = sum((shown(view, marks) for view in views_of(step)), np.zeros(1))
        if x.any():
            marks[k] = _joined(step, x)
    return [shown(o.view, marks)[0] > 0 for o in program.outputs]


def _joined(step: Step, x: Array) -> Array:
    """[1, size], positive where a result of the step reads a place of x [1, n] that is positive."""
    if isinstance(step, Affine):
        return _mapped(step, x, np.abs(np.sign(step.kernel)))
    if isinstance(step, Scalar | Product):
        return x
    if isinstance(step, Implicit):
        return np.ones((1, step.size))
    assert isinstance(step, Order | Softmax | Normalise | Reflect)
    found = _grouped(x, step.groups, 0.0).max(-1, keepdims=True)
    if isinstance(step, Reflect):
        out = np.empty_like(x)
        out[:, step.groups] = found
        return out
    one = isinstance(step, Order) and not step.whole
    return np.repeat(found, 1 if one else step.groups.shape[-1], -1).reshape(1, -1)


def _lost(step: Step, x: Array, other: Array, y: Array, before: Array, beside: Array) -> Array:
    """Of one step, [1, size]. x, other, y: [2, n]; before, beside: what is lost of x and other, [1, n]."""
    if isinstance(step, Affine):
        squares, offset = np.square(step.kernel), 0.0 if step.offset is None else step.offset
        moved = np.sqrt(_mapped(step, np.square(x[1:] - x[:1]), squares))
        scale = np.sqrt(_mapped(step, np.square(x[:1]), squares) + np.square(offset))
        own = np.where((moved <= _ABSORBED * scale) & np.isfinite(scale), moved, 0.0)
        return _root(own, np.sqrt(_mapped(step, np.square(before), squares)))
    if not before.any() and not beside.any():
        return np.zeros((1, step.size))
    x, other, y = x[:1], other[:1], y[:1]
    if isinstance(step, Scalar):  # a secant over what float64 does not lose
        value = curve(step.law, step.settings, step.slopes).value
        d = np.maximum(64.0 * before, 2.0**-30 * np.abs(x))
        moved = np.fmax(np.abs(value(x + d) - y), np.abs(value(x - d) - y))
        return np.where(before > 0, moved / d * before, 0.0)
    if isinstance(step, Softmax):  # where all of it is one entry nothing passes
        s, p = before[:, step.groups], y.reshape(1, *step.groups.shape)
        others = np.sqrt(np.maximum(np.square(p * s).sum(-1, keepdims=True) - np.square(p * s), 0.0))
        return (p * _root((1.0 - p) * s, others)).reshape(1, -1)
    return _deviation(step, x, other, y, before, beside, 0.0)


def _walk(
    program: Program, x: Array, unit: float | None, last: Mapping[int, int] | None = None
) -> list[tuple[Array, Array]]:
    """Values and deviations of all steps; last: those that step k is the last one to read are dropped after it."""
    results: list[Array] = []
    deviations: list[Array] = []
    with np.errstate(all="ignore"):
        for k, step in enumerate(program.steps):
            charge(0)  # whoever waits may have waited long enough
            if isinstance(step, Input):
                results.append(np.array(x, np.float64).reshape(len(x), step.size))
                deviations.append(np.zeros_like(results[-1]))
                continue
            read = [shown(view, results) for view in views_of(step)]
            results.append(_value(step, read[0], read[-1]))
            if unit is None:
                deviations.append(_NOTHING)
                continue
            spread = [shown(view, deviations) for view in views_of(step)]
            deviations.append(_deviation(step, read[0], read[-1], results[-1], spread[0], spread[-1], unit))
            for s in {s for view in views_of(step) for s in view.sources} if last is not None else ():
                if last is not None and last[s] == k:
                    results[s] = deviations[s] = _NOTHING
    return list(zip(results, deviations, strict=True))


_NOTHING = np.zeros((0, 0))


def _value(step: Step, x: Array, other: Array) -> Array:
    """One step. x, other: [batch, n]."""
    if isinstance(step, Constant):
        return np.broadcast_to(step.values, (len(x), step.size)).copy()
    if isinstance(step, Affine):
        return _mapped(step, x, step.kernel) + (0.0 if step.offset is None else step.offset)
    if isinstance(step, Scalar):
        return np.asarray(curve(step.law, step.settings, step.slopes).value(x))
    if isinstance(step, Order):
        found = _grouped(x, step.groups, -np.inf)
        return np.sort(found, axis=-1).reshape(len(x), -1) if step.whole else found.max(-1)
    if isinstance(step, Reflect):
        y, w = x[:, step.groups], step.vectors
        along = np.maximum(-(y * w).sum(-1, keepdims=True), 0.0) * 2.0 / (w * w).sum(-1, keepdims=True)
        out = np.empty_like(x)
        out[:, step.groups] = y + along * w
        return out
    if isinstance(step, Product):
        return np.asarray(x * other)
    if isinstance(step, Softmax):
        y = x[:, step.groups]
        e = np.exp(y - y.max(-1, keepdims=True))
        return np.asarray(e / e.sum(-1, keepdims=True)).reshape(len(x), -1)
    if isinstance(step, Normalise):
        y, scale = _centred(step, x)
        return (step.weight * y / scale + step.bias).reshape(len(x), -1)
    if isinstance(step, Implicit):
        return _fixed_point(step, x)
    raise NotCovered(f"steps of the kind {type(step).__name__} have no values")


def _mapped(step: Affine, x: Array, kernel: Array) -> Array:
    """The linear part with this kernel, one sample after another: gathered windows of several would not fit."""
    padded = np.append(x, np.zeros((len(x), 1)), axis=1)
    out = np.empty((len(x), step.size))
    narrow = kernel.shape[0] > 64 or kernel.shape[2] == 1
    for k, row in enumerate(padded):
        terms = row[step.index]
        y = (
            np.einsum("got,gpt->gop", kernel, terms)
            if narrow
            else np.matmul(kernel, np.swapaxes(terms, 1, 2))
        )
        out[k] = y.reshape(-1)
    return out


def _grouped(x: Array, groups: Array, missing: float) -> Array:
    return np.append(x, np.full((len(x), 1), missing), axis=1)[:, groups]


def _centred(step: Normalise, x: Array) -> tuple[Array, Array]:
    y = x[:, step.groups]
    y = y - y.mean(-1, keepdims=True) if step.centred else y
    return y, np.sqrt((y * y).mean(-1, keepdims=True) + step.epsilon)


def _fixed_point(step: Implicit, x: Array) -> Array:
    """By averaged rounds, which converge for every monotone layer that is not too stiff."""
    phi: Callable[[Array], Array] = curve(step.law, step.settings, None).value
    given = x @ step.inputs.T + (0.0 if step.bias is None else step.bias)
    z = np.zeros((len(x), step.size))
    pace = 1.0
    for _ in range(_ROUNDS):
        after = phi(z @ step.recurrent.T + given)
        if not np.isfinite(after).all():
            z, pace = np.zeros_like(z), pace / 2
            continue
        gap = float(np.abs(after - z).max(initial=0.0))
        if gap <= 2.0**-44 * (1.0 + float(np.abs(z).max(initial=0.0))):
            return after
        z = z + pace * (after - z)
        pace = max(pace * 0.998, 1.0 / 64)
    raise NotCovered("the fixed point of an implicit layer was not found")


def _root(*squares: Any) -> Array:
    return np.asarray(np.sqrt(sum(np.square(s) for s in squares)))


def _own(step: Scalar, x: Array, y: Array, unit: float) -> Array:
    """What an activation itself is away from its value, in roundings: of its largest part, as far as that shows in y."""
    settings, size = dict(step.settings), np.abs(y)
    if step.law in (*_PIECEWISE, "Sqrt", "Square", "Reciprocal"):
        return size
    if step.law == "HardSigmoid":  # two roundings ahead of a clip, which cuts them off
        inner, shift = settings["alpha"] * x, settings["beta"]
        away = 64.0 * unit * (np.abs(inner) + abs(shift))
        ends = [np.abs(np.clip(inner + shift + sign * away, 0.0, 1.0) - y) for sign in (1.0, -1.0)]
        return np.asarray(size + np.fmax(*ends) / (64.0 * unit))
    most = max([1.0, *(abs(value) for value in settings.values())])
    if step.law == "Exp":
        return size * (1.0 + np.abs(x))
    if step.law == "Power":
        return size * most * (1.0 + np.abs(np.log(np.abs(x))))
    return np.maximum(size, most)


def _moved(step: Step, x: Array, y: Array, spread: Array) -> Array:
    """How far a step without sums is from y where all of x moves by 64 deviations either way, in parts of 64."""
    d = 64.0 * spread
    return np.asarray(np.fmax(*(np.abs(_value(step, x + by, x) - y) for by in (d, -d))) / 64.0)


def _deviation(
    step: Step, x: Array, other: Array, y: Array, spread: Array, beside: Array, unit: float
) -> Array:
    """Standard deviations of one step. spread, beside: those of x and other."""
    if isinstance(step, Constant):
        return np.zeros_like(y)
    if isinstance(step, Affine):
        squares = np.square(step.kernel)
        terms = (
            _mapped(step, np.square(x), squares)
            * unit**2
            * (1.0 + np.log2(step.kernel.shape[2] + 1.0) + step.rounded)
        )
        return np.asarray(np.sqrt(_mapped(step, np.square(spread), squares) + terms + np.square(unit * y)))
    if isinstance(step, Scalar):
        if step.law == "Round":  # a runtime divides by the step first
            spread = _root(spread, unit * x)
        spread = np.maximum(spread, unit**2 * (1.0 + np.abs(x)))
        return _root(_moved(step, x, y, spread), unit * _own(step, x, y, unit))
    if isinstance(step, Order):  # entries that are far below the largest one move it nowhere
        return _moved(step, x, y, spread)
    if isinstance(step, Reflect):
        w = step.vectors
        inner = np.square(w * _root(spread[:, step.groups], unit * x[:, step.groups])).sum(-1, keepdims=True)
        out = np.empty_like(x)
        out[:, step.groups] = _root(
            spread[:, step.groups], 2.0 * w / (w * w).sum(-1, keepdims=True) * np.sqrt(inner)
        )
        return _root(out, unit * y)
    if isinstance(step, Product):
        # Where both factors are rounding so is their product: of the size that a square has above, one step of a curve.
        return _root(x * beside, other * spread, 64.0 * spread * beside, unit * y)
    if isinstance(step, Softmax):
        z, s, p = x[:, step.groups], spread[:, step.groups], y.reshape(len(x), *step.groups.shape)
        around = np.sqrt(np.square(p * s).sum(-1, keepdims=True))
        return (p * _root(s, around, unit * (4.0 + z.max(-1, keepdims=True) - z))).reshape(len(x), -1)
    if isinstance(step, Normalise):
        z, scale = _centred(step, x)
        own = _root(spread[:, step.groups], unit * x[:, step.groups])
        own = _root(own, np.sqrt(np.square(own).mean(-1, keepdims=True)))
        common = np.sqrt(np.square(own * z / scale).mean(-1, keepdims=True)) * np.abs(z) / scale
        found = np.abs(step.weight) / scale * _root(own, common, unit * z)
        return _root(
            found.reshape(len(x), -1),
            unit * y,
            unit * np.broadcast_to(step.bias, z.shape).reshape(len(x), -1),
        )
    raise NotCovered(f"steps of the kind {type(step).__name__} are computed by no runtime")
