"""The analyzer `local-sdp`: the block system of LipSDP with the slopes of each ball, never above `local`."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from lipverify.analyzers.lipsdp.analyzer import LipSDP, LipSDPFast
from lipverify.analyzers.lipsdp.norms import Answer, answer, answers
from lipverify.analyzers.lipsdp.regions import coupled_form, over_region
from lipverify.analyzers.lipsdp.solver import Settings
from lipverify.analyzers.lipsdp.system import Couplings
from lipverify.analyzers.local.analyzer import first_bound, rejects_gradients
from lipverify.analyzers.protocol import Compute, Interruption, keeping_best
from lipverify.certificates.pending import keepable
from lipverify.deadline import within
from lipverify.errors import BudgetEnded, UnsupportedModel
from lipverify.ir.certificate import Certificate, Evidence
from lipverify.ir.graph import Graph
from lipverify.ir.region import Ball, Query
from lipverify.propagation import Bounds, bounds

if TYPE_CHECKING:
    from lipverify.certificates import writing

SHARE, CUT = 8, 4
"""What part of the time the constant of the whole space may have, and after which it is given up."""


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


@keepable
@dataclass(frozen=True)
class Anywhere:
    """Evidence of a bound over balls that is one for the whole space."""

    whole: Evidence

    def to_json(self) -> dict[str, Any]:
        return {"kind": "anywhere", "whole": self.whole.to_json()}

    def proof(self, writer: writing.Writer, part: writing.Part) -> int:
        """That of the whole space, which holds in every ball."""
        whole: Any = self.whole
        found: int = whole.proof(writer, replace(part.whole(), centre=0))
        return found


@dataclass(frozen=True)
class LocalSDP:
    """Semidefinite bounds over balls: slopes from linear bounds, neurons with known slopes substituted.

    Statement: |f(x) - f(y)|_out <= upper |x - y|_in for all x, y of one ball; inputs in l2 or linf.
    Source: Fazlyab et al., NeurIPS 2019 (arXiv 1906.04893), localised as Hashemi, Ruths, Fazlyab, L4DC 2021; for linf inputs
    with one weight an input, output by output; the minimum with `local`, and with the same program for the whole space, which is
    the smaller one where ranges over a ball say little.
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
        """The smallest of `first`, which covers every centre, semidefinite bounds, and one for the whole space.

        Centres whose turn would come after the deadline, or after an interrupt, keep the first bound, and so do all where the
        budget ends what has no end of its own.
        """
        assert first.upper is not None
        found = [("local", first)]
        with keeping_best() as interruption, suppress(BudgetEnded):
            everywhere = self._everywhere(graph, query, compute)
            if everywhere is not None:
                found.append(("everywhere", everywhere))
            if compute.remaining() > 0.0 and not (everywhere is not None and everywhere.interrupted):
                found.append(("lipsdp", self._semidefinite(graph, query, compute)))
        interruption.happened |= any(other.interrupted for _, other in found[1:])
        upper, chosen = first.upper.clone(), torch.zeros(len(first.upper), dtype=torch.int64)
        parts = [("local", first)]
        for name, other in found[1:]:
            assert other.upper is not None
            values = torch.full_like(upper, torch.inf)
            values[: len(other.upper) if other.upper.ndim else None] = other.upper
            smaller = values < upper
            if name == "lipsdp" or bool(smaller.any()):
                chosen[smaller], upper = len(parts), torch.where(smaller, values, upper)
                parts.append((name, other))
        used = [certificate for _, certificate in parts]
        return replace(
            first,
            upper=upper,
            rigour=min(certificate.rigour for certificate in used),
            evidence=_smaller(parts, tuple(chosen.tolist()), interruption),
            made_by=repr(self),
            assumptions=tuple(
                dict.fromkeys(said for certificate in used for said in certificate.assumptions)
            ),
            interrupted=interruption.happened,
        )

    def _everywhere(self, graph: Graph, query: Query, compute: Compute) -> Certificate | None:
        """One number for the whole space, in a small part of the time; without a deadline the closed form alone."""
        whole = Query(query.norm_in, query.norm_out)
        method = LipSDPFast() if compute.deadline is None else LipSDP(self.settings)
        try:
            with within(compute.share(CUT)):
                if method.reject(graph, whole) is not None:
                    return None
                found = method.bound(graph, whole, replace(compute, deadline=compute.share(SHARE)))
        except (BudgetEnded, UnsupportedModel):
            return None
        if found.upper is None:
            return None
        return replace(found, evidence=Anywhere(found.evidence))

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
    parts: Sequence[tuple[str, Certificate]], chosen: tuple[int, ...], interruption: Interruption
) -> Smaller:
    evidence = tuple(certificate.evidence for _, certificate in parts)
    notes = (*getattr(evidence[0], "notes", ()), *interruption.notes)
    return Smaller(evidence, tuple(name for name, _ in parts), chosen, notes)
