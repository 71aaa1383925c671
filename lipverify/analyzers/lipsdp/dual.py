"""A lower bound of the optimum of the semidefinite program: it says how much more searching can gain."""

from __future__ import annotations

import torch
from torch import Tensor

from lipverify.analyzers.lipsdp.factor import Factor
from lipverify.analyzers.lipsdp.objective import Smoothed
from lipverify.analyzers.lipsdp.system import Couplings
from lipverify.linalg.eigen import eigh


def optimum_lower_bound(
    system: Couplings, factor: Factor, smoothed: Smoothed, order: Tensor | None = None
) -> float:
    """A value of rho below the optimum of the program, up to rounding; no statement about the Lipschitz constant.

    Statement: for trajectories c_j, b_j = V_j'g + sum_k C_kj'c_k with c_i . (b_i - c_i) >= 0 over the columns g of a matrix
        with G G' = S, weak duality gives |V0'G + U'c|_F^2 / tr S <= rho for every feasible (rho, D).
    Source: Lagrangian duality; the trajectories are the search's c = A^-1 B G, projected row by row on the ball with diameter
        [0, b_i] during the back substitution.

    Args:
        system: in topological order; 0 for one with loops, whose trajectories are not found in one pass.
        order: where every neuron of the factor stands in `system`, when the factor has another order.
    """
    if any(j >= k for k, j in system.C):
        return 0.0
    if order is not None:
        return _reordered(system, factor, smoothed, order)
    pencil = factor.pencil
    values, root = _root(smoothed)
    root = root.to(pencil.dtype)
    half = factor.forward(root @ pencil.border(factor.d))
    c, b = half.clone(), root @ pencil.V
    output = pencil.zeros(len(root), system.inputs) if system.V0 is None else root @ system.V0.to(root)
    for j in reversed(range(len(pencil.part))):
        here = pencil.part[j]
        towards = b[:, here]
        for k in pencil.later[j]:
            if (k, j) in pencil.C:
                towards = towards + c[:, pencil.part[k]] @ pencil.C[k, j]
        c[:, here] = _projected(factor.backward_block(c, j, half[:, here]), towards)
        if j in system.U:
            output = output + c[:, here] @ system.U[j].to(root)
    return float(output.square().sum() / values.sum())


def _reordered(system: Couplings, factor: Factor, smoothed: Smoothed, order: Tensor) -> float:
    """The same with the trajectories solved for at once and projected afterwards, from the last block to the first."""
    pencil = factor.pencil
    values, root = _root(smoothed)
    border = root.to(pencil.dtype) @ pencil.border(factor.d)
    solved = torch.empty_like(border, dtype=torch.float64)
    solved[:, order] = factor.solve(border).double()
    c = list(solved.split(list(system.sizes), dim=1))
    output = pencil.zeros(len(root), system.inputs).double()
    if system.V0 is not None:
        output = root @ system.V0
    for j in reversed(range(len(c))):
        towards = root @ system.V[j] if j in system.V else torch.zeros_like(c[j])
        for (k, i), matrix in system.C.items():
            if i == j:
                towards = towards + c[k] @ matrix
        c[j] = _projected(c[j], towards)
        if j in system.U:
            output = output + c[j] @ system.U[j]
    return float(output.square().sum() / values.sum())


def _root(smoothed: Smoothed) -> tuple[Tensor, Tensor]:
    """Eigenvalues of S, and G' with G G' = S."""
    values, vectors = eigh(smoothed.weights)
    values = values.clamp(min=0)
    return values, (vectors * values.sqrt()).T


def _projected(c: Tensor, towards: Tensor) -> Tensor:
    """Every column on the ball with diameter [0, column of `towards`]."""
    away = c - 0.5 * towards
    radius = 0.5 * towards.norm(dim=0)
    shrink = (radius / away.norm(dim=0).clamp(min=torch.finfo(c.dtype).tiny)).clamp(max=1.0)
    moved: Tensor = 0.5 * towards + away * shrink
    return moved
