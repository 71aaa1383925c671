"""Pooling over windows and reductions over whole axes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lipverify.ir.op import Op, Shape
from lipverify.ops.convolution import Pads, flat_pads
from lipverify.rules import forward, linear


@dataclass(frozen=True, eq=False)
class MaxPool(Op):
    """Maximum over windows of the last len(kernel) axes. padding (before, after) with -inf; a border that no window reaches is cut."""

    kernel: Shape
    stride: Shape
    padding: Pads
    dilation: Shape


@dataclass(frozen=True, eq=False)
class AvgPool(Op):
    """Mean over windows of the last len(kernel) axes, zero padding (before, after).

    count_include_pad: padded zeros count in the mean; `uncounted` (after, each axis) is padding that never counts: the part
    a ceil-mode window hangs over.
    """

    kernel: Shape
    stride: Shape
    padding: Pads
    count_include_pad: bool
    uncounted: Shape


@dataclass(frozen=True, eq=False)
class ReduceSum(Op):
    """Sum over sample axes (>= 0, sorted)."""

    axes: Shape
    keepdims: bool


@dataclass(frozen=True, eq=False)
class ReduceMean(Op):
    """Mean over sample axes; global average pooling is the mean over all spatial axes."""

    axes: Shape
    keepdims: bool


@dataclass(frozen=True, eq=False)
class ReduceMax(Op):
    """Maximum over sample axes; global max pooling is the maximum over all spatial axes."""

    axes: Shape
    keepdims: bool


@dataclass(frozen=True, eq=False)
class ReduceMin(Op):
    """Minimum over sample axes."""

    axes: Shape
    keepdims: bool


def windows(x: Tensor, kernel: Shape, stride: Shape, dilation: Shape) -> Tensor:
    """All windows of the last len(kernel) axes: [..., *positions, *kernel]."""
    first = x.ndim - len(kernel)
    for i, (size, step, spread) in enumerate(zip(kernel, stride, dilation, strict=True)):
        x = x.unfold(first + i, spread * (size - 1) + 1, step)[..., ::spread]
    return x


@forward.register(MaxPool)
def _max_pool(op: MaxPool, x: Tensor) -> Tensor:
    padded = torch.nn.functional.pad(x, flat_pads(op.padding), value=-float("inf"))
    return windows(padded, op.kernel, op.stride, op.dilation).amax(dim=tuple(range(-len(op.kernel), 0)))


@forward.register(AvgPool)
@linear.register(AvgPool)
def _avg_pool(op: AvgPool, x: Tensor) -> Tensor:
    return window_sums(op, x) / window_counts(op, x)


def window_sums(op: AvgPool, x: Tensor) -> Tensor:
    """Sum of every window, padding included as zeros."""
    pads = tuple((a, b + extra) for (a, b), extra in zip(op.padding, op.uncounted, strict=True))
    padded = torch.nn.functional.pad(x, flat_pads(pads))
    dilation = (1,) * len(op.kernel)
    return windows(padded, op.kernel, op.stride, dilation).sum(dim=tuple(range(-len(op.kernel), 0)))


def window_counts(op: AvgPool, x: Tensor) -> Tensor:
    """How many entries every window divides by: [*positions]."""
    ones = torch.ones(x.shape[-len(op.kernel) :], dtype=x.dtype, device=x.device)
    pads = flat_pads(op.padding)
    if op.count_include_pad:
        ones = torch.nn.functional.pad(ones, pads, value=1.0)
        pads = [0] * len(pads)
    extra = flat_pads(tuple((0, size) for size in op.uncounted))
    padded = torch.nn.functional.pad(ones, [a + b for a, b in zip(pads, extra, strict=True)])
    return windows(padded, op.kernel, op.stride, (1,) * len(op.kernel)).sum(
        dim=tuple(range(-len(op.kernel), 0))
    )


def batched_axes(axes: Shape) -> tuple[int, ...]:
    """Sample axes counted with the batch axis in front."""
    return tuple(axis + 1 for axis in axes)


@forward.register(ReduceSum)
@linear.register(ReduceSum)
def _reduce_sum(op: ReduceSum, x: Tensor) -> Tensor:
    return x.sum(dim=batched_axes(op.axes), keepdim=op.keepdims)


@forward.register(ReduceMean)
@linear.register(ReduceMean)
def _reduce_mean(op: ReduceMean, x: Tensor) -> Tensor:
    return x.mean(dim=batched_axes(op.axes), keepdim=op.keepdims)


@forward.register(ReduceMax)
def _reduce_max(op: ReduceMax, x: Tensor) -> Tensor:
    return x.amax(dim=batched_axes(op.axes), keepdim=op.keepdims)


@forward.register(ReduceMin)
def _reduce_min(op: ReduceMin, x: Tensor) -> Tensor:
    return x.amin(dim=batched_axes(op.axes), keepdim=op.keepdims)
