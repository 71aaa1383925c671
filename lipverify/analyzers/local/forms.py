"""Constants over balls by affine forms: for attention, normalisation over features and gates."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from lipverify.analyzers.local.norms import from_rows
from lipverify.analyzers.protocol import Compute
from lipverify.certificates.pending import keepable
from lipverify.deadline import left
from lipverify.errors import NotCovered, Undecided, UnsupportedModel
from lipverify.ir.graph import Graph
from lipverify.ir.norm import Norm
from lipverify.ir.region import Ball, Query
from lipverify.propagation import Bounds, bounds
from lipverify.propagation.forms import FormBounds, affordable, form_bounds
from lipverify.propagation.forms.bounds import joined
from lipverify.propagation.linear import tells_more

if TYPE_CHECKING:
    from lipverify.certificates import writing

LOOSE = 2.0
"""Bounds above this many times the reference network's norm are worth ranges by linear bounds, and another sweep."""
LINEAR_WORK = 2e11
"""Multiplications that linear bounds of one ball may take for that."""
LONGEST = 900.0
"""Seconds that a proof may take that nothing else ends."""


@keepable
@dataclass(frozen=True)
class FormRows:
    """Evidence of a bound by affine forms, of which the checker has none: its own ranges of derivatives may show as much."""

    lowered: ClassVar[bool] = True
    """What the checker proves may be the smaller bound, and is issued then."""
    symbols: int
    """Parts of values that the forms tell apart, for any one centre."""
    rows: Tensor = field(repr=False, compare=False, default_factory=lambda: torch.empty(0, 0))
    """[count, rows]: bounds of the dual norm of every row of the Jacobian, not stored."""
    notes: tuple[str, ...] = ()
    from_product: tuple[bool, ...] = ()
    """Centres where the global product was smaller."""

    def to_json(self) -> dict[str, Any]:
        return {"kind": "affine-forms", "symbols": self.symbols}

    def proof(self, writer: writing.Writer, part: writing.Part) -> int:
        """Ranges of derivatives by lines, computed anew, which are often narrower than those of the forms; or the product.

        Lines follow how slopes change with the values, forms take them as independent; where values range far, forms know more.
        """
        from lipverify.analyzers.local.proof import expected, prove_jacobians

        seconds, size = expected(writer, part)
        if seconds > min(2.0 * left(), LONGEST) and not self.from_product[part.centre]:
            raise NotCovered(
                f"affine forms have no proof, and the checker's own ranges of derivatives ({size}) would take about "
                f"{seconds:.0f} seconds"
            )
        return prove_jacobians(self, writer, part, least=True)


@dataclass(frozen=True)
class ByForms:
    """upper [count] and rows [count, outputs], as `LocalBounds`, with what they come from."""

    upper: Tensor
    evidence: FormRows


def constants_by_forms(written: Graph, query: Query, compute: Compute) -> ByForms:
    """Upper bounds for every ball of the query, by forms of a graph with maxima written out.

    Raises:
        UnsupportedModel: a node without a form, not bounded on its range, or too large. Undecided: no time.
    """
    ball = query.region
    assert isinstance(ball, Ball)
    at_once = affordable(written, compute.device)
    parts = []
    for start in range(0, len(ball), at_once):
        part = ball[start : start + at_once]
        within = replace(compute, deadline=compute.share(-(-(len(ball) - start) // at_once)))
        parts.append(tightened(written, part, query.norm_in, within))
        compute.report(f"local {start + len(part)}/{len(ball)}", None)
    found = joined(parts)
    return ByForms(_norm(found, query).cpu(), FormRows(found.symbols, found.rows.cpu(), found.notes))


def tightened(graph: Graph, ball: Ball, norm_in: Norm, compute: Compute) -> FormBounds:
    """Forms, and where they are loose, forms inside ranges by linear bounds that the first ones helped to find."""

    def swept(keys: str, within: Bounds | None = None, before: FormBounds | None = None) -> FormBounds:
        device, expired = compute.device, compute.expired
        return form_bounds(
            graph, ball, norm_in, device=device, within=within, expired=expired, keys=keys, before=before
        )

    found, ranges = swept("kept"), None
    if not bool((found.rows.amax(1) > LOOSE * found.reference.amax(1)).any()):
        return found
    try:
        if _linear_work(graph) <= LINEAR_WORK and tells_more(
            graph, ball, found, compute.device, compute.expired
        ):
            ranges = bounds(graph, ball, device=compute.device, expired=compute.expired)
            if ranges.forms is not None and norm_in is ball.norm:
                found = found.meet(ranges.forms)
            else:
                found = found.meet(swept("kept", ranges))
        return swept("centred", ranges, found)
    except (Undecided, UnsupportedModel):
        return found


def _linear_work(graph: Graph) -> float:
    """About how many multiplications linear bounds take on one ball: every value is a functional of all before it."""
    total = before = 0.0
    for node in graph.nodes:
        before += node.size
        total += node.size * before
    return 8.0 * total


def _norm(found: FormBounds, query: Query) -> Tensor:
    upper = from_rows(found.rows, query.norm_out)
    if found.spectral is not None and query.norm_in is query.norm_out is Norm.L2:
        upper = torch.minimum(upper, found.spectral)
    return upper
