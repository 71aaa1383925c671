"""Convolutions over one or two spatial axes, with zero padding. x [batch, channels, *spatial]."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lipverify.ir.interval import Interval
from lipverify.ir.norm import Norm
from lipverify.ir.op import Op, Shape
from lipverify.linalg.convolution import convolution_norm, transposed_convolution_norm
from lipverify.ops.embedding import single
from lipverify.ops.enclosure import linear_box
from lipverify.rules import Gain, forward, gain, interval, linear, magnitude

Pads = tuple[tuple[int, int], ...]


@dataclass(frozen=True, eq=False)
class Conv(Op):
    """Cross-correlation as every framework means it. weight [out, in / groups, *kernel], bias [out] or None.

    padding: zeros (before, after) for each spatial axis.
    """

    weight: Tensor
    bias: Tensor | None
    stride: Shape
    padding: Pads
    dilation: Shape
    groups: int = 1


@dataclass(frozen=True, eq=False)
class ConvTranspose(Op):
    """The adjoint of a convolution. weight [in, out / groups, *kernel], bias [out] or None.

    padding: how much is cut (before, after) on each spatial axis of the full output; output_padding: zeros added after.
    """

    weight: Tensor
    bias: Tensor | None
    stride: Shape
    padding: Pads
    output_padding: Shape
    dilation: Shape
    groups: int = 1


def flat_pads(padding: Pads) -> list[int]:
    """Padding in the order of torch.nn.functional.pad: last axis first."""
    return [size for pair in reversed(padding) for size in pair]


def _convolve(op: Conv, x: Tensor, bias: Tensor | None) -> Tensor:
    spatial = op.weight.ndim - 2
    convolve = {1: torch.nn.functional.conv1d, 2: torch.nn.functional.conv2d}[spatial]
    symmetric = all(before == after for before, after in op.padding)
    if not symmetric:
        x = torch.nn.functional.pad(x, flat_pads(op.padding))
    pads = tuple(before for before, _ in op.padding) if symmetric else (0,) * spatial
    return convolve(x, op.weight, bias, op.stride, pads, op.dilation, op.groups)


def _convolve_transposed(op: ConvTranspose, x: Tensor, bias: Tensor | None) -> Tensor:
    spatial = op.weight.ndim - 2
    convolve = {1: torch.nn.functional.conv_transpose1d, 2: torch.nn.functional.conv_transpose2d}[spatial]
    full = convolve(x, op.weight, None, op.stride, 0, op.output_padding, op.groups, op.dilation)
    crop = [-size for size in flat_pads(op.padding)]
    cut = torch.nn.functional.pad(full, crop)
    return cut if bias is None else cut + bias.reshape(-1, *(1,) * spatial)


@forward.register(Conv)
def _conv(op: Conv, x: Tensor) -> Tensor:
    return _convolve(op, x, op.bias)


@linear.register(Conv)
def _conv_part(op: Conv, x: Tensor) -> Tensor:
    return _convolve(op, x, None)


@forward.register(ConvTranspose)
def _conv_transpose(op: ConvTranspose, x: Tensor) -> Tensor:
    return _convolve_transposed(op, x, op.bias)


@linear.register(ConvTranspose)
def _conv_transpose_part(op: ConvTranspose, x: Tensor) -> Tensor:
    return _convolve_transposed(op, x, None)


@magnitude.register(Conv, ConvTranspose)
def _conv_size(op: Conv | ConvTranspose, x: Tensor) -> Tensor:
    bias = None if op.bias is None else op.bias.abs()
    return forward(replace(op, weight=op.weight.abs(), bias=bias), x)


@gain.register(Conv)
def _conv_gain(op: Conv, shapes: tuple[Shape, ...], norm_in: Norm, norm_out: Norm) -> Gain:
    """`linalg.convolution_norm` for the given input size."""
    bound = convolution_norm(
        op.weight,
        input_size=shapes[0][1:],
        stride=op.stride,
        padding=op.padding,
        dilation=op.dilation,
        groups=op.groups,
        norm_in=norm_in.value,
        norm_out=norm_out.value,
    )
    return single(bound)


@gain.register(ConvTranspose)
def _conv_transpose_gain(op: ConvTranspose, shapes: tuple[Shape, ...], norm_in: Norm, norm_out: Norm) -> Gain:
    """The norm of the convolution it is the adjoint of, between the dual norms, on inputs of the size of the result."""
    bound = transposed_convolution_norm(
        op.weight,
        input_size=shapes[0][1:],
        stride=op.stride,
        padding=op.padding,
        output_padding=op.output_padding,
        dilation=op.dilation,
        groups=op.groups,
        norm_in=norm_in.value,
        norm_out=norm_out.value,
    )
    return single(bound)


@interval.register(Conv, ConvTranspose)
def _conv_interval(op: Conv | ConvTranspose, box: Interval) -> Interval:
    exact = op.to(dtype=torch.float64)
    size = replace(exact, weight=exact.weight.abs())
    spatial = op.weight.ndim - 2
    offset = None if exact.bias is None else exact.bias.reshape(-1, *(1,) * spatial)
    # A convolution sums over the channels of one group, its adjoint over the channels of the input in one group.
    channels = op.weight.shape[1] if isinstance(op, Conv) else op.weight.shape[0] // op.groups
    terms = channels * math.prod(op.weight.shape[2:])
    return linear_box(lambda x: linear(exact, x), lambda x: linear(size, x), offset, box, terms)
