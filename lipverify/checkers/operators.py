"""Operators of a model, in the words of ONNX, as steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from lipverify.checkers.arithmetic import Array, NotCovered, need, root_above
from lipverify.checkers.functions import CURVES, Curve
from lipverify.checkers.steps import MAX_SIZE, Bounded, Call, Order, Program, Scalar, Value


def run(p: Program, call: Call) -> None:
    """Adds one operator to a program."""
    known, translate = OPERATORS.get(call.op, ("", None))
    if translate is None or (unknown := set(call.given) - set(known.split())):
        what = "operator" if translate is None else f"attribute {min(unknown)[:40]!a} of"
        raise NotCovered(f"{what} {call.op[:40]!a} is not covered by the checker")
    need({call.output}.isdisjoint(p.values.keys() | p.stored.keys()), "two operators write one value")
    translate(p, call)


def positions(x: Value) -> Array:
    return np.arange(x.places.size).reshape(x.places.shape)


def window(c: Call, x: Array, kernel: Sequence[int]) -> tuple[Array, tuple[Any, ...]]:
    """Windows [..., *positions, *kernel] of the last axes, padded with -1; (stride, dilation, padding)."""
    n = len(kernel)
    stride, dilation = c.integers("strides", [1] * n), c.integers("dilations", [1] * n)
    pads, auto = c.integers("pads", [0] * 2 * n), c.given.get("auto_pad", "NOTSET")
    if c.given.get("ceil_mode") or c.given.get("storage_order") or auto not in ("NOTSET", "VALID"):
        raise NotCovered("automatic padding and rounding up are not covered by the checker")
    need(len(pads) == 2 * n == 2 * x.ndim - 4 and c.integers("kernel_shape", kernel) == [*kernel], "a window")
    need(min(*stride, *dilation, *kernel) >= 1 and min(pads) >= 0 and x.size < MAX_SIZE, "a window")
    padding = list(zip(pads[:n], pads[n:], strict=True))
    x = np.pad(x, [(0, 0)] * (x.ndim - n) + padding, constant_values=-1)
    reach = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
    view = sliding_window_view(x, reach, tuple(range(x.ndim - n, x.ndim)))
    cuts: Any = (..., *(slice(None, None, s) for s in (*stride, *dilation)))
    view = np.asarray(view[cuts])
    need(0 < view.size <= MAX_SIZE, "windows too many to check")
    return view, (stride, dilation, padding)


def _matrix(p: Program, c: Call) -> None:
    if c.given.get("alpha", 1.0) != 1 or c.given.get("beta", 1.0) != 1 or c.given.get("transA", 0):
        raise NotCovered("a scaled or transposed Gemm is not covered by the checker")
    x, weight = p.value(c.inputs[0]), p.array(c.inputs[1]).astype(np.float64)
    need(weight.ndim == 2, "a stored factor that is no matrix")
    kernel = (weight if c.given.get("transB", 0) else weight.T)[None]
    *lead, width = x.places.shape
    bias, out = _optional(p, c, 2), (kernel.shape[1], *lead)
    offset = None if bias is None else np.moveaxis(np.broadcast_to(bias, (*lead, out[0])), -1, 0)
    y = p.map(c.output, x, kernel, positions(x).reshape(1, -1, width), out, offset=offset)
    p.values[c.output] = Value(y.sources, np.moveaxis(y.places, 0, -1))


def _optional(p: Program, c: Call, place: int) -> Array | None:
    return (
        p.array(c.inputs[place]).astype(np.float64) if c.inputs[place : place + 1] not in ([], [""]) else None
    )


def _conv(p: Program, c: Call) -> None:
    x, weight, groups = p.value(c.inputs[0]), p.array(c.inputs[1]), int(c.given.get("group", 1))
    taps, image = weight.shape[2:], x.places.shape[1:]
    need(groups > 0 and len(weight) % groups == 0 and image[0] == weight.shape[1] * groups, "channels")
    view, geometry = window(c, positions(x), taps)
    out = view.shape[2 : 2 + len(taps)]
    index = np.moveaxis(view.reshape(groups, weight.shape[1], math.prod(out), -1), 1, 2)
    split, bias = weight.reshape(groups, -1, *weight.shape[1:]), _optional(p, c, 2)
    p.map(c.output, x, split.reshape(*split.shape[:2], -1), index.reshape(groups, math.prod(out), -1),
          (1, len(weight), *out), 0, (split, image, *geometry),
          None if bias is None else bias.reshape(-1, *(1,) * len(taps)))  # fmt: skip


def _scaling(p: Program, c: Call) -> None:
    """Multiplication with stored numbers, and addition of them."""
    if c.op == "BatchNormalization":
        x = p.value(c.inputs[0])
        weight, bias, mean, var = (p.array(n).reshape(-1, *(1,) * (x.places.ndim - 2)) for n in c.inputs[1:])
        var = var + c.given.get("epsilon", float(np.float32(1e-5)))
        need(not c.given.get("training_mode", 0) and bool((var > 0).all()), "batch normalisation")
        x = p.diagonal(f"{c.output}/-", x, 1.0, 0, -mean)
        p.diagonal(c.output, x, weight / np.sqrt(var), 4, bias)
        return
    if c.op == "Scale":
        scale, shift = _optional(p, c, 1), _optional(p, c, 2)
        p.diagonal(c.output, p.value(c.inputs[0]), 1.0 if scale is None else scale, 0, shift)
        return
    stored = [name in p.stored for name in c.inputs]
    if not any(stored) and c.op in ("Add", "Sub", "Sum"):
        _grouped(p, c)
        return
    if sum(stored) != 1 or len(stored) != 2 or (c.op == "Div" and stored[0]):
        raise NotCovered(f"{c.op} of these tensors is not covered by the checker")
    x, a = p.value(c.inputs[stored.index(False)]), p.array(c.inputs[stored.index(True)]).astype(np.float64)
    need(c.op != "Div" or bool(a.all()), "a division by zero")
    if c.op in ("Mul", "Div"):
        p.diagonal(c.output, x, a if c.op == "Mul" else 1.0 / a, int(c.op == "Div"))
    else:
        minus = c.op == "Sub"
        p.diagonal(c.output, x, -1.0 if minus and stored[0] else 1.0, 0, -a if minus and stored[1] else a)


def _grouped(p: Program, c: Call) -> None:
    """Sums, means, maxima and minima: over windows, over axes, or of several values."""
    x, n = p.value(c.inputs[0]), p.value(c.inputs[0]).places.ndim
    if "Pool" in c.op and not c.op.startswith("Global"):
        kernel = c.integers("kernel_shape", ())
        groups, _ = window(c, positions(x), kernel)
        shape = list(groups.shape[: -len(kernel)])
    elif c.op in ("Add", "Sub", "Sum", "Max", "Min"):
        sources, places = p.joined(c.inputs)
        x = Value(sources, np.stack(np.broadcast_arrays(*places), -1))
        groups, shape = positions(x), list(x.places.shape[:-1])
    else:
        axes = list(range(2, n)) if c.op.startswith("Global") else p.listed(c, 1, "axes") or range(n)
        last = sorted({a % n for a in axes})
        keep = c.op.startswith("Global") or c.given.get("keepdims", 1)
        shape = [1 if a in last else s for a, s in enumerate(x.places.shape) if keep or a not in last]
        groups = positions(x).transpose(*(a for a in range(n) if a not in last), *last)
    groups = groups.reshape(math.prod(shape), -1)
    counts = (groups >= 0).sum(1)
    need(bool((counts > 0).all()), "a group without entries")
    if "Max" in c.op or "Min" in c.op:
        _extreme(p, c.output, x, groups, shape, "Min" in c.op)
        return
    terms = np.ones(groups.shape[1])
    terms[1:] *= -1.0 if c.op == "Sub" else 1.0
    if "Mean" in c.op or "Average" in c.op:
        counts = np.full_like(counts, groups.shape[1]) if c.given.get("count_include_pad") else counts
        terms = terms / counts[:, None]
    if terms.ndim > 1 and bool((terms != terms[0]).any()):
        p.map(c.output, x, terms[:, None], groups[:, None], shape, 1)
    else:
        p.map(c.output, x, np.atleast_2d(terms)[:1, None], groups[None], shape, int(terms.ndim > 1))


def _extreme(p: Program, name: str, x: Value, groups: Array, shape: Sequence[int], least: bool) -> None:
    """Maxima of groups of places; a minimum is -max(-x). max(relu(x)) = relu(max(x)): fewer neurons behind the maximum."""
    source = p.steps[x.sources[0]]
    relu = not least and len(x.sources) == 1 and isinstance(source, Scalar) and source.law == "Relu"
    if relu and bool((x.places >= 0).all()):
        x = Value(source.sources, source.view[x.places])
    else:
        relu = False
    x = p.diagonal(f"{name}/-", x, -1.0) if least else x
    inner = f"{name}/max" if least or relu else name
    y = p.put(inner, Order(x.sources, x.places.ravel(), len(groups), groups, False), shape)
    if relu:
        _scalar(p, name, y, "Relu", 0.0, 1.0)
    elif least:
        p.diagonal(name, y, -1.0)


def _sort(p: Program, c: Call) -> None:
    x, axis, group = p.value(c.inputs[0]), int(c.given["axis"]), int(c.given["group"])
    need(0 < axis < x.places.ndim and group > 0 and x.places.shape[axis] % group == 0, "groups")
    index: Array = np.moveaxis(positions(x), axis, -1)
    order = Order(x.sources, x.places.ravel(), index.size, index.reshape(-1, group), True)
    y: Array = p.put(c.output, order, [index.size]).places.reshape(-1, group)
    y = y[:, :: -1 if c.given.get("descending") else 1]
    p.values[c.output] = Value((c.output,), np.moveaxis(y.reshape(index.shape), -1, axis))


def _scalar(
    p: Program, name: str, x: Value, law: str, low: Any, high: Any, curve: Curve | None = None
) -> None:
    need(
        bool(np.isfinite(low).all() and np.isfinite(high).all() and np.all(low <= high)), "a range of slopes"
    )
    low, high = (np.broadcast_to(np.float64(end), x.places.shape).ravel() for end in (low, high))
    p.put(name, Scalar(x.sources, x.places.ravel(), x.places.size, low, high, law, curve), x.places.shape)


def _activation(p: Program, c: Call) -> None:
    x, given = p.value(c.inputs[0]), dict(c.given)
    law = "GeluTanh" if c.op == "Gelu" and c.given.get("approximate", "none") != "none" else c.op
    if c.op == "PRelu":
        slope = p.array(c.inputs[1])
        _scalar(p, c.output, x, law, np.minimum(slope, 1.0), np.maximum(slope, 1.0))
        return
    if c.op == "Clip":
        given |= {k: p.array(n).item() for k, n in zip(("min", "max"), c.inputs[1:], strict=False) if n}
        need(given.get("min", -math.inf) <= given.get("max", math.inf), "ends of a clip")

    def setting(key: str, default: float) -> float:
        value = float(given.get(key, np.float32(default)))
        need(math.isfinite(value) or (c.op == "Clip" and not math.isnan(value)), "a setting of an activation")
        return value

    curve = CURVES[law](setting) if law in CURVES else None
    low, high = SLOPES[law](setting)
    _scalar(p, c.output, x, law, low, high, curve)


def _bounded(p: Program, c: Call) -> None:
    """Softmax: 1/2 in every norm (Nair 2025, arXiv 2510.23012). Normalisations: l2, max|weight| / sqrt(eps), because the Jacobian
    before the weight is sqrt((1-t)/eps) times a matrix between 0 and I."""
    x, axis = p.value(c.inputs[0]), int(c.given.get("axis", -1))
    need(axis % x.places.ndim > 0 and (p.version > 12 or axis in (-1, x.places.ndim - 1)), "an axis")
    gains = dict.fromkeys(("l1", "l2", "linf"), Fraction(1, 2))
    if c.op != "Softmax":
        weight = p.array(c.inputs[1]) if len(c.inputs) > 1 and c.inputs[1] else np.ones(1)
        eps = Fraction(float(c.given.get("epsilon", np.float32(1e-5))))
        gains = {"l2": Fraction(float(np.abs(weight).max())) * root_above(1 / eps)}
    p.put(c.output, Bounded(x.sources, x.places.ravel(), x.places.size, gains), x.places.shape)


def _moves(p: Program, c: Call) -> None:
    if c.op == "Identity" and c.inputs[0] in p.stored:
        p.stored[c.output] = p.stored[c.inputs[0]]
        return
    need(c.op != "Dropout" or not any(c.inputs[2:]), "a dropout in training mode")
    if c.op == "Concat":
        sources, places = p.joined(c.inputs)
        p.values[c.output] = Value(sources, np.concatenate(places, int(c.given["axis"])))
    else:
        x = p.value(c.inputs[0])
        p.values[c.output] = Value(x.sources, np.asarray(MOVES[c.op](p, c, x.places)))
    need(p.values[c.output].places.size <= MAX_SIZE, "a tensor too large to check")


def _reshape(p: Program, c: Call, x: Array) -> Array:
    axis = int(c.given.get("axis", 1))
    target = [math.prod(x.shape[:axis]), -1] if c.op == "Flatten" else p.listed(c, 1, "shape") or []
    need(not c.given.get("allowzero", 0) and axis >= 0, "a reshape")
    return x.reshape([x.shape[i] if n == 0 else n for i, n in enumerate(target)])


def _slice(p: Program, c: Call, x: Array) -> Array:
    starts, ends, axes, steps = (
        p.listed(c, i + 1, n) for i, n in enumerate(("starts", "ends", "axes", "steps"))
    )
    cut, count = [slice(None)] * x.ndim, len(starts or ())
    for a, *ends_ in zip(axes or range(count), starts or (), ends or (), steps or [1] * count, strict=True):
        need(ends_[2] > 0 and cut[a] == slice(None), "a slice")
        cut[a] = slice(*ends_)
    return np.asarray(x[tuple(cut)])


def _pad(p: Program, c: Call, x: Array) -> Array:
    pads, mode = p.listed(c, 1, "pads") or [], c.given.get("mode", "constant")
    need(len(pads) == 2 * x.ndim and min(pads) >= 0 and not any(c.inputs[3:]), "a padding")
    pairs = list(zip(pads[: x.ndim], pads[x.ndim :], strict=True))
    if mode == "constant":
        return np.pad(x, pairs, constant_values=-1)
    need(
        mode in ("reflect", "edge", "wrap") and all(max(q) < s for q, s in zip(pairs, x.shape, strict=True)),
        "padding",
    )
    return np.asarray(np.pad(x, pairs, mode=mode))


def _repeat(p: Program, c: Call, x: Array) -> Array:
    for axis, factor in enumerate(c.integers("factors", ())):
        x = np.repeat(x, factor, axis)
    return x


MOVES: dict[str, Callable[[Program, Call, Array], Array]] = {
    **dict.fromkeys(("Identity", "Dropout", "Concat"), lambda p, c, x: x), "Reshape": _reshape, "Flatten": _reshape,
    "Squeeze": lambda p, c, x: np.squeeze(x, tuple(p.listed(c, 1, "axes") or ()) or None), "Slice": _slice, "Pad": _pad,
    "Unsqueeze": lambda p, c, x: np.expand_dims(x, tuple(p.listed(c, 1, "axes") or ())), "Repeat": _repeat,
    "Transpose": lambda p, c, x: x.transpose(c.given.get("perm")),
    "Gather": lambda p, c, x: np.take(x, p.array(c.inputs[1]), int(c.given.get("axis", 0))),
    "Expand": lambda p, c, x: np.broadcast_to(x, np.broadcast_shapes(x.shape, tuple(p.listed(c, 1, "shape") or ()))),
}  # fmt: skip

# Ranges of difference quotients over the whole line. f' of the GELU is stationary at +-sqrt 2 (f'' = density (2 - x^2)), of the
# SiLU where t tanh(t/2) = 2, of the Mish at -2.2564 and 1.4906; the others are monotone pieces. Erf: 2 / sqrt(pi) rounded up.
SLOPES: dict[str, Callable[[Callable[[str, float], float]], Any]] = {
    **dict.fromkeys(("Relu", "Tanh", "Softsign", "Tanhshrink", "LogSigmoid", "Softplus", "Clip"), lambda a: (0.0, 1.0)),
    **dict.fromkeys(("Abs", "Sin", "Cos"), lambda a: (-1.0, 1.0)), "Sigmoid": lambda a: (0.0, 0.25),
    "Erf": lambda a: (0.0, 1.1283791670955128), "Mish": lambda a: (-0.11253, 1.0885), "HardSwish": lambda a: (-0.5, 1.5),
    "LeakyRelu": lambda a: (min(1.0, a("alpha", 0.01)), max(1.0, a("alpha", 0.01))),
    "HardSigmoid": lambda a: (min(0.0, a("alpha", 0.2)), max(0.0, a("alpha", 0.2))),
    "Elu": lambda a: (min(0.0, a("alpha", 1.0)), max(1.0, a("alpha", 1.0))),
    "Celu": lambda a: (0.0, 1.0 if a("alpha", 1.0) > 0 else math.inf),
    "Selu": lambda a: (math.nextafter(a("gamma", 1.05070102) * min(0.0, a("alpha", 1.67326319)), -math.inf),
                       math.nextafter(a("gamma", 1.05070102) * max(1.0, a("alpha", 1.67326319)), math.inf)),
    "Gelu": lambda a: (-0.128905, 1.128905),
    "GeluTanh": lambda a: (-0.129, 1.129), "Silu": lambda a: (-0.09984, 1.09984),
}  # fmt: skip
# The largest slope alone, to more digits.
STEEPEST = {"Gelu": 1.1289041452, "GeluTanh": 1.1289930687, "Silu": 1.0998393202, "Mish": 1.0884981613}
_WINDOW = "auto_pad ceil_mode dilations kernel_shape pads strides storage_order count_include_pad"
OPERATORS: dict[str, tuple[str, Callable[[Program, Call], None]]] = {
    "Gemm": ("alpha beta transA transB", _matrix), "MatMul": ("", _matrix), "Conv": (f"group {_WINDOW}", _conv),
    **dict.fromkeys(("Add", "Sub", "Mul", "Div", "Sum", "Scale"), ("", _scaling)), "PRelu": ("", _activation),
    "BatchNormalization": ("epsilon momentum training_mode spatial", _scaling), "GroupSort": ("axis group descending", _sort),
    **dict.fromkeys(("MaxPool", "AveragePool"), (_WINDOW, _grouped)), **dict.fromkeys(("Max", "Min"), ("", _grouped)),
    **dict.fromkeys(("ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin"), ("axes keepdims", _grouped)),
    **dict.fromkeys(("GlobalAveragePool", "GlobalMaxPool"), ("", _grouped)), "Softmax": ("axis", _bounded),
    **dict.fromkeys(("LayerNormalization", "RMSNormalization"), ("axis epsilon stash_type", _bounded)),
    **dict.fromkeys(MOVES, ("allowzero axes axis ends factors mode pads perm ratio seed shape starts steps", _moves)),
    **dict.fromkeys(SLOPES, ("alpha approximate beta gamma max min", _activation)),
}  # fmt: skip
