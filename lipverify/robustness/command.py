"""The command `radius`: from options to a folder with journal, result and report."""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from lipverify import pipeline
from lipverify.errors import UsageError
from lipverify.ir.norm import Norm
from lipverify.loading import read_points
from lipverify.loading.names import display_path
from lipverify.reporting.places import REPORT, RESULT
from lipverify.reporting.radii import render_radii
from lipverify.reporting.terminal import Progress
from lipverify.reporting.writing import OutputFolder, document_bytes
from lipverify.robustness.attack import Attack, Box
from lipverify.robustness.journal import NAME, Journal
from lipverify.robustness.plan import Plan
from lipverify.robustness.run import radii
from lipverify.robustness.smoothing.settings import Smoothing
from lipverify.selection import choose_device


@dataclass(frozen=True)
class Options:
    """The options of the command line, parsed."""

    model: str
    data: Path
    norm: str
    method: str
    limit: int | None
    box: Box | None
    budget: float | None
    looks: int
    attack: bool
    smoothing: Smoothing
    jobs: int
    scheduler: str | None
    resume: bool
    output: int
    device: str
    seed: int
    out: Path | None
    force: bool
    arch: str | None
    trust_code: bool
    input_shape: tuple[int, ...] | None
    quiet: bool
    command: str


def run_radius(options: Options) -> dict[str, Any]:
    """Runs the command and writes its folder; the document of `radius --json`.

    Raises:
        LipverifyError: as `radii`; UsageError also for a journal that is there and not meant to be continued.
    """
    started = time.monotonic()
    attack = Attack() if options.attack else None
    plan = Plan(
        Norm.parse(options.norm),
        options.method,
        options.box,
        options.looks,
        attack=attack,
        smoothing=options.smoothing,
        seed=options.seed,
    )
    device = choose_device(options.device)
    with ExitStack() as stack:
        if options.out is not None:
            _refuse_forgotten(options.out, options)
        folder = None
        if options.out is not None:
            folder = stack.enter_context(OutputFolder(options.out, force=options.force or options.resume))
        progress = stack.enter_context(Progress(quiet=options.quiet))
        progress.start(f"reading {options.model}")
        graph = pipeline.load(
            options.model,
            arch=options.arch,
            trust_code=options.trust_code,
            input_shape=options.input_shape,
            output=options.output,
        )
        points = read_points(options.data)
        points.require(graph.input_shape, graph.output.size)
        x = torch.from_numpy(points.x[: options.limit])
        y = None if points.y is None else torch.from_numpy(points.y[: options.limit])
        journal = None
        if folder is not None:
            question = {
                "graph": graph.digest,
                "data": points.sha256,
                "points": len(x),
                "plan": plan.to_json(),
            }
            question["budget"] = options.budget
            journal = stack.enter_context(Journal(folder.path / NAME, question, options.resume))
            folder.keep()

        def advance(done: int, total: int) -> None:
            progress.update(done, total)

        progress.start("certifying points")
        # Reading the model counts: the budget is that of the command.
        budget = options.budget
        if budget is not None:
            budget = max(budget - (time.monotonic() - started), 0.0)
        found = radii(
            graph,
            x,
            y,
            plan=plan,
            budget=budget,
            device=device,
            seed=options.seed,
            jobs=options.jobs,
            scheduler=options.scheduler,
            journal=journal,
            report=progress.report,
            advance=advance,
        )
        progress.finish()
        found = replace(found, command=options.command)
        document = found.to_json()
        if folder is not None:
            page = render_radii(document, x.numpy()).encode("utf-8")
            folder.write({REPORT: page, RESULT: document_bytes(document)})
    return document


def _refuse_forgotten(out: Path, options: Options) -> None:
    """An unfinished run is neither continued nor thrown away unasked."""
    unfinished = (out / NAME).exists() and not (out / RESULT).exists()
    if unfinished and not options.resume and not options.force:
        raise UsageError(
            f"{display_path(out)} holds an unfinished run; give --resume to go on with it or --force to begin again"
        )
