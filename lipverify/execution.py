"""What float32 execution can add to the real-valued function, over a box of inputs. A figure of its own, never part of a bound.

Legend: u = 2^-24; gamma_n = n u / (1 - n u) bounds n roundings in any order (Higham, Accuracy and Stability of
Numerical Algorithms, 2nd edition, Lemma 3.1).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor

from lipverify import ops
from lipverify.checkers.claims import outward
from lipverify.errors import InternalError, UnsupportedModel, UsageError
from lipverify.ir.graph import Graph, Node
from lipverify.ir.norm import Norm
from lipverify.ir.op import Constant, Input
from lipverify.ir.region import Ball
from lipverify.ir.shown import Shown, at_most
from lipverify.propagation import bounds
from lipverify.rules import forward, linear, naming, slopes

U = 2.0**-24
_LARGEST, _SMALLEST = 2.0**127, 2.0**-148
_OUTWARD = 1.0 + 2.0**-28
"""The float64 sums of non-negative numbers here have fewer than 2^24 terms."""
_SCALAR = 16.0
ASSUMES = (
    "every product and sum is rounded to nearest in float32, in any order of summation, fused or not; no Winograd or FFT "
    "convolution; no overflow (checked); scalar functions are off by at most 16 u (1 + |argument| + |result| + |what is on the "
    "way|), u = 2^-24"
)
_WEIGHTS = {ops.Linear: "weight", ops.Conv: "weight", ops.ConvTranspose: "weight", ops.Scale: "scale",
            ops.DivideBy: "divisor", ops.BatchNorm: "weight"}  # fmt: skip


@dataclass(frozen=True)
class ExecutionError(Shown):
    """|executed(x) - f(x)| for every x of the box: entry by entry, largest, and in l2. Slopes of the executed function obey
    |executed(x) - executed(y)| <= upper |x - y| + 2 error."""

    box: tuple[float, float]
    entries: Tensor
    linf: float
    l2: float
    format: str = "float32"

    def __repr__(self) -> str:
        ends = f"{self.box[0]:g} to {self.box[1]:g}"
        return f"ExecutionError({self.format} over {ends}: {at_most(self.linf)} in every output)"

    def words(self) -> str:
        """The figure as a sentence, rounded up."""
        low, high = (repr(end) for end in self.box)
        linf, l2 = (outward(value) for value in (self.linf, self.l2))
        return (
            f"{self.format} execution, in any order of summation, is within {linf} of the real-valued function in every "
            f"output, {l2} in l2, for inputs in [{low}, {high}]; slopes of the executed function are not covered by the bounds"
        )

    def to_json(self) -> dict[str, Any]:
        figures = {"format": self.format, "box": list(self.box), "linf": self.linf, "l2": self.l2}
        return {**figures, "words": self.words(), "assumes": ASSUMES}


def execution_error(graph: Graph, box: tuple[float, float]) -> ExecutionError:
    """How far float32 execution can be from the real-valued function of the stored weights.

    Statement: for every x with entries in [LO, HI], |executed(x) - f(x)| <= entries, whatever the order of summation.
    Source: Higham, Accuracy and Stability of Numerical Algorithms, 2nd edition, sections 3.1 and 3.5, layer after layer: an
        affine map executed at h + e is off by |W| e + gamma_{n+4} (|W| (|h| + e) + |b|).
    Sound when: `ASSUMES` holds, and the intervals of `lipverify.bounds` do.

    Raises:
        UnsupportedModel: an operator without such an error bound, or numbers that may overflow float32; the node is named.
        UsageError: the box is none.
    """
    low, high = float(box[0]), float(box[1])
    if not (math.isfinite(low) and math.isfinite(high) and low <= high):
        raise UsageError(f"the box {low},{high} is none: give LO,HI with LO <= HI")
    center = torch.full((1, *graph.input_shape), (low + high) / 2, dtype=torch.float64)
    radius = math.nextafter(max(high - float(center.max()), float(center.min()) - low), math.inf)
    with torch.no_grad():
        ranges = bounds(graph, Ball(center, max(radius, 5e-324), Norm.LINF), method="interval")
        errors: dict[str, Tensor] = {}
        sizes = {name: torch.maximum(ranges[name].lower.abs(), ranges[name].upper.abs()) for name in ranges}
        for node in graph.nodes:
            inputs = [(errors[n], sizes[n]) for n in node.inputs]
            found = _error(node, inputs, sizes[node.name]) * _OUTWARD
            if found.shape != (1, *node.shape):
                raise InternalError(f"the error of {node.describe()} has the shape {list(found.shape)}")
            if not bool((sizes[node.name] + found < _LARGEST).all()):
                raise UnsupportedModel(f"{node.describe()}: its numbers may overflow float32 on this box")
            errors[node.name] = found
    entries = errors[graph.output.name][0]
    l2 = float(torch.linalg.vector_norm(entries)) * _OUTWARD
    return ExecutionError((low, high), entries, float(entries.max()), l2)


def _error(node: Node, inputs: list[tuple[Tensor, Tensor]], size: Tensor) -> Tensor:
    op: Any = node.op.to(dtype=torch.float64)
    kind = type(op)
    if isinstance(op, Input | Constant):
        return U * size + _SMALLEST
    if kind in (ops.MaxPool, ops.ReduceMax):
        return forward(op, *(e for e, _ in inputs))
    if kind in (ops.Maximum, ops.Minimum):
        # A file may write relu(a - b) + b.
        written = 4.0 * U * sum((e + m for e, m in inputs), torch.zeros(()))
        return forward(ops.Maximum(), *(e for e, _ in inputs)) + written
    if kind is ops.ReduceMin:
        return forward(ops.ReduceMax(op.axes, op.keepdims), inputs[0][0])
    if kind is ops.GroupSort:
        # Of pairs that are compared as above, one after the other.
        e, m = inputs[0]
        groups: Tensor = (e + 8.0 * U * op.group * (e + m)).unflatten(op.axis + 1, (-1, op.group))
        most: Tensor = groups.amax(op.axis + 2, keepdim=True).expand_as(groups)
        return most.flatten(op.axis + 1, op.axis + 2)
    if linear.covers(kind):
        return _affine(node, op, inputs)
    if slopes.covers(kind):
        e, m = inputs[0]
        with naming(node):
            known = slopes(op, None, tuple(e.shape[1:]))
        steep = torch.maximum(known.lower.abs(), known.upper.abs())
        if kind is ops.ReLU:
            return steep * e
        if kind in (ops.Abs, ops.Clip):
            return steep * e + 4.0 * U * _written(op, m + e)
        return steep * e + _SCALAR * U * (1.0 + m + e + size + steep * e + _written(op, m + e))
    raise UnsupportedModel(f"{node.describe()} has no error bound for float32 execution")


def _written(op: Any, m: Tensor) -> Tensor:
    """Sizes of the numbers on the way where a file, or a library, writes a scalar function out. m: of its argument.

    Those of relu(x - k) + k, of s x + (1 - s) relu(x), of alpha (exp(x) - 1), and of what is multiplied with a gate: they may be
    larger than argument and result, and are rounded all the same.
    """
    known = [torch.as_tensor(float(v) if isinstance(v, Fraction) else v, dtype=torch.float64).abs()
             for v in vars(op).values() if isinstance(v, float | Fraction)]  # fmt: skip
    ends = sum((torch.where(v.isfinite(), v, 0.0) for v in known), torch.zeros(()))
    match op:
        case ops.Clip() | ops.Abs() | ops.ELU() | ops.CELU():
            return ends + m
        case ops.SELU():
            return (1.0 + ends) ** 2 + m
        case ops.Softplus():
            return 1.0 / ends + m
        case ops.PReLU():
            return (1.0 + 2.0 * op.slope.abs().amax()) * m
        case ops.LeakyReLU() | ops.Hardsigmoid():
            return (1.0 + 2.0 * ends) * (1.0 + m)
        case ops.ErfGate() | ops.TanhGate() | ops.SigmoidGate() | ops.ClipGate():
            way = 1.0 + (
                abs(float(op.inner)) * m + abs(float(op.offset)) if isinstance(op, ops.ClipGate) else 0.0
            )
            return abs(float(op.outer)) * m * way
        case ops.PiecewiseLinear():
            corners = sum(abs(v) for v in (*op.knots, op.start) if math.isfinite(v))
            return (1.0 + sum(abs(v) for v in op.slopes)) * (corners + m)
    return torch.zeros_like(m)


def _affine(node: Node, op: Any, inputs: list[tuple[Tensor, Tensor]]) -> Tensor:
    """|W| e + gamma (|W| (m + e) + |b|), W and b as they are stored."""
    kind = type(op)
    absolute, constant, terms = op, torch.zeros(()), _terms(op, inputs[0][0])
    if kind is ops.Sub:
        absolute = ops.Add()
    if kind in _WEIGHTS and getattr(op, _WEIGHTS[kind]) is not None:
        absolute = replace(op, **{_WEIGHTS[kind]: getattr(op, _WEIGHTS[kind]).abs()})
    e, m = [e for e, _ in inputs], [m + e for e, m in inputs]
    if kind is ops.BatchNorm:
        mean = op.mean.abs().reshape([-1 if a == op.axis else 1 for a in range(e[0].ndim - 1)])
        m = [m[0] + mean]
        constant = op.bias.abs().reshape(mean.shape)
    elif kind in (ops.Conv, ops.ConvTranspose) and op.bias is not None:
        constant = op.bias.abs().reshape(-1, *(1,) * (len(node.shape) - 1))
    elif kind is ops.Linear and op.bias is not None:
        constant = op.bias.abs()
    elif kind is ops.Scale and op.shift is not None:
        constant = op.shift.abs()
    elif kind is ops.Pad:
        constant = torch.tensor(abs(float(getattr(op, "fill", 0.0))))
    count = terms + 8
    if count >= 1 << 20:
        raise UnsupportedModel(f"{node.describe()} sums {terms} terms: too many for a float32 error bound")
    gamma = count * U / (1.0 - count * U)
    total = linear(absolute, *m) + constant
    if not bool((total < _LARGEST).all()):
        raise UnsupportedModel(f"{node.describe()}: its sums may overflow float32 on this box")
    # Input errors pass through |W|; moves alone round nothing, and gamma only makes their figure larger.
    return linear(absolute, *e) + gamma * total + count * _SMALLEST


def _terms(op: Any, x: Tensor) -> int:
    if isinstance(op, ops.Linear):
        return int(op.weight.shape[-1])
    if isinstance(op, ops.Conv | ops.ConvTranspose):
        return int(op.weight.numel() // min(op.weight.shape[:2]))
    if isinstance(op, ops.AvgPool):
        return math.prod(op.kernel)
    if isinstance(op, ops.ReduceSum | ops.ReduceMean):
        return math.prod(x.shape[axis + 1] for axis in op.axes)
    return 2


def statement(graph: Graph, box: tuple[float, float]) -> dict[str, Any]:
    """The figure as a document, or why there is none."""
    try:
        return execution_error(graph, box).to_json()
    except UnsupportedModel as error:
        words = f"no figure for float32 execution: {error}"
        return {"format": "float32", "box": list(box), "refused": str(error), "words": words}


__all__ = ["ASSUMES", "ExecutionError", "execution_error", "statement"]
