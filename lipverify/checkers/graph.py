"""The canonical graph as the checker sees it: nodes, their shapes recomputed, linear parts, slopes, and an identity by content.

Constants (biases, shifts, means) do not matter for differences: they take no part in a proof over the whole space.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from lipverify.checkers.arithmetic import Array
from lipverify.errors import RefutedCertificate, UnreadableCertificate

Shape = tuple[int, ...]
MAX_SIZE = 1 << 26


class NotCovered(RefutedCertificate):
    """The checker has no proof for this operator, size or kind of claim."""


def need(condition: object, message: str) -> None:
    """UnreadableCertificate with this message unless the condition holds."""
    if not condition:
        raise UnreadableCertificate(message)


# Fields of every operator: T tensor, t tensor or none, i integer, f number, b flag, s word, I integers, P pairs of integers.
_POOL = "kernel:I stride:I padding:P dilation:I"
_REDUCE = "axes:I keepdims:b"
FIELDS = {
    op: dict(field.split(":") for field in fields.split())
    for op, fields in {
        "Input": "", "Linear": "weight:T bias:t", "Scale": "scale:t shift:t", "DivideBy": "divisor:T",
        "Conv": "weight:T bias:t stride:I padding:P dilation:I groups:i", "Add": "", "Sub": "", "Concat": "axis:i",
        "BatchNorm": "weight:T bias:t mean:t var:T eps:f axis:i", "Reshape": "shape:I", "Transpose": "order:I",
        "Slice": "axis:i start:i stop:i step:i", "Gather": "axis:i indices:T", "Pad": "padding:P mode:s",
        "Upsample": "factors:I", "Expand": "shape:I", "AvgPool": "kernel:I stride:I padding:P count_include_pad:b uncounted:I",
        "ReduceSum": _REDUCE, "ReduceMean": _REDUCE, "ReduceMax": _REDUCE, "ReduceMin": _REDUCE, "MaxPool": _POOL,
        "Maximum": "", "Minimum": "", "GroupSort": "group:i axis:i descending:b", "Softmax": "axis:i",
        "LayerNorm": "shape:I weight:t bias:t eps:f", "RMSNorm": "shape:I weight:t eps:f", "PReLU": "slope:T",
        "LeakyReLU": "slope:f", "Clip": "low:f high:f", "Hardsigmoid": "alpha:f beta:f", "Softplus": "beta:f", "ELU": "alpha:f",
        "SELU": "alpha:f gamma:f", "CELU": "alpha:f", "GELU": "tanh:b", "SiLU": "beta:f",
        **dict.fromkeys(("ReLU", "Abs", "Hardswish", "Sigmoid", "Tanh", "Mish", "Softsign", "Tanhshrink", "LogSigmoid",
                         "Sin", "Cos", "Erf"), ""),
    }.items()
}  # fmt: skip
IDLE = {"bias", "shift", "mean", "fill"}

# Ranges of difference quotients over the whole line. f' of the GELU is stationary at +-sqrt 2 (f'' = density (2 - x^2)), of the
# SiLU where t tanh(t/2) = 2, of the Mish at -2.2564 and 1.4906; the others are monotone pieces. Erf: 2 / sqrt(pi) rounded up.
SLOPES: dict[str, tuple[float, float]] = {
    "ReLU": (0.0, 1.0), "Abs": (-1.0, 1.0), "Hardswish": (-0.5, 1.5), "Sigmoid": (0.0, 0.25), "Tanh": (0.0, 1.0),
    "Softsign": (0.0, 1.0), "Tanhshrink": (0.0, 1.0), "LogSigmoid": (0.0, 1.0), "Sin": (-1.0, 1.0), "Cos": (-1.0, 1.0),
    "Erf": (0.0, 1.1283791670955128), "Mish": (-0.11253, 1.0885),
}  # fmt: skip


@dataclass(frozen=True)
class Node:
    """One operator: settings as plain values, tensors as float64 (indices int64) arrays with their digests."""

    name: str
    op: str
    inputs: tuple[str, ...]
    shape: Shape
    settings: Mapping[str, Any]
    tensors: Mapping[str, Array]
    digests: Mapping[str, str]

    def __getattr__(self, field: str) -> Any:
        if field in self.tensors:
            return self.tensors[field]
        if field in FIELDS.get(self.op, {}):
            return self.settings.get(field)
        raise AttributeError(field)

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    def slopes(self, shape: Shape) -> tuple[Array, Array] | None:
        """Smallest and largest difference quotient of a scalar activation, entry by entry; None for other operators."""
        op, found = self.op, SLOPES.get(self.op)
        if op == "PReLU":
            return tuple(np.broadcast_to(f(self.slope, 1.0), shape) for f in (np.minimum, np.maximum))  # type: ignore[return-value]
        if op == "LeakyReLU":
            found = min(1.0, self.slope), max(1.0, self.slope)
        elif op == "Clip":
            found = 0.0, 1.0
        elif op == "Hardsigmoid":
            found = min(0.0, self.alpha), max(0.0, self.alpha)
        elif (op == "Softplus" and self.beta != 0) or (op == "CELU" and self.alpha > 0):
            found = 0.0, 1.0
        elif op in ("ELU", "SELU"):
            factor = self.gamma if op == "SELU" else 1.0
            ends = [math.nextafter(e * factor, s * math.inf) if factor != 1 and e != 0 else e
                    for e, s in ((min(0.0, self.alpha), -1), (max(1.0, self.alpha), 1))]  # fmt: skip
            found = (ends[0], ends[1]) if factor > 0 else None
        elif op == "GELU":
            found = (-0.129, 1.129) if self.tanh else (-0.128905, 1.128905)
        elif op == "SiLU":
            found = (-0.09984, 1.09984) if self.beta != 0 else (0.5, 0.5)
        if found is None or not all(map(math.isfinite, found)):
            return None
        return np.full(shape, found[0]), np.full(shape, found[1])


def digest_of(array: Array) -> str:
    """sha256 of type, shape and little-endian numbers of a stored tensor."""
    little = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
    head = f"{array.dtype.name}{list(array.shape)}".encode()
    return hashlib.sha256(head + little.tobytes()).hexdigest()


def setting(kind: str, value: Any) -> Any:
    """A setting read from JSON; UnreadableCertificate if it is not of its kind."""

    def integer(v: Any) -> bool:
        return type(v) is int and 0 <= v < MAX_SIZE

    if kind == "f":
        return real(value)
    if kind == "i":
        need(integer(value), "a setting is not an integer")
    elif kind == "b":
        need(type(value) is bool, "a setting is not a flag")
    elif kind == "s":
        need(isinstance(value, str) and len(value) < 20, "a setting is not a word")
    else:
        need(isinstance(value, list) and len(value) <= 16, "a setting is not a list")
        if kind == "P":
            need(
                all(isinstance(v, list) and len(v) == 2 and all(map(integer, v)) for v in value),
                "padding is not pairs",
            )
            return tuple((a, b) for a, b in value)
        need(all(map(integer, value)), "a setting is not a list of integers")
        return tuple(value)
    return value


def real(text: Any) -> float:
    """A float64 written in hexadecimal."""
    need(isinstance(text, str) and len(text) <= 30 and text.isascii(), "a number is not a short text")
    need(
        text.lstrip("-").startswith("0x") or text.lstrip("-") == "inf",
        "a number is not written in hexadecimal",
    )
    try:
        return float.fromhex(text)
    except (ValueError, OverflowError):
        raise UnreadableCertificate("a number is not a hexadecimal float64") from None


# -- linear parts: (node, sizes instead of numbers?, inputs [batch, *shape]) -> [batch, *shape]


def _stored(node: Node, field: str, size: bool) -> Array:
    values = node.tensors[field]
    return np.abs(values) if size else values


def _windows(x: Array, kernel: Shape, stride: Shape, dilation: Shape) -> Array:
    """[..., *positions, *kernel] over the last axes."""
    axes = tuple(range(x.ndim - len(kernel), x.ndim))
    view = sliding_window_view(x, [d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True)], axes)
    cuts = [slice(None, None, s) for s in (*stride, *dilation)]
    return np.asarray(view[(Ellipsis, *cuts)])  # type: ignore[arg-type]


def _padded(x: Array, padding: Any, fill: float = 0.0) -> Array:
    need(all(n >= 0 for pair in padding for n in pair), "negative padding")
    return np.pad(x, [(0, 0)] * (x.ndim - len(padding)) + list(padding), constant_values=fill)


def _conv(node: Node, size: bool, x: Array) -> Array:
    weight, groups = _stored(node, "weight", size), node.groups
    need(
        groups >= 1 and x.shape[1] == weight.shape[1] * groups and len(weight) % groups == 0,
        "channels of a convolution",
    )
    x, axes, out = _padded(x, node.padding), weight.ndim - 2, []
    for part, kernel in zip(np.split(x, groups, 1), np.split(weight, groups), strict=True):
        view = _windows(part, kernel.shape[2:], node.stride, node.dilation)
        terms = [1, *range(2 + axes, 2 + 2 * axes)]
        out.append(np.moveaxis(np.tensordot(view, kernel, (terms, [1, *range(2, 2 + axes)])), -1, 1))
    return np.concatenate(out, 1)


def _average(node: Node, size: bool, x: Array) -> Array:
    axes, ones = len(node.kernel), np.ones(x.shape[x.ndim - len(node.kernel) :])
    pads, rest = node.padding, tuple((0, n) for n in node.uncounted)
    ones = _padded(_padded(ones, pads, 1.0 if node.count_include_pad else 0.0), rest)
    last, dense = tuple(range(-axes, 0)), (1,) * axes
    counts = _windows(ones, node.kernel, node.stride, dense).sum(last)
    need((counts > 0).all(), "an average over nothing")
    return np.asarray(
        _windows(_padded(_padded(x, pads), rest), node.kernel, node.stride, dense).sum(last) / counts
    )


def _batch_norm(node: Node, size: bool, x: Array) -> Array:
    variance = node.var + node.eps
    need((variance > 0).all(), "a variance that is not positive")
    factor = _stored(node, "weight", size) / np.sqrt(variance)
    return np.asarray(x * factor.reshape([-1 if a == node.axis + 1 else 1 for a in range(x.ndim)]))


def _slice(node: Node, size: bool, x: Array) -> Array:
    index = [slice(None)] * x.ndim
    index[node.axis + 1] = slice(node.start, node.stop, node.step)
    return x[tuple(index)]


def _reduce(node: Node, size: bool, x: Array) -> Array:
    axes = tuple(a + 1 for a in node.axes)
    total = np.asarray(x.sum(axes, keepdims=node.keepdims))
    return total / math.prod(x.shape[a] for a in axes) if node.op == "ReduceMean" else total


def _pad(node: Node, size: bool, x: Array) -> Array:
    if node.mode == "constant":
        return _padded(x, node.padding)
    modes = {"reflect": "reflect", "replicate": "edge", "circular": "wrap"}
    need(
        node.mode in modes
        and all(0 <= n <= s for p, s in zip(node.padding, x.shape[1:], strict=True) for n in p),
        "padding",
    )
    return np.asarray(np.pad(x, [(0, 0), *node.padding], mode=modes[node.mode]))  # type: ignore[call-overload]


def _upsample(node: Node, size: bool, x: Array) -> Array:
    for axis, factor in enumerate(node.factors):
        x = np.repeat(x, factor, axis + 1)
    return x


def _concat(node: Node, size: bool, *xs: Array) -> Array:
    return np.concatenate(xs, node.axis + 1)


LINEAR: dict[str, Callable[..., Array]] = {
    "Linear": lambda n, size, x: x @ _stored(n, "weight", size).T,
    "Scale": lambda n, size, x: x * _stored(n, "scale", size) if "scale" in n.tensors else x,
    "DivideBy": lambda n, size, x: x / _stored(n, "divisor", size),
    "Conv": _conv, "BatchNorm": _batch_norm, "AvgPool": _average, "ReduceSum": _reduce, "ReduceMean": _reduce,
    "Add": lambda n, size, x, y: x + y, "Sub": lambda n, size, x, y: x + y if size else x - y, "Concat": _concat,
    "Reshape": lambda n, size, x: x.reshape(len(x), *n.settings["shape"]),
    "Transpose": lambda n, size, x: x.transpose(0, *(a + 1 for a in n.order)), "Slice": _slice, "Pad": _pad,
    "Gather": lambda n, size, x: np.take(x, n.indices, n.axis + 1), "Upsample": _upsample,
    "Expand": lambda n, size, x: np.broadcast_to(x, (len(x), *n.settings["shape"])),
}  # fmt: skip
MOVES = {"Reshape", "Transpose", "Slice", "Gather", "Pad", "Upsample", "Expand", "Concat"}
"""Linear parts that only copy and drop entries: nothing is rounded."""


def roundings(node: Node, sources: list[Shape]) -> int:
    """At most so many roundings, one after another, behind a number of `LINEAR`, relative to the sum of absolute terms."""
    if node.op in MOVES:
        return 0
    terms = {"Linear": lambda: node.weight.shape[-1], "Conv": lambda: node.weight[0].size}
    terms |= {"AvgPool": lambda: math.prod(node.kernel)}
    terms |= dict.fromkeys(("ReduceSum", "ReduceMean"), lambda: math.prod(sources[0]))
    return int(terms.get(node.op, lambda: 1)()) + 4


def pooled(node: Node, shape: Shape) -> Array:
    """For every entry of a maximum (minimum) the entries it is taken over, -1 for padding: [size, count]."""
    index = np.arange(math.prod(shape), dtype=np.int64).reshape(shape)
    if node.op == "MaxPool":
        held = _windows(_padded(index, node.padding, -1), node.kernel, node.stride, node.dilation)
        return held.reshape(-1, math.prod(node.kernel))
    kept = [a for a in range(len(shape)) if a not in node.axes]
    return index.transpose(*kept, *node.axes).reshape(math.prod(shape[a] for a in kept), -1)


def shape_after(node: Node, sources: list[Shape]) -> Shape:
    """The shape of the result, recomputed."""
    wanted = {"Add": 2, "Sub": 2}.get(node.op, 1)
    many = node.op in ("Concat", "Maximum", "Minimum")
    need(len(sources) >= 1 if many else len(sources) == wanted, "number of inputs")
    if node.op in ("Add", "Sub", "Maximum", "Minimum"):
        need(all(s == sources[0] for s in sources), "inputs of different shapes")
    grown: list[int] = []
    if node.op == "Upsample":
        grown = list(node.factors)
    elif node.op == "Pad":
        grown = [sum(p) + 1 for p in node.padding]
    factors = [2 * factor for factor in grown]
    need(
        math.prod(sources[0]) * math.prod(factors) <= MAX_SIZE << len(factors), "a tensor too large to check"
    )
    if node.op in LINEAR:
        result: Shape = LINEAR[node.op](node, False, *(np.zeros((1, *s)) for s in sources)).shape[1:]
        return result
    if node.op == "MaxPool":
        view = _windows(_padded(np.zeros(sources[0]), node.padding), node.kernel, node.stride, node.dilation)
        return view.shape[: len(sources[0])]
    if node.op in ("ReduceMax", "ReduceMin"):
        reduced: Shape = np.zeros(sources[0]).sum(node.axes, keepdims=node.keepdims).shape
        return reduced
    if node.op == "GroupSort":
        need(
            node.group >= 1 and 0 <= node.axis < len(sources[0]) and sources[0][node.axis] % node.group == 0,
            "groups",
        )
    if node.op in ("LayerNorm", "RMSNorm"):
        own = node.settings["shape"]
        need(len(own) > 0 and sources[0][-len(own) :] == own and node.eps > 0, "normalised axes")
    return sources[0]


@dataclass(frozen=True)
class Graph:
    """Nodes in topological order with one input and one output."""

    nodes: Mapping[str, Node]
    output: str

    def sources(self, node: Node) -> list[Shape]:
        return [self.nodes[name].shape for name in node.inputs]

    @cached_property
    def input(self) -> Node:
        found = [node for node in self.nodes.values() if node.op == "Input"]
        need(len(found) == 1, "a graph needs exactly one input")
        return found[0]

    def _view(self, node: Node) -> bool:
        """Whether a transposition leaves the numbers in their order: only axes of size 1 move."""
        moved = [axis for axis in node.order if self.sources(node)[0][axis] > 1]
        return moved == sorted(moved)

    def identity(self, name: str) -> str:
        """A hash of the function up to constants: operators, settings, tensors and wiring of everything behind a node."""
        found: dict[str, tuple[str, Shape]] = {}
        bases: dict[str, tuple[str, Shape]] = {}
        for node in self.nodes.values():
            inputs = [found[source] for source in node.inputs]
            if node.op == "Scale" and "scale" not in node.tensors:
                found[node.name] = inputs[0]
                continue
            if node.op == "Reshape" or (node.op == "Transpose" and self._view(node)):
                # Views behind views are one view; a view that changes nothing is none.
                base, shape = bases.get(node.inputs[0], inputs[0])
                bases[node.name] = base, shape
                if shape == node.shape:
                    found[node.name] = base, shape
                    continue
                inputs = [(base, shape)]
            settings = {
                k: v
                for k, v in node.settings.items()
                if (k not in IDLE and k != "shape") or node.op.endswith("Norm")
            }
            settings.pop("stop", None)  # the shape says how many entries a slice takes
            plain = {k: v.hex() if isinstance(v, float) else v for k, v in settings.items()}
            digests = {k: v for k, v in node.digests.items() if k not in IDLE}
            parts = [node.op, plain, digests, list(node.shape), [identity for identity, _ in inputs]]
            text = json.dumps(parts, sort_keys=True)
            found[node.name] = hashlib.sha256(text.encode()).hexdigest(), node.shape
        return found[name][0]


def node_of(name: str, op: str, sources: Mapping[str, Node], inputs: tuple[str, ...], settings: Mapping[str, Any],
            tensors: Mapping[str, tuple[Array, str]], shape: Shape | None = None) -> Node:  # fmt: skip
    """A validated node; its shape is recomputed, and must be `shape` where that is given."""
    if op not in FIELDS:
        raise NotCovered(f"operator {op[:40]!a} is not covered by the checker")
    need(settings.keys() | tensors.keys() <= FIELDS[op].keys(), f"fields of {op}")
    for field, kind in FIELDS[op].items():
        need(kind == "t" or field in (tensors if kind == "T" else settings), f"{op} without {field}")
    arrays = {k: a if a.dtype.kind == "i" else a.astype(np.float64) for k, (a, _) in tensors.items()}
    need(all(np.isfinite(a).all() for a in arrays.values()), "a tensor that is not finite")
    need(all((k == "indices") == (a.dtype.kind == "i") for k, a in arrays.items()), "types of tensors")
    node = Node(name, op, inputs, shape or (), settings, arrays, {k: d for k, (_, d) in tensors.items()})
    if op == "Input":
        need(not inputs and shape is not None, "an input node")
        return node
    found = tuple(int(n) for n in shape_after(node, [sources[source].shape for source in inputs]))
    need(shape is None or found == shape, f"the shape of a node is {list(found)[:8]}")
    need(math.prod(found) <= MAX_SIZE, "a tensor too large to check")
    return Node(name, op, inputs, found, settings, arrays, node.digests)
