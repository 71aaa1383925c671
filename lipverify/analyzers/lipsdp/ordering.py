"""Another order of the neurons, in which the factor of A(D) is sparse: for convolutional networks.

A neuron of a convolution meets few others. The levels of a breadth-first search through A couple only with their neighbours,
so that A becomes block tridiagonal, with the neurons that meet nearly all others (dense layers) as one block at the end.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from lipverify.analyzers.lipsdp.factor import fill_pattern
from lipverify.analyzers.lipsdp.system import Couplings

if TYPE_CHECKING:
    from scipy import sparse

_SMALLEST = 600
"""Fewer neurons are not worth it."""
_MEETS_NEARLY_ALL = (0.1, 0.2, 0.35)
"""Shares of all neurons from which one is left for the end; the cheapest is taken."""
_LEAST_BLOCK = 128
_GAIN = 0.7
"""Reordering has to save this share of the multiplications: small blocks are slower."""


def sparse_order(system: Couplings) -> tuple[Couplings, Tensor] | None:
    """The same system with its neurons in another order and other blocks, and where each neuron stood; None if nothing is gained.

    Statement: a permutation of the neurons changes neither the Jacobians nor A(D) beyond the order of its rows and columns.
    """
    if system.neurons < _SMALLEST:
        return None
    pattern = _pattern(system)
    blocks = min((_blocks(pattern, share) for share in _MEETS_NEARLY_ALL), key=_work_of_levels)
    found = _permuted(system, blocks, pattern) if len(blocks) > 2 else None
    if found is None or elimination_work(found) > _GAIN * elimination_work(system):
        return None
    return found, torch.from_numpy(np.concatenate(blocks)).to(system.device)


def elimination_work(system: Couplings) -> float:
    """Multiplications of one factorisation."""
    total = 0.0
    for size, touched in zip(system.sizes, fill_pattern(system), strict=True):
        behind = sum(system.sizes[k] for k in touched)
        total += size**3 / 3 + size * size * behind + size * behind * behind
    return total


def _pattern(system: Couplings) -> sparse.csr_matrix:
    """Nonzeros of A(D) [N, N]."""
    from scipy import sparse  # a quarter of a second, for systems that are large

    size, starts = system.neurons, np.cumsum((0, *system.sizes))
    rows, columns = [np.arange(size)], [np.arange(size)]
    for (k, j), matrix in system.C.items():
        places = matrix.nonzero().cpu().numpy()
        rows.append(places[:, 0] + starts[k])
        columns.append(places[:, 1] + starts[j])
    r, c = np.concatenate(rows), np.concatenate(columns)
    couplings = sparse.csr_matrix((np.ones(len(r), np.float32), (r, c)), (size, size))
    rows, columns = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for k, matrix in system.U.items():
        places = matrix.nonzero().cpu().numpy()
        rows.append(places[:, 0] + starts[k])
        columns.append(places[:, 1])
    r, c = np.concatenate(rows), np.concatenate(columns)
    drive = sparse.csr_matrix((np.ones(len(r), np.float32), (r, c)), (size, system.inputs))
    return (couplings + couplings.T + drive @ drive.T).tocsr()


def _work_of_levels(blocks: list[np.ndarray]) -> float:
    """As `elimination_work`, if every block meets the next one and the last."""
    sizes = [len(block) for block in blocks]
    behind = [sum(sizes[k + 1 : k + 2]) + (sizes[-1] if k + 2 < len(sizes) else 0) for k in range(len(sizes))]
    return sum(n**3 / 3 + n * n * b + n * b * b for n, b in zip(sizes, behind, strict=True))


def _blocks(pattern: sparse.csr_matrix, share: float) -> list[np.ndarray]:
    """Levels from a neuron at the rim, small ones joined, then the neurons that meet nearly all others."""
    meets = np.diff(pattern.indptr)
    wide = meets > share * len(meets)
    body = np.flatnonzero(~wide)
    inner = pattern[body][:, body]
    level = np.full(len(body), -1)
    degree = np.diff(inner.indptr)
    while (level < 0).any():
        left = np.flatnonzero(level < 0)
        root = left[np.argmin(degree[left])]
        for _ in range(4):
            found = _distances(inner, root)
            far = np.flatnonzero(found == found.max())
            root = far[np.argmin(degree[far])]
        found = _distances(inner, root)
        reached = found >= 0
        level[reached] = found[reached] + level.max() + 1
    blocks: list[np.ndarray] = []
    for index in range(level.max(initial=-1) + 1):
        members = body[level == index]
        if blocks and len(blocks[-1]) < _LEAST_BLOCK:
            blocks[-1] = np.concatenate([blocks[-1], members])
        else:
            blocks.append(members)
    # The order within a block is free; ascending keeps products contiguous.
    blocks = [np.sort(block) for block in blocks]
    return [*blocks, np.flatnonzero(wide)] if wide.any() else blocks


def _distances(pattern: sparse.csr_matrix, root: int) -> np.ndarray:
    """Steps from the root to every neuron, -1 where there is no way."""
    found = np.full(pattern.shape[0], -1)
    front, step = np.array([root]), 0
    found[root] = 0
    while len(front):
        step += 1
        around = np.unique(pattern[front].indices)
        front = around[found[around] < 0]
        found[front] = step
    return found


def _permuted(system: Couplings, blocks: list[np.ndarray], pattern: sparse.csr_matrix) -> Couplings:
    """Only the blocks in which something couples are kept."""
    starts = np.cumsum((0, *system.sizes))
    origin = np.searchsorted(starts, np.arange(system.neurons), side="right") - 1
    pieces = [_pieces(block, origin, starts, system.device) for block in blocks]
    count = len(blocks)
    C: dict[tuple[int, int], Tensor] = {}
    for a in range(count):
        for b in range(count):
            if pattern[blocks[a]][:, blocks[b]].nnz:
                matrix = _gathered(system, pieces[a], pieces[b], len(blocks[a]), len(blocks[b]))
                if matrix is not None:
                    C[a, b] = matrix
    U: dict[int, Tensor] = {}
    V: dict[int, Tensor] = {}
    for a, block in enumerate(blocks):
        u = torch.zeros(len(block), system.inputs, dtype=torch.float64, device=system.device)
        v = torch.zeros(system.outputs, len(block), dtype=torch.float64, device=system.device)
        for k, there, here in pieces[a]:
            if k in system.U:
                u[here] = system.U[k][there]
            if k in system.V:
                v[:, here] = system.V[k][:, there]
        U |= {a: u} if bool(u.any()) else {}
        V |= {a: v} if bool(v.any()) else {}
    sizes = tuple(len(block) for block in blocks)
    names = tuple(f"level {a}" for a in range(count))
    return Couplings(system.inputs, system.outputs, sizes, U, C, V, system.V0, names)


Piece = tuple[int, Tensor, Tensor]
"""An old block, indices in it, and their places in the new block."""


def _pieces(block: np.ndarray, origin: np.ndarray, starts: np.ndarray, device: torch.device) -> list[Piece]:
    found = []
    for k in np.unique(origin[block]):
        here = np.flatnonzero(origin[block] == k)
        there = block[here] - starts[k]
        found.append((int(k), torch.from_numpy(there).to(device), torch.from_numpy(here).to(device)))
    return found


def _gathered(
    system: Couplings, rows: list[Piece], columns: list[Piece], height: int, width: int
) -> Tensor | None:
    matrix: Tensor | None = None
    for k, there_k, here_k in rows:
        for j, there_j, here_j in columns:
            stored = system.C.get((k, j))
            if stored is None:
                continue
            values = stored[there_k[:, None], there_j[None, :]]
            if not bool(values.any()):
                continue
            if matrix is None:
                matrix = torch.zeros(height, width, dtype=torch.float64, device=system.device)
            matrix[here_k[:, None], here_j[None, :]] = values
    return matrix
