"""Normalisation layers and softmax."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lipverify.ir.op import Op
from lipverify.rules import forward, linear


@dataclass(frozen=True, eq=False)
class BatchNorm(Op):
    """Evaluation mode: y = (x - mean) / sqrt(var + eps) * weight + bias on one sample axis. All tensors [channels]."""

    weight: Tensor
    bias: Tensor
    mean: Tensor
    var: Tensor
    eps: float
    axis: int = 0


@dataclass(frozen=True, eq=False)
class LayerNorm(Op):
    """(x - mean) / sqrt(variance + eps) over the last len(shape) axes, times weight, plus bias (each of `shape`, or None)."""

    shape: tuple[int, ...]
    weight: Tensor | None
    bias: Tensor | None
    eps: float


@dataclass(frozen=True, eq=False)
class RMSNorm(Op):
    """x / sqrt(mean of x^2 + eps) over the last len(shape) axes, times weight (of `shape`, or None)."""

    shape: tuple[int, ...]
    weight: Tensor | None
    eps: float


@dataclass(frozen=True, eq=False)
class Softmax(Op):
    """Softmax along one sample axis."""

    axis: int


@dataclass(frozen=True, eq=False)
class LogSoftmax(Op):
    """Logarithm of softmax along one sample axis."""

    axis: int


def _channelwise(op: BatchNorm, values: Tensor, ndim: int) -> Tensor:
    shape = [1] * ndim
    shape[op.axis + 1] = -1
    return values.reshape(shape)


@forward.register(BatchNorm)
def _batch_norm(op: BatchNorm, x: Tensor) -> Tensor:
    factor = op.weight / torch.sqrt(op.var + op.eps)
    return (x - _channelwise(op, op.mean, x.ndim)) * _channelwise(op, factor, x.ndim) + _channelwise(
        op, op.bias, x.ndim
    )


@linear.register(BatchNorm)
def _batch_norm_part(op: BatchNorm, x: Tensor) -> Tensor:
    return x * _channelwise(op, op.weight / torch.sqrt(op.var + op.eps), x.ndim)


@forward.register(LayerNorm)
def _layer_norm(op: LayerNorm, x: Tensor) -> Tensor:
    return torch.nn.functional.layer_norm(x, list(op.shape), op.weight, op.bias, op.eps)


@forward.register(RMSNorm)
def _rms_norm(op: RMSNorm, x: Tensor) -> Tensor:
    axes = tuple(range(-len(op.shape), 0))
    scaled = x / torch.sqrt((x * x).mean(dim=axes, keepdim=True) + op.eps)
    return scaled if op.weight is None else scaled * op.weight


@forward.register(Softmax)
def _softmax(op: Softmax, x: Tensor) -> Tensor:
    return torch.softmax(x, dim=op.axis + 1)


@forward.register(LogSoftmax)
def _log_softmax(op: LogSoftmax, x: Tensor) -> Tensor:
    return torch.log_softmax(x, dim=op.axis + 1)
