"""The command `compare`: from options to a folder with result, report, certificates and the cache."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from lipverify import pipeline
from lipverify.comparison.cache import Cache
from lipverify.comparison.curves import accuracy_curve
from lipverify.comparison.results import WITNESSES, Comparison, Unreadable
from lipverify.comparison.run import compare
from lipverify.errors import LipverifyError, UsageError
from lipverify.ir.graph import Graph
from lipverify.ir.norm import Norm
from lipverify.ir.region import Ball, Everywhere, Region
from lipverify.loading.names import display
from lipverify.reporting.comparison import render_comparison
from lipverify.reporting.places import REPORT, RESULT
from lipverify.reporting.writing import OutputFolder, document_bytes
from lipverify.robustness import Plan
from lipverify.start import Common, Points, begun

CACHE = "cache"
"""The folder inside --out where answers are kept unless --cache names another one."""
NO_CURVES = "none"
"""The word that leaves out certified accuracy."""


@dataclass(frozen=True, kw_only=True)
class Options(Common):
    """The options of the command line, parsed. certified: method of `--radii`, which compares radii instead of bounds."""

    models: tuple[str, ...]
    analyzers: tuple[str, ...]
    norms: tuple[str, ...]
    norm_out: str | None
    radii: tuple[float, ...]
    everywhere: bool
    ball: str | None
    curves: str
    certified: str | None
    jobs: int
    cache: Path | None


def run_compare(options: Options) -> Comparison:
    """Runs the command and writes its folder.

    Raises:
        UsageError: options that make no sense, data that cannot be read, an unfinished run that is not meant to be continued.
    """
    started = time.monotonic()
    points = options.points()
    regions = _regions(options, None if points is None else points.x)
    with begun(options, CACHE) as start:
        folder, progress = start.folder, start.progress
        place = options.cache or (None if folder is None else folder.path / CACHE)
        cache = None if place is None else Cache(place)
        models = {}
        for name, model in short_names(options.models).items():
            progress.start(f"reading {model}")
            models[name] = read(model, options)
        if folder is not None:
            folder.keep()
        curves: tuple[dict[str, Any], ...] = ()
        if points is not None and options.curves != NO_CURVES:
            progress.start("certifying points")
            curves = _curves(options, models, points, cache)
        progress.start("comparing")
        found = compare(
            models,
            analyzers=options.analyzers,
            norm=options.norms,
            norm_out=options.norm_out,
            region=regions,
            budget=options.budget,
            device=start.device,
            seed=options.seed,
            box=options.box,
            hints=None if options.radii or points is None else points.x,
            jobs=options.jobs,
            cache=cache,
            advance=progress.update,
            since=started,
        )
        progress.finish()
        found = replace(found, curves=curves, command=options.command)
        if folder is not None:
            write(folder, found)
    return found


def _curves(
    options: Options,
    models: Mapping[str, Graph | Unreadable],
    points: Points,
    cache: Cache | None,
) -> tuple[dict[str, Any], ...]:
    graphs = {name: model for name, model in models.items() if not isinstance(model, Unreadable)}
    norms = [norm for norm in map(Norm.parse, options.norms) if norm is not Norm.L1]
    # At most half of the time; what they leave is for the bounds.
    seconds = None if options.budget is None else options.budget / 2 / max(len(graphs) * len(norms), 1)
    return tuple(
        accuracy_curve(
            name,
            graph,
            points.x,
            points.y,
            Plan(norm, options.curves, options.box, attack=None, seed=options.seed),
            budget=seconds,
            jobs=options.jobs,
            cache=cache,
        )
        for norm in norms
        for name, graph in graphs.items()
    )


def write(folder: OutputFolder, found: Comparison) -> None:
    """Report, witnesses, certificates and result."""
    document = found.to_json()
    files = dict(found.certificate_files())
    files[WITNESSES] = found.witness_file()
    files[REPORT] = render_comparison(document).encode("utf-8")
    files[RESULT] = document_bytes(document)  # last: its presence says that the others are complete
    folder.write(files)


def load(model: str, options: Options) -> Graph:
    """One model, or one difference of its outputs."""
    graph = options.load(model)
    return graph if options.margin is None else pipeline.margin(graph, *options.margin)


def read(model: str, options: Options) -> Graph | Unreadable:
    """One model; what cannot be read is a row of the report, not the end of the run."""
    try:
        return load(model, options)
    except LipverifyError as error:
        return Unreadable(str(error), error.exit_code)


def short_names(models: Sequence[str]) -> dict[str, str]:
    """Short names: the file's, with the folder before it where two files are called the same."""
    if len(set(models)) < len(models):
        raise UsageError("a model is named twice")
    short = [display(_short(model), 60) for model in models]
    longer = [
        display(_short(model, 2), 60) if short.count(s) > 1 else s
        for s, model in zip(short, models, strict=True)
    ]
    found: dict[str, str] = {}
    for name, model in zip(longer, models, strict=True):
        found[name if name not in found else f"{name} ({len(found) + 1})"] = model
    return found


def _short(model: str, parts: int = 1) -> str:
    if model.startswith("zoo:"):
        return model
    return "/".join(Path(model).parts[-parts:]) or model


def _regions(options: Options, data: Tensor | None) -> list[Region]:
    if options.radii and data is None:
        raise UsageError("--radius needs --data: the balls are around the points of a file")
    if not options.radii:
        return [Everywhere()]
    found: list[Region] = [Everywhere()] if options.everywhere else []
    assert data is not None
    ball = options.ball or options.norms[0]
    return [*found, *(Ball(data, radius, Norm.parse(ball), options.box) for radius in options.radii)]
