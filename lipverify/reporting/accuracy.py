"""Certified accuracy of several models over one axis of radii."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from lipverify.errors import InternalError
from lipverify.loading.names import display
from lipverify.reporting.answers import Document
from lipverify.reporting.radii import Mark, axis_marks, share_text

LEFT, RIGHT, TOP, HEIGHT = 9.0, 97.0, 12, 240


@dataclass(frozen=True)
class Curve:
    """One model: its line in a square of 100 by 100, its place in the palette, and what it is in words.

    attacked: the line of what no adversarial example was found for, where there was an attack.
    """

    path: str
    colour: int
    name: str
    detail: str
    attacked: str | None = None


@dataclass(frozen=True)
class Accuracy:
    """The figure of one norm."""

    norm: str
    curves: tuple[Curve, ...]
    horizontal: tuple[Mark, ...]
    vertical: tuple[Mark, ...]
    left: float
    width: float
    top: int
    height: int


def accuracy(curves: Sequence[Document]) -> Accuracy:
    """The figure of several models' curves in one norm, drawn as steps: between two radii holds what holds at the larger.

    Raises:
        InternalError: an accuracy that grows with the radius, or is no share.
    """
    for curve in curves:
        _require(curve)
    largest = max((max(curve["radii"]) for curve in curves), default=0.0) or 1.0
    width = RIGHT - LEFT
    lines = tuple(_line(curve, i, largest) for i, curve in enumerate(curves))
    horizontal = tuple(Mark(LEFT + width * value / largest, text) for value, text in axis_marks(largest))
    vertical = tuple(Mark(TOP + HEIGHT * (1 - s / 4), f"{25 * s} %") for s in range(5))
    return Accuracy(display(curves[0]["norm"]), lines, horizontal, vertical, LEFT, width, TOP, HEIGHT)


def _require(curve: Document) -> None:
    certified, attacked = curve["certified_accuracy"], curve.get("attack_accuracy")
    for shares in (certified, attacked or ()):
        falling = all(a >= b for a, b in pairwise(shares))
        if not falling or not all(math.isfinite(s) and 0 <= s <= 1 for s in shares):
            raise InternalError(f"the accuracy of {display(curve['model'])} is none")
    if attacked and any(low > high for low, high in zip(certified, attacked, strict=True)):
        raise InternalError(f"more points of {display(curve['model'])} are certified than resist the attack")


def _line(curve: Document, index: int, largest: float) -> Curve:
    attacked = curve.get("attack_accuracy")
    return Curve(
        _steps(curve["radii"], curve["certified_accuracy"], largest),
        index % 8,
        display(curve["model"]),
        f"{display(curve['method'])}, clean accuracy {share_text(curve['clean_accuracy'])}",
        _along(curve["radii"], attacked, largest) if attacked else None,
    )


def _along(radii: Sequence[float], shares: Sequence[float], largest: float) -> str:
    """What was not found at a radius was not found below it: along first, then down."""
    path = f"M0.000 {100 * (1 - shares[0]):.3f}"
    for radius, share in zip(radii[1:], shares[1:], strict=True):
        path += f"H{100 * radius / largest:.3f}V{100 * (1 - share):.3f}"
    return path


def _steps(radii: Sequence[float], shares: Sequence[float], largest: float) -> str:
    points = list(zip(radii, shares, strict=True))
    x, y = 0.0, 100 * (1 - points[0][1])
    path = f"M{x:.3f} {y:.3f}"
    for radius, share in points[1:]:
        # What is certified at the larger radius holds on the way to it: down first, then along.
        path += f"V{100 * (1 - share):.3f}H{100 * radius / largest:.3f}"
    return path
