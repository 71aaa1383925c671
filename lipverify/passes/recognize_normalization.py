"""Layer and RMS normalisation from means, squares, a root and a quotient.

The mean and the root are broadcast back by views; that they land on the entries they were computed from is compared exactly
(`lipverify.passes.reductions`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import partial

from torch import Tensor

from lipverify import ops
from lipverify.ir.graph import Graph, Node
from lipverify.ir.op import Op, Shape
from lipverify.passes.reductions import broadcast_reduction
from lipverify.passes.rewriting import Draft, Replacement, substitute
from lipverify.passes.scalar_algebra import number


def recognize_normalization(graph: Graph) -> Graph:
    """x - mean over the root of the variance plus eps as LayerNorm, x over the root of the mean square plus eps as RMSNorm;
    a stored weight and bias behind one of them as its own."""
    found: dict[str, Replacement] = {}
    for node in graph.nodes:
        replacement = _normalized(graph, node) or _distributed(graph, node)
        if replacement is None and isinstance(node.op, ops.Scale):
            replacement = _with_parameters(graph, node, node.op)
        if replacement is not None:
            found[node.name] = replacement
    return substitute(graph, found)


_Maker = Callable[[Shape], Op]


@dataclass(frozen=True)
class _Mean:
    """A mean over `axes` of `of`, after scalar functions `steps`, broadcast back to the shape of `of`."""

    of: Node
    axes: Shape
    steps: tuple[Op, ...]


def _normalized(graph: Graph, node: Node) -> Replacement | None:
    """LayerNorm or RMSNorm in place of a quotient d / root, or of a product d * (1 / root)."""
    if isinstance(node.op, ops.Div):
        pairs, exponent = [(node.inputs[0], node.inputs[1])], Fraction(1, 2)
    elif isinstance(node.op, ops.Mul):
        pairs, exponent = (
            [(node.inputs[0], node.inputs[1]), (node.inputs[1], node.inputs[0])],
            Fraction(-1, 2),
        )
    else:
        return None
    for d, root in pairs:
        mean = _mean(graph, root, graph[d].shape)
        eps = None if mean is None else _eps(mean.steps, exponent)
        if mean is not None and eps is not None and _is_square(mean.of, d):
            x = centered(graph, graph[d], mean.axes)
            if x is not None:
                return _emitted(graph, node, x, mean.axes, partial(_layer_norm, eps))
            return _emitted(graph, node, d, mean.axes, partial(_rms_norm, eps))
    return None


def _distributed(graph: Graph, node: Node) -> Replacement | None:
    """LayerNorm in place of x m + (b - mean m) or x m - mean m, where m is the weight over the root of the variance plus eps:
    what is left when an exporter writes normalisation as a scale and a shift."""
    if isinstance(node.op, ops.Sub):
        pairs: list[tuple[str, Node, Tensor | None]] = [(node.inputs[0], graph[node.inputs[1]], None)]
    elif isinstance(node.op, ops.Add):
        pairs = []
        for first, second in (node.inputs, node.inputs[::-1]):
            shifted = graph[second]
            if isinstance(shifted.op, ops.Scale) and number(shifted.op.scale, 1) == -1:
                pairs.append((first, graph[shifted.inputs[0]], shifted.op.shift))
    else:
        return None
    for product, subtracted, bias in pairs:
        if not (isinstance(graph[product].op, ops.Mul) and isinstance(subtracted.op, ops.Mul)):
            continue
        for x, m in (graph[product].inputs, graph[product].inputs[::-1]):
            others = [name for name in subtracted.inputs if name != m]
            if len(others) == 1 and subtracted.shape == graph[x].shape == node.shape:
                found = _scaled_by(graph, node, x, m, others[0], bias)
                if found is not None:
                    return found
    return None


def _scaled_by(
    graph: Graph, node: Node, x: str, m: str, mean: str, bias: Tensor | None
) -> Replacement | None:
    """The normalisation of x, if m is its factor and `mean` its mean."""
    shape, weight, root = graph[x].shape, None, m
    scale = graph[m].op
    if isinstance(scale, ops.Scale) and scale.shift is None and scale.scale is not None:
        weight, root = scale.scale, graph[m].inputs[0]
    average, spread = _mean(graph, mean, shape), _mean(graph, root, shape)
    if (
        average is None
        or spread is None
        or average.of.name != x
        or average.steps
        or average.axes != spread.axes
    ):
        return None
    eps = _eps(spread.steps, Fraction(-1, 2))
    deviation = next(iter(set(spread.of.inputs)), "")
    if eps is None or not _is_square(spread.of, deviation):
        return None
    if centered(graph, graph[deviation], average.axes) != x:
        return None
    return _emitted(graph, node, x, average.axes, partial(_layer_norm, eps), ops.Scale(weight, bias))


def _layer_norm(eps: float, shape: Shape) -> Op:
    return ops.LayerNorm(shape, None, None, eps)


def _rms_norm(eps: float, shape: Shape) -> Op:
    return ops.RMSNorm(shape, None, eps)


def centered(graph: Graph, node: Node, axes: Shape) -> str | None:
    """x where the node is x minus its mean over the axes."""
    if not isinstance(node.op, ops.Sub):
        return None
    x, subtracted = node.inputs
    mean = _mean(graph, subtracted, graph[x].shape)
    fits = mean is not None and mean.of.name == x and mean.axes == axes and not mean.steps
    return x if fits else None


def _mean(graph: Graph, name: str, shape: Shape) -> _Mean | None:
    """The mean that a node broadcasts to `shape`, with the scalar functions between the mean and the node."""
    found = broadcast_reduction(graph, name, shape)
    if found is None or not isinstance(found.reduce.op, ops.ReduceMean | ops.ReduceSum):
        return None
    steps, axes = found.steps, found.reduce.op.axes
    if isinstance(found.reduce.op, ops.ReduceSum):
        count = math.prod(shape[axis] for axis in axes)
        if not (steps and isinstance(steps[0], ops.DivideBy) and number(steps[0].divisor, 1) == count):
            return None
        steps = steps[1:]
    return _Mean(graph[found.reduce.inputs[0]], axes, steps)


def _eps(steps: Sequence[Op], exponent: Fraction) -> float | None:
    """eps where the steps are v -> (v + eps) ** exponent with eps > 0."""
    if len(steps) < 2 or not isinstance(steps[0], ops.Scale) or number(steps[0].scale, 1) != 1:
        return None
    eps, power = number(steps[0].shift, 0), Fraction(1)
    for op in steps[1:]:
        match op:
            case ops.Sqrt():
                power /= 2
            case ops.Reciprocal():
                power = -power
            case ops.Power(exponent=by) if math.isfinite(by):
                power *= Fraction(by)
            case _:
                return None
    # v + eps is positive, where powers multiply.
    return float(eps) if power == exponent and eps is not None and eps > 0 else None


def _is_square(node: Node, name: str) -> bool:
    if isinstance(node.op, ops.Power):
        return node.op.exponent == 2 and node.inputs == (name,)
    return isinstance(node.op, ops.Mul) and node.inputs == (name, name)


def _emitted(
    graph: Graph, node: Node, x: str, axes: Shape, make: _Maker, behind: ops.Scale | None = None
) -> Replacement:
    """The normalisation over the given axes, which are moved to the end and back where they are not there."""
    shape = graph[x].shape
    order = (*(axis for axis in range(len(shape)) if axis not in axes), *axes)
    moves = order != tuple(range(len(shape)))
    draft = Draft(graph, node)
    name = draft.add(ops.Transpose(order), x) if moves else x
    name = draft.add(make(tuple(shape[axis] for axis in axes)), name)
    back = tuple(order.index(axis) for axis in range(len(shape)))
    name = draft.add(ops.Transpose(back), name) if moves else name
    return draft.finish(name if behind is None else draft.add(behind, name))


def _with_parameters(graph: Graph, node: Node, scale: ops.Scale) -> Replacement | None:
    """A normalisation without weight or bias, then stored numbers for each normalised entry."""
    below = graph[node.inputs[0]]
    if len(graph.consumers[below.name]) != 1 or below.name in graph.outputs:
        return None
    match below.op:
        case ops.LayerNorm(weight=weight, bias=None) if weight is None or scale.scale is None:
            merged = _parameters(graph, node, scale, below.op.shape)
            if merged is None:
                return None
            op: Op = replace(below.op, weight=weight if merged[0] is None else merged[0], bias=merged[1])
        case ops.RMSNorm(weight=None) if scale.shift is None:
            merged = _parameters(graph, node, scale, below.op.shape)
            if merged is None:
                return None
            op = replace(below.op, weight=merged[0])
        case _:
            return None
    draft = Draft(graph, node)
    return draft.finish(draft.add(op, *below.inputs))


def _parameters(
    graph: Graph, node: Node, scale: ops.Scale, shape: Shape
) -> tuple[Tensor | None, Tensor | None] | None:
    """Scale and shift as tensors of the normalised shape; None if they differ between normalised vectors."""
    found: list[Tensor | None] = []
    for values in (scale.scale, scale.shift):
        if values is None:
            found.append(None)
            continue
        rows = values.expand(node.shape).reshape(-1, *shape)
        if values.dtype != graph.dtype or not bool((rows == rows[:1]).all()):
            return None
        found.append(rows[0].clone())
    return found[0], found[1]
