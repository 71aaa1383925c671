"""Runs of affine layers without anything between them, and certified gains of a whole run.

The norm of a product of matrices is at most the product of their norms, often much less: a BatchNorm behind a convolution, a
flatten and a dense layer behind an average pool are one linear map and get one norm.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from lipverify import ops
from lipverify.errors import UnsupportedModel
from lipverify.ir.graph import Graph, Node
from lipverify.ir.norm import Norm
from lipverify.ir.op import Op, Shape
from lipverify.linalg.dense import interpolation_bound, operator_norm
from lipverify.linalg.rounding import UNIT_ROUNDOFF, Upper, gamma
from lipverify.memory import share
from lipverify.ops.embedding import embedding
from lipverify.propagation.adjoint import adjoint
from lipverify.propagation.magnitudes import least_bits
from lipverify.rules import gain, gain_of, linear

DENSE_ENTRIES = 1 << 22
"""Runs whose matrix has at most this many entries are also bounded through the matrix itself."""
_TINY = 2.0**-1022
DENSE_SIDE = 1600
"""... if the smaller side of the matrix is at most this: the spectral norm costs its cube."""


@dataclass(frozen=True)
class RunGain:
    """As `rules.Gain`, with factors that may exceed float64, and a note how they were found."""

    factors: tuple[Upper, ...]
    joint: Norm = Norm.L1
    note: str = ""


@dataclass(frozen=True)
class Run:
    """Nodes of one chain, in order: several affine ones, or a single node of any kind."""

    nodes: tuple[Node, ...]
    input_shapes: tuple[Shape, ...]

    @property
    def first(self) -> Node:
        return self.nodes[0]

    @property
    def last(self) -> Node:
        return self.nodes[-1]


def runs(graph: Graph) -> Iterator[Run]:
    """The graph cut into runs, in topological order.

    An affine node joins the run of its only input if nobody else reads that input.
    """
    chains: dict[str, list[Node]] = {}
    for node in graph.nodes:
        before = chains.get(node.inputs[0]) if len(node.inputs) == 1 else None
        extends = (
            before is not None
            and linear.covers(type(node.op))
            and linear.covers(type(before[-1].op))
            and len(before[-1].inputs) == 1
            and len(graph.consumers[before[-1].name]) == 1
            and before[-1].name not in graph.outputs
        )
        if before is not None and extends:
            before.append(node)
            chains[node.name] = chains.pop(before[-2].name)
        else:
            chains[node.name] = [node]
    for chain in chains.values():
        yield Run(tuple(chain), tuple(graph[name].shape for name in chain[0].inputs))


def run_gain(run: Run, norm_in: Norm, norm_out: Norm) -> RunGain:
    """Certified gain of a run.

    Statement: as `rules.Gain`, for the composition of the run's nodes.
    Sound when: every node has a gain rule; fused parameters are rounded in float64 and the rounding is added to the gain.

    Raises:
        UnsupportedModel: a node has no gain rule or is unbounded; the node is named.
    """
    if len(run.nodes) == 1:
        found = gain_of(run.first, run.input_shapes, norm_in, norm_out)
        return RunGain(tuple(Upper.of(factor) for factor in found.factors), found.joint)
    shapes = (*run.input_shapes, *(node.shape for node in run.nodes))
    fused = _fused(run)
    together = _fused_gain(fused, norm_in, norm_out) if len(fused) < len(run.nodes) else None
    if together is not None and len(fused) == 1 and norm_in is norm_out:
        # The norm of a product is never above the product of norms, which cost as much again.
        return RunGain((together,), note="fused layers")
    best = RunGain((_layerwise(run, shapes, norm_in, norm_out),))
    best = _smaller(best, together, "fused layers")
    entries = math.prod(shapes[0]) * math.prod(shapes[-1])
    side = min(math.prod(shapes[0]), math.prod(shapes[-1]))
    # A slice in front only leaves columns out of what it hands on, which is all of what the next one reads.
    chosen = next((k for k, p in enumerate(fused) if _proper(p.op) and not isinstance(p.op, ops.Slice)), 0)
    several = sum(_proper(piece.op) for piece in fused[chosen:]) > 1
    if several and entries <= DENSE_ENTRIES and (side <= DENSE_SIDE or not norm_in is norm_out is Norm.L2):
        best = _smaller(best, _dense_gain(run, shapes, norm_in, norm_out), "matrix of the whole run")
    return best


def rough_gain(run: Run, norm_in: Norm, norm_out: Norm) -> RunGain:
    """As `run_gain`, from sums of absolute entries and embeddings of norms alone: for when the time is over.

    Source: Riesz-Thorin: |A|_{2 -> 2} <= root of |A|_{1 -> 1} |A|_{inf -> inf}; else a norm of A times that of an embedding.
    """
    if len(run.first.inputs) != 1 or not linear.covers(type(run.first.op)):
        return run_gain(run, norm_in, norm_out)
    result = Upper.one()
    shapes = (*run.input_shapes, *(node.shape for node in run.nodes))
    for node, shape in zip(run.nodes, shapes, strict=False):
        one, inf = (Upper.of(gain_of(node, (shape,), n, n).factors[0]) for n in (Norm.L1, Norm.LINF))
        result = result * {Norm.L1: one, Norm.LINF: inf, Norm.L2: (one * inf).sqrt()}[norm_in]
    result = result * embedding(run.last.size, norm_in, norm_out)
    return RunGain(
        (result,), note="the time was over: root of the largest row sum times the largest column sum"
    )


def _smaller(best: RunGain, other: Upper | None, note: str) -> RunGain:
    return RunGain((other,), note=note) if other is not None and other < best.factors[0] else best


def _proper(op: Op) -> bool:
    """Whether the operator does more than move entries."""
    return not isinstance(op, ops.Reshape | ops.Transpose | ops.DepthToSpace)


def _layerwise(run: Run, shapes: tuple[Shape, ...], norm_in: Norm, norm_out: Norm) -> Upper:
    """The best product over all places where the input norm turns into the output norm."""
    if norm_in is norm_out:
        return _product(
            gain_of(node, (shapes[i],), norm_in, norm_in).factors[0] for i, node in enumerate(run.nodes)
        )
    before = [gain_of(n, (shapes[i],), norm_in, norm_in).factors[0] for i, n in enumerate(run.nodes)]
    after = [gain_of(n, (shapes[i],), norm_out, norm_out).factors[0] for i, n in enumerate(run.nodes)]
    cross = [gain_of(n, (shapes[i],), norm_in, norm_out).factors[0] for i, n in enumerate(run.nodes)]
    return min(_product([*before[:i], cross[i], *after[i + 1 :]]) for i in range(len(run.nodes)))


def _product(factors: Iterator[float] | list[float]) -> Upper:
    result = Upper.one()
    for factor in factors:
        result = result * factor
    return result


# -- fusing diagonal maps into their neighbours


@dataclass(frozen=True)
class _Piece:
    """An operator in float64 whose exact parameters differ from the stored ones by at most `relative`, entry by entry."""

    op: Op
    input_shape: Shape
    relative: float = 0.0


def _fused(run: Run) -> list[_Piece]:
    """The run with channel-wise scalings multiplied into the kernel or matrix in front of or behind them."""
    shapes = (*run.input_shapes, *(node.shape for node in run.nodes))
    pieces: list[_Piece] = []
    for node, shape in zip(run.nodes, shapes, strict=False):
        piece = _Piece(node.op.to(dtype=torch.float64), shape)
        while pieces and (joined := _joined(pieces[-1], piece)) is not None:
            pieces.pop()
            piece = joined
        pieces.append(piece)
    return pieces


def _joined(first: _Piece, second: _Piece) -> _Piece | None:
    """One operator for two, or None. Only the linear parts count, so zero padding between them does no harm."""
    for scaling, kernel, before in ((first, second, True), (second, first, False)):
        if not isinstance(kernel.op, ops.Conv | ops.ConvTranspose | ops.Linear):
            continue
        channels = _channels(kernel.op, before)
        factor = _channel_factor(scaling, -1 if isinstance(kernel.op, ops.Linear) else 0, channels)
        if factor is not None:
            values, relative = factor
            weight = _with_factors(kernel.op, values, before)
            if bool(((weight.abs() < _TINY) & (kernel.op.weight != 0)).any()):
                return None  # an underflow has no relative error
            op = replace(kernel.op, weight=weight, bias=None)
            # (1 + a)(1 + b)(1 + u) - 1 <= 2 (a + b + u) for a, b, u below 1/4.
            total = 2 * (relative + kernel.relative + UNIT_ROUNDOFF)
            return _Piece(op, first.input_shape, total)
    return None


def _channels(op: ops.Conv | ops.ConvTranspose | ops.Linear, before: bool) -> int:
    """How many channels the operator reads, or gives."""
    first, second = op.weight.shape[:2]
    if isinstance(op, ops.Linear):
        return second if before else first
    grouped = second * op.groups
    if isinstance(op, ops.Conv):
        return grouped if before else first
    return first if before else grouped


def _with_factors(op: ops.Conv | ops.ConvTranspose | ops.Linear, values: Tensor, before: bool) -> Tensor:
    """The weight with a factor for every channel that is read, or given; rows of a transposed convolution are what it reads."""
    weight, groups = op.weight, 1 if isinstance(op, ops.Linear) else op.groups
    rows = before is isinstance(op, ops.ConvTranspose)
    # [groups, rows of a group, columns of a group, *taps]: columns are counted within their group.
    split = weight.reshape(groups, weight.shape[0] // groups, *weight.shape[1:])
    factors = values.reshape((groups, -1, 1) if rows else (groups, 1, -1))
    return (split * factors.reshape(*factors.shape, *(1,) * (weight.ndim - 2))).reshape(weight.shape)


def _channel_factor(piece: _Piece, axis: int, channels: int) -> tuple[Tensor, float] | None:
    """The factors of a scaling that is constant within each channel of `axis`, and their relative error."""
    op, rank = piece.op, len(piece.input_shape)
    where = axis % rank if rank else 0
    if isinstance(op, ops.BatchNorm):
        if op.axis != where or piece.relative:
            return None
        # One addition, one square root, one division: each within u; 4u leaves room for their products.
        values, error = op.weight / torch.sqrt(op.var + op.eps), 4 * UNIT_ROUNDOFF
        if bool(((values.abs() < _TINY) & (op.weight != 0)).any()):
            return None
        values = values.reshape(-1, *(1,) * (rank - 1 - where))
    elif isinstance(op, ops.Scale) and op.scale is not None:
        values, error = op.scale, 0.0
    elif isinstance(op, ops.DivideBy):
        values, error = 1.0 / op.divisor, UNIT_ROUNDOFF
        if bool((values.abs() < _TINY).any()):
            return None
    else:
        return None
    shape = (1,) * (rank - values.ndim) + tuple(values.shape)
    if any(size != 1 and a != where for a, size in enumerate(shape)):
        return None
    return values.reshape(-1).expand(channels), error + piece.relative


def _fused_gain(pieces: list[_Piece], norm_in: Norm, norm_out: Norm) -> Upper | None:
    if norm_in is not norm_out and len(pieces) > 1:
        return None
    result = Upper.one()
    for piece in pieces:
        factor = Upper.of(gain(piece.op, (piece.input_shape,), norm_in, norm_out).factors[0])
        if piece.relative:
            factor = factor + _magnitude(piece, norm_in, norm_out) * piece.relative
        result = result * factor
    return result


def _magnitude(piece: _Piece, norm_in: Norm, norm_out: Norm) -> Upper:
    """A bound of the norm of the operator with every parameter replaced by its absolute value."""
    one, inf = (
        Upper.of(gain(absolute(piece.op), (piece.input_shape,), norm, norm).factors[0])
        for norm in (Norm.L1, Norm.LINF)
    )
    if norm_in is norm_out:
        # Riesz-Thorin between l1 and linf covers l2.
        return {Norm.L1: one, Norm.LINF: inf, Norm.L2: (one * inf).sqrt()}[norm_in]
    return Upper.of(gain(absolute(piece.op), (piece.input_shape,), norm_in, norm_out).factors[0])


def absolute(op: Op) -> Op:
    changes = {
        f.name: v.abs()
        for f in fields(op)
        if isinstance(v := getattr(op, f.name), Tensor) and v.is_floating_point()
    }
    return replace(op, **changes)


# -- the matrix of a whole run


def _dense_gain(run: Run, shapes: tuple[Shape, ...], norm_in: Norm, norm_out: Norm) -> Upper | None:
    """Gain through the matrix of the run, the rounding of its computation included."""
    matrix = run_matrix(run, lambda op: op)
    magnitude = run_matrix(run, absolute)
    # Each operator's sums run over at most its input (a kernel, a row, a window), its adjoint's over its result; + 8 for scaling
    # factors and divisions. Componentwise |computed - exact| <= gamma * |A_k| ... |A_1| (Higham, section 3.5).
    summed = shapes[1:] if _backwards(run) else shapes[:-1]
    count = sum(math.prod(shape) + 8 for shape in summed)
    names = str(norm_in), str(norm_out)
    try:
        size = Upper.of(float(operator_norm(matrix, *names)))
        error = (
            interpolation_bound(magnitude)
            if norm_in is norm_out is Norm.L2
            else operator_norm(magnitude, *names)
        )
    except (UnsupportedModel, OverflowError):
        return None
    # The magnitude itself was computed with the same relative error: twice gamma covers it.
    return size + Upper.of(float(error)) * (2 * gamma(count)) + _lost(run, shapes)


def _lost(run: Run, shapes: tuple[Shape, ...]) -> Upper:
    """What underflows take from a run's matrix, in any norm from lp to lq: no more than the sum of absolute errors of entries.

    Each product loses at most 2^-1074, each sum as many times that as it has terms, and the layers that follow, or lie before
    where rows are pushed back, multiply it by at most their l1 and linf gains.
    """
    if sum(min(least_bits(node.op), 0.0) for node in run.nodes) > -1000.0:
        return Upper.zero()  # no product is so small
    grown = Upper.one()
    for node, shape in zip(run.nodes, shapes, strict=False):
        for norm in (Norm.L1, Norm.LINF):
            grown = grown * max(Upper.one(), Upper.of(gain_of(node, (shape,), norm, norm).factors[0]))
    entries, terms = math.prod(shapes[0]) * math.prod(shapes[-1]), sum(math.prod(s) + 8 for s in shapes)
    return Upper.of(_TINY) * entries * terms * grown


def _backwards(run: Run) -> bool:
    """Whether rows are pushed back rather than columns forward: there are fewer of them."""
    return run.last.size < math.prod(run.input_shapes[0])


def run_matrix(run: Run, change: Callable[[Op], Op]) -> Tensor:
    """The matrix [outputs, inputs] of a run's linear part in float64; `change` is applied to every operator first.

    A chunk of unit vectors at a time: the identity of an image is far larger than the matrix.
    """
    shapes = (run.input_shapes[0], *(node.shape for node in run.nodes))
    sizes = [math.prod(shape) for shape in shapes]
    steps = [change(node.op.to(dtype=torch.float64, device="cpu")) for node in run.nodes]
    back = _backwards(run)
    start = shapes[-1] if back else shapes[0]
    count = math.prod(start)
    chunk = max(1, share(1 << 28) // (8 * 4 * max(sizes)))
    matrix = torch.empty(count, sizes[0] if back else sizes[-1], dtype=torch.float64)
    for first in range(0, count, chunk):
        last = min(first + chunk, count)
        unit = torch.zeros(last - first, count, dtype=torch.float64)
        unit[torch.arange(last - first), torch.arange(first, last)] = 1.0
        rows = unit.reshape(last - first, *start)
        if back:
            with torch.inference_mode(False):
                for step, shape in zip(reversed(steps), reversed(shapes[:-1]), strict=True):
                    (rows,) = adjoint(step, rows, (shape,))
        else:
            for step in steps:
                rows = linear(step, rows)
        matrix[first:last] = rows.reshape(last - first, -1)
    return matrix if back else matrix.T.contiguous()
