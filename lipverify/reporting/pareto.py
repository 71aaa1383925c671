"""What is got for what it costs: bounds as small marks, every analyzer's median a large one, the line nobody is better than.

Horizontal places are per cent and vertical ones pixels, so that the figure fits every width at one text size. Analyzers are told
apart by shape and by colour; names stand in a legend below, where they cannot meet.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median

from lipverify.reporting.axis import LEFT, RIGHT, LogAxis, Tick

TOP, HEIGHT = 14, 250
_FASTEST = 1e-3  # seconds; anything below is drawn there
SHAPES = (
    "M0-6A6 6 0 1 1 0 6A6 6 0 1 1 0-6Z",
    "M-5-5H5V5H-5Z",
    "M0-7L6.5 5H-6.5Z",
    "M0-7.5L6.5 0L0 7.5L-6.5 0Z",
    "M0 7L6.5-5H-6.5Z",
    "M-2-6.5H2V-2H6.5V2H2V6.5H-2V2H-6.5V-2H-2Z",
    "M-7-4H7V4H-7Z",
    "M-4-7H4V7H-4Z",
)
"""Outlines around the origin, in pixels; as many colours are in the style sheet."""


@dataclass(frozen=True)
class Sample:
    """One bound: seconds, or what else it costs, and log10 of upper over lower, or of what else is to be small."""

    seconds: float
    log_ratio: float


@dataclass(frozen=True)
class Mark:
    """A mark: x per cent, y pixels, which shape, and what it is in words."""

    x: float
    y: float
    shape: int
    large: bool
    title: str


@dataclass(frozen=True)
class Line:
    """A piece of the line that nobody is better than."""

    x1: float
    y1: float
    x2: float
    y2: float


@dataclass(frozen=True)
class Pareto:
    """The figure ready to be drawn."""

    marks: tuple[Mark, ...]
    front: tuple[Line, ...]
    legend: tuple[tuple[int, str, bool], ...]
    """Shape, name, and whether the analyzer's median lies on the line."""
    horizontal: tuple[Tick, ...]
    vertical: tuple[Tick, ...]
    left: float
    right: float
    top: int
    height: int


def pareto(samples: Mapping[str, Sequence[Sample]], least: float | None = 0.0) -> Pareto | None:
    """The figure of several analyzers' bounds; None where no bound has a ratio.

    Args:
        least: the best that could be, which belongs to the figure: it says how far there is to go. None where there is none.
    """
    given = {name: list(found) for name, found in samples.items() if found}
    if not given:
        return None
    times = LogAxis.around(_log(s.seconds) for found in given.values() for s in found)
    end = -math.inf if least is None else least
    heights = [max(s.log_ratio, end) for found in given.values() for s in found]
    ratios = LogAxis.around(heights if least is None else [least, *heights])
    middle_of = middles(given)
    best = front(middle_of)
    marks, legend = [], []
    for shape, (name, found) in enumerate(given.items()):
        places = [(times.at(_log(s.seconds)), _down(ratios, max(s.log_ratio, end))) for s in found]
        if len(places) > 1:
            marks += [Mark(x, y, shape % len(SHAPES), False, name) for x, y in places]
        middle = middle_of[name]
        x, y = times.at(_log(middle.seconds)), _down(ratios, max(middle.log_ratio, end))
        marks.append(Mark(x, y, shape % len(SHAPES), True, name))
        legend.append((shape % len(SHAPES), name, name in best))
    vertical = tuple(Tick(_turned(tick.at), tick.text) for tick in ratios.ticks())
    line = _steps(
        [
            (times.at(_log(middle_of[n].seconds)), _down(ratios, max(middle_of[n].log_ratio, end)))
            for n in best
        ]
    )
    order = sorted(marks, key=lambda mark: mark.large)
    return Pareto(tuple(order), line, tuple(legend), times.ticks(), vertical, LEFT, RIGHT + 2.0, TOP, HEIGHT)


def middles(samples: Mapping[str, Sequence[Sample]]) -> dict[str, Sample]:
    """Every analyzer's median time and median ratio, over the bounds that it gave."""
    return {
        name: Sample(median(s.seconds for s in found), median(s.log_ratio for s in found))
        for name, found in samples.items()
        if found
    }


def front(of: Mapping[str, Sample]) -> list[str]:
    """The names that no other one beats in both time and tightness, fastest first."""
    order = sorted(of, key=lambda name: (of[name].seconds, of[name].log_ratio))
    found: list[str] = []
    for name in order:
        if not found or of[name].log_ratio < of[found[-1]].log_ratio:
            found.append(name)
    return found


def _steps(places: Sequence[tuple[float, float]]) -> tuple[Line, ...]:
    """Right along what is reached, then down to the next."""
    lines = []
    for (x1, y1), (x2, y2) in pairwise(places):
        lines += [Line(x1, y1, x2, y1), Line(x2, y1, x2, y2)]
    return tuple(lines)


def _log(seconds: float) -> float:
    return math.log10(max(seconds, _FASTEST))


def _down(axis: LogAxis, position: float) -> float:
    return _turned(axis.at(position))


def _turned(at: float) -> float:
    """Per cent of a horizontal axis as pixels from above, small numbers at the bottom."""
    return round(TOP + HEIGHT * (1.0 - (at - LEFT) / (RIGHT - LEFT)), 2)
