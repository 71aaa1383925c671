"""The verb `radius`: certified radii of points, with a journal that a later run goes on from."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from lipverify.commands.shell import Outcome, Verb
from lipverify.ir.norm import Norm
from lipverify.options import Jobs, Model, Options, Resume, Scheduler, option

if TYPE_CHECKING:
    from lipverify.commands.start import Points, Start
    from lipverify.ir.graph import Graph
    from lipverify.robustness.journal import Journal
    from lipverify.robustness.plan import Plan
    from lipverify.robustness.smoothing.settings import Smoothing

JOURNAL = "journal.jsonl"


@dataclass(frozen=True, kw_only=True)
class RadiusOptions(Options):
    """What `radius` takes."""

    model: Model
    data: Annotated[Path, option("the points and labels: .npz, .npy, .csv, .pt, or a folder of images")] = (
        field()
    )
    norm: Annotated[str, option("norm of the perturbation: l2 or linf")] = "linf"
    method: Annotated[
        str, option("auto, global, local, crown, alpha-crown, branching, lirpa or smoothing")
    ] = "auto"
    looks: Annotated[int, option("balls to look at for each point", least=1)] = 16
    attack: Annotated[bool, option("also search for adversarial examples")] = True
    sigma: Annotated[float, option("smoothing: standard deviation of the noise")] = 0.25
    samples: Annotated[int, option("smoothing: samples of estimation", least=2)] = 10_000
    alpha: Annotated[float, option("smoothing: probability of a wrong radius, for each point")] = 0.001
    simplex: Annotated[str, option("smoothing: hardmax, softmax or sparsemax")] = "hardmax"
    temperatures: Annotated[str, option("smoothing: factors of the logits to choose from")] = "1"
    seconds_per_point: Annotated[
        float | None,
        option("time for each point at most; radii grow with it, also from run to run with --resume"),
    ] = None
    jobs: Jobs = 1
    scheduler: Scheduler = None
    resume: Resume = False
    seed: Annotated[int, option("seed of attacks and noise", least=0)] = 0


def _smoothing(options: RadiusOptions) -> Smoothing:
    from lipverify.robustness.smoothing.settings import Smoothing, parse_temperatures

    return Smoothing(
        options.sigma,
        options.samples,
        max(100, options.samples // 100),
        options.alpha,
        "clopper-pearson" if options.simplex == "hardmax" else "bernstein",
        options.simplex,
        parse_temperatures(options.temperatures),
    )


def _radius(options: RadiusOptions, start: Start) -> Outcome:
    """Certifies the points.

    Raises:
        LipverifyError: as `radii`; UsageError also for a journal that is there and not meant to be continued.
    """
    from lipverify.commands.start import load, points_of
    from lipverify.robustness.attack import Attack
    from lipverify.robustness.plan import Plan
    from lipverify.robustness.run import radii

    plan = Plan(
        Norm.parse(options.norm),
        options.method,
        options.uniform_box("radius"),
        options.looks,
        attack=Attack() if options.attack else None,
        smoothing=_smoothing(options),
        seed=options.seed,
        seconds=options.seconds_per_point,
    )
    start.progress.start(f"reading {options.model}")
    graph = load(options, options.model)
    points = points_of(options, graph, start.progress)
    assert points is not None, "--data is required"
    points.require_labels(graph)
    with ExitStack() as stack:
        journal = None
        if start.folder is not None:
            place = start.folder.path / JOURNAL
            journal = stack.enter_context(journal_of(options, graph, points, plan, place, options.resume))
            start.folder.keep()
        start.progress.start("certifying points")
        found = radii(
            graph,
            points.x,
            points.y,
            plan=plan,
            budget=options.left(),
            device=start.device,
            seed=options.seed,
            jobs=options.jobs,
            scheduler=options.scheduler,
            journal=journal,
            report=start.progress.report,
            advance=start.progress.update,
        )
    found = replace(found, command=options.command, inputs=points.x)
    document = found.to_json() | {"data": points.to_json()}
    return Outcome(
        document, found.show, found.page, found.certificate_files() | found.example_files(), found.exit_code()
    )


RADIUS = Verb(
    RadiusOptions,
    _radius,
    "Certify for each point how far its input may move before the label can change.",
    lambda options: JOURNAL,
)


def journal_of(
    options: Options, graph: Graph, points: Points, plan: Plan, path: Path, resume: bool
) -> Journal:
    """The journal of a run of these options, on these points and with this network."""
    from lipverify.robustness.journal import Journal

    question = {
        "graph": graph.digest,
        "data": points.stored.identity,
        "points": len(points.x),
        "plan": {key: value for key, value in plan.to_json().items() if key != "seconds"},
    }
    return Journal(path, question, resume)
