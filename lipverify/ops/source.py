"""The two operators without inputs from other layers: Input and Constant."""

from __future__ import annotations

from torch import Tensor

from lipverify.ir.interval import Interval
from lipverify.ir.norm import Norm
from lipverify.ir.op import Constant, Input, Shape
from lipverify.ops.enclosure import Enclosure, monotone_box
from lipverify.rules import Gain, forward, gain, interval


@forward.register(Input)
def _input(op: Input, x: Tensor) -> Tensor:
    return x


@forward.register(Constant)
def _constant(op: Constant) -> Tensor:
    # Batch size 1: every operator broadcasts over the batch axis.
    return op.value.unsqueeze(0)


@gain.register(Input, Constant)
def _no_gain(op: Input | Constant, shapes: tuple[Shape, ...], norm_in: Norm, norm_out: Norm) -> Gain:
    """Nothing flows in from another operator."""
    return Gain(())


interval.register(Constant)(monotone_box)


@interval.register(Input)
def _input_interval(op: Input, box: Interval) -> Interval:
    return Enclosure.of(box)
