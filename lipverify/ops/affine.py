"""Dense affine maps and elementwise scaling."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lipverify.ir.op import Op
from lipverify.rules import forward, linear


@dataclass(frozen=True, eq=False)
class Linear(Op):
    """y = x W' + b on the last axis. weight [out, in], bias [out] or None; x [batch, ..., in]."""

    weight: Tensor
    bias: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Scale(Op):
    """y = scale * x + shift, elementwise. Both broadcast to the sample shape without enlarging it; None means 1 and 0."""

    scale: Tensor | None = None
    shift: Tensor | None = None


@dataclass(frozen=True, eq=False)
class DivideBy(Op):
    """y = x / divisor, elementwise by stored numbers; kept as a division because reciprocals round."""

    divisor: Tensor


@forward.register(Linear)
def _linear(op: Linear, x: Tensor) -> Tensor:
    return torch.nn.functional.linear(x, op.weight, op.bias)


@linear.register(Linear)
def _linear_part(op: Linear, x: Tensor) -> Tensor:
    return torch.nn.functional.linear(x, op.weight)


@forward.register(Scale)
def _scale(op: Scale, x: Tensor) -> Tensor:
    scaled = x if op.scale is None else x * op.scale
    return scaled if op.shift is None else scaled + op.shift


@linear.register(Scale)
def _scale_part(op: Scale, x: Tensor) -> Tensor:
    return x if op.scale is None else x * op.scale


@forward.register(DivideBy)
@linear.register(DivideBy)
def _divide_by(op: DivideBy, x: Tensor) -> Tensor:
    return x / op.divisor
