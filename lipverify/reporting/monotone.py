"""The directions of `audit --monotone`: the table on a terminal, and the page."""

from __future__ import annotations

import math
from typing import Any, TextIO

from lipverify.loading.names import display
from lipverify.reporting.answer import Page, part_of, rendered
from lipverify.reporting.answers import RIGOUR
from lipverify.reporting.format import plural, seconds_text
from lipverify.reporting.html import model_facts, model_name
from lipverify.reporting.sections import Table
from lipverify.reporting.terminal import console_for

_STYLES = {"increasing": "green", "decreasing": "green", "constant": "green", "undecided": "yellow"}


def print_monotone(document: dict[str, Any], file: TextIO | None = None) -> None:
    """One row for each feature and region: the verdict, the range of the slope, and the pairs that contradict."""
    from rich.table import Table as Grid
    from rich.text import Text

    console = console_for(file)
    console.print(Text(headline(document), style="bold"))
    several = document["query"]["region"].get("count", 1) > 1
    table = Grid(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    table.add_column("feature", overflow="fold")
    if several:
        table.add_column("centre", justify="right")
    table.add_column("verdict", no_wrap=True)
    table.add_column("slope within", no_wrap=True)
    table.add_column("seen", overflow="fold")
    table.add_column("time", justify="right", no_wrap=True)
    for row in document["features"]:
        feature = str(row["feature"]) if row["name"] is None else display(row["name"], 40)
        cells = [Text(feature)]
        if several:
            cells.append(Text(str(row["region"])))
        verdict = row["verdict"]
        cells += [
            Text(verdict, style=_STYLES.get(verdict, "bold")),
            Text(_slope(row)),
            Text("; ".join(_seen(row))),
            Text(seconds_text(row["seconds"])),
        ]
        table.add_row(*cells)
    console.print(table)
    open_rows = sum(row["verdict"] == "undecided" for row in document["features"])
    if open_rows:
        text = f"{plural(open_rows, 'row')} undecided within the budget: give a larger --budget or a smaller region"
        console.print(Text(text, style="yellow"))


def render_monotone(document: dict[str, Any]) -> str:
    """The report of a `lipverify.monotone/1` document as one self-contained HTML file."""
    rows = document["features"]
    verdicts = [row["verdict"] for row in rows]
    words = {
        word: verdicts.count(word)
        for word in ("increasing", "decreasing", "constant", "neither", "undecided")
    }
    key = [(word.capitalize(), str(count), _REMARKS[word]) for word, count in words.items() if count]
    key.append(("Rigour", document["rigour"], RIGOUR[document["rigour"]]))
    table = Table(
        "Features",
        "The slope of the output in each feature lies in the range; pairs of inputs show where it rises or falls.",
        ("feature", "centre", "verdict", "slope within", "seen", "rigour", "time"),
        tuple(_cells(row) for row in rows),
    )
    facts = [("Statement", _STATEMENT)]
    if document["certificate"] is not None:
        facts.append(("Certificate", display(document["certificate"])))
    model = document["model"]
    page = Page(
        model_name(model),
        headline(document),
        key,
        None,
        [part_of(table)],
        facts,
        [("audited", model_facts(model))],
        document["witness"],
    )
    return rendered(document, "directions", model_name(model), [page])


_REMARKS = {
    "increasing": "the output never falls when the feature grows (proved)",
    "decreasing": "the output never rises when the feature grows (proved)",
    "constant": "the feature does not matter (proved)",
    "neither": "pairs of inputs show both",
    "undecided": "not decided within the budget",
}
_STATEMENT = (
    "increasing means f(x) <= f(x') for all x, x' of the region that differ only in the feature, with x' the larger; decreasing "
    "likewise; neither comes with one pair for each direction"
)


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    feature = str(row["feature"]) if row["name"] is None else display(row["name"], 40)
    seen = "; ".join(_seen(row)) or "-"
    time = seconds_text(row["seconds"])
    return feature, str(row["region"]), row["verdict"], _slope(row), seen, row["rigour"], time


def _slope(row: dict[str, Any]) -> str:
    return "[{:.4g}, {:.4g}]".format(*row["slope"])


def headline(document: dict[str, Any]) -> str:
    """The question in one sentence."""
    region = document["query"]["region"]
    if region["kind"] == "ball":
        where = f"in the box of radius {region['radius']:g} around {plural(region['count'], 'centre')}"
    else:
        low, high = min(region["low"]), max(region["high"])
        where = f"in a box of {plural(len(region['low']), 'input')} between {low:g} and {high:g}"
    return f"does {_asked(document)} rise or fall with one feature alone, {where}?"


def _asked(document: dict[str, Any]) -> str:
    """The entry of the output in words; the only entry of a difference is that difference."""
    part, output = document["query"].get("of"), document["query"]["output"]
    if part is None:
        return f"output {output}"
    single = math.prod(document["model"]["output_shape"]) == 1
    return display(part, 200) if single else f"entry {output} of {display(part, 200)}"


def _seen(row: dict[str, Any]) -> list[str]:
    """The pairs in words; a pair along the proved direction is no news."""
    found = []
    for word in ("rises", "falls"):
        pair = row[word]
        if pair is not None and row["verdict"] in {"neither", "undecided"}:
            found.append(f"{word} by {abs(pair['change']):.3g} from {pair['from']:.4g} to {pair['to']:.4g}")
    return found
