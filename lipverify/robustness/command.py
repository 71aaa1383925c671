"""The command `radius`: from options to a folder with journal, result and report."""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lipverify.errors import UsageError
from lipverify.ir.graph import Graph
from lipverify.ir.norm import Norm
from lipverify.reporting.places import REPORT, RESULT
from lipverify.reporting.radii import render_radii
from lipverify.reporting.writing import document_bytes
from lipverify.robustness.attack import Attack
from lipverify.robustness.journal import NAME, Journal
from lipverify.robustness.plan import Plan
from lipverify.robustness.run import radii
from lipverify.robustness.smoothing.settings import Smoothing
from lipverify.start import Common, Points, begun


@dataclass(frozen=True, kw_only=True)
class Options(Common):
    """The options of the command line, parsed."""

    model: str
    norm: str
    method: str
    looks: int
    attack: bool
    smoothing: Smoothing
    jobs: int
    scheduler: str | None


def run_radius(options: Options) -> tuple[dict[str, Any], int]:
    """Runs the command and writes its folder; the document of `radius --json`, and the exit code.

    Raises:
        LipverifyError: as `radii`; UsageError also for a journal that is there and not meant to be continued.
    """
    started = time.monotonic()
    plan = Plan(
        Norm.parse(options.norm),
        options.method,
        options.box,
        options.looks,
        attack=Attack() if options.attack else None,
        smoothing=options.smoothing,
        seed=options.seed,
    )
    with begun(options, NAME) as start, ExitStack() as stack:
        start.progress.start(f"reading {options.model}")
        graph = options.load(options.model)
        points = options.points()
        if points is None:
            raise UsageError("radii are of points: give --data")
        points.require(graph)
        journal = None
        if start.folder is not None:
            journal = stack.enter_context(journal_of(options, graph, points, plan, start.folder.path / NAME))
            start.folder.keep()
        start.progress.start("certifying points")
        # Reading the model counts: the budget is that of the command.
        budget = options.budget
        if budget is not None:
            budget = max(budget - (time.monotonic() - started), 0.0)
        found = radii(
            graph,
            points.x,
            points.y,
            plan=plan,
            budget=budget,
            device=start.device,
            seed=options.seed,
            jobs=options.jobs,
            scheduler=options.scheduler,
            journal=journal,
            report=start.progress.report,
            advance=start.progress.update,
        )
        start.progress.finish()
        document = replace(found, command=options.command).to_json()
        if start.folder is not None:
            page = render_radii(document, points.x.numpy()).encode("utf-8")
            files = {REPORT: page, RESULT: document_bytes(document), **found.certificate_files()}
            start.folder.write(files)
    return document, found.exit_code()


def journal_of(options: Common, graph: Graph, points: Points, plan: Plan, path: Path) -> Journal:
    """The journal of a run of these options, on these points and with this network."""
    question = {
        "graph": graph.digest,
        "data": points.stored.sha256,
        "points": len(points.x),
        "plan": plan.to_json(),
        "budget": options.budget,
    }
    return Journal(path, question, options.resume)
