"""asinh(x) as an operator of torch of one's own: what it computes, its ranges, its slopes, its gain, its name in proofs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lipverify.frontends.torch_export.registry import lower
from lipverify.ir.graph import Node
from lipverify.ir.interval import Interval
from lipverify.ir.op import Op, Shape
from lipverify.ops.scalar import box_slopes, scalar_gain, uniform_slopes
from lipverify.rules import Slopes, Word, forward, gain, interval, slopes, stated

# The functions of torch in float64 are off by a few units of 1.1e-16; 1e-12 covers that many times over.
ROUNDING = 1e-12


@torch.library.custom_op("lipverify_example::compressed", mutates_args=())
def compressed(x: Tensor) -> Tensor:
    """What modules call."""
    return torch.asinh(x)


@compressed.register_fake
def _shape_of(x: Tensor) -> Tensor:
    return torch.empty_like(x)


@dataclass(frozen=True, eq=False)
class Compressed(Op):
    """y = asinh(x)."""


@lower.register("lipverify_example.compressed")
def _lower(builder: Any, x: Any) -> Any:
    return builder.elementwise(Compressed(), x)


@forward.register(Compressed)
def _forward(op: Compressed, x: Tensor) -> Tensor:
    return torch.asinh(x)


@interval.register(Compressed)
def _interval(op: Compressed, box: Interval) -> Interval:
    """It increases: the ends of the box give the ends of the range, widened for the rounding of the function."""
    ends = Interval(torch.asinh(box.lower.double()), torch.asinh(box.upper.double()))
    reach = torch.maximum(ends.lower.abs(), ends.upper.abs())
    return ends.widened(ROUNDING * torch.where(reach.isfinite(), reach, torch.zeros_like(reach)))


@slopes.register(Compressed)
def _slopes(op: Compressed, box: Interval | None, shape: Shape) -> Slopes:
    """The derivative 1 / sqrt(1 + x^2) falls with |x|: 1 at zero, never negative (elementary)."""
    if box is None:
        return uniform_slopes(0.0, 1.0, shape)
    low, high = box.lower.double(), box.upper.double()
    furthest = torch.maximum(low.abs(), high.abs())
    nearest = torch.where((low <= 0) & (high >= 0), 0.0, torch.minimum(low.abs(), high.abs()))
    least, most = (torch.ones_like(low) / torch.hypot(torch.ones_like(x), x) for x in (furthest, nearest))
    return box_slopes(Interval(least * (1 - ROUNDING), (most * (1 + ROUNDING)).clamp_max(1.0)), shape)


gain.register(Compressed)(scalar_gain)


@stated.register(Compressed)
def _stated(op: Compressed, node: Node) -> Word:
    """The checker knows the function by ONNX's name for it; with this its proofs cover networks that hold the operator."""
    return "Asinh", [], {}
