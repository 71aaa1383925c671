"""Learning in games: curvatures and couplings certified everywhere, and weights for which the pseudo-gradient is monotone."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from lipverify import ops
from lipverify.combine.difference import minus
from lipverify.derived.derivation import Derived, Known, derive, number
from lipverify.derived.networks import audited, linear
from lipverify.errors import UsageError
from lipverify.interpreter import evaluate
from lipverify.ir.graph import Graph, Node
from lipverify.ir.graphs import renamed
from lipverify.ir.op import Input
from lipverify.results import Audit

Array = NDArray[np.float64]
FAINT = 2.0**-20
"""By how much the variables of other players are scaled down: a constant of the scaled map bounds changes of one player's
variables alone whatever the others play, as the others still reach every value."""
SHIFTS = (0.5, 1.0, 1.5)


def game(
    curvature: Sequence[float | tuple[float, Known]],
    couplings: Sequence[Sequence[Known]],
    weights: Sequence[float] | None = None,
) -> Derived:
    """Whether learning in a game comes to rest: the margin of the weighted pseudo-gradient.

    Statement: in the inner product sum w_i <x_i, y_i> the pseudo-gradient G has <G(x) - G(y), x - y> >= lower |x - y|^2, for
        players whose own gradients have curvature at least mu_i everywhere (given, or s_i - |s_i - d G_i / d x_i|) and change
        with the variables of player j at most L_ij times as fast (l2). Above 0 there is one equilibrium, and the flow and small
        steps come to it.
    Source: Rosen 1965; a symmetric matrix with entries <= 0 off the diagonal has no eigenvalue below min (Mv)_i / v_i (Collatz,
        Wielandt). The best weights are l_i / r_i of the left and right eigenvectors of |L| - diag mu (Perron, Frobenius).

    Args:
        curvature: for every player mu_i, or (s_i, constant of s_i x_i - G_i in x_i). couplings: L_ij, of which L_ii is not read.
        weights: positive; the best ones if None.

    Raises:
        UsageError: lists of different lengths, weights that are not positive.

    >>> found = game([1., 1.], [[0., 4.], [.1, 0.]])
    >>> round(found.lower, 6), round(found.details["weights"][1] / found.details["weights"][0], 6)
    (0.367544, 40.0)
    """
    pairs = [one if isinstance(one, tuple) else (float(one), 0.0) for one in curvature]
    table = [list(row) for row in couplings]
    if not pairs or any(len(row) != len(pairs) for row in table) or len(table) != len(pairs):
        raise UsageError(f"{len(pairs)} players have {len(pairs)} rows of {len(pairs)} couplings")
    mu = np.array([shift - number(constant) for shift, constant in pairs])
    if not bool(np.isfinite(mu).all()):
        raise UsageError("curvatures are finite numbers")
    between = np.array(
        [[0.0 if i == j else number(c) for j, c in enumerate(row)] for i, row in enumerate(table)]
    )
    chosen, vector = (
        _best(mu, between) if weights is None else _vector(mu, between, np.array(weights, dtype=float))
    )
    flat = [0.0 if i == j else c for i, row in enumerate(table) for j, c in enumerate(row)]
    details = {"weights": chosen.tolist(), "curvature": mu.tolist(), "couplings": between.tolist()}
    return derive("game", details, curvature=[s for s, _ in pairs], shifted=[k for _, k in pairs], couplings=flat,
                  weights=chosen, vector=vector)  # fmt: skip


def game_step(margin: Derived, own: Sequence[Known], couplings: Sequence[Sequence[Known]]) -> Derived:
    """Which steps are safe: of Euler's method and of the classical method of Runge and Kutta.

    Statement: for every step h below `lower` = 2 margin / beta^2 one step brings any two strategies closer, in the inner product
        of the weights of `margin`; beta bounds how fast the pseudo-gradient changes in it.
    Source: |x - y - h (G(x) - G(y))|^2 <= (1 - 2 h margin + h^2 beta^2) |x - y|^2; for Runge and Kutta, whose disk of circle
        contractivity has radius 1 as Euler's has, Dahlquist and Jeltsch 1979.

    Args:
        margin: what `game` gave; it is proved again, with these couplings. own: for every player how fast the own gradient
            changes with the own variables.

    Raises:
        UsageError: the margin is not above 0.
    """
    if margin.rule != "game" or margin.lower <= 0.0:
        raise UsageError("no step is safe without a margin above 0 (lipverify.game)")
    count = len(margin.details["weights"])
    if not len(own) == len(couplings) == count or any(len(row) != count for row in couplings):
        raise UsageError(f"{count} players have {count} own constants and {count} rows of {count} couplings")
    table = [[own[i] if i == j else c for j, c in enumerate(row)] for i, row in enumerate(couplings)]
    weights = np.array(margin.details["weights"])
    size = np.array([[number(c) for c in row] for row in table])
    scaled = np.sqrt(weights)[:, None] * size / np.sqrt(weights)[None, :]
    vector = _positive(np.linalg.svd(scaled)[2][0]) / np.sqrt(weights)
    flat = [c for row in table for c in row]
    shifted = [
        margin.certificates.get(f"shifted-{k}", float.fromhex(c))
        for k, c in enumerate(margin.numbers["shifted"])
    ]
    curvature, near = ([float.fromhex(x) for x in margin.numbers[name]] for name in ("curvature", "vector"))
    found = derive(
        "game-step",
        curvature=curvature,
        shifted=shifted,
        couplings=flat,
        weights=weights,
        vector=near,
        spread=vector,
    )
    return replace(found, graphs={**margin.graphs, **found.graphs})


def game_band(
    mu: tuple[float, float], couplings: tuple[float, float], margin: float = 0.0
) -> tuple[float, float]:
    """Weights w_2 / w_1 of two players for which the margin is at least `margin`; a closed form, not a proof.

    Raises:
        UsageError: there are none.

    >>> [round(end, 4) for end in game_band((1., 1.), (4., .1))]
    [5.0807, 314.9193]
    """
    m, q = (mu[0] - margin) * (mu[1] - margin), couplings[0] * couplings[1]
    if min(mu) <= margin or m < q or couplings[1] <= 0.0:
        raise UsageError("no weights give this margin")
    root = 2.0 * math.sqrt(m * (m - q))
    return (2.0 * m - q - root) / couplings[1] ** 2, (2.0 * m - q + root) / couplings[1] ** 2


def pseudo_gradient(
    graph: Graph, players: Sequence[int], *, analyzers: Sequence[str] = ("product", "lipsdp")
) -> tuple[list[tuple[float, Audit]], list[list[Known]]]:
    """Curvatures and couplings of a game from its pseudo-gradient, for `game`: every one the constant of a map, certified.

    Args:
        graph: x [n] -> G(x) [n], the gradients of the players' costs in their own variables, one after the other.
        players: how many variables each of them has.

    Raises:
        UsageError: the sizes do not fit.
    """
    n = sum(players)
    if graph.input_shape != (n,) or graph.output_shape != (n,) or any(count < 1 for count in players):
        raise UsageError(f"the pseudo-gradient of players with {list(players)} variables maps [{n}] to [{n}]")
    ends = list(itertools.accumulate(players))
    blocks = [range(end - count, end) for count, end in zip(players, ends, strict=True)]
    curvature: list[tuple[float, Audit]] = []
    table: list[list[Known]] = []
    for own in blocks:
        candidates = []
        for shift in _shifts(graph, own):
            less = minus(
                _block(linear(torch.eye(n, dtype=torch.float64) * shift), own, own), _block(graph, own, own)
            )
            candidates.append((shift, audited(less, analyzers)))
        curvature.append(max(candidates, key=lambda one: one[0] - number(one[1])))
        table.append(
            [0.0 if other is own else audited(_block(graph, own, other), analyzers) for other in blocks]
        )
    return curvature, table


def _shifts(graph: Graph, own: range) -> list[float]:
    """Middles of the curvature to try, by Jacobians at a few points."""
    generator = torch.Generator().manual_seed(0)
    exact = graph.to(dtype=torch.float64)
    ends = []
    for x in torch.randn(16, *graph.input_shape, generator=generator, dtype=torch.float64) * 2.0:
        jacobian = torch.func.jacrev(lambda x: evaluate(exact, x.unsqueeze(0))[0])(x)
        part = jacobian[own.start : own.stop, own.start : own.stop]
        found = torch.linalg.eigvalsh((part + part.mT) / 2)
        ends.append((float(found[0]), float(found[-1])))
    low, high = min(e[0] for e in ends), max(e[1] for e in ends)
    return [float(np.float32(low + share * (high - low))) for share in SHIFTS]


def _block(graph: Graph, own: range, other: range) -> Graph:
    """Entries `own` of the output; entries of the input beside `other` count `FAINT` times."""
    n = graph.input_shape[0]
    scale = torch.full((n,), FAINT, dtype=torch.float64)
    scale[other.start : other.stop] = 1.0
    head = (Node("from", Input(), (), (n,)), Node("weighed", ops.Scale(scale), ("from",), (n,)))
    rest = renamed(graph, "g.", "weighed")
    behind = [node for node in rest.nodes if not isinstance(node.op, Input)]
    end = Node("own", ops.Slice(0, own.start, own.stop), (rest.output.name,), (len(own),))
    return Graph((*head, *behind, end), ("own",)).to(dtype=torch.float64)


def _best(mu: Array, between: Array) -> tuple[Array, Array]:
    values, right = np.linalg.eig(between - np.diag(mu))
    r = _positive(right[:, values.real.argmax()].real)
    values, left = np.linalg.eig(between.T - np.diag(mu))
    return _positive(left[:, values.real.argmax()].real) / r, r


def _vector(mu: Array, between: Array, weights: Array) -> tuple[Array, Array]:
    if weights.shape != mu.shape or not (weights > 0).all():
        raise UsageError("one positive weight for every player")
    coupled = weights[:, None] * between
    matrix = np.diag(weights * mu) - (coupled + coupled.T) / 2
    root = np.sqrt(weights)
    return weights, _positive(np.linalg.eigh(matrix / root[:, None] / root[None, :])[1][:, 0]) / root


def _positive(vector: Array) -> Array:
    found: Array = np.abs(vector)
    kept: Array = np.maximum(found, found.max() * 1e-9)
    return kept
