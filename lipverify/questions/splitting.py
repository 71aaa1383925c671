"""Facts over boxes of few inputs, refined by cutting the boxes: the worst parts first, across the input that decides most.

Legend: a part is a box [*input shape] inside one region; a region's range is the hull of those of its parts, which cover it.
Sound when: as `lipverify.bounds` within a box of inputs; what holds on a part holds on what it is cut into. Which parts are cut,
and where, may be chosen freely.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from torch import Tensor

from lipverify.analyzers.protocol import Compute
from lipverify.interpreter import evaluate, evaluate_all
from lipverify.ir.graph import Graph
from lipverify.ir.interval import Interval
from lipverify.ir.norm import Norm
from lipverify.ir.region import Ball
from lipverify.propagation import bounds
from lipverify.propagation.knowledge import is_affine

MOST_INPUTS = 12
"""Inputs up to which cutting them helps."""
_TINY = torch.finfo(torch.float64).tiny
DIRECTIONS = 8
"""Outputs, or random sums of them, whose gradients say where they may be large."""
LOOKED_AT = 22
"""Random inputs of every part that are looked at, beside its middle and those of its faces."""


@dataclass(frozen=True)
class Splitting:
    """batch: parts cut at once; parts: in all, with a budget and without one.

    near: a part is done when its value is at most so many times the largest one seen at an input of its region; with a budget
    and without one. gain: without a budget twice as many parts must be worth this part of the largest value, or it ends.
    remembered: numbers of ranges of nodes that parts keep for what they are cut into.
    """

    batch: int = 64
    parts: int = 200_000
    parts_without_budget: int = 128
    near: float = 1.02
    near_without_budget: float = 1.25
    gain: float = 0.05
    remembered: int = 1 << 26


@dataclass
class _Parts:
    """lower, upper [n, *input shape]; region, number [n]; facts: ranges [n, entries] of the output over each part.

    known: node -> range [n, *shape] over each part, of the nodes that `remembered` chose.
    """

    lower: Tensor
    upper: Tensor
    region: Tensor
    number: Tensor
    facts: Interval
    known: dict[str, Interval] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.lower)

    def take(self, rows: Tensor) -> _Parts:
        """Some parts, by their numbers or by a mask."""
        known = {name: _rows(box, rows) for name, box in self.known.items()}
        return _Parts(
            self.lower[rows],
            self.upper[rows],
            self.region[rows],
            self.number[rows],
            _rows(self.facts, rows),
            known,
        )

    def joined(self, other: _Parts) -> _Parts:
        """Parts of both."""
        return _Parts(
            torch.cat([self.lower, other.lower]),
            torch.cat([self.upper, other.upper]),
            torch.cat([self.region, other.region]),
            torch.cat([self.number, other.number]),
            _stacked(self.facts, other.facts),
            {
                name: _stacked(box, other.known[name])
                for name, box in self.known.items()
                if name in other.known
            },
        )

    def hull(self, count: int) -> Interval:
        """The ranges of the regions: [count, entries]."""
        size = self.facts.lower.shape[1]
        index = self.region[:, None].expand(-1, size)
        low = torch.full((count, size), torch.inf, dtype=torch.float64)
        high = torch.full((count, size), -torch.inf, dtype=torch.float64)
        return Interval(
            low.scatter_reduce(0, index, self.facts.lower, "amin"),
            high.scatter_reduce(0, index, self.facts.upper, "amax"),
        )


def _rows(box: Interval, rows: Tensor) -> Interval:
    return Interval(box.lower[rows], box.upper[rows])


def _stacked(first: Interval, second: Interval) -> Interval:
    return Interval(torch.cat([first.lower, second.lower]), torch.cat([first.upper, second.upper]))


class Cut(NamedTuple):
    """Where a part was cut: across which input (of the flat ones), at which number, and the numbers of its halves."""

    axis: int
    at: float
    above: int
    below: int


class Tree:
    """Parts of regions, cut into halves and bounded many at a time.

    Args:
        graph: what is bounded, in float64. first: ranges [count, entries] over each region to begin with.
        value: of ranges [n, entries], what is to become small: [n].
        moving: a graph of the same input whose neurons have a vote on where parts are cut.

    Attributes: values: of every part, by its number; parts 0 .. count - 1 are the regions. cuts: of those that were cut.
    seen [count], far [count, *input shape]: the largest value met at an input of each region, and where; not trusted.
    """

    def __init__(
        self,
        graph: Graph,
        region: Ball,
        first: Interval,
        value: Callable[[Interval], Tensor],
        compute: Compute,
        *,
        moving: Graph,
        kept: Sequence[str] = (),
    ) -> None:
        self.graph, self.moving, self.value, self.compute = graph, moving, value, compute
        self.count, self.kept = len(region), tuple(kept)
        box = region.enclosure()
        numbers = torch.arange(self.count)
        self._open = _Parts(box.lower, box.upper, numbers, numbers, first)
        self._done = self._open.take(torch.zeros(0, dtype=torch.int64))
        self.values: list[float] = value(first).tolist()
        self.cuts: dict[int, Cut] = {}
        self.seen = torch.zeros(self.count, dtype=torch.float64)
        self.far = region.center.to(dtype=torch.float64).clone()
        self._rng = torch.Generator().manual_seed(compute.seed)
        self._read = _read_by_others(moving)

    def __len__(self) -> int:
        """Parts that are not cut."""
        return len(self._open) + len(self._done)

    def ratio(self) -> float:
        """How far the worst part is from the largest value seen in its region; 0 where no part is open."""
        return float(self._score(self._open).max()) if len(self._open) else 0.0

    def _score(self, parts: _Parts) -> Tensor:
        return self.value(parts.facts) / self.seen[parts.region].clamp_min(_TINY)

    def hull(self) -> Interval:
        """Ranges [count, entries] over each region."""
        return self._open.joined(self._done).hull(self.count)

    def worst(self) -> float:
        """The largest value of all parts."""
        return float(self.value(self._open.joined(self._done).facts).max())

    def grow(self, near: float, batch: int) -> bool:
        """Cuts the worst parts, a batch of them; those `near` the largest value seen are done. False: nothing is left."""
        score = self._score(self._open)
        done = score <= near
        self._done = self._done.joined(replace(self._open.take(done), known={}))
        self._open, score = self._open.take(~done), score[~done]
        if not len(self._open):
            return False
        worst = score.argsort(descending=True, stable=True)
        some, rest = self._open.take(worst[:batch]), self._open.take(worst[batch:])
        halves = self._halves(some, self._axes(some))
        if halves is None:
            return False
        halves = _bounded(self.graph, halves, self.kept, self.compute)
        self.values += self.value(halves.facts).tolist()
        self._open = halves.joined(rest)
        return True

    def _axes(self, parts: _Parts) -> Tensor:
        """For each part the input whose halving decides most neurons: [n, 1]. What is met on the way is remembered.

        A neuron that is on at some inputs of the part and off at others is where linear bounds lose: it has one vote, shared
        among the inputs as their widths move it. Where there is none, the input that moves the outputs most.
        """
        low, high = parts.lower.flatten(1), parts.upper.flatten(1)
        n, inputs = low.shape
        shape = parts.lower.shape[1:]
        center, width = low / 2 + high / 2, high - low
        step = torch.diag_embed(width / 2)
        inner = low[:, None] + width[:, None] * torch.rand(
            n, LOOKED_AT, inputs, generator=self._rng, dtype=torch.float64
        )
        x = torch.cat([center[:, None] + step, center[:, None] - step, center[:, None], inner], 1)
        x = torch.minimum(torch.maximum(x, low[:, None]), high[:, None])
        values = evaluate_all(self.moving, x.reshape(-1, *shape))
        votes = torch.zeros(n, inputs, dtype=torch.float64)
        for name in self._read:
            votes += _shared(values[name].reshape(n, x.shape[1], -1), inputs, undecided_alone=True)
        moved = _shared(
            values[self.moving.output.name].reshape(n, x.shape[1], -1), inputs, undecided_alone=False
        )
        votes = torch.where(votes.amax(1, keepdim=True) > 0, votes, moved)
        self._met(parts, x)
        for found in _candidates(self.graph, parts):
            self._met(parts, found.flatten(1)[:, None])
        # A little for the width alone, so that every input has its turn.
        most = votes.amax(1, keepdim=True).clamp_min(1e-300)
        return (votes / most + 0.05 * width / width.amax(1, keepdim=True)).argmax(1, keepdim=True)

    def _met(self, parts: _Parts, x: Tensor) -> None:
        """Values at inputs [n, k, inputs] of parts."""
        y = evaluate(self.graph, x.reshape(-1, *parts.lower.shape[1:])).flatten(1)
        found = self.value(Interval(y, y)).reshape(x.shape[:2])
        best, place = found.max(1)
        for row in (best > self.seen[parts.region]).nonzero().flatten().tolist():
            region = int(parts.region[row])
            if float(best[row]) > float(self.seen[region]):
                self.seen[region] = best[row]
                self.far[region] = x[row, place[row]].reshape(self.far.shape[1:])

    def _halves(self, parts: _Parts, axis: Tensor) -> _Parts | None:
        """Each part cut in the middle across its input `axis` [n, 1]: those above, then those below. None where one cannot be
        cut any more."""
        lower, upper = parts.lower.flatten(1), parts.upper.flatten(1)
        low, high = lower.gather(1, axis), upper.gather(1, axis)
        middle = low / 2 + high / 2
        if not bool(((low < middle) & (middle < high)).all()):
            return None
        shape = parts.lower.shape[1:]
        both = parts.take(torch.arange(len(parts)).repeat(2))
        both.lower = torch.cat([lower.scatter(1, axis, middle), lower]).reshape(-1, *shape)
        both.upper = torch.cat([upper, upper.scatter(1, axis, middle)]).reshape(-1, *shape)
        both.number = len(self.values) + torch.arange(2 * len(parts))
        numbers, places, ends = (each.tolist() for each in (parts.number, axis[:, 0], middle[:, 0]))
        above, below = (half.tolist() for half in both.number.chunk(2))
        self.cuts |= {
            number: Cut(*cut) for number, *cut in zip(numbers, places, ends, above, below, strict=True)
        }
        return both

    def leaves(self, region: int, most: int) -> set[int]:
        """At most so many parts that cover a region, the worst ones cut."""
        heap, found = [(-self.values[region], region)], set[int]()
        while heap and len(heap) + len(found) < most:
            _, number = heapq.heappop(heap)
            if number not in self.cuts:
                found.add(number)
                continue
            for half in self.cuts[number][2:]:
                heapq.heappush(heap, (-self.values[half], half))
        return found | {number for _, number in heap}


def _shared(values: Tensor, inputs: int, *, undecided_alone: bool) -> Tensor:
    """One vote of each neuron, shared among the inputs as their widths move it: [n, inputs].

    values [n, points, neurons]: at the ends of every input's width, those above first, then elsewhere in the part.
    """
    moved = (values[:, :inputs] - values[:, inputs : 2 * inputs]).abs()
    share = moved / moved.sum(1, keepdim=True).clamp_min(1e-300)
    if undecided_alone:
        share = share * ((values.amin(1) < 0) & (values.amax(1) > 0))[:, None]
    return share.sum(2)


def refined(
    graph: Graph,
    region: Ball,
    first: Interval,
    value: Callable[[Interval], Tensor],
    compute: Compute,
    settings: Splitting | None = None,
    moving: Graph | None = None,
) -> Iterator[Interval]:
    """Ranges [count, entries] of the flat output over each region, each inside the one before. None where regions are no boxes.

    Args:
        first: ranges to begin with. value: of ranges [n, entries], what is to become small: [n].
        moving: a graph of the same input whose neurons say where parts are cut. By default `graph`.
    """
    if not divisible(region):
        return
    settings = settings or Splitting()
    most, near = settings.parts, settings.near
    if compute.deadline is None:
        most, near = settings.parts_without_budget, settings.near_without_budget
    graph = graph.to(dtype=torch.float64).pruned()
    tree = Tree(
        graph,
        region,
        first,
        value,
        compute,
        moving=graph if moving is None else moving.to(dtype=torch.float64),
        kept=remembered(graph, settings.remembered // most),
    )
    stage, before = 4 * len(region), torch.inf
    while len(tree) < most and not compute.expired():
        if compute.deadline is None and len(tree) >= stage:
            now = tree.ratio()
            if now > (1.0 - settings.gain) * before:
                return
            stage, before = 2 * stage, now
        if not tree.grow(near, settings.batch):
            return
        yield tree.hull()


def divisible(region: Ball) -> bool:
    """Whether parts of the regions are boxes, of so few inputs that cutting them helps."""
    return region.norm is Norm.LINF and region.center[0].numel() <= MOST_INPUTS and region.radius > 0.0


def remembered(graph: Graph, numbers: int) -> tuple[str, ...]:
    """Nodes whose ranges parts keep: those whose ranges decide which planes are taken further on; none where they are too many.

    A neuron whose sign is known on a part has it on what the part is cut into: nothing is pushed back for it again.
    """
    names = [name for name in _read_by_others(graph) if graph[name].inputs]
    return tuple(names) if 2 * sum(graph[name].size for name in names) <= numbers else ()


def _gradients(graph: Graph, x: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Outputs at x, or random sums of them where they are many [n, k]; and the gradient of each, k times [n, *input shape]."""
    x = x.detach().requires_grad_(True)
    with torch.enable_grad():
        y = evaluate(graph, x).flatten(1)
        size = y.shape[1]
        rows = torch.eye(size, dtype=torch.float64)
        if size > DIRECTIONS:
            rng = torch.Generator().manual_seed(0)
            rows = torch.randn(DIRECTIONS, size, generator=rng, dtype=torch.float64)
        y = y @ rows.T
        found = [
            torch.autograd.grad(column.sum(), x, retain_graph=True, materialize_grads=True)[0]
            for column in y.unbind(1)
        ]
    return y.detach(), found


def _read_by_others(graph: Graph) -> tuple[str, ...]:
    """Nodes that operators read which are not affine."""
    return tuple(
        node.name
        for node in graph.nodes
        if any(not is_affine(graph[name]) for name in graph.consumers[node.name])
    )


def _candidates(graph: Graph, parts: _Parts) -> list[Tensor]:
    """Inputs in every part where the outputs may be large: each [n, *input shape]."""
    center = parts.lower / 2 + parts.upper / 2
    y, gradients = _gradients(graph, center)
    found = [torch.clamp(center, parts.lower, parts.upper)]
    for value, gradient in zip(y.unbind(1), gradients, strict=True):
        toward = gradient.sign() * value.sign().reshape(-1, *[1] * (gradient.ndim - 1))
        corner = torch.where(toward > 0, parts.upper, parts.lower)
        found.append(torch.where(toward == 0, found[0], corner))
    return found


def _bounded(graph: Graph, parts: _Parts, kept: tuple[str, ...], compute: Compute) -> _Parts:
    """The parts with ranges of their own, inside those of what they were cut from."""
    center = torch.minimum(torch.maximum(parts.lower / 2 + parts.upper / 2, parts.lower), parts.upper)
    reach = torch.maximum(parts.upper - center, center - parts.lower).max()
    ball = Ball(center, float(torch.nextafter(reach, reach.new_tensor(torch.inf))), Norm.LINF)
    within = {graph.input.name: Interval(parts.lower, parts.upper), **parts.known}
    within = {
        name: Interval(b.lower.to(compute.device), b.upper.to(compute.device)) for name, b in within.items()
    }
    found = bounds(graph, ball, within=within, device=compute.device, expired=compute.expired)
    lower, upper = found.output.lower.cpu().flatten(1), found.output.upper.cpu().flatten(1)
    facts = Interval(torch.maximum(lower, parts.facts.lower), torch.minimum(upper, parts.facts.upper))
    known = {name: Interval(found[name].lower.cpu(), found[name].upper.cpu()) for name in kept}
    return replace(parts, facts=facts, known=known)
