"""`audit --monotone`: from options to findings and a folder with the result and the pairs."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from lipverify import pipeline
from lipverify.errors import UsageError
from lipverify.ir.graph import Graph
from lipverify.ir.norm import Norm
from lipverify.ir.region import Ball
from lipverify.loading import read_points
from lipverify.monotonicity.results import Monotonicity
from lipverify.monotonicity.run import Region, monotone
from lipverify.reporting.places import RESULT, WITNESS
from lipverify.reporting.terminal import Progress
from lipverify.reporting.writing import OutputFolder, document_bytes
from lipverify.selection import choose_device

DEFAULT_BUDGET = 60.0
"""Seconds, when the command line gives none: branch and bound on a wide box need not end."""


@dataclass(frozen=True)
class Options:
    """The options of the command line, parsed. features: names or positions with commas, or `all`."""

    model: str
    features: str
    names: str | None
    of: int | None
    data: Path | None
    radius: float | None
    box: tuple[float, float] | None
    limit: int | None
    output: int
    margin: tuple[int, int] | None
    budget: float | None
    device: str
    seed: int
    out: Path | None
    force: bool
    arch: str | None
    trust_code: bool
    input_shape: tuple[int, ...] | None
    quiet: bool
    command: str


def run_monotone(options: Options) -> Monotonicity:
    """Runs the command and writes its folder.

    Raises:
        LipverifyError: as `monotone`; UsageError also where no region is given.
    """
    if options.margin is not None and options.of is not None:
        raise UsageError(
            "--margin asks about the difference of two outputs, --of about one; give one of them"
        )
    device = choose_device(options.device)
    with ExitStack() as stack:
        folder = None
        if options.out is not None:
            folder = stack.enter_context(OutputFolder(options.out, force=options.force))
        progress = stack.enter_context(Progress(quiet=options.quiet))
        progress.start(f"reading {options.model}")
        graph = pipeline.load(
            options.model,
            arch=options.arch,
            trust_code=options.trust_code,
            input_shape=options.input_shape,
            output=options.output,
        )
        region = _region(graph, options)
        if options.margin is not None:
            graph = pipeline.margin(graph, *options.margin)
        found = monotone(
            graph,
            region,
            None if options.features == "all" else _words(options.features),
            output=options.of,
            names=None if options.names is None else _words(options.names),
            budget=DEFAULT_BUDGET if options.budget is None else options.budget,
            device=device,
            seed=options.seed,
            report=progress.report,
        )
        progress.finish()
        found = replace(found, command=options.command)
        if folder is not None:
            folder.write({WITNESS: found.witness_file(), RESULT: document_bytes(found.to_json())})
    return found


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _region(graph: Graph, options: Options) -> Region:
    """A box for all inputs alike, balls around points, or the smallest box around the points."""
    if options.data is None:
        if options.box is None:
            raise UsageError(
                "--monotone needs a region: --box LO,HI, or --data with --radius, or --data alone for its range"
            )
        return options.box
    points = read_points(options.data)
    points.require(graph.input_shape, graph.output.size)
    x = torch.from_numpy(points.x[: options.limit]).to(torch.float64)
    if options.radius is not None:
        return Ball(x, options.radius, Norm.LINF, options.box)
    if options.box is not None:
        raise UsageError("--data without --radius means the range of the data; --box is another region")
    return x.amin(0), x.amax(0)
