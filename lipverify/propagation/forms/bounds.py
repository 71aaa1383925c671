"""Bounds from affine forms: gradients of the outputs, their values, and ranges on the way."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from lipverify.errors import Undecided, UnsupportedModel, UsageError
from lipverify.ir.graph import Graph
from lipverify.ir.interval import Interval
from lipverify.ir.norm import Norm
from lipverify.ir.region import Ball
from lipverify.propagation.forms.centring import centred
from lipverify.propagation.forms.domain import Domain
from lipverify.propagation.forms.nonlinear import covers
from lipverify.propagation.forms.sweep import Sweep
from lipverify.propagation.forms.symbols import Facts
from lipverify.propagation.knowledge import is_affine

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
            self.notes + other.notes,
        )


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
    both: bool = True,
) -> FormBounds:
    """Bounds over every ball by affine forms of values and gradients with shared symbols.

    Statement: for every x in the ball of row b, the outputs lie in `output`; gradients of the outputs (almost everywhere,
        which is enough for differences over the convex ball) have a dual norm of at most `rows`.
    Source: affine arithmetic (Stolfi, de Figueiredo 1997) of values and of derivatives together; the telescoping identity and
        the rules of the nodes are in `symbols`, `bilinear`, `softmax` and `normalised`.
    Sound when: `interval`, `slopes` and `relax` rules are right; rounding is charged as `gamma` of absolute terms.

    Args:
        within: ranges of some nodes over the same balls, on the device.
        expired: asked at every node.
        both: also with keys centred, where the first sweep is loose.

    Raises:
        UnsupportedModel: a node without a form, not bounded over a ball, or too large; it is named. Undecided: no time.
        UsageError: the centres have another shape than the input.
    """
    if tuple(ball.center.shape[1:]) != graph.input_shape:
        found = list(ball.center.shape[1:])
        raise UsageError(f"the centres have shape {found}; the model takes {list(graph.input_shape)}")
    reason = refuses_forms(graph)
    if reason is not None:
        raise UnsupportedModel(reason)
    exact = graph.to(dtype=torch.float64, device=device)
    boxes = {name: _facts(box, ball, norm_in) for name, box in (within or {}).items()}
    with torch.no_grad():
        first = _swept(exact, exact, ball, norm_in, device, boxes, expired)
        other = centred(exact) if both else None
        if other is None or not bool((first.rows.amax(1) > LOOSE * first.reference.amax(1)).any()):
            return first
        known = dict(boxes)
        for name, facts in first.ranges.items():
            known[name] = facts.meet(known[name]) if name in known else facts
        try:
            return first.meet(_swept(other.to(device=device), exact, ball, norm_in, device, known, expired))
        except Undecided:
            return replace(first, notes=("the budget ended before keys were centred",))


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
) -> FormBounds:
    """One sweep and what it says about the output. known: facts about nodes of the original graph."""
    domain = Domain.of(ball, norm_in, device)
    sweep = Sweep.start(graph, domain, memory_of(device), known, expired)
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
            spectral = sweep.symbols.spectral(
                flat, facts.slopes[:, two].reshape(size), form.slack[:, 1 + two].reshape(size)
            )
    names = {node.name for node in original.nodes}
    return FormBounds(
        Interval(facts.lower, facts.upper),
        rows,
        reference,
        spectral,
        {name: found for name, found in sweep.facts.items() if name in names},
        sweep.symbols.errors.shape[2],
    )
