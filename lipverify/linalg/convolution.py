"""Certified operator norms of convolutions with zero padding, over any number of spatial axes.

The map sends x [in, *size] to y[o, p] = sum_{i,a} K[o,i,a] x[i, stride p + dilation a - before], x zero outside.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lipverify.errors import UsageError
from lipverify.linalg import dense
from lipverify.linalg.rounding import Upper
from lipverify.linalg.symbol import Symbol, polyphase, supremum, torus_maximum

Padding = Sequence[tuple[int, int]]

# A torus is worth a search when its frequencies may miss the supremum by more than this.
_TORUS_GAIN = 5e-4


@dataclass(frozen=True)
class _Convolution:
    weight: (
        Tensor  # [groups, out / groups, in / groups, *taps] float64, largest entry in [1/2, 1) or all zero
    )
    exponent: int  # the kernel is weight * 2^exponent
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    padding: tuple[tuple[int, int], ...] = ()
    size: tuple[int, ...] = ()

    @property
    def output_size(self) -> tuple[int, ...]:
        return tuple(
            (n + sum(pad) - dil * (taps - 1) - 1) // s + 1
            for n, pad, dil, taps, s in zip(
                self.size, self.padding, self.dilation, self.weight.shape[3:], self.stride, strict=True
            )
        )


def convolution_norm(
    weight: Tensor,
    *,
    input_size: Sequence[int],
    stride: Sequence[int],
    padding: Padding,
    dilation: Sequence[int],
    groups: int,
    norm_in: str = "l2",
    norm_out: str = "l2",
) -> Upper:
    """Upper bound of the operator norm of a zero-padded convolution on inputs of one size.

    Args:
        weight: [out, in / groups, *taps], real floating point.
        input_size, stride, dilation: one integer per spatial axis; padding: (before, after) per spatial axis.
        norm_in, norm_out: "l1", "l2" or "linf".

    Raises:
        UsageError: arguments that do not fit together, a non-finite weight, an empty output.
    """
    convolution = _convolution(weight, stride, dilation, groups)
    convolution = _placed(convolution, input_size, padding)
    return _spectral(convolution).scale(convolution.exponent)


def convolution_norm_any_size(
    weight: Tensor, *, stride: Sequence[int], dilation: Sequence[int], groups: int
) -> Upper:
    """Upper bound of the l2 norm of a zero-padded convolution, whatever the input size and padding: see `supremum`."""
    convolution = _convolution(weight, stride, dilation, groups)
    symbol = Symbol(polyphase(convolution.weight, convolution.stride, convolution.dilation))
    if max(symbol.kernel.shape[3:]) == 1:
        return dense.operator_norm_upper(symbol.kernel.flatten(2), "l2", "l2").scale(convolution.exponent)
    return Upper.of(supremum(symbol).upper).scale(convolution.exponent)


def _convolution(weight: Tensor, stride: Sequence[int], dilation: Sequence[int], groups: int) -> _Convolution:
    axes = weight.ndim - 2
    if axes < 1:
        raise UsageError(f"a convolution weight is [out, in / groups, *taps], not {tuple(weight.shape)}")
    if len(stride) != axes or len(dilation) != axes:
        raise UsageError(f"stride and dilation of a {axes}-D convolution need {axes} numbers each")
    if min(*stride, *dilation, groups) < 1:
        raise UsageError(
            f"stride {tuple(stride)}, dilation {tuple(dilation)} and groups {groups} must be positive"
        )
    if weight.numel() == 0 or weight.shape[0] % groups:
        raise UsageError(
            f"a weight of shape {tuple(weight.shape)} is empty or does not split into {groups} groups"
        )
    if weight.is_complex():
        raise UsageError("a convolution weight must be real")
    flat = dense.scaled(dense.validated(weight.reshape(1, -1), "l2", "l2"))
    values = flat.values.reshape(groups, weight.shape[0] // groups, *weight.shape[1:])
    return _Convolution(values, int(flat.exponent), tuple(stride), tuple(dilation))


def _placed(convolution: _Convolution, input_size: Sequence[int], padding: Padding) -> _Convolution:
    axes = convolution.weight.ndim - 3
    if len(input_size) != axes or len(padding) != axes or any(len(pad) != 2 for pad in padding):
        raise UsageError(f"a {axes}-D convolution needs {axes} input sizes and {axes} pairs of padding")
    if min(input_size) < 1 or min(min(pad) for pad in padding) < 0:
        raise UsageError(
            f"input size {tuple(input_size)} must be positive, padding {list(padding)} non-negative"
        )
    placed = _Convolution(
        convolution.weight,
        convolution.exponent,
        convolution.stride,
        convolution.dilation,
        tuple((int(a), int(b)) for a, b in padding),
        tuple(input_size),
    )
    if min(placed.output_size) < 1:
        raise UsageError(
            f"a kernel of {tuple(convolution.weight.shape[3:])} taps leaves no output on {placed.size}"
        )
    return placed


def _spectral(convolution: _Convolution) -> Upper:
    if not bool(convolution.weight.any()):
        return Upper.zero()
    symbol = Symbol(polyphase(convolution.weight, convolution.stride, convolution.dilation))
    if max(symbol.kernel.shape[3:]) == 1:
        # No two outputs share an input (patch embedding, 1 x 1): the map is copies of one matrix.
        return dense.operator_norm_upper(symbol.kernel.flatten(2), "l2", "l2")
    known = supremum(symbol)
    sizes = embedding_sizes(convolution)
    gain = sum((math.pi * d / n) ** 2 / 2 for d, n in zip(symbol.degrees, sizes, strict=True))
    return Upper.of(torus_maximum(symbol, sizes, known) if gain > _TORUS_GAIN else known.upper)


def embedding_sizes(convolution: _Convolution) -> tuple[int, ...]:
    """Per axis, the smallest torus on which the polyphase convolution does not wrap around.

    Output p reads the polyphase inputs t = p + b, 0 <= b < taps'. On a torus of N points it also reads t when
    p + b - t is a non-zero multiple of N; there is none once N > |p + b - t| for all outputs and inputs in use.
    """
    sizes = []
    for n, (before, _), dil, taps, s, outputs in zip(
        convolution.size,
        convolution.padding,
        convolution.dilation,
        convolution.weight.shape[3:],
        convolution.stride,
        convolution.output_size,
        strict=True,
    ):
        coarse = dil * (taps - 1) // s + 1
        # Outputs that see padding only are zero rows; inputs behind the last output are zero columns.
        p_first = max(0, -(-(before - dil * (taps - 1)) // s))
        p_last = min(outputs - 1, (before + n - 1) // s)
        t_first = max(before // s, p_first)
        t_last = min((before + n - 1) // s, p_last + coarse - 1)
        sizes.append(1 + max(t_last - p_first, p_last + coarse - 1 - t_first, 0))
    return tuple(sizes)
