"""Certified and attacked accuracy as functions of the radius."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

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
    return sum(_correct(r) and r.radius >= radius and (radius > 0 or r.radius > 0) for r in records) / len(
        records
    )


def attacked_at(records: Sequence[Record], radius: float) -> float:
    """Share of all points that are classified correctly and for which no example of at most this size is known."""
    kept = (_correct(r) and (r.attack_radius is None or r.attack_radius > radius) for r in records)
    return sum(kept) / len(records)


def _correct(record: Record) -> bool:
    return record.label == record.predicted


def curve(records: Sequence[Record]) -> Curve:
    """On an even grid from 0 to the largest radius known, certified or attacked."""
    sizes = [r.radius for r in records if r.radius < LARGEST] + [r.attack_radius or 0.0 for r in records]
    largest = max(sizes, default=0.0) or 1.0
    radii = tuple(largest * step / STEPS for step in range(STEPS + 1))
    return Curve(
        radii,
        tuple(certified_at(records, radius) for radius in radii),
        tuple(attacked_at(records, radius) for radius in radii),
    )
