"""The analyzers of the LipSDP family: closed form, optimum, and the reference by a cone solver."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from lipverify.analyzers.lipsdp.canonical import looped_form, scalar_neurons
from lipverify.analyzers.lipsdp.frequencies.analyzer import bound_frequencies, refuses_frequencies
from lipverify.analyzers.lipsdp.norms import Answer, answer, answers, euclidean
from lipverify.analyzers.lipsdp.published import Constraints, bound_published, sorting_chain
from lipverify.analyzers.lipsdp.reference import solve_reference
from lipverify.analyzers.lipsdp.regions import coupled_form, over_region, refusal
from lipverify.analyzers.lipsdp.repair import evaluated_again
from lipverify.analyzers.lipsdp.solver import Settings
from lipverify.analyzers.lipsdp.splitting import (
    Piece,
    bound_pieces,
    effort_of,
    fits_memory,
    pieces,
    whole_fits,
)
from lipverify.analyzers.lipsdp.system import Couplings, LoopedSystem
from lipverify.analyzers.protocol import Compute
from lipverify.errors import UnsupportedModel
from lipverify.ir.certificate import Certificate, Rigour
from lipverify.ir.graph import Graph
from lipverify.ir.norm import Norm
from lipverify.ir.region import Ball, Everywhere, Query


@dataclass(frozen=True)
class LipSDP:
    """The tightest bound that slope ranges of single neurons can give, near its optimum; anytime.

    Statement: |f(x) - f(y)|_out <= upper |x - y|_in for all x, y of the region; inputs and outputs in l2 or linf.
    Source: Fazlyab, Robey, Hassani, Morari, Pappas, NeurIPS 2019 (arXiv 1906.04893), LipSDP-Neuron, as a block system with
    closed-form evaluation; maxima and sorting as comparators of one neuron each; linf inputs by searched weights, as Wang
    et al. (arXiv 2203.01212) and Pauli et al. (arXiv 2401.14033); linf outputs one by one.
    Sound when: every operator is affine, a scalar activation with proven slopes, a maximum, a sort, a reflection, or a product of
    two values that are bounded over the region, as gates of GRU and LSTM and what they weigh are everywhere. Where the whole
    network is too large for the memory or the budget, one multiplier a channel over frequencies (convolutional
    networks), or the product over pieces, which the result says.
    Proof: lipverify/analyzers/lipsdp/bound.py:certified_upper
    """

    name: ClassVar[str] = "lipsdp"
    settings: Settings = field(default_factory=Settings)
    pieces: int | None = None
    """Cut into about so many pieces, as far as there are places to cut; by default only where it must be."""

    def reject(self, graph: Graph, query: Query) -> str | None:
        """Names the node without a form as neurons, or the memory that would be needed even for a piece."""
        everywhere = isinstance(query.region, Everywhere)
        reason = refusal(graph, query, loops=True, large=everywhere)
        if reason is None and everywhere:
            try:
                if not whole_fits(graph, Compute()) and refuses_frequencies(graph, query) is not None:
                    pieces(graph, effort_of(Compute(), 1), self.settings)
            except UnsupportedModel as error:  # also slopes that are not bounded everywhere
                return str(error)
        return reason

    def bound(self, graph: Graph, query: Query, compute: Compute) -> Certificate:
        """Recomputed from the multipliers alone; the search's own objective is never shown."""
        if isinstance(query.region, Everywhere) and (self.pieces or not whole_fits(graph, compute)):
            reason = refusal(graph, query, loops=True, large=True)
            if reason is not None:
                raise UnsupportedModel(reason)
            if not self.pieces and refuses_frequencies(graph, query) is None:
                # Neurons that do not fit one program: one multiplier a channel is tighter than cutting the network.
                with suppress(UnsupportedModel):
                    return bound_frequencies(self, graph, query, compute)
            found: list[Piece] = []
            try:
                found = pieces(graph, effort_of(compute, self.pieces or 1), self.settings, self.pieces or 1)
            except UnsupportedModel:
                if not fits_memory(graph):
                    raise
            if len(found) > 1:
                return bound_pieces(self, graph, query, compute, found)

        def method(system: Couplings, share: Compute) -> Answer:
            return answer(system, query.norm_in, query.norm_out, share, self.settings)

        def together(systems: Sequence[Couplings], share: Compute) -> list[Answer]:
            return answers(systems, query.norm_in, query.norm_out, share, self.settings)

        return over_region(self, graph, query, compute, method, coupled_form, together)


@dataclass(frozen=True)
class LipSDPFast:
    """One feasible point of LipSDP in closed form: one multiplier for each block, one pass over the network.

    Statement: |f(x) - f(y)|_out <= upper |x - y|_in for all x, y of the region; inputs and outputs in l2 or linf.
    Source: Xu, Sivaranjani, NeurIPS 2024 (arXiv 2404.04375), ECLipsE-Fast, on any block system.
    Sound when: as `lipsdp`.
    Proof: lipverify/analyzers/lipsdp/bound.py:certified_upper
    """

    name: ClassVar[str] = "lipsdp-fast"

    def reject(self, graph: Graph, query: Query) -> str | None:
        """As `lipsdp`."""
        reason = refusal(graph, query, loops=True)
        if reason is not None and refusal(graph, query, loops=True, large=True) is None:
            return reason if refuses_frequencies(graph, query) is not None else None
        return reason

    def bound(self, graph: Graph, query: Query, compute: Compute) -> Certificate:
        """A milliseconds tier; never tighter than `lipsdp`. In l_inf all inputs have the same weight.

        Where the neurons do not fit one program, one number a block at every frequency.
        """
        if refusal(graph, query, loops=True) is not None and refuses_frequencies(graph, query) is None:
            return bound_frequencies(self, graph, query, compute, searched=False)

        def method(system: Couplings, share: Compute) -> Answer:
            return answer(system, query.norm_in, query.norm_out, share, None)

        return over_region(self, graph, query, compute, method, coupled_form)


@dataclass(frozen=True)
class LipSDPReference:
    """The textbook program in a general cone solver (CVXPY); an oracle for small networks.

    Statement: |f(x) - f(y)|_2 <= upper |x - y|_2 for all x, y of the region.
    Source: as `lipsdp`; solvers SCS and Clarabel through CVXPY.
    Sound when: as `lipsdp`; the solver's multipliers are repaired and evaluated again, its objective is not used.
    Proof: lipverify/analyzers/lipsdp/bound.py:certified_upper
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
        if query.norm_in is not Norm.L2 or (query.norm_out is not Norm.L2 and graph.output.size > 1):
            return f"answers l2 to l2, not {query.norm_in} to {query.norm_out}; ask lipsdp"
        reason = refusal(graph, query, loops=True)
        if reason is not None:
            return reason
        # Counted without matrices first: those of a network that is refused anyway take seconds, and gigabytes.
        count = scalar_neurons(graph) + graph.input.size
        if count <= self.largest:
            if self.constraints != "neurons" and (reason := self._reject_published(graph, query)):
                return reason
            count = looped_form(graph).causal.neurons + graph.input.size
        if count > self.largest:
            return f"a cone solver does not finish on {count} inputs and neurons; the limit is {self.largest}"
        return None

    def bound(self, graph: Graph, query: Query, compute: Compute) -> Certificate:
        """Valid whatever the solver said; its objective is kept as a note."""
        if self.constraints != "neurons":
            return self._bound_published(graph, query)
        return over_region(self, graph, query, compute, self._solve, looped_form)

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

    def _solve(self, system: LoopedSystem, compute: Compute) -> Answer:
        return euclidean(evaluated_again(system, solve_reference(system, self.solver), compute))
