"""Linear functionals of a graph's values, pushed back node by node towards the input.

Legend: every row is an inequality, valid for all inputs of one ball (the row's owner),
    <functional asked for> <= sum over frontier nodes n of <A_n, y_n> + constant + error.
Source: Zhang et al., NeurIPS 2018 (arXiv 1811.00866), CROWN; on DAGs Xu et al., NeurIPS 2020 (arXiv 2002.12920).

Rounding: a computed coefficient differs from the one that makes the inequality exact. The difference, times the value it
belongs to, is at most gamma times |coefficients| times the sum of the absolute terms of that node (`Knowledge.sizes`), because
every value stays inside its known range; `error` adds these up. Higham, section 3.1, for the inner products. Coefficients may be
float32 (`propagation.precision`): constants, errors and inner products with ranges are float64 then too.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lipverify.errors import InternalError
from lipverify.ir.graph import Node
from lipverify.ir.interval import Interval
from lipverify.ir.norm import Norm
from lipverify.ir.op import Constant, Input
from lipverify.linalg.lengths import euclidean_norm
from lipverify.linalg.rounding import UNIT_ROUNDOFF, gamma
from lipverify.propagation.adjoint import adjoint, is_exact
from lipverify.propagation.knowledge import Knowledge, is_affine


@dataclass
class Functionals:
    """Rows of inequalities. coefficients: frontier node -> [rows, *shape]; owner [rows]: index of the ball.

    Raises:
        InternalError: a tensor of another shape, at the start or after any step: nothing is broadcast over rows.
    """

    known: Knowledge
    coefficients: dict[str, Tensor]
    owner: Tensor
    constant: Tensor
    error: Tensor
    mirrored: bool = field(default=False, init=False)
    """Whether every row is followed by its negative."""
    relaxed: bool = field(default=False, init=False)
    """Whether some plane was used: rows hold from one side only."""

    def __post_init__(self) -> None:
        self._check(self.coefficients)

    @classmethod
    def start(cls, known: Knowledge, coefficients: dict[str, Tensor], owner: Tensor) -> Functionals:
        """Functionals of any nodes, without a constant. What is cut off where `known` has a coarser type is an error."""
        zeros, kind = known.box.lower.new_zeros(len(owner)), known.precision.dtype
        first = {name: a.to(kind) for name, a in coefficients.items()}
        walk = cls(known, first, owner, zeros, zeros.clone())
        for name, a in coefficients.items():
            if a.dtype != kind:  # behind nodes that only move entries nothing else would be charged
                walk._charge(2.0 * walk._dot((a.double() - first[name].double()).abs(), known.largest(name)))
        return walk

    def _check(self, names: Iterable[str]) -> None:
        """One number for each row, and coefficients of these nodes in the shape of the node."""
        rows = (len(self.owner),)
        for tensor in (self.owner, self.constant, self.error):
            if tensor.shape != rows:
                raise InternalError(
                    f"{len(self.owner)} functionals have numbers of shape {list(tensor.shape)}"
                )
        for name in names:
            wanted, found = (*rows, *self.known.graph[name].shape), self.coefficients[name].shape
            if found != wanted:
                raise InternalError(
                    f"coefficients of {self.known.graph[name].describe()} have the shape {list(found)}, not {list(wanted)}"
                )

    def keep(self, pairs: Tensor) -> None:
        """Only these pairs of a row and its negative; pairs: a mask, [rows / 2]."""
        if not self.mirrored or pairs.shape != (len(self.owner) // 2,):
            raise InternalError(f"a choice of {list(pairs.shape)} among {len(self.owner)} functionals")
        rows = pairs.repeat_interleave(2).nonzero().flatten()
        self.coefficients = {name: a[rows] for name, a in self.coefficients.items()}
        self.owner, self.constant, self.error = self.owner[rows], self.constant[rows], self.error[rows]

    def mirror(self) -> None:
        """Every row is followed by its negative. Only while no plane was used: until then both need the same numbers."""
        if self.mirrored or self.relaxed:
            raise InternalError("functionals are mirrored once, before any plane is used")
        self.mirrored = True
        self.coefficients = {
            name: torch.stack((a, -a), 1).flatten(0, 1) for name, a in self.coefficients.items()
        }
        self.constant = torch.stack((self.constant, -self.constant), 1).flatten()
        self.owner, self.error = self.owner.repeat_interleave(2), self.error.repeat_interleave(2)

    def step(self, node: Node) -> None:
        """Replaces a frontier node, none of whose consumers is in the frontier, by its inputs."""
        a = self.coefficients.pop(node.name, None)
        if a is None:
            return
        if is_affine(node) and is_exact(node.op):
            for name, back in zip(node.inputs, self._adjoint(node, a), strict=True):
                self._add(name, back)
            self._check(node.inputs)
            return
        # Twice: the sum of absolute values is computed too. 16: products, offsets and their addition.
        precision = self.known.precision
        error = 2.0 * precision.gamma(precision.backward(node)) * self._dot_sizes(a, node)
        if isinstance(node.op, Constant):
            self.constant = self.constant + self._dot(a, self.known.ranges[node.name].lower)
        elif is_affine(node):
            shift = self.known.shift(node)
            if bool(shift.any()):
                self.constant = self.constant + self._dot(a, shift)
            for name, back in zip(node.inputs, self._adjoint(node, a), strict=True):
                self._add(name, back)
        else:
            self.relaxed = True
            self._relax(node, a)
        self._charge(error)
        self._check(name for name in node.inputs if name in self.coefficients)

    def _adjoint(self, node: Node, a: Tensor) -> tuple[Tensor, ...]:
        return adjoint(self.known.op(node), a, self.known.shapes(node))

    def _dot_sizes(self, a: Tensor, node: Node) -> Tensor:
        """At least <|a|, sizes of a node>: [rows]; also what numbers lost below the smallest float32 would add."""
        sizes, precision = self.known.sizes(node), self.known.precision
        if precision.double:
            return self._dot(a.abs(), sizes)
        floor = self.known.smallest(node)
        rough = precision.above(sizes, floor.reshape(-1, *[1] * (sizes.ndim - 1)))
        value = precision.sum_above(self._dot_own(a.abs(), rough), node.size)
        return value + self._rows(floor).expand(len(a))

    def _relax(self, node: Node, a: Tensor) -> None:
        """Positive coefficients take the plane above, negative ones the plane below; strips bound both sides alike."""
        strip = self.known.strips.get(node.name)
        if strip is not None:
            constant = a * self._plane(strip.offset) + a.abs() * self._plane(strip.half)
            self.constant = self.constant + constant.flatten(1).sum(1, dtype=torch.float64)
            for name, part in zip(
                node.inputs, strip.back(a, *(self._plane(fact) for fact in strip.facts)), strict=True
            ):
                self._add(name, part)
            return
        found = self.known.planes(node)
        above = a >= 0
        offset = torch.where(above, self._plane(found.upper.offset), self._plane(found.lower.offset))
        self.constant = self.constant + (a * offset).flatten(1).sum(1, dtype=torch.float64)
        terms = list(zip(found.lower.slopes, found.upper.slopes, strict=False))
        if len(found.lower.slopes) != len(found.upper.slopes):
            raise AssertionError("planes of one operator have the same terms")
        for index, (low, high) in enumerate(terms):
            back = a * torch.where(above, self._plane(high), self._plane(low))
            if found.entries is None:
                self._add(node.inputs[index], back)
                continue
            source = self.known.graph[node.inputs[0]]
            spread = back.new_zeros(len(back), source.size)
            spread.index_add_(1, found.entries[index].reshape(-1), back.flatten(1))
            self._add(source.name, spread.reshape(len(back), *source.shape))

    def _plane(self, facts: Tensor) -> Tensor:
        return self._rows(self.known.precision.narrowed(facts))

    def _add(self, name: str, more: Tensor) -> None:
        have = self.coefficients.get(name)
        if have is None:
            self.coefficients[name] = more
            return
        if have.shape != more.shape:
            raise InternalError(f"coefficients of shapes {list(have.shape)} and {list(more.shape)} are added")
        total = have + more
        self._charge(2.0 * self.known.precision.unit * self._dot(total.abs(), self.known.largest(name)))
        self.coefficients[name] = total

    def _charge(self, error: Tensor) -> None:
        """Also the rounding of the running sums themselves."""
        self.error = (self.error + error + 2.0 * UNIT_ROUNDOFF * self.constant.abs()) * (
            1.0 + 4.0 * UNIT_ROUNDOFF
        )

    def _rows(self, facts: Tensor) -> Tensor:
        """Facts about balls [count or 1, ...] for every row; a view where all rows share one ball."""
        if facts.shape[0] == 1:
            return facts
        if self._single():
            return facts[self.owner[:1]]
        return facts[self.owner]

    def _single(self) -> bool:
        return self.known.count == 1 or bool((self.owner == self.owner[0]).all())

    def _dot(self, a: Tensor, facts: Tensor) -> Tensor:
        """Inner product of every row with the facts of its ball: [rows]."""
        return self._dot_own(a.double(), facts)

    def _dot_own(self, a: Tensor, facts: Tensor) -> Tensor:
        if len(a) == 0:
            return a.new_zeros(0)
        rows = self._rows(facts)
        if rows.shape[0] == 1:
            return a.flatten(1) @ rows.flatten()
        return (a * rows).flatten(1).sum(1)

    def ends(self) -> tuple[Tensor, Tensor]:
        """Lower and upper bound of the functional of every pair: [rows / 2] each, infinite where a number overflowed."""
        if not self.mirrored:
            raise InternalError("a functional without its negative has no lower bound")
        return ends_of(self.upper())

    def upper(self) -> Tensor:
        """Upper bound of every row from the ranges of the frontier, or from the ball itself at the input: [rows]."""
        total, error = self.constant, self.error
        for name, coefficients in self.coefficients.items():
            node, a = self.known.graph[name], coefficients.double()
            size = a.abs()
            box = self.known.ranges.get(name, self.known.box)
            value = self._over_ball(a, size) if isinstance(node.op, Input) else self._over_box(a, size, box)
            slack = 4.0 * gamma(node.size + 16) * self._dot(size, self.known.largest(name))
            total = total + value
            error = error + slack + 4.0 * UNIT_ROUNDOFF * (total.abs() + value.abs())
        found = total + error * (1.0 + 16.0 * UNIT_ROUNDOFF)
        return torch.nextafter(found, torch.full_like(found, torch.inf))

    def _over_box(self, a: Tensor, size: Tensor, box: Interval) -> Tensor:
        """<a, middle> + <|a|, radius>, size = |a|; the radius is rounded so that the box is held."""
        lower, upper = box.lower, box.upper
        middle = lower / 2 + upper / 2
        radius = torch.maximum(upper - middle, middle - lower)
        radius = torch.nextafter(radius, torch.full_like(radius, torch.inf))
        return self._dot(a, middle) + self._dot(size, radius)

    def _over_ball(self, a: Tensor, size: Tensor) -> Tensor:
        """The support function of the ball, cut by the box. For l2 the smaller of ball and box."""
        ball, box = self.known.ball, self.known.box
        if ball.norm is Norm.LINF:
            return self._over_box(a, size, box)
        length = euclidean_norm(a.flatten(1), dim=1)
        # The norm is off by gamma_(n+2) relative; the slack of `upper` is at least that of |a| |center|, not of the radius.
        length = length * (1.0 + 2.0 * gamma(a[0].numel() + 4 if len(a) else 4))
        value = self._dot(a, ball.center.to(a)) + ball.radius * length
        return value if not self.known.cut else torch.minimum(value, self._over_box(a, size, box))


def ends_of(upper: Tensor) -> tuple[Tensor, Tensor]:
    """Lower and upper bound of functionals, from upper bounds of each and of its negative behind it: [2n] -> [n], [n].

    What overflowed is infinite: it says nothing.
    """
    if upper.ndim != 1 or len(upper) % 2:
        raise InternalError(f"bounds of functionals and their negatives have the shape {list(upper.shape)}")
    pairs = torch.where(upper.isfinite(), upper, torch.full_like(upper, torch.inf)).reshape(-1, 2)
    return -pairs[:, 1], pairs[:, 0]
