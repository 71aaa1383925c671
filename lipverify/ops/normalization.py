"""Normalisation layers and softmax."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor

from lipverify.ir.norm import Norm
from lipverify.ir.op import Op, Shape
from lipverify.linalg.rounding import Upper
from lipverify.ops.embedding import blocks_norm, diagonal_norm, single, through_same_norm
from lipverify.rules import Gain, Unbounded, forward, gain, linear


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


@dataclass(frozen=True, eq=False)
class Softmax(Op):
    """Softmax along one sample axis."""

    axis: int


@dataclass(frozen=True, eq=False)
class LogSoftmax(Op):
    """Logarithm of softmax along one sample axis."""

    axis: int


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


@forward.register(LayerNorm)
def _layer_norm(op: LayerNorm, x: Tensor) -> Tensor:
    return torch.nn.functional.layer_norm(x, list(op.shape), op.weight, op.bias, op.eps)


@forward.register(RMSNorm)
def _rms_norm(op: RMSNorm, x: Tensor) -> Tensor:
    axes = tuple(range(-len(op.shape), 0))
    scaled = x / torch.sqrt((x * x).mean(dim=axes, keepdim=True) + op.eps)
    return scaled if op.weight is None else scaled * op.weight


@forward.register(Softmax)
def _softmax(op: Softmax, x: Tensor) -> Tensor:
    return torch.softmax(x, dim=op.axis + 1)


@forward.register(LogSoftmax)
def _log_softmax(op: LogSoftmax, x: Tensor) -> Tensor:
    return torch.log_softmax(x, dim=op.axis + 1)


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


@gain.register(Softmax)
def _softmax_gain(op: Softmax, shapes: tuple[Shape, ...], norm_in: Norm, norm_out: Norm) -> Gain:
    """J = diag(p) - pp', symmetric. Sharp bounds, attained at p = (1/2, 1/2) or its limits.

    Any norm to itself: 1/2 (Nair 2025, arXiv 2510.23012). l1 -> linf: the largest entry p(1-p) <= 1/4. l1 -> l2: a column has
    squared norm p_j^2 ((1-p_j)^2 + sum of the other p_i^2) <= 2 p_j^2 (1-p_j)^2 <= 1/8; l2 -> linf by symmetry. linf -> q:
    signs s with plus mass a give entries 2 p_i (1-a) and -2 p_i a: l1 norm 4a(1-a) <= 1, squared l2 norm
    <= 8 a^2 (1-a)^2 <= 1/2; l2 -> l1 by symmetry.
    """
    n = shapes[0][op.axis]
    if n == 1:
        return single(Upper.zero())
    squares = {
        (Norm.L1, Norm.LINF): Fraction(1, 16),
        (Norm.L1, Norm.L2): Fraction(1, 8),
        (Norm.L2, Norm.LINF): Fraction(1, 8),
        (Norm.LINF, Norm.L2): Fraction(1, 2),
        (Norm.L2, Norm.L1): Fraction(1, 2),
        (Norm.LINF, Norm.L1): Fraction(1),
    }
    block = Upper.of(squares.get((norm_in, norm_out), Fraction(1, 4))).sqrt()
    return single(blocks_norm(block, math.prod(shapes[0]) // max(n, 1), norm_in, norm_out))


@gain.register(LogSoftmax)
def _log_softmax_gain(op: LogSoftmax, shapes: tuple[Shape, ...], norm_in: Norm, norm_out: Norm) -> Gain:
    """J = I - 1p'. Convex in p, so every norm is largest at a vertex p = e_k, where row i is e_i' - e_k'.

    l2: I - 1p' is idempotent, of norm |1| |p| <= sqrt(n). l1 -> q: columns e_j and (for j = k) n - 1 entries of size 1.
    p -> linf: a row with 1 and -1. linf -> q: n - 1 entries of size 2. l2 -> l1: the adjoint, |J's| with n - 1 entries of
    size 1 and one of size n - 1.
    """
    n = shapes[0][op.axis]
    if n == 1:
        return single(Upper.zero())
    squares = {
        (Norm.L1, Norm.L1): (n - 1) ** 2,
        (Norm.L1, Norm.L2): n - 1,
        (Norm.L1, Norm.LINF): 1,
        (Norm.L2, Norm.L1): n * (n - 1),
        (Norm.L2, Norm.L2): n,
        (Norm.L2, Norm.LINF): 2,
        (Norm.LINF, Norm.L1): 4 * (n - 1) ** 2,
        (Norm.LINF, Norm.L2): 4 * (n - 1),
        (Norm.LINF, Norm.LINF): 4,
    }
    block = Upper.of(squares[norm_in, norm_out]).sqrt()
    return single(blocks_norm(block, math.prod(shapes[0]) // max(n, 1), norm_in, norm_out))
