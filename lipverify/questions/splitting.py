"""Facts over boxes of few inputs, refined by cutting the boxes: the worst parts first, across the input that moves most.

Legend: a part is a box [*input shape] inside one region; a region's range is the hull of those of its parts, which cover it.
Sound when: as `lipverify.bounds` within a box of inputs; what holds on a part holds on what it is cut into. Which parts are cut,
and where, may be chosen freely.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from lipverify.analyzers.protocol import Compute
from lipverify.interpreter import evaluate
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
"""Outputs, or random sums of them, whose gradients say which input moves most."""


@dataclass(frozen=True)
class Splitting:
    """batch: parts cut at once; parts: in all, with a budget and without one.

    near: a part is done when its value is at most so many times the largest one seen at an input of its region; with a budget
    and without one. gain: without a budget twice as many parts must be worth this part of the largest value, or it ends.
    remembered: numbers of ranges of nodes that parts keep for what they are cut into.
    """

    batch: int = 16
    parts: int = 200_000
    parts_without_budget: int = 256
    near: float = 1.02
    near_without_budget: float = 1.25
    gain: float = 0.05
    remembered: int = 1 << 26


@dataclass
class _Parts:
    """lower, upper [n, *input shape]; region [n]; facts: ranges [n, entries] of the output over each part.

    known: node -> range [n, *shape] over each part, of the nodes that `remembered` chose.
    """

    lower: Tensor
    upper: Tensor
    region: Tensor
    facts: Interval
    known: dict[str, Interval] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.lower)

    def take(self, rows: Tensor) -> _Parts:
        """Some parts, by their numbers or by a mask."""
        known = {name: _rows(box, rows) for name, box in self.known.items()}
        return _Parts(self.lower[rows], self.upper[rows], self.region[rows], _rows(self.facts, rows), known)

    def joined(self, other: _Parts) -> _Parts:
        """Parts of both."""
        return _Parts(
            torch.cat([self.lower, other.lower]),
            torch.cat([self.upper, other.upper]),
            torch.cat([self.region, other.region]),
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
        moving: a graph of the same input; across the input that moves its outputs most, parts are cut. By default `graph`.
    """
    if region.norm is not Norm.LINF or graph.input.size > MOST_INPUTS or region.radius == 0.0:
        return
    settings = settings or Splitting()
    most, near = settings.parts, settings.near
    if compute.deadline is None:
        most, near = settings.parts_without_budget, settings.near_without_budget
    graph = graph.to(dtype=torch.float64).pruned()
    moving = graph if moving is None else moving.to(dtype=torch.float64)
    kept = _remembered(graph, settings.remembered // most)
    box = region.enclosure()
    tree = _Parts(box.lower, box.upper, torch.arange(len(region)), first)
    finished = tree.take(torch.zeros(0, dtype=torch.int64))
    # Not trusted: the largest value that was seen in a region says where cutting is worth its time.
    seen = torch.zeros(len(region), dtype=torch.float64)
    stage, before = 4 * len(region), torch.inf
    while len(tree) and len(tree) + len(finished) < most and not compute.expired():
        if compute.deadline is None and len(tree) + len(finished) >= stage:
            now = float((value(tree.facts) / seen[tree.region].clamp_min(_TINY)).max())
            if now > (1.0 - settings.gain) * before:
                return
            stage, before = 2 * stage, now
        score = value(tree.facts) / seen[tree.region].clamp_min(_TINY)
        done = score <= near
        finished = finished.joined(replace(tree.take(done), known={}))
        tree, score = tree.take(~done), score[~done]
        if not len(tree):
            return
        worst = score.argsort(descending=True, stable=True)
        some, rest = tree.take(worst[: settings.batch]), tree.take(worst[settings.batch :])
        axis = _steepest(moving, some)
        for found in _candidates(graph, some):
            y = evaluate(graph, found).flatten(1)
            seen.scatter_reduce_(0, some.region, value(Interval(y, y)), "amax")
        halves = _halves(some, axis)
        if halves is None:
            return
        tree = _bounded(graph, halves, kept, compute).joined(rest)
        yield tree.joined(finished).hull(len(region))


def _remembered(graph: Graph, numbers: int) -> tuple[str, ...]:
    """Nodes whose ranges parts keep: those whose ranges decide which planes are taken further on; none where they are too many.

    A neuron whose sign is known on a part has it on what the part is cut into: nothing is pushed back for it again.
    """
    names = [
        node.name
        for node in graph.nodes
        if node.inputs and any(not is_affine(graph[name]) for name in graph.consumers[node.name])
    ]
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


def _steepest(graph: Graph, parts: _Parts) -> Tensor:
    """For each part the input whose width moves the outputs most: [n, 1]."""
    _, gradients = _gradients(graph, parts.lower / 2 + parts.upper / 2)
    steep = torch.stack(gradients).abs().sum(0).flatten(1)
    width = (parts.upper - parts.lower).flatten(1)
    # A little for the width alone, so that every input has its turn.
    score = width * steep
    score = score / score.amax(1, keepdim=True).clamp_min(1e-300) + 0.05 * width / width.amax(1, keepdim=True)
    return score.argmax(1, keepdim=True)


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


def _halves(parts: _Parts, axis: Tensor) -> _Parts | None:
    """Each part cut in the middle across its input `axis` [n, 1]; None where one cannot be cut any more."""
    lower, upper = parts.lower.flatten(1), parts.upper.flatten(1)
    low, high = lower.gather(1, axis), upper.gather(1, axis)
    middle = low + (high - low) / 2
    if not bool(((low < middle) & (middle < high)).all()):
        return None
    shape = parts.lower.shape[1:]
    both = parts.take(torch.arange(len(parts)).repeat(2))
    both.lower = torch.cat([lower, lower.scatter(1, axis, middle)]).reshape(-1, *shape)
    both.upper = torch.cat([upper.scatter(1, axis, middle), upper]).reshape(-1, *shape)
    return both


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
