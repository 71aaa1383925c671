"""Block Cholesky of A(D) = 2D - DC' - CD - UU' along the topological order of a block system.

Legend: N neurons in blocks j, m outputs; trajectories are rows: a [count, N] tensor holds `count` of them, so that every
solve is one triangular solve with contiguous right-hand sides per block. M_kj = C_kj D_j + (U U')_kj + fill.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from lipverify.analyzers.lipsdp.system import BlockSystem

Choose = Callable[[int, Tensor], Tensor]
"""Block j and its R_j, which depends on D of earlier blocks only -> the diagonal of D_j."""


def fill_pattern(system: BlockSystem) -> tuple[tuple[int, ...], ...]:
    """For each block the later blocks its elimination touches: neighbours in C and UU', and cliques of those."""
    count = len(system.sizes)
    later: list[set[int]] = [{k for k, i in system.C if i == j} for j in range(count)]
    for j in system.U:
        later[j] |= {k for k in system.U if k > j}
    for touched in later:
        for k in touched:
            later[k] |= {l for l in touched if l > k}
    return tuple(tuple(sorted(touched)) for touched in later)


class Pencil:
    """A(D), B(D) and Y(D) of one block system, prepared for many D.

    A = 2D - DC' - CD - UU', B = DV' + UV0', Y = V0V0' + B'A^-1B; A > 0 implies |J|^2 <= lmax(Y) (`bound` has the proof).
    With `weighted`, block 0 is the input itself (see `linf`) and enters A as D_0 instead of 2 D_0.
    """

    def __init__(self, system: BlockSystem, weighted: bool = False) -> None:
        self.leading = [1.0 if weighted and k == 0 else 2.0 for k in range(len(system.sizes))]
        self.weighted = weighted
        some = next(iter((*system.U.values(), *system.V.values(), system.V0)), None)
        self.device = torch.device("cpu") if some is None else some.device
        self.sizes = system.sizes
        self.neurons = system.neurons
        self.outputs = system.outputs
        ends = [sum(system.sizes[: k + 1]) for k in range(len(system.sizes))]
        self.part = [slice(end - size, end) for end, size in zip(ends, system.sizes, strict=True)]
        self.C = system.C
        self.later = fill_pattern(system)
        self.gram = {(k, j): a @ b.T for k, a in system.U.items() for j, b in system.U.items() if k >= j}
        self.V = self.zeros(self.outputs, self.neurons)
        self.direct = self.zeros(self.outputs, self.neurons)
        """V0 U'"""
        for k, matrix in system.V.items():
            self.V[:, self.part[k]] = matrix
        for k, matrix in system.U.items():
            if system.V0 is not None:
                self.direct[:, self.part[k]] = system.V0 @ matrix.T
        outputs = self.zeros(self.outputs, self.outputs)
        self.Y0 = outputs if system.V0 is None else system.V0 @ system.V0.T

    def zeros(self, *shape: int) -> Tensor:
        return torch.zeros(shape, dtype=torch.float64, device=self.device)

    def border(self, d: Tensor) -> Tensor:
        """B(D)' [m, N]."""
        return torch.addcmul(self.direct, self.V, d)

    def times_c(self, rows: Tensor) -> Tensor:
        """Each row r becomes (C'r)': what reaches a neuron from the neurons it feeds."""
        result = torch.zeros_like(rows)
        for (k, j), matrix in self.C.items():
            result[:, self.part[j]].addmm_(rows[:, self.part[k]], matrix)
        return result

    def times_c_transposed(self, rows: Tensor) -> Tensor:
        """Each row r becomes (C r)'."""
        result = torch.zeros_like(rows)
        for (k, j), matrix in self.C.items():
            result[:, self.part[k]].addmm_(rows[:, self.part[j]], matrix.T)
        return result

    def factor(self, d: Tensor) -> Factor | None:
        """None when A(D) is not positive definite in floating point."""
        return self.eliminate(lambda j, _: d[self.part[j]])

    def eliminate(self, choose: Choose, shift: Tensor | None = None) -> Factor | None:
        """Factors A(D) - diag(shift) while D is being chosen: block j only needs D of the blocks before it."""
        work = dict(self.gram)
        owned: set[tuple[int, int]] = set()
        chol: list[Tensor] = []
        cross: list[Tensor | None] = []
        chosen: list[Tensor] = []
        for j, size in enumerate(self.sizes):
            r = work.pop((j, j), None)
            r = self.zeros(size, size) if r is None else r
            d = choose(j, r)
            s = r.neg_() if (j, j) in owned else -r
            s.diagonal().add_(d, alpha=self.leading[j])
            if shift is not None:
                s.diagonal().sub_(shift[self.part[j]])
            lower, info = torch.linalg.cholesky_ex(s)
            if info.item():
                return None
            chosen.append(d)
            chol.append(lower)
            touched = self.later[j]
            if not touched:
                cross.append(None)
                continue
            # Rows of the right-hand side are blocks M_kj; solving from the right keeps them contiguous.
            stacked = torch.cat([self._coupling(work, k, j, d) for k in touched])
            z = torch.linalg.solve_triangular(lower.T, stacked, upper=True, left=False)
            cross.append(z)
            parts = z.split([self.sizes[k] for k in touched])
            for position, k in enumerate(touched):
                for l, other in zip(touched[: position + 1], parts[: position + 1], strict=True):
                    self._update(work, owned, (k, l), parts[position], other)
        return Factor(self, torch.cat(chosen) if chosen else self.zeros(0), chol, cross)

    def _coupling(self, work: dict[tuple[int, int], Tensor], k: int, j: int, d: Tensor) -> Tensor:
        matrix, weight = work.pop((k, j), None), self.C.get((k, j))
        if weight is None:
            return self.zeros(self.sizes[k], self.sizes[j]) if matrix is None else matrix
        return weight * d if matrix is None else torch.addcmul(matrix, weight, d)

    def _update(
        self,
        work: dict[tuple[int, int], Tensor],
        owned: set[tuple[int, int]],
        key: tuple[int, int],
        left: Tensor,
        right: Tensor,
    ) -> None:
        """R_kl += Z_k Z_l', in place once the block is ours and not the stored Gram matrix."""
        if key in owned:
            work[key].addmm_(left, right.T)
        elif key in work:
            work[key] = torch.addmm(work[key], left, right.T)
        else:
            work[key] = left @ right.T
        owned.add(key)


@dataclass
class Factor:
    """A(D) = L L': `chol[j]` = L_jj, `cross[j]` = the rows -L_kj of all later k, stacked."""

    pencil: Pencil
    d: Tensor
    chol: list[Tensor]
    cross: list[Tensor | None]

    def forward(self, rows: Tensor) -> Tensor:
        """Rows r become (L^-1 r)'."""
        pencil, rows = self.pencil, rows.clone()
        for j, (lower, z) in enumerate(zip(self.chol, self.cross, strict=True)):
            here = rows[:, pencil.part[j]]
            solved = torch.linalg.solve_triangular(lower.T, here, upper=True, left=False)
            here.copy_(solved)
            if z is None:
                continue
            touched = pencil.later[j]
            if len(touched) == 1:
                rows[:, pencil.part[touched[0]]].addmm_(solved, z.T)
                continue
            parts = (solved @ z.T).split([pencil.sizes[k] for k in touched], dim=1)
            for k, part in zip(touched, parts, strict=True):
                rows[:, pencil.part[k]].add_(part)
        return rows

    def backward(self, rows: Tensor) -> Tensor:
        """Rows r become (L'^-1 r)'."""
        result = torch.empty_like(rows)
        for j in reversed(range(len(self.chol))):
            here = self.pencil.part[j]
            result[:, here] = self.backward_block(result, j, rows[:, here])
        return result

    def backward_block(self, solved: Tensor, j: int, rows: Tensor) -> Tensor:
        """Block j of `backward`, given the later blocks of `solved`."""
        z, touched = self.cross[j], self.pencil.later[j]
        if z is not None:
            behind = [solved[:, self.pencil.part[k]] for k in touched]
            rows = torch.addmm(rows, behind[0] if len(behind) == 1 else torch.cat(behind, 1), z)
        solved_here: Tensor = torch.linalg.solve_triangular(self.chol[j], rows, upper=False, left=False)
        return solved_here

    def solve(self, rows: Tensor) -> Tensor:
        """Rows r become (A^-1 r)'."""
        return self.backward(self.forward(rows))

    def output_form(self) -> Tensor:
        """Y(D) = V0V0' + B'A^-1B."""
        border = self.forward(self.pencil.border(self.d))
        return torch.addmm(self.pencil.Y0, border, border.T)

    def diagonal_weight(self, j: int, generator: torch.Generator) -> float:
        """About tr(D_j S_j^-1 D_j), exact for small blocks, from 16 random signs for large ones."""
        d = self.d[self.pencil.part[j]]
        if len(d) <= 256:
            probes = torch.diag(d)
            return self._half_solve(j, probes)
        signs = torch.randint(0, 2, (16, len(d)), generator=generator, device="cpu").to(d) * 2.0 - 1.0
        return self._half_solve(j, signs * d) / 16.0

    def _half_solve(self, j: int, rows: Tensor) -> float:
        solved = torch.linalg.solve_triangular(self.chol[j].T, rows, upper=True, left=False)
        return float(solved.square().sum())


def largest_eigenvalue(matrix: Tensor) -> float:
    """An estimate, never a bound: exact eigenvalues for small matrices, else power iteration in a small subspace."""
    size = matrix.shape[0]
    if size == 0:
        return 0.0
    if size <= 600:
        return float(torch.linalg.eigvalsh(matrix)[-1])
    generator = torch.Generator().manual_seed(size)
    basis = torch.randn(size, 8, generator=generator, dtype=torch.float64).to(matrix)
    for _ in range(15):
        basis, _ = torch.linalg.qr(matrix @ (matrix @ basis))
    values = torch.linalg.eigvalsh(basis.T @ (matrix @ basis))
    return float(values[-1])
