"""Block Cholesky of A(D) = 2D - DC' - CD - UU' along the order of the blocks of a system.

Legend: N neurons in blocks j, m outputs; trajectories are rows: a [count, N] tensor holds `count` of them, so that every
solve is one triangular solve with contiguous right-hand sides per block. M_kj = C_kj D_j + D_k C_jk' + (U U')_kj + fill.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from lipverify.analyzers.lipsdp.system import Couplings
from lipverify.deadline import look
from lipverify.errors import InternalError
from lipverify.linalg.eigen import eigvalsh

_WORTH_SPARSE, _DENSITY = 1 << 16, 0.15
"""Entries from which a block may be sparse, and the share of nonzeros up to which it is."""

Choose = Callable[[int, Tensor], Tensor]
"""Block j and its R_j, which depends on D of earlier blocks only -> the diagonal of D_j."""


def fill_pattern(system: Couplings) -> tuple[tuple[int, ...], ...]:
    """For each block the later blocks its elimination touches: neighbours in C and UU', and cliques of those."""
    return filled(len(system.sizes), (*system.C, *_meeting(system)))


def filled(blocks: int, neighbours: Iterable[tuple[int, int]]) -> tuple[tuple[int, ...], ...]:
    """Later blocks that the elimination of each block touches: its neighbours in the matrix, and cliques of those."""
    later: list[set[int]] = [set() for _ in range(blocks)]
    for k, j in neighbours:
        if k != j:
            later[min(k, j)].add(max(k, j))
    for touched in later:
        for k in touched:
            later[k] |= {other for other in touched if other > k}
    return tuple(tuple(sorted(touched)) for touched in later)


def _meeting(system: Couplings) -> list[tuple[int, int]]:
    """Pairs (k, j), k >= j, of blocks that read a common input."""
    reads = {k: (m != 0).any(0) for k, m in system.U.items()}
    return [(k, j) for k in reads for j in reads if k >= j and bool((reads[k] & reads[j]).any())]


class Pencil:
    """A(D), B(D) and Y(D) of one system, prepared for many D.

    A = 2D - DC' - CD - UU', B = DV' + UV0', Y = V0V0' + B'A^-1B; A > 0 implies |J|^2 <= lmax(Y) (`bound` has the proof).
    With `weighted`, block 0 is the input itself (see `linf`) and enters A as D_0 instead of 2 D_0. In float32 it serves a
    search whose results are evaluated again.
    """

    def __init__(self, system: Couplings, weighted: bool = False, dtype: torch.dtype = torch.float64) -> None:
        self.leading = [1.0 if weighted and k == 0 else 2.0 for k in range(len(system.sizes))]
        self.weighted = weighted
        self.device, self.dtype = system.device, dtype
        self.sizes = system.sizes
        self.neurons = system.neurons
        self.outputs = system.outputs
        ends = [sum(system.sizes[: k + 1]) for k in range(len(system.sizes))]
        self.part = [slice(end - size, end) for end, size in zip(ends, system.sizes, strict=True)]
        self.C = {key: matrix.to(dtype) for key, matrix in system.C.items()}
        self.products = Products(self.C, self.part)
        self.later = fill_pattern(system)
        self.gram = {(k, j): (system.U[k] @ system.U[j].T).to(dtype) for k, j in _meeting(system)}
        self.V = self.zeros(self.outputs, self.neurons)
        self.direct = self.zeros(self.outputs, self.neurons)
        """V0 U'"""
        for k, matrix in system.V.items():
            self.V[:, self.part[k]] = matrix.to(dtype)
        for k, matrix in system.U.items():
            if system.V0 is not None:
                self.direct[:, self.part[k]] = (system.V0 @ matrix.T).to(dtype)
        outputs = self.zeros(self.outputs, self.outputs)
        self.Y0 = outputs if system.V0 is None else (system.V0 @ system.V0.T).to(dtype)

    def zeros(self, *shape: int) -> Tensor:
        return torch.zeros(shape, dtype=self.dtype, device=self.device)

    def border(self, d: Tensor) -> Tensor:
        """B(D)' [m, N]."""
        return torch.addcmul(self.direct, self.V, d)

    def times_c(self, rows: Tensor) -> Tensor:
        """Each row r becomes (C'r)': what reaches a neuron from the neurons it feeds."""
        return self.products.backward(rows)

    def times_c_transposed(self, rows: Tensor) -> Tensor:
        """Each row r becomes (C r)'."""
        return self.products.forward(rows)

    def factor(self, d: Tensor) -> Factor | None:
        """None when A(D) is not positive definite in floating point."""
        return self.eliminate(lambda j, _: d[self.part[j]], known=d)

    def eliminate(
        self, choose: Choose, shift: Tensor | None = None, known: Tensor | None = None
    ) -> Factor | None:
        """Factors A(D) - diag(shift) while D is being chosen: block j only needs D of the blocks before it.

        known: D itself, which systems need whose blocks read later blocks.
        """
        work = dict(self.gram)
        owned: set[tuple[int, int]] = set()
        chol: list[Tensor] = []
        cross: list[Tensor | None] = []
        chosen: list[Tensor] = []
        for j, size in enumerate(self.sizes):
            look()
            r = work.pop((j, j), None)
            r = self.zeros(size, size) if r is None else r
            d = choose(j, r)
            s = r.neg_() if (j, j) in owned else -r
            s.diagonal().add_(d, alpha=self.leading[j])
            loop = self.C.get((j, j))
            if loop is not None:
                s -= loop * d
                s -= d[:, None] * loop.T
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
            stacked = torch.cat([self._coupling(work, k, j, d, known) for k in touched])
            z = torch.linalg.solve_triangular(lower.T, stacked, upper=True, left=False)
            cross.append(z)
            parts = z.split([self.sizes[k] for k in touched])
            for position, k in enumerate(touched):
                look()
                for l, other in zip(touched[: position + 1], parts[: position + 1], strict=True):
                    self._update(work, owned, (k, l), parts[position], other)
        return Factor(self, torch.cat(chosen) if chosen else self.zeros(0), chol, cross)

    def _coupling(
        self, work: dict[tuple[int, int], Tensor], k: int, j: int, d: Tensor, known: Tensor | None
    ) -> Tensor:
        matrix, weight, back = work.pop((k, j), None), self.C.get((k, j)), self.C.get((j, k))
        if weight is not None:
            matrix = weight * d if matrix is None else torch.addcmul(matrix, weight, d)
        if back is not None:
            if known is None:
                raise InternalError("blocks that read later blocks need D in advance")
            added = known[self.part[k], None] * back.T
            matrix = added if matrix is None else matrix + added
        return self.zeros(self.sizes[k], self.sizes[j]) if matrix is None else matrix

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


class Products:
    """C and C' times rows: sparse blocks, as those of convolutions, together in one sparse matrix, the others one by one."""

    def __init__(self, blocks: Mapping[tuple[int, int], Tensor], part: list[slice]) -> None:
        self.part = part
        self.dense: dict[tuple[int, int], Tensor] = {}
        rows, columns, values = [], [], []
        for (k, j), matrix in blocks.items():
            places = matrix.nonzero() if matrix.numel() >= _WORTH_SPARSE else None
            if places is None or len(places) > _DENSITY * matrix.numel():
                self.dense[k, j] = matrix
                continue
            rows.append(places[:, 0] + part[k].start)
            columns.append(places[:, 1] + part[j].start)
            values.append(matrix[places[:, 0], places[:, 1]])
        self.sparse: tuple[Tensor, Tensor] | None = None
        if values:
            r, c, v = torch.cat(rows), torch.cat(columns), torch.cat(values)
            size = part[-1].stop
            self.sparse = _compressed(r, c, v, size), _compressed(c, r, v, size)

    def forward(self, rows: Tensor) -> Tensor:
        """Each row r becomes (C r)'."""
        result = torch.zeros_like(rows) if self.sparse is None else _times(self.sparse[0], rows)
        for (k, j), matrix in self.dense.items():
            result[:, self.part[k]].addmm_(rows[:, self.part[j]], matrix.T)
        return result

    def backward(self, rows: Tensor) -> Tensor:
        """Each row r becomes (C'r)'."""
        result = torch.zeros_like(rows) if self.sparse is None else _times(self.sparse[1], rows)
        for (k, j), matrix in self.dense.items():
            result[:, self.part[j]].addmm_(rows[:, self.part[k]], matrix)
        return result


def _compressed(rows: Tensor, columns: Tensor, values: Tensor, size: int) -> Tensor:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse")
        places = torch.stack([rows, columns])
        return torch.sparse_coo_tensor(places, values, (size, size)).coalesce().to_sparse_csr()


def _times(matrix: Tensor, rows: Tensor) -> Tensor:
    product: Tensor = matrix @ rows.T
    return product.T.contiguous()


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
            look()
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
            look()
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
        return float(eigvalsh(matrix)[-1])
    generator = torch.Generator().manual_seed(size)
    basis = torch.randn(size, 8, generator=generator, dtype=torch.float64).to(matrix)
    for _ in range(15):
        basis, _ = torch.linalg.qr(matrix @ (matrix @ basis))
    values = eigvalsh(basis.T @ (matrix @ basis))
    return float(values[-1])
