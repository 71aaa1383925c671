"""Vectors over their own length, as cosine attention writes them: F.normalize, x / (|x| + eps), x / sqrt(|x|^2 + eps).

Statement: each of x / max(|x|, e), x / (|x| + e) and, with e = sqrt(eps), x / sqrt(|x|^2 + eps) has length at most 1 and the
constant 1/e from l2 to l2; sqrt(c |x|^2 + e) with c > 0 and e >= 0, a deviation or a length itself, has the constant sqrt(c).
Proof: the last is the length of the vector (sqrt(c) x, sqrt(e)); taking the mean off x first is a projection. Of the others the
first is the projection on the ball of radius e, over e. Two are x g(r), r = |x|, with g falling and r g rising; the Jacobian is g
along what is orthogonal to x and (r g)' = g + r g' <= g along x, and g(r) <= g(0) = 1/e. x / |x| jumps at 0.
Without this the quotient of two computed values has no constant, although its divisor is bounded from below.

Around points all but the second are one operator (`Unit`), x / |x| too: a form of it keeps the sphere, which those of a quotient
and a root do not know of.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar

import torch

from lipverify import ops
from lipverify.analyzers.affine_runs import RunGain
from lipverify.ir.graph import Graph, Node
from lipverify.ir.norm import Norm
from lipverify.ir.op import Op
from lipverify.linalg.rounding import Upper
from lipverify.ops.embedding import embedding
from lipverify.passes.recognize_normalization import centered
from lipverify.passes.rewriting import Draft, Replacement, substitute
from lipverify.passes.scalar_algebra import number
from lipverify.propagation.forms.unit import Unit
from lipverify.rules import forward

_COPIES = (ops.Reshape, ops.Transpose, ops.Expand)


@dataclass(frozen=True)
class Lengths:
    """node: what is computed of the lengths of vectors; source: the vectors; count of them, of `width` entries each; slope: the
    constant from each of them in l2."""

    node: str
    source: str
    count: int
    width: int
    slope: Upper

    _width_out: ClassVar[int | None] = 1
    _note: ClassVar[str] = "roots of sums of squares"

    def gain(self, norm_in: Norm, norm_out: Norm) -> RunGain:
        """From the vectors to the result."""
        width_out = self._width_out or self.width
        found = by_vectors(self.slope, self.count, self.width, width_out, norm_in, norm_out)
        before = embedding(self.count * self.width, norm_in, Norm.L2)
        behind = embedding(self.count * width_out, Norm.L2, norm_out)
        return RunGain((min(found, before * self.slope * behind),), note=self._note)


@dataclass(frozen=True)
class UnitVectors(Lengths):
    """Vectors over their lengths: the node is the quotient or product, the slope 1/e."""

    _width_out: ClassVar[int | None] = None
    _note: ClassVar[str] = "vectors over their own length"

    def sizes(self) -> dict[Norm, Upper]:
        """Of the result over all inputs."""
        return {Norm.L2: Upper.of(self.count).sqrt(), Norm.LINF: Upper.one()}


def by_vectors(
    slope: Upper, count: int, width_in: int, width_out: int, norm_in: Norm, norm_out: Norm
) -> Upper:
    """From one norm of all entries to another, where each of `count` vectors changes in l2 by at most `slope` times the largest
    l2 change of a vector that is read."""
    before = Upper.of(width_in).sqrt() if norm_in is Norm.LINF else Upper.one()
    behind = {
        Norm.LINF: Upper.one(),
        Norm.L2: Upper.of(count).sqrt(),
        Norm.L1: Upper.of(count) * Upper.of(width_out).sqrt(),
    }
    return slope * before * behind[norm_out]


def unit_vectors(graph: Graph) -> dict[str, UnitVectors]:
    """Every node that is a vector over its own length, bounded from below."""
    found = {}
    for node, source, length in _divided(graph):
        if length.slope is not None:
            width = math.prod(node.shape[axis] for axis in length.axes)
            count = node.size // max(width, 1)
            found[node.name] = UnitVectors(node.name, source, count, width, length.slope)
    return found


def roots(graph: Graph) -> dict[str, Lengths]:
    """Every node sqrt(c |x|^2 + e) of vectors x along axes, with c > 0 and e >= 0: deviations, lengths kept from 0."""
    found = {}
    for node in graph.nodes:
        if not (
            isinstance(node.op, ops.Sqrt) or (isinstance(node.op, ops.Power) and node.op.exponent == 0.5)
        ):
            continue
        factor, added, inner = Fraction(1), Fraction(0), graph[node.inputs[0]]
        while isinstance(inner.op, ops.Scale | ops.DivideBy | ops.Reshape):
            if isinstance(inner.op, ops.Scale):
                by, more = number(inner.op.scale, 1), number(inner.op.shift, 0)
            else:
                by, more = (
                    number(inner.op.divisor, 1) if isinstance(inner.op, ops.DivideBy) else Fraction(1),
                    Fraction(0),
                )
                by = 1 / by if by else None
            if by is None or more is None:
                break
            factor, added, inner = factor * by, added + factor * more, graph[inner.inputs[0]]
        total = _squares(graph, inner, (ops.ReduceSum, ops.ReduceMean))
        if total is None or factor <= 0 or added < 0:
            continue
        source, axes = total
        source = centered(graph, graph[source], axes) or source
        width = math.prod(graph[source].shape[axis] for axis in axes)
        if isinstance(inner.op, ops.ReduceMean):
            factor /= width
        found[node.name] = Lengths(node.name, source, node.size, width, Upper.of(factor).sqrt())
    return found


def with_units(graph: Graph) -> Graph:
    """The graph with one node `Unit` for each vector over its own length, where its law is one; the same real function."""
    found: dict[str, Replacement] = {}
    for node, source, length in _divided(graph):
        if length.law is not None:
            found[node.name] = _one(graph, node, source, length.axes, *length.law)
    for node in graph.nodes:
        if isinstance(node.op, ops.Normalize) and node.op.order == 2:
            found[node.name] = _one(graph, node, node.inputs[0], node.op.axes, 0.0, (0.0, 0.0))
    return substitute(graph, found)


def _one(
    graph: Graph, node: Node, source: str, axes: tuple[int, ...], eps: float, floor: tuple[float, float]
) -> Replacement:
    """`Unit` along axes that are moved to the end and back."""
    rank = len(node.shape)
    order = (*(axis for axis in range(rank) if axis not in axes), *axes)
    back = tuple(order.index(axis) for axis in range(rank))
    moves = order != tuple(range(rank))
    draft = Draft(graph, node)
    name = draft.add(ops.Transpose(order), source) if moves else source
    name = draft.add(Unit(tuple(node.shape[axis] for axis in axes), eps, floor), name)
    return draft.finish(draft.add(ops.Transpose(back), name) if moves else name)


@dataclass(frozen=True)
class _Length:
    """What a vector is divided by. slope: 1/e, None where it may be 0; law: eps and floor of `Unit`, None where it has none."""

    source: str
    axes: tuple[int, ...]
    slope: Upper | None
    law: tuple[float, tuple[float, float]] | None


def _divided(graph: Graph) -> list[tuple[Node, str, _Length]]:
    """Every quotient, or product with an inverse, of a vector and its own length: node, vector, length."""
    found = []
    for node in graph.nodes:
        if isinstance(node.op, ops.Div | ops.Mul):
            for place in (0, 1) if isinstance(node.op, ops.Mul) else (0,):
                source = node.inputs[place]
                length = _length(graph, node, source, node.inputs[1 - place])
                if length is not None:
                    found.append((node, source, length))
    return found


def _length(graph: Graph, node: Node, source: str, length: str) -> _Length | None:
    copies, inverse = [], isinstance(node.op, ops.Mul)
    core = graph[length]
    while isinstance(core.op, _COPIES) or (inverse and isinstance(core.op, ops.Reciprocal)):
        if isinstance(core.op, ops.Reciprocal):
            inverse = False
        else:
            copies.append(core)
        core = graph[core.inputs[0]]
    if inverse:
        return None
    known = _law(graph, core)
    if known is None or known.source != source or graph[source].shape != node.shape:
        return None
    # Every entry is divided by the length of the vector that it belongs to.
    ids = torch.arange(math.prod(core.shape), dtype=torch.float64).reshape(1, *core.shape)
    for copy in reversed(copies):
        ids = forward(copy.op, ids)
    kept = tuple(1 if axis in known.axes else size for axis, size in enumerate(node.shape))
    own = torch.arange(math.prod(kept), dtype=torch.float64).reshape(1, *kept).expand(1, *node.shape)
    return known if ids.shape == own.shape and torch.equal(ids, own) else None


def _law(graph: Graph, core: Node) -> _Length | None:
    """Lengths |x|, bounded from below by e as in the statement or not at all; None for anything else."""
    root = isinstance(core.op, ops.Sqrt)
    inner = graph[core.inputs[0]] if root else core
    least = _least(inner)
    if least is not None and not 0.0 < least < math.inf:
        return None
    under = inner if least is None else graph[inner.inputs[0]]
    total = _squares(graph, under) if root else _norm(graph, under)
    if total is None:
        return None
    if least is None:
        return _Length(*total, None, (0.0, (0.0, 0.0)))
    slope = Upper.of(1) * Upper.of(1.0 / least * (1.0 + 2.0**-50))
    clipped = isinstance(inner.op, ops.Clip)
    if root:
        return _Length(*total, slope.sqrt(), (0.0, (least, least)) if clipped else (least, (0.0, 0.0)))
    square = math.nextafter(least * least, 0.0), math.nextafter(least * least, math.inf)
    return _Length(*total, slope, (0.0, square) if clipped and math.isfinite(square[1]) else None)


def _least(node: Node) -> float | None:
    """e of max(z, e) or z + e for one number e."""
    op = node.op
    if isinstance(op, ops.Clip) and op.high == math.inf:
        return op.low
    if isinstance(op, ops.Scale) and op.scale is None and op.shift is not None and op.shift.numel() == 1:
        return float(op.shift)
    return None


def _norm(graph: Graph, node: Node) -> tuple[str, tuple[int, ...]] | None:
    """A vector and the axes of its l2 norm."""
    if isinstance(node.op, ops.ReduceNorm) and node.op.order == 2:
        return node.inputs[0], node.op.axes
    return _squares(graph, graph[node.inputs[0]]) if isinstance(node.op, ops.Sqrt) else None


def _squares(
    graph: Graph, node: Node, kinds: tuple[type[Op], ...] = (ops.ReduceSum,)
) -> tuple[str, tuple[int, ...]] | None:
    """A vector and the axes along which its squares are added up, or averaged."""
    if not isinstance(node.op, kinds):
        return None
    assert isinstance(node.op, ops.ReduceSum | ops.ReduceMean)
    square = graph[node.inputs[0]]
    twice = isinstance(square.op, ops.Mul) and square.inputs[0] == square.inputs[1]
    if twice or (isinstance(square.op, ops.Power) and square.op.exponent == 2.0):
        return square.inputs[0], node.op.axes
    return None
