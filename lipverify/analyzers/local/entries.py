"""Ranges of the entries of Jacobians over balls, for questions about single ones."""

from __future__ import annotations

import torch

from lipverify.analyzers.lipsdp.canonical import commuted
from lipverify.analyzers.local.analyzer import norm_bounds, rejects_gradients, tier_of
from lipverify.analyzers.local.comparators import elementary
from lipverify.analyzers.local.gradients import derivative_ranges
from lipverify.errors import UnsupportedModel
from lipverify.ir.graph import Graph
from lipverify.ir.interval import Interval
from lipverify.ir.norm import Norm
from lipverify.ir.region import Ball, Query
from lipverify.propagation import bounds


def entry_ranges(graph: Graph, ball: Ball) -> Interval:
    """Every entry of the Jacobian, almost everywhere on each ball: [count, outputs, inputs].

    Source: as the analyzer `local`.

    Raises:
        UnsupportedModel: a node without a range of derivatives; it is named.
    """
    query = Query(Norm.L2, Norm.L2, ball)
    reason = rejects_gradients(graph, query)
    if reason is not None:
        raise UnsupportedModel(reason)
    written = elementary(commuted(graph, None)[0], whole=True).to(dtype=torch.float64)
    with torch.no_grad():
        ranges = bounds(written, ball)
        factors = derivative_ranges(written, ranges, ranges.known.possible)
        found = norm_bounds(
            written, ranges, query, tier_of(written, ranges), written.output.size, factors=factors
        )
    boxes = [part.boxes[written.input.name] for part in found.gradients]
    return Interval(
        torch.cat([box.lower.flatten(2) for box in boxes], 1),
        torch.cat([box.upper.flatten(2) for box in boxes], 1),
    )
