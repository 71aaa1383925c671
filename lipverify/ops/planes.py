"""Affine functions below and above scalar functions and maxima on boxes, sound for exactly the float64 numbers returned.

Every slope is chosen freely, in rounded arithmetic; only the offset carries the proof. It is computed from the chosen slope
with a margin above the rounding of its own formula.

Legend: [l, u] the box, w = u - l, f the function, k a slope, [a, b] the range of slopes of f on a box.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lipverify.errors import UnsupportedModel
from lipverify.ir.interval import Interval
from lipverify.ir.op import Op
from lipverify.linalg.rounding import UNIT_ROUNDOFF
from lipverify.ops.enclosure import Enclosure
from lipverify.rules import Plane, Relaxation, interval, slopes

PIECES = 16
"""Pieces a box is cut into; between the ends of a piece only the slopes are known."""
SLOPE_PIECES = 16 * PIECES
"""Derivatives are followed to first order only: more pieces."""
MARGIN = 32 * UNIT_ROUNDOFF
"""Above the relative rounding of every formula of this file: each has fewer than 16 operations."""
_TINY = torch.finfo(torch.float64).tiny


def chord(lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
    """Numbers t in [0, 1] and w >= 0 with max(p x, q x) <= (p t + q (1 - t)) x + (p - q) w for all x in [lower, upper], p >= q.

    Proof: the left side is convex and needs checking at the ends only. Where lower >= 0 it is p x: t = 1, w = 0; where
    upper <= 0 it is q x: t = w = 0. Otherwise at upper (p - q)(w - (1 - t) upper) >= 0 and at lower
    (p - q)(w + t lower) >= 0 are needed, for any t: w is the larger of both products, rounded up.
    """
    crosses = (lower < 0) & (upper > 0)
    t = torch.where(crosses, upper / (upper - lower), (lower >= 0).to(lower)).clamp(0.0, 1.0)
    width = torch.maximum((1.0 - t) * upper, -t * lower)
    w = torch.where(crosses, width * (1.0 + MARGIN) + _TINY, torch.zeros_like(width))
    return t, w


def kinked_planes(left: Tensor | float, right: Tensor | float, box: Interval) -> Relaxation:
    """f(x) = left x for x <= 0, right x for x >= 0; slopes broadcast to a sample.

    On the bulging side the chord, on the other one of the two lines through 0: the one that f follows on the longer part.
    """
    x = Enclosure.of(box)
    first, second = (
        torch.as_tensor(end, dtype=torch.float64, device=x.lower.device).expand_as(x.lower)
        for end in (left, right)
    )
    t, _ = chord(x.lower, x.upper)
    slope = first + (second - first) * t
    offset = torch.maximum(*((end * (s - slope)).abs() for s, end in ((first, x.lower), (second, x.upper))))
    crosses = (x.lower < 0) & (x.upper > 0)
    offset = torch.where(
        crosses, offset + MARGIN * (first.abs() + second.abs() + slope.abs()) * _reach(x) + _TINY, 0.0
    )
    slope = torch.where(crosses, slope, torch.where(x.lower >= 0, second, first))
    line = torch.where(x.upper > -x.lower, second, first)
    line = torch.where(crosses, line, slope)
    convex, zero = second >= first, torch.zeros_like(offset)
    return Relaxation(
        Plane((torch.where(convex, line, slope),), torch.where(convex, zero, -offset)),
        Plane((torch.where(convex, slope, line),), torch.where(convex, offset, zero)),
    )


def scalar_planes(op: Op, box: Interval) -> Relaxation:
    """Two parallel lines around any scalar function with `slopes` and `interval` rules; constants where slopes have no bound.

    Statement: with the slope k of the secant (any k is sound), f(x) - k x is bounded on each piece [p, q] of the box from its
    values at p and q and its slopes in [A, B]: where A < 0 < B, for every theta in [0, 1],
        f(x) - k x <= (1 - theta) (h(p) + B (x - p)) + theta (h(q) - A (q - x)),  h = f - k x,
    in which theta = B / (B - A) makes the coefficient of x vanish up to its rounding. Elsewhere h is monotone.
    """
    x = Enclosure.of(box)
    image = Enclosure.of(interval(op, box))
    try:
        found = slopes(op, box, tuple(x.lower.shape[1:]))
        points = _points(x)
        values = [Enclosure.of(interval(op, Interval(point, point))) for point in points]
        steep = slopes(op, _pieces(points), tuple(x.lower.shape[1:]))
    except UnsupportedModel:
        return constant_planes(image)
    low, high = found.lower.expand_as(x.lower), found.upper.expand_as(x.lower)
    secant = (values[-1].center - values[0].center) / (x.upper - x.lower)
    k = torch.where(secant.isfinite(), secant, (low + high) / 2).clamp(low, high)
    at = [torch.stack(ends) for ends in (points, [v.lower for v in values], [v.upper for v in values])]
    size = (PIECES, *x.lower.shape)
    a, b = (
        end.expand(PIECES * len(x.lower), *x.lower.shape[1:]).reshape(size)
        for end in (steep.lower, steep.upper)
    )
    above = _highest(at[0], at[2], a, b, k)
    below = -_highest(at[0], -at[1], -b, -a, -k)
    usable = above.isfinite() & below.isfinite()
    zero = torch.zeros_like(k)
    k = torch.where(usable, k, zero)
    return Relaxation(
        Plane((k,), torch.where(usable, below, image.lower)),
        Plane((k,), torch.where(usable, above, image.upper)),
    )


def slope_planes(op: Op, box: Interval) -> Relaxation:
    """Two parallel lines around the derivative (or the Clarke slopes) of a scalar function: lower(x) <= f'(x) <= upper(x).

    Statement: on a piece [p, q] slopes lie in [a, b], so they exceed k x by at most b - k p or b - k q.

    Raises:
        UnsupportedModel: the slopes are not bounded on the box.
    """
    x, shape = Enclosure.of(box), tuple(box.lower.shape[1:])
    ends = [slopes(op, Interval(point, point), shape) for point in (x.lower, x.upper)]
    k = ((ends[1].lower + ends[1].upper) - (ends[0].lower + ends[0].upper)) / (2.0 * (x.upper - x.lower))
    k = torch.where(k.isfinite(), k, torch.zeros_like(k)).expand_as(x.lower)
    points = _points(x, SLOPE_PIECES)
    above, below = torch.full_like(k, -torch.inf), torch.full_like(k, torch.inf)
    for start in range(
        0, SLOPE_PIECES, PIECES
    ):  # a few pieces at a time: the memory of all is 256 times the box
        block = points[start : start + PIECES + 1]
        steep = slopes(op, _pieces(block), shape)
        size = (PIECES, *x.lower.shape)
        a, b = (end.expand(PIECES * len(x.lower), *shape).reshape(size) for end in (steep.lower, steep.upper))
        change = k * torch.stack(block)
        size_of = a.abs() + b.abs() + change.abs()[:-1] + change.abs()[1:]
        margin = MARGIN * size_of + _TINY
        above = torch.maximum(above, (b - torch.minimum(change[:-1], change[1:]) + margin).amax(0))
        below = torch.minimum(below, (a - torch.maximum(change[:-1], change[1:]) - margin).amin(0))
    return Relaxation(Plane((k,), below), Plane((k,), above))


def _points(x: Enclosure, pieces: int = PIECES) -> list[Tensor]:
    """Ends of the pieces, in order; the first and the last are the ends of the box."""
    inner = [x.lower + (x.upper - x.lower) * (i / pieces) for i in range(1, pieces)]
    inner = [torch.minimum(torch.maximum(point, x.lower), x.upper) for point in inner]
    return [x.lower, *inner, x.upper]


def _pieces(points: list[Tensor]) -> Interval:
    """The pieces one after another along the batch axis."""
    lower, upper = torch.stack(points[:-1]), torch.stack(points[1:])
    # Rounding may swap two neighbouring points of a very narrow box: the hull of both is the piece.
    ends = torch.minimum(lower, upper), torch.maximum(lower, upper)
    return Interval(*(end.flatten(0, 1) for end in ends))


def _highest(points: Tensor, values: Tensor, a: Tensor, b: Tensor, k: Tensor) -> Tensor:
    """Upper bound of f(x) - k x over all pieces. points, values [pieces + 1, ...]; a, b [pieces, ...]."""
    h = values - k * points
    p, q = h[:-1], h[1:]
    width = (points[1:] - points[:-1]).abs()
    down, rise = (a - k).clamp(max=0.0), (b - k).clamp(min=0.0)
    spread = rise - down
    theta = torch.where(spread > 0, rise / spread, torch.zeros_like(spread)).clamp(0.0, 1.0)
    rest = ((1.0 - theta) * rise + theta * down).abs()
    peak = (1.0 - theta) * p + theta * q - theta * down * width + rest * width
    size = values.abs()[:-1] + values.abs()[1:] + k.abs() * (points.abs()[:-1] + points.abs()[1:])
    size = size + (a.abs() + b.abs() + k.abs()) * width
    found: Tensor = (torch.maximum(torch.maximum(p, q), peak) + MARGIN * size + _TINY).amax(0)
    return found


def constant_planes(image: Interval) -> Relaxation:
    """The ends of the image, without any term."""
    return Relaxation(Plane((), image.lower), Plane((), image.upper))


def largest_planes(lower: Tensor, upper: Tensor, entries: Tensor | None = None) -> Relaxation:
    """Around the maximum of terms. lower, upper [terms, batch, *shape of the result], ends of the terms' boxes.

    Statement: for weights c_i in [0, 1], max_j x_j - sum_i c_i x_i <= max_j ((1 - c_j) u_j - sum over i != j of c_i l_i),
    attained: the offset. The weights are shared by how far each term can exceed all others; a term that no other one can
    exceed is the maximum. From below, the maximum is at least the term with the highest centre.
    """
    terms = len(lower)
    middle = (lower / 2 + upper / 2).argmax(0)
    best = torch.nn.functional.one_hot(middle, terms).movedim(-1, 0).to(lower)
    zero = torch.zeros_like(lower[0])
    if terms == 1:
        return Relaxation(Plane(tuple(best), zero), Plane(tuple(best), zero), entries)
    top = lower.topk(2, dim=0)
    place = torch.arange(terms, device=lower.device).reshape(-1, *(1,) * (lower.ndim - 1))
    excess = (upper - torch.where(place == top.indices[0], top.values[1], top.values[0])).clamp(min=0.0)
    total = excess.sum(0)
    itself = place == middle
    if entries is not None:  # a term may be listed twice, where a window hangs over the border
        listed = entries.unsqueeze(1).expand_as(lower)
        itself = listed == listed.gather(0, middle.unsqueeze(0))
    dominates = lower.gather(0, middle.unsqueeze(0))[0] >= upper.masked_fill(itself, -torch.inf).amax(0)
    weights = torch.where(dominates | ~(total > 0), best, excess / total).clamp(0.0, 1.0)
    pushed = weights * lower
    offset = ((1.0 - weights) * upper - (pushed.sum(0) - pushed)).amax(0)
    size = upper.abs().amax(0) + (weights * torch.maximum(lower.abs(), upper.abs())).sum(0)
    offset = offset + (MARGIN + 4 * terms * UNIT_ROUNDOFF) * size + _TINY
    offset = torch.where(dominates, zero, offset)
    return Relaxation(Plane(tuple(best), zero), Plane(tuple(weights), offset), entries)


def smallest_planes(lower: Tensor, upper: Tensor, entries: Tensor | None = None) -> Relaxation:
    """Around the minimum of terms: min x = -max(-x)."""
    found = largest_planes(-upper, -lower, entries)
    return Relaxation(
        Plane(found.upper.slopes, -found.upper.offset),
        Plane(found.lower.slopes, -found.lower.offset),
        entries,
    )


def _reach(x: Enclosure) -> Tensor:
    return torch.maximum(x.lower.abs(), x.upper.abs())
