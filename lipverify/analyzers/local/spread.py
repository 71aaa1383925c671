"""Jacobians around a linear middle: one generator for each unknown slope.

With m the middle of a slope's range [a, b] and |g| <= G, s g = m g + d, |d| <= (b - a)/2 G. All d enter the gradients below
linearly, with every slope at its middle: J = J_m + sum over unknown slopes i of d_i v_i, where v_i is the gradient that a unit
put in at slope i causes at the input. Few unknown slopes cost few gradients; intervals would let them add up layer by layer.
Source: Girard, HSCC 2005 (zonotopes); Singh et al., NeurIPS 2018 for networks.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lipverify.analyzers.local.gradients import Gradients, contribution
from lipverify.ir.interval import Interval
from lipverify.linalg.rounding import gamma
from lipverify.ops.enclosure import Enclosure

MEMORY = 512 << 20
"""Bytes for the gradients of one chunk of generators."""
WORK = 2e8
"""Numbers in all gradients of all generators of a centre, beyond which this is left out."""

Slot = tuple[str, int]
"""A node that is not affine, and which of its inputs."""


def input_ranges(found: Gradients, index: int) -> Interval | None:
    """Ranges of the Jacobian's entries around one centre, [1, rows, *input shape]; None where it costs too much.

    Statement: every Jacobian of the ball, for any slopes in their ranges, lies inside.
    """
    slots = {
        (name, place): torch.nonzero((f.lower[index] < f.upper[index]).flatten()).flatten()
        for name, parts in found.factors.items()
        for place, f in enumerate(parts)
    }
    widths = sum(node.size for node in found.graph.nodes)
    total = sum(len(entries) for entries in slots.values())
    if total * widths > WORK:
        return None
    middle = _middle(found, index)
    center = _inputs(found, middle, {}, found.rows)
    largest = torch.cat(
        [_largest(found, index, slot, entries) for slot, entries in slots.items()]
        or [center.lower[0, :, :0]],
        1,
    )
    shape = center.lower.shape
    reach = torch.zeros_like(center.lower[0].flatten(1))
    step = max(1, MEMORY // (8 * 12 * widths))
    order = [(slot, int(entry)) for slot, entries in slots.items() for entry in entries]
    for start in range(0, len(order), step):
        some = order[start : start + step]
        box = _inputs(found, middle, _units(found, some, center), len(some), seeded=False)
        size = torch.maximum(box.lower.abs(), box.upper.abs())[0].flatten(1)
        reach = reach + largest[:, start : start + step] @ size
    reach = reach * (1.0 + 4.0 * gamma(len(order) + 8))
    found_box = Enclosure.of(center) + Enclosure(-reach.reshape(shape), reach.reshape(shape))
    return Interval(found_box.lower, found_box.upper)


def _middle(found: Gradients, index: int) -> dict[str, tuple[Interval, ...]]:
    """Every slope at the middle of its range, for one centre."""
    return {
        name: tuple(Interval(m, m) for m in (_mean(f.lower, f.upper)[index : index + 1] for f in parts))
        for name, parts in found.factors.items()
    }


def _mean(lower: Tensor, upper: Tensor) -> Tensor:
    return lower / 2 + upper / 2


def _largest(found: Gradients, index: int, slot: Slot, entries: Tensor) -> Tensor:
    """How far s g is from m g at most: [rows, entries]."""
    factor = found.factors[slot[0]][slot[1]]
    m = _mean(factor.lower[index], factor.upper[index])
    half = torch.maximum(factor.upper[index] - m, m - factor.lower[index]).flatten()[entries]
    g = found.largest(slot[0])[index].flatten(1)[:, entries]
    return half * g * (1.0 + 4.0 * gamma(4)) + torch.finfo(torch.float64).tiny


def _units(found: Gradients, some: list[tuple[Slot, int]], like: Interval) -> dict[Slot, Tensor]:
    """A unit in one row for each generator: slot -> [1, rows, *shape]."""
    units: dict[Slot, Tensor] = {}
    for row, (slot, entry) in enumerate(some):
        if slot not in units:
            units[slot] = like.lower.new_zeros(len(some), found.graph[slot[0]].size)
        units[slot][row, entry] = 1.0
    return {slot: u.reshape(1, len(some), *found.graph[slot[0]].shape) for slot, u in units.items()}


def _inputs(
    found: Gradients,
    middle: dict[str, tuple[Interval, ...]],
    units: dict[Slot, Tensor],
    rows: int,
    seeded: bool = True,
) -> Interval:
    """Gradients at the input with all slopes at their middle: of the output rows, or of units put in behind slopes."""
    graph = found.graph
    seeds = found.seeds if seeded else found.seeds.new_zeros(rows, *graph.output_shape)
    walk = Gradients(graph, seeds, middle)
    for node in reversed(graph.nodes):
        zero = seeds.new_zeros(1, rows, *node.shape)
        total = Enclosure(zero, zero)
        if node.name == graph.output.name:
            total = Enclosure(seeds.unsqueeze(0), seeds.unsqueeze(0))
        for name in dict.fromkeys(graph.consumers[node.name]):
            reader = graph[name]
            for place, source in enumerate(reader.inputs):
                if source == node.name:
                    total = total + contribution(walk, reader, place)[0]
                    unit = units.get((name, place))
                    total = total if unit is None else total + Enclosure(unit, unit)
        walk.boxes[node.name] = Interval(total.lower, total.upper)
    return walk.boxes[graph.input.name]
