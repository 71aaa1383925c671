"""Operators of a model, in the words of ONNX, as steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any, TypeGuard

import numpy as np

from lipverify.checkers.arithmetic import Array, NotCovered, need, root_above
from lipverify.checkers.functions import CURVES, Curve
from lipverify.checkers.moves import MOVED, MOVES, moved
from lipverify.checkers.steps import (
    Bounded,
    Call,
    Implicit,
    Map,
    Order,
    Program,
    Reflect,
    Scalar,
    Step,
    Value,
)
from lipverify.checkers.windows import conv, conv_transpose, optional, positions, window


def run(p: Program, call: Call) -> None:
    """Adds one operator to a program."""
    known, translate = OPERATORS.get(call.op, ("", None))
    if translate is None or (unknown := set(call.given) - set(known.split())):
        what = "operator" if translate is None else f"attribute {min(unknown)[:40]!a} of"
        raise NotCovered(f"{what} {call.op[:40]!a} is not covered by the checker")
    need({call.output}.isdisjoint(p.values.keys() | p.stored.keys()), "two operators write one value")
    translate(p, call)


def _matrix(p: Program, c: Call) -> None:
    if c.given.get("alpha", 1.0) != 1 or c.given.get("beta", 1.0) != 1 or c.given.get("transA", 0):
        raise NotCovered("a scaled or transposed Gemm is not covered by the checker")
    left = c.op == "MatMul" and c.inputs[0] in p.stored
    x, weight = p.value(c.inputs[int(left)]), p.array(c.inputs[int(not left)]).astype(np.float64)
    need(weight.ndim == 2, "a stored factor that is no matrix")
    kernel = (weight if left or c.given.get("transB", 0) else weight.T)[None]
    # The axis that is summed over: of a factor on the right the last but one, where there are two.
    axis = -2 if left and x.places.ndim > 1 else -1
    index = np.moveaxis(positions(x), axis, -1)
    *lead, width = index.shape
    bias, out = optional(p, c, 2), (kernel.shape[1], *lead)
    offset = None if bias is None else np.moveaxis(np.broadcast_to(bias, (*lead, out[0])), -1, 0)
    y = p.map(c.output, x, kernel, index.reshape(1, -1, width), out, offset=offset)
    p.values[c.output] = Value(y.sources, np.moveaxis(y.places, 0, axis))


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
        scale, shift = optional(p, c, 1), optional(p, c, 2)
        p.diagonal(c.output, p.value(c.inputs[0]), 1.0 if scale is None else scale, 0, shift)
        return
    stored = [name in p.stored for name in c.inputs]
    if not any(stored) and c.op in ("Add", "Sub", "Sum"):
        _grouped(p, c)
        return
    if not any(stored) and c.op == "Mul" and len(stored) == 2 and any(_gate(p, c, i) for i in (0, 1)):
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


def _gate(p: Program, c: Call, place: int) -> bool:
    """x sigmoid(x), and x (1 + erf(a x)) = 2 Gelu(b x) / b with b = a sqrt 2, whose slopes are twice those of the GELU."""
    x, gate = p.value(c.inputs[place]), p.value(c.inputs[1 - place])
    step, law, wanted = _behind(p, gate), "Silu", "Sigmoid"
    if (
        _entrywise(step)
        and step.offset is not None
        and bool((step.kernel == 1).all() and (step.offset == 1).all())
    ):
        step, law, wanted = _behind(p, Value(step.sources, step.view)), "ErfGate", "Erf"
    if not isinstance(step, Scalar) or step.law != wanted or gate.places.shape != x.places.shape:
        return False
    read = Value(step.sources, step.view)
    inner, scales = _behind(p, read) if law == "ErfGate" else None, np.ones(1)
    if _entrywise(inner) and inner.offset is None:
        read, scales = Value(inner.sources, inner.view), inner.kernel.ravel()
    if read.sources != x.sources or not np.array_equal(read.places, x.places.ravel()):
        return False
    scale = float(scales[0]) if bool((scales == scales[0]).all() and scales[0]) else None
    curve = None if scale is None else CURVES[law](lambda key, default: scale if key == "scale" else default)
    _scalar(p, c.output, x, law, *_ends(law, lambda key, default: default), curve)
    return True


def _entrywise(step: Step | None) -> TypeGuard[Map]:
    """Whether every entry of the result is a multiple of the same entry of what is read, plus a constant."""
    if not isinstance(step, Map) or step.kernel.shape != (step.size, 1, 1):
        return False
    return np.array_equal(step.index.ravel(), np.arange(step.size))


def _behind(p: Program, x: Value) -> Step | None:
    """The step of which a value holds the whole result in order."""
    step = p.steps[x.sources[0]]
    whole = len(x.sources) == 1 and np.array_equal(x.places.ravel(), np.arange(step.size))
    return step if whole else None


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


def _reflected(p: Program, c: Call) -> None:
    """On runs along an axis x where w'x > 0, else x - 2 w w'x / |w|^2."""
    x, vectors, axis = p.value(c.inputs[0]), p.array(c.inputs[1]).astype(np.float64), int(c.given["axis"])
    need(vectors.ndim == 2 and vectors.any(1).all() and 0 < axis < x.places.ndim, "reflections")
    need(x.places.shape[axis] == vectors.size, "reflections of another size")
    if not (np.abs(vectors[vectors != 0]) >= 2.0**-500).all() or not (np.abs(vectors) <= 2.0**500).all():
        raise NotCovered("numbers near the ends of float64 are not covered by the checker")
    # The reflection does not change with the length of w: a power of two is exact.
    vectors = np.ldexp(vectors, -np.frexp(np.abs(vectors).max(1, keepdims=True))[1])
    index = np.moveaxis(positions(x), axis, -1)
    y = p.put(c.output, Reflect(x.sources, x.places.ravel(), x.places.size,
                                index.reshape(-1, *vectors.shape), vectors), [index.size])  # fmt: skip
    p.values[c.output] = Value((c.output,), y.places.reshape(x.places.shape))


def _ends(law: str, setting: Callable[[str, float], float]) -> tuple[float, float]:
    low, high = SLOPES[law](setting)
    return low, high


def _implicit(p: Program, c: Call) -> None:
    x, recurrent, inputs = p.value(c.inputs[0]), *(p.array(n).astype(np.float64) for n in c.inputs[1:3])
    low, high = SLOPES[c.given["activation"]](
        lambda key, default: float(c.given.get(key, np.float32(default)))
    )
    if x.places.ndim != 2 or low < 0 or not 2.0**-100 < high < 2.0**100:
        raise NotCovered(
            "implicit layers on matrices or with falling activations are not covered by the checker"
        )
    need(
        recurrent.shape == (len(inputs), len(inputs)) and inputs.shape[1] == x.places.size,
        "an implicit layer",
    )
    known = np.abs(np.concatenate([recurrent.ravel(), inputs.ravel()]))
    if not bool(((known[known > 0] >= 2.0**-400) & (known[known > 0] <= 2.0**400)).all()):
        raise NotCovered("numbers near the ends of float64 are not covered by the checker")
    step = Implicit(x.sources, x.places.ravel(), len(inputs), recurrent, inputs, high)
    p.put(c.output, step, (1, len(inputs)))


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
    _scalar(p, c.output, x, law, *_ends(law, setting), curve)


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
    "ErfGate": lambda a: (-0.25781, 2.25781), "GeluTanh": lambda a: (-0.129, 1.129), "Silu": lambda a: (-0.09984, 1.09984),
}  # fmt: skip
# The largest slope alone, to more digits.
STEEPEST = {
    "Gelu": 1.1289041452,
    "ErfGate": 2.2578082904,
    "GeluTanh": 1.1289930687,
    "Silu": 1.0998393202,
    "Mish": 1.0884981613,
}
_SETTINGS = "alpha approximate beta gamma max min"
_WINDOW = "auto_pad ceil_mode dilations kernel_shape pads strides storage_order count_include_pad"
OPERATORS: dict[str, tuple[str, Callable[[Program, Call], None]]] = {
    "Gemm": ("alpha beta transA transB", _matrix), "MatMul": ("", _matrix), "Conv": (f"group {_WINDOW}", conv),
    "ConvTranspose": (f"group output_padding output_shape {_WINDOW}", conv_transpose), "Householder": ("axis", _reflected),
    "Implicit": (f"activation {_SETTINGS}", _implicit),
    **dict.fromkeys(("Add", "Sub", "Mul", "Div", "Sum", "Scale"), ("", _scaling)), "PRelu": ("", _activation),
    "BatchNormalization": ("epsilon momentum training_mode spatial", _scaling), "GroupSort": ("axis group descending", _sort),
    **dict.fromkeys(("MaxPool", "AveragePool"), (_WINDOW, _grouped)), **dict.fromkeys(("Max", "Min"), ("", _grouped)),
    **dict.fromkeys(("ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin"), ("axes keepdims", _grouped)),
    **dict.fromkeys(("GlobalAveragePool", "GlobalMaxPool"), ("", _grouped)), "Softmax": ("axis", _bounded),
    **dict.fromkeys(("LayerNormalization", "RMSNormalization"), ("axis epsilon stash_type", _bounded)),
    **dict.fromkeys(MOVES, (MOVED, moved)),
    **dict.fromkeys(SLOPES.keys() - {"ErfGate"}, (_SETTINGS, _activation)),
}  # fmt: skip
