"""Questions on the workers of a cluster: facts and points are found there, for some balls at a time; all else is done here."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from lipverify.analyzers.protocol import Compute, Report, silent
from lipverify.deadline import within
from lipverify.errors import BudgetEnded, LipverifyError, Undecided
from lipverify.ir.interval import Interval
from lipverify.ir.region import Ball
from lipverify.questions.asking import NOT_BEGUN, ask, met, part
from lipverify.questions.question import Answer, Found
from lipverify.units import Lost, results

AT_ONCE = 16
"""Balls of a unit of work: a dead worker loses few, and what two networks alone cost is shared by some."""
SEARCHED = 0.6
"""The part of the time that workers have: witnesses and proofs, which are made here, have the rest."""


@dataclass(frozen=True, eq=False)
class Gathered:
    """A question whose facts and points are there; everything else is its own."""

    question: Any
    found: Found
    points: Tensor

    def __getattr__(self, name: str) -> Any:
        return getattr(self.question, name)

    def facts(self, compute: Compute) -> Iterator[Found]:
        yield self.found

    def search(self, compute: Compute) -> Tensor:
        return self.points


def ask_all(
    questions: Sequence[Any], *, scheduler: str | None = None, budget: float | None = None, **settings: Any
) -> Iterator[Answer]:
    """The answers one after the other, with an even share of what is left of the time for each; settings as in `ask`.

    Args:
        scheduler: address of a Dask scheduler, whose workers find facts and points; each question has `over(region)` then, which
            is itself about other balls.

    Raises:
        As `ask`. LipverifyError: a unit ended every worker that it was given to, or nobody is left.
    """
    deadline = None if budget is None else time.monotonic() + budget
    given = questions if scheduler is None else _shared_out(questions, scheduler, deadline, **settings)
    for place, one in enumerate(given):
        share = None if deadline is None else max(deadline - time.monotonic(), 0.0) / (len(given) - place)
        answer = ask(one, budget=share, **settings)
        yield replace(answer, question=questions[place])


def _shared_out(
    questions: Sequence[Any],
    scheduler: str,
    deadline: float | None,
    device: str | torch.device = "cpu",
    seed: int = 0,
    report: Report | None = None,
) -> list[Gathered]:
    """The questions with what workers found for them in a part of the time."""
    report = report or silent
    try:
        with within(deadline):
            for question in questions:
                question.prepare()
    except BudgetEnded as error:
        raise Undecided(NOT_BEGUN) from error
    # Where there is one region, points are hints for its search.
    heads = tuple(one if one.single else one.over(one.region[:1]) for one in questions)
    units = [
        (place, start)
        for place, question in enumerate(questions)
        for start in range(0, len(question.region), AT_ONCE)
    ]
    given = (
        (place, questions[place].region[start : start + AT_ONCE], torch.device(device), seed)
        for place, start in units
    )
    end = part(deadline, SEARCHED)
    answers: dict[tuple[int, int], tuple[Found, Tensor]] = {}
    for number, answer in results(_unit, heads, given, len(units), scheduler=scheduler, deadline=end):
        place, start = units[number]
        if isinstance(answer, Lost):
            raise LipverifyError(
                f"{questions[place].name}, regions {start} to {start + AT_ONCE - 1} of copy {place + 1}: {answer.reason}"
            )
        answers[place, start] = answer
        report(f"regions: {len(answers)} of {len(units)} chunks", None)
    return [
        _gathered(question, [answers[unit] for unit in units if unit[0] == place])
        for place, question in enumerate(questions)
    ]


def _unit(
    heads: Sequence[Any], place: int, region: Ball, device: torch.device, seed: int, seconds: float | None
) -> tuple[Found, Tensor]:
    """The facts of some balls, and an input of each; with no time left the first facts, and centres."""
    question = heads[place] if heads[place].single else heads[place].over(region)
    compute = Compute(device, seed, None if seconds is None else time.monotonic() + seconds)
    points: Tensor | None = None
    try:
        with within(part(compute.deadline, 0.5)):
            points = question.search(replace(compute, deadline=compute.share(5)))
    except BudgetEnded:
        pass
    found: Found | None = None
    for more in question.facts(compute):
        found = more if found is None else met(found, more)
        if compute.expired():
            break
    assert found is not None, "facts are given once at least"
    ranges = {name: Interval(box.lower.cpu(), box.upper.cpu()) for name, box in (found.more or {}).items()}
    return Found(found.facts, found.rigour, ranges), region.center if points is None else points.cpu()


def _gathered(question: Any, parts: Sequence[tuple[Found, Tensor]]) -> Gathered:
    """What holds of all balls: ranges and points of each stand one behind the other."""

    def behind(tables: Sequence[Mapping[str, Interval]]) -> dict[str, Interval]:
        return {
            name: Interval(
                torch.cat([table[name].lower for table in tables]),
                torch.cat([table[name].upper for table in tables]),
            )
            for name in tables[0]
        }

    found = [one for one, _ in parts]
    facts, more = behind([one.facts for one in found]), behind([one.more for one in found])
    whole = Found(facts, min(one.rigour for one in found), more or None)
    return Gathered(question, whole, torch.cat([points for _, points in parts]))
