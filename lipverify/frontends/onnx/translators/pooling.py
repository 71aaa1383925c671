"""Pooling over windows and reductions over whole axes."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch

from lipverify import ops
from lipverify.frontends.builder import Value
from lipverify.frontends.building.window_norms import norms, window_entries, window_norms
from lipverify.frontends.onnx import forms
from lipverify.frontends.onnx.call import Call
from lipverify.frontends.onnx.registry import lower
from lipverify.frontends.onnx.translators.windows import Window, window
from lipverify.ir.op import Op, Shape


def _window(c: Call, x: Value) -> Window:
    kernel = c.attribute("kernel_shape")
    found = window(c, kernel, x.source_shape[2:])
    spans = [d * (k - 1) + 1 for d, k in zip(found.dilation, found.kernel, strict=True)]
    if any(max(pair) >= span for pair, span in zip(found.padding, spans, strict=True)):
        raise c.refuse(
            f"pads {list(found.padding)} are as large as the window {kernel}", "pad by a node of its own"
        )
    return found


@lower.register("MaxPool")
def _max_pool(c: Call) -> Value:
    if any(c.used[1:]):
        raise c.refuse("uses the positions of maxima, which jump", "export without return_indices")
    x = c.value()
    w = _window(c, x)
    ceil = c.flag("ceil_mode") and not w.automatic
    return c.build.max_pool(x, w.kernel, w.stride, w.padding, w.dilation, ceil)


@lower.register("AveragePool")
def _average_pool(c: Call) -> Value:
    x = c.value()
    w = _window(c, x)
    if any(d != 1 for d in w.dilation):
        return _dilated_average(c, x, w)
    ceil = c.flag("ceil_mode") and not w.automatic
    return c.build.avg_pool(x, w.kernel, w.stride, w.padding, ceil, c.flag("count_include_pad"))


def _dilated_average(c: Call, x: Value, w: Window) -> Value:
    """Sums over windows, one axis after the other, over the numbers of entries that count."""
    b, rank = c.build, len(w.kernel)
    counted = c.flag("count_include_pad")
    counts = torch.ones((), dtype=torch.float64)
    first, ceil = x.rank - rank, c.flag("ceil_mode") and not w.automatic
    for offset, size in enumerate(x.source_shape[-rank:]):
        entries, before, _ = window_entries(
            size, w.kernel[offset], w.stride[offset], w.dilation[offset], w.padding[offset], ceil
        )
        matrix = torch.zeros(len(entries), size, dtype=b.dtype)
        count = torch.zeros(len(entries), dtype=torch.float64)
        for row, held in enumerate(entries):
            inside = [entry - before for entry in held if 0 <= entry - before < size]
            matrix[row, inside] = 1.0
            ends = sum(w.padding[offset]) + size
            count[row] = sum(entry < ends for entry in held) if counted else len(inside)
        x = b.along_axis(x, first + offset, matrix)
        counts = counts.unsqueeze(-1) * count
    if bool((counts == 0).any()):
        raise c.refuse("a window of the average holds no entry that counts")
    return b.over(x, counts.to(b.dtype))


def _register_global(name: str, kind: type[Op]) -> None:
    @lower.register(name)
    def translate(c: Call) -> Value:
        x = c.value()
        if x.rank < 3:
            raise c.invalid("needs batch, channels and at least one spatial axis")
        return c.build.reduce(kind, x, range(2, x.rank), True)


def _register_reduction(name: str, kind: type[Op], since: int) -> None:
    @lower.register(name)
    def translate(c: Call) -> Value:
        return _reduced(c, c.value(), kind, since)


def _reduced(c: Call, x: Value, kind: Callable[[Shape, bool], Op], since: int) -> Value:
    axes = forms.axes(c, since)
    keep = c.flag("keepdims", 1)
    if not axes:
        if c.flag("noop_with_empty_axes"):
            return x
        axes = list(range(x.rank))
    return c.build.reduce(kind, x, sorted(forms.all_normalised(c, axes, x.rank)), keep)


_register_global("GlobalAveragePool", ops.ReduceMean)
_register_global("GlobalMaxPool", ops.ReduceMax)
_register_reduction("ReduceSum", ops.ReduceSum, 13)
_register_reduction("ReduceMean", ops.ReduceMean, 18)
_register_reduction("ReduceMax", ops.ReduceMax, 18)
_register_reduction("ReduceMin", ops.ReduceMin, 18)


@lower.register("ReduceL1")
def _reduce_l1(c: Call) -> Value:
    _refuse_noop(c)
    return _reduced(c, c.build.elementwise(ops.Abs(), c.value()), ops.ReduceSum, 18)


@lower.register("ReduceSumSquare")
def _reduce_sum_square(c: Call) -> Value:
    _refuse_noop(c)
    return _reduced(c, c.build.elementwise(ops.Power(2.0), c.value()), ops.ReduceSum, 18)


def _refuse_noop(c: Call) -> None:
    if c.flag("noop_with_empty_axes") and not forms.axes(c, 18):
        raise c.refuse("readers disagree what it does without axes", "name the axes")


@lower.register("ReduceL2")
def _reduce_l2(c: Call) -> Value:
    _refuse_noop(c)
    return _reduced(c, c.value(), ops.ReduceNorm, 18)


@lower.register("ReduceLogSumExp")
def _reduce_log_sum_exp(c: Call) -> Value:
    _refuse_noop(c)
    return _reduced(c, c.value(), ops.ReduceLogSumExp, 18)


@lower.register("ReduceLogSum")
def _reduce_log_sum(c: Call) -> Value:
    _refuse_noop(c)
    return c.build.elementwise(ops.Log(), _reduced(c, c.value(), ops.ReduceSum, 18))


@lower.register("ReduceProd")
def _reduce_prod(c: Call) -> Value:
    """Products of pairs of halves, of pairs of those, and so on."""
    _refuse_noop(c)
    b, x = c.build, c.value()
    axes = forms.axes(c, 18)
    chosen = list(range(x.rank)) if not axes else forms.all_normalised(c, axes, x.rank)
    if math.prod(x.source_shape[axis] for axis in chosen) > 256:
        raise c.refuse("multiplies more than 256 computed numbers with each other", "use fewer")
    for axis in chosen:
        while (size := x.source_shape[axis]) > 1:
            half = size // 2
            pairs = b.times(b.slice(x, axis, 0, half), b.slice(x, axis, half, 2 * half))
            x = pairs if size == 2 * half else b.concat([pairs, b.slice(x, axis, 2 * half, size)], axis)
    if c.flag("keepdims", 1):
        return x
    return b.squeeze(b.free(x, *chosen), chosen)


@lower.register("LpNormalization")
def _lp_normalization(c: Call) -> Value:
    b, x = c.build, c.value()
    axis, order = forms.normalised(c, c.attribute("axis", -1), x.rank), c.attribute("p", 2)
    if order not in (1, 2):
        raise c.invalid(f"a norm of order {order}")
    x = b.free(x, axis)
    return b.add(ops.Normalize((b.axis(x, axis),), order), (x,), x.batch)


def _order(c: Call) -> int:
    order = c.attribute("p", 2)
    if order < 1:
        raise c.invalid(f"a norm of order {order}")
    return int(order)


@lower.register("GlobalLpPool")
def _global_lp_pool(c: Call) -> Value:
    x = c.value()
    if x.rank < 3:
        raise c.invalid("needs batch, channels and at least one spatial axis")
    return norms(c.build, x, list(range(2, x.rank)), True, _order(c))


@lower.register("LpPool")
def _lp_pool(c: Call) -> Value:
    """Norms of windows, with zeros where a window hangs over."""
    x = c.value()
    w = _window(c, x)
    ceil = c.flag("ceil_mode") if c.version >= 18 and not w.automatic else False
    return window_norms(c.build, x, w.kernel, w.stride, w.dilation, w.padding, ceil, _order(c))


@lower.register("LRN")
def _local_response(c: Call) -> Value:
    """x / (bias + alpha/size * sum of squares over neighbouring channels)^beta."""
    b, x = c.build, c.value()
    size = c.attribute("size")
    if x.rank < 3 or size < 1:
        raise c.invalid(f"a window of {size} channels of a tensor {list(x.source_shape)}")
    channels = x.source_shape[1]
    position = torch.arange(channels)
    gap = position[None, :] - position[:, None]
    near = (gap >= -((size - 1) // 2)) & (gap <= size // 2)
    sums = b.along_axis(b.elementwise(ops.Power(2.0), x), 1, near.to(b.dtype))
    alpha, beta = c.attribute("alpha", float(np.float32(1e-4))), c.attribute("beta", 0.75)
    total = b.plus(
        b.over(b.times(sums, b.number(alpha)), b.number(float(size))), b.number(c.attribute("bias", 1.0))
    )
    return b.times(x, b.elementwise(ops.Power(-beta), total))
