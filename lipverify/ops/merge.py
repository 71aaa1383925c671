"""Operators that join several computed tensors."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lipverify.ir.interval import Interval
from lipverify.ir.norm import Norm
from lipverify.ir.op import Op, Shape
from lipverify.linalg.rounding import gamma
from lipverify.ops.embedding import embedding, finite
from lipverify.ops.enclosure import Enclosure, monotone_box
from lipverify.ops.planes import largest_planes, smallest_planes
from lipverify.rules import (
    Gain,
    Plane,
    Relaxation,
    Unbounded,
    forward,
    gain,
    interval,
    linear,
    magnitude,
    relax,
)


@dataclass(frozen=True, eq=False)
class Add(Op):
    """x_1 + x_2, equal sample shapes."""


@dataclass(frozen=True, eq=False)
class Sub(Op):
    """x_1 - x_2, equal sample shapes."""


@dataclass(frozen=True, eq=False)
class Mul(Op):
    """x_1 * x_2, elementwise product of two computed tensors: no global constant."""


@dataclass(frozen=True, eq=False)
class Div(Op):
    """x_1 / x_2, elementwise quotient of two computed tensors: no global constant."""


@dataclass(frozen=True, eq=False)
class MatMul(Op):
    """x_1 @ x_2 of two computed tensors [..., m, k], [..., k, n]: no global constant."""


@dataclass(frozen=True, eq=False)
class Maximum(Op):
    """Elementwise maximum of two or more tensors of equal sample shape."""


@dataclass(frozen=True, eq=False)
class Minimum(Op):
    """Elementwise minimum of two or more tensors of equal sample shape."""


@dataclass(frozen=True, eq=False)
class Concat(Op):
    """Inputs side by side along one sample axis (>= 0)."""

    axis: int


@forward.register(Add)
@linear.register(Add)
def _add(op: Add, x: Tensor, y: Tensor) -> Tensor:
    return x + y


@forward.register(Sub)
@linear.register(Sub)
def _sub(op: Sub, x: Tensor, y: Tensor) -> Tensor:
    return x - y


@forward.register(Mul)
def _mul(op: Mul, x: Tensor, y: Tensor) -> Tensor:
    return x * y


@forward.register(Div)
def _div(op: Div, x: Tensor, y: Tensor) -> Tensor:
    return x / y


@forward.register(MatMul)
def _matmul(op: MatMul, x: Tensor, y: Tensor) -> Tensor:
    return x @ y


@forward.register(Maximum)
def _maximum(op: Maximum, *xs: Tensor) -> Tensor:
    result = xs[0]
    for x in xs[1:]:
        result = torch.maximum(result, x)
    return result


@forward.register(Minimum)
def _minimum(op: Minimum, *xs: Tensor) -> Tensor:
    result = xs[0]
    for x in xs[1:]:
        result = torch.minimum(result, x)
    return result


@forward.register(Concat)
@linear.register(Concat)
def _concat(op: Concat, *xs: Tensor) -> Tensor:
    batch = max(x.shape[0] for x in xs)
    return torch.cat([x.expand(batch, *x.shape[1:]) for x in xs], dim=op.axis + 1)


magnitude.register(Add, Sub)(_add)
magnitude.register(Concat)(_concat)


@relax.register(Maximum, Minimum)
def _extremum_planes(op: Maximum | Minimum, *boxes: Interval) -> Relaxation:
    ends = zip(*((box.lower, box.upper) for box in boxes), strict=True)
    lower, upper = (torch.stack(torch.broadcast_tensors(*end)) for end in ends)
    return largest_planes(lower, upper) if isinstance(op, Maximum) else smallest_planes(lower, upper)


@relax.register(Mul)
def _product_planes(op: Mul, x: Interval, y: Interval) -> Relaxation:
    """(x - x_end)(y - y_end) has a known sign at each corner of the box: McCormick, Mathematical Programming 10 (1976).

    Of the two planes on either side the one closer to the centre's product is taken; signs: low-low and high-high from
    below, low-high and high-low from above.
    """
    ends = torch.broadcast_tensors(x.lower, x.upper, y.lower, y.upper)
    low_x, high_x, low_y, high_y = ends
    x_mid, y_mid = low_x / 2 + high_x / 2, low_y / 2 + high_y / 2

    def plane(corners: tuple[tuple[Tensor, Tensor], ...], sign: float) -> Plane:
        parts = []
        for a, b in corners:  # x y ~ b x + a y - a b
            corner = Enclosure.of(a) * Enclosure.of(b)
            offset = -corner.upper if sign < 0 else -corner.lower
            parts.append((b, a, offset, sign * (b * x_mid + a * y_mid + offset)))
        take = parts[0][3] <= parts[1][3]
        slope_x, slope_y, offset = (torch.where(take, parts[0][i], parts[1][i]) for i in range(3))
        return Plane((slope_x, slope_y), offset)

    return Relaxation(
        plane(((low_x, low_y), (high_x, high_y)), -1.0), plane(((low_x, high_y), (high_x, low_y)), 1.0)
    )


def _embedded(shapes: tuple[Shape, ...], norm_in: Norm, norm_out: Norm) -> tuple[float, ...]:
    return tuple(finite(embedding(math.prod(shape), norm_in, norm_out)) for shape in shapes)


@gain.register(Add, Sub)
def _sum_gain(op: Add | Sub, shapes: tuple[Shape, ...], norm_in: Norm, norm_out: Norm) -> Gain:
    """Triangle inequality; attained by parallel changes."""
    return Gain(_embedded(shapes, norm_in, norm_out), Norm.L1)


@gain.register(Maximum, Minimum)
def _extremum_gain(op: Maximum | Minimum, shapes: tuple[Shape, ...], norm_in: Norm, norm_out: Norm) -> Gain:
    """|max_i x_i - max_i y_i| <= max_i |x_i - y_i| in every entry, and max_i d_i <= (sum_i d_i^q)^(1/q)."""
    return Gain(_embedded(shapes, norm_in, norm_out), norm_out)


@gain.register(Concat)
def _concat_gain(op: Concat, shapes: tuple[Shape, ...], norm_in: Norm, norm_out: Norm) -> Gain:
    """|(x_1, x_2, ...)|_q^q = sum_i |x_i|_q^q."""
    return Gain(_embedded(shapes, norm_in, norm_out), norm_out)


@gain.register(Mul, MatMul)
def _product_gain(op: Mul | MatMul, shapes: tuple[Shape, ...], norm_in: Norm, norm_out: Norm) -> Gain:
    raise Unbounded(
        "a product of two computed tensors has no finite constant: its slope in one factor is the size of the other; "
        "ask over a ball, with an analyzer like local"
    )


@gain.register(Div)
def _quotient_gain(op: Div, shapes: tuple[Shape, ...], norm_in: Norm, norm_out: Norm) -> Gain:
    raise Unbounded(
        "a quotient of two computed tensors has no finite constant: its slope grows without limit where the divisor is "
        "small; ask over a ball where it is not, with an analyzer like local"
    )


interval.register(Maximum, Minimum, Concat)(monotone_box)


@interval.register(Add)
def _add_interval(op: Add, x: Interval, y: Interval) -> Interval:
    return Enclosure.of(x) + Enclosure.of(y)


@interval.register(Sub)
def _sub_interval(op: Sub, x: Interval, y: Interval) -> Interval:
    return Enclosure.of(x) - Enclosure.of(y)


@interval.register(Mul)
def _mul_interval(op: Mul, x: Interval, y: Interval) -> Interval:
    return Enclosure.of(x) * Enclosure.of(y)


@interval.register(Div)
def _div_interval(op: Div, x: Interval, y: Interval) -> Interval:
    return Enclosure.of(x) / Enclosure.of(y)


@interval.register(MatMul)
def _matmul_interval(op: MatMul, x: Interval, y: Interval) -> Interval:
    """(a + [-r, r]) (b + [-s, s]) lies in a b + [-1, 1] (|a| s + r (|b| + s)): Rump, BIT 39 (1999)."""
    boxes = [Enclosure.of(x), Enclosure.of(y)]
    if not all(bool((box.lower.isfinite() & box.upper.isfinite()).all()) for box in boxes):
        raise Unbounded("a product of matrices needs finite boxes")
    centers = [box.lower / 2 + box.upper / 2 for box in boxes]
    radii = [
        torch.nextafter(distance, torch.full_like(distance, math.inf))
        for box, center in zip(boxes, centers, strict=True)
        for distance in [torch.maximum(box.upper - center, center - box.lower)]
    ]
    terms = centers[0].shape[-1]
    size = centers[0].abs() @ centers[1].abs()
    spread = centers[0].abs() @ radii[1] + radii[0] @ (centers[1].abs() + radii[1])
    # Each of the three products is off by gamma; 4 gamma_{n+8} covers them and this line.
    error = spread + 4.0 * gamma(terms + 8) * (size + spread) + terms * torch.finfo(torch.float64).tiny
    if not bool(error.isfinite().all()):
        raise Unbounded("its values on this box are above the largest float64")
    product = centers[0] @ centers[1]
    return Interval(product, product).widened(error)
