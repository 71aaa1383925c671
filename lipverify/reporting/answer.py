"""Answers to questions for people: the page, and the summary at a terminal. Bounds are rounded up, witnesses down."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TextIO

from lipverify.loading.names import display
from lipverify.reporting.answers import RIGOUR, Document
from lipverify.reporting.axis import LogAxis
from lipverify.reporting.format import (
    Magnitude,
    lower_text,
    plain_text,
    ratio_text,
    seconds_text,
    upper_text,
)
from lipverify.reporting.html import environment_facts, model_facts, model_name, template, texts, tool_text
from lipverify.reporting.places import WITNESS
from lipverify.reporting.sandwich import FOOT, SMALL_ROW, Label, Plot, Track
from lipverify.reporting.sections import Bar, Bars, Section, Table

SHOWN = 40
"""Regions in the picture."""
_HEAD = 10
_LINE = 56
"""Letters of 11 pixels that a line of a phone takes."""


@dataclass(frozen=True)
class Part:
    """A section of a page, ready to be drawn: a table or a figure."""

    title: str
    text: str
    table: Table | None
    plot: Plot | None
    mark: str


@dataclass(frozen=True)
class Page:
    """One answer."""

    name: str
    headline: str
    key: list[tuple[str, str, str]]
    plot: Part | None
    parts: list[Part]
    facts: list[tuple[str, str]]
    models: list[tuple[str, list[tuple[str, str, bool]]]]
    witness: str | None


def render_answers(documents: Sequence[Document], parts: Sequence[Sequence[Section]]) -> str:
    """The page of one answer, or of several to the same question, as one self-contained HTML file.

    Raises:
        InternalError: a number that is no bound, or a witness above its bound.
    """
    first = documents[0]
    pages = [_page(document, sections) for document, sections in zip(documents, parts, strict=True)]
    return rendered(first, first["question"], model_name(first["models"][0]), pages)


def rendered(first: Document, question: str, title: str, pages: Sequence[Page]) -> str:
    """Pages of one question as one self-contained HTML file. first: the document that says how they were made."""
    return template("answer.html.j2").render(
        question=display(question),
        title=title,
        pages=pages,
        tool=tool_text(first),
        not_covered=texts(first.get("not_covered")),
        command=None if first.get("command") is None else display(first["command"], 2000),
        environment=environment_facts(first),
    )


def _page(document: Document, sections: Sequence[Section]) -> Page:
    lowers = _lowers(document)
    bars = tuple(
        Bar(f"region {index}", lowers[index] if lowers else 0.0, upper)
        for index, upper in enumerate(_uppers(document)[:SHOWN])
    )
    text = "What was found and what is proved. The value lies on the bar."
    plot = (
        part_of(Bars("Between witness and bound", text, bars)) if len(bars) > 1 or bars[0].upper > 0 else None
    )
    lower = document["lower"]
    return Page(
        " and ".join(model_name(model) for model in document["models"]),
        headline(document),
        key_figures(document),
        plot,
        [part_of(section) for section in sections],
        _facts(document),
        [(display(model["role"]), model_facts(model)) for model in document["models"]],
        lower["witness"]
        if lower is not None and lower["witness"].startswith(WITNESS.split(".")[0])
        else None,
    )


def headline(document: Document) -> str:
    """The sentence that is certified."""
    claim = display(document["claim"], 400)
    return f"{claim[:1].upper()}{claim[1:]}."


def _uppers(document: Document) -> list[float]:
    upper = document["upper"]
    return [float(value) for value in upper] if isinstance(upper, list) else [float(upper)]


def _lowers(document: Document) -> list[float]:
    if document["lower"] is None:
        return []
    value = document["lower"]["value"]
    return [float(each) for each in value] if isinstance(value, list) else [float(value)]


def key_figures(document: Document) -> list[tuple[str, str, str]]:
    """Title, number and remark of the figures at the top."""
    uppers, lowers = _uppers(document), _lowers(document)
    several = f", largest of {len(uppers)} regions" if len(uppers) > 1 else ""
    how = "checked" if document["rigour"] == "checked" else "by formula"
    found = [("Bound", upper_text(Magnitude(max(uppers))), f"{how}{several}")]
    if lowers:
        found.append(("Witness", lower_text(max(lowers)), f"shown by an input{several}"))
        ratios = [ratio_text(Magnitude(u), low) for u, low in zip(uppers, lowers, strict=True)]
        if len(uppers) == 1 and ratios[0] is not None:
            found.append(("Ratio", ratios[0], "bound over witness; 1 would be exact"))
    found.append(("Rigour", document["rigour"], RIGOUR[document["rigour"]]))
    return found


def _facts(document: Document) -> list[tuple[str, str]]:
    rows = [("Asked", document["query"]["words"]), ("Formula", document["formula"])]
    rows += [
        ("States", document["statement"]),
        ("Source", document["source"]),
        ("Sound when", document["sound_when"]),
    ]
    files = [document["certificate"], *(need["certificate"] for need in document["needs"])]
    rows.append(("Certificate", ", ".join(file for file in files if file)))
    rows.append(("Not checked", document["unchecked"] or ""))
    rows += [("The checker states", sentence) for sentence in document.get("proved", ())]
    trace = ", ".join(
        f"{upper_text(Magnitude(v))} after {seconds_text(t)}" for t, v in document["trace"][-6:]
    )
    rows.append(("Progress", trace))
    return [(title, plain_text(str(text), 600)) for title, text in rows if text]


def part_of(section: Section) -> Part:
    title, text = display(section.title, 200), plain_text(section.text, 600)
    if isinstance(section, Table):
        return Part(title, text, section, None, "")
    return Part(title, text, None, _plot(section), display(section.mark, 200))


def _plot(section: Bars) -> Plot | None:
    """One row for each bar, from its lower to its upper number, with its mark, on a logarithmic axis."""
    if not section.bars:
        return None
    numbers = [n for bar in section.bars for n in (bar.lower, bar.upper, bar.mark) if n is not None]
    axis = LogAxis.around([Magnitude(max(number, 0.0)).position for number in numbers])
    labels, tracks = [], []
    for index, bar in enumerate(section.bars):
        top = _HEAD + index * SMALL_ROW
        start, end = (axis.at(Magnitude(number).position) for number in (bar.lower, bar.upper))
        marks = () if bar.mark is None else (axis.at(Magnitude(max(bar.mark, 0.0)).position),)
        # Both stand on one line of a phone's width: a long name gives way.
        words = f"{lower_text(bar.lower, 3)} to {upper_text(Magnitude(bar.upper), 3)}"
        if bar.mark is not None:
            words += f", against {lower_text(max(bar.mark, 0.0), 3)}"
        labels.append(Label(0.0, top + 15, "start", display(bar.label, max(_LINE - len(words), 8)), "name"))
        labels.append(Label(100.0, top + 15, "end", words, "number"))
        tracks.append(Track(top + 26, start, end, start, marks, "best"))
    axis_y = _HEAD + len(tracks) * SMALL_ROW + 4
    title = f"{section.title}: {len(tracks)} bars on a logarithmic axis"
    return Plot(axis_y + FOOT, tuple(tracks), tuple(labels), axis.ticks(), axis_y, axis.gap, None, title)


def print_answers(
    documents: Sequence[Document], parts: Sequence[Sequence[Section]], file: TextIO | None = None
) -> None:
    """The claims, the bounds in one table, and the tables that are marked as brief."""
    from rich.table import Table as Grid
    from rich.text import Text

    from lipverify.reporting.terminal import console_for

    console = console_for(file)
    grid = Grid(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    for index, title in enumerate(("model", "bound", "witness", "rigour", "time")):
        grid.add_column(title, justify="right" if index in (1, 2, 4) else "left", overflow="fold")
    for document in documents:
        console.print(Text(headline(document), style="bold"))
        figures = {title: number for title, number, _ in key_figures(document)}
        cells = [model_name(document["models"][-1]), figures["Bound"], figures.get("Witness", "-")]
        grid.add_row(*map(Text, [*cells, figures["Rigour"], seconds_text(document["seconds"])]))
    console.print(grid)
    for document in documents:
        if document["unchecked"]:
            why = f"{document['rigour']}, not checked: {plain_text(document['unchecked'], 600)}"
            of = f"{model_name(document['models'][-1])}: " if len(documents) > 1 else ""
            console.print(Text(of + why, style="dim"))
    for document, sections in zip(documents, parts, strict=True):
        for section in sections:
            if not isinstance(section, Table) or not section.brief:
                continue
            of = f" ({model_name(document['models'][-1])})" if len(documents) > 1 else ""
            console.print(Text(f"{section.title}{of}", style="bold"))
            table = Grid(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
            for title in section.head:
                table.add_column(title, overflow="fold")
            for row in section.rows:
                table.add_row(*(Text(plain_text(cell, 300)) for cell in row))
            console.print(table)
        if document["interrupted"]:
            console.print(Text("interrupted: the best bound so far", style="yellow"))
