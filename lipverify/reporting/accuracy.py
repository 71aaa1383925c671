"""Certified accuracy of several models over one axis of radii."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from lipverify.errors import InternalError
from lipverify.loading.names import display
from lipverify.reporting.answers import Document
from lipverify.reporting.axis import linear_marks
from lipverify.reporting.course import Mark
from lipverify.reporting.radii import share_text, steps

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
    horizontal = tuple(Mark(LEFT + width * value / largest, text) for value, text in linear_marks(largest))
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
        _path(steps(curve["radii"], curve["certified_accuracy"], largest)),
        index % 8,
        display(curve["model"]),
        f"{display(curve['method'])}, clean accuracy {share_text(curve['clean_accuracy'])}",
        _path(steps(curve["radii"], attacked, largest, late=True)) if attacked else None,
    )


def _path(corners: Sequence[tuple[float, float]]) -> str:
    """Consecutive corners differ in one coordinate, or not at all."""
    path = "M{:.3f} {:.3f}".format(*corners[0])
    for (a, b), (x, y) in pairwise(corners):
        path += f"H{x:.3f}" if x != a else f"V{y:.3f}" if y != b else ""
    return path
