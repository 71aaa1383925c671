"""Linear bounds with searched lower planes of ReLU: what every search of planes shares, and ranges of hidden values by it.

Legend: relu(z) >= a z for every a in [0, 1]; z in [l, u] with l < 0 < u.
Source: Xu et al., ICLR 2021 (arXiv 2011.13824), alpha-CROWN.
Sound when: as `propagation.bounds`; a search may end anywhere, each value is evaluated again with every rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from lipverify import ops
from lipverify.ir.graph import Node
from lipverify.ir.interval import Interval
from lipverify.ir.norm import Norm
from lipverify.ir.op import Input
from lipverify.propagation.functionals import Functionals
from lipverify.propagation.knowledge import Knowledge

STEPS = 10
RATE = 0.25
FADE = 0.85
"""Steps of Adam, their length, and its factor after each step."""


def unstable(known: Knowledge, node: Node) -> Tensor:
    """Neurons of a ReLU whose argument may have both signs: [count, *shape]."""
    box = known.ranges[node.inputs[0]]
    return (box.lower < 0) & (box.upper > 0)


def repeated(known: Knowledge, rows: int | Tensor) -> Knowledge:
    """The one ball `rows` times, or the balls of these indices: so that each row has planes of its own."""

    def wide(tensor: Tensor) -> Tensor:
        if isinstance(rows, int):
            return tensor.expand(rows, *tensor.shape[1:])
        return tensor.expand(known.count, *tensor.shape[1:])[rows.to(tensor.device)]

    ball = known.ball
    many = ball.map(wide)
    ranges = {name: Interval(wide(box.lower), wide(box.upper)) for name, box in known.ranges.items()}
    box = Interval(wide(known.box.lower), wide(known.box.upper))
    strips = {name: strip.map(wide) for name, strip in known.strips.items()}
    return Knowledge(known.graph, many, box, ranges, strips=strips, cut=known.cut, precision=known.precision)


def with_lower_slopes(known: Knowledge, slopes: dict[str, Tensor]) -> Knowledge:
    """The same facts with these slopes below the ReLUs that may have both signs: ReLU node -> [count, *shape] in [0, 1]."""
    fresh = replace(known, _planes=dict(known._planes), _sizes={}, _shifts=known._shifts)
    for name, values in slopes.items():
        node = known.graph[name]
        plain, free = known.planes(node), unstable(known, node)
        slope = torch.where(free, values, plain.lower.slopes[0])
        offset = torch.where(free, torch.zeros_like(slope), plain.lower.offset)
        fresh._planes[name] = replace(plain, lower=replace(plain.lower, slopes=(slope,), offset=offset))
    return fresh


def rough_upper(walk: Functionals) -> Tensor:
    """What a search lowers: the upper bounds without their rounding. [rows]"""
    known, total = walk.known, walk.constant
    a = walk.coefficients.get(known.graph.input.name)
    if a is None:
        return total
    if known.ball.norm is Norm.L2:
        length: Tensor = torch.linalg.vector_norm(a.flatten(1), dim=1)
        total = total + (a * known.ball.center.to(a)).flatten(1).sum(1)
        return total + known.ball.radius * length
    middle = known.box.lower / 2 + known.box.upper / 2
    return total + (a * middle + a.abs() * (known.box.upper - middle)).flatten(1).sum(1)


def searched_upper(
    known: Knowledge, node: Node, start: Tensor, owner: Tensor, before: Sequence[Node], steps: int = STEPS
) -> Tensor:
    """Upper bounds of functionals `start` [rows, *shape] of a node's value, each with lower planes of its own: [rows].

    Args:
        before: the nodes up to this one, in topological order.
    """
    wide = repeated(known, owner)
    relus = [n for n in before if isinstance(n.op, ops.ReLU) and bool(unstable(wide, n).any())]
    values = {
        n.name: wide.planes(n)
        .lower.slopes[0]
        .clamp(0.0, 1.0)
        .expand(len(owner), *n.shape)
        .clone()
        .requires_grad_(True)
        for n in relus
    }
    rows = torch.arange(len(owner), device=start.device)
    best = torch.full((len(owner),), torch.inf, dtype=torch.float64, device=start.device)
    adam = torch.optim.Adam(list(values.values()), lr=RATE) if values else None
    with torch.enable_grad():
        for step in range(steps):
            walk = Functionals.start(with_lower_slopes(wide, values), {node.name: start}, rows)
            for passed in reversed(before):
                if not isinstance(passed.op, Input):
                    walk.step(passed)
            with torch.no_grad():
                found = walk.upper().detach()
                best = torch.where(found < best, found, best)
            objective = rough_upper(walk).sum()
            if adam is None or step == steps - 1 or not objective.requires_grad:
                break
            adam.zero_grad()
            objective.backward()
            adam.step()
            for group in adam.param_groups:
                group["lr"] *= FADE
            with torch.no_grad():
                for slopes in values.values():
                    slopes.nan_to_num_(0.0).clamp_(0.0, 1.0)
    return best
