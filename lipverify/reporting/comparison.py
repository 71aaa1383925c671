"""The report of a comparison, and its summary at a terminal."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from decimal import ROUND_CEILING
from typing import Any, TextIO

from lipverify.loading.names import display
from lipverify.reporting import pareto
from lipverify.reporting.accuracy import Accuracy, accuracy
from lipverify.reporting.answers import RIGOUR, Answer, Answers, Document, read
from lipverify.reporting.copies import family
from lipverify.reporting.format import (
    Magnitude,
    decimal_text,
    lower_text,
    plural,
    ratio_text,
    seconds_text,
    upper_text,
)
from lipverify.reporting.html import Fall, environment_facts, falls, model_facts, template, texts, tool_text
from lipverify.reporting.places import CERTIFICATE
from lipverify.reporting.sandwich import Plot, sandwich_of_models
from lipverify.reporting.words import choice, headline, import_check_words, region_words


@dataclass(frozen=True)
class Cell:
    """One bound of the table. `refused` has no number."""

    upper: str
    ratio: str
    seconds: str
    rigour: str
    link: str | None
    best: bool
    refused: bool


@dataclass(frozen=True)
class TableRow:
    """One model of the table."""

    model: str
    lower: str
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class SummaryRow:
    """One analyzer over the models of a question."""

    analyzer: str
    answered: str
    best_on: str
    ratio: str
    seconds: str
    undominated: bool


@dataclass(frozen=True)
class Question:
    """Everything the report shows about one norm and region."""

    title: str
    local: bool
    sandwich: Plot | None
    pareto: pareto.Pareto | None
    without_ratio: int
    rows: tuple[TableRow, ...]
    summary: tuple[SummaryRow, ...]
    losses: tuple[tuple[str, tuple[Fall, ...]], ...]
    refusals: tuple[tuple[tuple[str, ...], str], ...]
    """Every reason once, with the models and analyzers that it stands for."""
    notes: tuple[tuple[tuple[str, ...], str], ...]
    """What rows say beside their number, likewise: searches that were ended, bounds by pieces."""
    rigours: tuple[tuple[str, str], ...]


def render_comparison(document: Document) -> str:
    """The report of a `lipverify.compare/1` document as one self-contained HTML file.

    Raises:
        InternalError: the document holds a number that is no bound, or a lower bound above an upper bound.
    """
    analyzers = [display(name) for name in document["analyzers"]]
    models = document["models"]
    readable = [m for m in models if "unreadable" not in m]
    questions = [_question(document, index) for index in range(len(document["queries"]))]
    return template("compare.html.j2").render(
        title=plural(len(models), "model") + ", " + plural(len(analyzers), "analyzer"),
        headline=summary_sentence(document),
        key=key_figures(document),
        analyzers=analyzers,
        questions=questions,
        shapes=pareto.SHAPES,
        family=family(document),
        accuracies=accuracies(document),
        without_curve=[
            (f"{display(curve['model'])}, {display(curve['norm'])}", display(curve["refused"], 600))
            for curve in document.get("curves", ())
            if "refused" in curve
        ],
        unreadable=[(display(m["name"]), display(m["unreadable"], 600)) for m in models if "unreadable" in m],
        models=[
            (display(m["name"]), model_facts(m["model"]), import_check_words(m["model"].get("import_check")))
            for m in readable
        ],
        assumptions=texts(document.get("assumptions")),
        not_covered=texts(document.get("not_covered")),
        command=None if document.get("command") is None else display(document["command"], 2000),
        environment=environment_facts(document),
        work=_work_words(document["work"]),
        tool=tool_text(document),
    )


def _question(document: Document, index: int) -> Question:
    query = document["queries"][index]
    answered = _answers(document, index)
    marked = {row["analyzer"] for row in document["summary"] if row["query"] == index}
    names = [name for name in document["analyzers"] if name in marked]
    samples, without = _samples(names, answered)
    best = set(pareto.front(pareto.middles(samples)))
    used = {answer.rigour for _, answers in answered for answer in answers.answers}
    about = f"{display(query['of'], 200)}, " if "of" in query else ""
    title = (
        f"{about}{display(query['norm_in'])} to {display(query['norm_out'])}, {region_words(query['region'])}"
    )
    return Question(
        title,
        query["region"]["kind"] == "ball",
        sandwich_of_models(answered),
        pareto.pareto(samples),
        without,
        tuple(_table_row(name, answers, names) for name, answers in answered),
        tuple(
            _summary_row(row, row["analyzer"] in best) for row in document["summary"] if row["query"] == index
        ),
        tuple(_losses(document, index)),
        _grouped((m, refusal.analyzer, refusal.reason) for m, a in answered for refusal in a.refusals),
        _grouped(
            (m, row.analyzer, text)
            for m, a in answered
            for row in a.answers
            for text in texts(row.row.get("notes"))
        ),
        tuple((name, RIGOUR[name]) for name in RIGOUR if name in used),
    )


def _grouped(said: Iterable[tuple[str, str, str]]) -> tuple[tuple[tuple[str, ...], str], ...]:
    """Every text once, with the models and analyzers of which it was said."""
    found: dict[str, dict[str, list[str]]] = {}
    for model, analyzer, text in said:
        found.setdefault(text, {}).setdefault(model, []).append(analyzer)
    return tuple(
        (tuple(f"{model}: {', '.join(names)}" for model, names in by_model.items()), reason)
        for reason, by_model in found.items()
    )


def _answers(document: Document, index: int) -> list[tuple[str, Answers]]:
    query = document["queries"][index]
    found = []
    for model in document["models"]:
        audits = [audit for audit in model.get("audits", ()) if audit["query"] == index]
        found += [(display(model["name"]), read({**audit, "query": query})) for audit in audits]
    return found


def _samples(
    names: Sequence[str], answered: Sequence[tuple[str, Answers]]
) -> tuple[dict[str, list[pareto.Sample]], int]:
    """The points of the figure, by analyzer, and how many bounds have no ratio because the lower bound is zero."""
    samples: dict[str, list[pareto.Sample]] = {display(name): [] for name in names}
    without = 0
    for _, answers in answered:
        for answer in answers.answers:
            ratio = log_ratio(answer, answers)
            if ratio is None or answer.row.get("seconds") is None:
                without += 1
            else:
                samples[answer.analyzer].append(pareto.Sample(float(answer.row["seconds"]), ratio))
    return samples, without


def log_ratio(answer: Answer, answers: Answers) -> float | None:
    """log10 of upper over lower, the middle one over the centres; for drawing only."""
    pairs = zip(answer.uppers, answers.lowers, strict=False)
    known = sorted(
        upper.position - math.log10(low) for upper, low in pairs if low > 0 and upper.position is not None
    )
    return known[len(known) // 2] if known else None


def sandwiches(document: Document) -> list[Plot | None]:
    """The figure of every question: lower and upper bounds of its models."""
    return [sandwich_of_models(_answers(document, index)) for index in range(len(document["queries"]))]


def _table_row(model: str, answers: Answers, names: Sequence[str]) -> TableRow:
    by_name = {answer.analyzer: answer for answer in answers.answers}
    cells = tuple(_cell(by_name.get(display(name)), answers) for name in names)
    return TableRow(model, "-" if answers.lower is None else lower_text(answers.lower), cells)


def _cell(answer: Answer | None, answers: Answers) -> Cell:
    if answer is None:
        return Cell("refused", "", "", "", None, False, True)
    place, seconds = answer.row.get("certificate"), answer.row.get("seconds")
    return Cell(
        upper_text(answer.largest),
        _worst_ratio(answer, answers),
        "-" if seconds is None else seconds_text(float(seconds)),
        answer.rigour,
        place if isinstance(place, str) and CERTIFICATE.fullmatch(place) else None,
        answer is answers.best,
        False,
    )


def _worst_ratio(answer: Answer, answers: Answers) -> str:
    """The largest ratio over the centres, in few digits: the table is wide."""
    pairs = zip(answer.uppers, answers.lowers, strict=False)
    found = [(upper.order - math.log10(low), upper, low) for upper, low in pairs if low > 0]
    if not found:
        return "-"
    _, upper, low = max(found, key=lambda entry: entry[0])
    return ratio_text(upper, low, 4) or "-"


def _summary_row(row: Document, undominated: bool) -> SummaryRow:
    ratio = "-"
    if "median_ratio" in row:
        ratio = decimal_text(float(row["median_ratio"]), ROUND_CEILING, 4)
    elif "log10_median_ratio" in row:
        ratio = upper_text(Magnitude(log10=float(row["log10_median_ratio"])))
    return SummaryRow(
        display(row["analyzer"]),
        f"{row['answered']} of {row['asked']}",
        str(int(row["best_on"])),
        ratio,
        seconds_text(float(row["median_seconds"])) if "median_seconds" in row else "-",
        undominated,
    )


def _losses(document: Document, index: int) -> list[tuple[str, tuple[Fall, ...]]]:
    found = []
    answered = dict(_answers(document, index))
    for model in document["models"]:
        answers = answered.get(display(model["name"]))
        if answers is not None:
            figures = tuple(falls(answers, model["model"].get("nodes") or []))
            if figures:
                found.append((display(model["name"]), figures))
    return found


def summary_sentence(document: Document) -> str:
    """What was asked and answered, in one or two sentences."""
    models, queries = document["models"], document["queries"]
    readable = [m for m in models if "unreadable" not in m]
    rows = [row for m in readable for audit in m["audits"] for row in audit["results"]]
    given = sum("refused" not in row for row in rows)
    size = (
        f"{plural(len(readable), 'model')}, {plural(len(document['analyzers']), 'analyzer')}, "
        f"{plural(len(queries), 'question')}: {plural(given, 'bound')}, {plural(len(rows) - given, 'refusal')}"
    )
    missing = len(models) - len(readable)
    tail = f"; {plural(missing, 'more model')} could not be read" if missing else ""
    if len(models) == 1 and len(queries) == 1 and readable:
        return headline(_answers(document, 0)[0][1], queries[0])
    tightest = _tightest(document)
    return f"{size}{tail}." + (f" {tightest}" if tightest else "")


def _tightest(document: Document) -> str:
    """Which analyzer was best how often, of the first question."""
    rows = [row for row in document["summary"] if row["query"] == 0 and row["best_on"]]
    if not rows:
        return ""
    best = max(rows, key=lambda row: row["best_on"])
    total = sum(row["best_on"] for row in rows)
    return f"The tightest bound is by {display(best['analyzer'])} on {best['best_on']} of {plural(total, 'model')}."


def key_figures(document: Document) -> list[tuple[str, str, str]]:
    """Title, number and remark of the figures at the top."""
    models = document["models"]
    readable = [m for m in models if "unreadable" not in m]
    rows = [row for m in readable for audit in m["audits"] for row in audit["results"]]
    given = [row for row in rows if "refused" not in row]
    checked = sum(row["rigour"] == "checked" for row in given)
    work = document["work"]
    return [
        ("Models", f"{len(readable)} of {len(models)}", "could be read"),
        ("Bounds", f"{len(given)} of {len(rows)}", "given; what was refused has its reason below"),
        ("Checked", f"{checked} of {len(given)}", "proved again by the independent checker"),
        ("Time", seconds_text(float(document["seconds"])), f"{work['cached']} answers were known before"),
    ]


def _work_words(work: Document) -> str:
    return f"{plural(int(work['computed']), 'answer')} computed, {work['cached']} taken from the cache"


def accuracies(document: Document) -> list[Accuracy]:
    """The figures of certified accuracy, one for each norm."""
    given = [curve for curve in document.get("curves", ()) if "refused" not in curve]
    norms = list(dict.fromkeys(curve["norm"] for curve in given))
    return [accuracy([curve for curve in given if curve["norm"] == norm]) for norm in norms]


def print_comparison(document: Document, file: TextIO | None = None) -> None:
    """The summary at a terminal: one table for each question, models by analyzers."""
    from rich.table import Table
    from rich.text import Text

    from lipverify.reporting.terminal import console_for

    console = console_for(file)
    console.print(Text(summary_sentence(document), style="bold"))
    for index, _ in enumerate(document["queries"]):
        question = _question(document, index)
        table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
        table.add_column("model", overflow="fold")
        for title in ("lower", *map(display, document["analyzers"])):
            table.add_column(title, justify="right")
        for row in question.rows:
            cells: list[Any] = [Text(row.model), Text(row.lower)]
            for cell in row.cells:
                style = "bold" if cell.best else "yellow" if cell.refused else ""
                cells.append(Text(cell.upper, style=style))
            table.add_row(*cells)
        console.print(Text(question.title, style="dim"))
        if question.rows:
            console.print(table)
        for who, reason in question.refusals:
            console.print(Text.assemble(("refused by " + "; ".join(who) + ": ", "yellow"), reason))
        for who, text in question.notes:
            console.print(Text.assemble(("note on " + "; ".join(who) + ": ", "dim"), text))
    copies = family(document)
    if copies is not None:
        console.print(
            Text(f"Copies of {copies.original} ({copies.size} bytes): {copies.question}", style="dim")
        )
        table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
        table.add_column("copy", overflow="fold")
        for title in ("bytes", "at most", "at least", "labels kept", "rigour"):
            table.add_column(title, justify="right")
        for one in copies.rows:
            style = "bold" if one.undominated else "yellow" if not one.rigour else ""
            shown = (one.size, one.upper, one.lower, one.kept, one.rigour or "refused")
            table.add_row(Text(one.model), *(Text(cell, style=style) for cell in shown))
        console.print(table)
        for one in copies.rows:
            if one.reason is not None:
                console.print(Text.assemble((f"{one.model}: ", "dim"), one.reason))
    for model in document["models"]:
        if "unreadable" in model:
            name = display(model["name"])
            console.print(
                Text.assemble((f"{name} could not be read: ", "yellow"), display(model["unreadable"], 600))
            )
    for said in choice(document):
        console.print(Text(said, style="dim"))
    console.print(Text(f"{_work_words(document['work'])}, {seconds_text(document['seconds'])}", style="dim"))
