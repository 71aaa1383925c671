"""Pooling over windows and reductions over whole axes."""

from __future__ import annotations

from lipverify import ops
from lipverify.frontends.builder import Value
from lipverify.frontends.onnx import forms
from lipverify.frontends.onnx.call import Call
from lipverify.frontends.onnx.registry import lower
from lipverify.frontends.onnx.translators.windows import Window, window
from lipverify.ir.op import Op


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
        raise c.refuse(f"average pooling with dilations {list(w.dilation)} is not covered")
    ceil = c.flag("ceil_mode") and not w.automatic
    return c.build.avg_pool(x, w.kernel, w.stride, w.padding, ceil, c.flag("count_include_pad"))


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


def _reduced(c: Call, x: Value, kind: type[Op], since: int) -> Value:
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
