"""Small block systems side by side: dense matrices with a leading axis of systems, blocks padded to common sizes.

Legend: as `factor`. Padded neurons have zero rows in C, U and V: they leave A(D) with 2 d on the diagonal and change nothing.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lipverify.analyzers.lipsdp.factor import Factor
from lipverify.linalg.eigen import eigvalsh


@dataclass(frozen=True)
class Stack:
    """Systems of equal outputs. Neurons are measured so that the start is D = I, outputs so that its rho is 1."""

    C: Tensor
    """[systems, N, N]"""
    gram: Tensor
    """U U' [systems, N, N]"""
    V: Tensor
    """[systems, m, N]"""
    direct: Tensor
    """V0 U' [systems, m, N]"""
    Y0: Tensor
    """[systems, m, m]"""
    blocks: Tensor
    """[systems, blocks, N]: which neurons a block has; none has the padded ones."""
    part: tuple[slice, ...]
    """The places of every block, padded to its largest size."""

    @classmethod
    def of(cls, factors: Sequence[Factor], values: Sequence[float]) -> Stack:
        """From feasible points D with lmax(Y(D)) = values > 0."""
        pencils = [factor.pencil for factor in factors]
        first, count, m = pencils[0], len(pencils), pencils[0].outputs
        padded = [max(sizes) for sizes in itertools.zip_longest(*(p.sizes for p in pencils), fillvalue=0)]
        ends = list(itertools.accumulate(padded))
        part = tuple(slice(end - width, end) for end, width in zip(ends, padded, strict=True))
        size = ends[-1]
        result = cls(
            C=first.zeros(count, size, size),
            gram=first.zeros(count, size, size),
            V=first.zeros(count, m, size),
            direct=first.zeros(count, m, size),
            Y0=first.zeros(count, m, m),
            blocks=first.zeros(count, len(part), size),
            part=part,
        )
        for row, (factor, pencil, rho) in enumerate(zip(factors, pencils, values, strict=True)):
            unit, root = factor.d.sqrt(), math.sqrt(rho)
            at = _places(part, pencil.sizes)
            for (k, j), matrix in pencil.C.items():
                here, there = pencil.part[k], pencil.part[j]
                result.C[row, at[k], at[j]] = matrix * unit[there] / unit[here, None]
            for (k, j), matrix in pencil.gram.items():
                here, there = pencil.part[k], pencil.part[j]
                block = matrix / unit[there] / unit[here, None]
                result.gram[row, at[k], at[j]], result.gram[row, at[j], at[k]] = block, block.T
            for k, here in enumerate(pencil.part):
                result.V[row, :, at[k]] = pencil.V[:, here] * unit[here] / root
                result.direct[row, :, at[k]] = pencil.direct[:, here] / unit[here] / root
                result.blocks[row, k, at[k]] = 1.0
            result.Y0[row] = pencil.Y0 / rho
        return result

    def without_padding(self, row: int, values: Tensor, sizes: Sequence[int]) -> Tensor:
        """The neurons of one system, from values of all places."""
        return torch.cat([values[row, at] for at in _places(self.part, sizes)])

    def chosen(self, rows: Tensor) -> Stack:
        """Some of the systems."""
        return Stack(
            self.C[rows],
            self.gram[rows],
            self.V[rows],
            self.direct[rows],
            self.Y0[rows],
            self.blocks[rows],
            self.part,
        )

    def factor(self, d: Tensor) -> tuple[Tensor, Tensor]:
        """Cholesky factors of A(D), and where there is one."""
        half = self.C * d[:, None]
        a = torch.diag_embed(2.0 * d).sub_(half).sub_(half.mT).sub_(self.gram)
        lower, info = torch.linalg.cholesky_ex(a)
        return lower, info == 0

    def closed_form(self, share: float) -> tuple[Tensor, Tensor]:
        """The multipliers of `start.scalar_start` and lmax(Y) there, infinite where A(D) is not positive definite."""
        work, d = self.gram.clone(), torch.ones_like(self.gram[:, 0])
        for here in self.part:
            r = work[:, here, here]
            largest = eigvalsh(r)[:, -1:]
            d[:, here] = torch.where(largest > 0.0, share * (1.0 + 1e-12) * largest, 1.0)
            lower, _ = torch.linalg.cholesky_ex(torch.diag_embed(2.0 * d[:, here]) - r)
            behind = slice(here.stop, None)
            coupled = torch.addcmul(work[:, behind, here], self.C[:, behind, here], d[:, None, here])
            z = torch.linalg.solve_triangular(lower.mT, coupled, upper=True, left=False)
            # Near the edge of the feasible set a system may have no factor; it is refused below.
            z = z.nan_to_num(0.0, 0.0, 0.0)
            work[:, behind, behind] += z @ z.mT
        lower, feasible = self.factor(d)
        top = eigvalsh(self.output_form(d, lower).nan_to_num(0.0, 0.0, 0.0))[:, -1]
        return d, torch.where(feasible & torch.isfinite(top), top, math.inf)

    def border(self, d: Tensor) -> Tensor:
        """B(D)' [systems, m, N]."""
        return torch.addcmul(self.direct, self.V, d[:, None])

    def output_form(self, d: Tensor, lower: Tensor) -> Tensor:
        """Y(D)."""
        half = torch.linalg.solve_triangular(lower.mT, self.border(d), upper=True, left=False)
        return torch.baddbmm(self.Y0, half, half.mT)


def _places(part: Sequence[slice], sizes: Sequence[int]) -> list[slice]:
    return [slice(here.start, here.start + size) for here, size in zip(part, sizes, strict=False)]
