"""The verb `compare`: several models in one report, over analyzers or over certified radii."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from lipverify.commands.shell import Outcome, Verb
from lipverify.errors import LipverifyError, UsageError
from lipverify.ir.norm import Norm
from lipverify.loading.arguments import parse_radius
from lipverify.loading.names import display
from lipverify.options import (
    Analyzers,
    Jobs,
    Margin,
    Models,
    NormOut,
    Options,
    Resume,
    Scheduler,
    option,
    refuse_alone,
    words,
)

if TYPE_CHECKING:
    from torch import Tensor

    from lipverify.commands.start import Points, Start
    from lipverify.comparison.cache import Cache
    from lipverify.comparison.results import Unreadable
    from lipverify.ir.graph import Graph
    from lipverify.ir.region import Region

CACHE = "cache"
"""The folder inside --out where answers are kept unless --cache names another one."""
NO_CURVES = "none"
"""The word that leaves out certified accuracy."""


def _radii(text: str) -> tuple[float, ...]:
    return tuple(parse_radius(part) for part in text.split(","))


@dataclass(frozen=True, kw_only=True)
class CompareOptions(Options):
    """What `compare` takes.

    Raises:
        UsageError: options that mean nothing together.
    """

    models: Models
    norm: Annotated[
        tuple[str, ...], option("norms at the input, with commas: l1, l2, linf", words, shown="l2")
    ] = ("l2",)
    norm_out: NormOut = None
    analyzers: Analyzers = ("auto",)
    radius: Annotated[
        tuple[float, ...] | None, option("radii of the balls, with commas: 0.03,8/255", _radii)
    ] = None
    everywhere: Annotated[bool, option("besides the balls, the whole space")] = False
    ball: Annotated[str | None, option("norm of the balls: l2 or linf; default: the first --norm")] = None
    curves: Annotated[str, option("certified accuracy on --data by this method of `radius`, or none")] = (
        "crown"
    )
    certified: Annotated[
        str | None,
        option(
            "compare certified radii on --data instead of bounds, by this method of `radius`",
            names=("--radii",),
        ),
    ] = None
    deviate: Annotated[
        bool, option("the others are copies of the first model: how far each deviates, on --box or the balls")
    ] = False
    margin: Margin = None
    jobs: Jobs = 1
    scheduler: Scheduler = None
    cache: Annotated[Path | None, option("where answers are kept; default: inside --out")] = None
    resume: Resume = False

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in (*self.norm, *words(self.norm_out or ""), *words(self.ball or "")):
            Norm.parse(name)
        if self.radius is None:
            refuse_alone("--data and --radius", ("--ball", self.ball), ("--everywhere", self.everywhere))
        elif self.data is None:
            raise UsageError("--radius needs --data: the balls are around the points of a file")
        if self.deviate and self.certified is not None:
            raise UsageError("--deviate goes with bounds, not with --radii")


def _compare(options: CompareOptions, start: Start) -> Outcome:
    """Compares bounds, or radii.

    Raises:
        UsageError: options that make no sense, data that cannot be read, an unfinished run that is not meant to be continued.
    """
    if options.certified is not None:
        from lipverify.commands.compare_radii import work

        return work(options, start)
    from lipverify.commands.start import points_of
    from lipverify.comparison.cache import Cache
    from lipverify.comparison.results import WITNESSES, Unreadable
    from lipverify.comparison.run import compare

    folder, progress = start.folder, start.progress
    place = options.cache or (None if folder is None else folder.path / CACHE)
    cache = None if place is None else Cache(place)
    models = {}
    for name, model in short_names(options.models).items():
        progress.start(f"reading {model}")
        models[name] = _read(model, options)
    whole = next((model for model in models.values() if not isinstance(model, Unreadable)), None)
    points = points_of(options, whole, progress)
    regions = _regions(options, None if points is None else points.x)
    if folder is not None:
        folder.keep()
    apart: dict[str, Any] | None = None
    proofs: dict[str, bytes] = {}
    if options.deviate:
        from lipverify.commands.compare_copies import deviations

        apart, proofs = deviations(options, start, models, points)
    curves: tuple[dict[str, Any], ...] = ()
    if points is not None and options.curves != NO_CURVES:
        progress.start("certifying points")
        curves = _curves(options, models, points, cache)
    progress.start("comparing")
    found = compare(
        models,
        analyzers=options.analyzers,
        norm=options.norm,
        norm_out=options.norm_out,
        region=regions,
        budget=options.budget,
        device=start.device,
        seed=options.seed,
        box=options.uniform_box("compare"),
        hints=None if options.radius or points is None else points.x,
        jobs=options.jobs,
        scheduler=options.scheduler,
        cache=cache,
        advance=progress.update,
        since=options.began,
    )
    found = replace(found, curves=curves, command=options.command, deviations=apart, proofs=proofs)
    document = found.to_json()
    files = {}
    if folder is not None:
        files = {**found.certificate_files(), WITNESSES: found.witness_file()}
    return Outcome(document, found.show, found.page, files, found.exit_code())


def _unfinished(options: CompareOptions) -> str:
    from lipverify.commands.compare_radii import JOURNALS

    return CACHE if options.certified is None else JOURNALS


COMPARE = Verb(CompareOptions, _compare, "Compare models and analyzers in one report.", _unfinished)


def _curves(
    options: CompareOptions,
    models: Mapping[str, Graph | Unreadable],
    points: Points,
    cache: Cache | None,
) -> tuple[dict[str, Any], ...]:
    from lipverify.comparison.curves import accuracy_curve
    from lipverify.comparison.results import Unreadable
    from lipverify.robustness import Plan

    graphs = {name: model for name, model in models.items() if not isinstance(model, Unreadable)}
    norms = [norm for norm in map(Norm.parse, options.norm) if norm is not Norm.L1]
    # At most half of the time; what they leave is for the bounds.
    seconds = None if options.budget is None else options.budget / 2 / max(len(graphs) * len(norms), 1)
    hints = {name: points.hint(graph) for name, graph in graphs.items()}
    return tuple(
        accuracy_curve(
            name,
            graph,
            points.x,
            points.y,
            Plan(norm, options.curves, options.uniform_box("compare"), attack=None, seed=options.seed),
            budget=seconds,
            jobs=options.jobs,
            scheduler=options.scheduler,
            cache=cache,
        )
        if (hint := hints[name]) is None
        else {"model": name, "norm": str(norm), "method": options.curves, "refused": hint}
        for norm in norms
        for name, graph in graphs.items()
    )


def load(model: str, options: CompareOptions) -> Graph:
    """One model, or one difference of its outputs."""
    from lipverify import pipeline
    from lipverify.commands import start

    graph = start.load(options, model)
    return graph if options.margin is None else pipeline.margin(graph, *options.margin)


def _read(model: str, options: CompareOptions) -> Graph | Unreadable:
    """One model; what cannot be read is a row of the report, not the end of the run."""
    from lipverify.comparison.results import Unreadable

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


def _regions(options: CompareOptions, data: Tensor | None) -> list[Region]:
    from lipverify.ir.region import Ball, Everywhere

    if not options.radius:
        return [Everywhere()]
    found: list[Region] = [Everywhere()] if options.everywhere else []
    assert data is not None
    ball = options.ball or options.norm[0]
    return [
        *found,
        *(Ball(data, radius, Norm.parse(ball), options.uniform_box("compare")) for radius in options.radius),
    ]
