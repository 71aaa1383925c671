"""Jacobians around a linear middle: one generator for each unknown slope.

With m the middle of a slope's range [a, b] and |g| <= G, s g = m g + d, |d| <= (b - a)/2 G. All d enter the gradients below
linearly, with every slope at its middle: J = J_m + sum over unknown slopes i of d_i v_i, where v_i is the gradient that a unit
put in at slope i causes at the input. Few unknown slopes cost few gradients; intervals would let them add up layer by layer.
Source: Girard, HSCC 2005 (zonotopes); Singh et al., NeurIPS 2018 for networks.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lipverify.analyzers.local.gradients import Gradients, absolute_adjoint, interval_gradients
from lipverify.ir.interval import Interval
from lipverify.linalg.rounding import gamma
from lipverify.memory import share
from lipverify.ops.enclosure import Enclosure
from lipverify.propagation.adjoint import adjoint
from lipverify.propagation.knowledge import is_affine

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
    center = _inputs(found, middle)
    largest = torch.cat(
        [_largest(found, index, slot, entries) for slot, entries in slots.items()]
        or [center.lower[0, :, :0]],
        1,
    )
    shape = center.lower.shape
    size, roundings = _with_roundings(found, middle, slots, largest)
    reach = size.new_zeros(size.shape)
    step = max(1, share(MEMORY) // (8 * 4 * widths))
    # From the output to the input: a generator costs nothing above the slope it comes from.
    order = [
        (slot, int(entry))
        for node in reversed(found.graph.nodes)
        for slot in ((node.name, place) for place in range(len(node.inputs)))
        for entry in slots.get(slot, ())
    ]
    column = {one: k for k, one in enumerate((slot, int(e)) for slot, es in slots.items() for e in es)}
    for start in range(0, len(order), step):
        some = order[start : start + step]
        v = _generators(found, middle, some)
        reach = reach + largest[:, [column[one] for one in some]] @ v.abs()
    # v is off by gamma_n times the sum of the absolute terms, n the roundings on the longest way.
    reach = reach * (1.0 + 4.0 * gamma(len(order) + 8)) + 2.0 * gamma(roundings) * size
    reach = reach + torch.finfo(torch.float64).tiny
    found_box = Enclosure.of(center) + Enclosure(-reach.reshape(shape), reach.reshape(shape))
    return Interval(found_box.lower, found_box.upper)


Slots = dict[Slot, Tensor]
"""Slot -> the entries whose slope is unknown."""


def _with_roundings(
    found: Gradients, middle: dict[str, tuple[Interval, ...]], slots: Slots, largest: Tensor
) -> tuple[Tensor, int]:
    """The absolute terms of sum_i largest[k, i] |v_i| at the input, [rows, inputs], and the roundings on all ways together.

    All generators enter it in one row for each output row: absolute values of terms are linear in where they come from.
    """
    graph, rows, count, start = found.graph, found.rows, 0, 0
    weights: dict[Slot, Tensor] = {}
    for slot, entries in slots.items():
        into = largest.new_zeros(rows, graph[slot[0]].size)
        into[:, entries] = largest[:, start : start + len(entries)]
        weights[slot] = into.reshape(rows, *graph[slot[0]].shape)
        start += len(entries)
    sizes: dict[str, Tensor] = {}
    for node in reversed(graph.nodes):
        total = largest.new_zeros(rows, *node.shape)
        count += node.size + 16
        for name in dict.fromkeys(graph.consumers[node.name]):
            reader = graph[name]
            shapes = tuple(graph[source].shape for source in reader.inputs)
            affine = absolute_adjoint(reader, sizes[name], shapes) if is_affine(reader) else None
            for place, source in enumerate(reader.inputs):
                if source != node.name:
                    continue
                if affine is None:
                    total = total + middle[name][place].lower[0].abs() * sizes[name] + weights[name, place]
                else:
                    total = total + affine[place]
        sizes[node.name] = total
    size = sizes[graph.input.name].flatten(1)
    return size * (1.0 + 4.0 * gamma(count)), count


def _generators(
    found: Gradients, middle: dict[str, tuple[Interval, ...]], some: list[tuple[Slot, int]]
) -> Tensor:
    """The gradients at the input of units put in behind slopes, with all slopes at their middle: [units, inputs].

    A node's gradient has the rows of the units that come from it or from above, in their order; all other rows are zero.
    """
    graph = found.graph
    places: dict[Slot, list[int]] = {}
    for row, (slot, _) in enumerate(some):
        places.setdefault(slot, []).append(row)
    gradients: dict[str, Tensor] = {}
    for node in reversed(graph.nodes):
        total = found.seeds.new_zeros(0, *node.shape)
        for name in dict.fromkeys(graph.consumers[node.name]):
            reader, above = graph[name], gradients[name]
            shapes = tuple(graph[source].shape for source in reader.inputs)
            affine = adjoint(reader.op, above, shapes) if len(above) and is_affine(reader) else None
            for place, source in enumerate(reader.inputs):
                if source != node.name:
                    continue
                if len(above):
                    part = middle[name][place].lower[0] * above if affine is None else affine[place]
                    total = _longer(total, len(part))
                    total[: len(part)] += part
                rows = places.get((name, place))
                if rows:
                    total = _longer(total, rows[-1] + 1)
                    entries = [some[row][1] for row in rows]
                    total.flatten(1)[rows, entries] += 1.0
        gradients[node.name] = total
    return _longer(gradients[graph.input.name], len(some)).flatten(1)


def _longer(rows: Tensor, count: int) -> Tensor:
    """A copy with rows of zeros at the end."""
    more = max(count - len(rows), 0)
    return torch.cat([rows, rows.new_zeros(more, *rows.shape[1:])]) if more else rows


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


def _inputs(found: Gradients, middle: dict[str, tuple[Interval, ...]]) -> Interval:
    """Gradients of the output rows at the input, with all slopes at their middle: [1, rows, *input shape]."""
    return interval_gradients(found.graph, middle, found.seeds, 1).boxes[found.graph.input.name]
