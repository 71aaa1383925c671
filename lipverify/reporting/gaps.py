"""What lies between a certified radius and an adversarial example: each point in a plane, and each pair of classes in a table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import ROUND_CEILING

from lipverify.reporting.answers import Document
from lipverify.reporting.axis import linear_marks
from lipverify.reporting.course import HEIGHT, LEFT, TOP, WIDTH, Mark
from lipverify.reporting.format import decimal_text

LEAST = 3
"""Points with both numbers that make a picture worth drawing."""
MOST_CLASSES = 20
"""Classes of a table that fits on a page."""


@dataclass(frozen=True)
class Dot:
    """A point of the data: places in per cent of the width and pixels of the height."""

    x: float
    y: float
    title: str


@dataclass(frozen=True)
class Gaps:
    """Certified radius to the right, attack radius upwards, on one scale; below the line no point can lie."""

    dots: tuple[Dot, ...]
    horizontal: tuple[Mark, ...]
    vertical: tuple[Mark, ...]
    closed: str
    left: float = LEFT
    width: float = WIDTH
    top: float = TOP
    height: float = HEIGHT


@dataclass(frozen=True)
class Cell:
    """Adversarial examples from one class to another: how many, the smallest, and their share of the fullest cell in tenths."""

    count: int
    smallest: str
    tenths: int


@dataclass(frozen=True)
class Pairs:
    """Rows: the class of a point; columns: the class of its adversarial example. None where there is none."""

    classes: tuple[int, ...]
    rows: tuple[tuple[int, tuple[Cell | None, ...]], ...]


def gaps(points: Sequence[Document]) -> Gaps | None:
    """The picture; None where too few points have both numbers."""
    both = [p for p in points if p["attack_radius"] is not None and p["label"] == p["predicted"]]
    if len(both) < LEAST:
        return None
    largest = max(float(p["attack_radius"]) for p in both)
    if largest <= 0:
        return None
    end = 1.05 * largest
    dots = tuple(
        Dot(
            LEFT + WIDTH * float(p["radius"]) / end,
            TOP + HEIGHT * (1 - float(p["attack_radius"]) / end),
            f"point {int(p['index'])}",
        )
        for p in both
    )
    marks = linear_marks(end)
    horizontal = tuple(Mark(LEFT + WIDTH * value / end, text) for value, text in marks)
    vertical = tuple(Mark(TOP + HEIGHT * (1 - value / end), text) for value, text in marks)
    shares = sorted(float(p["radius"]) / float(p["attack_radius"]) for p in both)
    middle = shares[(len(shares) - 1) // 2]
    return Gaps(dots, horizontal, vertical, f"{100 * middle:.0f}")


def pairs(points: Sequence[Document]) -> Pairs | None:
    """The table of adversarial examples by pairs of classes; None without any, or with too many classes for a page."""
    found: dict[tuple[int, int], list[float]] = {}
    for p in points:
        if p["attack_radius"] is not None and p.get("attack_label") is not None:
            found.setdefault((int(p["predicted"]), int(p["attack_label"])), []).append(
                float(p["attack_radius"])
            )
    classes = tuple(sorted({each for pair in found for each in pair}))
    if not found or not 2 < len(classes) <= MOST_CLASSES:
        return None
    most = max(map(len, found.values()))

    def cell(first: int, second: int) -> Cell | None:
        sizes = found.get((first, second))
        if sizes is None:
            return None
        smallest = decimal_text(min(sizes), ROUND_CEILING, 2)
        return Cell(len(sizes), smallest, -(-10 * len(sizes) // most))

    rows = tuple((first, tuple(cell(first, second) for second in classes)) for first in classes)
    return Pairs(classes, tuple((first, cells) for first, cells in rows if any(cells)))
