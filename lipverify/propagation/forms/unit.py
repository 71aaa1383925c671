"""Vectors over their own length as one operator, which no file has: analyzers write it for what `analyzers.lengths` finds."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lipverify.errors import UnsupportedModel
from lipverify.ir.interval import Interval
from lipverify.ir.op import Op
from lipverify.ops.enclosure import Enclosure
from lipverify.rules import forward, interval


@dataclass(frozen=True, eq=False)
class Unit(Op):
    """x / sqrt(max(|x|^2, floor) + eps) over the last len(shape) axes.

    floor: a range that holds it, as e^2 of a stored e is no float64; it and eps are >= 0.
    """

    shape: tuple[int, ...]
    eps: float
    floor: tuple[float, float]

    @property
    def axes(self) -> tuple[int, ...]:
        """Counted from the last."""
        return tuple(range(-len(self.shape), 0))


@forward.register(Unit)
def _unit(op: Unit, x: Tensor) -> Tensor:
    found: Tensor = x / ((x * x).sum(op.axes, keepdim=True).clamp_min(op.floor[0]) + op.eps).sqrt()
    return found


@interval.register(Unit)
def _unit_interval(op: Unit, box: Interval) -> Interval:
    """An entry grows with itself, whatever the others are; at its own ends the length holds it."""
    x = Enclosure.of(box)
    total = x.square().sum(op.axes)
    ends = []
    for end in (Enclosure.of(x.lower), Enclosure.of(x.upper)):
        smallest = torch.minimum(torch.maximum(total.lower.clamp_min(0.0), end.square().lower), total.upper)
        length = (floored(Enclosure(smallest, total.upper.expand_as(smallest)), op.floor) + op.eps).sqrt()
        if not bool((length.lower > 0).all()):
            raise UnsupportedModel("it divides by a length that may be zero on this box")
        ends.append(end / length)
    most = 1.0 + 2.0**-50
    return Enclosure(ends[0].lower, ends[1].upper).clipped(-most, most)


def floored(square: Enclosure, floor: tuple[float, float]) -> Enclosure:
    """max(square, floor) for a floor in this range."""
    return Enclosure(square.lower.clamp_min(floor[0]), square.upper.clamp_min(floor[1]))
