"""Forms that share symbols, and how far they reach.

Legend, for every input x = middle + t of a ball and entry i of a node:
    z_i(x) = c_i + C_i't + sum_k M_ki eta_k(x) + rest,       |eta_k(x)| <= errors[0, k],           |rest| <= slack[0, i]
    dz_i/dx = C_i + sum_k M_ki tau_k(x) + rest,               |tau_k(x)|_kind <= errors[kind, k],   |rest|_kind <= slack[kind, i]
The matrix of a node holds C_i in its first rows and M_ki in the others: the derivative of a reference network in which every
node that is not affine is a fixed linear map, in the inputs and in what was left out at earlier nodes. Its numbers are what
they are, rounded; what rounding left out of an identity is in `slack`, which affine maps multiply by absolute values.
Identity behind it, for any reference: J = J_ref + sum over nodes m of B_m (J_m - R_m) J_<m.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from lipverify.errors import InternalError, UnsupportedModel
from lipverify.ir.interval import Interval
from lipverify.ir.norm import Norm
from lipverify.linalg.dense import gram_norm
from lipverify.linalg.lengths import euclidean_norm, small
from lipverify.linalg.rounding import gamma
from lipverify.propagation.forms.domain import FAR, Domain
from lipverify.propagation.magnitudes import SMALLER

GRAM_STEPS = 7
"""Squarings of a Gram matrix: bounds of spectral norms within a few per cent for matrices of rank 50."""


@dataclass(frozen=True)
class Form:
    """A node's form. centre [count, *shape]; matrix [count or 1, rows, *shape], None for what does not depend on the input.

    slack, size [count, 1 + kinds, *shape]: of values first, then of gradients. size: at least the sum of the absolute values
    of all terms, which rounding is charged against.
    """

    centre: Tensor
    matrix: Tensor | None
    slack: Tensor
    size: Tensor

    @classmethod
    def constant(cls, value: Tensor, kinds: int) -> Form:
        """What does not depend on the input. value [count, *shape]"""
        none = value.new_zeros(len(value), 1 + kinds, *value.shape[1:])
        size = none.clone()
        size[:, 0] = value.abs()
        return cls(value, None, none, size)

    def centred(self) -> Form:
        """Entries minus the mean along the last axis."""
        assert self.matrix is not None
        wide = FAR + 4.0 * gamma(self.centre.shape[-1] + 16)

        def joint(part: Tensor) -> Tensor:
            return (part + part.mean(-1, keepdim=True)) * wide

        size = joint(self.size)
        slack = joint(self.slack) + 2.0 * gamma(self.centre.shape[-1] + 16) * size
        centre, matrix = (part - part.mean(-1, keepdim=True) for part in (self.centre, self.matrix))
        return Form(centre, matrix, slack, size)


@dataclass(frozen=True)
class Facts:
    """What is known of one node: its range [count, *shape], and bounds of its entries' gradients [count, kinds, *shape]."""

    lower: Tensor
    upper: Tensor
    slopes: Tensor

    def meet(self, other: Facts) -> Facts:
        """Both hold."""
        return Facts(
            torch.maximum(self.lower, other.lower),
            torch.minimum(self.upper, other.upper),
            torch.minimum(self.slopes, other.slopes),
        )

    @classmethod
    def joined(cls, parts: list[Facts]) -> Facts:
        """Of one node over some balls and others."""
        ends = zip(*((part.lower, part.upper, part.slopes) for part in parts), strict=True)
        return cls(*(torch.cat(some) for some in ends))

    def within(self, box: Interval) -> Facts:
        """The values also lie in this box."""
        return replace(
            self, lower=torch.maximum(self.lower, box.lower), upper=torch.minimum(self.upper, box.upper)
        )

    def map(self, change: object) -> Facts:
        """The same of moved entries; `change` is applied to tensors [count, *shape]."""
        move = change
        assert callable(move)
        slopes = torch.stack([move(part) for part in self.slopes.unbind(1)], 1)
        return Facts(move(self.lower), move(self.upper), slopes)


@dataclass(frozen=True)
class Groups:
    """Symbols taken together: place [symbols] -> group; bounds [count, 1 + kinds, groups] of the l2 norm of a group's errors.

    Of gradients the norm of the group's matrix of gradients, from the input's norm of the kind to l2.
    """

    place: Tensor
    bounds: Tensor


@dataclass(frozen=True)
class Block:
    """The symbols `start` to `end` of one node. whole [count, 2]: the l2 norm of all errors together, of values and gradients."""

    start: int
    end: int
    whole: Tensor | None
    groups: Groups | None


@dataclass
class Symbols:
    """All symbols so far: errors [count, 1 + kinds, symbols], by blocks."""

    domain: Domain
    memory: int
    errors: Tensor
    blocks: list[Block] = field(default_factory=list)

    @classmethod
    def none(cls, domain: Domain, memory: int) -> Symbols:
        size = domain.count, 1 + len(domain.kinds), 0
        return cls(domain, memory, domain.middle.new_zeros(size))

    @property
    def two(self) -> int | None:
        """The place of l2 among the kinds; None where it is not asked, and no l2 norms are used."""
        return self.domain.kinds.index(Norm.L2) if Norm.L2 in self.domain.kinds else None

    def measure(self, matrix: Tensor) -> Tensor:
        """How far the rows of a matrix [count or 1, rows, *shape] reach: [count, 1 + kinds, *shape]; no slack in it."""
        flat = matrix.flatten(2)
        rows = self.domain.rows
        total = self.domain.sizes(flat[:, :rows])
        for block in self.blocks:
            if rows + block.start >= flat.shape[1]:
                break
            total = total + self._block(block, flat[:, rows + block.start : rows + block.end])
        total = total * (FAR + 4.0 * gamma(flat.shape[1] + 16))
        return total.reshape(*total.shape[:2], *matrix.shape[2:])

    def _block(self, block: Block, part: Tensor) -> Tensor:
        """The share of one block of symbols: the smallest of what entries, groups and the whole block say."""
        errors = self.errors[:, :, block.start : block.end]
        found = errors @ part.abs()
        two = self.two
        if two is not None and block.whole is not None:
            length = euclidean_norm(part, dim=1)
            found[:, 0] = torch.minimum(found[:, 0], length * block.whole[:, :1])
            found[:, 1 + two] = torch.minimum(found[:, 1 + two], length * block.whole[:, 1:])
        if block.groups is not None:
            length = by_group(part, block.groups.place, block.groups.bounds.shape[2])
            found = torch.minimum(found, block.groups.bounds @ length)
        return found

    def facts(self, form: Form, point: Interval) -> tuple[Facts, Form]:
        """What a form and the mean value theorem around `point`, the value at the middle, say; and the form with exact sizes.

        |z(x) - z(middle)| <= reach * sup |dz/dx|, because the ball, cut by its box or not, is convex.
        """
        if form.matrix is None:
            none = form.slack[:, 1:]
            return Facts(form.centre - form.slack[:, 0], form.centre + form.slack[:, 0], none), form
        far = self.measure(form.matrix) + form.slack
        step = self.domain.reach.reshape(-1, *[1] * (form.centre.ndim - 1)) * far[:, 1]
        found = Facts(
            torch.maximum(_down(form.centre, far[:, 0]), _down(point.lower, step)),
            torch.minimum(_up(form.centre, far[:, 0]), _up(point.upper, step)),
            far[:, 1:] * FAR,
        )
        size = far.clone()
        size[:, 0] += form.centre.abs()
        return found, replace(form, size=size * FAR)

    # -- new symbols

    def fresh(
        self,
        form: Form,
        errors: Tensor,
        whole: Tensor | None = None,
        groups: Tensor | None = None,
    ) -> Form:
        """The form with new symbols for what it leaves out: errors [count, 1 + kinds, *shape]; entries without any get none.

        Args:
            whole: [count, 2], the l2 norm of all errors together, of values and (from l2 to l2) of gradients.
            groups: [count, 1 + kinds, *shape without its last axis], the same of the entries along the last axis.
        """
        assert form.matrix is not None
        if not bool(errors.isfinite().all()):
            raise UnsupportedModel(f"its values over this ball are above the largest float64; {SMALLER}")
        shape = form.centre.shape[1:]
        flat = errors.flatten(2)
        keep = (flat > 0).any(1).any(0).nonzero().flatten()
        total, rows = self.errors.shape[2], self.domain.rows
        old = form.matrix
        self._afford(rows + total + len(keep), form.centre[0].numel())
        matrix = old.new_zeros(self.domain.count, rows + total + len(keep), *shape)
        matrix[:, : old.shape[1]] = old
        matrix.flatten(2)[:, rows + total + torch.arange(len(keep), device=keep.device), keep] = 1.0
        if len(keep):
            found = flat[:, :, keep]
            self.blocks.append(
                Block(
                    total, total + len(keep), self._whole(found, whole, groups), _groups(groups, keep, shape)
                )
            )
            self.errors = torch.cat([self.errors, found], 2)
        return replace(form, matrix=matrix)

    def _whole(self, errors: Tensor, whole: Tensor | None, groups: Tensor | None) -> Tensor | None:
        two = self.two
        if two is None:
            return None
        found = [errors] if groups is None else [errors, groups.reshape(*groups.shape[:2], -1)]
        bounds = [
            euclidean_norm(part[:, [0, 1 + two]], dim=2) * (FAR + 4.0 * gamma(part.shape[2] + 16))
            for part in found
        ]
        if whole is not None:
            bounds.append(whole)
        return torch.stack(bounds).amin(0)

    def _afford(self, rows: int, entries: int) -> None:
        """Raises UnsupportedModel before a matrix of more than `memory` bytes is made."""
        need = 8 * self.domain.count * rows * entries
        if need > self.memory:
            raise UnsupportedModel(
                f"its affine forms take {rows} x {entries} numbers, {need / 1e9:.1f} GB a step and more than the "
                f"{self.memory / 1e9:.1f} GB allowed; take a part of the network or a smaller input"
            )

    def spelled(self, form: Form) -> Form:
        """The same form with symbols for its slack, which then stops growing with absolute values."""
        return replace(self.fresh(form, form.slack), slack=torch.zeros_like(form.slack))

    def same_rows(self, *matrices: Tensor) -> list[Tensor]:
        """Matrices with rows for the same symbols."""
        most = max(m.shape[1] for m in matrices)
        return [
            m
            if m.shape[1] == most
            else torch.cat([m, m.new_zeros(len(m), most - m.shape[1], *m.shape[2:])], 1)
            for m in matrices
        ]

    def sum(self, matrices: list[Tensor]) -> Tensor:
        """Of one or two matrices that nobody else holds, the rows that one lacks are 0; they must not be read afterwards."""
        longer, *others = sorted(matrices, key=lambda m: -m.shape[1])
        for other in others:
            if len(other) > len(longer):
                longer = longer.expand(len(other), *longer.shape[1:]).clone()
            longer[:, : other.shape[1]] += other
        return longer


def by_group(part: Tensor, place: Tensor, count: int) -> Tensor:
    """l2 norms of the rows of each group: [count, symbols, ...] -> [count, groups, ...]; sums where squares underflow."""
    none = part.new_zeros(len(part), count, *part.shape[2:])
    length = none.index_add(1, place, part.square()).sqrt()
    lost = length < small(part)
    return torch.where(lost, none.index_add(1, place, part.abs()), length) if bool(lost.any()) else length


def _groups(bounds: Tensor | None, keep: Tensor, shape: torch.Size) -> Groups | None:
    if bounds is None:
        return None
    place = torch.arange(shape.numel() // shape[-1], device=keep.device).repeat_interleave(shape[-1])[keep]
    return Groups(place, bounds.reshape(*bounds.shape[:2], -1))  # a sample may be one group


def largest(matrix: Tensor, steps: int = GRAM_STEPS) -> Tensor:
    """Upper bounds of spectral norms [..., rows, columns] -> [...]; infinite where a number overflowed."""
    if not bool(matrix.isfinite().all()):
        return matrix.new_full(matrix.shape[:-2], torch.inf)
    if min(matrix.shape[-2:]) == 0:
        return matrix.new_zeros(matrix.shape[:-2])
    return gram_norm(matrix, steps)


def _up(value: Tensor, more: Tensor) -> Tensor:
    return torch.nextafter(value + more, torch.full_like(value, torch.inf))


def _down(value: Tensor, less: Tensor) -> Tensor:
    return torch.nextafter(value - less, torch.full_like(value, -torch.inf))


def checked(facts: Facts, name: str) -> Facts:
    """Raises InternalError where a range is empty: all its parts hold the values of the same inputs."""
    if not bool((facts.lower <= facts.upper).all()):
        raise InternalError(f"the ranges of {name!r} do not meet")
    return facts
