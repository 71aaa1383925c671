"""Choices between functions of straight pieces of one computed tensor, where the two meet at the threshold.

`where(x > 1, x, 1)`, `where(x < -limit, x + limit, where(x > limit, x - limit, 0))` and the like are continuous. Whether the two
branches have one value at the threshold is decided in rational numbers: stored numbers are rational, and so is everything that
follows from them here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from lipverify import ops
from lipverify.frontends.builder import Builder, Value
from lipverify.ir.op import Op

Line = tuple[Fraction, Fraction]
"""Slope and value at 0."""
_DEPTH = 64
"""Nodes that a branch may have between the tensor and its result."""


_KNOTS = 64


@dataclass(frozen=True)
class Pieces:
    """lines[0] left of knots[0], lines[i] between knots[i - 1] and knots[i], lines[-1] behind the last; knots rise."""

    knots: tuple[Fraction, ...]
    lines: tuple[Line, ...]

    def at(self, x: Fraction) -> Fraction:
        """The value at x, where all functions here are continuous."""
        slope, shift = self.line(x)
        return slope * x + shift

    def scaled(self, scale: Fraction, shift: Fraction) -> Pieces:
        """scale f + shift."""
        return Pieces(self.knots, tuple((scale * a, scale * c + shift) for a, c in self.lines))

    def after(self, inner: Pieces) -> Pieces:
        """x -> f(inner(x)): it may bend where the inner function does, and where that takes the value of a knot of f."""
        knots = set(inner.knots)
        for a, c in inner.lines:
            knots |= {(knot - c) / a for knot in self.knots} if a else set()
        ends = sorted(knots)
        middles = [(a + c) / 2 for a, c in pairwise(ends)]
        lines = []
        for x in [ends[0] - 1, *middles, ends[-1] + 1] if ends else [Fraction(0)]:
            a, c = inner.line(x)
            outer, shift = self.line(a * x + c)
            lines.append((outer * a, outer * c + shift))
        return _without_bends(Pieces(tuple(ends), tuple(lines)))

    def line(self, x: Fraction) -> Line:
        """The line that x is on; at a knot, the one behind it."""
        return self.lines[sum(knot <= x for knot in self.knots)]


_IDENTITY = Pieces((), ((Fraction(1), Fraction(0)),))


def joined(b: Builder, x: Value, level: float, above: Any, below: Any) -> Value | None:
    """`above` where x > level and `below` elsewhere; None where one of them is no function of straight pieces of what x is an
    affine function of, with the same numbers for every entry, or where they do not meet."""
    root, (scale, shift) = _root(b, x)
    upper, lower = _pieces(b, root, above), _pieces(b, root, below)
    if upper is None or lower is None or scale == 0:
        return None
    level_there = (Fraction(level) - shift) / scale
    if scale < 0:
        upper, lower = lower, upper
    if upper.at(level_there) != lower.at(level_there):
        return None
    left = sum(knot < level_there for knot in lower.knots)
    right = sum(knot <= level_there for knot in upper.knots)
    knots = (*lower.knots[:left], level_there, *upper.knots[right:])
    return _built(b, root, _without_bends(Pieces(knots, (*lower.lines[: left + 1], *upper.lines[right:]))))


def _without_bends(f: Pieces) -> Pieces:
    """The same function without knots at which it does not bend."""
    bends = [before != after for before, after in pairwise(f.lines)]
    kept = [line for line, bent in zip(f.lines[1:], bends, strict=True) if bent]
    return Pieces(tuple(k for k, bent in zip(f.knots, bends, strict=True) if bent), (f.lines[0], *kept))


def _root(b: Builder, x: Value) -> tuple[Value, Line]:
    """The node that x is an affine function of, entry by entry with the same numbers, and that function."""
    total: Line = (Fraction(1), Fraction(0))
    for _ in range(_DEPTH):
        node = b.node(x.name)
        own = _affine(node.op)
        if own is None:
            break
        total = (total[0] * own[0], total[0] * own[1] + total[1])
        x = Value(node.inputs[0], b.node(node.inputs[0]).shape, x.batch)
    return x, total


def _affine(op: Op) -> Line | None:
    if not isinstance(op, ops.Scale):
        return None
    numbers = [_one(op.scale, 1), _one(op.shift, 0)]
    return None if None in numbers else (numbers[0], numbers[1])  # type: ignore[return-value]


def _one(tensor: Any, absent: int) -> Fraction | None:
    """The one finite number that a stored tensor holds."""
    if tensor is None:
        return Fraction(absent)
    return Fraction(float(tensor.reshape(-1)[0])) if alike(tensor) else None


def alike(stored: Any) -> bool:
    """Whether a stored tensor holds one finite number, however often."""
    if not isinstance(stored, Tensor) or stored.numel() == 0 or stored.is_complex():
        return False
    first = stored.reshape(-1)[0]
    return bool((stored == first).all()) and math.isfinite(float(first))


def _pieces(b: Builder, root: Value, branch: Any) -> Pieces | None:
    """The branch as a function of the root; None where it is none of straight pieces."""
    if not isinstance(branch, Value):
        number = stored_number(branch, root.source_shape)
        return None if number is None else Pieces((), ((Fraction(0), Fraction(number)),))
    if branch.shape != root.shape or branch.batch != root.batch:
        return None
    outer: list[Op] = []
    name = branch.name
    while name != root.name:
        node = b.node(name)
        if len(node.inputs) != 1 or len(outer) == _DEPTH or node.shape != root.shape:
            return None
        outer.append(node.op)
        (name,) = node.inputs
    found = _IDENTITY
    for op in reversed(outer):
        line, own = _affine(op), _bent(op)
        if line is not None:
            found = found.scaled(*line)
        elif own is not None and len(own.knots) + len(found.knots) <= _KNOTS:
            found = own.after(found)
        else:
            return None
    return found


def stored_number(stored: Any, target: Sequence[int]) -> float | None:
    """What a number or a stored tensor is everywhere, if it is finite and broadcasts without making the target larger."""
    if isinstance(stored, int | float) and not isinstance(stored, bool):
        return float(stored) if math.isfinite(stored) and float(stored) == stored else None
    if not isinstance(stored, Tensor) or stored.ndim > len(target) or not alike(stored):
        return None
    behind = target[len(target) - stored.ndim :]
    fits = all(own in (1, size) for own, size in zip(stored.shape, behind, strict=True))
    return float(stored.reshape(-1)[0]) if fits else None


def _bent(op: Op) -> Pieces | None:
    """A scalar activation of straight pieces."""
    zero, one = Fraction(0), Fraction(1)
    if isinstance(op, ops.ReLU):
        return Pieces((zero,), ((zero, zero), (one, zero)))
    if isinstance(op, ops.Abs | ops.LeakyReLU):
        return Pieces((zero,), ((-one if isinstance(op, ops.Abs) else Fraction(op.slope), zero), (one, zero)))
    if isinstance(op, ops.Clip) and op.low < op.high:
        ends = [Fraction(end) for end in (op.low, op.high) if math.isfinite(end)]
        lines = [(one, zero)]
        lines = [(zero, Fraction(op.low)), *lines] if math.isfinite(op.low) else lines
        return Pieces(
            tuple(ends), tuple([*lines, (zero, Fraction(op.high))] if math.isfinite(op.high) else lines)
        )
    if isinstance(op, ops.PiecewiseLinear):
        knots = [Fraction(knot) for knot in op.knots]
        value, lines = (
            Fraction(op.start),
            [(Fraction(op.slopes[0]), Fraction(op.start) - Fraction(op.slopes[0]) * knots[0])],
        )
        for k, slope in enumerate(map(Fraction, op.slopes[1:])):
            lines.append((slope, value - slope * knots[k]))
            value += slope * (knots[k + 1] - knots[k]) if k + 1 < len(knots) else 0
        return Pieces(tuple(knots), tuple(lines))
    return None


def _built(b: Builder, x: Value, f: Pieces) -> Value | None:
    """The function as operators, in forms that the checker proves where there is one; None where a number of it is no float64."""
    slopes = [slope for slope, _ in f.lines]
    bent = [i for i, slope in enumerate(slopes) if slope]
    if not f.knots:
        return _line(b, x, *f.lines[0])
    if len(bent) == 1:
        (i,) = bent
        low = f.knots[i - 1] if i > 0 else -math.inf
        high = f.knots[i] if i < len(f.knots) else math.inf
        if not all(_exact(end) for end in (low, high)):
            return None
        clip = ops.ReLU() if (low, high) == (0, math.inf) else ops.Clip(float(low), float(high))
        return _line(b, b.elementwise(clip, x), *f.lines[i])
    if len(f.knots) == 1 and slopes[1] == 1 and f.at(f.knots[0]) == f.knots[0] == 0 and _exact(slopes[0]):
        return b.elementwise(ops.LeakyReLU(float(slopes[0])), x)
    numbers = (*f.knots, *slopes, f.at(f.knots[0]))
    if not all(_exact(number) for number in numbers):
        return None
    knots, rising = tuple(map(float, f.knots)), tuple(map(float, slopes))
    return b.elementwise(ops.PiecewiseLinear(knots, rising, float(numbers[-1])), x)


def _line(b: Builder, x: Value, slope: Fraction, shift: Fraction) -> Value | None:
    """slope x + shift; None where it is constant."""
    if slope == 0 or not (_exact(slope) and _exact(shift)):
        return None
    x = x if slope == 1 else b.times(x, _tensor(slope))
    return x if shift == 0 else b.plus(x, _tensor(shift))


def _tensor(number: Fraction) -> Tensor:
    """A number that float64 holds, in float32 where that does."""
    narrow = torch.tensor(float(number), dtype=torch.float32)
    return narrow if float(narrow) == number else torch.tensor(float(number), dtype=torch.float64)


def _exact(number: Fraction | float) -> bool:
    """Whether float64 holds it, or it is infinite."""
    if isinstance(number, float):
        return True
    return abs(number) <= Fraction(torch.finfo(torch.float64).max) and Fraction(float(number)) == number
