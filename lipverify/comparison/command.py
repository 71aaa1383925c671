"""The command `compare`: from options to a folder with result, report, certificates and the cache."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
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
from lipverify.loading import read_points
from lipverify.loading.names import display, display_path
from lipverify.reporting.comparison import render_comparison
from lipverify.reporting.places import REPORT, RESULT
from lipverify.reporting.terminal import Progress
from lipverify.reporting.writing import OutputFolder, document_bytes
from lipverify.robustness import Plan
from lipverify.selection import choose_device

CACHE = "cache"
"""The folder inside --out where answers are kept unless --cache names another one."""
NO_CURVES = "none"
"""The word that leaves out certified accuracy."""


@dataclass(frozen=True)
class Options:
    """The options of the command line, parsed."""

    models: tuple[str, ...]
    analyzers: tuple[str, ...]
    norms: tuple[str, ...]
    norm_out: str | None
    data: Path | None
    radii: tuple[float, ...]
    everywhere: bool
    ball: str | None
    limit: int | None
    curves: str
    box: tuple[float, float] | None
    output: int
    margin: tuple[int, int] | None
    budget: float | None
    device: str
    seed: int
    jobs: int
    cache: Path | None
    resume: bool
    out: Path | None
    force: bool
    arch: str | None
    trust_code: bool
    input_shape: tuple[int, ...] | None
    quiet: bool
    command: str


def run_compare(options: Options) -> Comparison:
    """Runs the command and writes its folder.

    Raises:
        UsageError: options that make no sense, data that cannot be read, an unfinished run that is not meant to be continued.
    """
    started = time.monotonic()
    device = choose_device(options.device)
    points = None if options.data is None else read_points(options.data)
    data = None if points is None else torch.from_numpy(points.x[: options.limit])
    regions = _regions(options, data)
    with ExitStack() as stack:
        folder = None
        if options.out is not None:
            ours = _unfinished(options.out)
            if ours and not (options.resume or options.force):
                raise UsageError(
                    f"{display_path(options.out)} holds an unfinished comparison; give --resume to go on with it"
                )
            force = options.force or (options.resume and ours)
            folder = stack.enter_context(OutputFolder(options.out, force=force))
        place = options.cache or (None if folder is None else folder.path / CACHE)
        cache = None if place is None else Cache(place)
        progress = stack.enter_context(Progress(quiet=options.quiet))
        models = {}
        for name, model in _names(options.models).items():
            progress.start(f"reading {model}")
            models[name] = read(model, options)
        if folder is not None:
            folder.keep()
        curves: tuple[dict[str, Any], ...] = ()
        if points is not None and options.curves != NO_CURVES:
            progress.start("certifying points")
            labels = None if points.y is None else torch.from_numpy(points.y[: options.limit])
            curves = _curves(options, models, points.x[: options.limit], labels, cache)
        progress.start("comparing")
        found = compare(
            models,
            analyzers=options.analyzers,
            norm=options.norms,
            norm_out=options.norm_out,
            region=regions,
            budget=options.budget,
            device=device,
            seed=options.seed,
            box=options.box,
            hints=None if options.radii else data,
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
    x: NDArray[Any],
    labels: Tensor | None,
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
            torch.from_numpy(x),
            labels,
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


def read(model: str, options: Options) -> Graph | Unreadable:
    """One model; what cannot be read is a row of the report, not the end of the run."""
    try:
        graph = pipeline.load(
            model,
            arch=options.arch,
            trust_code=options.trust_code,
            input_shape=options.input_shape,
            output=options.output,
        )
        return graph if options.margin is None else pipeline.margin(graph, *options.margin)
    except LipverifyError as error:
        return Unreadable(str(error), error.exit_code)


def _names(models: Sequence[str]) -> dict[str, str]:
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


def _unfinished(out: Path) -> bool:
    """Whether a comparison of ours began there and did not end."""
    return (out / CACHE).is_dir() and not (out / RESULT).exists()
