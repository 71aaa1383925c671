"""Sorting activations and reflections: piecewise orthogonal maps."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lipverify.ir.interval import Interval
from lipverify.ir.norm import Norm
from lipverify.ir.op import Op, Shape
from lipverify.linalg.rounding import Upper, gamma, inflate
from lipverify.ops.embedding import embedding, single, through_same_norm
from lipverify.ops.enclosure import Enclosure, linear_box, monotone_box
from lipverify.ops.planes import largest_planes, smallest_planes
from lipverify.rules import Gain, Plane, Relaxation, Unbounded, forward, gain, interval, relax


@dataclass(frozen=True, eq=False)
class GroupSort(Op):
    """Sorts each run of `group` consecutive entries along one sample axis; MaxMin is group = 2.

    Ascending unless `descending`; `group` divides the size of the axis.
    """

    group: int
    axis: int = 0
    descending: bool = False


@dataclass(frozen=True, eq=False)
class Householder(Op):
    """On each run g of consecutive entries along one sample axis: x if w_g'x > 0, else x - 2 w_g (w_g'x) / |w_g|^2.

    vectors [groups, size]: w_g, need not be normalised; groups * size is the size of the axis.
    """

    vectors: Tensor
    axis: int = 0


@forward.register(GroupSort)
def _group_sort(op: GroupSort, x: Tensor) -> Tensor:
    axis = op.axis + 1
    groups: Tensor = x.unflatten(axis, (-1, op.group))
    return groups.sort(dim=axis + 1, descending=op.descending).values.flatten(axis, axis + 1)


@forward.register(Householder)
def _householder(op: Householder, x: Tensor) -> Tensor:
    moved = x.movedim(op.axis + 1, -1).unflatten(-1, op.vectors.shape)
    along = (moved * op.vectors).sum(-1, keepdim=True)
    reflected = moved - 2 * op.vectors * along / (op.vectors**2).sum(-1, keepdim=True)
    return torch.where(along > 0, moved, reflected).flatten(-2).movedim(-1, op.axis + 1)


@gain.register(GroupSort)
def _group_sort_gain(op: GroupSort, shapes: tuple[Shape, ...], norm_in: Norm, norm_out: Norm) -> Gain:
    """Continuous and a permutation on every piece (Anil, Lucas, Grosse, ICML 2019): an isometry piece by piece."""
    return single(embedding(math.prod(shapes[0]), norm_in, norm_out))


@gain.register(Householder)
def _householder_gain(op: Householder, shapes: tuple[Shape, ...], norm_in: Norm, norm_out: Norm) -> Gain:
    """Continuous (both pieces agree where w'x = 0), the identity or a reflection on each piece.

    Source: Singla, Singla, Feizi, ICLR 2022, for l2. A reflection H = I - 2 w w' / |w|^2 is symmetric, so its l1 and linf
    norms are its largest absolute column sum.
    """
    size = math.prod(shapes[0])
    other = _reflection_sum(op)

    def same(norm: Norm) -> Upper:
        return Upper.one() if norm is Norm.L2 else other

    return single(through_same_norm(same, size, size, norm_in, norm_out))


def _reflection_sum(op: Householder) -> Upper:
    """Largest absolute column sum of the reflections and of the identity: |1 - 2 w_j^2/s| + 2 |w_j| (|w|_1 - |w_j|)/s."""
    vectors = op.vectors.to(torch.float64)
    vectors = vectors / vectors.abs().amax(-1, keepdim=True).clamp_min(
        2.0**-1000
    )  # H does not change with the length
    squared = (vectors**2).sum(-1, keepdim=True)
    if not bool((squared > 0).all()):
        raise Unbounded("a reflection vector is zero")
    matrix = 2.0 * vectors[:, :, None] * vectors[:, None, :] / squared[:, :, None]
    columns = (
        (torch.eye(vectors.shape[-1], dtype=torch.float64, device=vectors.device) - matrix).abs().sum(-1)
    )
    # Every entry carries at most size + 10 roundings relative to entries of I and matrix, which are at most 1 and 2, and
    # scaling moved w by half an ulp: 4 roundings more.
    size = vectors.shape[-1]
    error = (1.0 + matrix.abs().sum(-1)) * gamma(2 * size + 16)
    bound = inflate(columns + error, 8 * gamma(1))
    return Upper.of(float(bound.amax())).max(Upper.one())


# Every order statistic is nondecreasing in every entry.
interval.register(GroupSort)(monotone_box)


@relax.register(GroupSort)
def _group_sort_planes(op: GroupSort, box: Interval) -> Relaxation:
    """Ends of a group are its minimum and maximum; what lies between gets its interval."""
    shape = tuple(box.lower.shape[1:])
    index = torch.arange(math.prod(shape), device=box.lower.device).reshape(shape)
    members = index.unflatten(op.axis, (-1, op.group)).movedim(op.axis + 1, 0)  # [group, ..., groups, ...]
    lower, upper = (end.flatten(1)[:, members].movedim(1, 0) for end in (box.lower, box.upper))
    planes = [smallest_planes(lower, upper, members), largest_planes(lower, upper, members)]
    image = monotone_box(replace(op, descending=False), box)
    parts = []
    for side in ("lower", "upper"):
        end: Tensor = getattr(image, side).unflatten(op.axis + 1, (-1, op.group)).movedim(op.axis + 2, 0)
        zero = torch.zeros_like(end[0])
        found: list[Plane] = [getattr(planes[0], side)]
        found += [Plane((zero,) * op.group, end[place]) for place in range(1, op.group - 1)]
        found += [getattr(planes[1], side)] if op.group > 1 else []
        if op.descending:
            found.reverse()
        rows = [torch.stack([plane.slopes[term] for plane in found]) for term in range(op.group)]
        rows.append(torch.stack([plane.offset for plane in found]))
        *slopes, offset = (row.movedim(0, op.axis + 2).flatten(op.axis + 1, op.axis + 2) for row in rows)
        parts.append(Plane(tuple(slopes), offset))
    entries = members.unsqueeze(op.axis + 2).expand(
        *members.shape[: op.axis + 2], op.group, *members.shape[op.axis + 2 :]
    )
    return Relaxation(parts[0], parts[1], entries.flatten(op.axis + 1, op.axis + 2))


@interval.register(Householder)
def _householder_interval(op: Householder, box: Interval) -> Interval:
    """The box where w'x > 0 is sure, the box of the reflection where it is sure not to be, else the hull of both."""
    x = Enclosure.of(box)
    vectors = op.vectors.to(torch.float64)
    grouped = Enclosure(*(_grouped(op, end) for end in (x.lower, x.upper)))
    size = vectors.shape[-1]
    along = linear_box(
        lambda v: (v * vectors).sum(-1, keepdim=True),
        lambda v: (v * vectors.abs()).sum(-1, keepdim=True),
        None,
        grouped,
        size,
    )
    outer = Enclosure.of(vectors[:, :, None]) * Enclosure.of(vectors[:, None, :]) * 2.0
    squared = Enclosure.of(vectors).square().sum((-1,))
    identity = Enclosure.of(torch.eye(size, dtype=torch.float64, device=vectors.device))
    # [..., groups, 1, size] times [groups, size, size], summed over the last axis.
    row = Enclosure(grouped.lower.unsqueeze(-2), grouped.upper.unsqueeze(-2))
    reflection = identity - outer / Enclosure(squared.lower[..., None], squared.upper[..., None])
    mirrored = (row * reflection).sum((-1,), keepdim=False)
    found = grouped.where(along.lower > 0, mirrored.where(along.upper <= 0, grouped.hull(mirrored)))
    return Interval(*(end.flatten(-2).movedim(-1, op.axis + 1) for end in (found.lower, found.upper)))


def _grouped(op: Householder, x: Tensor) -> Tensor:
    groups: Tensor = x.movedim(op.axis + 1, -1).unflatten(-1, op.vectors.shape)
    return groups
