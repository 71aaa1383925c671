"""Local answers in numbers: how the bounds are distributed over the centres, and the bounds of each centre."""

from __future__ import annotations

from dataclasses import dataclass

from lipverify.reporting.answers import Answer, Answers
from lipverify.reporting.format import lower_text, ratio_text, upper_text

SHOWN = 50
"""Centres that are shown one by one; the others are part of the distribution only."""


@dataclass(frozen=True)
class Spread:
    """One analyzer over all centres: smallest, median and largest bound, and how far from the lower bound."""

    analyzer: str
    smallest: str
    median: str
    largest: str
    ratio_median: str
    ratio_largest: str


@dataclass(frozen=True)
class Centre:
    """One centre: lower bound, the bound of every analyzer, and the smallest of them over the lower one."""

    index: int
    lower: str
    uppers: tuple[str, ...]
    best: int
    ratio: str


def spreads(answers: Answers) -> tuple[Spread, ...]:
    """The distribution of every analyzer's bounds; the median of an even count is the larger middle one."""
    return tuple(_spread(answer, answers.ratios(answer)) for answer in answers.answers)


def _spread(answer: Answer, ratios: list[str]) -> Spread:
    bounds = sorted(answer.uppers, key=lambda bound: bound.order)
    return Spread(
        answer.analyzer,
        upper_text(bounds[0]),
        upper_text(bounds[len(bounds) // 2]),
        upper_text(bounds[-1]),
        ratios[len(ratios) // 2] if ratios else "-",
        ratios[-1] if ratios else "-",
    )


def centres(answers: Answers) -> tuple[Centre, ...]:
    """The first centres one by one."""
    return tuple(_centre(answers, index) for index in range(min(answers.count, SHOWN)))


def _centre(answers: Answers, index: int) -> Centre:
    uppers = [answer.uppers[index] for answer in answers.answers]
    best = min(range(len(uppers)), key=lambda i: uppers[i].order) if uppers else -1
    low = answers.lowers[index] if answers.lowers else None
    ratio = ratio_text(uppers[best], low) if uppers and low is not None else None
    lower = "-" if low is None else lower_text(low)
    return Centre(index, lower, tuple(map(upper_text, uppers)), best, ratio or "-")
