"""Values behind one operator: affine and piecewise linear ones in fixed point, all others by their `interval` rules."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from fractions import Fraction

import torch
from torch import Tensor

from lipverify import ops
from lipverify.deadline import look
from lipverify.errors import InternalError
from lipverify.ir.interval import Interval
from lipverify.ir.op import Op
from lipverify.linalg import saturating
from lipverify.linalg.fixed import BITS, Fixed, Imprecise, aligned, scaled_up, where
from lipverify.linalg.rounding import gamma
from lipverify.ops.pooling import batched_axes, window_counts, window_sums
from lipverify.propagation.pointwise.selections import Selection
from lipverify.rules import forward, interval, linear

MOVES = (ops.Reshape, ops.Transpose, ops.Slice, ops.Gather, ops.Upsample, ops.DepthToSpace, ops.Expand)
SELECTIONS = (ops.MaxPool, ops.ReduceMax, ops.ReduceMin, ops.Maximum, ops.Minimum, ops.GroupSort)
PIECES = (ops.ReLU, ops.Abs, ops.LeakyReLU, ops.PReLU, ops.Clip, ops.Hardsigmoid)
AFFINE = (
    *MOVES,
    ops.Pad,
    ops.Linear,
    ops.Conv,
    ops.ConvTranspose,
    ops.Scale,
    ops.DivideBy,
    ops.BatchNorm,
    ops.AvgPool,
    ops.ReduceSum,
    ops.ReduceMean,
    ops.Add,
    ops.Sub,
    ops.Concat,
)


CURVES = {ops.Tanh: saturating.tanh, ops.Sigmoid: saturating.logistic}
"""Functions that have images in fixed point; no slope of theirs is above 1."""


class Images:
    """digits: to the base 2^20, that results have; curved: whether `CURVES` and products have as many, in more time."""

    def __init__(self, digits: int, curved: bool = False) -> None:
        self.digits, self.curved = digits, curved

    def image(self, op: Op, xs: Sequence[Fixed]) -> Fixed:
        if isinstance(op, AFFINE):
            return self.affine(op, xs, constants=True)
        if isinstance(op, SELECTIONS):
            return Selection(op, xs, self.digits).points()
        if isinstance(op, PIECES):
            return self._pieces(op, xs[0])
        if self.curved and type(op) in CURVES:
            return self._curve(CURVES[type(op)], xs[0])
        if self.curved and isinstance(op, ops.Mul):
            return xs[0].times(xs[1], self.digits)
        box = interval(op, *(Interval(*x.ends()) for x in xs))
        return Fixed.between(box.lower, box.upper, self.digits)

    def affine(self, op: Op, xs: Sequence[Fixed], constants: bool) -> Fixed:
        """An affine operator, or its linear part."""
        match op:
            case ops.Add():
                return xs[0].plus(xs[1], self.digits)
            case ops.Sub():
                return xs[0].minus(xs[1], self.digits)
            case ops.Concat(axis=axis):
                held = aligned(xs, self.digits)
                digits = torch.cat([x.digits for x in held], dim=axis + 2)
                return Fixed(digits, torch.cat([x.radius for x in held], dim=axis + 1), held[0].exponent)
            case ops.Pad():
                found = xs[0].moved(lambda t: linear(op, t))
                return self._shifted(found, op, xs[0]) if constants and op.fill else found
            case ops.Linear() | ops.Conv() | ops.ConvTranspose():
                return self._weighted(op, xs[0], constants)
            case ops.Scale(scale=scale, shift=shift):
                found = xs[0] if scale is None else xs[0].times(self.stored(scale, xs[0]), self.digits)
                if shift is None or not constants:
                    return found
                return found.plus(self.stored(shift, xs[0]), self.digits)
            case ops.DivideBy(divisor=divisor):
                return xs[0].times(self._reciprocals(divisor, xs[0]), self.digits)
            case ops.BatchNorm():
                return self._batch_norm(op, xs[0], constants)
            case ops.AvgPool():
                found = self.summed(lambda t: window_sums(op, t), math.prod(op.kernel), xs[0])
                return found.times(self._reciprocals(window_counts(op, xs[0].radius), found), self.digits)
            case ops.ReduceSum() | ops.ReduceMean():
                axes, keep = batched_axes(op.axes), op.keepdims
                size = math.prod(xs[0].shape[axis] for axis in axes)
                found = self.summed(lambda t: t.sum(dim=axes, keepdim=keep), size, xs[0])
                if isinstance(op, ops.ReduceSum):
                    return found
                return found.times(self._reciprocals(torch.tensor(float(size)), found), self.digits)
            case _:
                return xs[0].moved(lambda t: linear(op, t))

    def _weighted(self, op: ops.Linear | ops.Conv | ops.ConvTranspose, x: Fixed, constants: bool) -> Fixed:
        weight = op.weight
        if isinstance(op, ops.Linear):
            terms = weight.shape[1]
        else:
            channels = weight.shape[1] if isinstance(op, ops.Conv) else weight.shape[0] // op.groups
            terms = channels * math.prod(weight.shape[2:])
        stored = Fixed.of(weight, self.digits + 3)
        found = x.through(
            stored, lambda w, t: linear(replace(op, weight=w, bias=None), t), terms, self.digits
        )
        if op.bias is None or not constants:
            return found
        bias = op.bias if isinstance(op, ops.Linear) else op.bias.reshape(-1, *(1,) * (weight.ndim - 2))
        return found.plus(self.stored(bias, found), self.digits)

    def summed(self, apply: Callable[[Tensor], Tensor], terms: int, x: Fixed) -> Fixed:
        one = Fixed.of(torch.ones((), dtype=torch.float64), 1)
        return x.through(one, lambda w, t: apply(t) * w, terms, self.digits)

    def _batch_norm(self, op: ops.BatchNorm, x: Fixed, constants: bool) -> Fixed:
        """(x - mean) weight / sqrt(var + eps) + bias, the factors in as many digits as everything else."""
        unit = 2 ** (20 * (self.digits + 3))
        factors = []
        for weight, variance in zip(op.weight.tolist(), op.var.tolist(), strict=True):
            inside = Fraction(variance) + Fraction(op.eps)
            if not inside > 0:
                raise Imprecise("the variance plus eps of a channel is not positive")
            factors.append((Fraction(weight), inside, unit))
        lower, upper = zip(*(_over_root(*factor) for factor in factors), strict=True)
        shape = [1] * len(x.shape)
        shape[op.axis + 1] = len(factors)
        found = x
        if constants:
            found = found.minus(self.stored(op.mean.reshape(shape[1:]), x), self.digits)
        found = found.times(Fixed.ratios(lower, shape, self.digits + 3, upper), self.digits)
        return found.plus(self.stored(op.bias.reshape(shape[1:]), x), self.digits) if constants else found

    def _shifted(self, found: Fixed, op: Op, x: Fixed) -> Fixed:
        """Plus the constants of an operator that only moves entries."""
        constant = forward(op, torch.zeros(1, *x.shape[1:], dtype=torch.float64))
        return found.plus(Fixed.of(constant, self.digits + 3), self.digits)

    def stored(self, value: Tensor, like: Fixed) -> Fixed:
        """Stored numbers that broadcast to a sample."""
        shaped = value.reshape(*(1,) * (len(like.shape) - value.ndim), *value.shape)
        return Fixed.of(shaped, self.digits + 3)

    def _reciprocals(self, value: Tensor, like: Fixed) -> Fixed:
        divisors = value.to(torch.float64)
        if not bool((divisors != 0).all() & divisors.isfinite().all()):
            raise Imprecise("a divisor is zero or not a number")
        shape = (*(1,) * (len(like.shape) - value.ndim), *value.shape)
        different, places = divisors.flatten().unique(return_inverse=True)
        known = Fixed.ratios([1 / Fraction(d) for d in different.tolist()], [len(different)], self.digits + 3)
        return known.entry(lambda t: t[places].reshape(shape))

    def _curve(self, function: Callable[[int, int], int], x: Fixed) -> Fixed:
        """A function of slopes in [0, 1] at the middles; what is not known of an entry stays as large."""
        places = BITS * self.digits
        shift = x.exponent + places
        found = []
        for value in x.integers():
            look()
            # Cutting off moves an argument by less than a unit, and the result by no more.
            found.append(function(value << shift if shift >= 0 else value >> -shift, places))
        radius = scaled_up(x.radius, shift) + (saturating.ERROR + 1.0)
        return Fixed.wholes(found, radius * (1.0 + 4.0 * gamma(2)), self.digits, -places)

    def _pieces(self, op: Op, x: Fixed) -> Fixed:
        """Activations of straight pieces: an entry belongs to the piece of its middle; near a kink it keeps its radius."""
        negative = x.digits[-1] < 0
        match op:
            case ops.ReLU():
                off = x.ends()[1] <= 0
                return Fixed(x.digits.masked_fill(negative, 0.0), x.radius.masked_fill(off, 0.0), x.exponent)
            case ops.Abs():
                return where(negative, -x, x, self.digits)
            case ops.LeakyReLU(slope=slope) | ops.PReLU(slope=slope):
                value = slope if isinstance(slope, Tensor) else torch.tensor(slope, dtype=torch.float64)
                left, right = aligned((x.times(self.stored(value, x), self.digits), x), self.digits)
                lower, upper = x.ends()
                # Next to 0 either slope may count: the sum of both radii is more than the larger.
                radius = torch.where(negative, left.radius, right.radius)
                both = (left.radius + right.radius) * (1.0 + 4.0 * gamma(1))
                radius = torch.where((lower < 0) & (upper > 0), both, radius)
                return Fixed(torch.where(negative, left.digits, right.digits), radius, left.exponent)
            case ops.Clip(low=low, high=high):
                return self._clipped(x, low, high)
            case ops.Hardsigmoid(alpha=alpha, beta=beta):
                stored = [self.stored(torch.tensor(v, dtype=torch.float64), x) for v in (alpha, beta)]
                return self._clipped(x.times(stored[0], self.digits).plus(stored[1], self.digits), 0.0, 1.0)
            case _:
                raise InternalError(f"{op.kind()} has no pieces")

    def _clipped(self, x: Fixed, low: float, high: float) -> Fixed:
        """min(max(x, low), high): no entry's radius grows."""
        for end, above in ((low, False), (high, True)):
            if math.isinf(end):
                continue
            limit = self.stored(torch.tensor(end, dtype=torch.float64), x)
            beyond = x.minus(limit, self.digits) if above else limit.minus(x, self.digits)
            outside = beyond.digits[-1] >= 0
            found = where(outside, limit, x, self.digits)
            # What comparing cut off counts as well.
            x = Fixed(found.digits, _at_least(beyond, found), found.exponent)
        return x

    def enclosed(self, box: Interval) -> Fixed:
        return Fixed.between(box.lower, box.upper, self.digits)


def _at_least(x: Fixed, found: Fixed) -> Tensor:
    """The larger of two radii, in the units of the second number."""
    return torch.maximum(x.lifted(found.exponent).lowered(found.exponent).radius, found.radius)


def _over_root(weight: Fraction, inside: Fraction, unit: int) -> tuple[Fraction, Fraction]:
    """Rational numbers around weight / sqrt(inside), a relative 1 / unit apart at most."""
    # sqrt(n / d) = sqrt(n d) / d, with enough places behind the point.
    number, divisor = inside.numerator * inside.denominator, inside.denominator
    root = math.isqrt(number * unit * unit)
    smaller, larger = weight * divisor * unit / (root + 1), weight * divisor * unit / root
    return min(smaller, larger), max(smaller, larger)
