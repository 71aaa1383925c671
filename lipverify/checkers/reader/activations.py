"""Activations: functions of every entry. The names of laws are those of `kernel.curves`."""

from __future__ import annotations

import math

import numpy as np

from lipverify.checkers.reader.building import (
    Builder,
    Stored,
    size_of,
)
from lipverify.checkers.reader.calls import Call
from lipverify.checkers.reader.folding import fold_one
from lipverify.checkers.reader.moves import Results, Run
from lipverify.checkers.reader.refusals import need
from lipverify.checkers.reader.sums import combined

# ONNX name -> settings with their defaults. The names of laws are those of `kernel.curves`.
SETTINGS: dict[str, dict[str, float]] = {
    **{name: {} for name in ("Relu", "Abs", "Tanh", "Sigmoid", "Erf", "Softsign", "Asinh", "Atan", "Mish", "HardSwish", "Sin",
                             "Cos", "Exp", "Log", "Sqrt", "Reciprocal", "Tanhshrink", "LogSigmoid", "Gelu")},
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
    own = {} if (law == "Softplus" and not c.words) or c.op == "Gelu" else SETTINGS[law]
    settings = {key: c.number(key, default) for key, default in own.items()}
    need(law != "Celu" or settings["alpha"] > 0, "a Celu with a setting that is not positive")
    if law == "Softplus":
        settings = settings or {"beta": 1.0}
        need(settings["beta"] != 0, "a setting of an activation")
    return [p.scalar(x, law, settings)]


def _thresholded(p: Builder, c: Call) -> Results:
    """A ReLU where the threshold is 0; elsewhere a function that jumps."""
    need(c.number("alpha", 1.0) == 0, "a function that jumps is not covered by the checker")
    return [p.scalar(c.value(p, 0), "Relu")]


def _shrink(p: Builder, c: Call) -> Results:
    """x moved towards 0 by up to `bias`, where the threshold is as large: x - clip(x). Elsewhere it jumps."""
    x, bias, threshold = c.value(p, 0), c.number("bias", 0.0), c.number("lambd", 0.5)
    need(bias == threshold and bias > 0, "a function that jumps is not covered by the checker")
    return [combined(p, "Sub", [x, p.scalar(x, "Clip", {"min": -bias, "max": bias})])]


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


ACTIVATIONS: dict[str, tuple[str, Run]] = {
    "Relu": ("6 13 14", _activation),
    "LeakyRelu": ("6 16", _activation),
    "PRelu": ("7 9 16", _prelu),
    **dict.fromkeys(("Abs", "Tanh", "Sigmoid", "Exp", "Log", "Sqrt", "Reciprocal"), ("6 13", _activation)),
    "Erf": ("9 13", _activation),
    "Gelu": ("20", _activation),
    "Swish": ("24", _swish),
    **dict.fromkeys(("Elu", "Selu", "HardSigmoid"), ("6 22", _activation)),
    "Celu": ("12 28", _activation),
    "HardSwish": ("14 22", _activation),
    "Mish": ("18 22", _activation),
    **dict.fromkeys(("Softplus", "Softsign"), ("1 22", _activation)),
    "Asinh": ("9 22", _activation),
    "Atan": ("7 22", _activation),
    **dict.fromkeys(("Sin", "Cos"), ("7 22", _activation)),
    "Clip": ("6 11 12 13", _clip),
    "Pow": ("7 12 13 15", _power),
    "ThresholdedRelu": ("10 22", _thresholded),
    "Shrink": ("9", _shrink),
}
PLAIN: dict[str, tuple[str, Run]] = dict.fromkeys(SETTINGS, ("", _activation))
