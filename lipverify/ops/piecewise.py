"""Scalar activations made of straight pieces (and Hardswish, whose middle piece is a parabola)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lipverify.ir.op import Op
from lipverify.rules import forward


@dataclass(frozen=True, eq=False)
class ReLU(Op):
    """max(x, 0)."""


@dataclass(frozen=True, eq=False)
class LeakyReLU(Op):
    """x for x >= 0, slope * x below; any finite slope."""

    slope: float


@dataclass(frozen=True, eq=False)
class PReLU(Op):
    """Leaky ReLU with learned slopes that broadcast to the sample shape."""

    slope: Tensor


@dataclass(frozen=True, eq=False)
class Abs(Op):
    """|x|."""


@dataclass(frozen=True, eq=False)
class Clip(Op):
    """x limited to [low, high]; Hardtanh and ReLU6 are spellings of it. Ends may be infinite."""

    low: float
    high: float


@dataclass(frozen=True, eq=False)
class Hardsigmoid(Op):
    """min(max(alpha * x + beta, 0), 1); torch means alpha = 1/6, beta = 1/2, ONNX by default alpha = 0.2."""

    alpha: float
    beta: float


@dataclass(frozen=True, eq=False)
class Hardswish(Op):
    """x * min(max(x + 3, 0), 6) / 6."""


@forward.register(ReLU)
def _relu(op: ReLU, x: Tensor) -> Tensor:
    return torch.relu(x)


@forward.register(LeakyReLU)
def _leaky_relu(op: LeakyReLU, x: Tensor) -> Tensor:
    return torch.where(x >= 0, x, op.slope * x)


@forward.register(PReLU)
def _prelu(op: PReLU, x: Tensor) -> Tensor:
    return torch.where(x >= 0, x, op.slope * x)


@forward.register(Abs)
def _abs(op: Abs, x: Tensor) -> Tensor:
    return torch.abs(x)


@forward.register(Clip)
def _clip(op: Clip, x: Tensor) -> Tensor:
    return torch.clamp(x, op.low, op.high)


@forward.register(Hardsigmoid)
def _hardsigmoid(op: Hardsigmoid, x: Tensor) -> Tensor:
    return torch.clamp(op.alpha * x + op.beta, 0.0, 1.0)


@forward.register(Hardswish)
def _hardswish(op: Hardswish, x: Tensor) -> Tensor:
    return x * torch.clamp(x + 3.0, 0.0, 6.0) / 6.0
