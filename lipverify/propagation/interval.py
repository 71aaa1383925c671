"""Ranges of every value of a graph over a region, by interval arithmetic."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace

import torch

from lipverify import ops
from lipverify.errors import InternalError, UnsupportedModel
from lipverify.ir.graph import Graph, Node
from lipverify.ir.interval import Interval
from lipverify.ir.op import Input
from lipverify.rules import Slopes, Unbounded, interval, naming, slopes


def refuses_ranges(graph: Graph) -> str | None:
    """Why values have no ranges, naming the nodes; None if they can have some."""
    missing = interval.missing(node for node in graph.nodes if not isinstance(node.op, Input))
    return f"no interval rule for {', '.join(node.describe() for node in missing[:3])}" if missing else None


def refuse_without_intervals(graph: Graph) -> None:
    """Raises UnsupportedModel naming the first nodes without an interval rule."""
    reason = refuses_ranges(graph)
    if reason is not None:
        raise UnsupportedModel(reason)


def image(node: Node, boxes: Sequence[Interval], count: int) -> Interval:
    """A node's box from those of its inputs, by its interval rule: [count, *shape], also of what no input reaches.

    Raises:
        UnsupportedModel: the operator is not bounded there; the node is named.
        InternalError: the rule gives another shape.
    """
    with naming(node):
        found = interval(node.op, *boxes)
    if found.lower.shape not in ((1, *node.shape), (count, *node.shape)):
        raise InternalError(f"{node.describe()} has a range of shape {list(found.lower.shape)}")
    size = (count, *node.shape)
    return Interval(found.lower.expand(size), found.upper.expand(size))


def interval_ranges(graph: Graph, box: Interval) -> dict[str, Interval]:
    """Interval arithmetic through the graph: name -> box of [batch, *shape], rounded outward.

    Statement: for every input inside the box, every node's value lies inside its range.
    Source: Moore 1966; each operator's `interval` rule.

    Raises:
        UnsupportedModel: a node without an interval rule, or not bounded on its range; it is named.
    """
    refuse_without_intervals(graph)
    found: dict[str, Interval] = {}
    for node in graph.nodes:
        if isinstance(node.op, Input):
            found[node.name] = box
            continue
        boxes = [found[name] for name in node.inputs]
        # One node after the other in float64: no second copy of a large network.
        exact = replace(node, op=node.op.to(dtype=torch.float64, device=box.lower.device))
        found[node.name] = image(exact, boxes, len(box.lower))
        found[node.name] = _met(found[node.name], blended(graph, node, found))
    return found


def everywhere(graph: Graph) -> dict[str, Interval]:
    """Ranges over the whole input space, [1, *shape]; infinite where nothing is known.

    Statement: for every input whatever, every node's value lies inside its range: gates and what they weigh are bounded by
        themselves, so a gated recurrent network has bounded factors although its input has no bound.
    """
    exact = graph.to(dtype=torch.float64, device=torch.device("cpu"))
    found: dict[str, Interval] = {}
    for node in exact.nodes:
        line = torch.full((1, *node.shape), math.inf, dtype=torch.float64)
        found[node.name] = Interval(-line, line)
        if not isinstance(node.op, Input) and interval.covers(type(node.op)):
            try:
                found[node.name] = image(node, [found[name] for name in node.inputs], 1)
            except UnsupportedModel:
                continue
            found[node.name] = _met(found[node.name], blended(exact, node, found))
    return found


def bounded_slopes(graph: Graph, ranges: Mapping[str, Interval] | None = None) -> dict[str, Slopes]:
    """Slopes over all inputs of scalar functions that have none on the whole line, by what their arguments can be.

    Statement: as `rules.Slopes`, for every two inputs: exp of a clipped number, the log of a sigmoid and eps. A function whose
        argument can be where it has no slope is left out; its own rule says why. ranges: as of `everywhere`, where known.
    """
    found: dict[str, Slopes] = {}
    for node in graph.nodes:
        if not slopes.covers(type(node.op)):
            continue
        op = node.op.to(dtype=torch.float64, device=torch.device("cpu"))
        try:
            slopes(op, None, node.shape)
        except Unbounded:
            ranges = everywhere(graph) if ranges is None else ranges
            with suppress(UnsupportedModel):
                found[node.name] = slopes(op, ranges[node.inputs[0]], node.shape)
    return found


def _met(box: Interval, other: Interval | None) -> Interval:
    """What two ranges of the same values have in common."""
    if other is None:
        return box
    return Interval(torch.maximum(box.lower, other.lower), torch.minimum(box.upper, other.upper))


def blended(graph: Graph, node: Node, ranges: Mapping[str, Interval]) -> Interval | None:
    """What is known besides of n + z (h - n), z in [0, 1]: it lies between n and h. None for other nodes.

    Interval arithmetic takes z, h - n and n as free of each other, and the state of a GRU would grow with every step. Written
    as (1 - z) n + z h it is not recognised.
    """
    if not isinstance(node.op, ops.Add):
        return None
    for n, product in (node.inputs, node.inputs[::-1]):
        if not isinstance(graph[product].op, ops.Mul):
            continue
        for z, difference in (graph[product].inputs, graph[product].inputs[::-1]):
            h, weight = _other_end(graph[difference], n, ranges), ranges[z]
            if h is not None and bool(((weight.lower >= 0) & (weight.upper <= 1)).all()):
                ends = ranges[n]
                return Interval(torch.minimum(ends.lower, h.lower), torch.maximum(ends.upper, h.upper))
    return None


def _other_end(difference: Node, n: str, ranges: Mapping[str, Interval]) -> Interval | None:
    """The range of h where the node is h - n; a stored h is the shift of -n."""
    op = difference.op
    if isinstance(op, ops.Sub) and difference.inputs[1] == n:
        return ranges[difference.inputs[0]]
    if isinstance(op, ops.Scale) and difference.inputs == (n,) and op.scale is not None:
        if not bool((op.scale == -1).all()):
            return None
        size = ranges[n].lower.shape
        h = torch.zeros(size[1:], dtype=torch.float64) if op.shift is None else op.shift.double()
        h = h.to(ranges[n].lower.device).expand(size)
        return Interval(h, h)
    return None
