"""Normalisation layers."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from fractions import Fraction

import torch
from torch import Tensor

from lipverify.ir.interval import Interval
from lipverify.ir.norm import Norm
from lipverify.ir.op import Op, Shape
from lipverify.linalg.rounding import Upper
from lipverify.ops.embedding import blocks_norm, diagonal_norm, single, through_same_norm
from lipverify.ops.enclosure import Enclosure
from lipverify.rules import Gain, Unbounded, forward, gain, interval, linear, magnitude


@dataclass(frozen=True, eq=False)
class BatchNorm(Op):
    """Evaluation mode: y = (x - mean) / sqrt(var + eps) * weight + bias on one sample axis. All tensors [channels]."""

    weight: Tensor
    bias: Tensor
    mean: Tensor
    var: Tensor
    eps: float
    axis: int = 0


@dataclass(frozen=True, eq=False)
class LayerNorm(Op):
    """(x - mean) / sqrt(variance + eps) over the last len(shape) axes, times weight, plus bias (each of `shape`, or None)."""

    shape: tuple[int, ...]
    weight: Tensor | None
    bias: Tensor | None
    eps: float


@dataclass(frozen=True, eq=False)
class RMSNorm(Op):
    """x / sqrt(mean of x^2 + eps) over the last len(shape) axes, times weight (of `shape`, or None)."""

    shape: tuple[int, ...]
    weight: Tensor | None
    eps: float


def _channelwise(op: BatchNorm, values: Tensor, ndim: int) -> Tensor:
    shape = [1] * ndim
    shape[op.axis + 1] = -1
    return values.reshape(shape)


@forward.register(BatchNorm)
def _batch_norm(op: BatchNorm, x: Tensor) -> Tensor:
    factor = op.weight / torch.sqrt(op.var + op.eps)
    return (x - _channelwise(op, op.mean, x.ndim)) * _channelwise(op, factor, x.ndim) + _channelwise(
        op, op.bias, x.ndim
    )


@linear.register(BatchNorm)
def _batch_norm_part(op: BatchNorm, x: Tensor) -> Tensor:
    return x * _channelwise(op, op.weight / torch.sqrt(op.var + op.eps), x.ndim)


@magnitude.register(BatchNorm)
def _batch_norm_size(op: BatchNorm, x: Tensor) -> Tensor:
    return _batch_norm(replace(op, weight=op.weight.abs(), bias=op.bias.abs(), mean=-op.mean.abs()), x)


@forward.register(LayerNorm)
def _layer_norm(op: LayerNorm, x: Tensor) -> Tensor:
    return torch.nn.functional.layer_norm(x, list(op.shape), op.weight, op.bias, op.eps)


@forward.register(RMSNorm)
def _rms_norm(op: RMSNorm, x: Tensor) -> Tensor:
    axes = tuple(range(-len(op.shape), 0))
    scaled = x / torch.sqrt((x * x).mean(dim=axes, keepdim=True) + op.eps)
    return scaled if op.weight is None else scaled * op.weight


@gain.register(BatchNorm)
def _batch_norm_gain(op: BatchNorm, shapes: tuple[Shape, ...], norm_in: Norm, norm_out: Norm) -> Gain:
    """A diagonal matrix with |weight| / sqrt(var + eps), evaluated in float64 from the stored values and rounded up."""
    variance = _down(op.var.to(torch.float64) + op.eps)
    if not bool((variance > 0).all()):
        raise Unbounded("the variance plus eps of a channel is not positive")
    weight = op.weight.to(torch.float64).abs()
    factor = weight / _down(torch.sqrt(variance))
    factor = torch.where(weight > 0, torch.nextafter(factor, torch.full_like(factor, math.inf)), 0.0)
    return single(
        diagonal_norm(_channelwise(op, factor, len(shapes[0]) + 1)[0].expand(shapes[0]), norm_in, norm_out)
    )


def _down(value: Tensor) -> Tensor:
    return torch.nextafter(value, torch.full_like(value, -math.inf))


@gain.register(LayerNorm)
def _layer_norm_gain(op: LayerNorm, shapes: tuple[Shape, ...], norm_in: Norm, norm_out: Norm) -> Gain:
    """With t = var / (var + eps) and z the result before weight and bias: J = sqrt((1 - t)/eps) (I - 11'/n - zz'/n), |z|^2 = n t.

    l2: the matrix is positive semidefinite and at most I, so |J| <= 1/sqrt(eps), attained at constant inputs.
    l1 and linf (J is symmetric): a row sums to at most 2 (n-1)/n + |z_i| |z|_1 / n. With z_i = c sqrt(n t),
    |z|_1 <= sqrt(n t) (c + sqrt((n-1)(1-c^2))), and c^2 + c sqrt((n-1)(1-c^2)) <= (1 + sqrt n)/2: the row sums to at most
    a + b t with a = 2 (n-1)/n, b = (1 + sqrt n)/2. The weight multiplies rows: at most max |weight|.
    """
    n = math.prod(op.shape)
    if n == 1:
        return single(Upper.zero())
    slope = (Upper.one() + Upper.of(n).sqrt()) * 0.5
    return _normalised_gain(op, Upper.of(Fraction(2 * n - 2, n)), slope, shapes[0], norm_in, norm_out)


@gain.register(RMSNorm)
def _rms_norm_gain(op: RMSNorm, shapes: tuple[Shape, ...], norm_in: Norm, norm_out: Norm) -> Gain:
    """As for layer normalisation, with J = sqrt((1 - t)/eps) (I - zz'/n) and t = ms / (ms + eps), ms the mean square.

    A row sums to |1 - z_i^2/n| + |z_i| (|z|_1 - |z_i|)/n <= 1 + t c sqrt((n-1)(1-c^2)) <= a + b t, a = 1, b = sqrt(n-1)/2.
    """
    n = math.prod(op.shape)
    return _normalised_gain(op, Upper.one(), Upper.of(n - 1).sqrt() * 0.5, shapes[0], norm_in, norm_out)


def _normalised_gain(
    op: LayerNorm | RMSNorm, start: Upper, slope: Upper, shape: Shape, norm_in: Norm, norm_out: Norm
) -> Gain:
    """Largest weight over sqrt(eps), times 1 (l2) or max over t of sqrt(1 - t) (start + slope t) (l1, linf)."""
    if not op.eps > 0:
        raise Unbounded(
            "without eps its slope grows without limit where the input is constant or zero; set eps > 0"
        )
    n = math.prod(op.shape)
    weight = Upper.one() if op.weight is None else Upper.of(float(op.weight.to(torch.float64).abs().max()))
    scale = weight * Upper.of(1 / Fraction(op.eps)).sqrt()
    largest = _largest_row_sum(start, slope)

    def same(norm: Norm) -> Upper:
        return scale if norm is Norm.L2 else scale * largest

    block = through_same_norm(same, n, n, norm_in, norm_out)
    return single(blocks_norm(block, math.prod(shape) // n, norm_in, norm_out))


def _largest_row_sum(start: Upper, slope: Upper) -> Upper:
    """max over 0 <= t <= 1 of sqrt(1 - t) (a + b t): at 1 - t = (a + b)/(3 b) the value 2 b (1 - t)^(3/2), or at t = 0 a.

    Both are bounds for larger a, b as well, because the function grows with a and b.
    """
    a, b = Fraction(start.value), Fraction(slope.value)
    if 2 * b <= a:
        return start
    rest = Upper.of((a + b) / (3 * b))
    return slope * 2.0 * rest * rest.sqrt()


@interval.register(BatchNorm)
def _batch_norm_interval(op: BatchNorm, box: Interval) -> Interval:
    ndim = box.lower.ndim
    weight, bias, mean, var = (
        Enclosure.of(_channelwise(op, values, ndim)) for values in (op.weight, op.bias, op.mean, op.var)
    )
    return (Enclosure.of(box) - mean) * (weight / (var + op.eps).sqrt()) + bias


@interval.register(LayerNorm)
def _layer_norm_interval(op: LayerNorm, box: Interval) -> Interval:
    """With d = x - mean and n entries, d_i^2 <= (n - 1) var."""
    axes = tuple(range(-len(op.shape), 0))
    n = math.prod(op.shape)
    x = Enclosure.of(box)
    # x_i - mean = (1 - 1/n) x_i - (sum of the others)/n: every entry occurs once, so the ends are attained.
    total = x.sum(axes)
    others = Enclosure(*_swapped(total, x))
    centered = (x * float(n - 1) - others) / float(n)
    found = _normalised(op, centered, n - 1, axes)
    return found if op.bias is None else found + Enclosure.of(op.bias)


def _swapped(total: Enclosure, x: Enclosure) -> tuple[Tensor, Tensor]:
    """The sum without entry i: the ends of the sum minus the same ends of the entry, rounded outward."""
    lower = (Enclosure.of(total.lower) - Enclosure.of(x.lower)).lower
    upper = (Enclosure.of(total.upper) - Enclosure.of(x.upper)).upper
    return lower, upper


@interval.register(RMSNorm)
def _rms_norm_interval(op: RMSNorm, box: Interval) -> Interval:
    """x_i^2 <= n times the mean square."""
    return _normalised(op, Enclosure.of(box), math.prod(op.shape), tuple(range(-len(op.shape), 0)))


def _normalised(op: LayerNorm | RMSNorm, d: Enclosure, ratio: int, axes: tuple[int, ...]) -> Enclosure:
    """weight * d / sqrt(v + eps), v the mean of d^2 over the axes, which is at least d_i^2 / ratio.

    The largest value: d / sqrt(max(v_low, d^2/ratio) + eps) increases for d >= 0; for d < 0 the largest v counts.
    """
    if ratio == 0:
        found = Enclosure.of(torch.zeros_like(d.lower))
    else:
        mean = d.square().sum(axes) / float(math.prod(op.shape))
        if not op.eps > 0 and not bool((mean.lower > 0).all()):
            raise Unbounded("without eps it divides by a number that may be zero on this box")
        low, high = (_quotient(op, Enclosure.of(end), mean, ratio) for end in (d.lower, d.upper))
        bound = math.sqrt(ratio) * (1 + 2.0**-50)
        found = Enclosure(low.lower, high.upper).clipped(-bound, bound)
    return found if op.weight is None else found * Enclosure.of(op.weight)


def _quotient(op: LayerNorm | RMSNorm, d: Enclosure, mean: Enclosure, ratio: int) -> Enclosure:
    """d / sqrt(v + eps) for single d, over all v from the smallest possible one to the largest of the box."""
    own = d.square() / float(ratio)
    smallest = torch.maximum(mean.lower.clamp(min=0.0), own.lower)
    variance = Enclosure(torch.minimum(smallest, mean.upper), mean.upper.expand_as(smallest))
    return d / (variance + op.eps).sqrt()
