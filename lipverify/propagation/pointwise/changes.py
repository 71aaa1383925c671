"""Changes behind one operator, from those of its inputs: between two points, or along a direction at one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

import torch
from torch import Tensor

from lipverify import ops
from lipverify.errors import InternalError
from lipverify.ir.interval import Interval
from lipverify.ir.op import Op
from lipverify.linalg.fixed import BITS, Fixed, Imprecise, where
from lipverify.ops.enclosure import Enclosure, linear_box
from lipverify.propagation.pointwise.images import AFFINE, SELECTIONS, Images
from lipverify.propagation.pointwise.selections import Selection
from lipverify.rules import interval, slopes


@dataclass(frozen=True)
class State:
    """A node's values at the points [rows, *shape], and its change [count, *shape] where it is carried.

    Two points of a pair: rows are all first points, then all second ones.
    """

    points: Fixed
    change: Fixed | None

    def known_change(self) -> Fixed:
        """The change.

        Raises:
            InternalError: none was carried.
        """
        if self.change is None:
            raise InternalError("no change was carried")
        return self.change


class Changes(Images):
    """finite: changes between two points; False: derivatives at one; None: none are asked for."""

    def __init__(self, digits: int, finite: bool | None, curved: bool = False) -> None:
        super().__init__(digits, curved)
        self.finite = finite

    def carried(self, op: Op, inputs: list[State], shape: Sequence[int]) -> Fixed | None:
        changes = [state.known_change() for state in inputs]
        if isinstance(op, AFFINE):
            return self.affine(op, changes, constants=False)
        if isinstance(op, SELECTIONS):
            return Selection(op, [state.points for state in inputs], self.digits).change(
                changes, bool(self.finite)
            )
        if isinstance(op, ops.Mul | ops.MatMul | ops.Div):
            return self._product_change(op, inputs, changes)
        if isinstance(op, ops.Softmax | ops.LogSoftmax):
            return self._softmax_change(op, self._between(inputs[0].points), changes[0])
        if isinstance(op, ops.LayerNorm | ops.RMSNorm):
            return self._normalised_change(op, self._between(inputs[0].points), changes[0])
        if isinstance(op, ops.Householder):
            return self._reflected_change(op, self._between(inputs[0].points), changes[0])
        if slopes.covers(type(op)):
            found = slopes(op, self._between(inputs[0].points), tuple(shape))
            return changes[0].times(Fixed.between(found.lower, found.upper, self.digits), self.digits)
        return None

    def _between(self, points: Fixed) -> Interval:
        """The smallest boxes that hold both points of every pair."""
        lower, upper = points.ends()
        if not self.finite:
            return Interval(lower, upper)
        (a, b), (c, d) = lower.chunk(2), upper.chunk(2)
        return Interval(torch.minimum(a, b), torch.maximum(c, d))

    def _product_change(self, op: Op, inputs: list[State], changes: list[Fixed]) -> Fixed:
        """a' b' - a b = (a' - a) b' + a (b' - b), and a'/b' - a/b = ((a' - a) - (a/b) (b' - b)) / b'."""
        a, b = (state.points for state in inputs)
        before = b
        if self.finite:
            before = b.entry(lambda t: t.chunk(2)[0])
            a, b = a.entry(lambda t: t.chunk(2)[0]), b.entry(lambda t: t.chunk(2)[1])
        parts = []
        if isinstance(op, ops.Div):
            quotient = self.enclosed(interval(op, Interval(*a.ends()), Interval(*before.ends())))
            inverse = self.enclosed(1.0 / Enclosure(*b.ends()))
            rest = changes[0].minus(changes[1].times(quotient, self.digits), self.digits)
            return rest.times(inverse, self.digits)
        for left, right in ((changes[0], b), (a, changes[1])):
            if isinstance(op, ops.Mul):
                parts.append(left.times(right, self.digits))
                continue
            # Float64 and powers of two: a change may be far smaller than 1.
            units = [BITS * len(x.digits) + x.exponent for x in (left, right)]
            boxes = [
                replace(x, exponent=x.exponent - unit) for x, unit in zip((left, right), units, strict=True)
            ]
            found = interval(op, *(Interval(*box.ends()) for box in boxes))
            image = self.enclosed(found)
            parts.append(replace(image, exponent=image.exponent + sum(units)))
        return parts[0].plus(parts[1], self.digits)

    def _softmax_change(self, op: ops.Softmax | ops.LogSoftmax, box: Interval, change: Fixed) -> Fixed:
        """p (d - p'd), and d - p'd for the logarithm, p being the probabilities anywhere between the two points."""
        p = self.enclosed(interval(ops.Softmax(op.axis), box))
        axis = op.axis + 1
        along = change.times(p, self.digits)
        mean = self.summed(lambda t: t.sum(dim=axis, keepdim=True), change.shape[axis], along)
        rest = change.minus(mean, self.digits)
        return rest.times(p, self.digits) if isinstance(op, ops.Softmax) else rest

    def _normalised_change(self, op: ops.LayerNorm | ops.RMSNorm, box: Interval, change: Fixed) -> Fixed:
        """(d - mean(d) - z mean(z d)) weight / s; z the result before weight and bias, s the root of variance plus eps.

        Without the mean for the root mean square.
        """
        axes = tuple(range(-len(op.shape), 0))
        count = math.prod(op.shape)
        x = Enclosure.of(box)
        plain: Op = ops.LayerNorm(op.shape, None, None, op.eps)
        if isinstance(op, ops.RMSNorm):
            plain = ops.RMSNorm(op.shape, None, op.eps)
        else:
            x = x - x.sum(axes) / float(count)
        inverse = self.enclosed(1.0 / (x.square().sum(axes) / float(count) + op.eps).sqrt())
        z = self.enclosed(interval(plain, box))
        share = Fixed.ratios([Fraction(1, count)], [1] * len(change.shape), self.digits + 3)

        def mean(rows: Fixed) -> Fixed:
            total = self.summed(lambda t: t.sum(dim=axes, keepdim=True), count, rows)
            return total.times(share, self.digits)

        rest = change.minus(z.times(mean(z.times(change, self.digits)), self.digits), self.digits)
        if isinstance(op, ops.LayerNorm):
            rest = rest.minus(mean(change), self.digits)
        found = rest.times(inverse, self.digits)
        return found if op.weight is None else found.times(self.stored(op.weight, found), self.digits)

    def _reflected_change(self, op: ops.Householder, box: Interval, change: Fixed) -> Fixed:
        """d where w'x > 0, its reflection elsewhere, between the two where that is not certain."""
        axis, vectors = op.axis + 1, op.vectors

        def grouped(t: Tensor) -> Tensor:
            found: Tensor = t.movedim(axis, -1).unflatten(-1, vectors.shape)
            return found

        def back(t: Tensor) -> Tensor:
            return t.flatten(-2).movedim(-1, axis)

        d = change.entry(grouped)
        squares = [sum(Fraction(v) ** 2 for v in row) for row in vectors.tolist()]
        if not all(squares):
            raise Imprecise("a reflection vector is zero")
        factors = [2 * Fraction(v) / s for row, s in zip(vectors.tolist(), squares, strict=True) for v in row]
        shape = (*(1,) * (len(d.shape) - 2), *vectors.shape)
        steps = Fixed.ratios(factors, shape, self.digits + 3)
        along = self.summed(
            lambda t: t.sum(-1, keepdim=True),
            vectors.shape[1],
            d.times(self.stored(vectors, d), self.digits),
        )
        mirrored = d.minus(along.times(steps, self.digits), self.digits)
        side = linear_box(
            lambda t: (t * vectors).sum(-1, keepdim=True),
            lambda t: (t * vectors.abs()).sum(-1, keepdim=True),
            None,
            Interval(grouped(box.lower), grouped(box.upper)),
            vectors.shape[1],
        )
        (low, high), (left, right) = d.ends(), mirrored.ends()
        hull = Fixed.between(torch.minimum(low, left), torch.maximum(high, right), self.digits)
        found = where(side.lower > 0, d, where(side.upper < 0, mirrored, hull, self.digits), self.digits)
        return found.entry(back)
