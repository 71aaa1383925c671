"""Sorting activations and reflections: piecewise orthogonal maps."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lipverify.ir.op import Op
from lipverify.rules import forward


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
    return x.unflatten(axis, (-1, op.group)).sort(dim=axis + 1, descending=op.descending).values.flatten(axis, axis + 1)


@forward.register(Householder)
def _householder(op: Householder, x: Tensor) -> Tensor:
    moved = x.movedim(op.axis + 1, -1).unflatten(-1, op.vectors.shape)
    along = (moved * op.vectors).sum(-1, keepdim=True)
    reflected = moved - 2 * op.vectors * along / (op.vectors**2).sum(-1, keepdim=True)
    return torch.where(along > 0, moved, reflected).flatten(-2).movedim(-1, op.axis + 1)
