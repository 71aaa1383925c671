"""Ranges by linear bounds: each value that a non-affine operator reads is bounded as an affine function of the input."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from lipverify import ops
from lipverify.errors import InternalError, Undecided, UnsupportedModel, UsageError
from lipverify.ir.graph import Graph, Node
from lipverify.ir.interval import Interval
from lipverify.ir.norm import Norm
from lipverify.ir.op import Constant, Input
from lipverify.ir.region import Ball, misfit
from lipverify.ir.shown import Shown
from lipverify.ops.change import undecided
from lipverify.propagation.forms import FormBounds, affordable, form_bounds, joined, mixes, refuses_forms
from lipverify.propagation.forms.sweep import Sweep
from lipverify.propagation.forms.symbols import Facts
from lipverify.propagation.functionals import Functionals, ends_of
from lipverify.propagation.knowledge import Knowledge, chunk_memory, is_affine
from lipverify.propagation.precision import PRECISIONS, own_products
from lipverify.propagation.searched import searched_upper
from lipverify.propagation.selections import compared, selects
from lipverify.propagation.strips import Strip
from lipverify.rules import slopes

_ENTRYWISE = (ops.Scale, ops.BatchNorm, ops.DivideBy, ops.Reshape, ops.Transpose)
"""Affine operators whose entries depend on one entry each, and on another one each: interval arithmetic loses nothing."""
_COPIES = (ops.Slice, ops.Gather, ops.Pad, ops.Upsample, ops.DepthToSpace, ops.Expand, ops.Concat)


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
        targets = set() if method == "interval" else _targets(known.graph, ball.norm, known.strips)
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
                known.ranges[node.name] = _tightened(known, node, memory, expired)
                if method == "alpha":
                    known.ranges[node.name] = _searched(known, node, memory, expired)
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
            targets.update(_targets(graph, ball.norm, _mixing(graph)))
        box = known.image(graph[name])
        known.ranges[name] = known.meet(box, Interval(facts.lower, facts.upper))
        if name in targets and not expired():
            known.ranges[name] = _tightened(known, graph[name], memory, expired)
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


def _mixing(graph: Graph) -> set[str]:
    """Nodes that get strips from forms."""
    kinds = (ops.MatMul, ops.Mul, ops.Softmax, ops.MaskedSoftmax)
    return {node.name for node in graph.nodes if isinstance(node.op, kinds)}


def _targets(graph: Graph, norm: Norm, strips: Container[str] = ()) -> set[str]:
    """Nodes worth a backward pass: affine ones (or with strips), loose so far, that a non-affine operator (or nobody) reads.

    Interval arithmetic is exact on a box while entries do not meet: through entrywise maps, and through one sum of
    independent entries. It is loose behind a second sum, and behind any sum over an l2 ball.
    """
    independent, loose, chosen = set[str](), set[str](), set[str]()
    for node in graph.nodes:
        if isinstance(node.op, Input):
            independent.update({node.name} if norm is Norm.LINF else ())
        elif node.name in strips:
            loose.add(node.name)
        elif isinstance(node.op, Constant) or not is_affine(node):
            continue
        elif isinstance(node.op, _ENTRYWISE):
            independent.update({node.name} if node.inputs[0] in independent else ())
            loose.update({node.name} if node.inputs[0] in loose else ())
        elif isinstance(node.op, _COPIES):
            loose.update({node.name} if any(name in loose for name in node.inputs) else ())
        elif not (len(node.inputs) == 1 and node.inputs[0] in independent):
            loose.add(node.name)
        readers = [graph[name] for name in graph.consumers[node.name]]
        read = not readers or node.name == graph.output.name or any(not is_affine(r) for r in readers)
        if read and node.name in loose:
            chosen.add(node.name)
            loose.discard(node.name)
    return chosen


def _tightened(known: Knowledge, node: Node, memory: int, expired: Callable[[], bool]) -> Interval:
    """The node's range intersected with linear bounds of the entries that need it."""
    box = known.ranges[node.name]
    lower, upper = box.lower.clone().flatten(1), box.upper.clone().flatten(1)
    rows = torch.nonzero(_unsettled(known, node, lower, upper))
    widest = max(n.size for n in known.graph.nodes)
    chunk = max(1, memory // (2 * 8 * 6 * widest))
    before = known.graph.nodes[: [n.name for n in known.graph.nodes].index(node.name) + 1]
    for start in range(0, len(rows), chunk):
        if expired():
            break
        _push(known, node, before, rows[start : start + chunk], lower, upper)
    shape = (known.count, *node.shape)
    return Interval(lower.reshape(shape), upper.reshape(shape))


def _push(
    known: Knowledge, node: Node, before: tuple[Node, ...], rows: Tensor, lower: Tensor, upper: Tensor
) -> None:
    """Bounds of the entries `rows` [n, 2] (centre, entry), from both sides, written into lower and upper.

    At each non-affine node on the way the ranges of the frontier already give a bound: what it settles goes no further.
    """
    owner, entry = rows[:, 0], rows[:, 1]
    start = lower.new_zeros(len(rows), node.size, dtype=known.precision.dtype)
    start[torch.arange(len(rows), device=rows.device), entry] = 1.0
    walk = Functionals.start(known, {node.name: start.reshape(-1, *node.shape)}, owner)
    for step in reversed(before):
        if step.name not in walk.coefficients or isinstance(step.op, Input):
            continue
        # Without a plane both sides are the same functional: a constant only adds to it, as an affine node does.
        if is_affine(step) or isinstance(step.op, Constant):
            walk.step(step)
            continue
        if not walk.mirrored:
            walk.mirror()
        walk.step(step)
        if step.name == node.name:
            continue
        _write(known, walk.ends(), owner, entry, lower, upper)
        open_rows = _unsettled(known, node, lower, upper)[owner, entry]
        if int(open_rows.sum()) < 0.9 * len(owner):
            walk.keep(open_rows)
            owner, entry = owner[open_rows], entry[open_rows]
            if len(owner) == 0:
                return
    if not walk.mirrored:
        walk.mirror()
    _write(known, walk.ends(), owner, entry, lower, upper)


def _searched(known: Knowledge, node: Node, memory: int, expired: Callable[[], bool]) -> Interval:
    """The node's range intersected with bounds by searched planes, for the entries whose range still matters."""
    box = known.ranges[node.name]
    lower, upper = box.lower.clone().flatten(1), box.upper.clone().flatten(1)
    rows = torch.nonzero(_unsettled(known, node, lower, upper))
    before = known.graph.nodes[: [n.name for n in known.graph.nodes].index(node.name) + 1]
    # Both signs; slopes, their moments and gradients, and the coefficients kept for differentiation.
    chunk = max(1, memory // (2 * 8 * 12 * sum(n.size for n in before)))
    for some in rows.split(chunk) if len(rows) else ():
        if expired():
            break
        owner, entry = some.T
        place = torch.arange(len(some), device=rows.device)
        start = lower.new_zeros(2 * len(some), node.size)
        start[2 * place, entry], start[2 * place + 1, entry] = 1.0, -1.0
        found = searched_upper(
            known, node, start.reshape(-1, *node.shape), owner.repeat_interleave(2), before
        )
        _write(known, ends_of(found), owner, entry, lower, upper)
    shape = (known.count, *node.shape)
    return Interval(lower.reshape(shape), upper.reshape(shape))


def _write(
    known: Knowledge, found: tuple[Tensor, Tensor], owner: Tensor, entry: Tensor, lower: Tensor, upper: Tensor
) -> None:
    """Intersects with found: lower and upper bounds of the entries, [n] each.

    Where the ends cross the part of the ball is empty, and the entry stays as it was.
    """
    if not found[0].shape == found[1].shape == owner.shape:
        raise InternalError(f"{len(owner)} entries have bounds of shape {list(found[0].shape)}")
    low = torch.maximum(lower[owner, entry], found[0])
    high = torch.minimum(upper[owner, entry], found[1])
    if known.empty is not None:
        apart = low > high
        known.empty[owner[apart]] = True
        high, low = (
            torch.where(apart, upper[owner, entry], high),
            torch.where(apart, lower[owner, entry], low),
        )
    upper[owner, entry], lower[owner, entry] = high, low


def _unsettled(known: Knowledge, node: Node, lower: Tensor, upper: Tensor) -> Tensor:
    """Entries [count, size] whose range matters: those where some reader is not yet affine on the range."""
    readers = [known.graph[name] for name in known.graph.consumers[node.name]]
    everything = torch.ones_like(lower, dtype=torch.bool)
    if node.name == known.graph.output.name or not readers:
        return everything
    needed = torch.zeros_like(everything)
    box = Interval(lower.reshape(-1, *node.shape), upper.reshape(-1, *node.shape))
    for reader in readers:
        if is_affine(reader):
            continue
        found = _wanted(known, reader, node.name, box)
        if found is None:
            return everything
        needed |= found.expand(box.lower.shape).flatten(1)
    return needed


def _wanted(known: Knowledge, reader: Node, name: str, box: Interval) -> Tensor | None:
    """Entries of an input `name` with this box that a node which is not affine can still use: None for all of them."""
    op = reader.op
    if isinstance(op, ops.Same):  # it hands the value on
        if reader.name == known.graph.output.name:
            return None
        nodes = [known.graph[each] for each in known.graph.consumers[reader.name]]
        parts = [_wanted(known, each, reader.name, box) for each in nodes]
        if not parts or any(part is None for part in parts):
            return None
        return torch.stack([part.expand(box.lower.shape) for part in parts if part is not None]).any(0)
    if isinstance(op, ops.Maximum):
        # What another term exceeds everywhere is never the maximum, however small it is.
        others = [known.ranges.get(each) for each in reader.inputs if each != name]
        exceeded = [box.upper < other.lower for other in others if other is not None]
        return ~torch.stack([part.expand(box.lower.shape) for part in exceeded]).any(0) if exceeded else None
    try:
        if isinstance(op, ops.Change) and len(reader.inputs) == 3 and slopes.covers(type(op.of)):
            place = reader.inputs.index(name)
            if place > 0:
                return undecided(op, box, box)
            ends = [known.ranges.get(each) for each in reader.inputs[1:]]
            return None if ends[0] is None or ends[1] is None else undecided(op, ends[0], ends[1])
        if not slopes.covers(type(op)):
            return None
        found = slopes(op, box, known.graph[name].shape)
    except UnsupportedModel:
        return None
    return found.lower < found.upper
