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
from contextlib import suppress

import torch
from torch import Tensor

from lipverify.errors import BudgetEnded, UnsupportedModel
from lipverify.ir.graph import Graph, Node
from lipverify.ir.interval import Interval
from lipverify.ir.norm import Norm
from lipverify.ir.op import Constant, Input
from lipverify.linalg.fixed import Fixed, Imprecise, sharper
from lipverify.linalg.lengths import length_above, length_below, ratio_below
from lipverify.linalg.rounding import gamma
from lipverify.propagation.interval import interval_ranges
from lipverify.propagation.pointwise.changes import Changes, State
from lipverify.propagation.pointwise.images import AFFINE, CURVES, PIECES, SELECTIONS
from lipverify.rules import Unbounded, interval

DIGITS = (4, 7, 12, 24)
"""Numbers of digits to the base 2^20 that are tried, until the answer is known well enough."""
ENOUGH = 1e-9
"""Known well enough: what the radius may take from a norm, relatively."""
CURVED_DIGITS = DIGITS[1:]
COARSE = 1e-3
"""Known so badly that curves are evaluated in fixed point as well."""
CURVED = 1 << 16
"""Values of curves in all nodes together up to which they are: each takes ten to forty microseconds."""
_INPUT_DIGITS = 12
_VALUES = 1 << 22
"""Values of all nodes together that one chunk of points may have; bounds the memory."""


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
    return ratio_below(change.below(x, y), length_above((y - x).flatten(1), norm_in.word(graph.input_shape)))


def slopes_roughly_below(graph: Graph, x: Tensor, y: Tensor, norm_in: Norm, norm_out: Norm) -> Tensor:
    """As `slopes_below`, in the time of a few evaluations: from intervals in float64 around both outputs. 0 for deep networks and
    near points, where rounding is as large as what happens between them.
    """
    _refuse(graph)
    x, y = (_exact(point) for point in (x, y))
    both = torch.cat([x, y])
    box = _rows(interval_ranges(graph, Interval(both, both))[graph.output.name], len(both))
    (low, other_low), (high, other_high) = (end.flatten(1).chunk(2) for end in (box.lower, box.upper))
    apart = torch.maximum(low - other_high, other_low - high)
    # Both differences are rounded once; what is next below zero counts as nothing.
    least = torch.nextafter(apart, torch.zeros_like(apart)).clamp_min(0.0)
    return ratio_below(
        length_below(least, norm_out.word(graph.output_shape)),
        length_above((y - x).flatten(1), norm_in.word(graph.input_shape)),
    )


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
    return ratio_below(change.below(x, v), length_above(v.flatten(1), norm_in.word(graph.input_shape)))


def _prepared(graph: Graph, *points: Tensor) -> tuple[Graph, list[Tensor]]:
    """On the CPU and in float64, where sums of products are sums of products."""
    _refuse(graph)
    graph = graph.to(dtype=torch.float64, device=torch.device("cpu"))
    return graph, [_exact(point) for point in points]


def _exact(point: Tensor) -> Tensor:
    return point.detach().cpu().to(torch.float64)


def _refuse(graph: Graph) -> None:
    missing = interval.missing(
        node for node in graph.nodes if not isinstance(node.op, (*AFFINE, *SELECTIONS, *PIECES))
    )
    if missing:
        raise UnsupportedModel(f"no interval rule for {', '.join(node.describe() for node in missing[:3])}")


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
        for digits, curved in self._efforts(count):
            if curved and digits == CURVED_DIGITS[0]:
                waiting = (loss > COARSE).nonzero().flatten()
            if not len(waiting):
                continue
            try:
                found = self._change(x[waiting], other[waiting], digits, curved)
            except BudgetEnded:
                if digits == DIGITS[0] and not curved:
                    raise
                break  # what fewer digits have shown holds
            norms, exponent, now = _norms_below(found, self.norm.word(self.graph.output_shape))
            better = now < loss[waiting]
            best[waiting[better]], exponents[waiting[better]] = norms[better], exponent[better]
            helped = now < 0.25 * loss[waiting]
            loss[waiting] = torch.minimum(now, loss[waiting])
            waiting = waiting[helped & (now > ENOUGH)]
        return best, exponents

    def _efforts(self, count: int) -> list[tuple[int, bool]]:
        """Digits, and whether curves have them too: where a long recurrence grows what is not known of float64 numbers."""
        curves = sum(node.size for node in self.graph.nodes if type(node.op) in CURVES)
        again = CURVED_DIGITS if self.finite and 0 < 2 * count * curves <= CURVED else ()
        return [*((digits, False) for digits in DIGITS), *((digits, True) for digits in again)]

    def _change(self, x: Tensor, other: Tensor, digits: int, curved: bool) -> Fixed:
        walk = _Walk(self.graph, digits, self.finite, curved)
        if not self.finite:
            return walk.run(x, Fixed.of(other, _INPUT_DIGITS)).known_change()
        step = Fixed.of(other, _INPUT_DIGITS).minus(Fixed.of(x, _INPUT_DIGITS), _INPUT_DIGITS)
        return walk.run(torch.cat([x, other]), step).known_change()


def _norms_below(found: Fixed, norm: str) -> tuple[Tensor, Tensor, Tensor]:
    """Lower bounds of the norms of the samples as mantissa and exponent, and the share that the radius takes: [count] each."""
    middle = found.middle().flatten(1)
    radius = found.radius.flatten(1) + middle.abs() * gamma(2 * len(found.digits) + 8)
    radius = radius * (1.0 + 4.0 * gamma(1))
    least = (middle.abs() - radius).clamp_min(0.0)
    below, exponent = length_below(least, norm)
    order = {"l1": 1.0, "linf": math.inf}.get(norm, 2.0)
    off, whole = (
        torch.linalg.vector_norm(part, ord=order, dim=1) for part in (found.radius.flatten(1), middle)
    )
    loss = torch.where(off > 0, off / whole.clamp_min(1e-300), 0.0)
    return below, exponent + found.exponent, loss


# -- one pass through the graph


class _Walk(Changes):
    """finite: changes between two points; False: derivatives at one; None: values alone."""

    def __init__(self, graph: Graph, digits: int, finite: bool | None, curved: bool = False) -> None:
        super().__init__(digits, finite, curved)
        self.graph = graph
        exact = (Input, Constant, *AFFINE, *SELECTIONS, *PIECES)
        # Where every value is known in fixed point, the difference of two is as good as a carried change.
        self.carries = finite is not None and not (
            finite and all(isinstance(node.op, exact) for node in graph.nodes)
        )

    def run(self, points: Tensor, change: Fixed | None) -> State:
        """The output's values, and its change where one was asked for."""
        known: dict[str, State] = {}
        waiting = {name: len(users) for name, users in self.graph.consumers.items()}
        for node in self.graph.nodes:
            inputs = [known[name] for name in node.inputs]
            if isinstance(node.op, Input):
                known[node.name] = State(Fixed.of(points, self.digits), change if self.carries else None)
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
            return State(found.points, self._difference(found.points))
        return found

    def _node(self, node: Node, inputs: list[State]) -> State:
        try:
            points = self.image(node.op, [state.points for state in inputs])
            return State(points, self._change(node, inputs, points) if self.carries else None)
        except Imprecise as error:
            raise UnsupportedModel(f"{node.describe()}: {error} at the stored points") from None
        except UnsupportedModel as error:
            raise type(error)(f"{node.describe()}: {error}") from None

    def _constant(self, op: Constant, rows: int) -> State:
        value = op.value.unsqueeze(0)
        points = Fixed.of(value.expand(rows, *op.value.shape), self.digits + 3)
        count = rows // 2 if self.finite else rows
        zero = Fixed.of(torch.zeros(count, *op.value.shape, dtype=torch.float64), 1)
        return State(points, zero if self.carries else None)

    def _difference(self, points: Fixed) -> Fixed:
        first = points.entry(lambda t: t.chunk(2)[0])
        return points.entry(lambda t: t.chunk(2)[1]).minus(first, self.digits)

    def _change(self, node: Node, inputs: list[State], points: Fixed) -> Fixed:
        """The node's change from the changes of its inputs; between two points also the difference of its values."""
        candidates = [self._difference(points)] if self.finite else []
        try:
            carried = self.carried(node.op, inputs, node.shape)
        except (Unbounded, Imprecise):
            if not candidates:
                raise
            return candidates[0]
        if carried is not None:
            candidates.append(carried)
        if not candidates:
            raise UnsupportedModel(f"no rule encloses the derivative of {node.describe()}")
        return candidates[0] if len(candidates) == 1 else sharper(candidates[0], candidates[1], self.digits)
