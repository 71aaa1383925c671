"""Normalisation layers."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from lipverify.frontends.builder import Value
from lipverify.frontends.onnx import forms
from lipverify.frontends.onnx.call import Call
from lipverify.frontends.onnx.registry import lower

_EPSILON = float(np.float32(1e-5))


@lower.register("BatchNormalization")
def _batch_norm(c: Call) -> Value:
    if c.flag("training_mode") or any(c.used[1:]) or (c.version < 14 and len(c.used) > 1):
        raise c.refuse("normalises with the statistics of the batch", "export in evaluation mode")
    if c.attribute("spatial", 1) != 1:
        raise c.refuse("normalises every entry on its own (spatial = 0)", "export per-channel statistics")
    x = c.value()
    if x.rank < 2:
        raise c.invalid("needs batch and channels")
    weight, bias, mean, var = (
        c.stored(i, role) for i, role in enumerate(("scale", "bias", "mean", "variance"), start=1)
    )
    if any(tuple(t.shape) != (x.source_shape[1],) for t in (weight, bias, mean, var)):
        raise c.invalid(f"its parameters {list(weight.shape)} do not fit {x.source_shape[1]} channels")
    return c.build.batch_norm(x, weight, bias, mean, var, c.attribute("epsilon", _EPSILON))


@lower.register("LayerNormalization")
def _layer_norm(c: Call) -> Value:
    if any(c.used[1:]):
        raise c.refuse(
            "uses the mean or the deviation of a layer normalisation", "export without these outputs"
        )
    x = c.value()
    first = forms.normalised(c, c.attribute("axis", -1), x.rank)
    shape = x.source_shape[first:]
    weight, bias = (_fitted(c, c.optional(i, role), shape) for i, role in ((1, "scale"), (2, "bias")))
    return c.build.layer_norm(x, len(shape), weight, bias, c.attribute("epsilon", _EPSILON))


def _fitted(c: Call, parameter: Tensor | None, shape: tuple[int, ...]) -> Tensor | None:
    """A parameter broadcast to the normalised axes."""
    if parameter is None:
        return None
    while parameter.ndim > len(shape) and parameter.shape[0] == 1:
        parameter = parameter.squeeze(0)
    try:
        return parameter.expand(shape).contiguous()
    except RuntimeError:
        raise c.refuse(f"its parameters {list(parameter.shape)} do not fit {list(shape)}") from None


@lower.register("InstanceNormalization")
def _instance_norm(c: Call) -> Value:
    x = c.value()
    return _grouped(c, x, x.source_shape[1] if x.rank > 1 else 0, per_group=False)


@lower.register("GroupNormalization")
def _group_norm(c: Call) -> Value:
    return _grouped(c, c.value(), c.attribute("num_groups"), per_group=c.version < 21)


def _grouped(c: Call, x: Value, groups: int, *, per_group: bool) -> Value:
    """Each group of channels is normalised by its own mean and deviation, then every channel is scaled and shifted."""
    b = c.build
    if x.rank < 3 or groups < 1 or x.source_shape[1] % groups:
        raise c.invalid(f"{groups} groups of a tensor {list(x.source_shape)}")
    channels = x.source_shape[1]
    count = groups if per_group else channels
    weight, bias = c.stored(1, "scale"), c.stored(2, "bias")
    if tuple(weight.shape) != (count,) or tuple(bias.shape) != (count,):
        raise c.invalid(f"its parameters {list(weight.shape)}, {list(bias.shape)} are not [{count}]")
    flat = b.reshape(x, [x.source_shape[0], groups, math.prod(x.source_shape[1:]) // groups])
    normal = b.reshape(b.layer_norm(flat, 1, None, None, c.attribute("epsilon", _EPSILON)), x.source_shape)
    weight, bias = (
        torch.repeat_interleave(t, channels // count).reshape(-1, *(1,) * (x.rank - 2))
        for t in (weight, bias)
    )
    return b.plus(b.times(normal, weight), bias)
