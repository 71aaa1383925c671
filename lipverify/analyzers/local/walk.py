"""Linear functionals of gradients, pushed from a node towards the output.

The gradient graph runs backwards: g_n = sum over readers c of A_c' g_c (affine c) or s_c g_c (a slope s_c in its range). A
functional of g_n therefore becomes one of the g_c by the readers' forward linear maps, and a number at the output.

Statement: every row is an inequality  <functional asked for> <= sum over n of <A_n, g_n> + constant + error,  for all slopes
in their ranges. A product s g with s in [a, b], weighed by A, is at most max(p g, q g), p = max(a A, b A), q = min(a A, b A):
convex in g, so its chord over the range of g is above it (`ops.planes.chord`); exact where the sign of g is known.
A maximum hands p_i g to its terms, p_i >= 0, sum p_i = 1: sum_i A_i p_i lies between the smallest and the largest A_i of the
terms that can be the largest, and is any number there. So this is the same product with p = max A_i, q = min A_i.
Source: Shi et al., NeurIPS 2022 (arXiv 2210.07394), linear bounds of Clarke Jacobians; RecurJac, Zhang et al., AAAI 2019, is
the coarser rule with constants where slope and sign are unknown.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lipverify import ops
from lipverify.analyzers.local.gradients import Gradients
from lipverify.errors import InternalError
from lipverify.ir.graph import Node
from lipverify.ir.interval import Interval
from lipverify.linalg.rounding import UNIT_ROUNDOFF
from lipverify.propagation.knowledge import is_affine
from lipverify.propagation.precision import UNDERFLOW
from lipverify.propagation.selections import selects
from lipverify.propagation.windows import convolved
from lipverify.rules import linear


@dataclass
class Walk:
    """Rows of inequalities. coefficients: node -> [rows, 1 or output rows, *shape]; owner [rows]: the centre.

    The second axis is 1 until a slope tells the output rows apart.

    Raises:
        InternalError: a tensor of another shape.
    """

    gradients: Gradients
    coefficients: dict[str, Tensor]
    owner: Tensor
    recurjac: bool = False

    def __post_init__(self) -> None:
        zeros = self.gradients.seeds.new_zeros(len(self.owner), self.gradients.rows)
        self.constant, self.error = zeros, zeros.clone()
        kind = self.gradients.precision.dtype
        self.coefficients = {name: a.to(kind) for name, a in self.coefficients.items()}
        self._seen: tuple[Tensor, Tensor] | None = None
        self.rounded: set[str] = set()
        """Nodes whose coefficients some reader did more with than move them, turn their signs or add two of them."""
        self.pending: dict[str, int] = {}
        """Additions behind a node's coefficients that nothing was charged for yet."""

    def upper(self) -> Tensor:
        """Upper bound of every row for every output functional: [rows, output rows]."""
        graph = self.gradients.graph
        for name in self.coefficients:
            self._check(graph[name])
        for node in graph.nodes:
            if any(name in self.coefficients for name in node.inputs):
                self._through(node)
        a = self.coefficients.get(graph.output.name)
        if a is not None:
            seeds = self.gradients.seeds
            self.constant = self.constant + self._dot(a, seeds.unsqueeze(0))
            precision = self.gradients.precision
            count = (
                (graph.output.size if precision.double else 0) + 16 + self.pending.get(graph.output.name, 0)
            )
            self._charge(2.0 * precision.gamma(count) * self._dot(a.abs(), seeds.abs().unsqueeze(0)))
        found = self.constant + self.error * (1.0 + 16.0 * UNIT_ROUNDOFF)
        return torch.nextafter(found, torch.full_like(found, torch.inf))

    def _through(self, node: Node) -> None:
        """From the gradients of a node's inputs to its own."""
        inputs = [self.coefficients.get(name) for name in node.inputs]
        moved = _only_moves(node)
        if moved:
            # One rounding of each sum, relative to the sum: the next charge counts it in.
            behind = [
                self.pending.get(n, 0) for n, a in zip(node.inputs, inputs, strict=True) if a is not None
            ]
            added = int(len(behind) > 1 and not isinstance(node.op, ops.Concat))
            self.pending[node.name] = max(behind) + added
        for name, a in zip(node.inputs, inputs, strict=True):
            if a is not None and not moved:
                self.rounded.add(name)
            if (
                name in self.rounded
                and a is not None
                and self.gradients.graph.consumers[name][-1] == node.name
            ):
                # Every reader has been passed: what rounding did to these coefficients is charged once.
                graph, precision = self.gradients.graph, self.gradients.precision
                readers = (node,) if precision.double else (graph[c] for c in graph.consumers[name])
                count = max(precision.forward(reader, graph[name]) for reader in readers)
                count += self.pending.get(name, 0)
                self._charge(2.0 * precision.gamma(count) * self._dot_sizes(self._absolute(a), name))
        widest = max(a.shape[1] for a in inputs if a is not None)
        if is_affine(node):
            self.coefficients[node.name] = self._affine(node, inputs, widest)
        else:
            self.coefficients[node.name] = self._product(node, inputs)
        self._seen = None
        self._check(node)
        for name in node.inputs:
            if self.gradients.graph.consumers[name][-1] == node.name:
                self.coefficients.pop(name, None)

    def _check(self, node: Node) -> None:
        """Coefficients in the shape of the node, numbers for every row and output row: nothing is broadcast over rows."""
        rows, columns = len(self.owner), self.gradients.rows
        found = self.coefficients[node.name].shape
        if found not in ((rows, 1, *node.shape), (rows, columns, *node.shape)):
            raise InternalError(
                f"coefficients of the gradient of {node.describe()} have the shape {list(found)}"
            )
        for numbers in (self.constant, self.error):
            if numbers.shape != (rows, columns):
                raise InternalError(
                    f"{rows} functionals of gradients have numbers of shape {list(numbers.shape)}"
                )

    def _absolute(self, a: Tensor) -> Tensor:
        """Absolute values, kept for the next question about the same coefficients."""
        if self._seen is None or self._seen[0] is not a:
            self._seen = a, a.abs()
        return self._seen[1]

    def _affine(self, node: Node, inputs: list[Tensor | None], widest: int) -> Tensor:
        rows = len(self.owner)
        if isinstance(node.op, ops.Add | ops.Sub) and any(a is None for a in inputs):
            first, second = inputs
            if first is not None:
                return first
            assert second is not None
            return second if isinstance(node.op, ops.Add) else -second
        arguments = []
        for name, a in zip(node.inputs, inputs, strict=True):
            shape = self.gradients.graph[name].shape
            if a is None:
                arguments.append(self._zeros(1, *shape).expand(rows * widest, *shape))
            else:
                arguments.append(a.expand(rows, widest, *shape).reshape(rows * widest, *shape))
        op = self.gradients.op(node)
        if isinstance(op, ops.Conv):
            return convolved(op, arguments[0]).reshape(rows, widest, *node.shape)
        return linear(op, *arguments).reshape(rows, widest, *node.shape)

    def _zeros(self, *size: int) -> Tensor:
        return self.constant.new_zeros(size, dtype=self.gradients.precision.dtype)

    def _product(self, node: Node, inputs: list[Tensor | None]) -> Tensor:
        """p t + q (1 - t) and the constant (p - q) w of the chord, over all inputs that have coefficients."""
        box = self.gradients.boxes[node.name]
        if self.recurjac:
            return self._constant_ends(node, inputs, box)
        if selects(node):
            ((p, q),), ((middle, half, rest),) = self._ends(node, inputs), self.gradients.chords(node)
            self.constant = self.constant + self._dot(p - q, rest)
            return p * self._rows(middle) + q * self._rows(half)
        total: Tensor | None = None
        for a, (middle, half, rest) in zip(inputs, self.gradients.chords(node), strict=True):
            if a is None:
                continue
            size = self._absolute(a)
            # One multiplication and one fused step: a choice by sign would read and write everything twice more.
            part = a * self._rows(middle)
            part = torch.addcmul(part, size, self._rows(half))
            self.constant = self.constant + self._dot(size, rest)
            total = part if total is None else total + part
        assert total is not None
        return total

    def _dot_sizes(self, a: Tensor, name: str) -> Tensor:
        """At least <a, sizes of a gradient> for a >= 0; also what numbers lost below the smallest float32 would add."""
        sizes, precision = self.gradients.sizes[name], self.gradients.precision
        if precision.double:
            return self._dot(a, sizes)
        floor = UNDERFLOW * (1.0 + sizes.flatten(2).sum(2))
        rough = precision.above(sizes, floor.reshape(*floor.shape, *[1] * (sizes.ndim - 2)))
        value = precision.sum_above(self._dot_own(a, rough), self.gradients.graph[name].size)
        return value + self._rows(floor)

    def _constant_ends(self, node: Node, inputs: list[Tensor | None], box: Interval) -> Tensor:
        """RecurJac: where slope and sign are unknown the product is replaced by its largest value."""
        lower, upper = self._rows(box.lower), self._rows(box.upper)
        total: Tensor | None = None
        for p, q in self._ends(node, inputs):
            unknown = (lower < 0) & (upper > 0) & (p > q)
            largest = torch.where(unknown, torch.maximum(p * upper, q * lower), torch.zeros_like(p))
            self.constant = self.constant + largest.flatten(2).sum(2)
            part = torch.where(unknown, torch.zeros_like(p), torch.where(lower >= 0, p, q))
            total = part if total is None else total + part
        assert total is not None
        return total

    def _ends(self, node: Node, inputs: list[Tensor | None]) -> list[tuple[Tensor, Tensor]]:
        """The largest and the smallest factor of the node's gradient: for every input, for a maximum once for all of them."""
        factors = self.gradients.factors[node.name]
        if not selects(node):
            products = [
                (a * self._rows(f.lower.unsqueeze(1)), a * self._rows(f.upper.unsqueeze(1)))
                for a, f in zip(inputs, factors, strict=True)
                if a is not None
            ]
            return [(torch.maximum(*ends), torch.minimum(*ends)) for ends in products]
        zero = self._zeros(1, 1, *node.shape)
        p, q = zero - torch.inf, zero + torch.inf
        for a, factor in zip(inputs, factors, strict=True):
            possible, weight = self._rows((factor.upper > 0).unsqueeze(1)), zero if a is None else a
            p = torch.where(possible, torch.maximum(p, weight), p)
            q = torch.where(possible, torch.minimum(q, weight), q)
        return [(p, q)]

    def _charge(self, error: Tensor) -> None:
        self.error = (self.error + error + 2.0 * UNIT_ROUNDOFF * self.constant.abs()) * (
            1.0 + 4.0 * UNIT_ROUNDOFF
        )

    def _rows(self, facts: Tensor) -> Tensor:
        """Facts [count or 1, ...] of every row's centre; a view where all rows share one."""
        if facts.shape[0] == 1:
            return facts
        if bool((self.owner == self.owner[0]).all()):
            return facts[self.owner[:1]]
        return facts[self.owner]

    def _dot(self, a: Tensor, facts: Tensor) -> Tensor:
        """Inner products over the sample axes: [rows, output rows], in float64."""
        return self._dot_own(a.double(), facts)

    def _dot_own(self, a: Tensor, facts: Tensor) -> Tensor:
        rows = self._rows(facts)
        if a.shape[1] == 1 and rows.shape[0] == 1:
            return a.flatten(1) @ rows[0].flatten(1).T
        if (
            rows.shape[0] == 1
        ):  # one product of a matrix and a vector for each output row: nothing is written out
            facts_of_row = rows[0].flatten(1).expand(a.shape[1], -1).unsqueeze(2)
            return torch.bmm(a.flatten(2).movedim(1, 0), facts_of_row)[:, :, 0].T
        return (a * rows).flatten(2).sum(2)


def _only_moves(node: Node) -> bool:
    """Whether the coefficients of a reader are copies of its inputs' up to signs, or sums of two of them."""
    kinds = ops.Add | ops.Sub | ops.Concat | ops.Reshape | ops.Transpose | ops.Slice | ops.Gather
    return isinstance(node.op, kinds)
