"""Ranges of every value of a graph over a region, by interval arithmetic."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from lipverify.errors import InternalError, UnsupportedModel
from lipverify.ir.graph import Graph, Node
from lipverify.ir.interval import Interval
from lipverify.ir.op import Input
from lipverify.rules import interval, naming


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
    exact = graph.to(dtype=torch.float64, device=box.lower.device)
    refuse_without_intervals(graph)
    found: dict[str, Interval] = {}
    for node in exact.nodes:
        boxes = [found[name] for name in node.inputs]
        found[node.name] = box if isinstance(node.op, Input) else image(node, boxes, len(box.lower))
    return found
