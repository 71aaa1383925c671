"""A lower bound of the optimum of the semidefinite program: it says how much more searching can gain."""

from __future__ import annotations

import torch

from lipverify.analyzers.lipsdp.factor import Factor
from lipverify.analyzers.lipsdp.objective import Smoothed
from lipverify.analyzers.lipsdp.system import BlockSystem


def optimum_lower_bound(system: BlockSystem, factor: Factor, smoothed: Smoothed) -> float:
    """A value of rho below the optimum of the program, up to rounding; no statement about the Lipschitz constant.

    Statement: for trajectories c_j, b_j = V_j'g + sum_k C_kj'c_k with c_i . (b_i - c_i) >= 0 over the columns g of a matrix
        with G G' = S, weak duality gives |V0'G + U'c|_F^2 / tr S <= rho for every feasible (rho, D).
    Source: Lagrangian duality; the trajectories are the search's c = A^-1 B G, projected row by row on the ball with diameter
        [0, b_i] during the back substitution.
    """
    pencil = factor.pencil
    values, vectors = torch.linalg.eigh(smoothed.weights)
    root = (vectors * values.clamp(min=0).sqrt()).T
    half = factor.forward(root @ pencil.border(factor.d))
    c, b = half.clone(), root @ pencil.V
    output = pencil.zeros(len(root), system.inputs) if system.V0 is None else root @ system.V0
    for j in reversed(range(len(pencil.part))):
        here = pencil.part[j]
        towards = b[:, here]
        for k in pencil.later[j]:
            if (k, j) in pencil.C:
                towards = towards + c[:, pencil.part[k]] @ pencil.C[k, j]
        away = factor.backward_block(c, j, half[:, here]) - 0.5 * towards
        radius = 0.5 * towards.norm(dim=0)
        shrink = (radius / away.norm(dim=0).clamp(min=1e-300)).clamp(max=1.0)
        c[:, here] = 0.5 * towards + away * shrink
        if j in system.U:
            output = output + c[:, here] @ system.U[j]
    return float(output.square().sum() / values.clamp(min=0).sum())
