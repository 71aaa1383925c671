"""The difference of an operator's results at two arguments, with the difference of the arguments carried along.

Legend: a, b the arguments in two networks, d = a - b, y = phi(a) - phi(b); A, B, D the boxes of a, b, d.
Source: differential analysis of two networks, ReluDiff (Paulsen, Wang, Wang, ICSE 2020, arXiv 2001.03662), NeuroDiff (ASE 2020,
arXiv 2009.09943), VeryDiff (Teuber et al., TACAS 2025, arXiv 2410.20207); here one operator with an interval and planes.
Sound when: the inputs obey d = a - b in real arithmetic (`combine.difference` builds no other), and the rules of phi are sound.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from lipverify.errors import InternalError, UnsupportedModel
from lipverify.ir.interval import Interval
from lipverify.ir.norm import Norm
from lipverify.ir.op import Op, Shape
from lipverify.ops.enclosure import Enclosure, monotone_box
from lipverify.ops.merge import Maximum, Minimum
from lipverify.ops.planes import MARGIN, kinked_planes, largest_planes, smallest_planes
from lipverify.ops.pooling import MaxPool, ReduceMax, ReduceMin
from lipverify.ops.sorting import GroupSort
from lipverify.rules import (
    Gain,
    Plane,
    Relaxation,
    Unbounded,
    forward,
    gain,
    interval,
    relax,
    slopes,
)

_TINY = torch.finfo(torch.float64).tiny
CHOOSING = (MaxPool, ReduceMax, ReduceMin, Maximum, Minimum, GroupSort)
"""Operators every result of which is an order statistic of some entries: the k-th largest of a window, a group, all inputs."""


@dataclass(frozen=True, eq=False)
class Change(Op):
    """(d_1 .., a_1 .., b_1 ..) with d_i = a_i - b_i  ->  of(a_1 ..) - of(b_1 ..); `of` is scalar or one of `CHOOSING`."""

    of: Op

    def to(self, *, dtype: torch.dtype | None = None, device: torch.device | str | None = None) -> Self:
        return replace(self, of=self.of.to(dtype=dtype, device=device))

    def parameters(self) -> int:
        return self.of.parameters()

    def update_digest(self, digest: hashlib._Hash) -> None:
        digest.update(b"Change|of=")
        self.of.update_digest(digest)


@dataclass(frozen=True, eq=False)
class Same(Op):
    """(x, y) with x = y in real arithmetic, computed in two ways  ->  x. Both ranges hold it, so their intersection does."""


def has_change(op: Op) -> bool:
    """Whether `Change` of this operator has rules."""
    return isinstance(op, CHOOSING) or (slopes.covers(type(op)) and interval.covers(type(op)))


def _parts(items: tuple[Tensor, ...]) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """The arguments in the first and in the second network."""
    count = len(items) // 3
    return items[count : 2 * count], items[2 * count :]


@forward.register(Change)
def _change(op: Change, *inputs: Tensor) -> Tensor:
    first, second = _parts(inputs)
    return forward(op.of, *first) - forward(op.of, *second)


@forward.register(Same)
def _same(op: Same, x: Tensor, y: Tensor) -> Tensor:
    return x


@gain.register(Change, Same)
def _no_constant(op: Change | Same, shapes: tuple[Shape, ...], norm_in: Norm, norm_out: Norm) -> Gain:
    raise Unbounded(
        "the difference of two networks is bounded over a region by ranges, not by a constant: "
        "its inputs depend on each other, and a constant would not see it"
    )


@interval.register(Same)
def _same_interval(op: Same, x: Interval, y: Interval) -> Interval:
    return _met(x, y)


def _met(first: Interval, second: Interval) -> Interval:
    """The intersection; the first where both do not meet, which happens only where no input is left (see `Bounds.empty`)."""
    lower, upper = torch.maximum(first.lower, second.lower), torch.minimum(first.upper, second.upper)
    apart = lower > upper
    return Interval(torch.where(apart, first.lower, lower), torch.where(apart, first.upper, upper))


@relax.register(Same)
def _same_planes(op: Same, x: Interval, y: Interval) -> Relaxation:
    """Either input is the value; the first one is what was carried here for its planes."""
    one = torch.ones_like(torch.broadcast_tensors(x.lower, y.lower)[0])
    plane = Plane((one, torch.zeros_like(one)), torch.zeros_like(one))
    return Relaxation(plane, plane)


@interval.register(Change)
def _change_interval(op: Change, *boxes: Interval) -> Interval:
    """What each network says by itself, and what the carried difference says; both hold.

    Scalar: y = s d with a difference quotient s of phi on the hull of A and B. Order statistics move by no less than the smallest
    and no more than the largest d of their entries: if a_i <= b_i + t for all i, the k-th of a is at most the k-th of b plus t.
    """
    count = len(boxes) // 3
    carried, first, second = boxes[:count], boxes[count : 2 * count], boxes[2 * count :]
    alone = Enclosure.of(interval(op.of, *first)) - Enclosure.of(interval(op.of, *second))
    if isinstance(op.of, CHOOSING):
        low = -_largest(op.of, tuple(Interval(-box.upper, -box.lower) for box in carried)).upper
        return _met(alone, Interval(low, _largest(op.of, carried).upper))
    steep = _quotients(op, first[0], second[0])
    return alone if steep is None else _met(alone, steep * Enclosure.of(carried[0]))


def _quotients(op: Change, a: Interval, b: Interval) -> Enclosure | None:
    """Difference quotients of phi between a point of A and a point of B; None where they have no bound."""
    hull = Interval(torch.minimum(a.lower, b.lower), torch.maximum(a.upper, b.upper))
    try:
        found = slopes(op.of, hull, tuple(hull.lower.shape[1:]))
    except UnsupportedModel:
        return None
    return Enclosure(found.lower, found.upper)


def undecided(op: Change, a: Interval, b: Interval) -> Tensor | None:
    """Where phi is no line on the hull of two boxes: [batch, *shape]; None where that is not known anywhere.

    On the hull of A and B it says where a tighter D could tell more of a scalar change: elsewhere y follows from d exactly. On A
    alone (or B alone) where a tighter A could: elsewhere its planes are exact.
    """
    found = _quotients(op, a, b)
    return None if found is None else found.lower < found.upper


def _largest(op: Op, boxes: tuple[Interval, ...]) -> Interval:
    """The box of the largest of the entries that each result chooses from."""
    if isinstance(op, GroupSort):
        return Interval(*(_spread(op, end) for end in (boxes[0].lower, boxes[0].upper)))
    if isinstance(op, ReduceMin):
        op = ReduceMax(op.axes, op.keepdims)
    return monotone_box(Maximum() if isinstance(op, Minimum) else op, *boxes)


def _spread(op: GroupSort, end: Tensor) -> Tensor:
    groups: Tensor = end.to(torch.float64).unflatten(op.axis + 1, (-1, op.group))
    most = groups.amax(op.axis + 2, keepdim=True).expand_as(groups)
    return most.flatten(op.axis + 1, op.axis + 2)


@relax.register(Change)
def _change_planes(op: Change, *boxes: Interval) -> Relaxation:
    if isinstance(op.of, CHOOSING):
        return _chosen_planes(op.of, boxes)
    if len(boxes) != 3:
        raise InternalError(f"the change of a scalar function has three inputs, not {len(boxes)}")
    return _scalar_planes(op, *boxes)


def _scalar_planes(op: Change, d: Interval, a: Interval, b: Interval) -> Relaxation:
    """Of two valid planes the one that is highest (from below) or lowest (from above) at the middle of the boxes.

    (i) phi(a) <= p a + r and phi(b) >= q b + s give y <= p a - q b + (r - s) + c (d - a + b) for every c, since the last term is
        0. On d = a - b all of these are one plane, but further back a, b and d have relaxations of their own, and d the best.
        With c = p or c = q only one of a, b is left, times |p - q|; c is the smaller of both.
    (ii) y = t d with t in [k, K], the quotients of phi on the hull: the chord above max(k d, K d), below min(k d, K d).
    """
    ends = torch.broadcast_tensors(d.lower, d.upper, a.lower, a.upper, b.lower, b.upper)
    d, a, b = (Interval(ends[i], ends[i + 1]) for i in (0, 2, 4))
    steep, zero = _quotients(op, a, b), torch.zeros_like(a.lower)
    above: list[Plane] = []
    below: list[Plane] = []
    if steep is not None:
        chord = kinked_planes(steep.lower, steep.upper, d).upper
        above.append(Plane((chord.slopes[0], zero, zero), chord.offset))
        chord = kinked_planes(steep.upper, steep.lower, d).lower
        below.append(Plane((chord.slopes[0], zero, zero), chord.offset))
    if relax.covers(type(op.of)):
        around_a, around_b = relax(op.of, a), relax(op.of, b)
        above.append(_apart(around_a.upper, around_b.lower, a, b, 1.0))
        below.append(_apart(around_a.lower, around_b.upper, a, b, -1.0))
    if not above:
        raise UnsupportedModel(f"no planes around the change of {op.of.kind()} on these ranges")
    middle, apart = (a.lower / 4 + a.upper / 4) + (b.lower / 4 + b.upper / 4), d.lower / 2 + d.upper / 2
    place = apart, middle + apart / 2, middle - apart / 2
    return Relaxation(_best(below, place, -1.0), _best(above, place, 1.0))


def _apart(first: Plane, second: Plane, a: Interval, b: Interval, sign: float) -> Plane:
    """(i) of `_scalar_planes`. sign: 1.0 from above, -1.0 from below."""
    zero = torch.zeros_like(a.lower)
    p, q = ((plane.slopes[0] if plane.slopes else zero) + zero for plane in (first, second))
    share = torch.where(p.abs() < q.abs(), p, q)
    on_a, on_b = p - share, share - q
    # One of the two is 0; the other one is one rounding away from the slope that makes the plane exact.
    error = MARGIN * (on_a.abs() * _reach(a) + on_b.abs() * _reach(b)) + _TINY
    error = torch.where((share == 0) | ((on_a == 0) & (on_b == 0)), zero, error)
    offset = Enclosure.of(first.offset + zero) - Enclosure.of(second.offset + zero)
    none = (first.offset == 0) & (second.offset == 0)
    end = torch.where(none, zero, offset.upper if sign > 0 else offset.lower) + sign * error
    outward = torch.nextafter(end, torch.full_like(end, sign * torch.inf))
    return Plane((share, on_a, on_b), torch.where(error > 0, outward, end))


def _best(options: list[Plane], middle: tuple[Tensor, ...], sign: float) -> Plane:
    """In every entry the plane whose value at the middle, times sign, is smallest. One that is not finite is never taken."""
    values = []
    for plane in options:
        terms = (slope * place for slope, place in zip(plane.slopes, middle, strict=True))
        value = sign * (sum(terms, start=plane.offset))
        finite = value.isfinite()
        for number in (*plane.slopes, plane.offset):
            finite = finite & number.isfinite()
        values.append(torch.where(finite, value, torch.inf))
    index = torch.stack(values).argmin(0, keepdim=True)

    def chosen(parts: list[Tensor]) -> Tensor:
        return torch.stack(parts).gather(0, index)[0]

    slopes_of = tuple(chosen([plane.slopes[i] for plane in options]) for i in range(len(middle)))
    return Plane(slopes_of, chosen([plane.offset for plane in options]))


def _chosen_planes(op: Op, boxes: tuple[Interval, ...]) -> Relaxation:
    """y lies between the smallest and the largest carried difference of its entries; where one entry is chosen for sure in both
    networks, y is the difference of that entry. Terms are entries of d alone (the first inputs)."""
    count = len(boxes) // 3
    first, second = relax(op, *boxes[count : 2 * count]), relax(op, *boxes[2 * count :])
    if first.entries is None:
        ends = zip(*((box.lower, box.upper) for box in boxes[:count]), strict=True)
        lower, upper = (torch.stack(torch.broadcast_tensors(*end)) for end in ends)
    else:
        lower, upper = (
            end.flatten(1)[:, first.entries].movedim(1, 0) for end in (boxes[0].lower, boxes[0].upper)
        )
    high = largest_planes(lower, upper, first.entries).upper
    low = smallest_planes(lower, upper, first.entries).lower
    size = lower.shape[1:]
    one, other = _certain(first, size), _certain(second, size)
    settled = (one == other).all(0) & (one.sum(0) == 1)
    zero = torch.zeros(size, dtype=torch.float64, device=lower.device)
    slopes_above, slopes_below = (
        tuple(torch.where(settled, one[i], slope) for i, slope in enumerate(plane.slopes))
        for plane in (high, low)
    )
    rest = () if first.entries is not None else (zero,) * (2 * count)
    return Relaxation(
        Plane((*slopes_below, *rest), torch.where(settled, zero, low.offset)),
        Plane((*slopes_above, *rest), torch.where(settled, zero, high.offset)),
        first.entries,
    )


def _certain(found: Relaxation, size: torch.Size) -> Tensor:
    """[terms, ...]: 1 for the entry that is the result on the whole box, 0 for all where no entry is known to be."""
    low, high = (
        torch.stack([slope.expand(size) for slope in plane.slopes]) for plane in (found.lower, found.upper)
    )
    flat = (found.lower.offset == 0) & (found.upper.offset == 0)
    same = flat & (low == high).all(0) & ((low == 0) | (low == 1)).all(0) & (low.sum(0) == 1)
    return torch.where(same, low, torch.zeros_like(low))


def _reach(box: Interval) -> Tensor:
    return torch.maximum(box.lower.abs(), box.upper.abs())
