"""Bounds from affine forms: gradients of the outputs, their values, and ranges on the way."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from lipverify import ops
from lipverify.errors import Undecided, UnsupportedModel, UsageError
from lipverify.ir.graph import Graph
from lipverify.ir.interval import Interval
from lipverify.ir.norm import Norm
from lipverify.ir.region import Ball, misfit
from lipverify.propagation.forms.centring import centred
from lipverify.propagation.forms.domain import Domain
from lipverify.propagation.forms.nonlinear import covers
from lipverify.propagation.forms.sweep import Looser, Refine, Sweep
from lipverify.propagation.forms.symbols import Facts
from lipverify.propagation.forms.tokens import joint_norm
from lipverify.propagation.knowledge import is_affine
from lipverify.propagation.strips import Strip

ON_PROCESSORS, ELSEWHERE = 1 << 30, 8 << 30
"""Bytes that the matrix of one node may take, for all balls of a chunk."""
LOOSE = 1.5
"""Bounds above this many times the norm of the reference network are tried again with keys centred."""


@dataclass(frozen=True)
class FormBounds:
    """What forms say about every ball. rows [count, outputs]: of the gradients of the outputs, in the dual of `norm_in`."""

    output: Interval
    rows: Tensor
    reference: Tensor
    """[count, outputs]: the same of the reference network: an estimate from below, no bound."""
    spectral: Tensor | None
    """[count]: of the whole Jacobian from l2 to l2, where l2 was asked."""
    ranges: dict[str, Facts]
    """Of the nodes of the graph that were looked at."""
    symbols: int
    strips: dict[str, Strip] = field(default_factory=dict, repr=False)
    """Of the nodes that mix entries of computed values."""
    notes: tuple[str, ...] = field(default=())

    def intervals(self) -> dict[str, Interval]:
        """The ranges alone."""
        return {name: Interval(found.lower, found.upper) for name, found in self.ranges.items()}

    def meet(self, other: FormBounds) -> FormBounds:
        """Both hold; the reference is that of the tighter one."""
        both = self.spectral is not None and other.spectral is not None
        ranges = dict(self.ranges)
        for name, facts in other.ranges.items():
            ranges[name] = facts.meet(ranges[name]) if name in ranges else facts
        tighter = (other.rows.amax(1) < self.rows.amax(1)).unsqueeze(1)
        return FormBounds(
            Interval(
                torch.maximum(self.output.lower, other.output.lower),
                torch.minimum(self.output.upper, other.output.upper),
            ),
            torch.minimum(self.rows, other.rows),
            torch.where(tighter, other.reference, self.reference),
            torch.minimum(self.spectral, other.spectral) if both else None,  # type: ignore[arg-type]
            ranges,
            max(self.symbols, other.symbols),
            {**self.strips, **{n: _narrower(self.strips.get(n), s) for n, s in other.strips.items()}},
            self.notes + other.notes,
        )

    def part(self, some: slice) -> FormBounds:
        """Those of some of the balls."""
        return FormBounds(
            Interval(self.output.lower[some], self.output.upper[some]),
            self.rows[some],
            self.reference[some],
            None if self.spectral is None else self.spectral[some],
            {n: Facts(f.lower[some], f.upper[some], f.slopes[some]) for n, f in self.ranges.items()},
            self.symbols,
            {name: strip.map(lambda fact: fact[some]) for name, strip in self.strips.items()},
            self.notes,
        )


def _narrower(first: Strip | None, second: Strip) -> Strip:
    return second if first is None or second.width() < first.width() else first


def mixes(graph: Graph) -> bool:
    """Whether a graph has operators for which forms are the rule: products of matrices, softmax, normalisation of features."""
    kinds = (ops.MatMul, ops.Softmax, ops.MaskedSoftmax, ops.LayerNorm, ops.RMSNorm)
    return any(type(node.op) in kinds for node in graph.nodes)


def refuses_forms(graph: Graph) -> str | None:
    """Names the nodes without a form; None where there are none."""
    missing = [node.describe() for node in graph.nodes if not covers(node)]
    return f"no affine form for {', '.join(missing[:3])}" if missing else None


def affordable(graph: Graph, device: torch.device) -> int:
    """How many balls fit into one chunk, judged by the most symbols there can be; at least 1."""
    symbols = sum(node.size for node in graph.nodes if not is_affine(node))
    widest = max(node.size for node in graph.nodes)
    return max(1, memory_of(device) // (8 * 8 * (graph.input.size + symbols) * widest))


def memory_of(device: torch.device) -> int:
    """Bytes that the matrix of one node may take."""
    return ON_PROCESSORS if device.type == "cpu" else ELSEWHERE


def form_bounds(
    graph: Graph,
    ball: Ball,
    norm_in: Norm,
    *,
    device: torch.device,
    within: Mapping[str, Interval] | None = None,
    expired: Callable[[], bool] = lambda: False,
    keys: str = "both",
    refine: Refine | None = None,
    before: FormBounds | None = None,
) -> FormBounds:
    """Bounds over every ball by affine forms of values and gradients with shared symbols.

    Statement: for every x in the ball of row b, the outputs lie in `output`; gradients of the outputs (almost everywhere,
        which is enough for differences over the convex ball) have a dual norm of at most `rows`.
    Source: affine arithmetic (Stolfi, de Figueiredo 1997) of values and of derivatives together; the telescoping identity and
        the rules of the nodes are in `symbols`, `bilinear`, `softmax` and `normalised`.
    Sound when: `interval`, `slopes` and `relax` rules are right; rounding is charged as `gamma` of absolute terms.

    Args:
        within: ranges of some nodes over the same balls (not of parts of them), on the device.
        expired: asked at every node.
        keys: `kept`, `centred`, or `both` for the second one where the first is loose.
        refine: tighter ranges of the nodes of the graph as it is, where all balls fit into one chunk (`affordable`).
        before: with `centred`, bounds over the same balls; the result is inside them, and the sweep ends where it is looser.

    Raises:
        UnsupportedModel: a node without a form, not bounded over a ball, or too large; it is named. Undecided: no time.
        UsageError: the centres have another shape than the input.
    """
    if (why := misfit(ball.center, graph.input_shape)) is not None:
        raise UsageError(why)
    reason = refuses_forms(graph)
    if reason is not None:
        raise UnsupportedModel(reason)
    exact = graph.to(dtype=torch.float64, device=device)
    at_once, parts = affordable(exact, device), []
    with torch.no_grad():
        for start in range(0, len(ball), at_once):
            rows = slice(start, start + at_once)
            part = ball[rows]
            boxes = {
                name: _facts(Interval(box.lower[rows], box.upper[rows]), part, norm_in)
                for name, box in (within or {}).items()
            }
            first = None if before is None else before.part(rows)
            parts.append(_both(exact, part, norm_in, device, boxes, expired, keys, refine, first))
    return joined(parts)


def _both(
    graph: Graph,
    ball: Ball,
    norm_in: Norm,
    device: torch.device,
    known: Mapping[str, Facts],
    expired: Callable[[], bool],
    keys: str,
    refine: Refine | None,
    first: FormBounds | None,
) -> FormBounds:
    """A sweep over the graph as it is, and, where that is loose, one with keys centred that knows the facts of the first."""
    other = None if keys == "kept" else centred(graph)
    if first is None:
        if keys == "centred" and other is not None:
            return _swept(other.to(device=device), graph, ball, norm_in, device, known, expired)
        first = _swept(graph, graph, ball, norm_in, device, known, expired, refine)
        loose = bool((first.rows.amax(1) > LOOSE * first.reference.amax(1)).any())
        other = other if loose else None
    if other is None:
        return first
    more = dict(known)
    for name, facts in first.ranges.items():
        more[name] = facts.meet(more[name]) if name in more else facts
    try:
        second = _swept(
            other.to(device=device), graph, ball, norm_in, device, more, expired, rival=first.ranges
        )
    except Looser:
        return first
    except Undecided:
        return replace(first, notes=(*first.notes, "the budget ended before keys were centred"))
    return first.meet(second)


def joined(parts: list[FormBounds]) -> FormBounds:
    """Bounds over some balls and others of one graph; ranges and strips of nodes that all parts looked at."""
    if len(parts) == 1:
        return parts[0]
    names = [name for name in parts[0].ranges if all(name in part.ranges for part in parts)]
    strips = [name for name in parts[0].strips if all(name in part.strips for part in parts)]
    spectral = [part.spectral for part in parts if part.spectral is not None]
    return FormBounds(
        Interval(
            torch.cat([part.output.lower for part in parts]), torch.cat([part.output.upper for part in parts])
        ),
        torch.cat([part.rows for part in parts]),
        torch.cat([part.reference for part in parts]),
        torch.cat(spectral) if spectral else None,
        {name: Facts.joined([part.ranges[name] for part in parts]) for name in names},
        max(part.symbols for part in parts),
        {name: Strip.joined([part.strips[name] for part in parts]) for name in strips},
        tuple(dict.fromkeys(note for part in parts for note in part.notes)),
    )


def _facts(box: Interval, ball: Ball, norm_in: Norm) -> Facts:
    kinds = len(dict.fromkeys((ball.norm.dual, norm_in.dual)))
    size = len(box.lower), kinds, *box.lower.shape[1:]
    return Facts(
        box.lower, box.upper, torch.full(size, torch.inf, dtype=torch.float64, device=box.lower.device)
    )


def _swept(
    graph: Graph,
    original: Graph,
    ball: Ball,
    norm_in: Norm,
    device: torch.device,
    known: Mapping[str, Facts],
    expired: Callable[[], bool],
    refine: Refine | None = None,
    rival: Mapping[str, Facts] | None = None,
) -> FormBounds:
    """One sweep and what it says about the output. known, rival: facts about nodes of the original graph."""
    domain = Domain.of(ball, norm_in, device)
    sweep = Sweep.start(graph, domain, memory_of(device), known, expired, refine, rival)
    form = sweep.run()
    output = graph.output
    facts = sweep.ask(output.name)
    asked = domain.kinds.index(norm_in.dual)
    size = domain.count, output.size
    rows = facts.slopes[:, asked].reshape(size)
    reference, spectral = torch.zeros_like(rows), None
    if form.matrix is not None:
        flat = form.matrix.flatten(2)
        reference = domain.sizes(flat[:, : domain.rows])[:, 1 + asked]
        if sweep.symbols.two is not None:
            two = sweep.symbols.two
            spectral = joint_norm(
                sweep.symbols, flat, facts.slopes[:, two].reshape(size), form.slack[:, 1 + two].reshape(size)
            )
    names = {node.name for node in original.nodes}
    return FormBounds(
        Interval(facts.lower, facts.upper),
        rows,
        reference,
        spectral,
        {name: found for name, found in sweep.facts.items() if name in names},
        sweep.symbols.errors.shape[2],
        {name: strip for name, strip in sweep.strips.items() if name in names},
    )
