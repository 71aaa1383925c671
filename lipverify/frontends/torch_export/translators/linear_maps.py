"""Matrix products, convolutions and attention."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from lipverify import ops
from lipverify.frontends.builder import Masked, Value
from lipverify.frontends.building.attention import attention, causal
from lipverify.frontends.building.contraction import einsum
from lipverify.frontends.building.vanishing import contracted
from lipverify.frontends.torch_export.lowering import INFINITE, Lowerer
from lipverify.frontends.torch_export.registry import lower
from lipverify.frontends.torch_export.translators.arithmetic import scaled
from lipverify.ir.op import Shape


def tupled(sizes: int | Sequence[int], rank: int) -> Shape:
    """One size for each spatial axis."""
    if isinstance(sizes, int):
        return (sizes,) * rank
    return tuple(sizes) * rank if len(sizes) == 1 else tuple(sizes)


@lower.register("aten.linear")
def _linear(b: Lowerer, x: Any, weight: Any, bias: Any = None) -> Value:
    matrix = b.stored(weight, "weight")
    if matrix.ndim == 1:  # a weight vector drops the feature axis
        result = b.matmul(x, matrix)
        return result if bias is None else b.plus(result, b.operand(bias))
    return b.linear(x, matrix, b.optional(bias, "bias"))


@lower.register("aten.mm", "aten.bmm", "aten.matmul", "aten.mv", "aten.dot")
def _matmul(b: Lowerer, x: Any, other: Any) -> Value:
    return b.matmul(x, other)


@lower.register("aten.addmm", "aten.baddbmm", "aten.addmv")
def _addmm(b: Lowerer, bias: Any, x: Any, other: Any, *, beta: Any = 1, alpha: Any = 1) -> Value | Masked:
    plain = isinstance(x, Value) and all(isinstance(t, Tensor) for t in (bias, other))
    if plain and beta == alpha == 1 and bias.ndim == 1 and other.ndim == 2 and len(bias) == other.shape[1]:
        return b.linear(x, other.T, bias)
    stored = isinstance(x, Tensor) and isinstance(other, Tensor)
    product = scaled(b, contracted(b, x, other) if stored else b.matmul(x, other), alpha)
    if beta == 0 and isinstance(product, Value):
        return product
    added, kept = b.extended(bias)
    if kept is not None and not float(beta) > 0:
        raise b.refuse(INFINITE, (added,))
    return b.masked(b.plus(product, scaled(b, added, beta)), kept)


@lower.register("aten.conv1d", "aten.conv2d", "aten.conv3d")
def _conv(
    b: Lowerer,
    x: Any,
    weight: Any,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Value:
    kernel = b.stored(weight, "weight")
    rank = kernel.ndim - 2
    spread = tupled(dilation, rank)
    if padding == "same":  # an odd total puts the extra zero behind
        totals = [d * (k - 1) for d, k in zip(spread, kernel.shape[2:], strict=True)]
        pads = tuple((total // 2, total - total // 2) for total in totals)
    else:
        pads = tuple((p, p) for p in tupled(0 if padding == "valid" else padding, rank))
    op = ops.Conv(kernel, b.optional(bias, "bias"), tupled(stride, rank), pads, spread, groups)
    return b.conv(b.value(x), op)


@lower.register("aten.conv_transpose1d", "aten.conv_transpose2d", "aten.conv_transpose3d")
def _conv_transpose(
    b: Lowerer,
    x: Any,
    weight: Any,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> Value:
    kernel = b.stored(weight, "weight")
    rank = kernel.ndim - 2
    cut = tuple((p, p) for p in tupled(padding, rank))
    sizes = (tupled(stride, rank), cut, tupled(output_padding, rank), tupled(dilation, rank))
    return b.conv(b.value(x), ops.ConvTranspose(kernel, b.optional(bias, "bias"), *sizes, groups))


@lower.register("aten.convolution")
def _convolution(
    b: Lowerer,
    x: Any,
    weight: Any,
    bias: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    transposed: bool,
    output_padding: Any,
    groups: int,
) -> Value:
    if transposed:
        return _conv_transpose(b, x, weight, bias, stride, padding, output_padding, groups, dilation)
    return _conv(b, x, weight, bias, stride, padding, dilation, groups)


@lower.register("aten.einsum")
def _einsum(b: Lowerer, equation: str, operands: Sequence[Any], *, path: Any = None) -> Value:
    return einsum(b, equation, operands)


@lower.register("aten.bilinear")
def _bilinear(b: Lowerer, x: Any, y: Any, weight: Any, bias: Any = None) -> Value:
    """x [..., i] and y [..., j] with weight [o, i, j]: [..., o]."""
    matrices = b.stored(weight, "weight")
    if isinstance(x, Tensor):
        x, y, matrices = y, x, matrices.transpose(1, 2)
    rows = einsum(b, "...i,oij->...oj", [b.value(x), matrices])
    result = einsum(b, "...oj,...j->...o", [rows, b.operand(y)])
    return result if bias is None else b.plus(result, b.stored(bias, "bias"))


@lower.register("aten.scaled_dot_product_attention")
def _attention(
    b: Lowerer,
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Value:
    operands = (query, key, value)
    if dropout_p != 0:
        raise b.refuse("attention with active dropout is random", operands, "call module.eval() first")
    if isinstance(attn_mask, Value):
        raise b.refuse(
            "attention with a computed mask is not covered", operands, "store the mask as a buffer"
        )
    shape = query.source_shape if isinstance(query, Value) else query.shape
    factor = b.number(1 / math.sqrt(shape[-1]) if scale is None else scale)
    if is_causal:
        keys = key.source_shape if isinstance(key, Value) else key.shape
        attn_mask = causal(shape[-2], keys[-2])
    return attention(b, query, key, value, factor, *([] if attn_mask is None else [attn_mask]))
