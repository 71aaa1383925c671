"""Ranges by linear bounds: each value that a non-affine operator reads is bounded as an affine function of the input."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from lipverify import ops
from lipverify.errors import Undecided, UnsupportedModel, UsageError
from lipverify.ir.graph import Graph
from lipverify.ir.interval import Interval
from lipverify.ir.op import Constant, Input
from lipverify.ir.region import Ball, misfit
from lipverify.ir.shown import Shown
from lipverify.ops.curves import curve
from lipverify.propagation.forms import FormBounds, affordable, form_bounds, joined, mixes, refuses_forms
from lipverify.propagation.forms.sweep import Sweep
from lipverify.propagation.forms.symbols import Facts
from lipverify.propagation.forms.unit import Unit
from lipverify.propagation.knowledge import Knowledge, chunk_memory, is_affine
from lipverify.propagation.precision import PRECISIONS, own_products
from lipverify.propagation.selections import compared, selects
from lipverify.propagation.strips import Strip
from lipverify.propagation.tightening import narrows, searched, tightened
from lipverify.propagation.tightening import targets as targets_of

LAST = 4
"""Nodes whose ranges are looked at to see whether linear bounds tell more than forms."""
_MIXING = (ops.MatMul, ops.Mul, ops.Softmax, ops.MaskedSoftmax)
"""Operators that get strips from forms."""


def never() -> bool:
    """There is no deadline."""
    return False


@dataclass(frozen=True)
class Bounds(Shown, Mapping[str, Interval]):
    """Ranges of all nodes: node name -> Interval of [count of centres, *shape]; `output` is the selected output's."""

    known: Knowledge
    forms: FormBounds | None = None
    """What affine forms say, where the graph has operators that mix entries of computed values."""

    def __repr__(self) -> str:
        return f"Bounds(ranges of {len(self)} nodes over {self.known.ball!r})"

    def __getitem__(self, name: str) -> Interval:
        return self.known.ranges[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.known.ranges)

    def __len__(self) -> int:
        return len(self.known.ranges)

    @property
    def empty(self) -> Tensor:
        """Centres whose part of the ball was found to hold no input at all: [count]."""
        if self.known.empty is None:
            return torch.zeros(self.known.count, dtype=torch.bool, device=self.output.lower.device)
        return self.known.empty

    @property
    def output(self) -> Interval:
        """The range of the selected output, [count, *output shape]."""
        return self[self.known.graph.output.name]


def bounds(
    graph: Graph,
    ball: Ball,
    *,
    method: str = "linear",
    device: str | torch.device = "cpu",
    memory: int | None = None,
    within: Mapping[str, Interval] | None = None,
    precision: str = "float64",
    expired: Callable[[], bool] = never,
    at_once: int | None = None,
) -> Bounds:
    """The range of every node's value over every ball.

    Statement: for every x in the ball around centre c (cut by its box), node n's value lies in bounds[n] at row c, entry by
        entry, rounding included.
    Source: CROWN, Zhang et al., NeurIPS 2018 (arXiv 1811.00866), on DAGs as Xu et al., NeurIPS 2020 (arXiv 2002.12920);
        intersected with interval arithmetic (Moore 1966). Rounding as in `propagation.functionals`.
        Graphs with attention or normalisation of features: affine forms (`propagation.forms`) before and after, and linear bounds
        by the affine maps those forms found near products, softmax and normalisation.
    Sound when: `forward` of the affine operators and the `interval`, `slopes` and `relax` rules of the others are right.

    Args:
        method: `linear`, `interval` for interval arithmetic alone, or `alpha` for linear bounds with lower planes of ReLU
            searched for every value (`propagation.searched`): never looser, a few dozen times slower.
        device: where to compute.
        memory: bytes that the coefficients of one chunk of rows may take; by default `chunk_memory` of the device.
        within: ranges of some nodes, on the same device: only inputs whose values lie in them count. The result is inside
            them; where no input is left, `Bounds.empty` says so as far as it was noticed.
        precision: of the coefficients, `float64`, or `float32` with all that its rounding may change added outward: looser
            by that, and faster where there are convolutions or no fast float64. Ranges are float64 always.
        expired: asked again and again; once it says yes no range is tightened any more, and interval arithmetic remains.
        at_once: balls that are taken together: where time ends the first ones are finished, and the last ones not begun.

    Raises:
        UnsupportedModel: an operator without an interval rule, or not bounded on its range; the node is named.
        UsageError: the centres have another shape than the input.
    """
    if (why := misfit(ball.center, graph.input_shape)) is not None:
        raise UsageError(why)
    if method not in {"linear", "interval", "alpha"}:
        raise UsageError(f"unknown method {method!r}; choose linear, alpha or interval")
    if precision not in PRECISIONS:
        raise UsageError(f"unknown precision {precision!r}; choose {' or '.join(PRECISIONS)}")
    memory = chunk_memory(torch.device(device)) if memory is None else memory
    if mixes(graph):
        at_once = min(affordable(graph, torch.device(device)), at_once or len(ball))
    at_once = max(at_once or len(ball), 1)
    if method != "interval" and len(ball) > at_once:
        return _joined(
            [
                bounds(
                    graph,
                    ball[some],
                    method=method,
                    device=device,
                    memory=memory,
                    within=within
                    and {name: Interval(b.lower[some], b.upper[some]) for name, b in within.items()},
                    precision=precision,
                    expired=expired,
                )
                for some in (slice(start, start + at_once) for start in range(0, len(ball), at_once))
            ],
            ball,
        )
    # Tighter ranges choose other planes, which may be looser further on: the plain ranges hold as well.
    plain = None
    if method == "alpha":
        plain = bounds(
            graph,
            ball,
            method="linear",
            device=device,
            memory=memory,
            within=within,
            precision=precision,
            expired=expired,
        )
    kind = PRECISIONS[precision]
    with torch.no_grad(), own_products(kind, torch.device(device)):
        known = Knowledge.of(graph, ball, torch.device(device), kind)
        forms = None
        if method == "linear" and within is None:
            forms = _together(known, ball, memory, expired)
            if forms is not None:
                return Bounds(known, forms)
        elif method != "interval":
            forms = _forms(known, ball, expired)
            known.strips = {} if forms is None else dict(forms.strips)
        targets = set() if method == "interval" else targets_of(known.graph, ball.norm, known.strips)
        if within is not None:
            known.empty = torch.zeros(known.count, dtype=torch.bool, device=known.box.lower.device)
        if plain is not None and known.empty is not None:
            known.empty |= plain.empty
        for node in known.graph.nodes:
            if selects(node) and method != "interval":
                known.possible[node.name] = compared(known, node, memory, expired)
            box = known.image(node)
            if within is not None and node.name in within:
                box = known.meet(box, within[node.name])
                if isinstance(node.op, Input):
                    known.box, known.cut = box, True
            if plain is not None:
                box = known.meet(box, plain[node.name])
            if forms is not None and node.name in forms.ranges:
                facts = forms.ranges[node.name]
                box = known.meet(box, Interval(facts.lower, facts.upper))
            known.ranges[node.name] = box
            if node.name in targets:
                known.ranges[node.name] = tightened(known, node, memory, expired)
                if method == "alpha":
                    known.ranges[node.name] = searched(known, node, memory, expired)
    return Bounds(known, forms)


def _joined(parts: list[Bounds], ball: Ball) -> Bounds:
    """Bounds over some balls and others of one graph."""
    first = parts[0].known
    box = Interval(
        *(
            torch.cat(ends)
            for ends in zip(*((p.known.box.lower, p.known.box.upper) for p in parts), strict=True)
        )
    )
    known = Knowledge(first.graph, ball, box, cut=first.cut, precision=first.precision)
    for name in first.ranges:
        ends = zip(*((p[name].lower, p[name].upper) for p in parts), strict=True)
        known.ranges[name] = Interval(*(torch.cat(end) for end in ends))
    for name in first.possible:
        if all(name in part.known.possible for part in parts):
            known.possible[name] = torch.cat([part.known.possible[name] for part in parts], 1)
    for name in first.strips:
        if all(name in part.known.strips for part in parts):
            known.strips[name] = Strip.joined([part.known.strips[name] for part in parts])
    if first.empty is not None:
        known.empty = torch.cat([part.empty for part in parts])
    forms = [part.forms for part in parts if part.forms is not None]
    return Bounds(known, joined(forms) if len(forms) == len(parts) else None)


def _forms(known: Knowledge, ball: Ball, expired: Callable[[], bool]) -> FormBounds | None:
    """Bounds by affine forms for graphs that have operators without planes; None where they cannot be had."""
    if not mixes(known.graph) or refuses_forms(known.graph) is not None:
        return None
    try:
        return form_bounds(known.graph, ball, ball.norm, device=known.box.lower.device, expired=expired)
    except (UnsupportedModel, Undecided):
        return None


def _together(known: Knowledge, ball: Ball, memory: int, expired: Callable[[], bool]) -> FormBounds | None:
    """Fills all ranges by affine forms and linear bounds, node by node, each inside what the other found before."""
    graph = known.graph
    if not mixes(graph) or refuses_forms(graph) is not None:
        return None
    places = {node.name: place for place, node in enumerate(graph.nodes)}
    targets: set[str] = set()

    def filled(until: int, sweep: Sweep | None) -> None:
        for node in graph.nodes[:until]:
            if node.name not in known.ranges:
                known.ranges[node.name] = known.image(node)
                if sweep is not None and node.name in sweep.facts:
                    facts = sweep.facts[node.name]
                    box = Interval(facts.lower, facts.upper)
                    known.ranges[node.name] = known.meet(known.ranges[node.name], box)

    def refine(sweep: Sweep, name: str, facts: Facts) -> Interval:
        known.strips = sweep.strips
        filled(places[name], sweep)
        if not targets:
            bent = _bent(graph)
            # Before them both are the same affine functions, but where forms were given up, which nothing narrows by much.
            targets.update(
                node for node in targets_of(graph, ball.norm, _mixing(graph)) if places[node] > bent
            )
        box = known.image(graph[name])
        known.ranges[name] = known.meet(box, Interval(facts.lower, facts.upper))
        if name in targets and not expired():
            known.ranges[name] = tightened(known, graph[name], memory, expired, tried=True)
        return known.ranges[name]

    try:
        found = form_bounds(
            graph,
            ball,
            ball.norm,
            device=known.box.lower.device,
            expired=expired,
            keys="kept",
            refine=refine,
        )
    except (UnsupportedModel, Undecided):
        known.ranges.clear()
        known.strips = {}
        known._planes.clear()
        known._sizes.clear()
        return None
    filled(len(graph.nodes), None)
    return found


def tells_more(
    graph: Graph, ball: Ball, forms: FormBounds, device: torch.device, expired: Callable[[], bool] = never
) -> bool:
    """Whether linear bounds narrow any of the last ranges that forms gave: tried with a few entries of each.

    Around nodes with two parallel lines both are the same affine functions. They differ where planes are not parallel.
    """
    with torch.no_grad():
        known = Knowledge.of(graph, ball, device)
        known.strips = dict(forms.strips)
        for node in known.graph.nodes:
            box = known.image(node)
            if node.name in forms.ranges:
                facts = forms.ranges[node.name]
                box = known.meet(box, Interval(facts.lower, facts.upper))
            known.ranges[node.name] = box
        targets = targets_of(known.graph, ball.norm, known.strips)
        last = [node for node in reversed(known.graph.nodes) if node.name in targets]
        return narrows(known, last[:LAST], expired)


def _bent(graph: Graph) -> float:
    """The place of the first node whose planes are not parallel: neither a form's own line nor a smooth curve. Infinite: none."""
    kinds = (Input, Constant, *_MIXING, ops.LayerNorm, ops.RMSNorm, Unit)
    return next(
        (
            place
            for place, node in enumerate(graph.nodes)
            if not (isinstance(node.op, kinds) or is_affine(node) or curve.covers(type(node.op)))
        ),
        math.inf,
    )


def _mixing(graph: Graph) -> set[str]:
    """Nodes that get strips from forms."""
    return {node.name for node in graph.nodes if isinstance(node.op, _MIXING)}
