"""Radii of several models for people: one figure of all curves, one table, and the summary at a terminal."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import ROUND_CEILING
from typing import TextIO

from lipverify.errors import InternalError
from lipverify.loading.names import display
from lipverify.reporting.accuracy import Accuracy, accuracy
from lipverify.reporting.answers import RIGOUR, Document
from lipverify.reporting.format import decimal_text, plural, seconds_text
from lipverify.reporting.html import environment_facts, model_facts, template, texts, tool_text
from lipverify.reporting.radii import radius_text, share_text


@dataclass(frozen=True)
class Row:
    """One model of the table; radii rounded down, attack rounded up."""

    name: str
    clean: str
    mean: str
    common: str
    median: str
    attack: str
    method: str
    seconds: str
    best: bool


TITLES = ("model", "clean accuracy", "mean, common points", "mean", "median", "mean attack", "time")


def render_radii_compared(document: Document) -> str:
    """The report of a `lipverify.compare-radii/1` document as one self-contained HTML file.

    Raises:
        InternalError: a radius above an adversarial example, or accuracies that are none.
    """
    models = document["models"]
    for model in models:
        _require(model)
    used = {model["rigour"] for model in models}
    return template("compare_radii.html.j2").render(
        title=plural(len(models), "model") + ", " + plural(int(document["points"]), "point"),
        headline=headline(document),
        norm=display(document["norm"]),
        figure=figure(document),
        rows=rows(document),
        published=_published(document),
        methods=_methods(document),
        common=len(document["common"]),
        points=int(document["points"]),
        left_out=[(display(m["name"]), display(m["reason"], 600)) for m in document.get("left_out", ())],
        refused=[
            (display(model["name"]), display(name), display(reason, 600))
            for model in models
            for name, reason in model["refused"].items()
        ],
        claims=list(dict.fromkeys(display(model["claim"], 600) for model in models)),
        rigours=[(name, RIGOUR[name]) for name in RIGOUR if name in used],
        models=[(display(m["name"]), model_facts(m["model"])) for m in models],
        assumptions=texts(document.get("assumptions")),
        not_covered=texts(document.get("not_covered")),
        command=None if document.get("command") is None else display(document["command"], 2000),
        environment=environment_facts(document),
        tool=tool_text(document),
    )


def _require(model: Document) -> None:
    for radius, size in zip(model["radius"], model["attack_radius"], strict=True):
        if not radius >= 0.0 or (size is not None and not radius <= size):
            raise InternalError(f"{display(model['name'])} has a radius that is none, or above an example")


def headline(document: Document) -> str:
    """Which model holds out longest, on the points that all of them classify correctly."""
    models, common = document["models"], len(document["common"])
    asked = f"{plural(len(models), 'model')} on {plural(int(document['points']), 'point')}, {display(document['norm'])}"
    if not common:
        return f"{asked}: no point is classified correctly by all of them."
    best = max(models, key=lambda model: model["mean_radius_common"])
    return (
        f"{asked}: {display(best['name'])} has the largest mean certified radius, "
        f"{radius_text(best['mean_radius_common'])} on the {common} that all of them classify correctly."
    )


def figure(document: Document) -> Accuracy:
    """The curves of all models, certified and attacked."""
    curves = []
    for model in document["models"]:
        curve = {**model["curve"], "model": model["name"], "norm": document["norm"]}
        if all(size is None for size in model["attack_radius"]):
            curve.pop("attack_accuracy", None)
        curves.append({**curve, "method": model["method"], "clean_accuracy": model["clean_accuracy"]})
    return accuracy(curves)


def rows(document: Document) -> list[Row]:
    """The table, in the order of the models."""
    known = [m["mean_radius_common"] for m in document["models"] if m["mean_radius_common"] is not None]
    largest = max(known, default=None)
    found = []
    for model in document["models"]:
        common, attack = model["mean_radius_common"], model["mean_attack_radius"]
        found.append(
            Row(
                display(model["name"]),
                share_text(model["clean_accuracy"]),
                radius_text(model["mean_radius"]),
                "-" if common is None else radius_text(common),
                radius_text(model["median_radius"]),
                "-" if attack is None else decimal_text(attack, ROUND_CEILING, 4),
                display(model["method"]),
                seconds_text(float(model["seconds"])),
                common is not None and common == largest and len(document["models"]) > 1,
            )
        )
    return found


def _published(document: Document) -> tuple[list[str], list[tuple[str, list[str]]]]:
    """Certified accuracy at the l2 radii of the literature: titles, and shares of each model."""
    titles = list(document["models"][0]["robust_accuracy"])
    table = [
        (display(m["name"]), [share_text(m["robust_accuracy"][title]["certified"]) for title in titles])
        for m in document["models"]
    ]
    return [display(title) for title in titles], table


def _methods(document: Document) -> tuple[list[str], list[tuple[str, list[str]]]]:
    """Mean radius of every single method over the points each model classifies correctly."""
    by_model = {
        model["name"]: {row["method"]: row["mean_radius"] for row in model["comparison"]}
        for model in document["models"]
    }
    names = list(dict.fromkeys(name for known in by_model.values() for name in known))
    table = [
        (display(model), [radius_text(known[name]) if name in known else "-" for name in names])
        for model, known in by_model.items()
    ]
    return [display(name) for name in names], table


def print_radii_compared(document: Document, file: TextIO | None = None) -> None:
    """The summary at a terminal."""
    from rich.table import Table
    from rich.text import Text

    from lipverify.reporting.terminal import console_for

    console = console_for(file)
    console.print(Text(headline(document), style="bold"))
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    for index, title in enumerate(TITLES):
        table.add_column(title, justify="right" if index else "left", overflow="fold")
    for row in rows(document):
        cells = (row.name, row.clean, row.common, row.mean, row.median, row.attack, row.seconds)
        table.add_row(*(Text(cell, style="bold" if row.best else "") for cell in cells))
    console.print(table)
    for left in document.get("left_out", ()):
        console.print(
            Text.assemble((f"{display(left['name'])} has no radii: ", "yellow"), display(left["reason"], 600))
        )
