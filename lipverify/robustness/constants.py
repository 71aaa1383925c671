"""Certified constants of all logit differences over the whole input space; what the pairs share is computed once.

Legend: K[a, b] >= sup |(f_a - f_b)(x) - (f_a - f_b)(x')| / |x - x'| over all x != x', float64, symmetric, zero diagonal.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from lipverify import pipeline
from lipverify.analyzers.affine_runs import runs
from lipverify.analyzers.lipsdp.bound import certified_functionals
from lipverify.analyzers.lipsdp.canonical import canonical_form, layers_of_neurons
from lipverify.analyzers.lipsdp.evidence import Proof
from lipverify.analyzers.lipsdp.linf import solve_linf
from lipverify.analyzers.lipsdp.norms import differences
from lipverify.analyzers.lipsdp.proof import inverse
from lipverify.analyzers.lipsdp.solver import Settings, Solution, estimate, solve
from lipverify.analyzers.lipsdp.system import BlockSystem
from lipverify.analyzers.product import Product, Reach, advance
from lipverify.analyzers.protocol import Compute
from lipverify.analyzers.sizes import Sizes
from lipverify.errors import InternalError, UnsupportedModel
from lipverify.falsify import seconds_of
from lipverify.ir.graph import Graph
from lipverify.ir.norm import Norm
from lipverify.ir.region import Query
from lipverify.linalg.rounding import Upper
from lipverify.robustness.carried import Multipliers, whole_layers
from lipverify.robustness.pairs import classes, flat

EFFORT = 8e11
"""Multiplications the LipSDP searches may take together: about a minute of one core. A count, not a time: it decides nothing
by chance."""
_STEPS = 16
"""Newton steps that a search of one pair takes, as a rule."""
Pairs = list[tuple[int, int]]
Bounds = Sequence[Upper | None]
"""One constant for each pair; None where the time did not last."""
NO_TIME = "no time was left"


@dataclass(frozen=True)
class PairConstants:
    """upper [classes, classes]: the smallest certified constant of every difference, and how each was found."""

    upper: Tensor
    source: tuple[str, ...]
    """One method for each pair a < b, in the order of `itertools.combinations`."""
    notes: tuple[str, ...] = ()
    multipliers: Mapping[tuple[int, int], Multipliers] = field(default_factory=dict, compare=False)
    """By pair a < b what proves its constant, where that is LipSDP; not stored."""

    def rows(self, label: int) -> Tensor:
        """Constants of f_label - f_j for all rivals j: [classes - 1]."""
        keep = torch.arange(len(self.upper)) != label
        return self.upper[label][keep]

    def to_json(self) -> dict[str, Any]:
        """Exact: Python writes float64 so that it reads back as itself."""
        size = len(self.upper)
        numbers = [float(self.upper[a, b]) for a, b in combinations(range(size), 2)]
        return {"classes": size, "upper": numbers, "source": list(self.source), "notes": list(self.notes)}

    @staticmethod
    def from_json(document: dict[str, Any]) -> PairConstants:
        """What `to_json` wrote."""
        size = int(document["classes"])
        upper = torch.zeros(size, size, dtype=torch.float64)
        for (a, b), value in zip(combinations(range(size), 2), document["upper"], strict=True):
            upper[a, b] = upper[b, a] = float(value)
        if not bool((upper >= 0).all() & upper.isfinite().all()):
            raise InternalError("stored constants are not bounds")
        return PairConstants(upper, tuple(document["source"]), tuple(document["notes"]))


def pair_constants(
    graph: Graph, norm: Norm, compute: Compute, effort: float = EFFORT, side: bool = False
) -> PairConstants:
    """Constants of all logit differences for inputs measured in `norm`.

    Statement: K[a, b] is a Lipschitz constant of f_a - f_b over the whole input space.
    Source: the product of layer gains with the difference folded into the last layer; LipSDP (Fazlyab et al. 2019) on each
        difference, or, where that many searches are too much, all differences from the multipliers of one search
        (`certified_functionals`), which is never worse than sqrt(2) times the constant of all outputs together. Where time is
        limited, sums of rows come first: they take none.
    Sound when: as `product` and `lipsdp`. In linf also sqrt(n) times the l2 constant, as |d|_2 <= sqrt(n) |d|_inf.

    Args:
        side: the constants are a side matter: with limited time, only what is cheap.

    Raises:
        UnsupportedModel: no method covers the network in the time there is; every reason is given.
    """
    graph = flat(graph)
    pairs = list(combinations(range(classes(graph)), 2))
    limited = compute.deadline is not None
    norms = (Norm.L2,) if norm is Norm.L2 else tuple(Norm)
    methods: list[tuple[str, Callable[[], Bounds]]] = []
    kept: dict[tuple[int, int], Multipliers] = {}
    if limited:
        # A difference is one number, and |d|_inf <= |d|_2: constants in linf hold in both norms.
        methods.append(("row sums", lambda: _product(graph, pairs, Query(norm, Norm.LINF), (Norm.LINF,))))
    if not (limited and side and norm is Norm.LINF):
        methods.append(("product", lambda: _product(graph, pairs, Query(norm, norm), norms, compute)))
    if not (limited and side and _building_seconds(graph) > compute.remaining()):
        methods.append(("lipsdp", lambda: _lipsdp(graph, pairs, norm, compute, effort, kept)))
    found: list[tuple[str, Bounds]] = []
    notes = []
    for name, method in methods:
        compute.report(f"constants of {len(pairs)} differences: {name}", None)
        try:
            found.append((name, method()))
        except UnsupportedModel as error:
            notes.append(f"{name}: {error}")
    if not found:
        raise UnsupportedModel("no global constants: " + "; ".join(notes))
    best = _smallest(found, pairs, classes(graph), notes)
    by = dict(zip(pairs, best.source, strict=True))
    return replace(best, multipliers={pair: m for pair, m in kept.items() if by[pair] == "lipsdp"})


def _smallest(found: list[tuple[str, Bounds]], pairs: Pairs, size: int, notes: list[str]) -> PairConstants:
    upper = torch.zeros(size, size, dtype=torch.float64)
    source = []
    for index, (a, b) in enumerate(pairs):
        there = [(name, bound) for name, bounds in found if (bound := bounds[index]) is not None]
        if not there:
            raise UnsupportedModel(f"no global constants: {NO_TIME}")
        name, best = min(there, key=lambda pair: pair[1])
        try:
            upper[a, b] = upper[b, a] = float(best)
        except OverflowError:
            raise UnsupportedModel(
                f"the constant of the difference of outputs {a} and {b} is above the largest float64"
            ) from None
        source.append(name)
    return PairConstants(upper, tuple(source), tuple(notes))


def _building_seconds(graph: Graph) -> float:
    """About how long the matrices of LipSDP take: one pass through the network for each value in it."""
    return seconds_of(graph) * sum(node.size for node in graph.nodes)


def _product(
    graph: Graph, pairs: Pairs, query: Query, norms: tuple[Norm, ...], compute: Compute | None = None
) -> Bounds:
    """All differences differ in the last run only: the constants up to there are computed once.

    With `compute`, looks at its deadline before each run.
    """
    reason = Product().reject(graph, query)
    if reason is not None:
        raise UnsupportedModel(reason)
    reach: dict[str, Reach] = {}
    found: list[Upper | None] = []
    # Products of two computed values have a constant where both are bounded for all inputs, as in `product`.
    sizes = Sizes.everywhere(graph)
    for a, b in pairs:
        if compute is not None and compute.remaining() <= 0:
            found.append(None)
            continue
        *trunk, last = runs(pipeline.margin(graph, a, b))
        try:
            if not reach:
                for run in trunk:
                    if compute is not None and compute.remaining() <= 0:
                        raise UnsupportedModel(NO_TIME)
                    advance(run, reach, query, norms, sizes)
            advance(last, reach, query, norms, sizes)
        except OverflowError:
            raise UnsupportedModel("the norm of a layer exceeds the largest float64") from None
        # All outputs of a difference are one number, on which the norms agree.
        found.append(min(reach[last.last.name].values()))
    return found


def _lipsdp(
    graph: Graph,
    pairs: Pairs,
    norm: Norm,
    compute: Compute,
    effort: float,
    kept: dict[tuple[int, int], Multipliers],
) -> Bounds:
    if compute.remaining() <= 0:
        raise UnsupportedModel(NO_TIME)
    system = canonical_form(graph, None, compute.device)
    work = estimate(system)[1]
    if work > effort:
        raise UnsupportedModel(
            f"one step of the search takes {work:.1e} multiplications, more than the {effort:.1e} allowed for all of it"
        )
    root = Upper.of(graph.input.size).sqrt()
    if 4 * work * _STEPS * len(pairs) <= effort:
        weighted = norm is Norm.LINF and (work + system.inputs**3) * _STEPS * len(pairs) <= effort / 8
        layers = layers_of_neurons(graph, None)
        found: list[Upper | None] = []
        for pair in pairs:
            if compute.remaining() <= 0:
                found.append(None)
                continue
            upper, proof = _single(differences(system, [pair]), norm, root, weighted, compute)
            found.append(upper)
            whole = whole_layers(layers, proof.diagonals, proof.exponents)
            kept[pair] = whole._replace(weights=inverse(proof))
        return found
    settings = Settings(max_iterations=max(1, int(effort / work)))
    if compute.remaining() <= 0:
        raise UnsupportedModel(NO_TIME)
    shared = solve(system, compute, settings)
    whole = whole_layers(layers_of_neurons(graph, None), shared.multipliers, shared.exponents)
    kept |= dict.fromkeys(pairs, whole)
    rows = torch.zeros(len(pairs), system.outputs, dtype=torch.float64)
    for index, (a, b) in enumerate(pairs):
        rows[index, a], rows[index, b] = 1.0, -1.0
    bounds = certified_functionals(system, shared.multipliers, shared.exponents, rows.to(compute.device))
    if bounds is None:
        bounds = [_upper(shared) * Upper.of(2).sqrt()] * len(pairs)
    return bounds if norm is Norm.L2 else [bound * root for bound in bounds]


def _single(
    system: BlockSystem, norm: Norm, root: Upper, weighted: bool, compute: Compute
) -> tuple[Upper, Proof]:
    """The constant of a system with one output, and its proof; in linf `weighted` also searches for weights of the inputs."""
    solution = solve(system, compute)
    euclidean = _upper(solution)
    proof = Proof(euclidean, None, solution.multipliers, solution.exponents)
    if norm is Norm.L2:
        return euclidean, proof
    scaled = euclidean * root
    if weighted:
        other = solve_linf(system, compute, 0)
        if other.upper < scaled:
            return other.upper, Proof(
                other.upper, None, other.multipliers, other.exponents[1:], other.weights, other.exponents[0]
            )
    return scaled, proof


def _upper(solution: Solution) -> Upper:
    if solution.upper is None:
        raise UnsupportedModel(f"the constant is about 10^{math.ceil(solution.log10_upper)}, beyond float64")
    return Upper.of(solution.upper)
