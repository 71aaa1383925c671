"""Ranges of every value of a graph over a region."""

from __future__ import annotations

import torch

from lipverify.errors import UnsupportedModel
from lipverify.ir.graph import Graph
from lipverify.ir.interval import Interval
from lipverify.ir.op import Input
from lipverify.rules import interval


def interval_ranges(graph: Graph, box: Interval) -> dict[str, Interval]:
    """Interval arithmetic through the graph: name -> box of [batch, *shape], rounded outward.

    Statement: for every input inside the box, every node's value lies inside its range.
    Source: Moore 1966; each operator's `interval` rule.

    Raises:
        UnsupportedModel: a node without an interval rule; it is named.
    """
    exact = graph.to(dtype=torch.float64, device=box.lower.device)
    missing = interval.missing(node for node in graph.nodes if not isinstance(node.op, Input))
    if missing:
        raise UnsupportedModel(f"no interval rule for {', '.join(node.describe() for node in missing[:3])}")
    found: dict[str, Interval] = {}
    for node in exact.nodes:
        inputs = (found[name] for name in node.inputs)
        found[node.name] = box if isinstance(node.op, Input) else interval(node.op, *inputs)
    return found
