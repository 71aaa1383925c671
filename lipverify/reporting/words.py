"""Sentences of a report: the answer, the region, the import check."""

from __future__ import annotations

from decimal import ROUND_CEILING, Context, Decimal

from lipverify.loading.names import display
from lipverify.reporting.answers import Answers, Document
from lipverify.reporting.format import Magnitude, count_text, decimal_text, lower_text, plural, upper_text

PROSE = 3
"""Digits of a number in a sentence; tables and documents have more."""
_STEP = 0.1


def meaning(answers: Answers, query: Document) -> str:
    """The best bound as one change of the input and what it can do to the output; empty where there is no bound."""
    if answers.best is None or answers.best.largest.value is None:
        return ""
    step, region = _STEP, query["region"]
    if region["kind"] == "ball":
        radius = float(region["radius"])
        step = radius if 0 < radius < _STEP else _STEP
    up = Context(prec=40, rounding=ROUND_CEILING)
    most = decimal_text(
        up.multiply(Decimal(answers.best.largest.value), Decimal(repr(step))), ROUND_CEILING, PROSE
    )
    of = query.get("of")
    moved = {
        "linf": "moves no output by more than",
        "l2": "moves the output by at most",
        "l1": "moves all outputs together by at most",
    }.get(str(query["norm_out"]), "moves the output by at most")
    if of is not None:
        moved = f"moves {display(of, 200)} by at most"
    where = {"everywhere": "", "bounded": ", while tokens stay that small"}.get(
        region["kind"], ", while it stays inside the ball"
    )
    tail = (
        f" ({display(query['norm_out'])})" if of is None and query["norm_out"] not in ("linf", "l1") else ""
    )
    return (
        f"In other words: an input change of {decimal_text(step, digits=PROSE)} ({display(query['norm_in'])}){where} "
        f"{moved} {most}{tail}."
    )


def headline(answers: Answers, query: Document) -> str:
    """The whole answer in one sentence."""
    where = region_words(query["region"])
    norms = f"{display(query['norm_in'])} to {display(query['norm_out'])}"
    part = display(query.get("of") or "the output", 200)
    subject = part[:1].upper() + part[1:]
    at_one = " at one of them" if answers.local and answers.count > 1 else ""
    found = "" if answers.lower is None else f"at least {lower_text(answers.lower, PROSE)} was found{at_one}"
    if answers.best is None:
        rest = f"; {found}" if found else ""
        about = f" of {part}" if "of" in query else ""
        return f"No analyzer gave an upper bound{about} ({norms}, {where}){rest}."
    tail = f"; {found}" if found else ""
    if not answers.local:
        most = upper_text(answers.best.largest, PROSE)
        return f"{subject} changes by at most {most} times the input change ({norms}, {where}){tail}."
    smallest = min(answers.best.uppers, key=lambda bound: bound.order)
    most, least = upper_text(answers.best.largest, PROSE), upper_text(smallest, PROSE)
    span = most if least == most else f"{least} to {most}"
    at = "times the input change" if span == most else "times the input change, depending on the centre"
    return f"{subject} changes by at most {span} {at} ({norms}, {where}){tail}."


def region_words(region: Document) -> str:
    """`everywhere`, or the balls in a few words."""
    if region["kind"] == "everywhere":
        return "everywhere"
    if region["kind"] == "bounded":
        return f"for tokens of {display(region['norm'])} at most {decimal_text(float(region['most']))}"
    radius = decimal_text(float(region["radius"]))
    cut = ", cut by the input box" if "box" in region else ""
    centres = plural(int(region["count"]), "centre")
    return f"within the {display(region['norm'])} ball of radius {radius} around {centres}{cut}"


def import_check_words(check: Document | None) -> str:
    """What the import check compared, and what it is worth."""
    if check is None:
        return "The import was not compared with its source."
    reference = f" and {display(check['reference'])}" if check.get("reference") else " and its source"
    difference = upper_text(Magnitude(float(check["max_abs_difference"])), 3)
    largest = check.get("max_abs_output")
    scale = "" if largest is None else f"; the largest output was {decimal_text(float(largest), digits=4)}"
    samples = plural(int(check["samples"]), "input")
    verdict = "agree exactly" if difference == "0" else f"differ by at most {difference}"
    return f"On {samples} the graph{reference} {verdict}{scale}. This is a test, not a proof."


def operator_words(operators: Document) -> str:
    """The operators and how often each occurs, most frequent first."""
    rows = sorted(operators.items(), key=lambda pair: (-int(pair[1]), pair[0]))
    return ", ".join(f"{count_text(int(count))} {display(name)}" for name, count in rows)


def choice(document: Document) -> list[str]:
    """What `auto` asked, left out, and would do with more time; nothing where it was not asked."""
    said = document.get("choice") or {}
    sentences = [display(str(said[key]), 1000) for key in ("words", "more") if key in said]
    return [f"{sentence[0].upper()}{sentence[1:]}." for sentence in sentences]


def verdicts(document: Document, answers: Answers) -> list[tuple[str, bool]]:
    """What bounds and witness say of the limit and the claimed constant that were given: a sentence, and whether it holds."""
    found = []
    if document.get("limit") is not None:
        found.append(_verdict(float(document["limit"]), answers))
    claimed = document.get("claimed")
    if claimed is not None:
        number = decimal_text(float(claimed["constant"]))
        if claimed["verdict"] == "refuted":
            pair = lower_text(answers.lower or 0.0)
            found.append((f"Claimed constant {number}: wrong. A pair of inputs shows {pair}.", False))
        elif claimed["verdict"] == "proved":
            found.append((f"Claimed constant {number}: true, by the bounds below.", True))
        else:
            found.append(
                (f"Claimed constant {number}: undecided, neither bounds nor witness settle it.", False)
            )
    return found


def _verdict(limit: float, answers: Answers) -> tuple[str, bool]:
    number = decimal_text(limit)
    if answers.best is None:
        return f"Limit {number}: not decided, there is no bound.", False
    bound = answers.best.largest
    text = upper_text(bound)
    if bound.value is not None and bound.value <= limit:
        return f"Limit {number}: kept. The constant is at most {text}.", True
    if answers.lower is not None and answers.lower > limit:
        return f"Limit {number}: exceeded. A pair of inputs shows {lower_text(answers.lower)}.", False
    return f"Limit {number}: not shown to be kept. The best bound is {text}.", False
