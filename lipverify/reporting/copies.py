"""Copies of one network in the report of a comparison: size of the file against certified deviation, a table and a picture."""

from __future__ import annotations

import math
from dataclasses import dataclass

from lipverify.loading.names import display
from lipverify.reporting import pareto
from lipverify.reporting.answers import Document
from lipverify.reporting.format import Magnitude, lower_text, seconds_text, upper_text
from lipverify.reporting.pareto import Pareto, Sample
from lipverify.reporting.places import CERTIFICATE


@dataclass(frozen=True)
class Copy:
    """One row of the table; `reason` where there is no bound, or no proof of it."""

    model: str
    size: str
    upper: str
    lower: str
    kept: str
    rigour: str
    seconds: str
    link: str | None
    undominated: bool
    reason: str | None


@dataclass(frozen=True)
class Family:
    """Everything that the report shows about the copies of one original."""

    original: str
    size: str
    question: str
    rows: tuple[Copy, ...]
    picture: Pareto | None
    unseen: tuple[str, ...]
    """Copies that the picture leaves out: their file has no size, their bound is 0 or refused."""


def family(document: Document) -> Family | None:
    """What `compare --deviate` found; None where it was not asked."""
    found = document.get("deviations")
    if not found:
        return None
    samples = {}
    for row in found["rows"]:
        largest = _largest(row.get("upper"))
        if row["bytes"] and largest:
            samples[display(row["model"], 60)] = [Sample(float(row["bytes"]), math.log10(largest))]
    best = set(pareto.front(pareto.middles(samples)))
    rows = tuple(_copy(row, best) for row in found["rows"])
    return Family(
        display(found["original"], 60),
        _bytes(found["bytes"]),
        display(found["query"].get("words", ""), 300),
        rows,
        pareto.pareto(samples, least=None),
        tuple(row.model for row in rows if row.model not in samples),
    )


def _copy(row: Document, best: set[str]) -> Copy:
    name, place = display(row["model"], 60), row.get("certificate")
    if "refused" in row:
        return Copy(
            name, _bytes(row["bytes"]), "-", "-", "-", "", "-", None, False, display(row["refused"], 600)
        )
    kept = row.get("kept")
    share = (
        "-"
        if not kept
        else f"{math.floor(kept['certified'] * 1000 + 1e-9) / 10:g} % of {int(kept['points'])}"
    )
    lower = _largest(row["lower"])
    return Copy(
        name,
        _bytes(row["bytes"]),
        upper_text(Magnitude(_largest(row["upper"]))),
        "-" if lower is None else lower_text(lower),
        share,
        row["rigour"],
        seconds_text(float(row["seconds"])),
        place if isinstance(place, str) and CERTIFICATE.fullmatch(place) else None,
        name in best,
        None if row.get("unchecked") is None else display(row["unchecked"], 600),
    )


def _largest(value: object) -> float | None:
    """Of one number, or one for each region."""
    if value is None:
        return None
    return max(map(float, value)) if isinstance(value, list) else float(value)  # type: ignore[arg-type]


def _bytes(size: int | None) -> str:
    return "-" if size is None else f"{size:,}"
