"""The textbook LipSDP program in a general cone solver: an oracle for small networks, and the peer of benchmarks.

Legend: z = (x, w) all inputs and neurons, c_j the row of neuron j in v = C z, a_j = e_j - c_j, E_0 the projection on x.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from lipverify.analyzers.lipsdp.system import BlockSystem
from lipverify.errors import Undecided, UsageError

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


def solve_reference(system: BlockSystem, solver: str = "CLARABEL", **options: float) -> ReferenceSolution:
    """LipSDP-Neuron by CVXPY.

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
    rows, out = dense_system(system)
    n, count = rows.shape[1], system.neurons
    pick = np.zeros((n, count))
    pick[system.inputs :] = np.eye(count)
    a = pick - rows.T
    first = np.zeros((n, n))
    first[: system.inputs, : system.inputs] = np.eye(system.inputs)
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
    found = float(np.sqrt(max(float(rho.value), 0.0)))
    return ReferenceSolution(tuple(values.split(list(system.sizes))), found, str(problem.status), solver)


def dense_system(system: BlockSystem) -> tuple[Matrix, Matrix]:
    """(rows of v over z [neurons, inputs + neurons], rows of y over z [outputs, inputs + neurons])."""
    starts = np.cumsum([system.inputs, *system.sizes])
    rows = np.zeros((system.neurons, starts[-1]))
    out = np.zeros((system.outputs, starts[-1]))
    for k in range(len(system.sizes)):
        here = slice(starts[k] - system.inputs, starts[k + 1] - system.inputs)
        if k in system.U:
            rows[here, : system.inputs] = system.U[k].cpu().numpy()
        for j in range(k):
            if (k, j) in system.C:
                rows[here, starts[j] : starts[j + 1]] = system.C[k, j].cpu().numpy()
        if k in system.V:
            out[:, starts[k] : starts[k + 1]] = system.V[k].cpu().numpy()
    if system.V0 is not None:
        out[:, : system.inputs] = system.V0.cpu().numpy()
    return rows, out
