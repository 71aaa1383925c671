"""Slopes of pairs in large networks: values in l2 balls around float64 numbers, whose radii grow by the gains of layers.

Boxes of intervals forget that errors cancel and are wider than the logits after a dozen layers; fixed point keeps every digit
and takes tens of evaluations. The norms of layers, which a product has proved, say how far an error can grow at most: that is
enough where the two points are far apart, in the time of two evaluations.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from lipverify.analyzers.affine_runs import Run, runs
from lipverify.analyzers.distances import distances
from lipverify.analyzers.lengths import unit_vectors
from lipverify.analyzers.product import joined
from lipverify.deadline import look
from lipverify.errors import UnsupportedModel
from lipverify.ir.certificate import Certificate, Gains
from lipverify.ir.graph import Graph, Node
from lipverify.ir.interval import Interval
from lipverify.ir.norm import Norm
from lipverify.ir.op import Constant, Input
from lipverify.linalg.lengths import length_above, length_below, ratio_below
from lipverify.linalg.rounding import Upper
from lipverify.propagation.interval import image
from lipverify.rules import gain_of


def layer_gains(graph: Graph, certificate: Certificate) -> dict[str, float] | None:
    """The l2 gains of runs that a product has proved, by the last node of each; None where it is made of more than runs."""
    query, evidence = certificate.query, certificate.evidence
    if not (query.norm_in is query.norm_out is Norm.L2 and isinstance(evidence, Gains)):
        return None
    if unit_vectors(graph) or distances(graph)[0]:
        return None
    return {step.nodes[-1]: step.gain for step in evidence.steps if step.gain is not None}


def slopes_by_gains(graph: Graph, x: Tensor, y: Tensor, gains: Mapping[str, float]) -> Tensor:
    """Lower bounds of |f(y) - f(x)|_2 / |y - x|_2; x, y [count, *input shape] -> [count].

    Statement: the real-valued function of the graph and its stored weights has at least this slope between the two points: each
        value is within its radius of the number that stands for it, and a layer of gain g makes of a radius r at most g r, and
        what its own computation in float64 is off by, which interval arithmetic at a single point encloses.

    Args:
        gains: l2 gains of runs by their last node (`layer_gains`).

    Raises:
        UnsupportedModel: a node without an interval rule or gain, or a value above the largest float64.
    """
    x, y = (point.detach().cpu().to(torch.float64) for point in (x, y))
    centres, radius = _outputs(graph, torch.cat([x, y]), gains)
    first, second = centres.flatten(1).chunk(2)
    mantissa, exponent = length_below(second - first, "l2")
    try:
        both = float(radius + radius)
    except OverflowError:
        return torch.zeros(len(x), dtype=torch.float64)
    apart = torch.ldexp(mantissa, exponent)
    least = ((apart - both) * (1.0 - 2.0**-50)).clamp_min(0.0)
    least = torch.where(apart.isfinite(), least, 0.0)
    return ratio_below(
        (least, torch.zeros(len(x), dtype=torch.int64)), length_above((y - x).flatten(1), "l2")
    )


def _outputs(graph: Graph, points: Tensor, gains: Mapping[str, float]) -> tuple[Tensor, Upper]:
    """Numbers that stand for the outputs at stored points [count, *output shape], and how far in l2 each row may be off."""
    known: dict[str, tuple[Tensor, Upper]] = {}
    waiting = {name: len(users) for name, users in graph.consumers.items()}
    for run in runs(graph):
        look()
        inputs = [known[name] for name in run.first.inputs]
        known[run.last.name] = _behind(run, inputs, points, gains)
        for name in run.first.inputs:
            waiting[name] -= 1
            if waiting[name] == 0 and name != graph.output.name:
                known.pop(name, None)
    return known[graph.output.name]


def _behind(
    run: Run, inputs: list[tuple[Tensor, Upper]], points: Tensor, gains: Mapping[str, float]
) -> tuple[Tensor, Upper]:
    if isinstance(run.first.op, Input):
        return points, Upper.zero()
    radii = [radius for _, radius in inputs]
    boxes = [Interval(centre, centre) for centre, _ in inputs]
    for node in run.nodes:
        boxes = [image(_exact(node), boxes, len(points))]
    (box,) = boxes
    centre = box.lower / 2 + box.upper / 2
    # The middle of a box of one number is that number; elsewhere both differences are rounded once.
    centre = torch.where(box.lower == box.upper, box.lower, centre)
    off = torch.maximum(box.upper - centre, centre - box.lower)
    off = torch.where(off > 0, torch.nextafter(off, torch.full_like(off, math.inf)), off)
    if not bool(off.isfinite().all()):
        raise UnsupportedModel(f"{run.last.describe()} exceeds the largest float64 at the stored points")
    mantissa, exponent = length_above(off.flatten(1), "l2")
    own = Upper.largest(
        Upper.of(m).scale(e) for m, e in zip(mantissa.tolist(), exponent.tolist(), strict=True)
    )
    return centre, _carried(run, radii, gains) + own


def _carried(run: Run, radii: list[Upper], gains: Mapping[str, float]) -> Upper:
    """What the radii of its inputs become behind a run."""
    if isinstance(run.first.op, Constant) or not any(radii):
        return Upper.zero()
    given = gains.get(run.last.name)
    if given is not None and len(radii) == 1:
        return Upper.of(given) * radii[0]
    if len(run.nodes) > 1:
        raise UnsupportedModel(f"{run.last.describe()} has no gain of its own")
    return joined(gain_of(run.first, run.input_shapes, Norm.L2, Norm.L2), radii)


def _exact(node: Node) -> Node:
    """One node after the other in float64: no second copy of a large network."""
    return replace(node, op=node.op.to(dtype=torch.float64, device=torch.device("cpu")))
