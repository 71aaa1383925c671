"""Signs of gradients that rounding cannot blur.

An interval of a sum is widened by what rounding may have changed, so that a sum of non-negative terms seems to reach a little
below zero. Which signs can occur at all is decided without sums: a gradient is negative only if some term of it is.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from lipverify import ops
from lipverify.analyzers.local.gradients import Gradients, absolute_adjoint
from lipverify.ir.graph import Node
from lipverify.ir.interval import Interval
from lipverify.ir.op import Shape
from lipverify.propagation.adjoint import adjoint
from lipverify.propagation.knowledge import is_affine

Signs = tuple[Tensor, Tensor]
"""Whether a value can be negative, and whether it can be positive: 1 or 0, [count * rows, *shape]."""

_NOT_NEGATIVE = (
    ops.Add, ops.Reshape, ops.Transpose, ops.Slice, ops.Gather, ops.Pad, ops.Upsample, ops.DepthToSpace, ops.Expand,
    ops.Concat, ops.AvgPool, ops.ReduceSum, ops.ReduceMean,
)  # fmt: skip
"""Affine operators none of whose coefficients is negative."""
_ENTRYWISE = (ops.Scale, ops.BatchNorm, ops.DivideBy)
"""Affine operators with one coefficient for each entry."""


def clip_signs(found: Gradients, node: Node) -> None:
    """Cuts the range of a node's gradient at zero where no term of it can have that sign.

    Statement: the range still holds every gradient. A term is a coefficient or slope times a reader's gradient, whose signs are
    those of its range.
    """
    if node.name == found.graph.output.name:
        return
    box = found.boxes[node.name]
    negative, positive = torch.zeros_like(box.lower), torch.zeros_like(box.lower)
    for name in dict.fromkeys(found.graph.consumers[node.name]):
        reader = found.graph[name]
        signs = _signs(found.boxes[name])
        for place, source in enumerate(reader.inputs):
            if source == node.name:
                below, above = _through(found, reader, place, signs)
                negative, positive = (
                    negative + below.reshape(box.lower.shape),
                    positive + above.reshape(box.lower.shape),
                )
    lower = torch.where(negative > 0, box.lower, box.lower.clamp(min=0.0))
    upper = torch.where(positive > 0, box.upper, box.upper.clamp(max=0.0))
    found.boxes[node.name] = Interval(lower, upper)


def _signs(box: Interval) -> Signs:
    return (box.lower < 0).to(box.lower).flatten(0, 1), (box.upper > 0).to(box.lower).flatten(0, 1)


def _through(found: Gradients, reader: Node, place: int, signs: Signs) -> Signs:
    negative, positive = signs
    if is_affine(reader):
        shapes = tuple(found.graph[name].shape for name in reader.inputs)
        return through_affine(reader, place, signs, shapes)
    factor = found.factors[reader.name][place]
    # One row of slopes for each output functional of a centre.
    falls, rises = (
        flag.to(negative).repeat_interleave(found.rows, 0) for flag in (factor.lower < 0, factor.upper > 0)
    )
    return negative * rises + positive * falls, positive * rises + negative * falls


def through_affine(reader: Node, place: int, signs: Signs, shapes: tuple[Shape, ...]) -> Signs:
    """The signs that arrive at one input of an affine node, from those of its gradient. shapes: of all its inputs."""
    op, (negative, positive) = reader.op, signs
    if isinstance(op, _NOT_NEGATIVE):
        return adjoint(op, negative, shapes)[place], adjoint(op, positive, shapes)[place]
    if isinstance(op, ops.Sub):
        return signs if place == 0 else (positive, negative)
    if isinstance(op, ops.Linear | ops.Conv | ops.ConvTranspose):
        rise = replace(op, weight=op.weight.clamp(min=0.0), bias=None)
        fall = replace(op, weight=(-op.weight).clamp(min=0.0), bias=None)
        below = adjoint(rise, negative, shapes)[place] + adjoint(fall, positive, shapes)[place]
        above = adjoint(rise, positive, shapes)[place] + adjoint(fall, negative, shapes)[place]
        return below, above
    if isinstance(op, _ENTRYWISE):
        # A product of its own for each entry: rounding keeps its sign, unless it underflows to zero.
        one = adjoint(op, torch.ones_like(negative[:1]), shapes)[place]
        either = torch.maximum(negative, positive)
        below = torch.where(one > 0, negative, torch.where(one < 0, positive, either))
        return below, torch.where(one > 0, positive, torch.where(one < 0, negative, either))
    either = absolute_adjoint(reader, torch.maximum(negative, positive), shapes)[place]
    return either, either
