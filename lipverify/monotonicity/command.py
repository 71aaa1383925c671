"""`audit --monotone`: from options to findings and a folder with the result and the pairs."""

from __future__ import annotations

from dataclasses import dataclass, replace

from lipverify import pipeline
from lipverify.errors import UsageError
from lipverify.ir.graph import Graph
from lipverify.ir.norm import Norm
from lipverify.ir.region import Ball
from lipverify.monotonicity.results import Monotonicity
from lipverify.monotonicity.run import Region, monotone
from lipverify.reporting.places import RESULT, WITNESS
from lipverify.reporting.writing import document_bytes
from lipverify.start import Common, begun

DEFAULT_BUDGET = 60.0
"""Seconds, when the command line gives none: branch and bound on a wide box need not end."""


@dataclass(frozen=True, kw_only=True)
class Options(Common):
    """The options of the command line, parsed. features: names or positions with commas, or `all`."""

    model: str
    features: str
    names: str | None
    of: int | None
    radius: float | None


def run_monotone(options: Options) -> Monotonicity:
    """Runs the command and writes its folder.

    Raises:
        LipverifyError: as `monotone`; UsageError also where no region is given.
    """
    if options.margin is not None and options.of is not None:
        raise UsageError(
            "--margin asks about the difference of two outputs, --of about one; give one of them"
        )
    with begun(options) as start:
        start.progress.start(f"reading {options.model}")
        graph = options.load(options.model)
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
            device=start.device,
            seed=options.seed,
            report=start.progress.report,
        )
        start.progress.finish()
        found = replace(found, command=options.command)
        if start.folder is not None:
            files = {WITNESS: found.witness_file(), RESULT: document_bytes(found.to_json())}
            start.folder.write({**files, **found.certificate_files()})
    return found


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _region(graph: Graph, options: Options) -> Region:
    """A box for all inputs alike, balls around points, or the smallest box around the points."""
    points = options.points()
    if points is None:
        if options.box is None:
            raise UsageError(
                "--monotone needs a region: --box LO,HI, or --data with --radius, or --data alone for its range"
            )
        return options.box
    points.require(graph)
    x = points.x.double()
    if options.radius is not None:
        return Ball(x, options.radius, Norm.LINF, options.box)
    if options.box is not None:
        raise UsageError("--data without --radius means the range of the data; --box is another region")
    return x.amin(0), x.amax(0)
