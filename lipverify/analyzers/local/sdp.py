"""The analyzer `local-sdp`: the block system of LipSDP with the slopes of each ball, never above `local`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from lipverify.analyzers.lipsdp.analyzer import LipSDP
from lipverify.analyzers.lipsdp.norms import Answer, answer, answers
from lipverify.analyzers.lipsdp.regions import coupled_form, over_region
from lipverify.analyzers.lipsdp.solver import Settings
from lipverify.analyzers.lipsdp.system import Couplings
from lipverify.analyzers.local.analyzer import first_bound, rejects_gradients
from lipverify.analyzers.protocol import Compute, Interruption, keeping_best
from lipverify.certificates.pending import keepable
from lipverify.errors import UnsupportedModel
from lipverify.ir.certificate import Certificate, Evidence
from lipverify.ir.graph import Graph
from lipverify.ir.region import Ball, Query
from lipverify.propagation import Bounds, bounds

if TYPE_CHECKING:
    from lipverify.certificates import writing


@keepable
@dataclass(frozen=True)
class Smaller:
    """Evidence of two methods, or of the first alone, and for each centre which of them gave the bound."""

    parts: tuple[Evidence, ...]
    names: tuple[str, ...]
    chosen: tuple[int, ...]
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return {
            "kind": "smaller",
            "names": list(self.names),
            "chosen": list(self.chosen),
            "parts": [part.to_json() for part in self.parts],
        }

    def proof(self, writer: writing.Writer, part: writing.Part) -> int:
        """That of the method that gave the bound of this centre."""
        chosen: Any = self.parts[self.chosen[part.centre]]
        found: int = chosen.proof(writer, part)
        return found


@dataclass(frozen=True)
class LocalSDP:
    """Semidefinite bounds over balls: slopes from linear bounds, neurons with known slopes substituted.

    Statement: |f(x) - f(y)|_out <= upper |x - y|_in for all x, y of one ball; inputs in l2 or linf.
    Source: Fazlyab et al., NeurIPS 2019 (arXiv 1906.04893), localised as Hashemi, Ruths, Fazlyab, L4DC 2021; for linf inputs
    with one weight an input, output by output; the minimum with `local`.
    Sound when: as `lipsdp` and `local`.
    Proof: lipverify/analyzers/lipsdp/bound.py:certified_upper
    """

    name: ClassVar[str] = "local-sdp"
    settings: Settings = field(default_factory=lambda: Settings(tol=1e-3))
    ranges: str = "linear"
    """How the values in front of activations are bounded: `linear`, or `alpha` with searched planes (slower, tighter)."""

    def reject(self, graph: Graph, query: Query) -> str | None:
        """As `local` and `lipsdp`: a ball, inputs in l2 or linf, neurons with bounded slopes."""
        return rejects_gradients(graph, query) or LipSDP(self.settings).reject(graph, query)

    def bound(self, graph: Graph, query: Query, compute: Compute) -> Certificate:
        """One number for each centre; the centres share the budget."""
        reason = self.reject(graph, query)
        if reason is not None:
            raise UnsupportedModel(reason)
        assert isinstance(query.region, Ball)
        first = first_bound(graph, query, compute, self.ranges)
        return self.improved(first, graph, query, compute)

    def improved(self, first: Certificate, graph: Graph, query: Query, compute: Compute) -> Certificate:
        """The smaller of `first`, which covers every centre, and semidefinite bounds.

        Centres whose turn would come after the deadline, or after an interrupt, keep the first bound.
        """
        assert first.upper is not None
        second = None
        with keeping_best() as interruption:
            if compute.remaining() > 0.0:
                second = self._semidefinite(graph, query, compute)
        interruption.happened |= second is not None and second.interrupted
        upper, chosen = first.upper, torch.zeros(len(first.upper), dtype=torch.int64)
        if second is not None:
            assert second.upper is not None
            upper, chosen = upper.clone(), chosen.clone()
            done = len(second.upper)
            upper[:done], chosen[:done] = torch.stack([first.upper[:done], second.upper]).min(0)
        return replace(
            first,
            upper=upper,
            rigour=first.rigour if second is None else min(first.rigour, second.rigour),
            evidence=_smaller(first, second, tuple(chosen.tolist()), interruption),
            made_by=repr(self),
            assumptions=tuple(
                dict.fromkeys((*first.assumptions, *(() if second is None else second.assumptions)))
            ),
            interrupted=interruption.happened,
        )

    def _semidefinite(self, graph: Graph, query: Query, compute: Compute) -> Certificate:
        def method(system: Couplings, share: Compute) -> Answer:
            return answer(system, query.norm_in, query.norm_out, share, self.settings)

        def together(systems: Sequence[Couplings], share: Compute) -> list[Answer]:
            return answers(systems, query.norm_in, query.norm_out, share, self.settings)

        def form(graph: Graph, known: Bounds, device: torch.device) -> Couplings:
            if self.ranges != "linear":
                known = bounds(graph, known.known.ball, method=self.ranges, device=device, within=known)
            return coupled_form(graph, known, device)

        return over_region(self, graph, query, compute, method, form, together, optional=True)


def _smaller(
    first: Certificate, second: Certificate | None, chosen: tuple[int, ...], interruption: Interruption
) -> Smaller:
    evidence = (first.evidence,) if second is None else (first.evidence, second.evidence)
    names = ("local", "lipsdp")[: len(evidence)]
    notes = (*getattr(first.evidence, "notes", ()), *interruption.notes)
    return Smaller(evidence, names, chosen, notes)
