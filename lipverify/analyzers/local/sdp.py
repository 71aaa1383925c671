"""The analyzer `local-sdp`: the block system of LipSDP with the slopes of each ball, never above `local`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch

from lipverify.analyzers.lipsdp.analyzer import LipSDP
from lipverify.analyzers.lipsdp.canonical import canonical_form
from lipverify.analyzers.lipsdp.norms import Answer, answer, answers
from lipverify.analyzers.lipsdp.regions import over_region
from lipverify.analyzers.lipsdp.solver import Settings
from lipverify.analyzers.lipsdp.system import BlockSystem, Couplings
from lipverify.analyzers.local.analyzer import Local
from lipverify.analyzers.protocol import Compute
from lipverify.errors import UnsupportedModel
from lipverify.ir.certificate import Certificate, Evidence
from lipverify.ir.graph import Graph
from lipverify.ir.region import Ball, Query
from lipverify.propagation import Bounds, bounds


@dataclass(frozen=True)
class Smaller:
    """Evidence of two methods and, for each centre, which of them gave the bound."""

    parts: tuple[Evidence, Evidence]
    names: tuple[str, str]
    chosen: tuple[int, ...]

    def to_json(self) -> dict[str, Any]:
        return {
            "kind": "smaller",
            "names": list(self.names),
            "chosen": list(self.chosen),
            "parts": [part.to_json() for part in self.parts],
        }


@dataclass(frozen=True)
class LocalSDP:
    """Semidefinite bounds over balls: slopes from linear bounds, neurons with known slopes substituted.

    Statement: |f(x) - f(y)|_out <= upper |x - y|_in for all x, y of one ball; inputs in l2 or linf.
    Source: Fazlyab et al., NeurIPS 2019 (arXiv 1906.04893), localised as Hashemi, Ruths, Fazlyab, L4DC 2021; for linf inputs
    with one weight an input, output by output; the minimum with `local`.
    Sound when: as `lipsdp` and `local`.
    """

    name: ClassVar[str] = "local-sdp"
    settings: Settings = field(default_factory=lambda: Settings(tol=1e-3))
    ranges: str = "linear"
    """How the values in front of activations are bounded: `linear`, or `alpha` with searched planes (slower, tighter)."""

    def reject(self, graph: Graph, query: Query) -> str | None:
        """As `local` and `lipsdp`: a ball, inputs in l2 or linf, neurons with bounded slopes."""
        return Local().reject(graph, query) or LipSDP(self.settings).reject(graph, query)

    def bound(self, graph: Graph, query: Query, compute: Compute) -> Certificate:
        """One number for each centre; the centres share the budget."""
        reason = self.reject(graph, query)
        if reason is not None:
            raise UnsupportedModel(reason)
        assert isinstance(query.region, Ball)
        first = Local(ranges=self.ranges).bound(graph, query, compute)
        second = self._semidefinite(graph, query, compute)
        assert first.upper is not None
        assert second.upper is not None
        both = torch.stack([first.upper, second.upper])
        upper, chosen = both.min(0)
        return replace(
            first,
            upper=upper,
            rigour=min(first.rigour, second.rigour),
            evidence=Smaller((first.evidence, second.evidence), ("local", "lipsdp"), tuple(chosen.tolist())),
            made_by=repr(self),
            assumptions=tuple(dict.fromkeys((*first.assumptions, *second.assumptions))),
        )

    def _semidefinite(self, graph: Graph, query: Query, compute: Compute) -> Certificate:
        if self.ranges == "linear":
            return LipSDP(self.settings).bound(graph, query, compute)

        def method(system: BlockSystem, share: Compute) -> Answer:
            return answer(system, query.norm_in, query.norm_out, share, self.settings)

        def together(systems: Sequence[Couplings], share: Compute) -> list[Answer]:
            return answers(systems, query.norm_in, query.norm_out, share, self.settings)

        def form(graph: Graph, known: Bounds, device: torch.device) -> BlockSystem:
            tight = bounds(graph, known.known.ball, method=self.ranges, device=device, within=known)
            return canonical_form(graph, tight, device)

        return over_region(self, graph, query, compute, method, form, together)
