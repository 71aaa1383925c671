"""Values of a network at stored points, and how they change from one point to another, with every rounding accounted for.

Interval arithmetic in float64 loses every digit of a deep network, because a sum forgets that errors cancel: what is known of
the logits of a residual network of twenty layers is wider than the logits. Here affine and piecewise linear operators are
evaluated in fixed point, in as many digits as the answer needs; all others by their `interval` rules in float64.

A change is carried beside the values: of an affine map it is the linear part of the change, of a scalar function the change
times its slopes between the two points. So a smooth network's difference is known relatively however near the points are, and
the derivative along a direction is the same thing at one point.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from fractions import Fraction

import torch
from torch import Tensor

from lipverify import ops
from lipverify.errors import BudgetEnded, InternalError, UnsupportedModel
from lipverify.ir.graph import Graph, Node
from lipverify.ir.interval import Interval
from lipverify.ir.norm import Norm
from lipverify.ir.op import Constant, Input, Op
from lipverify.linalg.fixed import BITS, Fixed, Imprecise, aligned, sharper, where
from lipverify.linalg.lengths import length_above, length_below, ratio_below
from lipverify.linalg.rounding import gamma
from lipverify.ops.convolution import flat_pads
from lipverify.ops.enclosure import Enclosure, linear_box
from lipverify.ops.pooling import batched_axes, window_counts, window_sums, windows
from lipverify.propagation.interval import interval_ranges
from lipverify.rules import Unbounded, forward, interval, linear, slopes

DIGITS = (4, 7, 12, 24)
"""Numbers of digits to the base 2^20 that are tried, until the answer is known well enough."""
ENOUGH = 1e-9
"""Known well enough: what the radius may take from a norm, relatively."""
_INPUT_DIGITS = 12
_VALUES = 1 << 22
"""Values of all nodes together that one chunk of points may have; bounds the memory."""

_MOVES = (ops.Reshape, ops.Transpose, ops.Slice, ops.Gather, ops.Upsample, ops.DepthToSpace, ops.Expand)
_SELECTIONS = (ops.MaxPool, ops.ReduceMax, ops.ReduceMin, ops.Maximum, ops.Minimum, ops.GroupSort)
_PIECES = (ops.ReLU, ops.Abs, ops.LeakyReLU, ops.PReLU, ops.Clip, ops.Hardsigmoid)
_AFFINE = (
    *_MOVES,
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


# -- questions


def values(graph: Graph, x: Tensor, enough: float = 0.0) -> Interval:
    """The outputs at stored points, as float64 ends rounded outward. x [count, *input shape] -> [count, *output shape].

    Statement: the real-valued function of the graph and its stored weights has its outputs between the ends.

    Args:
        enough: where interval arithmetic in float64 gives every output to this relative width, nothing more is done.

    Raises:
        UnsupportedModel: a node without an interval rule, or a value that is not bounded.
    """
    graph, (x,) = _prepared(graph, x)
    found = [_values(graph, part, enough) for part in x.split(_chunk(graph))]
    return Interval(*(torch.cat([getattr(box, side) for box in found]) for side in ("lower", "upper")))


def _values(graph: Graph, x: Tensor, enough: float) -> Interval:
    width = math.inf
    if enough > 0.0:
        # Where a sum of boxes is not bounded any more, fixed point may still be.
        with suppress(UnsupportedModel):
            found = interval_ranges(graph, Interval(x, x))[graph.output.name]
            if bool((found.width <= enough * found.center.abs()).all()):
                return _rows(found, len(x))
    for digits in DIGITS:
        best = Interval(*_Walk(graph, digits, None).run(x, None).points.ends())
        before, width = width, float(best.width.max())
        # A few units in the last place are what float64 ends can show.
        if bool((best.width <= 2.0**-48 * best.center.abs()).all()) or width > 0.25 * before:
            break
    return best


def _rows(box: Interval, count: int) -> Interval:
    """A box for every sample, also where the output does not depend on the input."""
    shape = (count, *box.lower.shape[1:])
    return Interval(box.lower.expand(shape), box.upper.expand(shape))


def slopes_below(graph: Graph, x: Tensor, y: Tensor, norm_in: Norm, norm_out: Norm) -> Tensor:
    """Lower bounds of |f(y) - f(x)|_out / |y - x|_in for stored pairs; x, y [count, *input shape] -> [count], float64.

    Statement: the real-valued function of the graph and its stored weights has at least this slope between the two points. 0
        where they are equal.

    Raises:
        UnsupportedModel: a node without an interval rule, or a value that is not bounded.
    """
    graph, (x, y) = _prepared(graph, x, y)
    change = _Refined(graph, norm_out, finite=True)
    return ratio_below(change.below(x, y), length_above((y - x).flatten(1), norm_in.value))


def derivatives_below(graph: Graph, x: Tensor, v: Tensor, norm_in: Norm, norm_out: Norm) -> Tensor:
    """Lower bounds of |J v|_out / |v|_in at stored points for stored directions; x, v [count, *input shape] -> [count].

    Statement: holds for every J that is a product of elements of the generalised derivatives of the operators: for the
        derivative where there is one, else for every limit of derivatives at neighbouring points.
    Source: Clarke, Optimization and Nonsmooth Analysis, theorem 2.6.6 (chain rule).

    Raises:
        UnsupportedModel: an operator whose derivative no rule encloses; it is named.
    """
    graph, (x, v) = _prepared(graph, x, v)
    change = _Refined(graph, norm_out, finite=False)
    return ratio_below(change.below(x, v), length_above(v.flatten(1), norm_in.value))


def _prepared(graph: Graph, *points: Tensor) -> tuple[Graph, list[Tensor]]:
    """On the CPU and in float64, where sums of products are sums of products."""
    missing = interval.missing(
        node for node in graph.nodes if not isinstance(node.op, (*_AFFINE, *_SELECTIONS, *_PIECES))
    )
    if missing:
        raise UnsupportedModel(f"no interval rule for {', '.join(node.describe() for node in missing[:3])}")
    graph = graph.to(dtype=torch.float64, device=torch.device("cpu"))
    return graph, [point.detach().cpu().to(torch.float64) for point in points]


def _chunk(graph: Graph) -> int:
    return max(1, _VALUES // sum(node.size for node in graph.nodes))


class _Refined:
    """Norms of changes from below, in more digits for the samples that need them."""

    def __init__(self, graph: Graph, norm: Norm, finite: bool) -> None:
        self.graph, self.norm, self.finite = graph, norm, finite

    def below(self, x: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
        """(mantissas, exponents) [count]. other: the second points, or the directions."""
        parts = [
            self._below(*pair)
            for pair in zip(*(t.split(_chunk(self.graph)) for t in (x, other)), strict=True)
        ]
        return torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])

    def _below(self, x: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
        count = len(x)
        best, exponents = torch.zeros(count, dtype=torch.float64), torch.zeros(count, dtype=torch.int64)
        loss = torch.full((count,), math.inf, dtype=torch.float64)
        waiting = torch.arange(count)
        for digits in DIGITS:
            try:
                found = self._change(x[waiting], other[waiting], digits)
            except BudgetEnded:
                if digits == DIGITS[0]:
                    raise
                break  # what fewer digits have shown holds
            norms, exponent, now = _norms_below(found, self.norm)
            better = now < loss[waiting]
            best[waiting[better]], exponents[waiting[better]] = norms[better], exponent[better]
            helped = now < 0.25 * loss[waiting]
            loss[waiting] = torch.minimum(now, loss[waiting])
            waiting = waiting[helped & (now > ENOUGH)]
            if not len(waiting):
                break
        return best, exponents

    def _change(self, x: Tensor, other: Tensor, digits: int) -> Fixed:
        walk = _Walk(self.graph, digits, self.finite)
        if not self.finite:
            return walk.run(x, Fixed.of(other, _INPUT_DIGITS)).known_change()
        step = Fixed.of(other, _INPUT_DIGITS).minus(Fixed.of(x, _INPUT_DIGITS), _INPUT_DIGITS)
        return walk.run(torch.cat([x, other]), step).known_change()


def _norms_below(found: Fixed, norm: Norm) -> tuple[Tensor, Tensor, Tensor]:
    """Lower bounds of the norms of the samples as mantissa and exponent, and the share that the radius takes: [count] each."""
    middle = found.middle().flatten(1)
    radius = found.radius.flatten(1) + middle.abs() * gamma(2 * len(found.digits) + 8)
    radius = radius * (1.0 + 4.0 * gamma(1))
    least = (middle.abs() - radius).clamp_min(0.0)
    below, exponent = length_below(least, norm.value)
    off, whole = (
        torch.linalg.vector_norm(part, ord=norm.order, dim=1) for part in (found.radius.flatten(1), middle)
    )
    loss = torch.where(off > 0, off / whole.clamp_min(1e-300), 0.0)
    return below, exponent + found.exponent, loss


# -- one pass through the graph


@dataclass(frozen=True)
class _State:
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


class _Walk:
    """finite: changes between two points; False: derivatives at one; None: values alone."""

    def __init__(self, graph: Graph, digits: int, finite: bool | None) -> None:
        self.graph, self.digits, self.finite = graph, digits, finite
        exact = (Input, Constant, *_AFFINE, *_SELECTIONS, *_PIECES)
        # Where every value is known in fixed point, the difference of two is as good as a carried change.
        self.carries = finite is not None and not (
            finite and all(isinstance(node.op, exact) for node in graph.nodes)
        )

    def run(self, points: Tensor, change: Fixed | None) -> _State:
        """The output's values, and its change where one was asked for."""
        known: dict[str, _State] = {}
        waiting = {name: len(users) for name, users in self.graph.consumers.items()}
        for node in self.graph.nodes:
            inputs = [known[name] for name in node.inputs]
            if isinstance(node.op, Input):
                known[node.name] = _State(Fixed.of(points, self.digits), change if self.carries else None)
            elif isinstance(node.op, Constant):
                known[node.name] = self._constant(node.op, len(points))
            else:
                known[node.name] = self._node(node, inputs)
            for name in node.inputs:
                waiting[name] -= 1
                if waiting[name] == 0 and name != self.graph.output.name:
                    known.pop(name, None)
        found = known[self.graph.output.name]
        if self.finite and found.change is None:
            return _State(found.points, self._difference(found.points))
        return found

    def _node(self, node: Node, inputs: list[_State]) -> _State:
        try:
            points = self._image(node.op, [state.points for state in inputs])
            return _State(points, self._change(node, inputs, points) if self.carries else None)
        except Imprecise as error:
            raise UnsupportedModel(f"{node.describe()}: {error} at the stored points") from None
        except UnsupportedModel as error:
            raise type(error)(f"{node.describe()}: {error}") from None

    def _constant(self, op: Constant, rows: int) -> _State:
        value = op.value.unsqueeze(0)
        points = Fixed.of(value.expand(rows, *op.value.shape), self.digits + 3)
        count = rows // 2 if self.finite else rows
        zero = Fixed.of(torch.zeros(count, *op.value.shape, dtype=torch.float64), 1)
        return _State(points, zero if self.carries else None)

    def _difference(self, points: Fixed) -> Fixed:
        first = points.entry(lambda t: t.chunk(2)[0])
        return points.entry(lambda t: t.chunk(2)[1]).minus(first, self.digits)

    # -- values

    def _image(self, op: Op, xs: Sequence[Fixed]) -> Fixed:
        if isinstance(op, _AFFINE):
            return self._affine(op, xs, constants=True)
        if isinstance(op, _SELECTIONS):
            return _Selection(op, xs, self.digits).points()
        if isinstance(op, _PIECES):
            return self._pieces(op, xs[0])
        box = interval(op, *(Interval(*x.ends()) for x in xs))
        return Fixed.between(box.lower, box.upper, self.digits)

    def _affine(self, op: Op, xs: Sequence[Fixed], constants: bool) -> Fixed:
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
                found = xs[0] if scale is None else xs[0].times(self._stored(scale, xs[0]), self.digits)
                if shift is None or not constants:
                    return found
                return found.plus(self._stored(shift, xs[0]), self.digits)
            case ops.DivideBy(divisor=divisor):
                return xs[0].times(self._reciprocals(divisor, xs[0]), self.digits)
            case ops.BatchNorm():
                return self._batch_norm(op, xs[0], constants)
            case ops.AvgPool():
                found = self._summed(lambda t: window_sums(op, t), math.prod(op.kernel), xs[0])
                return found.times(self._reciprocals(window_counts(op, xs[0].radius), found), self.digits)
            case ops.ReduceSum() | ops.ReduceMean():
                axes, keep = batched_axes(op.axes), op.keepdims
                size = math.prod(xs[0].shape[axis] for axis in axes)
                found = self._summed(lambda t: t.sum(dim=axes, keepdim=keep), size, xs[0])
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
        return found.plus(self._stored(bias, found), self.digits)

    def _summed(self, apply: Callable[[Tensor], Tensor], terms: int, x: Fixed) -> Fixed:
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
            found = found.minus(self._stored(op.mean.reshape(shape[1:]), x), self.digits)
        found = found.times(Fixed.ratios(lower, shape, self.digits + 3, upper), self.digits)
        return found.plus(self._stored(op.bias.reshape(shape[1:]), x), self.digits) if constants else found

    def _shifted(self, found: Fixed, op: Op, x: Fixed) -> Fixed:
        """Plus the constants of an operator that only moves entries."""
        constant = forward(op, torch.zeros(1, *x.shape[1:], dtype=torch.float64))
        return found.plus(Fixed.of(constant, self.digits + 3), self.digits)

    def _stored(self, value: Tensor, like: Fixed) -> Fixed:
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
                left, right = aligned((x.times(self._stored(value, x), self.digits), x), self.digits)
                lower, upper = x.ends()
                # Next to 0 either slope may count: the sum of both radii is more than the larger.
                radius = torch.where(negative, left.radius, right.radius)
                both = (left.radius + right.radius) * (1.0 + 4.0 * gamma(1))
                radius = torch.where((lower < 0) & (upper > 0), both, radius)
                return Fixed(torch.where(negative, left.digits, right.digits), radius, left.exponent)
            case ops.Clip(low=low, high=high):
                return self._clipped(x, low, high)
            case ops.Hardsigmoid(alpha=alpha, beta=beta):
                stored = [self._stored(torch.tensor(v, dtype=torch.float64), x) for v in (alpha, beta)]
                return self._clipped(x.times(stored[0], self.digits).plus(stored[1], self.digits), 0.0, 1.0)
            case _:
                raise InternalError(f"{op.kind()} has no pieces")

    def _clipped(self, x: Fixed, low: float, high: float) -> Fixed:
        """min(max(x, low), high): no entry's radius grows."""
        for end, above in ((low, False), (high, True)):
            if math.isinf(end):
                continue
            limit = self._stored(torch.tensor(end, dtype=torch.float64), x)
            beyond = x.minus(limit, self.digits) if above else limit.minus(x, self.digits)
            outside = beyond.digits[-1] >= 0
            found = where(outside, limit, x, self.digits)
            # What comparing cut off counts as well.
            x = Fixed(found.digits, _at_least(beyond, found), found.exponent)
        return x

    # -- changes

    def _change(self, node: Node, inputs: list[_State], points: Fixed) -> Fixed:
        """The node's change from the changes of its inputs; between two points also the difference of its values."""
        candidates = [self._difference(points)] if self.finite else []
        try:
            carried = self._carried(node.op, inputs, node.shape)
        except (Unbounded, Imprecise):
            if not candidates:
                raise
            return candidates[0]
        if carried is not None:
            candidates.append(carried)
        if not candidates:
            raise UnsupportedModel(f"no rule encloses the derivative of {node.describe()}")
        return candidates[0] if len(candidates) == 1 else sharper(candidates[0], candidates[1], self.digits)

    def _carried(self, op: Op, inputs: list[_State], shape: Sequence[int]) -> Fixed | None:
        changes = [state.known_change() for state in inputs]
        if isinstance(op, _AFFINE):
            return self._affine(op, changes, constants=False)
        if isinstance(op, _SELECTIONS):
            return _Selection(op, [state.points for state in inputs], self.digits).change(
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

    def _product_change(self, op: Op, inputs: list[_State], changes: list[Fixed]) -> Fixed:
        """a' b' - a b = (a' - a) b' + a (b' - b), and a'/b' - a/b = ((a' - a) - (a/b) (b' - b)) / b'."""
        a, b = (state.points for state in inputs)
        before = b
        if self.finite:
            before = b.entry(lambda t: t.chunk(2)[0])
            a, b = a.entry(lambda t: t.chunk(2)[0]), b.entry(lambda t: t.chunk(2)[1])
        parts = []
        if isinstance(op, ops.Div):
            quotient = self._enclosed(interval(op, Interval(*a.ends()), Interval(*before.ends())))
            inverse = self._enclosed(1.0 / Enclosure(*b.ends()))
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
            image = self._enclosed(found)
            parts.append(replace(image, exponent=image.exponent + sum(units)))
        return parts[0].plus(parts[1], self.digits)

    def _enclosed(self, box: Interval) -> Fixed:
        return Fixed.between(box.lower, box.upper, self.digits)

    def _softmax_change(self, op: ops.Softmax | ops.LogSoftmax, box: Interval, change: Fixed) -> Fixed:
        """p (d - p'd), and d - p'd for the logarithm, p being the probabilities anywhere between the two points."""
        p = self._enclosed(interval(ops.Softmax(op.axis), box))
        axis = op.axis + 1
        along = change.times(p, self.digits)
        mean = self._summed(lambda t: t.sum(dim=axis, keepdim=True), change.shape[axis], along)
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
        inverse = self._enclosed(1.0 / (x.square().sum(axes) / float(count) + op.eps).sqrt())
        z = self._enclosed(interval(plain, box))
        share = Fixed.ratios([Fraction(1, count)], [1] * len(change.shape), self.digits + 3)

        def mean(rows: Fixed) -> Fixed:
            total = self._summed(lambda t: t.sum(dim=axes, keepdim=True), count, rows)
            return total.times(share, self.digits)

        rest = change.minus(z.times(mean(z.times(change, self.digits)), self.digits), self.digits)
        if isinstance(op, ops.LayerNorm):
            rest = rest.minus(mean(change), self.digits)
        found = rest.times(inverse, self.digits)
        return found if op.weight is None else found.times(self._stored(op.weight, found), self.digits)

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
        along = self._summed(
            lambda t: t.sum(-1, keepdim=True),
            vectors.shape[1],
            d.times(self._stored(vectors, d), self.digits),
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


class _Selection:
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
