"""The analyzers `local`, `local:float32`, `local:recurjac` and `local:interval`: norms of all Jacobians over balls."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from lipverify import ops
from lipverify.analyzers.lengths import with_units
from lipverify.analyzers.lipsdp.canonical import commuted
from lipverify.analyzers.local.comparators import elementary
from lipverify.analyzers.local.coupled import slope_lines
from lipverify.analyzers.local.forms import FormRows, constants_by_forms
from lipverify.analyzers.local.gradients import Gradients, derivative_ranges, reason_to_refuse
from lipverify.analyzers.local.jacobian import Tier, jacobian_ranges, of_rows, row_norms
from lipverify.analyzers.local.norms import from_matrix, from_rows
from lipverify.analyzers.product import Product
from lipverify.analyzers.protocol import Compute
from lipverify.certificates.pending import keepable
from lipverify.deadline import left
from lipverify.errors import Undecided, UnsupportedModel
from lipverify.ir.certificate import Certificate, Rigour
from lipverify.ir.graph import Graph
from lipverify.ir.interval import Interval
from lipverify.ir.norm import Norm
from lipverify.ir.region import Ball, Query
from lipverify.memory import share
from lipverify.passes.unread_entries import without_unread_entries
from lipverify.propagation import Bounds, bounds, refuses_ranges
from lipverify.propagation.forms import refuses_forms
from lipverify.propagation.magnitudes import SMALLER
from lipverify.propagation.precision import PRECISIONS, own_products

if TYPE_CHECKING:
    from lipverify.certificates import writing

ENDED = "the budget ended the refinement of linear bounds; what is left is interval arithmetic, or the global product"
SHALLOW = 8
"""Layers with planes around their slopes up to which gradients inside are bounded with them at once, whatever the time."""
MEMORY = 1 << 30
"""Bytes for the gradients of one chunk of centres and output rows."""


@keepable
@dataclass(frozen=True)
class JacobianRows:
    """Evidence of a local bound: what bounded each centre, and how many unknown slopes there were."""

    lowered: ClassVar[bool] = True
    """Through gates what the checker proves may be the smaller bound, and is issued then."""
    method: str
    unknown: tuple[int, ...]
    """Values around each centre whose slope is not known exactly."""
    from_product: tuple[bool, ...]
    """Centres where the global product was smaller."""
    rows: Tensor = field(repr=False, compare=False, default_factory=lambda: torch.empty(0, 0))
    """[count, rows]: bounds of the dual norm of every row of the Jacobian; for methods that go on from here, not stored."""
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return {
            "kind": "jacobian-rows",
            "method": self.method,
            "unknown_slopes": list(self.unknown),
            "from_product": list(self.from_product),
        }

    def proof(self, writer: writing.Writer, part: writing.Part) -> int:
        """Ranges of values and gradients, computed again; or the product.

        Through gates the checker's lines are often the narrower ones: where the time left may do they are computed before the
        bound is stated, and not only when it is checked, as those of every centre are then.
        """
        from lipverify.analyzers.local.proof import expected, prove_jacobians

        once = writer.took or expected(writer, part)[0] / 2
        wanted = 1.2 * once * (1 + len(self.unknown))
        return prove_jacobians(self, writer, part, writer.multiplies() and wanted < left())


def rejects_gradients(graph: Graph, query: Query) -> str | None:
    """Why gradients of every node cannot be bounded from the output backwards, naming the nodes; None if they can."""
    return _reject_ranges(graph, query) or reason_to_refuse(elementary(graph))


def _reject_ranges(graph: Graph, query: Query) -> str | None:
    if not isinstance(query.region, Ball):
        return "needs a ball: give --data and --radius, in Python region=lv.Ball(x, radius)"
    return refuses_ranges(graph)


def _reject(graph: Graph, query: Query) -> str | None:
    reason = _reject_ranges(graph, query)
    if reason is not None:
        return reason
    written = elementary(graph)
    reason = reason_to_refuse(written)
    return None if reason is None or refuses_forms(written) is None else reason


@dataclass(frozen=True)
class LocalBounds:
    """upper [count]: bounds of the norm asked for; rows [count, rows]: of the dual norm of every row of the Jacobian."""

    upper: Tensor
    rows: Tensor
    unknown: Tensor
    """How many derivatives are not known exactly."""
    ended: bool = False
    """The deadline passed before every refinement was done."""


def local_bounds(
    graph: Graph,
    query: Query,
    compute: Compute,
    method: str = "chord",
    forward: str = "linear",
    precision: str = "float64",
) -> LocalBounds:
    """Upper bounds for every ball of the query.

    A deadline ends refinement, first of the ranges at half of a chunk's share: every range is the intersection of what was
    found until then, interval arithmetic at least.

    Args:
        method: `chord`, `recurjac` or `interval`.
        forward: how values are bounded, the method of `bounds`.
        precision: of coefficients, as in `bounds`.
    """
    ball = query.region
    assert isinstance(ball, Ball)
    graph = commuted(graph, None)[0]
    written = elementary(graph, whole=True).to(dtype=torch.float64, device=compute.device)
    rows = written.output.size
    per_row = 8 * 8 * sum(node.size for node in written.nodes)
    at_once = max(1, share(MEMORY) // (per_row * min(rows, 64)))
    found, by_row, unknown, ended = [], [], [], False
    with torch.no_grad(), own_products(PRECISIONS[precision], compute.device):
        for start in range(0, len(ball), at_once):
            part = ball[start : start + at_once]
            within = replace(compute, deadline=compute.share(-(-(len(ball) - start) // at_once)))
            early = replace(within, deadline=within.share(2))
            ranges = _ranges(graph, written, part, early, forward, precision)
            ended = ended or early.expired()
            chunk = max(1, share(MEMORY) // (per_row * len(part)))
            factors = derivative_ranges(written, ranges, ranges.known.possible)
            tier = tier_of(written, ranges, method)
            tier = replace(tier, precision=PRECISIONS[precision], expired=within.expired)
            upper, by_rows = _norms_in_time(written, ranges, query, tier, chunk, factors, within)
            found.append(upper)
            by_row.append(by_rows)
            unknown.append(_unknown(factors, ranges))
            ended = ended or within.expired()
            compute.report(f"local {start + len(part)}/{len(ball)}", None)
    return LocalBounds(torch.cat(found), torch.cat(by_row), torch.cat(unknown), ended)


def _norms_in_time(
    graph: Graph,
    ranges: Bounds,
    query: Query,
    tier: Tier,
    chunk: int,
    factors: dict[str, tuple[Interval, ...]],
    compute: Compute,
) -> tuple[Tensor, Tensor]:
    """Bounds of norms and rows; of many layers with planes around slopes those of the rows alone first, if time may end.

    For an RNN of 50 steps that takes a fifth of the time, and loses nothing.
    """
    hurried = SHALLOW < len(tier.lines) <= tier.deep and compute.deadline is not None
    begun = time.monotonic()
    first = replace(tier, deep=0) if hurried else tier
    found = norm_bounds(graph, ranges, query, first, chunk, factors=factors)
    again = (time.monotonic() - begun) * len(tier.lines) / SHALLOW
    if not hurried or again > compute.remaining():
        return found.upper, found.rows
    better = norm_bounds(graph, ranges, query, tier, chunk, factors=factors)
    return torch.minimum(found.upper, better.upper), torch.minimum(found.rows, better.rows)


def _ranges(
    graph: Graph, written: Graph, ball: Ball, compute: Compute, forward: str, precision: str
) -> Bounds:
    """Ranges of the written-out graph; nodes that both graphs have lie inside the intervals of the original one."""
    within = None if len(written.nodes) == len(graph.nodes) else intervals(graph, ball, compute)
    return bounds(
        written,
        ball,
        method=forward,
        device=compute.device,
        within=within,
        precision=precision,
        expired=compute.expired,
    )


def intervals(graph: Graph, ball: Ball, compute: Compute) -> Bounds:
    """The box of a maximum or a sort is exact for its own operator, not for the comparators it is written out as."""
    return bounds(graph, ball, method="interval", device=compute.device)


@dataclass(frozen=True)
class NormBounds:
    """upper [count], rows [count, output rows], and the ranges of all gradients they come from, some rows each."""

    upper: Tensor
    rows: Tensor
    gradients: tuple[Gradients, ...]

    def of_rows(self, first: int, last: int) -> NormBounds:
        """The gradients and bounds of some rows; `upper` stays that of all of them."""
        parts, start = [], 0
        for part in self.gradients:
            inside = slice(max(first - start, 0), max(last - start, 0))
            if len(part.seeds[inside]):
                parts.append(of_rows(part, inside))
            start += part.rows
        return NormBounds(self.upper, self.rows[:, first:last], tuple(parts))


def _of_moving(found: Gradients, ranges: Bounds) -> Gradients:
    """The gradients with 0 for entries of the input that have one value in a region where others have more.

    Statement: f(x) - f(y) is the integral of J (x - y) along the segment, and x - y is 0 in those entries.
    """
    name = found.graph.input.name
    fixed = ranges.known.box.lower == ranges.known.box.upper
    fixed &= ~fixed.flatten(1).all(1).reshape(-1, *[1] * (fixed.ndim - 1))
    if not bool(fixed.any()):
        return found
    box, still = found.boxes[name], fixed[:, None]
    zero = torch.zeros_like(box.lower)
    boxes = found.boxes | {
        name: Interval(torch.where(still, zero, box.lower), torch.where(still, zero, box.upper))
    }
    return replace(found, boxes=boxes)


def norm_bounds(
    graph: Graph,
    ranges: Bounds,
    query: Query,
    tier: Tier,
    chunk: int,
    *,
    factors: dict[str, tuple[Interval, ...]] | None = None,
    outputs: slice = slice(None),
) -> NormBounds:
    """Bounds of the Jacobian's norm and of its rows' over every centre, `chunk` output rows at a time.

    Args:
        factors: ranges of the derivatives; by default those of the rules over `ranges`.
        outputs: which rows of the Jacobian.
    """
    factors = derivative_ranges(graph, ranges) if factors is None else factors
    tier = replace(tier, sums=query.norm_in is query.norm_out is Norm.LINF)
    size, count = graph.output.size, ranges.known.count
    identity = torch.eye(size, dtype=torch.float64, device=ranges.output.lower.device)
    seeds = identity.reshape(size, *graph.output_shape)[outputs]
    found = [
        _of_moving(jacobian_ranges(graph, factors, seeds[some], count, tier), ranges)
        for some in _slices(len(seeds), chunk)
    ]
    rows = torch.cat([row_norms(part, query.norm_in.dual, tier) for part in found], 1)
    upper = from_rows(rows, query.norm_out)
    entries = [part.boxes[graph.input.name] for part in found]
    matrix = Interval(
        torch.cat([box.lower.flatten(2) for box in entries], 1),
        torch.cat([box.upper.flatten(2) for box in entries], 1),
    )
    other = from_matrix(matrix, query.norm_in, query.norm_out)
    upper = upper if other is None else torch.minimum(upper, other)
    return NormBounds(upper, rows, tuple(found))


def _slices(size: int, chunk: int) -> Iterator[slice]:
    for start in range(0, size, chunk):
        yield slice(start, start + chunk)


def tier_of(graph: Graph, ranges: Bounds, method: str = "chord") -> Tier:
    """How gradients are bounded by `chord`, `recurjac` or `interval`."""
    if method == "interval":
        return Tier(refine=False, joint=False)
    if method == "recurjac":
        return Tier(recurjac=True, joint=False)
    return Tier(lines=slope_lines(graph, ranges.known), known=ranges.known)


def _unknown(factors: dict[str, tuple[Interval, ...]], ranges: Bounds) -> Tensor:
    """How many derivatives are not known exactly, for each centre."""
    total = torch.zeros(ranges.known.count, dtype=torch.int64, device=ranges.output.lower.device)
    for parts in factors.values():
        for part in parts:
            total += (part.lower < part.upper).flatten(1).sum(1)
    return total


def _certificate(
    analyzer: object,
    graph: Graph,
    query: Query,
    compute: Compute,
    method: str,
    with_product: bool,
    forward: str = "linear",
    precision: str = "float64",
) -> Certificate:
    reason = rejects_gradients(graph, query)
    if reason is not None:
        raise UnsupportedModel(reason)
    from lipverify.analyzers.local.proof import seconds

    begun = time.monotonic()
    product = _product(graph, query, compute) if with_product else None
    proving = seconds(graph.output.size, sum(node.size for node in graph.nodes))
    if graph.has(ops.Mul) and proving < compute.remaining() / 2:
        # Through gates the checker's lines are the narrower ones: half of the time is for them where it may do
        # (`JacobianRows.proof`).
        compute = replace(compute, deadline=compute.share(2))
    found = local_bounds(graph, query, compute, method, forward, precision)
    upper, better = _beside(found.upper.cpu(), product)
    certificate = Certificate(
        upper=upper,
        query=query,
        rigour=Rigour.REAL,
        evidence=JacobianRows(
            method,
            tuple(found.unknown.tolist()),
            better,
            found.rows.cpu(),
            (ENDED,) if found.ended else (),
        ),
        made_by=repr(analyzer),
        graph_digest=graph.digest,
    )
    if analyzer == Local():
        _ANSWERED[graph] = query, certificate, time.monotonic() - begun if found.ended else math.inf
    return certificate


def _beside(upper: Tensor, product: Tensor | None) -> tuple[Tensor, tuple[bool, ...]]:
    """[count], the global product where it is smaller, and where that is.

    Raises:
        UnsupportedModel: a bound is not finite.
    """
    better = torch.zeros(len(upper), dtype=torch.bool) if product is None else product < upper
    upper = upper if product is None else torch.minimum(upper, product)
    if not bool(upper.isfinite().all()):
        raise UnsupportedModel(f"the bound of some centre exceeds the largest float64; {SMALLER}")
    return upper, tuple(better.tolist())


def _by_forms(analyzer: Local, graph: Graph, query: Query, compute: Compute) -> Certificate:
    """Bounds by affine forms, or the global product where that is smaller or the time did not last."""
    product = _product(graph, query, compute) if analyzer.with_product else None
    try:
        written = without_unread_entries(elementary(with_units(graph), kept=(ops.MaskedSoftmax,)))
        found = constants_by_forms(written, query, compute)
        upper, evidence = found.upper, found.evidence
    except Undecided:
        if product is None:
            raise
        upper, evidence = torch.full_like(product, torch.inf), FormRows(0, notes=(ENDED,))
    upper, better = _beside(upper, product)
    return Certificate(
        upper=upper,
        query=query,
        rigour=Rigour.REAL,
        evidence=replace(evidence, from_product=better),
        made_by=repr(analyzer),
        graph_digest=graph.digest,
    )


_ANSWERED: WeakKeyDictionary[Graph, tuple[Query, Certificate, float]] = WeakKeyDictionary()
"""The last query that `local` answered, and the seconds it had for it: infinite where more would change nothing."""


def first_bound(graph: Graph, query: Query, compute: Compute, ranges: str = "linear") -> Certificate:
    """What `local` answered already in as much time, for methods that go on from it; else its answer in a third of the time."""
    method = Local(ranges=ranges)
    if method == Local() and graph in _ANSWERED:
        asked, answered, seconds = _ANSWERED[graph]
        if asked is query and seconds >= compute.remaining() / 3:
            return answered
    return method.bound(graph, query, replace(compute, deadline=compute.share(3)))


def _product(graph: Graph, query: Query, compute: Compute) -> Tensor | None:
    """The global product of gains, where it is finite: [count]."""
    method = Product()
    if method.reject(graph, query) is not None:
        return None
    try:
        return method.bound(graph, query, compute).upper
    except UnsupportedModel:
        return None


@dataclass(frozen=True)
class Local:
    """Norms of all Jacobians over each ball, by linear bounds of the forward and the backward pass.

    Statement: |f(x) - f(y)|_out <= upper |x - y|_in for all x, y of one ball.
    Source: Shi et al., NeurIPS 2022 (arXiv 2210.07394), with the tight chord of slope times gradient, all entries of a row
    bounded as one functional, planes in the activations' arguments for smooth ones, and one slope for each comparison of a
    maximum or sort; the minimum with the global product.
    Networks with attention or normalisation over features: affine forms of values and gradients with shared symbols
    (`propagation.forms`), keys centred or not.
    Sound when: every operator is affine, scalar with proven slopes on boxes, a product or quotient, a softmax, a layer
    normalisation, a maximum, a sort or a reflection.
    Proof: lipverify/analyzers/local/jacobian.py:row_norms
    """

    name: ClassVar[str] = "local"
    with_product: bool = True
    """Also compute the global product, and take the smaller bound."""
    ranges: str = "linear"
    """How the values in front of activations are bounded: `linear`, or `alpha` with searched planes (slower, tighter)."""
    precision: str = "float64"
    """Of coefficients: `float64`, or `float32` with its rounding added outward (`propagation.precision`)."""

    def reject(self, graph: Graph, query: Query) -> str | None:
        """Asks for a ball, and names the nodes without a range of derivatives or an affine form."""
        return _reject(graph, query)

    def bound(self, graph: Graph, query: Query, compute: Compute) -> Certificate:
        """One number for each centre."""
        reason = _reject(graph, query)
        if reason is not None:
            raise UnsupportedModel(reason)
        if rejects_gradients(graph, query) is not None:
            return _by_forms(self, graph, query, compute)
        return _certificate(
            self, graph, query, compute, "chord", self.with_product, self.ranges, self.precision
        )


@dataclass(frozen=True)
class LocalSingle:
    """As `local` with coefficients in float32, whose rounding is added outward: for GPUs on which float64 is slow.

    Statement: |f(x) - f(y)|_out <= upper |x - y|_in for all x, y of one ball.
    Source: as `local`; roundings as Higham, Accuracy and Stability of Numerical Algorithms, 2nd edition, section 3.1, with the
    unit 2^-24, on the sums of the absolute values of all terms; ranges, constants and errors are float64.
    Sound when: as `local`; products of float32 are rounded to float32 (shorter formats are turned off while it runs).
    Proof: lipverify/analyzers/local/jacobian.py:row_norms
    """

    name: ClassVar[str] = "local:float32"
    with_product: bool = False
    """As in `local`; off, so that comparisons show this method alone."""

    def reject(self, graph: Graph, query: Query) -> str | None:
        """As `local`."""
        return rejects_gradients(graph, query)

    def bound(self, graph: Graph, query: Query, compute: Compute) -> Certificate:
        """One number for each centre."""
        return _certificate(self, graph, query, compute, "chord", self.with_product, precision="float32")


@dataclass(frozen=True)
class LocalRecurJac:
    """As `local`, with the coarser product rule of RecurJac and norms taken entry by entry; for comparison.

    Statement: |f(x) - f(y)|_out <= upper |x - y|_in for all x, y of one ball.
    Source: Zhang, Zhang, Hsieh, AAAI 2019 (arXiv 1810.11783), on ranges by linear bounds.
    Sound when: as `local`.
    Proof: lipverify/analyzers/local/analyzer.py:norm_bounds
    """

    name: ClassVar[str] = "local:recurjac"
    with_product: bool = False
    """As in `local`; off, so that comparisons show this method alone."""

    def reject(self, graph: Graph, query: Query) -> str | None:
        """As `local`."""
        return rejects_gradients(graph, query)

    def bound(self, graph: Graph, query: Query, compute: Compute) -> Certificate:
        """One number for each centre."""
        return _certificate(self, graph, query, compute, "recurjac", self.with_product)


@dataclass(frozen=True)
class LocalInterval:
    """Interval arithmetic through the backward pass, on ranges by linear bounds; for comparison.

    Statement: |f(x) - f(y)|_out <= upper |x - y|_in for all x, y of one ball.
    Source: Hein, Andriushchenko, NeurIPS 2017 (arXiv 1705.08475); Weng et al., ICML 2018 (arXiv 1804.09699).
    Sound when: as `local`.
    Proof: lipverify/analyzers/local/analyzer.py:norm_bounds
    """

    name: ClassVar[str] = "local:interval"
    with_product: bool = False
    """As in `local`; off, so that comparisons show this method alone."""

    def reject(self, graph: Graph, query: Query) -> str | None:
        """As `local`."""
        return rejects_gradients(graph, query)

    def bound(self, graph: Graph, query: Query, compute: Compute) -> Certificate:
        """One number for each centre."""
        return _certificate(self, graph, query, compute, "interval", self.with_product)
