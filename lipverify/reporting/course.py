"""How a bound fell while it was computed: steps over time, on a logarithmic axis of bounds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lipverify.reporting.axis import linear_marks
from lipverify.reporting.format import Magnitude, upper_text

LEFT, WIDTH, TOP, HEIGHT = 12.0, 86.0, 12.0, 180.0
LEAST = 3
"""Moments that make a course worth drawing."""


@dataclass(frozen=True)
class Mark:
    """A number at a place on an axis."""

    at: float
    text: str


@dataclass(frozen=True)
class Course:
    """The figure: a path in a square of 100 by 100, and the numbers at its axes."""

    analyzer: str
    path: str
    horizontal: tuple[Mark, ...]
    vertical: tuple[Mark, ...]
    first: str
    last: str
    left: float = LEFT
    width: float = WIDTH
    top: float = TOP
    height: float = HEIGHT


def course(analyzer: str, trace: Sequence[Sequence[float]]) -> Course | None:
    """The steps of one anytime bound; None where there are too few moments, or none that can be drawn."""
    moments = [(float(seconds), Magnitude(float(upper))) for seconds, upper in trace]
    points = [(seconds, bound) for seconds, bound in moments if bound.position is not None]
    if len(points) < LEAST or points[-1][0] <= 0 or points[0][1].position == points[-1][1].position:
        return None
    longest = points[-1][0] * 1.05
    positions = [bound.position or 0.0 for _, bound in points]
    high, span = max(positions), max(positions) - min(positions)

    def down(position: float) -> float:
        return 4.0 + 92.0 * (high - position) / span

    corners: list[tuple[float, float]] = []
    for seconds, bound in points:
        x, y = 100.0 * seconds / longest, down(bound.position or 0.0)
        corners += [(x, corners[-1][1]), (x, y)] if corners else [(x, y)]
    corners.append((100.0, corners[-1][1]))
    path = "M" + " L".join(f"{x:.3f} {y:.3f}" for x, y in corners)
    horizontal = tuple(Mark(LEFT + WIDTH * value / longest, text) for value, text in linear_marks(longest))
    vertical = tuple(
        Mark(TOP + HEIGHT * down(bound.position or 0.0) / 100.0, upper_text(bound, 3))
        for bound in (points[0][1], points[-1][1])
    )
    return Course(
        analyzer, path, horizontal, vertical, upper_text(points[0][1], 3), upper_text(points[-1][1], 3)
    )
