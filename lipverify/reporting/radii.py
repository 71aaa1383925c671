"""Radii for people: the report with its curves and points, and the summary at a terminal. Radii are printed rounded down."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import ROUND_CEILING
from typing import Any, TextIO

import numpy as np
from numpy.typing import NDArray

from lipverify.errors import InternalError
from lipverify.loading.names import display
from lipverify.reporting.answers import RIGOUR, Document
from lipverify.reporting.axis import linear_marks
from lipverify.reporting.course import Mark
from lipverify.reporting.format import decimal_text, lower_text, plural, seconds_text
from lipverify.reporting.gaps import gaps, pairs
from lipverify.reporting.html import (
    environment_facts,
    made,
    model_facts,
    model_name,
    short_digest,
    template,
    texts,
    tool_text,
)
from lipverify.reporting.pairs import Pair, pair, picture_shape
from lipverify.reporting.places import ADVERSARIAL, CERTIFICATE
from lipverify.reporting.png import image_of, png_address

PROSE = 3
"""Digits of a number in a sentence."""
SHOWN = 8
"""Points in each of the two tables of single points."""
_UNBOUNDED = 1e300
_LEFT, _RIGHT, _TOP, _HEIGHT = 9.0, 97.0, 12, 260


@dataclass(frozen=True)
class Curves:
    """A figure: paths in a square of 100 by 100, marks in per cent of the width and pixels of the height."""

    certified: str
    attacked: str | None
    band: str | None
    horizontal: tuple[Mark, ...]
    vertical: tuple[Mark, ...]
    left: float
    width: float
    top: int
    height: int


@dataclass(frozen=True)
class PointRow:
    """One point in a table."""

    index: int
    label: str
    radius: str
    attack: str
    method: str
    note: str
    picture: str | None
    pair: Pair | None
    other: str
    """The label of the adversarial example."""


def render_radii(
    document: Document, inputs: NDArray[Any] | None = None, examples: Mapping[int, NDArray[Any]] | None = None
) -> str:
    """The report of a radius document as one self-contained HTML file.

    Args:
        inputs: the points [points, *input shape]; those shaped like images are shown. examples: adversarial examples
            [*input shape] by point.

    Raises:
        InternalError: the document holds a radius that is none, or one above an adversarial example.
    """
    points = list(document["points"])
    for point in points:
        _require(point)
    correct = [p for p in points if p["label"] == p["predicted"]]
    order = sorted(correct, key=lambda p: (p["radius"], p["index"]))
    pictures = _Pictures(document, inputs, examples or {})
    return template("radii.html.j2").render(
        name=model_name(document["model"]),
        tool=tool_text(document),
        headline=headline(document),
        made=made(document),
        digest=short_digest(document["model"]),
        verify=_verify_words(document),
        gaps=gaps(points),
        pairs=pairs(points),
        adversarial=ADVERSARIAL if document.get("adversarial") == ADVERSARIAL else None,
        key=key_figures(document),
        plot=curves(document["curve"], any(p["attack_radius"] is not None for p in points)),
        norm=display(document["norm"]),
        method=display(document["method"]),
        robust=_robust_rows(document),
        comparison=_comparison_rows(document),
        weakest=[_row(p, pictures) for p in order[:SHOWN]],
        strongest=[_row(p, pictures) for p in reversed(order[SHOWN:][-SHOWN:])],
        images=pictures.shown,
        refused=[(display(k), display(v, 600)) for k, v in document.get("refused", {}).items()],
        claim=display(document["claim"], 600),
        rigour=(document["rigour"], RIGOUR[document["rigour"]]),
        assumptions=texts(document.get("assumptions")),
        not_covered=texts(document.get("not_covered")),
        model=model_facts(document["model"]),
        command=None if document.get("command") is None else display(document["command"], 2000),
        environment=environment_facts(document),
    )


def _require(point: Document) -> None:
    radius, size = point["radius"], point["attack_radius"]
    if not (math.isfinite(radius) and radius >= 0):
        raise InternalError(f"point {point['index']} has a radius that is none: {radius!r}")
    if size is not None and not radius <= size:
        raise InternalError(f"the radius of point {point['index']} lies above an adversarial example")


def headline(document: Document) -> str:
    """The whole answer in one sentence."""
    points = document["points"]
    certified = [p["radius"] for p in points if p["radius"] > 0]
    size = f"{len(certified)} of {plural(len(points), 'point')}"
    cut = sum(bool(p.get("cut")) for p in points)
    tail = f" The budget ended the search for {cut} of them." if cut else ""
    if not certified and points and all(p["label"] != p["predicted"] for p in points):
        return f"No radius: {'the label of the point is' if len(points) == 1 else 'the labels of all points are'} wrong.{tail}"
    if not certified:
        return f"No radius above zero was certified ({display(document['norm'])}, {size}).{tail}"
    middle = sorted(certified)[len(certified) // 2]
    return (
        f"{size} keep their label: half of these for every {display(document['norm'])} perturbation below "
        f"{radius_text(middle, PROSE)}, all of them below {radius_text(min(certified), PROSE)}.{tail}"
    )


def key_figures(document: Document) -> list[tuple[str, str, str]]:
    """Title, number and remark of the figures at the top."""
    correct = [p for p in document["points"] if p["label"] == p["predicted"]]
    figures = [
        ("Clean accuracy", share_text(document["clean_accuracy"]), "labels predicted without perturbation")
    ]
    bounded = [p["radius"] for p in correct if p["radius"] < _UNBOUNDED]
    if bounded:
        mean = math.fsum(bounded) / len(bounded) * (1 - 1e-12)
        figures.append(("Mean certified radius", radius_text(mean), "over points classified correctly"))
    attacked = [p["attack_radius"] for p in correct if p["attack_radius"] is not None]
    if attacked:
        mean = math.fsum(attacked) / len(attacked)
        remark = f"adversarial examples of {plural(len(attacked), 'point')}"
        figures.append(("Mean attack radius", decimal_text(mean, ROUND_CEILING, 4), remark))
    figures.append(("Rigour", document["rigour"], RIGOUR[document["rigour"]]))
    return figures


def radius_text(radius: float, digits: int = 4) -> str:
    """A radius rounded down; one without any limit in words."""
    return "no limit" if radius >= _UNBOUNDED else lower_text(radius, digits)


def share_text(share: float) -> str:
    """A share in per cent, rounded down."""
    return f"{math.floor(share * 1000 + 1e-9) / 10:g}\u00a0%"


def curves(document: Document, with_attack: bool) -> Curves:
    """Step curves of certified and attacked accuracy; what lies between is undecided."""
    radii = document["radii"]
    largest = radii[-1] or 1.0
    certified = steps(radii, document["certified_accuracy"], largest)
    attacked = steps(radii, document["attack_accuracy"], largest, late=True) if with_attack else None
    path = "M" + " L".join(map(_place, certified))
    other = band = None
    if attacked is not None:
        other = "M" + " L".join(map(_place, attacked))
        band = "M" + " L".join(map(_place, [*certified, *reversed(attacked)])) + " Z"
    width = _RIGHT - _LEFT
    horizontal = tuple(Mark(_LEFT + width * value / largest, text) for value, text in linear_marks(largest))
    vertical = tuple(Mark(_TOP + _HEIGHT * (1 - s / 4), f"{25 * s} %") for s in range(5))
    return Curves(path, other, band, horizontal, vertical, _LEFT, width, _TOP, _HEIGHT)


def steps(
    radii: Sequence[float], shares: Sequence[float], largest: float, late: bool = False
) -> list[tuple[float, float]]:
    """Corners of a falling curve in a square of 100 by 100.

    Between two radii holds what is known at the larger one: down first, then along. `late`, of attacks: what was not found at
    the larger radius was not found below it, so along first, then down.
    """
    found = [(0.0, 100 * (1 - shares[0]))]
    for radius, share in zip(radii[1:], shares[1:], strict=True):
        x, y = 100 * radius / largest, 100 * (1 - share)
        before = found[-1]
        found += [(x, before[1]) if late else (before[0], y), (x, y)]
    return found


def _place(point: tuple[float, float]) -> str:
    return f"{point[0]:.3f} {point[1]:.3f}"


def _robust_rows(document: Document) -> list[tuple[str, str, str]]:
    rows = document.get("robust_accuracy", {})
    return [
        (display(name), share_text(row["certified"]), share_text(row["attacked"]))
        for name, row in rows.items()
    ]


def _comparison_rows(document: Document) -> list[tuple[str, str, str, str]]:
    return [
        (
            display(row["method"]),
            radius_text(row["mean_radius"]),
            radius_text(row["median_radius"]),
            f"{row['largest_on']} of {row['points']}"
            + (f", not run on {row['not_run']}" if row.get("not_run") else ""),
        )
        for row in document.get("comparison", ())
    ]


class _Pictures:
    """The inputs as images, on one scale: the input box, or the range of all inputs."""

    def __init__(
        self, document: Document, inputs: NDArray[Any] | None, examples: Mapping[int, NDArray[Any]]
    ) -> None:
        self.inputs, self.examples = inputs, examples
        self.low, self.high = 0.0, 1.0
        if document.get("box") is not None:
            self.low, self.high = document["box"]
        elif inputs is not None:
            self.low, self.high = float(np.min(inputs)), float(np.max(inputs))
        self.shape, self.rows = (None, "") if inputs is None else picture_shape(inputs[0])
        self.shown = self.shape is not None

    def of(self, index: int) -> str | None:
        if self.shape is None or self.inputs is None:
            return None
        image = image_of(self.inputs[index].reshape(self.shape), self.low, self.high)
        return None if image is None else png_address(image)

    def pair(self, index: int) -> Pair | None:
        """The point beside its adversarial example."""
        if self.inputs is None or index not in self.examples:
            return None
        return pair(self.inputs[index], self.examples[index], self.low, self.high)


def _row(point: Document, pictures: _Pictures) -> PointRow:
    size, proved = point["attack_radius"], point.get("proved")
    smaller = "" if not proved else f"checked up to {radius_text(proved)}"
    return PointRow(
        int(point["index"]),
        str(int(point["label"])),
        radius_text(point["radius"]),
        "-" if size is None else decimal_text(size, ROUND_CEILING, 4),
        display(point["method"]),
        "; ".join(filter(None, (display(point.get("note", "")), smaller))),
        pictures.of(int(point["index"])),
        pictures.pair(int(point["index"])),
        "" if point.get("attack_label") is None else str(int(point["attack_label"])),
    )


def _verify_words(document: Document) -> str:
    """The command that checks the radii again, from the folder of the report; empty where there is no certificate."""
    places = {p["certificate"] for p in document["points"] if p.get("certificate")}
    model = document["model"]
    if len(places) != 1 or not model.get("path") or not CERTIFICATE.fullmatch(place := str(places.pop())):
        return ""
    return f"lipverify verify {place} --model {shlex.quote(model_name(model))}"


def print_radii(document: Document, file: TextIO | None = None) -> None:
    """The summary at a terminal."""
    from rich.table import Table
    from rich.text import Text

    from lipverify.reporting.terminal import console_for

    console = console_for(file)
    console.print(Text(headline(document), style="bold"))
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    for index, title in enumerate(("method", "mean radius", "median radius", "largest on")):
        table.add_column(title, justify="right" if index else "left")
    for row in _comparison_rows(document):
        table.add_row(*map(Text, row))
    if table.row_count:
        console.print(table)
    for title, number, remark in key_figures(document)[:-1]:
        console.print(Text(f"{title.lower()} {number} ({remark})"))
    for name, certified, attacked in _robust_rows(document):
        console.print(Text(f"accuracy at {name}: certified {certified}, not fooled by the attack {attacked}"))
    for name, reason in document.get("refused", {}).items():
        verb = "failed" if name in document.get("failed", ()) else "refused"
        console.print(Text.assemble((f"{display(name)} {verb}: ", "yellow"), display(reason, 600)))
    for point in document["points"]:
        if point.get("failed"):
            text = display(point.get("note", ""), 600)
            console.print(Text.assemble((f"point {int(point['index'])} failed: ", "red"), text))
    for reason, count in _unchecked(document).items():
        said = f"{plural(count, 'point')} real, not checked: "
        console.print(Text.assemble((said, "yellow"), display(reason, 600)))
    if smaller := [point["proved"] for point in document["points"] if point.get("proved")]:
        least = radius_text(min(smaller), PROSE)
        console.print(
            f"a smaller radius is checked for {plural(len(smaller), 'point')} of these, at least {least}"
        )
    console.print(Text(f"rigour {document['rigour']}, {seconds_text(document['seconds'])}", style="dim"))


def _unchecked(document: Document) -> dict[str, int]:
    """Why certified radii are not proved by the checker, and of how many points each reason is."""
    reasons = [str(point["unchecked"]) for point in document["points"] if point.get("unchecked")]
    return {reason: reasons.count(reason) for reason in dict.fromkeys(reasons)}
