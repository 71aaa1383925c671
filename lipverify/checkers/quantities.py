"""Numbers that a derivation takes from a certified network beside its constant: values at points, slopes near 0.

Nothing of them is believed: each is computed anew, with every rounding accounted for, and has to carry what is written.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np

from lipverify.checkers.kernel.account import charge
from lipverify.checkers.kernel.arithmetic import need, root_above
from lipverify.checkers.kernel.jacobians import gradients
from lipverify.checkers.kernel.language import Subject
from lipverify.checkers.kernel.program import Array, Program
from lipverify.checkers.kernel.ranges import Ranges, Region
from lipverify.checkers.kernel.theorems import Facts, between
from lipverify.errors import NotCovered

POINTS = 1 << 16
"""Of one set of samples."""
Samples = tuple[Array, Array]
"""Two sets of points, [count, inputs] each."""
Matrix = list[list[Fraction]]


class Quantity(NamedTuple):
    """of: the constant whose network it is about. side: whether what is written may be larger (`upper`) or smaller (`lower`).

    sampled: whether points come with it.
    """

    of: str
    side: str
    sampled: bool
    value: Callable[[Program, Mapping[str, Any], Samples | None], Fraction | Matrix]


def values_at(program: Program, points: Array) -> tuple[Array, Array]:
    """Ends of the network's values at points [count, inputs]: [count, outputs] each.

    Raises:
        UnreadableCertificate: points of another size, or not finite. NotCovered: no range of a value.
    """
    lows, highs = [], []
    for x in points:
        subject = Subject(program, [Region(x, 0.0, "linf", x, x)])
        known = Ranges(subject.whole, subject.regions[0], ())
        low, high = known.chain.ranges(known.output)
        if not bool((np.isfinite(low) & np.isfinite(high)).all()):
            raise NotCovered("values at a point without ends")
        lows.append(low)
        highs.append(high)
    return np.array(lows), np.array(highs)


def _mean(program: Program, points: Array) -> tuple[list[Fraction], list[Fraction]]:
    """Ends of the mean of the values, one for every output."""
    ends = values_at(program, points)
    charge(points.size, 64 * sum(end.size for end in ends))
    low, high = (
        [sum(map(Fraction, column), Fraction(0)) / len(points) for column in end.T.tolist()] for end in ends
    )
    return low, high


def _of(samples: Samples | None) -> Samples:
    assert samples is not None  # `Quantity.sampled`
    return samples


def gap(program: Program, numbers: Mapping[str, Any], samples: Samples | None) -> Fraction:
    """|mean of f over the first points - mean over the second|_2, from below."""
    (a, b), (c, d) = (_mean(program, points) for points in _of(samples))
    apart = (max(p - s, r - q, Fraction(0)) for p, q, r, s in zip(a, b, c, d, strict=True))
    square = sum((x * x for x in apart), Fraction(0))
    return square / root_above(square) if square else square


def distance(program: Program, numbers: Mapping[str, Any], samples: Samples | None) -> Fraction:
    """|x - y|_2 of the first points of both sets, from above."""
    first, second = _of(samples)
    need(len(first) == len(second) == 1, "a distance of more than two points")
    pairs = zip(first[0].tolist(), second[0].tolist(), strict=True)
    return root_above(sum(((Fraction(x) - Fraction(y)) ** 2 for x, y in pairs), Fraction(0)))


def size_at_zero(program: Program, numbers: Mapping[str, Any], samples: Samples | None) -> Fraction:
    """|f(0)|_2, from above."""
    low, high = values_at(program, np.zeros((1, program.steps[0].size)))
    most = np.maximum(np.abs(low[0]), np.abs(high[0])).tolist()
    return root_above(sum((Fraction(x) ** 2 for x in most), Fraction(0)))


def slopes(program: Program, radius: Fraction) -> tuple[Array, Array]:
    """Ends of all derivatives where entries are at most `radius` in size, almost everywhere there: [outputs, inputs] each.

    Raises:
        NotCovered: the network has no derivatives with ranges.
    """
    ends = np.full(program.steps[0].size, float(radius))
    subject = Subject(program, [Region(0.0 * ends, float(radius), "linf", -ends, ends)])
    known = Ranges(subject.whole, subject.regions[0], ())
    found = between(Facts(subject), 0, len(program.steps) - 1, known)
    rows = list(gradients(found, known, found.output, True))
    low, high = (np.concatenate([getattr(some, end) for some in rows]) for end in ("low", "high"))
    if not bool((np.isfinite(low) & np.isfinite(high)).all()):
        raise NotCovered("derivatives without ends")
    return low, high


def _exact(matrix: Array) -> Matrix:
    return [[Fraction(x) for x in row] for row in matrix.tolist()]


def slopes_below(program: Program, numbers: Mapping[str, Any], samples: Samples | None) -> Matrix:
    """Lower ends of `slopes`."""
    return _exact(slopes(program, numbers["radius"])[0])


def slopes_above(program: Program, numbers: Mapping[str, Any], samples: Samples | None) -> Matrix:
    """Upper ends of `slopes`."""
    return _exact(slopes(program, numbers["radius"])[1])


QUANTITIES: Mapping[str, Mapping[str, Quantity]] = {
    "critic": {"gap": Quantity("constant", "lower", True, gap)},
    "slope": {
        "gap": Quantity("constant", "lower", True, gap),
        "distance": Quantity("constant", "upper", True, distance),
    },
    "sensitivity": {"offsets": Quantity("heads", "upper", False, size_at_zero)},
    "loop-sector-network": {
        "low": Quantity("constant", "lower", False, slopes_below),
        "high": Quantity("constant", "upper", False, slopes_above),
    },
}
"""Of every rule that has any, by the name of the number."""


def carries(quantity: Quantity, found: Fraction | Matrix, written: Fraction | Matrix) -> bool:
    """Whether what was computed is on the safe side of what is written."""
    rows, others = ([[one]] if isinstance(one, Fraction) else one for one in (found, written))
    need(
        [len(row) for row in rows] == [len(row) for row in others],
        "a matrix of another size than the network's",
    )
    pairs = [pair for row, other in zip(rows, others, strict=True) for pair in zip(row, other, strict=True)]
    return all(a <= b if quantity.side == "upper" else a >= b for a, b in pairs)
