"""Planted wrong rules: each is a mistake somebody could make."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from lipverify import ops, rules
from lipverify.ir.interval import Interval
from lipverify.ir.norm import Norm
from lipverify.ir.op import Op
from lipverify.ops.enclosure import Enclosure
from lipverify.ops.pooling import window_sums
from lipverify.rules import Gain, Rule, Slopes

Right = Callable[..., Any]
Wrong = Callable[[Right], Callable[..., Any]]


def constant_gain(value: float) -> Wrong:
    return lambda right: lambda op, shapes, p, q: Gain(tuple(value for _ in right(op, shapes, p, q).factors))


def gain_times(factor: Callable[[Any], float]) -> Wrong:
    def mutant(right: Right) -> Callable[..., Gain]:
        def wrong(op: Op, shapes: Any, p: Norm, q: Norm) -> Gain:
            found = right(op, shapes, p, q)
            return replace(found, factors=tuple(f * factor(op) for f in found.factors))

        return wrong

    return mutant


def with_joint(joint: Norm) -> Wrong:
    return lambda right: lambda *args: replace(right(*args), joint=joint)


def with_op(change: Callable[[Any], Op]) -> Wrong:
    """The right rule, asked about another operator: a parameter that is overlooked."""
    return lambda right: lambda op, *args: right(change(op), *args)


def line_slopes(lower: float, upper: float) -> Wrong:
    def mutant(right: Right) -> Callable[..., Slopes]:
        def wrong(op: Op, box: Interval | None, shape: Any) -> Slopes:
            if box is not None:
                return right(op, box, shape)
            ends = torch.tensor([lower, upper], dtype=torch.float64)
            return Slopes(ends[0].expand(shape), ends[1].expand(shape))

        return wrong

    return mutant


def slopes_at_ends_only(right: Right) -> Callable[..., Slopes]:
    """The derivative at both ends of the box: misses maxima inside."""

    def wrong(op: Op, box: Interval | None, shape: Any) -> Slopes:
        if box is None:
            return right(op, box, shape)
        ends = [right(op, Interval(end, end), shape) for end in (box.lower, box.upper)]
        return Slopes(
            torch.minimum(ends[0].lower, ends[1].lower), torch.maximum(ends[0].upper, ends[1].upper)
        )

    return wrong


def interval_of_ends(right: Right) -> Callable[..., Interval]:
    """The results at both ends, sorted: right for monotone functions only."""

    def wrong(op: Op, *boxes: Interval) -> Interval:
        low = rules.forward(op, *(box.lower for box in boxes))
        high = rules.forward(op, *(box.upper for box in boxes))
        return Interval(torch.minimum(low, high), torch.maximum(low, high))

    return wrong


def center_only(right: Right) -> Callable[..., Interval]:
    """Interval of the centre: the radius is forgotten."""
    return lambda op, *boxes: right(op, *(Interval(box.center, box.center) for box in boxes))


def signed_radius(right: Right) -> Callable[..., Interval]:
    """W r in place of |W| r."""

    def wrong(op: Any, box: Interval) -> Interval:
        center, spread = rules.forward(op, box.center), rules.linear(op, box.width / 2).abs()
        return Interval(center, center).widened(spread)

    return wrong


def swapped_subtraction(right: Right) -> Callable[..., Interval]:
    def wrong(op: Op, x: Interval, y: Interval) -> Interval:
        ends = torch.stack((x.lower - y.lower, x.upper - y.upper))
        return Interval(ends.amin(0), ends.amax(0)).widened(1e-12)

    return wrong


def product_of_equal_ends(right: Right) -> Callable[..., Interval]:
    """Two of the four corners."""

    def wrong(op: Op, x: Interval, y: Interval) -> Interval:
        ends = torch.stack((x.lower * y.lower, x.upper * y.upper))
        return Interval(ends.amin(0), ends.amax(0)).widened(1e-12)

    return wrong


def batch_norm_without_root(right: Right) -> Callable[..., Gain]:
    def wrong(op: ops.BatchNorm, shapes: Any, p: Norm, q: Norm) -> Gain:
        # weight / (var + eps): the variance of the wrong operator is the square of the right one.
        return right(replace(op, var=(op.var + op.eps) ** 2, eps=0.0), shapes, p, q)

    return wrong


def norm_inverted(right: Right) -> Callable[..., Gain]:
    def wrong(op: Any, shapes: Any, p: Norm, q: Norm) -> Gain:
        return right(replace(op, eps=1 / op.eps), shapes, p, q)

    return wrong


def spectral_radius(right: Right) -> Callable[..., Gain]:
    """The largest eigenvalue in place of the largest singular value."""

    def wrong(op: ops.Linear, shapes: Any, p: Norm, q: Norm) -> Gain:
        matrix = op.weight.double()
        if p is not Norm.L2 or q is not Norm.L2 or matrix.shape[0] != matrix.shape[1]:
            return right(op, shapes, p, q)
        return Gain((float(torch.linalg.eigvals(matrix).abs().max()),))

    return wrong


def transposed_norms(right: Right) -> Callable[..., Gain]:
    """Row sums for l1 and column sums for linf."""
    return lambda op, shapes, p, q: right(op, shapes, p.dual, q.dual)


def reshaped_kernel(right: Right) -> Callable[..., Gain]:
    """The norm of the kernel as a matrix, as spectral normalisation computes it."""

    def wrong(op: ops.Conv, shapes: Any, p: Norm, q: Norm) -> Gain:
        if not p is q is Norm.L2:
            return right(op, shapes, p, q)
        return Gain((float(torch.linalg.matrix_norm(op.weight.flatten(1).double(), 2)),))

    return wrong


def circular_fft(right: Right) -> Callable[..., Gain]:
    """The spectrum on a torus of the size of the image, for one channel and zero padding."""

    def wrong(op: ops.Conv, shapes: Any, p: Norm, q: Norm) -> Gain:
        if not p is q is Norm.L2 or op.weight.shape[:2] != (1, 1):
            return right(op, shapes, p, q)
        size = shapes[0][1:]
        return Gain((float(torch.fft.fftn(op.weight[0, 0].double(), s=size).abs().max()),))

    return wrong


def first_group_only(right: Right) -> Callable[..., Gain]:
    """The norm of one group of channels in place of the largest."""

    def wrong(op: ops.Conv, shapes: Any, p: Norm, q: Norm) -> Gain:
        group = op.weight[: op.weight.shape[0] // op.groups]
        shape = (shapes[0][0] // op.groups, *shapes[0][1:])
        return right(replace(op, weight=group, bias=None, groups=1), (shape,), p, q)

    return wrong


def average_of_full_windows(right: Right) -> Callable[..., Gain]:
    """Every window divides by the kernel size, also where the padding does not count."""
    return lambda op, *args: right(
        replace(op, count_include_pad=True, uncounted=(0,) * len(op.kernel)), *args
    )


def average_interval_of_full_windows(right: Right) -> Callable[..., Interval]:
    def wrong(op: ops.AvgPool, box: Interval) -> Interval:
        count = math.prod(op.kernel)
        ends = [window_sums(op, end) / count for end in (box.lower, box.upper)]
        return Interval(*ends).widened(1e-9)

    return wrong


def relu_slopes_open(right: Right) -> Callable[..., Slopes]:
    """Active where the lower end is >= 0 - and also where the box reaches below 0."""

    def wrong(op: Op, box: Interval | None, shape: Any) -> Slopes:
        if box is None:
            return right(op, box, shape)
        active = (box.center > 0).double()
        return Slopes(active, active)

    return wrong


def selu_without_gamma(right: Right) -> Callable[..., Slopes]:
    return with_op(lambda op: ops.SELU(op.alpha, 1.0))(right)


def scale_in_input_order(right: Right) -> Callable[..., Interval]:
    """Ends in the order of the input, wrong where the factor is negative."""

    def wrong(op: ops.Scale, box: Interval) -> Interval:
        low, high = rules.forward(op, box.lower), rules.forward(op, box.upper)
        return Interval(low, torch.maximum(low, high))

    return wrong


def layer_norm_interval_fixed_variance(right: Right) -> Callable[..., Interval]:
    """Divides by the deviation at the centre."""

    def wrong(op: ops.LayerNorm, box: Interval) -> Interval:
        axes = tuple(range(-len(op.shape), 0))
        deviation = (box.center.var(axes, correction=0, keepdim=True) + op.eps).sqrt()
        mean = Enclosure.of(box.center.mean(axes, keepdim=True))
        found = (Enclosure.of(box) - mean) / Enclosure.of(deviation)
        found = found if op.weight is None else found * Enclosure.of(op.weight.double())
        return found if op.bias is None else found + Enclosure.of(op.bias.double())

    return wrong


GAIN, SLOPES, INTERVAL, LINEAR = rules.gain, rules.slopes, rules.interval, rules.linear

MUTANTS: list[tuple[str, Rule[Any], type[Op], Wrong]] = [
    ("gelu has slope 1", SLOPES, ops.GELU, line_slopes(0.0, 1.0)),
    ("gelu never falls", SLOPES, ops.GELU, line_slopes(0.0, 1.13)),
    ("gelu constant of the other form", SLOPES, ops.GELU, line_slopes(-0.1, 1.1)),
    ("silu has slope 1", SLOPES, ops.SiLU, line_slopes(-0.1, 1.0)),
    ("mish has slope 1", SLOPES, ops.Mish, line_slopes(-0.12, 1.0)),
    ("hardswish has slope 1", SLOPES, ops.Hardswish, line_slopes(0.0, 1.0)),
    ("leaky slope above 1 forgotten", SLOPES, ops.LeakyReLU, line_slopes(0.0, 1.0)),
    ("prelu is a relu", SLOPES, ops.PReLU, line_slopes(0.0, 1.0)),
    ("elu(2) has slope 1", SLOPES, ops.ELU, line_slopes(0.0, 1.0)),
    ("selu without gamma", SLOPES, ops.SELU, selu_without_gamma),
    ("sigmoid has slope 1/5", SLOPES, ops.Sigmoid, line_slopes(0.0, 0.2)),
    ("erf has slope 1", SLOPES, ops.Erf, line_slopes(0.0, 1.0)),
    ("hardsigmoid of torch for every alpha", SLOPES, ops.Hardsigmoid, line_slopes(0.0, 1 / 6)),
    ("cosine does not fall", SLOPES, ops.Cos, line_slopes(0.0, 1.0)),
    *(
        (f"{kind.__name__} box slopes at the ends only", SLOPES, kind, slopes_at_ends_only)
        for kind in (
            ops.GELU,
            ops.SiLU,
            ops.Mish,
            ops.Sigmoid,
            ops.Tanh,
            ops.Sin,
            ops.Hardswish,
            ops.Erf,
            ops.Softsign,
        )
    ),
    ("relu box slopes of the centre", SLOPES, ops.ReLU, relu_slopes_open),
    ("softplus box slopes without beta", SLOPES, ops.Softplus, with_op(lambda op: ops.Softplus(1.0))),
    ("quick gelu taken for silu", SLOPES, ops.SiLU, with_op(lambda op: ops.SiLU(1.0))),
    ("tanh form taken for the erf form", SLOPES, ops.GELU, with_op(lambda op: ops.GELU(False))),
    ("elu box slopes without alpha", SLOPES, ops.ELU, with_op(lambda op: ops.ELU(1.0))),
    ("maxpool never amplifies", GAIN, ops.MaxPool, constant_gain(1.0)),
    (
        "maxpool without dilation",
        GAIN,
        ops.MaxPool,
        with_op(lambda op: replace(op, dilation=(1,) * len(op.kernel))),
    ),
    ("maxpool strides by its kernel", GAIN, ops.MaxPool, with_op(lambda op: replace(op, stride=op.kernel))),
    ("avgpool counts", GAIN, ops.AvgPool, average_of_full_windows),
    ("avgpool never overlaps", GAIN, ops.AvgPool, with_op(lambda op: replace(op, stride=op.kernel))),
    ("concat is a maximum", GAIN, ops.Concat, with_joint(Norm.LINF)),
    ("residual is a maximum", GAIN, ops.Add, with_joint(Norm.LINF)),
    ("residual is a hypotenuse", GAIN, ops.Add, with_joint(Norm.L2)),
    ("subtraction is a hypotenuse", GAIN, ops.Sub, with_joint(Norm.L2)),
    ("maximum takes one input", GAIN, ops.Maximum, with_joint(Norm.LINF)),
    ("batchnorm without a root", GAIN, ops.BatchNorm, batch_norm_without_root),
    (
        "batchnorm without its weight",
        GAIN,
        ops.BatchNorm,
        with_op(lambda op: replace(op, weight=torch.ones_like(op.var))),
    ),
    ("layernorm with eps inverted", GAIN, ops.LayerNorm, norm_inverted),
    ("layernorm is 1", GAIN, ops.LayerNorm, constant_gain(1.0)),
    ("layernorm without its weight", GAIN, ops.LayerNorm, with_op(lambda op: replace(op, weight=None))),
    ("rmsnorm with eps inverted", GAIN, ops.RMSNorm, norm_inverted),
    ("softmax is 1/4", GAIN, ops.Softmax, gain_times(lambda op: 0.5)),
    ("logsoftmax is 1", GAIN, ops.LogSoftmax, constant_gain(1.0)),
    ("mean a tenth short", GAIN, ops.ReduceMean, gain_times(lambda op: 0.9)),
    ("sum is 1", GAIN, ops.ReduceSum, constant_gain(1.0)),
    ("upsampling copies nothing", GAIN, ops.Upsample, constant_gain(1.0)),
    ("gather never repeats", GAIN, ops.Gather, constant_gain(1.0)),
    ("padding never copies", GAIN, ops.Pad, with_op(lambda op: replace(op, mode="constant"))),
    ("expand copies nothing", GAIN, ops.Expand, constant_gain(1.0)),
    ("householder is 1 in every norm", GAIN, ops.Householder, constant_gain(1.0)),
    ("spectral radius for the norm", GAIN, ops.Linear, spectral_radius),
    ("rows and columns exchanged", GAIN, ops.Linear, transposed_norms),
    ("norm of the reshaped kernel", GAIN, ops.Conv, reshaped_kernel),
    ("circular spectrum for zero padding", GAIN, ops.Conv, circular_fft),
    (
        "convolution without groups",
        GAIN,
        ops.Conv,
        with_op(lambda op: replace(op, stride=(9,) * len(op.stride))),
    ),
    ("scale one per cent short", GAIN, ops.Scale, gain_times(lambda op: 0.99)),
    (
        "division taken for multiplication",
        GAIN,
        ops.DivideBy,
        with_op(lambda op: ops.DivideBy(1 / op.divisor)),
    ),
    ("product of computed tensors is 1", GAIN, ops.Mul, lambda right: lambda *args: Gain((1.0, 1.0))),
    ("linear interval without its radius", INTERVAL, ops.Linear, center_only),
    ("linear interval W r", INTERVAL, ops.Linear, signed_radius),
    ("convolution interval W r", INTERVAL, ops.Conv, signed_radius),
    ("scale interval keeps its order", INTERVAL, ops.Scale, scale_in_input_order),
    ("subtraction of equal ends", INTERVAL, ops.Sub, swapped_subtraction),
    ("two corners of a product", INTERVAL, ops.Mul, product_of_equal_ends),
    *(
        (f"{kind.__name__} interval of sorted ends", INTERVAL, kind, interval_of_ends)
        for kind in (
            ops.Abs,
            ops.GELU,
            ops.SiLU,
            ops.Mish,
            ops.Hardswish,
            ops.Sin,
            ops.Cos,
            ops.Power,
            ops.Softmax,
        )
    ),
    ("leaky interval with a negative slope", INTERVAL, ops.LeakyReLU, interval_of_ends),
    ("avgpool interval counts", INTERVAL, ops.AvgPool, average_interval_of_full_windows),
    (
        "layernorm interval of the centre's deviation",
        INTERVAL,
        ops.LayerNorm,
        layer_norm_interval_fixed_variance,
    ),
    ("matmul interval of the ends", INTERVAL, ops.MatMul, interval_of_ends),
    (
        "descending sort taken for ascending",
        INTERVAL,
        ops.GroupSort,
        with_op(lambda op: replace(op, descending=False)),
    ),
    ("linear part with the bias", LINEAR, ops.Linear, lambda right: rules.forward._answers[ops.Linear]),
    ("linear part of padding with its fill", LINEAR, ops.Pad, lambda right: rules.forward._answers[ops.Pad]),
]
