"""How large values can be over the whole input space, and constants of products of two bounded values.

x1 y1 - x2 y2 = x1 (y1 - y2) + (x1 - x2) y2: a product is Lipschitz where both factors are, and bounded. So attention on
normalised tokens (before or after the blocks, eps > 0) has a constant over all inputs, dot-product attention on raw tokens,
soft-capped or query-key-normalised scores with free values have none, and gates of bounded values have one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lipverify import ops
from lipverify.analyzers.affine_runs import RunGain
from lipverify.analyzers.lengths import unit_vectors
from lipverify.errors import UnsupportedModel
from lipverify.ir.graph import Graph, Node
from lipverify.ir.interval import Interval
from lipverify.ir.norm import Norm
from lipverify.ir.op import Constant, Input, Shape
from lipverify.linalg.dense import operator_norm_upper
from lipverify.linalg.rounding import Upper
from lipverify.ops.embedding import diagonal_norm, embedding, single
from lipverify.propagation import bounded_slopes
from lipverify.rules import Gain, Slopes, Unbounded, gain_of, interval, slopes

NORMS = (Norm.L2, Norm.LINF)
Size = dict[Norm, Upper]
"""Upper bounds of a node's norm over all inputs; a norm that is not there has none."""


@dataclass(frozen=True)
class Sizes:
    """For every node of a graph what is known of its size over the whole input space."""

    graph: Graph
    of: dict[str, Size]
    """Where values are multiplied by each other; else empty."""
    slopes: dict[str, Slopes]
    """Of the scalar functions that have none on the whole line (`propagation.bounded_slopes`)."""

    @classmethod
    def everywhere(cls, graph: Graph) -> Sizes:
        """From the input, which has no bound, to the output.

        Statement: |z(x)|_p <= of[z][p] for every input x. An operator with a constant g is bounded by |f(0)| + g |x|; softmax,
        normalisation and saturating activations are bounded by themselves.
        """
        found = cls(graph, {}, bounded_slopes(graph))
        if not graph.has(ops.Mul, ops.MatMul):
            return found  # nobody asks
        units = unit_vectors(graph)
        for node in graph.nodes:
            own = units[node.name].sizes() if node.name in units else found._size(node)
            found.of[node.name] = own
        return found

    def _size(self, node: Node) -> Size:
        if isinstance(node.op, Input):
            return {}
        if isinstance(node.op, Constant):
            return {norm: _norm(node.op.value, norm) for norm in NORMS}
        own = self._own(node)
        for norm in NORMS:
            other = self._from_inputs(node, norm)
            if other is not None:
                own[norm] = min(own[norm], other) if norm in own else other
        if Norm.L2 in own and Norm.LINF not in own:
            own[Norm.LINF] = own[Norm.L2]
        if Norm.LINF in own:
            through = own[Norm.LINF] * embedding(node.size, Norm.LINF, Norm.L2)
            own[Norm.L2] = min(own[Norm.L2], through) if Norm.L2 in own else through
            own[Norm.LINF] = min(own[Norm.LINF], own[Norm.L2])
        return own

    def _own(self, node: Node) -> Size:
        """What an operator's results are bounded by, whatever its inputs."""
        op = node.op
        if isinstance(op, ops.Softmax | ops.MaskedSoftmax):
            rows = node.size // max(node.shape[op.axis], 1)
            return {Norm.LINF: Upper.one(), Norm.L2: Upper.of(rows).sqrt()}
        if isinstance(op, ops.LayerNorm | ops.RMSNorm):
            n = math.prod(op.shape)
            weight = Upper.one() if op.weight is None else _norm(op.weight, Norm.LINF)
            bias = op.bias if isinstance(op, ops.LayerNorm) else None
            shift = Upper.zero() if bias is None else _norm(bias, Norm.L2)
            token = weight * Upper.of(n).sqrt() + shift
            return {Norm.L2: token * Upper.of(node.size // n).sqrt(), Norm.LINF: token}
        if not slopes.covers(type(op)):
            return {}
        line = torch.full((1, *node.shape), math.inf, dtype=torch.float64)
        try:
            box = interval(op, Interval(-line, line))
        except UnsupportedModel:
            return {}
        ends = torch.maximum(box.lower.abs(), box.upper.abs())
        return {Norm.LINF: _norm(ends, Norm.LINF)} if bool(ends.isfinite().all()) else {}

    def _from_inputs(self, node: Node, norm: Norm) -> Upper | None:
        """|f(0)| plus the constants times the sizes of the inputs; of products the product."""
        sizes = [self.of[name].get(norm) for name in node.inputs]
        known = [size for size in sizes if size is not None]
        if len(known) < len(sizes):
            return None
        shapes = tuple(self.graph[name].shape for name in node.inputs)
        if isinstance(node.op, ops.MatMul):
            terms = 1 if norm is Norm.L2 else shapes[0][-1]
            return known[0] * known[1] * Upper.of(terms)
        if isinstance(node.op, ops.Mul):
            return known[0] * known[1]
        zeros = [torch.zeros(1, *shape, dtype=torch.float64) for shape in shapes]
        try:
            found = self.scalar(node, norm, norm) or gain_of(node, shapes, norm, norm)
            at = interval(node.op, *(Interval(zero, zero) for zero in zeros))
        except UnsupportedModel:
            return None
        # The joint norm of the parts is at most their sum.
        start = _norm(torch.maximum(at.lower.abs(), at.upper.abs()), norm)
        return Upper.sum([start, *(size * Upper.of(f) for size, f in zip(known, found.factors, strict=True))])

    def scalar(self, node: Node, norm_in: Norm, norm_out: Norm) -> Gain | None:
        """The constant of a scalar function by what its argument can be; None where the function has one of its own, or none."""
        found = self.slopes.get(node.name)
        if found is None:
            return None
        most = torch.maximum(found.lower.abs(), found.upper.abs())
        return single(diagonal_norm(most.expand(1, *node.shape)[0], norm_in, norm_out))

    def product(self, node: Node, norm_in: Norm, norm_out: Norm) -> RunGain:
        """Constants of a product of two bounded values, from each factor to the result.

        Raises:
            Unbounded: a factor has no bound over all inputs; it is named.
        """
        first, second = node.inputs
        for name in node.inputs:
            if Norm.LINF not in self.of[name]:
                raise Unbounded(
                    f"{node.describe()}: its factor {self.graph[name].describe()} is not bounded over all inputs, so its "
                    "slope in the other one has no bound; give a region around points (--data FILE --radius R), or normalise the "
                    "factor with eps > 0"
                )
        shapes = self.graph[first].shape, self.graph[second].shape
        if isinstance(node.op, ops.Mul):
            through = embedding(node.size, norm_in, norm_out)
            return RunGain((self.of[second][Norm.LINF] * through, self.of[first][Norm.LINF] * through))
        found = []
        for norm in NORMS:
            factors = self._matrix(second, shapes[1], norm, False), self._matrix(first, shapes[0], norm, True)
            after = embedding(node.size, norm, norm_out)
            before = (embedding(math.prod(shape), norm_in, norm) for shape in shapes)
            found.append(tuple(f * b * after for f, b in zip(factors, before, strict=True)))
        return RunGain(min(found, key=Upper.sum), note="product of bounded values")

    def _matrix(self, name: str, shape: Shape, norm: Norm, left: bool) -> Upper:
        """How far multiplication by each of a node's matrices stretches, in the norm of all entries together."""
        size, op = self.of[name], self.graph[name].op
        rows, columns = shape[-2:]
        average = left and isinstance(op, ops.Softmax | ops.MaskedSoftmax) and op.axis == len(shape) - 1
        if norm is Norm.L2:
            # Spectral norm <= Frobenius norm; of rows that sum to 1, sqrt of the largest column sum.
            own = size[Norm.LINF] * Upper.of(rows * columns).sqrt()
            found = min(size[Norm.L2], own)
            return min(found, Upper.of(rows).sqrt()) if average else found
        if average:
            return Upper.one()
        inner = columns if left else rows
        return min(size[Norm.LINF] * Upper.of(inner), size[Norm.L2] * Upper.of(inner).sqrt())


def _norm(value: Tensor, norm: Norm) -> Upper:
    """The norm of all entries, rounded up."""
    if value.numel() == 0:
        return Upper.zero()
    return operator_norm_upper(value.to(torch.float64).reshape(-1, 1), "l1", str(norm))
