"""The textbook LipSDP program in a general cone solver: an oracle for small networks, and the peer of benchmarks.

Legend: z = (x, w) all inputs and neurons, c_j the row of neuron j in v = C z, a_j = e_j - c_j, E_0 the projection on x.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from lipverify.analyzers.lipsdp.system import BlockSystem, LoopedSystem
from lipverify.errors import Undecided, UsageError
from lipverify.linalg.definite import corner_upper
from lipverify.linalg.rounding import Upper, gamma, inflate

Matrix = NDArray[np.float64]


@dataclass(frozen=True)
class ReferenceSolution:
    """What a cone solver said. Nothing of it is a bound: its multipliers are evaluated again."""

    multipliers: tuple[torch.Tensor, ...]
    """lambda of every neuron, by block; may be infeasible."""
    objective: float
    """The solver's own sqrt(rho)."""
    status: str
    solver: str
    seconds: float | None = None
    """What the solver says it took, without the modelling around it."""


def solve_reference(
    system: BlockSystem | LoopedSystem, solver: str = "CLARABEL", **options: float
) -> ReferenceSolution:
    """LipSDP-Neuron by CVXPY; implicit layers are blocks of C on the diagonal.

    Statement: min rho subject to rho E_0 + sum_j lambda_j (e_j a_j' + a_j e_j') - Out' Out >= 0, lambda >= 0.
    Source: Fazlyab, Robey, Hassani, Morari, Pappas, NeurIPS 2019 (arXiv 1906.04893), Theorem 2 with slopes [0, 1].

    Raises:
        UsageError: CVXPY does not offer the solver. Undecided: the solver returned no multipliers.
    """
    import cvxpy

    if solver not in cvxpy.installed_solvers():
        raise UsageError(
            f"CVXPY has no solver {solver!r} here; installed: {', '.join(cvxpy.installed_solvers())}"
        )
    whole = system if isinstance(system, LoopedSystem) else LoopedSystem(system, {})
    system = whole.causal
    rows, out = dense_system(system, whole.loops)
    inputs = system.inputs
    # The program of the transposed Jacobian has the same value, and lambda is rho / lambda. For causal systems the textbook's
    # own side is kept: it is what others run.
    flipped = bool(whole.loops) and system.outputs < inputs
    if flipped:
        rows, out = _transposed(rows, out, inputs)
        inputs = system.outputs
    n, count = rows.shape[1], system.neurons
    pick = np.zeros((n, count))
    pick[inputs:] = np.eye(count)
    a = pick - rows.T
    first = np.zeros((n, n))
    first[:inputs, :inputs] = np.eye(inputs)
    rho, weights = cvxpy.Variable(nonneg=True), cvxpy.Variable(count, nonneg=True)
    half = pick @ cvxpy.diag(weights) @ a.T if count else np.zeros((n, n))
    matrix = rho * first + half + half.T - out.T @ out
    problem = cvxpy.Problem(cvxpy.Minimize(rho), [(matrix + matrix.T) / 2 >> 0])
    try:
        problem.solve(solver=solver, **options)
    except cvxpy.error.SolverError as error:
        raise Undecided(f"{solver} gave up: {error}") from None
    if rho.value is None or (count and weights.value is None):
        raise Undecided(f"{solver} ended with status {problem.status} and no multipliers")
    values = torch.as_tensor(np.asarray(weights.value) if count else np.zeros(0), dtype=torch.float64)
    if flipped:
        middle = float(values[values > 0].median()) if bool((values > 0).any()) else 1.0
        values = float(rho.value) / values.clamp_min(1e-12 * middle)
    found = float(np.sqrt(max(float(rho.value), 0.0)))
    multipliers = tuple(values.split(list(system.sizes)))
    seconds = problem.solver_stats.solve_time
    return ReferenceSolution(multipliers, found, str(problem.status), solver, seconds)


def _transposed(rows: Matrix, out: Matrix, inputs: int) -> tuple[Matrix, Matrix]:
    """U <-> V', C -> C', V0 -> V0'."""
    return (
        np.concatenate([out[:, inputs:].T, rows[:, inputs:].T], 1),
        np.concatenate([out[:, :inputs].T, rows[:, :inputs].T], 1),
    )


def dense_system(
    system: BlockSystem, loops: Mapping[int, torch.Tensor] | None = None
) -> tuple[Matrix, Matrix]:
    """(rows of v over z [neurons, inputs + neurons], rows of y over z [outputs, inputs + neurons])."""
    starts = np.cumsum([system.inputs, *system.sizes])
    rows = np.zeros((system.neurons, starts[-1]))
    out = np.zeros((system.outputs, starts[-1]))
    for k in range(len(system.sizes)):
        here = slice(starts[k] - system.inputs, starts[k + 1] - system.inputs)
        if k in system.U:
            rows[here, : system.inputs] = system.U[k].cpu().numpy()
        if loops and k in loops:
            rows[here, starts[k] : starts[k + 1]] = loops[k].cpu().numpy()
        for j in range(k):
            if (k, j) in system.C:
                rows[here, starts[j] : starts[j + 1]] = system.C[k, j].cpu().numpy()
        if k in system.V:
            out[:, starts[k] : starts[k + 1]] = system.V[k].cpu().numpy()
    if system.V0 is not None:
        out[:, : system.inputs] = system.V0.cpu().numpy()
    return rows, out


def certified_dense(system: LoopedSystem, multipliers: Sequence[torch.Tensor]) -> Upper | None:
    """A certified l2 bound from the diagonal D by one dense proof, or None; for small systems, loops included.

    Statement, Source: as `bound.certified_upper`, which proves the same inequality block by block; with a loop W of a block,
        C has W on its diagonal. A > 0 also proves that I - C Delta is invertible for all 0 <= Delta <= I: c = Delta C'c gives
        c'Ac = -2 sum_i D_i c_i (b_i - c_i) - |U'c|^2 <= 0 with b = C'c, hence c = 0.
    Sound when: the assumptions of `lipverify.linalg` hold.
    """
    rows, out = (torch.as_tensor(m) for m in dense_system(system.causal, system.loops))
    inputs, outputs = system.causal.inputs, system.causal.outputs
    d = torch.cat([m.cpu() for m in multipliers]) if multipliers else torch.zeros(0, dtype=torch.float64)
    if not bool(((d > 0) & torch.isfinite(d)).all()):
        return None
    drive, direct = rows[:, :inputs], out[:, :inputs]

    def bordered(
        u: torch.Tensor, c: torch.Tensor, v: torch.Tensor, v0: torch.Tensor, sign: float
    ) -> torch.Tensor:
        """[[V0 V0', B'], [B, DC' + CD + UU']] times sign, without 2D."""
        weighted = c * d
        inner = sign * (weighted + weighted.T) + sign * (u @ u.T)
        border = sign * (d[:, None] * v.T + u @ v0.T)
        return torch.cat([torch.cat([sign * (v0 @ v0.T), border.T], 1), torch.cat([border, inner], 1)])

    plain = bordered(drive, rows[:, inputs:], out[:, inputs:], direct, -1.0)
    size = bordered(drive.abs(), rows[:, inputs:].abs(), out[:, inputs:].abs(), direct.abs(), 1.0)
    twice = torch.diag(torch.cat([torch.zeros(outputs, dtype=torch.float64), 2.0 * d]))
    lower = torch.tril(plain + twice)
    matrix, size = lower + torch.tril(lower, -1).T, torch.maximum(size, size.T) + twice
    # An entry is an inner product over the inputs and at most four further roundings.
    error = inflate(size, gamma(inputs + 16)) * gamma(inputs + 16)
    rho = corner_upper(matrix, error, outputs)
    return None if rho is None else Upper.of(rho).sqrt()
