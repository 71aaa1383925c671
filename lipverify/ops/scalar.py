"""What all scalar activations share: slopes over the line as tensors, and the gain that follows from them."""

from __future__ import annotations

import torch
from torch import Tensor

from lipverify.ir.interval import Interval
from lipverify.ir.norm import Norm
from lipverify.ir.op import Op, Shape
from lipverify.ops.embedding import diagonal_norm, single
from lipverify.rules import Gain, Slopes, Unbounded, slopes


def scalar_gain(op: Op, shapes: tuple[Shape, ...], norm_in: Norm, norm_out: Norm) -> Gain:
    """An activation changes entry i by at most max |slope_i| times the change of entry i: a diagonal matrix.

    Raises:
        Unbounded: the slopes have no bound over the whole line.
    """
    found = slopes(op, None, shapes[0])
    return single(diagonal_norm(torch.maximum(found.lower.abs(), found.upper.abs()), norm_in, norm_out))


def uniform_slopes(lower: float, upper: float, shape: Shape) -> Slopes:
    """The same range in every entry of a sample."""
    ends = torch.tensor([lower, upper], dtype=torch.float64)
    return proven(ends[0].expand(shape), ends[1].expand(shape))


def box_slopes(found: Interval, shape: Shape) -> Slopes:
    """A range in every entry of a box, [batch, *shape]."""
    size = (found.lower.shape[0], *shape)
    return proven(found.lower.expand(size), found.upper.expand(size))


def proven(lower: Tensor, upper: Tensor) -> Slopes:
    """Slopes with finite ends.

    Raises:
        Unbounded: an end is infinite or not a number.
    """
    if not bool((lower.isfinite() & upper.isfinite()).all()):
        raise Unbounded("its slope is above the largest float64")
    return Slopes(lower, upper)
