"""The analyzers of the LipSDP family: closed form, optimum, and the reference by a cone solver."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from lipverify.analyzers.lipsdp.bound import certified_upper
from lipverify.analyzers.lipsdp.canonical import (
    canonical_form,
    looped_form,
    refuse_loops,
    refuse_too_large,
    refuse_unencodable,
)
from lipverify.analyzers.lipsdp.published import Constraints, bound_published, sorting_chain
from lipverify.analyzers.lipsdp.reference import ReferenceSolution, certified_dense, solve_reference
from lipverify.analyzers.lipsdp.solver import Settings, Solution, fast, solve
from lipverify.analyzers.lipsdp.system import BlockSystem, LoopedSystem
from lipverify.analyzers.protocol import Compute
from lipverify.errors import Undecided, UnsupportedModel
from lipverify.ir.certificate import Certificate, Rigour
from lipverify.ir.graph import Graph
from lipverify.ir.norm import Norm
from lipverify.ir.region import Ball, Query
from lipverify.linalg.rounding import Upper
from lipverify.propagation import bounds


@dataclass(frozen=True)
class Multipliers:
    """Evidence of a LipSDP bound: for every centre (one for the whole space) the diagonal D of every block.

    A checker rebuilds A(D) and Y(D) of the block system from the graph and tests definiteness itself.
    """

    blocks: tuple[str, ...]
    diagonals: tuple[tuple[Tensor, ...], ...]
    exponents: tuple[tuple[int, ...], ...]
    """D of a block is its diagonal times 4^exponent."""
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return {
            "kind": "multipliers",
            "blocks": list(self.blocks),
            "centres": [
                {"exponents": list(powers), "diagonals": [d.tolist() for d in blocks]}
                for blocks, powers in zip(self.diagonals, self.exponents, strict=True)
            ],
            "notes": list(self.notes),
        }


Method = Callable[[Any, Compute], Solution]
Form = Callable[..., BlockSystem] | Callable[..., LoopedSystem]


def _reject(graph: Graph, query: Query, loops: bool = False) -> str | None:
    if query.norm_in is not Norm.L2 or query.norm_out is not Norm.L2:
        return f"answers l2 to l2, not {query.norm_in} to {query.norm_out}"
    try:
        refuse_unencodable(graph)
        if not loops:
            refuse_loops(graph)
        refuse_too_large(graph)
    except UnsupportedModel as error:
        return str(error)
    return None


def _systems(
    graph: Graph, query: Query, compute: Compute, form: Form
) -> Iterator[BlockSystem | LoopedSystem]:
    """One block system for the whole space, or one with the slopes of its ball for every centre."""
    if not isinstance(query.region, Ball):
        yield form(graph, None, compute.device)
        return
    ball = query.region
    for index in range(len(ball)):
        around = Ball(ball.center[index : index + 1], ball.radius, ball.norm, ball.box)
        ranges = bounds(graph, around, device=compute.device)
        yield form(graph, ranges, compute.device)


def _bound(
    analyzer: object,
    graph: Graph,
    query: Query,
    compute: Compute,
    method: Method,
    rigour: Rigour,
    form: Form = canonical_form,
) -> Certificate:
    reason = _reject(graph, query, form is looped_form)
    if reason is not None:
        raise UnsupportedModel(reason)
    centres = len(query.region) if isinstance(query.region, Ball) else 1
    solutions, names = [], []
    for index, system in enumerate(_systems(graph, query, compute, form)):
        # What is left of the budget is shared evenly by the centres still to come.
        share = replace(compute, deadline=compute.share(centres - index))
        solutions.append(method(system, share))
        names = [*(system.causal if isinstance(system, LoopedSystem) else system).names]
    evidence = Multipliers(
        blocks=tuple(names),
        diagonals=tuple(s.multipliers for s in solutions),
        exponents=tuple(s.exponents for s in solutions),
        notes=tuple(dict.fromkeys(s.message for s in solutions if s.message)),
    )
    bounds = [s.upper for s in solutions]
    finite = [value for value in bounds if value is not None]
    if len(finite) < len(bounds) and isinstance(query.region, Ball):
        raise UnsupportedModel("a bound of some centre exceeds the largest float64")
    whole = not isinstance(query.region, Ball)
    upper = torch.tensor(finite[0] if whole else finite, dtype=torch.float64) if finite else None
    return Certificate(
        upper=upper,
        log10_upper=None if finite else solutions[0].log10_upper,
        query=query,
        rigour=rigour,
        evidence=evidence,
        made_by=repr(analyzer),
        graph_digest=graph.digest,
        trace=solutions[0].trace if whole else (),
    )


@dataclass(frozen=True)
class LipSDP:
    """The tightest bound that slope ranges of single neurons can give, near its optimum; anytime.

    Statement: |f(x) - f(y)|_2 <= upper |x - y|_2 for all x, y of the region.
    Source: Fazlyab, Robey, Hassani, Morari, Pappas, NeurIPS 2019 (arXiv 1906.04893), LipSDP-Neuron, as a block system with
    closed-form evaluation; maxima and sorting as comparators of one neuron each.
    Sound when: every operator is affine, a scalar activation with proven slopes, a maximum, a sort or a reflection.
    """

    name: ClassVar[str] = "lipsdp"
    settings: Settings = field(default_factory=Settings)

    def reject(self, graph: Graph, query: Query) -> str | None:
        """Names the node without a form as neurons, or the memory that would be needed."""
        return _reject(graph, query)

    def bound(self, graph: Graph, query: Query, compute: Compute) -> Certificate:
        """Recomputed from the multipliers alone; the search's own objective is never shown."""

        def method(system: BlockSystem, share: Compute) -> Solution:
            return solve(system, share, self.settings)

        return _bound(self, graph, query, compute, method, Rigour.REAL)


@dataclass(frozen=True)
class LipSDPFast:
    """One feasible point of LipSDP in closed form: one multiplier for each block, one pass over the network.

    Statement: |f(x) - f(y)|_2 <= upper |x - y|_2 for all x, y of the region.
    Source: Xu, Sivaranjani, NeurIPS 2024 (arXiv 2404.04375), ECLipsE-Fast, on any block system.
    Sound when: as `lipsdp`.
    """

    name: ClassVar[str] = "lipsdp-fast"

    def reject(self, graph: Graph, query: Query) -> str | None:
        """As `lipsdp`."""
        return _reject(graph, query)

    def bound(self, graph: Graph, query: Query, compute: Compute) -> Certificate:
        """A milliseconds tier; never tighter than `lipsdp`."""
        return _bound(self, graph, query, compute, fast, Rigour.REAL)


@dataclass(frozen=True)
class LipSDPReference:
    """The textbook program in a general cone solver (CVXPY); an oracle for small networks.

    Statement: |f(x) - f(y)|_2 <= upper |x - y|_2 for all x, y of the region.
    Source: as `lipsdp`; solvers SCS and Clarabel through CVXPY.
    Sound when: as `lipsdp`; the solver's multipliers are repaired and evaluated again, its objective is not used.
    """

    name: ClassVar[str] = "lipsdp-cvxpy"
    solver: str = "CLARABEL"
    largest: int = 400
    """Neurons beyond which a cone solver does not finish in minutes."""
    constraints: Constraints = "neurons"
    """What is said of sorting and reflecting layers: one neuron a comparison, as `lipsdp`, or the constraints of
    Pauli et al. (ICLR 2024, arXiv 2401.14033) for whole groups with all multipliers, or those with S = P = 0."""

    def reject(self, graph: Graph, query: Query) -> str | None:
        """As `lipsdp`, and networks too large for a cone solver."""
        reason = _reject(graph, query, loops=True)
        if reason is None and self.constraints != "neurons":
            reason = self._reject_published(graph, query)
        if reason is None:
            count = looped_form(graph).causal.neurons + graph.input.size
            if count > self.largest:
                reason = f"a cone solver does not finish on {count} inputs and neurons; the limit is {self.largest}"
        return reason

    def bound(self, graph: Graph, query: Query, compute: Compute) -> Certificate:
        """Valid whatever the solver said; its objective is kept as a note."""
        if self.constraints != "neurons":
            return self._bound_published(graph, query)
        return _bound(self, graph, query, compute, self._solve, Rigour.REAL, looped_form)

    def _reject_published(self, graph: Graph, query: Query) -> str | None:
        if self.constraints not in ("group", "group-diagonal"):
            return f'knows the constraints "neurons", "group" and "group-diagonal", not {self.constraints!r}'
        if isinstance(query.region, Ball):
            return "the published group constraints do not depend on a region; ask for the whole space"
        try:
            sorting_chain(graph)
        except UnsupportedModel as error:
            return str(error)
        return None

    def _bound_published(self, graph: Graph, query: Query) -> Certificate:
        reason = self.reject(graph, query)
        if reason is not None:
            raise UnsupportedModel(reason)
        found, evidence = bound_published(graph, self.constraints, self.solver)
        try:
            upper: Tensor | None = torch.tensor(float(found), dtype=torch.float64)
        except OverflowError:
            upper = None
        return Certificate(
            upper=upper,
            log10_upper=found.log10() if upper is None else None,
            query=query,
            rigour=Rigour.REAL,
            evidence=evidence,
            made_by=repr(self),
            graph_digest=graph.digest,
        )

    def _solve(self, system: LoopedSystem, compute: Compute) -> Solution:
        return evaluated_again(system, solve_reference(system, self.solver), compute)


FLOORS = (1e-9, 1e-6, 1e-4, 1e-2)
"""Multipliers below this share of their block's median are raised to it: a zero multiplier leaves its neuron unbounded."""
FACTORS = tuple(1 + step for step in (0.0, 1e-9, 1e-7, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1))
"""A solver ends slightly outside the cone; a larger D is closer to its middle."""


def reciprocal(weights: tuple[Tensor, ...], rho: float, floor: float) -> list[Tensor]:
    """D = rho / lambda for every block, with small and negative lambda raised to a floor."""
    result = []
    for values in weights:
        positive = values[values > 0]
        middle = float(positive.median()) if len(positive) else 1.0
        result.append(rho / values.clamp_min(middle * floor))
    return result


def _solution(diagonals: tuple[Tensor, ...], upper: Upper, message: str) -> Solution:
    try:
        value: float | None = float(upper)
    except OverflowError:
        value = None
    return Solution(
        multipliers=diagonals,
        exponents=(0,) * len(diagonals),
        upper=value,
        log10_upper=upper.log10() if upper else -math.inf,
        trace=(),
        iterations=0,
        gap=None,
        message=message,
    )


def evaluated_again(system: LoopedSystem, found: ReferenceSolution, compute: Compute) -> Solution:
    """The best certified bound from a cone solver's multipliers; the closed form where it is better.

    Raises:
        Undecided: nothing could be certified; only for systems with loops, which have no closed form.
    """
    said = f"{found.solver}: status {found.status}, objective {found.objective!r}"
    causal = not system.loops
    best = fast(system.causal, compute) if causal else None
    if best is not None:
        best = replace(best, message=f"{said}; its multipliers could not be repaired")
    if found.objective == 0.0 and best is not None:
        return best
    for floor in FLOORS:
        diagonals = reciprocal(found.multipliers, found.objective**2, floor)
        for factor in FACTORS:
            scaled = tuple(d * factor for d in diagonals)
            upper = certified_upper(system.causal, scaled) if causal else certified_dense(system, scaled)
            if upper is None or (best is not None and best.upper is not None and not upper < best.upper):
                continue
            best = _solution(scaled, upper, f"{said}; multipliers evaluated again")
    if best is None:
        raise Undecided(
            f"{said}; its multipliers could not be repaired, and implicit layers have no closed form"
        )
    return best
