"""Normalisation layers and softmax."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lipverify import ops
from lipverify.frontends.builder import Masked, Value
from lipverify.frontends.torch_export.lowering import Lowerer
from lipverify.frontends.torch_export.registry import lower


def _batch_norm(
    b: Lowerer,
    x: Any,
    weight: Any,
    bias: Any,
    mean: Any,
    var: Any,
    training: bool,
    momentum: Any,
    eps: float,
    *_: Any,
) -> Value:
    if training or mean is None or var is None:
        remedy = "call module.eval() first" if mean is not None else "keep running statistics in that layer"
        raise b.refuse("normalises with the statistics of the batch", (x,), remedy)
    mean, var = b.stored(mean, "running mean"), b.stored(var, "running variance")
    weight = torch.ones_like(mean) if weight is None else b.stored(weight, "weight")
    bias = torch.zeros_like(mean) if bias is None else b.stored(bias, "bias")
    return b.batch_norm(b.value(x), weight, bias, mean, var, eps)


lower.register("aten.batch_norm")(_batch_norm)


@lower.register("aten.native_batch_norm", "aten._native_batch_norm_legit_functional")
def _native_batch_norm(b: Lowerer, *args: Any) -> tuple[Value]:
    return (_batch_norm(b, *args),)


@lower.register("aten._native_batch_norm_legit_no_training", "aten._batch_norm_no_update")
def _batch_norm_no_training(
    b: Lowerer, x: Any, weight: Any, bias: Any, mean: Any, var: Any, momentum: Any, eps: float
) -> tuple[Value]:
    return (_batch_norm(b, x, weight, bias, mean, var, False, momentum, eps),)


@lower.register("aten._native_batch_norm_legit", "aten._batch_norm_with_update")
def _batch_statistics(b: Lowerer, x: Any, *rest: Any) -> Value:
    raise b.refuse(
        "normalises with the statistics of the batch",
        (x,),
        "call module.eval() first, and keep running statistics in that layer",
    )


@lower.register("aten.layer_norm")
def _layer_norm(
    b: Lowerer, x: Any, shape: Sequence[int], weight: Any = None, bias: Any = None, eps: float = 1e-5, *_: Any
) -> Value:
    return b.layer_norm(b.value(x), len(shape), b.optional(weight, "weight"), b.optional(bias, "bias"), eps)


@lower.register("aten.native_layer_norm")
def _native_layer_norm(b: Lowerer, *args: Any) -> tuple[Value]:
    return (_layer_norm(b, *args),)


@lower.register("aten.rms_norm")
def _rms_norm(
    b: Lowerer, x: Any, shape: Sequence[int], weight: Any = None, eps: float | None = None
) -> Value:
    eps = torch.finfo(b.dtype).eps if eps is None else eps
    return b.rms_norm(b.value(x), len(shape), b.optional(weight, "weight"), eps)


@lower.register("aten._fused_rms_norm")
def _fused_rms_norm(b: Lowerer, *args: Any) -> tuple[Value]:
    return (_rms_norm(b, *args),)


@lower.register("aten.group_norm")
def _group_norm(
    b: Lowerer, x: Any, num_groups: int, weight: Any = None, bias: Any = None, eps: float = 1e-5, *_: Any
) -> Value:
    """Layer normalisation of each group of channels, then a scale and a shift for each channel."""
    v = b.value(x)
    sizes = v.source_shape
    each = math.prod(sizes[1:]) // num_groups
    grouped = b.layer_norm(b.reshape(v, [sizes[0], num_groups, each]), 1, None, None, eps)
    result = b.reshape(grouped, sizes)
    for stored, combine in ((weight, b.times), (bias, b.plus)):
        if stored is not None:
            channelwise: Tensor = b.stored(stored, "affine part").reshape(-1, *(1,) * (len(sizes) - 2))
            result = combine(result, channelwise)
    return result


@lower.register("aten.instance_norm")
def _instance_norm(
    b: Lowerer,
    x: Any,
    weight: Any,
    bias: Any,
    mean: Any,
    var: Any,
    use_input_stats: bool,
    momentum: float,
    eps: float,
    *_: Any,
) -> Value:
    if use_input_stats:  # one group for each channel
        return _group_norm(b, x, b.value(x).source_shape[1], weight, bias, eps)
    return _batch_norm(b, x, weight, bias, mean, var, False, momentum, eps)


def _softmax_dtype(b: Lowerer, dtype: Any) -> None:
    if dtype is not None and dtype is not b.dtype and not isinstance(dtype, bool):
        b.cast(dtype)


@lower.register("aten.softmax", "aten._softmax", "aten._safe_softmax", "aten.special_softmax")
def _softmax(b: Lowerer, x: Value | Masked, dim: int, dtype: Any = None) -> Value:
    _softmax_dtype(b, dtype)
    if isinstance(x, Masked):
        return b.masked_softmax(x, dim % x.rank)
    return b.along(ops.Softmax, x, dim)


@lower.register("aten.log_softmax", "aten._log_softmax", "aten.special_log_softmax")
def _log_softmax(b: Lowerer, x: Value, dim: int, dtype: Any = None) -> Value:
    _softmax_dtype(b, dtype)
    return b.along(ops.LogSoftmax, x, dim)
