"""Spectral norms of tall matrices by one product A'A, whose rows come in parts that often read few columns.

What a token's own nodes left out reaches no other token before the next attention: the symbols of such a node, in order, are
runs of rows that are zero outside one token's columns.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lipverify.linalg.dense import quadratic_bound
from lipverify.linalg.lengths import euclidean_norm
from lipverify.linalg.rounding import gamma
from lipverify.propagation.forms.domain import FAR
from lipverify.propagation.forms.symbols import GRAM_STEPS, largest

TINY = 1e-150
"""Weights are at least this: parts that are smaller count as much."""
_SMALL = 96
"""Of Gram matrices up to this side all eigenvalues are computed for an estimate of the largest."""
_LEVEL = 1e8
"""Balance goes no further: what underflowed in a Gram matrix stays below `_LOST`."""
_ROUGH = 4
"""Products with a Gram matrix for an estimate that weights are made of."""
_TRIES = ((12, 1.0005), (40, 1.005))
"""Products with a Gram matrix for the estimate, and how far above it a threshold is proved."""
_WIDE = 256
"""Gram matrices of at least this side are made of blocks, of which those below the diagonal are not computed."""
_LOST = 1e-290
"""Above what underflows in a Gram matrix and when rows are scaled."""
_RUNS = 8
"""Of rows, each looked at for columns of zeros."""
_NARROW = 0.6
"""Runs that use less than this share of the columns are multiplied by themselves."""


@dataclass(frozen=True)
class Rows:
    """Rows of a matrix [count, rows, columns] as runs without their columns of zeros: (rows, columns or None for all, run)."""

    count: int
    columns: int
    runs: list[tuple[slice, Tensor | None, Tensor]]

    @classmethod
    def of(cls, matrix: Tensor) -> Rows:
        """Runs of a matrix; neighbours that use most columns stay together."""
        rows, columns = matrix.shape[1:]
        step = -(-rows // _RUNS)
        if columns < _WIDE or rows < 4 * _RUNS:
            return cls(rows, columns, [(slice(0, rows), None, matrix)])
        runs: list[tuple[slice, Tensor | None, Tensor]] = []
        for start in range(0, rows, step):
            own = slice(start, min(start + step, rows))
            used = (matrix[:, own] != 0).flatten(0, 1).any(0).nonzero().flatten()
            if len(used) < _NARROW * columns:
                runs.append((own, used, matrix[:, own, used]))
            elif runs and runs[-1][1] is None:
                own = slice(runs[-1][0].start, own.stop)
                runs[-1] = own, None, matrix[:, own]
            else:
                runs.append((own, None, matrix[:, own]))
        return cls(rows, columns, runs)

    def lengths(self) -> Tensor:
        """l2 norms of the rows: [count, rows]."""
        return torch.cat([euclidean_norm(run, dim=2) for _, _, run in self.runs], 1)

    def estimate(self, scale: Tensor, steps: int = 5) -> Tensor:
        """About the spectral norms of the rows times `scale` [count, rows, 1], by a few power iterations: no bound. [count]"""
        vector = _start(self.columns, scale).expand(len(scale), -1, 1)
        square = scale.square()
        for _ in range(steps):
            vector = self._turned(self._times(vector), square)
            vector = vector / vector.norm(dim=-2, keepdim=True).clamp_min(TINY)
        found: Tensor = (torch.cat(self._times(vector), 1) * scale).norm(dim=(-2, -1))
        return found

    def _times(self, vector: Tensor) -> list[Tensor]:
        return [run @ (vector if used is None else vector[:, used]) for _, used, run in self.runs]

    def _turned(self, parts: list[Tensor], scale: Tensor) -> Tensor:
        found = scale.new_zeros(len(scale), self.columns, 1)
        for (own, used, run), part in zip(self.runs, parts, strict=True):
            if used is None:
                found += run.mT @ (part * scale[:, own])
            else:
                found.index_add_(1, used, run.mT @ (part * scale[:, own]))
        return found


def balance(norm: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Numbers c that make norms of Gram matrices times c and weights over c the same, and weight / c.

    |sum A_j xi_j|^2 <= sigma([A_j / sqrt w_j])^2 sum w_j for every w > 0, so any c > 0 is right for all w_j of a block; with
    these the root of the product over blocks is at most the sum of the blocks' own, but for estimates. norm: estimates.
    """
    level = (weight / norm.clamp_min(TINY)).sqrt().nan_to_num(nan=1.0).clamp(1.0 / _LEVEL, _LEVEL)
    return level, weight / level


class Gram:
    """A'A of a tall matrix A [..., rows, columns] whose rows come in parts, none of which is kept."""

    def __init__(self) -> None:
        self.rows = 0
        self.total: Tensor | None = None

    def add(self, part: Tensor) -> None:
        """More rows, [..., some, columns]."""
        self.rows += part.shape[-2]
        found = _squared(part)
        self.total = found if self.total is None else self.total.add_(found)

    def add_scaled(self, part: Rows, scale: Tensor) -> None:
        """More rows, each times its scale: [count, rows, 1]."""
        count = max(len(scale), len(part.runs[0][2]))
        for own, used, run in part.runs:
            scaled = run * scale[:, own]
            if used is None:
                self.add(scaled)
                continue
            self.rows += scaled.shape[1]
            if self.total is None:
                self.total = run.new_zeros(count, part.columns, part.columns)
            self.total[:, used.unsqueeze(1), used] += _squared(scaled)

    def add_balanced(self, part: Tensor, ways: list[tuple[Tensor, Tensor]]) -> Tensor:
        """More rows in the one of several ways that has the least root of norm times weight, balanced.

        part [count or 1, tokens, rows, columns]; of each way a scale [count, rows, tokens] and a weight [count, tokens]. The
        weight that was added: [count, tokens].
        """
        found: list[tuple[Tensor, Tensor]] = []
        for scale, weight in ways:
            gram = _squared(part * scale.mT.unsqueeze(3))
            finite = gram.isfinite().all(-1).all(-1)
            norm = _eigenvalue(torch.where(finite[..., None, None], gram, 0.0), _ROUGH)
            level, weighs = balance(torch.where(finite, norm, torch.inf), weight)
            found.append((gram * level[..., None, None], weighs))
        (best, least), *others = found
        for gram, weighs in others:
            better = weighs < least
            best = torch.where(better[..., None, None], gram, best)
            least = torch.where(better, weighs, least)
        self.rows += part.shape[-2]
        self.total = best if self.total is None else self.total.add_(best)
        return least

    def norm(self) -> Tensor:
        """Upper bounds of the spectral norms of A, [...]; infinite at overflow.

        |A|^2 <= |fl(A'A)| + gamma |A|_F^2, and |A|_F^2 is the trace, but for rounding.
        """
        assert self.total is not None
        trace = self.total.diagonal(dim1=-2, dim2=-1).sum(-1)
        error = 4.0 * gamma(self.rows + self.total.shape[-1] + 16) * trace + _LOST
        return ((_largest_eigenvalue(self.total) + error) * FAR).sqrt() * FAR


def _squared(matrix: Tensor) -> Tensor:
    """A'A; of wide ones the blocks above the diagonal only, which are those below it turned."""
    n = matrix.shape[-1]
    if n < _WIDE:
        return matrix.mT @ matrix
    found = matrix.new_empty(*matrix.shape[:-2], n, n)
    step = -(-n // 4)
    for start in range(0, n, step):
        rows = matrix[..., start : start + step].mT @ matrix[..., start:]
        found[..., start : start + step, start:] = rows
        found[..., start + step :, start : start + step] = rows[..., step:].mT
    return found


def tall_norm(matrix: Tensor) -> Tensor:
    """Upper bounds of spectral norms of many rows, [..., rows, columns] -> [...], by one product; infinite at overflow."""
    gram = Gram()
    gram.add(matrix)
    return gram.norm()


def _largest_eigenvalue(gram: Tensor) -> Tensor:
    """Upper bounds of the quadratic forms of matrices that are symmetric but for rounding: [..., n, n] -> [...].

    A threshold above an estimate is proved, by one factorisation.
    """
    n = gram.shape[-1]
    if n == 0 or not bool(gram.isfinite().all()):
        return largest(gram, GRAM_STEPS - 1)
    for steps, above in _TRIES:
        about = _eigenvalue(gram, steps)
        bound, proved = quadratic_bound(gram, about * above)
        proved &= (about > 1e-100) & (about < 1e100)
        if bool(proved.all()):
            return bound
        if n <= _SMALL:
            break
    return torch.where(proved, bound, largest(gram, GRAM_STEPS - 1))


def _eigenvalue(gram: Tensor, steps: int) -> Tensor:
    """About the largest eigenvalue, no bound: of small matrices exactly, else that on the space of powers on one vector."""
    if gram.shape[-1] <= _SMALL:
        exact: Tensor = torch.linalg.eigvalsh(gram)[..., -1]
        return exact
    vector = _start(gram.shape[-1], gram).expand(*gram.shape[:-2], -1, 1)
    basis = vector / vector.norm(dim=-2, keepdim=True)
    for _ in range(steps):
        vector = gram @ basis[..., -1:]
        for _ in range(2):  # orthogonal but for rounding
            vector = vector - basis @ (basis.mT @ vector)
        basis = torch.cat([basis, vector / vector.norm(dim=-2, keepdim=True).clamp_min(TINY)], -1)
    found: Tensor = torch.linalg.eigvalsh(basis.mT @ (gram @ basis))[..., -1]
    return found


def estimate(matrix: Tensor, steps: int = 5) -> Tensor:
    """About the spectral norms [..., rows, columns] -> [...], by a few power iterations: no bound."""
    vector = _start(matrix.shape[-1], matrix).expand(*matrix.shape[:-2], -1, 1)
    for _ in range(steps):
        vector = matrix.mT @ (matrix @ vector)
        vector = vector / vector.norm(dim=-2, keepdim=True).clamp_min(TINY)
    found: Tensor = (matrix @ vector).norm(dim=(-2, -1))
    return found


def estimate_tall(matrix: Tensor) -> Tensor:
    """As `_estimate`, of matrices with many more rows than columns."""
    return estimate(matrix.mT @ matrix).sqrt()


def _start(size: int, like: Tensor) -> Tensor:
    """Where power iterations start: [size, 1]."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(size, 1, dtype=torch.float64, generator=generator).to(like)
