"""The verb `audit`: bounds from above and below, or with --monotone the question whether the output only rises or falls."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from lipverify.commands import convex, monotone
from lipverify.commands.shell import Outcome, Verb
from lipverify.errors import Refuted, Undecided, UnsupportedModel, UsageError
from lipverify.ir.certificate import Rigour
from lipverify.ir.norm import Norm
from lipverify.loading.arguments import Entries, parse_radii
from lipverify.options import (
    Analyzers,
    Free,
    Margin,
    Model,
    NormOut,
    Options,
    Scheduler,
    option,
    parse_claimed,
    parse_gate,
    parse_variance,
    parse_within,
    refuse_alone,
)

if TYPE_CHECKING:
    from torch import Tensor

    from lipverify.analyzers.protocol import Analyzer
    from lipverify.commands.regions import Box
    from lipverify.commands.start import Points, Start
    from lipverify.ir.region import Region


@dataclass(frozen=True, kw_only=True)
class AuditOptions(Options):
    """What `audit` takes.

    Raises:
        UsageError: options that mean nothing together.
    """

    model: Model
    norm: Annotated[
        str, option("norm at the input: l1, l2, linf; token-rms or token-l2, the largest over tokens")
    ] = "l2"
    within: Annotated[
        float | None, option("norms of tokens: for inputs whose tokens have at most this norm", parse_within)
    ] = None
    variance: Annotated[
        float | None,
        option(
            "norms of tokens: also what holds where all that is normalised varies by this", parse_variance
        ),
    ] = None
    norm_out: NormOut = None
    analyzers: Analyzers = ("auto",)
    radius: Annotated[
        float | Entries | None,
        option(
            "radius of the balls, for example 0.03 or 8/255; or of features: age=2,income=500", parse_radii
        ),
    ] = None
    free: Free = ()
    scheduler: Scheduler = None
    ball: Annotated[str | None, option("norm of the balls: l2 or linf; default: --norm")] = None
    margin: Margin = None
    fail_above: Annotated[
        float | None, option("exit 3 if the best bound exceeds this", parse_gate, metavar="FLOAT")
    ] = None
    claimed: Annotated[
        float | None,
        option(
            "a constant that somebody claims: exit 3 if the witness exceeds it",
            parse_claimed,
            metavar="FLOAT",
        ),
    ] = None
    junit: Annotated[Path | None, option("also write the answers as JUnit test cases")] = None
    statement: Annotated[
        Path | None, option("also write an in-toto statement about the model file", metavar="FILE")
    ] = None
    execution: Annotated[
        str | None, option("float32: also what execution can add over --box; no part of a bound")
    ] = None
    solver: Annotated[str | None, option("lipsdp-cvxpy: clarabel (default) or scs")] = None
    monotone: Annotated[
        str | None,
        option("names or positions of features, or all: does the output only rise, or only fall, with each?"),
    ] = None
    convex: Annotated[
        bool,
        option(
            "which outputs are convex or concave in the input, everywhere; what breaks it, and what refutes it"
        ),
    ] = False
    of: Annotated[int | None, option("--monotone, --convex: which entry of the output")] = None
    names: Annotated[str | None, option("--monotone: names of all features, with commas")] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "analyzers", _with_solver(self.analyzers, self.solver))
        if not self.analyzers:
            raise UsageError("give at least one analyzer")
        of_tokens = [Norm.parse(n, tokens=True).of_tokens for n in (self.norm, self.norm_out or self.norm)]
        if self.ball is not None:
            Norm.parse(self.ball)
        if not of_tokens[0]:
            refuse_alone(
                "--norm token-rms or token-l2", ("--within", self.within), ("--variance", self.variance)
            )
        if any(of_tokens) and (self.radius is not None or self.box is not None):
            raise UsageError(
                "norms of tokens are about all inputs, or those of --within: leave out --radius and --box"
            )
        if self.radius is not None and self.data is None:
            raise UsageError("--radius needs --data: the balls are around the points of a file")
        if self.radius is None:
            refuse_alone(
                "--data and --radius",
                ("--ball", self.ball),
                ("--free", self.free or None),
                ("--scheduler", self.scheduler),
            )
        if (
            isinstance(self.radius, Entries)
            and self.ball is not None
            and Norm.parse(self.ball) is not Norm.LINF
        ):
            raise UsageError("radii of single features are those of a linf ball: give --ball linf")
        if self.execution not in (None, "float32") or (self.execution is not None and self.box is None):
            raise UsageError("--execution takes float32 and needs --box LO,HI: the inputs it is about")
        if self.monotone is None:
            refuse_alone("--monotone", ("--names", self.names))
        if self.monotone is None and not self.convex:
            refuse_alone("--monotone or --convex", ("--of", self.of))
            return
        if self.convex and any(v is not None for v in (self.monotone, self.data, self.box, self.margin)):
            raise UsageError(
                "--convex is about the whole input space: give it without --monotone, --data, --box and --margin"
            )
        bounds = (
            self.norm_out,
            self.ball,
            self.fail_above,
            self.claimed,
            self.junit,
            self.statement,
            self.execution,
        )
        if any(value is not None for value in bounds) or Norm.parse(self.norm, tokens=True) is not Norm.L2:
            raise UsageError(
                "--monotone and --convex answer other questions: --norm, --norm-out, --ball, --fail-above, --claimed, --junit, "
                "--statement and --execution are about bounds; ask for those in a run without it"
            )


def _audit(options: AuditOptions, start: Start) -> Outcome:
    """Bounds and a witness, their report, certificates and what a pipeline reads; or directions.

    Raises:
        LipverifyError: as `pipeline.load` and `pipeline.audit`.
    """
    if options.convex:
        return convex.work(options, start)
    if options.monotone is not None:
        return monotone.work(options, start)
    from lipverify import pipeline
    from lipverify.analyzers import auto
    from lipverify.commands.regions import limits
    from lipverify.commands.start import load, points_of
    from lipverify.ir.region import Bounded
    from lipverify.loading.putting import put
    from lipverify.reporting import pipelines, writing

    auto.listed(options.analyzers)
    start.progress.start(f"reading {options.model}")
    graph = load(options, options.model)
    points = points_of(options, graph, start.progress)
    radius, box = limits(graph, points, options.radius, options.box, options.free)
    region, hints = _region(options, points, radius, box)
    data = None if points is None else points.to_json()
    del points  # the region has its own
    if options.within is not None:
        region = Bounded(options.within, Norm.parse(options.norm, tokens=True))
    if options.margin is not None:
        graph = pipeline.margin(graph, *options.margin)
    if options.budget is None and auto.AUTO in options.analyzers:
        start.progress.limit(auto.MINUTE)
    result = pipeline.audit(
        graph,
        norm=options.norm,
        norm_out=options.norm_out,
        region=region,
        analyzers=_with_variance(options),
        budget=options.left(),
        device=start.device,
        seed=options.seed,
        box=options.box if isinstance(options.box, tuple) else box if radius is None else None,
        hints=hints,
        report=start.progress.report,
        scheduler=options.scheduler,
    )
    result = replace(result, command=options.command)
    document = result.to_json()
    if options.fail_above is not None:
        document["limit"] = options.fail_above
    if data is not None:
        document["data"] = data
    if options.execution is not None:
        from lipverify.execution import statement

        inside = options.uniform_box("--execution")
        assert inside is not None, "checked with the options"
        document["execution"] = statement(graph, inside)

    def beside() -> None:
        if options.junit is not None:
            put(options.junit, pipelines.junit(document, options.fail_above))
        if options.statement is not None:
            made = pipelines.statement(document, result.certificate_files())
            put(options.statement, pipelines.as_json(made))

    files = writing.audit_files(result, document) if start.folder is not None else {}
    code = pipeline.exit_code(result)
    failure = _gate(document["best"], options.fail_above) if code == 0 else None
    if options.claimed is not None:
        # A pair refutes a claim whether or not any analyzer bounds the network.
        refutation = _claimed(document, options.claimed, start.folder is not None)
        if code in (0, UnsupportedModel.exit_code, Undecided.exit_code):
            failure = failure or refutation
    return Outcome(document, result.show, result.page, files, code, failure, beside)


AUDIT = Verb(AuditOptions, _audit, "Bound a model's Lipschitz constant from above and from below.")


def _region(
    options: AuditOptions, points: Points | None, radius: float | None, box: Box | None
) -> tuple[Region, Tensor | None]:
    """The region of the question, and points as hints for the search where the region is everywhere."""
    from lipverify.ir.region import Ball, Everywhere

    if points is None:
        return Everywhere(), None
    if radius is None:
        return Everywhere(), points.x
    return Ball(
        points.x,
        radius,
        Norm.parse(options.ball or ("linf" if isinstance(options.radius, Entries) else options.norm)),
        box,
    ), None


def _with_variance(options: AuditOptions) -> Sequence[str | Analyzer]:
    """The analyzers asked for; `tokens` has the variance of `--variance`, and is what `auto` runs in norms of tokens."""
    if options.variance is None:
        return options.analyzers
    from lipverify.analyzers.tokens import Tokens

    return [Tokens(options.variance) if name in ("auto", "tokens") else name for name in options.analyzers]


def _with_solver(names: tuple[str, ...], solver: str | None) -> tuple[str, ...]:
    """The analyzers, `lipsdp-cvxpy` with the solver that is wanted."""
    if solver is None:
        return names
    if solver.lower() not in ("clarabel", "scs") or "lipsdp-cvxpy" not in names:
        raise UsageError("--solver takes clarabel or scs, and is for the analyzer lipsdp-cvxpy")
    chosen = "lipsdp-cvxpy:scs" if solver.lower() == "scs" else "lipsdp-cvxpy"
    return tuple(chosen if name == "lipsdp-cvxpy" else name for name in names)


def _claimed(document: dict[str, Any], claimed: float, stored: bool) -> Refuted | None:
    """What bounds and witness say of a claimed constant, in the document; a refutation where the witness exceeds it.

    A solver's status proves nothing: bounds that rest on it leave the question open.
    """
    found = document["lower"]["value"]
    lower = max(v for v in found if v is not None) if isinstance(found, list) else found
    sound = {str(Rigour.REAL), str(Rigour.CHECKED)}
    uppers = [row.get("upper") for row in document["results"] if row.get("rigour") in sound]
    proved = any(u is not None and (max(u) if isinstance(u, list) else u) <= claimed for u in uppers)
    refuted = lower is not None and lower > claimed
    verdict = "refuted" if refuted else "proved" if proved else "open"
    document["claimed"] = {"constant": claimed, "verdict": verdict}
    if not refuted:
        return None
    pair = "the stored pair (witness.npz)" if stored else "a pair of inputs (--out stores it)"
    return Refuted(f"the claimed constant {claimed:g} is wrong: {pair} has a slope of at least {lower:.7g}")


def _gate(best: dict[str, Any], limit: float | None) -> Refuted | None:
    """The gate of `--fail-above`: anything but a bound at or below the limit fails."""
    from lipverify.reporting.pipelines import worst

    if limit is None or worst(best) <= limit:
        return None
    return Refuted(f"the best bound {best.get('upper', 'beyond float64')} exceeds the limit {limit}")
