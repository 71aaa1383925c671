"""Certified and attacked accuracy as functions of the radius."""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from lipverify.robustness.arithmetic import LARGEST
from lipverify.robustness.plan import Record

STEPS = 100
PUBLISHED = {"36/255": 36 / 255, "72/255": 72 / 255, "108/255": 108 / 255, "1": 1.0}
"""l2 radii at which the literature on 1-Lipschitz networks prints certified robust accuracy, for inputs in [0, 1]."""


@dataclass(frozen=True)
class Curve:
    """For each radius the share of points that are certified there, and the share not yet fooled by an example found.

    Statement: the accuracy under the worst perturbation of size < radius lies between the two, where an attack was made.
    """

    radii: tuple[float, ...]
    certified_accuracy: tuple[float, ...]
    attack_accuracy: tuple[float, ...]

    def to_json(self) -> dict[str, list[float]]:
        """`curve` of the document."""
        return {
            "radii": list(self.radii),
            "certified_accuracy": list(self.certified_accuracy),
            "attack_accuracy": list(self.attack_accuracy),
        }


def certified_at(records: Sequence[Record], radius: float) -> float:
    """Share of all points that are classified correctly and keep their label within the radius."""
    return _Sizes.of(records).certified(radius)


def attacked_at(records: Sequence[Record], radius: float) -> float:
    """Share of all points that are classified correctly and for which no example of at most this size is known."""
    return _Sizes.of(records).attacked(radius)


class _Sizes(NamedTuple):
    """Of points that are classified correctly, in order: radii above 0, sizes of examples (infinite where none is known).

    A curve asks for a hundred radii, each a look into a sorted list and no walk over all points.
    """

    radii: list[float]
    examples: list[float]
    points: int

    @staticmethod
    def of(records: Sequence[Record]) -> _Sizes:
        correct = [r for r in records if r.label == r.predicted]
        examples = (math.inf if r.attack_radius is None else r.attack_radius for r in correct)
        return _Sizes(sorted(r.radius for r in correct if r.radius > 0), sorted(examples), len(records))

    def certified(self, radius: float) -> float:
        return (len(self.radii) - bisect_left(self.radii, radius)) / self.points

    def attacked(self, radius: float) -> float:
        return (len(self.examples) - bisect_right(self.examples, radius)) / self.points


def curve(records: Sequence[Record]) -> Curve:
    """On an even grid from 0 to the largest radius known, certified or attacked."""
    sizes = [r.radius for r in records if r.radius < LARGEST] + [r.attack_radius or 0.0 for r in records]
    largest = max(sizes, default=0.0) or 1.0
    radii = tuple(largest * step / STEPS for step in range(STEPS + 1))
    known = _Sizes.of(records)
    return Curve(
        radii,
        tuple(known.certified(radius) for radius in radii),
        tuple(known.attacked(radius) for radius in radii),
    )
