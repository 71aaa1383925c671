"""Sentences of a report: the answer, the region, the import check."""

from __future__ import annotations

from lipverify.loading.names import display
from lipverify.reporting.answers import Answers, Document
from lipverify.reporting.format import Magnitude, count_text, decimal_text, lower_text, plural, upper_text


def headline(answers: Answers, query: Document) -> str:
    """The whole answer in one sentence."""
    where = region_words(query["region"])
    norms = f"{display(query['norm_in'])} to {display(query['norm_out'])}"
    part = display(query.get("of") or "the output", 200)
    subject = part[:1].upper() + part[1:]
    at_one = " at one of them" if answers.local and answers.count > 1 else ""
    found = "" if answers.lower is None else f"at least {lower_text(answers.lower)} was found{at_one}"
    if answers.best is None:
        rest = f"; {found}" if found else ""
        about = f" of {part}" if "of" in query else ""
        return f"No analyzer gave an upper bound{about} ({norms}, {where}){rest}."
    tail = f"; {found}" if found else ""
    if not answers.local:
        most = upper_text(answers.best.largest)
        return f"{subject} changes by at most {most} times the input change ({norms}, {where}){tail}."
    smallest = min(answers.best.uppers, key=lambda bound: bound.order)
    most = upper_text(answers.best.largest)
    span = most if upper_text(smallest) == most else f"{upper_text(smallest)} to {most}"
    at = "times the input change" if span == most else "times the input change, depending on the centre"
    return f"{subject} changes by at most {span} {at} ({norms}, {where}){tail}."


def region_words(region: Document) -> str:
    """`everywhere`, or the balls in a few words."""
    if region["kind"] == "everywhere":
        return "everywhere"
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
