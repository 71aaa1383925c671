"""Maxima, minima and sorting in fixed point: which input a result is, or which it may be."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from lipverify import ops
from lipverify.ir.op import Op
from lipverify.linalg.fixed import Fixed, Imprecise, aligned, where
from lipverify.ops.convolution import flat_pads
from lipverify.ops.pooling import windows


class Selection:
    """Operators whose results are entries of their inputs, chosen by size: maxima, minima and sorting.

    Candidates have one more axis, the last, of those among which is chosen.
    """

    def __init__(self, op: Op, xs: Sequence[Fixed], digits: int) -> None:
        self.op, self.digits = op, digits
        self.sample = tuple(xs[0].shape[1:])
        self.held = self._held()
        self.known = self._candidates(xs)
        self.smallest = isinstance(op, ops.ReduceMin | ops.Minimum)
        self.order = self._order()

    def _held(self) -> Tensor | None:
        """For every result the row-major positions of its candidates: [*shape, candidates]; None where inputs are compared."""
        index = torch.arange(math.prod(self.sample), dtype=torch.float64).reshape(1, *self.sample)
        match self.op:
            case ops.MaxPool(kernel=kernel, stride=stride, padding=padding, dilation=dilation):
                padded = torch.nn.functional.pad(index, flat_pads(padding), value=-1.0)
                held = windows(padded, kernel, stride, dilation)[0].flatten(-len(kernel)).to(torch.int64)
                # A place outside repeats an entry of the window.
                held = torch.where(held < 0, held.amax(-1, keepdim=True), held)
                if bool((held < 0).any()):
                    raise Imprecise("a window holds nothing but padding")
                return held
            case ops.ReduceMax(axes=axes, keepdims=keepdims) | ops.ReduceMin(axes=axes, keepdims=keepdims):
                kept = [axis for axis in range(len(self.sample)) if axis not in axes]
                shape = [
                    1 if axis in axes else size
                    for axis, size in enumerate(self.sample)
                    if keepdims or axis in kept
                ]
                return index[0].permute(*kept, *axes).reshape(*shape, -1).to(torch.int64)
            case ops.GroupSort(group=group, axis=axis):
                groups: Tensor = index[0].unflatten(axis, (-1, group))
                return groups.movedim(axis + 1, -1).to(torch.int64)
            case _:
                return None

    def _candidates(self, xs: Sequence[Fixed]) -> Fixed:
        if self.held is not None:
            held = self.held
            return xs[0].entry(lambda t: t.flatten(1)[:, held])
        found = aligned(xs, self.digits)
        digits = torch.stack([x.digits for x in found], dim=-1)
        return Fixed(digits, torch.stack([x.radius for x in found], dim=-1), found[0].exponent)

    def _order(self) -> Tensor:
        """Places of the chosen candidates: one, or all of a group in ascending order."""
        keys = self.known.keys()
        if isinstance(self.op, ops.GroupSort):
            order = torch.arange(self.op.group).expand(self.known.shape).contiguous()
            for key in reversed(keys):  # least important first, each sort keeping the order of equal ones
                order = order.gather(-1, key.gather(-1, order).sort(dim=-1, stable=True).indices)
            return order
        left = torch.ones_like(keys[0], dtype=torch.bool)
        for key in keys:
            signed = (-key if self.smallest else key).masked_fill(~left, -math.inf)
            left &= signed == signed.amax(-1, keepdim=True)
        return left.to(torch.int8).argmax(-1, keepdim=True)

    def _placed(self, t: Tensor) -> Tensor:
        """From [rows, *shape, chosen] to the operator's shape."""
        if isinstance(self.op, ops.GroupSort):
            t = t.flip(-1) if self.op.descending else t
            return t.movedim(-1, self.op.axis + 2).flatten(self.op.axis + 1, self.op.axis + 2)
        return t[..., 0]

    def points(self) -> Fixed:
        """The chosen entries. A maximum, or an entry of a sorted group, moves by no more than the entry that moves most."""
        digits = torch.stack([self._placed(digit.gather(-1, self.order)) for digit in self.known.digits])
        radius = self.known.radius.amax(-1, keepdim=True).expand(self.order.shape)
        return Fixed(digits, self._placed(radius), self.known.exponent)

    def change(self, changes: Sequence[Fixed], finite: bool) -> Fixed:
        """The change of the chosen entry where it is certain which one that is; else what the changes of all have in common."""
        moves = self._candidates(changes)
        lower, upper = self.known.ends()
        certain, order = self._certain(lower, upper), self.order
        if finite:
            (first, second), (a, b) = order.chunk(2), certain.chunk(2)
            certain, order = a & b & (first == second), first
        picked = moves.entry(lambda t: self._placed(t.gather(-1, order)))
        ends = moves.ends()
        if finite or isinstance(self.op, ops.GroupSort):
            possible = torch.ones_like(moves.radius, dtype=torch.bool)
        elif self.smallest:
            possible = lower <= upper.amin(-1, keepdim=True)
        else:
            possible = upper >= lower.amax(-1, keepdim=True)
        low = ends[0].masked_fill(~possible, math.inf).amin(-1, keepdim=True).expand(order.shape)
        high = ends[1].masked_fill(~possible, -math.inf).amax(-1, keepdim=True).expand(order.shape)
        hull = Fixed.between(self._placed(low), self._placed(high), self.digits)
        return where(self._placed(certain), picked, hull, self.digits)

    def _certain(self, lower: Tensor, upper: Tensor) -> Tensor:
        """Whether no other candidate can be the chosen one: of the shape of `order`."""
        if isinstance(self.op, ops.GroupSort):
            low, high = lower.gather(-1, self.order), upper.gather(-1, self.order)
            apart = low[..., 1:] > high[..., :-1]
            true = torch.ones((*apart.shape[:-1], 1), dtype=torch.bool)
            return torch.cat([true, apart], -1) & torch.cat([apart, true], -1)
        mine = torch.zeros_like(lower, dtype=torch.bool).scatter(-1, self.order, True)
        if self.smallest:
            return lower.masked_fill(mine, math.inf).amin(-1, keepdim=True) > upper.gather(-1, self.order)
        return upper.masked_fill(mine, -math.inf).amax(-1, keepdim=True) < lower.gather(-1, self.order)
