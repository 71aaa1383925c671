"""`compare --radii`: several models on the same points, with a journal for each."""

from __future__ import annotations

import time
from typing import Any

from lipverify.commands.compare import CompareOptions, load, short_names
from lipverify.commands.radius import journal_of
from lipverify.commands.shell import Outcome
from lipverify.commands.start import Start, points_of
from lipverify.errors import InternalError, LipverifyError, Refuted, UsageError
from lipverify.failures import failure_words
from lipverify.ir.graph import Graph
from lipverify.ir.graphs import require_alike
from lipverify.ir.norm import Norm
from lipverify.reporting.radii_compared import print_radii_compared, render_radii_compared
from lipverify.robustness.comparison import comparison_document
from lipverify.robustness.plan import Plan
from lipverify.robustness.results import Radii
from lipverify.robustness.run import radii

JOURNAL = "journal-{}.jsonl"
"""By the place of the model in the command."""
JOURNALS = JOURNAL.format("*")


def work(options: CompareOptions, start: Start) -> Outcome:
    """Compares the radii.

    A model that cannot be read, that no method certifies, or where something broke, is left out with its reason.

    Raises:
        LipverifyError: no model has radii: the reason of the first; UsageError also for options that make no sense, or an
            unfinished run that is not meant to be continued.
    """
    end = options.end
    if options.data is None or len(options.norm) != 1 or options.certified is None:
        raise UsageError("--radii needs --data, the points, and one --norm")
    plan = Plan(
        Norm.parse(options.norm[0]),
        options.certified,
        options.uniform_box("compare --radii"),
        seed=options.seed,
    )
    found: dict[str, Radii] = {}
    left_out: dict[str, LipverifyError] = {}
    codes = [0]
    graphs: list[Graph] = []
    names = short_names(options.models)
    for place, (name, model) in enumerate(names.items()):
        # Models share what is left evenly; reading them counts.
        seconds = None if end is None else max(end - time.monotonic(), 0.0) / (len(names) - place)
        try:
            found[name] = _radii(options, plan, start, model, graphs, JOURNAL.format(place), seconds)
            codes.append(found[name].exit_code())
        except LipverifyError as error:
            left_out[name] = error
            codes.append(error.exit_code if isinstance(error, InternalError | Refuted) else 0)
        except Exception as error:
            left_out[name] = InternalError(failure_words(error))
            codes.append(InternalError.exit_code)
    if not found:
        raise next(iter(left_out.values()))
    reasons = {name: str(error) for name, error in left_out.items()}
    document = comparison_document(found, reasons, options.command)
    # Worst first: a contradiction, then what broke.
    return Outcome(document, print_radii_compared, render_radii_compared, code=max(codes))


def _radii(
    options: CompareOptions,
    plan: Plan,
    start: Start,
    model: str,
    graphs: list[Graph],
    journal: str,
    seconds: float | None,
) -> Radii:
    """Radii of one model, which is put to the `graphs` that went before, on the same points; goes on with its journal."""
    started = time.monotonic()
    start.progress.start(f"reading {model}")
    graph = load(model, options)
    for one in graphs[:1]:
        require_alike(one, graph)
    graphs.append(graph)
    points = points_of(options, graph, start.progress)
    assert points is not None
    points.require_labels(graph)
    start.progress.start(f"certifying points, {model}")
    given: dict[str, Any] = {
        "plan": plan,
        "budget": None if seconds is None else max(seconds - (time.monotonic() - started), 0.0),
        "device": start.device,
        "seed": options.seed,
        "jobs": options.jobs,
        "scheduler": options.scheduler,
        "report": start.progress.report,
        "advance": start.progress.update,
    }
    if start.folder is None:
        return radii(graph, points.x, points.y, **given)
    with journal_of(options, graph, points, plan, start.folder.path / journal, options.resume) as kept:
        start.folder.keep()
        return radii(graph, points.x, points.y, **given, journal=kept)
