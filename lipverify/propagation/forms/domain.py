"""The inputs of affine forms: one ball for each centre, and what the first rows of every form stand for.

Legend: x = middle + t, |t_j| <= half_j and |t|_ball <= reach. A value with first rows C [rows, entries] depends on t by
C't while the rows are the inputs themselves; after `compress` by C'F't (linf) or C'v, v = Q't (l2).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lipverify.ir.norm import Norm
from lipverify.ir.region import Ball
from lipverify.linalg.lengths import euclidean_norm
from lipverify.linalg.rounding import gamma

FAR = 1.0 + 2.0**-40
"""Above the rounding of a dozen operations on numbers >= 0."""


@dataclass
class Front:
    """A matrix F [inputs, rows] whose columns fall into groups that read different inputs: only those blocks are stored."""

    parts: list[tuple[Tensor, Tensor, Tensor]]
    """(inputs, rows, block [inputs, rows]) of each group."""
    columns: Tensor
    """[rows]: sums of the absolute values of the columns, rounded up."""

    @classmethod
    def of(cls, matrix: Tensor) -> Front:
        """Patches of an image read different pixels: a product with their matrix costs a small part of a dense one."""
        used = matrix != 0
        groups, place = torch.unique(used.T, dim=0, return_inverse=True)
        if bool((groups.sum(0) > 1).any()):
            groups, place = used.any(1)[None], torch.zeros_like(place)
        parts = []
        for index, group in enumerate(groups):
            inputs, rows = group.nonzero().flatten(), (place == index).nonzero().flatten()
            if len(inputs):
                parts.append((inputs, rows, matrix[inputs][:, rows]))
        if not parts:
            # Nothing reads an input, as behind neurons that are dead on every ball: one input, with columns of 0.
            everything = torch.arange(matrix.shape[1], device=matrix.device)
            parts.append((everything.new_zeros(1), everything, matrix[:1]))
        return cls(parts, matrix.abs().sum(0) * (1.0 + 4.0 * gamma(len(matrix) + 4)))

    def __matmul__(self, rows: Tensor) -> Tensor:
        """F C for C [count, rows, ...], inputs in the order of the groups: [count, inputs, ...]."""
        flat = rows.flatten(2)
        found = torch.cat([block @ flat[:, some] for _, some, block in self.parts], 1)
        return found.reshape(*found.shape[:2], *rows.shape[2:])

    def order(self, half: Tensor) -> Tensor:
        """Facts about inputs [count, inputs] in the order of the groups."""
        return half[:, torch.cat([inputs for inputs, _, _ in self.parts])]


@dataclass
class Domain:
    """middle [count, *input shape] and half [count, inputs], reach [count]; kinds: dual norms in which gradients are measured.

    The first kind is that of the ball: |z(x) - z(middle)| <= reach * (bound of the gradient in it).
    """

    middle: Tensor
    half: Tensor
    reach: Tensor
    ball: Norm
    kinds: tuple[Norm, ...]
    rows: int
    front: Front | None = None
    stretch: float = 1.0
    """At least |Q|_2, where first rows were replaced in l2."""

    @classmethod
    def of(cls, ball: Ball, norm_in: Norm, device: torch.device) -> Domain:
        """In linf a ball that its box cuts is a box again, around another centre; in l2 the box is left out, which is sound."""
        center = ball.center.to(device)
        if ball.norm is Norm.LINF:
            box = ball.enclosure()
            lower, upper = box.lower.to(device), box.upper.to(device)
            middle = lower / 2 + upper / 2
            half = torch.maximum(upper - middle, middle - lower)
            half = torch.nextafter(half, torch.full_like(half, torch.inf)).flatten(1)
            reach = half.amax(1)
        else:
            middle = center
            reach = torch.full((len(ball),), ball.radius, dtype=torch.float64, device=device)
            half = reach[:, None].expand(-1, center[0].numel())
        kinds = tuple(dict.fromkeys((ball.norm.dual, norm_in.dual)))
        return cls(middle, half, reach, ball.norm, kinds, center[0].numel())

    @property
    def count(self) -> int:
        """How many balls."""
        return len(self.middle)

    @property
    def euclidean(self) -> bool:
        """Whether nothing but l2 is asked."""
        return self.kinds == (Norm.L2,)

    def sizes(self, c: Tensor) -> Tensor:
        """How far C't moves, and dual norms of its gradient: [count or 1, rows, columns] -> [count, 1 + kinds, columns]."""
        rough: Tensor | None = None
        if self.euclidean:
            norm = euclidean_norm(c, dim=1).expand(self.count, -1) * self.stretch
            found = torch.stack([norm * self.reach[:, None], norm], 1)
        else:
            wide, half = c.abs(), self.half
            if self.front is not None:
                # |fl(F C) - F C|, summed over the inputs, is at most gamma |F|' |C|.
                rough = 2.0 * gamma(self.rows + 8) * torch.einsum("r,brc->bc", self.front.columns, wide)
                wide, half = (self.front @ c).abs(), self.front.order(half)
            by_kind = [_measured(wide, kind).expand(self.count, -1) for kind in self.kinds]
            if self.ball is Norm.LINF:
                value = torch.einsum("bj,bjc->bc", half, wide.expand(self.count, -1, -1))
            else:
                value = by_kind[0] * self.reach[:, None]
            found = torch.stack([value, *by_kind], 1)
            if rough is not None:
                more = rough.expand(self.count, -1).unsqueeze(1)
                found = found + torch.cat(
                    [more * self.half.amax(1)[:, None, None], more.expand(-1, len(self.kinds), -1)], 1
                )
        inputs = self.half.shape[1] + self.rows
        return found * (FAR + 4.0 * gamma(inputs + 16))

    def lifted(self, c: Tensor) -> Tensor:
        """Rows for the inputs (in any order) instead of the first rows, and `gamma |F||C|` is left to the caller."""
        return c if self.front is None else self.front @ c


def _measured(wide: Tensor, kind: Norm) -> Tensor:
    """Norms of columns [count, rows, columns] of numbers >= 0: [count, columns]."""
    if kind is Norm.L1:
        return wide.sum(1)
    if kind is Norm.L2:
        return euclidean_norm(wide, dim=1)
    return wide.amax(1)
