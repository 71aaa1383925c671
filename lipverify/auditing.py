"""The command `audit`: from options to a result, its document and its folder."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from lipverify import pipeline
from lipverify.analyzers import registry
from lipverify.ir.graph import Graph
from lipverify.ir.norm import Norm
from lipverify.ir.region import Ball, Everywhere, Region
from lipverify.results import Audit
from lipverify.start import Common, begun


@dataclass(frozen=True, kw_only=True)
class Options(Common):
    """The options of the command line, parsed."""

    model: str
    norm: str
    norm_out: str | None
    analyzers: tuple[str, ...]
    radius: float | None
    ball: str | None
    execution: str | None


def run_audit(options: Options) -> tuple[Audit, dict[str, Any]]:
    """Runs the command and writes its folder; the result, and the document of `audit --json`.

    Raises:
        LipverifyError: as `pipeline.load` and `pipeline.audit`.
    """
    methods = [registry.resolve(name) for name in options.analyzers]
    with begun(options) as start:
        start.progress.start(f"reading {options.model}")
        graph = options.load(options.model)
        region, hints = _region(options, graph)
        if options.margin is not None:
            graph = pipeline.margin(graph, *options.margin)
        result = pipeline.audit(
            graph,
            norm=options.norm,
            norm_out=options.norm_out,
            region=region,
            analyzers=methods,
            budget=options.budget,
            device=start.device,
            seed=options.seed,
            box=options.box,
            hints=hints,
            report=start.progress.report,
        )
        start.progress.finish()
        result = replace(result, command=options.command)
        document = result.to_json()
        if options.box is not None and options.execution is not None:
            from lipverify.execution import statement

            document["execution"] = statement(graph, options.box)
        if start.folder is not None:
            start.folder.write_audit(result, document)
    return result, document


def _region(options: Options, graph: Graph) -> tuple[Region, Tensor | None]:
    """The region of the question, and points as hints for the search where the region is everywhere."""
    points = options.points()
    if points is None:
        return Everywhere(), None
    points.require(graph)
    if options.radius is None:
        return Everywhere(), points.x
    return Ball(points.x, options.radius, Norm.parse(options.ball or options.norm), options.box), None
