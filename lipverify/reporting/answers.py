"""An audit document read once and checked, for every way of showing it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lipverify.errors import InternalError
from lipverify.loading.names import display
from lipverify.reporting.format import Magnitude, ratio_text, upper_text

Document = Mapping[str, Any]

RIGOUR = {
    "checked": "the evidence was verified again by the independent checker, every rounding error accounted for",
    "real": "valid in real arithmetic; the rounding errors of computing it are not all accounted for",
    "solver": "a numerical solver reports it; its answer was not verified",
}
"""What each rigour of an upper bound means. An estimate is not among them: it never is an upper bound."""


@dataclass(frozen=True)
class Answer:
    """One analyzer's bounds: one for the whole input space, or one for each centre."""

    analyzer: str
    uppers: tuple[Magnitude, ...]
    rigour: str
    row: Document

    @property
    def largest(self) -> Magnitude:
        """The bound that holds at every centre."""
        return max(self.uppers, key=lambda bound: bound.order)


@dataclass(frozen=True)
class Refusal:
    """An analyzer that gave no bound, and why. failed: because something broke; cut: because the budget ended."""

    analyzer: str
    reason: str
    failed: bool = False
    cut: bool = False

    @property
    def verb(self) -> str:
        """What the analyzer did instead of giving a bound."""
        return "failed" if self.failed else "not run" if self.cut else "refused"


@dataclass(frozen=True)
class Answers:
    """What was answered. `lowers` is empty when no witness was searched for, or the budget ended before one was shown."""

    answers: tuple[Answer, ...]
    refusals: tuple[Refusal, ...]
    lowers: tuple[float, ...]
    local: bool
    count: int
    best: Answer | None

    @property
    def lower(self) -> float | None:
        """The largest lower bound found."""
        return max(self.lowers, default=None)

    def ratios(self, answer: Answer) -> list[str]:
        """Upper over lower of every centre (of the whole input space: one), in print, from small to large.

        Centres whose lower bound is zero have no ratio and are left out, unless the upper bound is zero too.
        """
        found = []
        for upper, lower in zip(answer.uppers, self.lowers, strict=False):
            text = ratio_text(upper, lower)
            if text is not None:
                found.append((upper.order - Magnitude(lower).order if lower else 0.0, text))
        return [text for _, text in sorted(found, key=lambda pair: pair[0])]


def read(document: Document) -> Answers:
    """The answers of an audit document, tightest first.

    Raises:
        InternalError: a row without a bound and without a reason, an estimate in the place of a bound, a number that is
            no bound, counts that differ, a lower bound above an upper bound.
    """
    region = document["query"]["region"]
    local = region["kind"] == "ball"
    lowers = _lowers(document.get("lower"))
    count = int(region["count"]) if local else 1
    if lowers and len(lowers) != count:
        raise InternalError(f"{len(lowers)} lower bounds for {count} centres")
    answers, refusals = [], []
    for row in document["results"]:
        name = display(row["analyzer"])
        if "refused" in row:
            reason = display(row["refused"] or "no reason was given", 600)
            failed, cut = bool(row.get("failed")), bool(row.get("not_run"))
            refusals.append(Refusal(name, reason.removeprefix("not run: ") if cut else reason, failed, cut))
        else:
            answers.append(_answer(name, row, count, lowers))
    answers.sort(key=lambda answer: sum(bound.order for bound in answer.uppers))
    best = document.get("best")
    chosen = None if best is None else display(best["analyzer"])
    leader = next((answer for answer in answers if answer.analyzer == chosen), None)
    return Answers(tuple(answers), tuple(refusals), lowers, local, count, leader or next(iter(answers), None))


def _lowers(lower: Document | None) -> tuple[float, ...]:
    value = None if lower is None else lower.get("value")
    if value is None:
        return ()
    # What was not run for a centre leaves it without a ratio, as a lower bound of 0 does.
    return tuple(Magnitude(float(number or 0.0)).value or 0.0 for number in _as_list(value))


def _answer(name: str, row: Document, count: int, lowers: tuple[float, ...]) -> Answer:
    if "upper" in row:
        uppers = [Magnitude(float(number)) for number in _as_list(row["upper"])]
    elif "log10_upper" in row:
        uppers = [Magnitude(log10=float(number)) for number in _as_list(row["log10_upper"])]
        uppers = uppers * count if len(uppers) == 1 else uppers
    else:
        raise InternalError(f"the row of {name} has neither a bound nor a reason")
    if len(uppers) != count:
        raise InternalError(f"{len(uppers)} bounds of {name} for {count} centres")
    if row["rigour"] not in RIGOUR:
        raise InternalError(f"{name} gives an upper bound of rigour {display(row['rigour'])}")
    for bound, lower in zip(uppers, lowers, strict=False):
        if bound.is_below(lower):
            raise InternalError(f"the lower bound {lower!r} exceeds the bound {upper_text(bound)} of {name}")
    return Answer(name, tuple(uppers), row["rigour"], row)


def _as_list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]
