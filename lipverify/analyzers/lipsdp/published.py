"""The published quadratic constraints for sorting and reflecting activations, to be compared with one neuron a comparison.

Legend: x_k = W_k y_{k-1} + b_k, y_k = sort(x_k) or reflect(x_k) in groups, y_0 the input, output W_L y_{L-1} + b_L. E_k is the
block diagonal matrix whose block of group g keeps what the activation keeps: 1 1' for sorting (a sort keeps the sum of its
group), |w|^2 I - w w' for a reflection along w (it keeps what is orthogonal to w). So E_k dx = E_k dy.
"""

from __future__ import annotations

import itertools
import math
import warnings
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from lipverify import ops
from lipverify.analyzers.lipsdp.canonical import affine_signal
from lipverify.analyzers.lipsdp.neurons import INPUT, Signal
from lipverify.errors import Undecided, UnsupportedModel, UsageError
from lipverify.ir.graph import Graph
from lipverify.ir.op import Input
from lipverify.linalg.definite import corner_upper
from lipverify.linalg.dense import operator_norm_upper
from lipverify.linalg.eigen import spectral_estimate
from lipverify.linalg.rounding import Upper, gamma, inflate
from lipverify.rules import linear

Constraints = Literal["neurons", "group", "group-diagonal"]

# Shares of strictly feasible multipliers that repair a solver's, tried in this order; at 1 nothing of the solver is left.
_REPAIRS = (0.0, 1e-10, 1e-9, 1e-8, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 0.1, 1.0)


@dataclass(frozen=True)
class Groups:
    """One activation layer: `spread` [n, groups] tells which entry is in which group, `kept` [n, n] is E, `size` >= |E|."""

    spread: Tensor
    kept: Tensor
    size: Tensor


@dataclass(frozen=True)
class Chain:
    """W_1, sort, W_2, ..., W_L; the weights are divided by 2^exponent in all."""

    weights: tuple[Tensor, ...]
    layers: tuple[Groups, ...]
    exponent: int


@dataclass(frozen=True)
class GroupMultipliers:
    """Evidence: for every layer [4, groups] the multipliers lambda (>= 0), gamma, nu, tau.

    They belong to the chain whose weights are divided by powers of two, 2^exponent in all, as `sorting_chain` does it.
    """

    constraints: str
    layers: tuple[Tensor, ...]
    exponent: int
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return {
            "kind": "group-multipliers",
            "constraints": self.constraints,
            "layers": [layer.tolist() for layer in self.layers],
            "exponent": self.exponent,
            "notes": list(self.notes),
        }


def sorting_chain(graph: Graph) -> Chain:
    """The graph as affine maps and sorting or reflecting layers in turn.

    Raises:
        UnsupportedModel: a node that is neither, or a value with two readers; names it.
    """
    weights: list[Tensor] = []
    layers: list[Groups] = []
    signal = _identity(graph.input.size)
    for node in graph.nodes:
        if node.name != graph.output.name and len(graph.consumers[node.name]) != 1:
            raise UnsupportedModel(f"{node.describe()} has several readers or none; {_REMEDY}")
        if isinstance(node.op, Input):
            continue
        source = graph[node.inputs[0]] if node.inputs else node
        if isinstance(node.op, ops.GroupSort | ops.Householder):
            weights.append(signal.parts[INPUT])
            layers.append(_groups(node.op, node.shape))
            signal = _identity(node.size)
        elif linear.covers(type(node.op)) and len(node.inputs) == 1:
            signal = affine_signal(node, [signal], [source])
        else:
            raise UnsupportedModel(f"{node.describe()} is neither affine nor a sort or reflection; {_REMEDY}")
    weights.append(signal.parts[INPUT])
    exponents = [math.frexp(spectral_estimate(w))[1] if bool(w.any()) else 0 for w in weights]
    scaled = tuple(w * 2.0**-e for w, e in zip(weights, exponents, strict=True))
    return Chain(scaled, tuple(layers), sum(exponents))


_REMEDY = "the published constraints are written here for chains of layers; use the analyzer lipsdp-cvxpy, or lipsdp"


def _identity(size: int) -> Signal:
    return Signal({INPUT: torch.eye(size, dtype=torch.float64)}, size)


def _groups(op: ops.GroupSort | ops.Householder, shape: tuple[int, ...]) -> Groups:
    size = math.prod(shape)
    index = torch.arange(size).reshape(shape).movedim(op.axis, -1)
    if isinstance(op, ops.GroupSort):
        members = index.reshape(-1, op.group)
        blocks = torch.ones(len(members), op.group, op.group, dtype=torch.float64)
        sizes = blocks
    else:
        vectors = op.vectors.double()
        # The length of w does not matter to the activation; a power of two keeps the squares in range, exactly.
        largest = vectors.abs().amax(1, keepdim=True)
        if not bool((largest > 0).all()):
            raise UnsupportedModel("a reflection vector is zero")
        vectors = vectors / torch.exp2(torch.frexp(largest)[1].double())
        members = index.reshape(-1, vectors.shape[1])
        repeats = len(members) // len(vectors)
        squares = (vectors**2).sum(1)[:, None, None] * torch.eye(vectors.shape[1], dtype=torch.float64)
        outer = vectors[:, :, None] * vectors[:, None, :]
        blocks, sizes = (squares - outer).repeat(repeats, 1, 1), (squares + outer.abs()).repeat(repeats, 1, 1)
    spread = torch.zeros(size, len(members), dtype=torch.float64)
    spread[members, torch.arange(len(members))[:, None]] = 1.0
    kept, bound = (torch.zeros(size, size, dtype=torch.float64) for _ in range(2))
    rows, columns = members[:, :, None], members[:, None, :]
    kept[rows, columns], bound[rows, columns] = blocks, sizes
    return Groups(spread, kept, bound)


def solve_published(
    chain: Chain, constraints: Constraints, solver: str, **options: float
) -> tuple[list[Tensor], float, str]:
    """What a cone solver says: multipliers [4, groups] of every layer, its own bound, its status. Nothing of it is a proof.

    Statement: LipSDP-NSR. min rho subject to rho |y_0|^2 - |W_L y_{L-1}|^2 - sum_k q_k >= 0 for all (y_0, .., y_{L-1}), with
        q_k = (x, y)' [[T - 2S, P + S], [P + S, -T - 2P]] (x, y),  T = diag(lambda) + gamma E, S = nu E, P = tau E, lambda >= 0;
        "group-diagonal" has S = P = 0 and falls apart into one inequality a layer.
    Source: Pauli, Havens, Araujo, Garg, Khorrami, Allgoewer, Hu, ICLR 2024 (arXiv 2401.14033).

    Raises:
        UsageError: CVXPY does not offer the solver. Undecided: the solver returned no multipliers.
    """
    import cvxpy

    if solver not in cvxpy.installed_solvers():
        raise UsageError(
            f"CVXPY has no solver {solver!r} here; installed: {', '.join(cvxpy.installed_solvers())}"
        )
    weights = [w.numpy() for w in chain.weights]
    rho = cvxpy.Variable(nonneg=True)
    size = chain.weights[0].shape[1]
    blocks: dict[tuple[int, int], Any] = {(0, 0): rho * torch.eye(size, dtype=torch.float64).numpy()}
    lambdas, others = [], []
    for k, layer in enumerate(chain.layers):
        groups = layer.spread.shape[1]
        nonneg, free = cvxpy.Variable(groups, nonneg=True), cvxpy.Variable((3, groups))
        lambdas.append(nonneg)
        others.append(free)
        spread, kept, w = layer.spread.numpy(), layer.kept.numpy(), weights[k]
        gam, nu, tau = (cvxpy.diag(spread @ free[i]) @ kept for i in range(3))
        t = cvxpy.diag(spread @ nonneg) + gam
        if constraints == "group-diagonal":
            blocks[k, k] = blocks[k, k] - w.T @ t @ w
            blocks[k + 1, k + 1] = t
        else:
            blocks[k, k] = blocks[k, k] - w.T @ (t - 2 * nu) @ w
            blocks[k + 1, k + 1] = t + 2 * tau
            blocks[k, k + 1] = -w.T @ (tau + nu)
    last = len(chain.layers)
    blocks[last, last] = blocks[last, last] - weights[-1].T @ weights[-1]
    problem = cvxpy.Problem(cvxpy.Minimize(rho), [m >> 0 for m in _symmetric(blocks, chain, constraints)])
    try:
        with warnings.catch_warnings():
            # "Solution may be inaccurate" is said by the status, which is kept, and does not matter to the bound.
            warnings.simplefilter("ignore", UserWarning)
            problem.solve(solver=solver, **options)
    except cvxpy.error.SolverError as error:
        raise Undecided(f"{solver} gave up: {error}") from None
    if rho.value is None:
        raise Undecided(f"{solver} ended with status {problem.status} and no multipliers")
    found = []
    for nonneg, free in zip(lambdas, others, strict=True):
        lower = torch.as_tensor(nonneg.value, dtype=torch.float64).clamp_min(0.0)
        rest = torch.as_tensor(free.value, dtype=torch.float64)
        if constraints == "group-diagonal":
            rest = rest * torch.tensor([[1.0], [0.0], [0.0]], dtype=torch.float64)
        found.append(torch.cat([lower[None], rest]))
    objective = math.sqrt(max(float(rho.value), 0.0)) * 2.0**chain.exponent
    return found, objective, str(problem.status)


def _symmetric(blocks: dict[tuple[int, int], Any], chain: Chain, constraints: Constraints) -> list[Any]:
    """The matrices that have to be positive semidefinite."""
    import cvxpy
    import numpy as np

    count = len(chain.layers) + 1
    if constraints == "group-diagonal":
        return [(blocks[k, k] + blocks[k, k].T) / 2 for k in range(count)]
    sizes = [w.shape[1] for w in chain.weights]
    rows = []
    for k in range(count):
        row = []
        for j in range(count):
            known = blocks.get((k, j), blocks[j, k].T if (j, k) in blocks else np.zeros((sizes[k], sizes[j])))
            row.append(known)
        rows.append(row)
    whole = cvxpy.bmat(rows)
    return [(whole + whole.T) / 2]


def certified_published(chain: Chain, multipliers: list[Tensor]) -> Upper | None:
    """A certified l2 bound of the chain from multipliers alone, or None where the inequality cannot be proved.

    Statement: |y(x) - y(x')|_2 <= bound |x - x'|_2. E dx = E dy makes every term of q_k but lambda (|dx|^2 - |dy|^2) vanish, and
        both activations contract every group; so sum_k q_k >= 0 on pairs, and the matrix of the statement of
        `solve_published` being positive semidefinite at rho gives |dy|^2 <= rho |dx|^2.
    Sound when: the assumptions of `lipverify.linalg` hold and lambda >= 0, which is checked.

    Args:
        multipliers: [4, groups] of every layer: lambda, gamma, nu, tau.
    """
    if not all(bool((m[0] >= 0).all() & torch.isfinite(m).all()) for m in multipliers):
        return None
    last = chain.weights[-1]
    if not chain.layers:
        return operator_norm_upper(last, "l2", "l2").scale(chain.exponent)
    sizes = [w.shape[1] for w in chain.weights]
    ends = list(itertools.accumulate(sizes, initial=0))
    part = [slice(a, b) for a, b in itertools.pairwise(ends)]
    matrix = torch.zeros(ends[-1], ends[-1], dtype=torch.float64)
    size = torch.zeros_like(matrix)
    for k, (layer, m) in enumerate(zip(chain.layers, multipliers, strict=True)):
        w, here, after = chain.weights[k], part[k], part[k + 1]
        lam, gam, nu, tau = (layer.spread @ row for row in m)
        for sign, left, right, identity, factor in (
            (-1.0, here, here, lam, gam - 2 * nu),
            (-1.0, here, after, None, tau + nu),
            (1.0, after, after, lam, gam + 2 * tau),
        ):
            middle, bound = (
                layer.kept * factor[:, None],
                layer.size * (gam.abs() + 2 * nu.abs() + 2 * tau.abs())[:, None],
            )
            if identity is not None:
                middle, bound = middle + torch.diag(identity), bound + torch.diag(identity)
            if left is here:
                middle, bound = w.T @ middle, w.abs().T @ bound
            if right is here:
                middle, bound = middle @ w, bound @ w.abs()
            matrix[left, right] += sign * middle
            size[left, right] += bound
    matrix[part[-1], part[-1]] -= last.T @ last
    size[part[-1], part[-1]] += last.abs().T @ last.abs()
    lower = torch.tril(matrix.T)
    matrix = lower + torch.tril(lower, -1).T
    size = torch.maximum(size, size.T)
    # An entry is a sum over both sides of W'(..)W, the inner product behind W_L'W_L, and a few products behind E.
    error = inflate(size, gamma(4 * max(*sizes, *last.shape) + 64)) * gamma(4 * max(*sizes, *last.shape) + 64)
    rho = corner_upper(matrix, error, sizes[0])
    return None if rho is None else Upper.of(rho).sqrt().scale(chain.exponent)


def strictly_feasible(chain: Chain) -> list[Tensor]:
    """lambda of the product bound, a tenth above it at every layer: far inside the cone."""
    found: list[Tensor] = []
    weight = 1.1 * spectral_estimate(chain.weights[-1]) ** 2
    for layer, w in zip(reversed(chain.layers), reversed(chain.weights[:-1]), strict=True):
        multipliers = torch.zeros(4, layer.spread.shape[1], dtype=torch.float64)
        multipliers[0] = max(weight, 2.0**-60)
        found.append(multipliers)
        weight = 1.1 * max(weight, 2.0**-60) * spectral_estimate(w) ** 2
    return found[::-1]


def bound_published(graph: Graph, constraints: Constraints, solver: str) -> tuple[Upper, GroupMultipliers]:
    """The smallest certified bound from a solver's multipliers, repaired by a share of strictly feasible ones.

    Raises:
        UnsupportedModel: the graph is no chain of affine, sorting and reflecting layers.
        Undecided: the solver returned nothing.
    """
    chain = sorting_chain(graph)
    if not chain.layers:
        upper = certified_published(chain, [])
        assert upper is not None
        return upper, GroupMultipliers(constraints, (), chain.exponent)
    found, objective, status = solve_published(chain, constraints, solver)
    inside = strictly_feasible(chain)
    best: tuple[Upper, list[Tensor], float] | None = None
    for share in _REPAIRS:
        mixed = [torch.lerp(a, b, share) for a, b in zip(found, inside, strict=True)]
        upper = certified_published(chain, mixed)
        if upper is not None and (best is None or upper < best[0]):
            best = upper, mixed, share
        elif best is not None:
            break
    if best is None:
        raise Undecided("not even the multipliers of the product bound could be certified")
    said = f"{solver}: status {status}, objective {objective!r}"
    note = f"{said}; multipliers evaluated again with a share {best[2]:g} of the product's"
    return best[0], GroupMultipliers(constraints, tuple(best[1]), chain.exponent, (note,))
