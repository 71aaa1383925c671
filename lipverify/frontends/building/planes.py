"""Convolutions over three spatial axes as ones over two, with the first spatial axis counted among the channels.

A tensor [channels, depth, height, width] has the entries of [channels depth, height, width] in the same order. A kernel is then a
stored matrix of kernels over two axes, zero where no tap leads from one depth to another; its numbers are copied, none is
computed, so the function is the same one.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lipverify.ops.convolution import Conv, ConvTranspose

LARGEST_FOLDED = 1 << 26
"""Numbers of such a matrix of kernels."""


def folded_depth(op: Conv | ConvTranspose, depth: int) -> int:
    """The depth of the result."""
    (before, after), stride = op.padding[0], op.stride[0]
    reach = op.dilation[0] * (op.weight.shape[2] - 1) + 1
    if isinstance(op, ConvTranspose):
        return stride * (depth - 1) + reach + op.output_padding[0] - before - after
    return (depth + before + after - reach) // stride + 1


def over_planes(op: Conv | ConvTranspose, depth: int) -> Conv | ConvTranspose:
    """The convolution of [channels depth, height, width] that gives [out out_depth, height, width]."""
    deep = folded_depth(op, depth)
    first, second, taps, *plane = op.weight.shape
    # Of an adjoint the stored axes are [in, out], and the positions of a tap are those in its output.
    ends = (depth, deep) if isinstance(op, ConvTranspose) else (deep, depth)
    weight = op.weight.new_zeros(first, ends[0], second, ends[1], *plane)
    for tap in range(taps):
        start = torch.arange(ends[0], device=weight.device)
        reached = start * op.stride[0] + tap * op.dilation[0] - op.padding[0][0]
        inside = (reached >= 0) & (reached < ends[1])
        weight[:, start[inside], :, reached[inside]] = op.weight[:, :, tap]
    bias: Tensor | None = None if op.bias is None else op.bias.repeat_interleave(deep)
    flat = weight.reshape(first * ends[0], second * ends[1], *plane)
    stride, padding, dilation = op.stride[1:], op.padding[1:], op.dilation[1:]
    if isinstance(op, ConvTranspose):
        more = op.output_padding[1:]
        return ConvTranspose(flat, bias, stride, padding, more, dilation, op.groups)
    return Conv(flat, bias, stride, padding, dilation, op.groups)
