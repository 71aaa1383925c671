"""The shell: facts until the budget ends, the witness, the formula, the answer."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from lipverify.analyzers.protocol import Compute, Report, keeping_best, silent
from lipverify.certificates.issuing import MOST
from lipverify.certificates.pending import ENDED
from lipverify.certificates.writing import NOTHING
from lipverify.deadline import within
from lipverify.errors import BudgetEnded, InternalError, LipverifyError, Refuted, Undecided
from lipverify.ir.certificate import Witness
from lipverify.ir.interval import Interval
from lipverify.questions.carrying import carried
from lipverify.questions.formula import Facts
from lipverify.questions.question import Answer, Found, Proved, Question

METHOD = "gradient-ascent"
REFINED = 0.6
"""The part of what is left of a budget after the search that better facts may take; the proof has the rest."""
NOT_ASKED = "interrupted before the checker was asked"
OWED = 0.5
"""Seconds beyond a budget that the facts and what is told about them may take: without them there is no answer."""

NOT_BEGUN = "not run: the budget ended before there was a bound; give a larger --budget"


def ask(
    question: Question,
    *,
    budget: float | None = None,
    device: str | torch.device = "cpu",
    seed: int = 0,
    report: Report | None = None,
) -> Answer:
    """The answer to a question: a bound that is never below the truth, and a witness that is never above it.

    Args:
        budget: seconds for everything: the search, facts until there is a bound, better ones, the proof.

    Raises:
        UnsupportedModel: an operator that no rule covers; it is named. Refuted: a witness contradicts the bound: a bug of ours.
        Undecided: interrupted, or the budget ended, before there was any bound.
    """
    started = time.monotonic()
    deadline = None if budget is None else started + budget
    compute = Compute(torch.device(device), seed, deadline, report or silent)
    if hasattr(question, "prepare"):
        try:
            with within(deadline):
                question.prepare()
        except BudgetEnded as error:
            raise Undecided(NOT_BEGUN) from error
    witness, lower = _witness(question, compute)
    found: Found | None = None
    trace: list[tuple[float, float]] = []
    owed = None if deadline is None else deadline + OWED
    provable = hasattr(question, "prove")
    aim = replace(compute, deadline=part(deadline, REFINED if provable else 1.0))
    with keeping_best(until=owed) as interruption:
        for more in question.facts(aim):
            _ranges(question, more.facts)
            found = more if found is None else met(found, more)
            best = float(question.formula.evaluate(found.facts).upper.max())
            if not trace or best < trace[-1][1]:
                trace.append((time.monotonic() - started, best))
            compute.report(question.name, best)
            if aim.expired():
                break
    if found is None and not interruption.happened:
        raise Undecided(NOT_BEGUN)
    if found is None:
        raise Undecided("interrupted before there was a bound")
    upper = _number(question, question.formula.evaluate(found.facts).upper)
    _hold(lower, upper)
    with within(owed):
        fields = dict(question.findings(found, aim))
    proved = Proved(reason=NOT_ASKED) if provable else None
    if provable and not interruption.happened:
        proved = _proved(question, upper, found, fields, compute)
        fields |= proved.fields
        if proved.points is not None and not compute.expired():
            witness = _better(witness, proved.points, question)
            lower = witness.value
            _hold(lower, upper)
    checked = proved is not None and proved.upper is not None and len(proved.upper) == len(upper)
    if proved is not None and proved.upper is not None and checked:
        checked = bool((proved.upper <= upper * (1.0 + MOST) + NOTHING).all())
        upper = proved.upper if checked else upper
        _hold(lower, upper)
    if proved is not None and proved.upper is not None and not checked:
        # Of the first regions alone, or of some less than was found: what is proved holds beside what was found.
        first = len(proved.upper)
        upper = torch.cat([torch.minimum(upper[:first], proved.upper.to(upper)), upper[first:]])
        _hold(lower, upper)
    arrays = {name: value for name, value in fields.items() if isinstance(value, Tensor)}
    single = question.single
    return Answer(
        question,
        float(upper[0]) if single else upper,
        None if lower is None else float(lower[0]) if single else lower,
        witness,
        found,
        {name: value for name, value in fields.items() if name not in arrays},
        time.monotonic() - started,
        tuple(trace),
        interruption.happened,
        arrays=arrays,
        proved=proved,
        checked=checked,
    )


def part(deadline: float | None, part: float) -> float | None:
    """The moment when a part of what is left until the deadline is over."""
    return None if deadline is None else time.monotonic() + part * max(deadline - time.monotonic(), 0.0)


def _proved(question: Any, upper: Tensor, found: Found, fields: dict[str, Any], compute: Compute) -> Proved:
    """The certificate: written within half of what is left, since reading it takes as long; ended with the budget."""
    try:
        with within(compute.deadline):
            aim = replace(compute, deadline=part(compute.deadline, 0.5))
            proved: Proved = question.prove(upper, found, fields, aim)
            if proved.issued is None and not proved.constants:
                return replace(
                    proved, upper=None, reason=proved.reason or "the question gives no certificate"
                )
            return replace(proved, upper=carried(question, proved, len(upper)))
    except BudgetEnded:
        return Proved(reason=ENDED)
    except LipverifyError as error:
        return Proved(reason=f"its certificate does not carry the answer: {error}")


def _ranges(question: Question, facts: Facts) -> None:
    """Facts are what a question computes: each is a range of numbers, the same regions in all of them.

    Raises:
        InternalError: one of them is not.
    """
    counts = set()
    for name, box in facts.items():
        ends = (box.lower, box.upper)
        if any(end.ndim < 2 or end.shape != box.lower.shape or end.numel() == 0 for end in ends):
            raise InternalError(
                f"{question.name}: the fact {name!r} is no range [count, entries]: {[list(end.shape) for end in ends]}"
            )
        if not bool((box.lower <= box.upper).all()):
            raise InternalError(
                f"{question.name}: the lower end of the fact {name!r} is above its upper end, or no number"
            )
        counts.add(len(box.lower))
    if len(counts) > 1 or (question.single and counts - {1}):
        raise InternalError(f"{question.name}: facts about {sorted(counts)} regions in one answer")


def _number(question: Question, upper: Tensor) -> Tensor:
    """The bounds [count], which are numbers.

    Raises:
        InternalError: the formula does not give one number a region. Undecided: no float64 holds it.
    """
    if upper.ndim != 1 or bool(upper.isnan().any()):
        raise InternalError(
            f"{question.name}: the formula gives no number for each region: {question.formula}"
        )
    if bool(upper.isinf().any()):
        raise Undecided("the bound lies beyond float64; ask about a smaller region")
    return upper


def _hold(lower: Tensor | None, upper: Tensor) -> None:
    if lower is not None and bool((lower > upper).any()):
        worst = int((lower - upper).argmax())
        raise Refuted(
            f"the witness of region {worst} has the value {float(lower[worst])!r}, above the bound {float(upper[worst])!r}; "
            "this is a bug of lipverify, please report it with the models"
        )


def _witness(question: Question, compute: Compute) -> tuple[Witness | None, Tensor | None]:
    """The points of an untrusted search with the values that interval arithmetic proves there."""
    share = replace(compute, deadline=compute.share(5))
    try:
        with within(part(compute.deadline, 0.5)):
            points = question.search(share)
            if points is None:
                return None, None
            found = _at(question, points)
    except BudgetEnded:
        return None, None
    return found, found.value


def _at(question: Question, points: Tensor) -> Witness:
    """The points with the values that interval arithmetic proves there."""
    # A value that is no number shows nothing.
    value = question.formula.evaluate(question.at(points)).lower.nan_to_num(0.0, 0.0, 0.0).clamp(min=0.0)
    return Witness(value=value.cpu(), points=points.cpu(), method=METHOD)


def _better(witness: Witness | None, points: Tensor, question: Question) -> Witness:
    """Of two points of each region the one with the larger value."""
    other = _at(question, points)
    if witness is None:
        return other
    better = other.value > witness.value
    chosen = torch.where(
        better.reshape(-1, *[1] * (points.ndim - 1)), other.points, witness.points.to(other.points)
    )
    return replace(witness, value=torch.where(better, other.value, witness.value), points=chosen)


def met(first: Found, second: Found) -> Found:
    """Both hold."""
    facts = {
        name: Interval(
            torch.maximum(box.lower, second.facts[name].lower),
            torch.minimum(box.upper, second.facts[name].upper),
        )
        for name, box in first.facts.items()
    }
    return Found(facts, min(first.rigour, second.rigour), second.more)
