"""Values of a graph as sums of entries of earlier nodes and of their products, and as matrices times vectors of entries."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from fractions import Fraction

import torch
from torch import Tensor

from lipverify import ops
from lipverify.analyzers.affine_runs import runs
from lipverify.ir.graph import Graph, Node
from lipverify.linalg.dense import operator_norm_upper
from lipverify.linalg.rounding import Upper
from lipverify.rules import forward

ENTRIES = 1 << 25
"""Numbers of one table of places, up to which squares and products are followed."""
_BLOCK = 1 << 24
"""More than a matrix has rows."""
_MOVES = (ops.Reshape, ops.Transpose, ops.Slice, ops.Gather, ops.Expand)
_PERMUTATIONS = (ops.Reshape, ops.Transpose)


@dataclass(frozen=True)
class Sum:
    """Entries as sums of terms. linear: factors and places [*shape]; squares: factors and two places [terms, *shape] each,
    whose products are added up; root: the entries are roots of these sums of squares."""

    linear: tuple[tuple[Fraction, Tensor], ...] = ()
    squares: tuple[tuple[Fraction, Tensor, Tensor], ...] = ()
    root: bool = False

    def moved(self, node: Node) -> Sum:
        def move(part: Tensor) -> Tensor:
            return forward(node.op, part.to(torch.float64)).to(torch.int64)

        return Sum(
            tuple((c, move(a[None])[0]) for c, a in self.linear),
            tuple((c, move(a), move(b)) for c, a, b in self.squares),
            self.root,
        )

    def times(self, factor: Fraction) -> Sum | None:
        if self.root:
            return None
        return Sum(
            tuple((factor * c, a) for c, a in self.linear),
            tuple((factor * c, a, b) for c, a, b in self.squares),
        )

    def plus(self, other: Sum) -> Sum | None:
        if self.root or other.root:
            return None
        return Sum(self.linear + other.linear, self.squares + other.squares)


@dataclass(frozen=True)
class Mapped:
    """Entries as rows of matrices, plus constants. vectors [width, *shape]: the places of the vector that an entry reads; labels
    [*shape]: the number of its matrix and of the row in it, the same for the same function; norms: of the matrices."""

    vectors: Tensor
    labels: Tensor
    norms: dict[int, Upper]

    def moved(self, node: Node) -> Mapped:
        stacked = torch.cat([self.vectors, self.labels[None]])
        found = forward(node.op, stacked.to(torch.float64)).to(torch.int64)
        return Mapped(found[:-1], found[-1], self.norms)

    def norm(self, row: Tensor) -> Upper:
        """Of the matrix of these labels: rows of several matrices, a row of which may be there more than once."""
        total = Upper.zero()
        blocks = row - row % _BLOCK
        for block in blocks.unique().tolist():
            most = int(row[blocks == block].unique(return_counts=True)[1].max())
            total = total + self.norms[block] * self.norms[block] * Upper.of(most)
        return total.sqrt()


@dataclass
class Reader:
    """Values of a graph as sums of entries, and of products of two entries, of nodes that are not followed any further.

    starts: the number of a node's first entry; parts: nodes whose entries are those of a concatenation among these.
    """

    graph: Graph
    starts: dict[str, int] = field(default_factory=dict)
    parts: set[str] = field(default_factory=set)
    known: dict[str, Sum | None] = field(default_factory=dict)
    total: int = 0
    blocks: int = 0

    def read(self, name: str) -> Sum | None:
        """None for what is neither."""
        if name not in self.known:
            self.known[name] = self._sum(self.graph[name])
        return self.known[name]

    def _sum(self, node: Node) -> Sum | None:
        op = node.op
        if isinstance(op, _MOVES):
            inner = self.read(node.inputs[0])
            return None if inner is None else inner.moved(node)
        factor = _factor(node)
        if factor is not None:
            inner = self.read(node.inputs[0])
            return None if inner is None else inner.times(factor)
        if isinstance(op, ops.Add | ops.Sub):
            first, second = (self.read(name) for name in node.inputs)
            second = None if second is None else second.times(Fraction(-1 if isinstance(op, ops.Sub) else 1))
            return None if first is None or second is None else first.plus(second)
        if isinstance(op, ops.Power) and op.exponent == 2.0:
            inner = self.read(node.inputs[0])
            return None if inner is None else _product(inner, inner, False)
        if isinstance(op, ops.Mul | ops.MatMul):
            first, second = (self.read(name) for name in node.inputs)
            if first is None or second is None:
                return None
            return _product(first, second, isinstance(op, ops.MatMul))
        if isinstance(op, ops.ReduceSum) or (isinstance(op, ops.ReduceNorm) and op.order == 2):
            inner = self.read(node.inputs[0])
            if inner is not None and isinstance(op, ops.ReduceNorm):
                inner = _product(inner, inner, False)
            return None if inner is None else _added(inner, op, isinstance(op, ops.ReduceNorm))
        # A copy of a matrix reads the same as the matrix: queries and keys may come from two layers with equal weights.
        alike = (other for other in self.graph.nodes if other.name in self.starts and _same(other, node))
        twin = next(alike, None)
        start = self.starts.setdefault(node.name, self.total if twin is None else self.starts[twin.name])
        self.total = max(self.total, start + node.size)
        places = torch.arange(start, start + node.size).reshape(node.shape)
        if isinstance(op, ops.Concat):
            self._share(node, op.axis, places)
        return Sum(((Fraction(1), places),))

    def _share(self, node: Node, axis: int, places: Tensor) -> None:
        """What reads one of the concatenated matrices' results itself reads the same entries as what reads all of them."""
        shapes = [self.graph[name].shape[axis] for name in node.inputs]
        for name, part in zip(node.inputs, places.split(shapes, axis), strict=True):
            if name not in self.known and isinstance(self.graph[name].op, ops.Linear):
                self.known[name] = Sum(((Fraction(1), part),))
                self.parts.add(name)

    def mapped(self, name: str) -> Mapped | None:
        """A value as rows of matrices times vectors of entries; None where no matrix is in front, or for anything else."""
        node = self.graph[name]
        op, factor = node.op, _factor(node)
        if name in self.starts or name in self.parts:
            return None
        if isinstance(op, ops.Linear):
            return self._through(op, node)
        inner = [self.mapped(each) for each in node.inputs]
        parts = [part for part in inner if part is not None]
        if not parts or len(parts) < len(inner):
            return None
        if isinstance(op, ops.Concat) and len({len(part.vectors) for part in parts}) == 1:
            stacked = [torch.cat([part.vectors, part.labels[None]]) for part in parts]
            whole = forward(op, *(part.to(torch.float64) for part in stacked)).to(torch.int64)
            return Mapped(whole[:-1], whole[-1], {k: v for part in parts for k, v in part.norms.items()})
        if factor is not None:
            norms = {block: norm * Upper.of(abs(factor)) for block, norm in parts[0].norms.items()}
            return Mapped(parts[0].vectors, parts[0].labels, norms)
        return parts[0].moved(node) if isinstance(op, _MOVES) else None

    def _through(self, op: ops.Linear, node: Node) -> Mapped | None:
        """A matrix times a vector of entries, or times what a matrix made of one."""
        norm = operator_norm_upper(op.weight.to(torch.float64), "l2", "l2")
        before = self.mapped(node.inputs[0])
        out = torch.arange(node.shape[-1])
        if before is None:
            inner = self.read(node.inputs[0])
            if inner is None or len(inner.linear) != 1 or inner.squares:
                return None
            ((factor, places),) = inner.linear
            vectors = places.movedim(-1, 0).unsqueeze(-1).expand(-1, *node.shape)
            block = self._block()
            return Mapped(vectors, (block + out).expand(node.shape), {block: Upper.of(abs(factor)) * norm})
        if bool((before.vectors != before.vectors[..., :1]).any()):
            return None
        rows, which = before.labels.reshape(-1, before.labels.shape[-1]).unique(dim=0, return_inverse=True)
        blocks = [self._block() for _ in rows]
        norms = {block: before.norm(row) * norm for block, row in zip(blocks, rows, strict=True)}
        labels = (torch.tensor(blocks)[which].unsqueeze(-1) + out).reshape(node.shape)
        return Mapped(before.vectors[..., :1].expand(-1, *node.shape), labels, norms)

    def _block(self) -> int:
        self.blocks += _BLOCK
        return self.blocks

    def source(self, keys: Tensor) -> str | None:
        """The last node with the entries of the one that is not followed any further: the end of a run of affine nodes."""
        low, high = int(keys.min()), int(keys.max())
        for name, start in self.starts.items():
            node = self.graph[name]
            if not start <= low <= high < start + node.size:
                continue
            while (
                len(readers := self.graph.consumers[node.name]) == 1 and node.name not in self.graph.outputs
            ):
                after = self.graph[readers[0]]
                if not isinstance(after.op, _PERMUTATIONS):
                    break
                node = after
            return node.name if any(run.last.name == node.name for run in runs(self.graph)) else None
        return None


def _same(first: Node, second: Node) -> bool:
    """Whether two matrices with equal numbers read the same node."""
    a, b = first.op, second.op
    if not (isinstance(a, ops.Linear) and isinstance(b, ops.Linear) and first.inputs == second.inputs):
        return False
    biases = (a.bias, b.bias)
    none = [bias is None for bias in biases]
    return torch.equal(a.weight, b.weight) and (all(none) or (not any(none) and torch.equal(*biases)))  # type: ignore[arg-type]


def _factor(node: Node) -> Fraction | None:
    """The one number that a node multiplies all entries by."""
    op = node.op
    if isinstance(op, ops.Scale) and op.shift is None and op.scale is not None and op.scale.numel() == 1:
        return Fraction(float(op.scale))
    if isinstance(op, ops.DivideBy) and op.divisor.numel() == 1 and float(op.divisor) != 0.0:
        return 1 / Fraction(float(op.divisor))
    return None


def _product(first: Sum, second: Sum, dot: bool) -> Sum | None:
    """Products of entries, or of matrices: of sums of entries, and the square of a root."""
    if first.root and first is second and not dot:
        return Sum(squares=first.squares)
    if first.squares or second.squares or not first.linear or not second.linear:
        return None
    squares = []
    for c, a in first.linear:
        for d, b in second.linear:
            x, y = a[None], b[None]
            if dot:  # the terms first: x[.., i, t] y[.., t, j]
                x, y = a.movedim(-1, 0).unsqueeze(-1), b.movedim(-2, 0).unsqueeze(-2)
            if math.prod(torch.broadcast_shapes(x.shape, y.shape)) > ENTRIES:
                return None
            squares.append((c * d, *torch.broadcast_tensors(x, y)))
    return Sum(squares=tuple(squares))


def _added(inner: Sum, op: ops.ReduceSum | ops.ReduceNorm, root: bool) -> Sum | None:
    """Sums along axes of sums of squares."""
    if inner.linear or inner.root:
        return None

    def gathered(part: Tensor) -> Tensor:
        axes = tuple(axis + 1 for axis in op.axes)
        moved = part.movedim(axes, tuple(range(1, 1 + len(axes)))).flatten(0, len(axes))
        for axis in op.axes if op.keepdims else ():
            moved = moved.unsqueeze(axis + 1)
        return moved

    return Sum(squares=tuple((c, gathered(a), gathered(b)) for c, a, b in inner.squares), root=root)
