"""`compare --deviate`: how far copies deviate from the model they were made from, beside the size of their files."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lipverify.errors import Undecided, UnsupportedModel, UsageError

if TYPE_CHECKING:
    from lipverify.commands.compare import CompareOptions
    from lipverify.commands.start import Points, Start
    from lipverify.comparison.results import Unreadable
    from lipverify.ir.graph import Graph

SHARE = 0.4
"""The part of a budget that deviations may take; the rest is for bounds."""


def deviations(
    options: CompareOptions,
    start: Start,
    models: Mapping[str, Graph | Unreadable],
    points: Points | None,
) -> tuple[dict[str, Any], dict[str, bytes]]:
    """The field `deviations` of the document, and its certificates by their place in the folder.

    The first model is the original. A copy that cannot be compared with it is a row with the reason.

    Raises:
        UsageError: no copy, no region, or an original that cannot be read.
    """
    from lipverify.comparison.results import Unreadable
    from lipverify.questions.deviation import Deviation
    from lipverify.questions.regions import asked_region
    from lipverify.reporting.places import CERTIFICATES

    (name, original), *copies = models.items()
    if not copies:
        raise UsageError("--deviate needs copies beside the original, which is the first model")
    if isinstance(original, Unreadable):
        raise UsageError(f"--deviate needs the original, the first model: {original.reason}")
    x = None if points is None else points.x.double()
    radius = None if options.radius is None else options.radius[0]
    region = asked_region(
        original, x, radius, options.ball or options.norm[0], options.uniform_box("compare")
    )
    end = None if options.budget is None else options.began + SHARE * options.budget
    rows: list[dict[str, Any]] = []
    files: dict[str, bytes] = {}
    question = None
    for place, (other, copy) in enumerate(copies):
        row: dict[str, Any] = {"model": other, "bytes": _size(copy)}
        rows.append(row)
        if isinstance(copy, Unreadable):
            row["refused"] = copy.reason
            continue
        start.progress.start(f"how far {other} deviates")
        share = None if end is None else max(end - time.monotonic(), 0.01) / (len(copies) - place)
        try:
            question = Deviation(original, copy, region, "linf", x)
            row |= _answered(question, share, options.seed, start, f"deviation-{place + 1}.json", files)
        except (UsageError, Undecided, UnsupportedModel) as error:
            row["refused"] = str(error)
    query = {"norm_out": "linf", "region": region.to_json()} if question is None else question.query()
    found = {"original": name, "bytes": _size(original), "query": query, "rows": rows}
    return found, {f"{CERTIFICATES}/{place}": data for place, data in files.items()}


def _answered(
    question: Any, budget: float | None, seed: int, start: Start, place: str, files: dict[str, bytes]
) -> dict[str, Any]:
    """What a row says of an answer; its certificate goes into `files`."""
    from lipverify.questions.asking import ask
    from lipverify.reporting.places import CERTIFICATES

    answer = ask(question, budget=budget, device=start.device, seed=seed, report=start.progress.report)
    document = answer.to_json(certificate=f"{CERTIFICATES}/{place}")
    keys = ("upper", "rigour", "certificate", "unchecked", "seconds", "apart", "saturation")
    row = {key: document[key] for key in keys if key in document}
    row["lower"] = None if document["lower"] is None else document["lower"]["value"]
    if "kept" in document:
        kept = document["kept"]
        row["kept"] = {key: kept[key] for key in ("points", "same_label_now", "certified") if key in kept}
    if answer.issued is not None:
        files |= answer.issued.files(place)
    return row


def _size(model: Graph | Unreadable) -> int | None:
    """Bytes of the model's own file, without data beside it; None where it is no file."""
    origin = getattr(model, "origin", None)
    measured: Callable[[Path], int] = os.path.getsize
    if origin is None or origin.path is None or not Path(origin.path).is_file():
        return None
    return measured(Path(origin.path))
