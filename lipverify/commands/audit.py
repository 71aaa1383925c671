"""The verb `audit`: bounds from above and below, or the question whether the output is monotone."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lipverify.commands.options import (
    Analyzers,
    Arch,
    Budget,
    Constants,
    Device,
    Force,
    Input,
    InputBox,
    InputShape,
    Json,
    Limit,
    Margin,
    Model,
    NormOut,
    Output,
    Trust,
    parsed,
    print_json,
    refuse_alone,
    say_report,
    words,
)
from lipverify.errors import Refuted, Undecided, UsageError
from lipverify.ir.norm import Norm
from lipverify.loading.arguments import parse_radius

if TYPE_CHECKING:
    from lipverify.monotonicity.results import Monotonicity


def audit(
    model: Model,
    norm: Annotated[str, typer.Option(help="norm at the input: l1, l2 or linf")] = "l2",
    norm_out: NormOut = None,
    analyzers: Analyzers = "product",
    data: Annotated[Path | None, typer.Option(help=".npz with x (and y): centres of a local region")] = None,
    radius: Annotated[str | None, typer.Option(help="radius of the balls, for example 0.03 or 8/255")] = None,
    ball: Annotated[str | None, typer.Option(help="norm of the balls: l2 or linf; default: --norm")] = None,
    limit: Limit = None,
    box: InputBox = None,
    output: Output = "0",
    input: Input = None,
    constant: Constants = None,
    margin: Margin = None,
    budget: Budget = None,
    device: Device = "auto",
    seed: Annotated[int, typer.Option(help="seed of the search for the lower bound")] = 0,
    out: Annotated[
        Path | None, typer.Option(help="folder for result.json, report.html and certificates")
    ] = None,
    force: Force = False,
    fail_above: Annotated[float | None, typer.Option(help="exit 3 if the best bound exceeds this")] = None,
    junit: Annotated[Path | None, typer.Option(help="also write the answers as JUnit test cases")] = None,
    statement_file: Annotated[
        Path | None,
        typer.Option(
            "--statement", metavar="FILE", help="also write an in-toto statement about the model file"
        ),
    ] = None,
    execution: Annotated[
        str | None, typer.Option(help="float32: also what execution can add over --box; no part of a bound")
    ] = None,
    solver: Annotated[str | None, typer.Option(help="lipsdp-cvxpy: clarabel (default) or scs")] = None,
    monotone: Annotated[
        str | None,
        typer.Option(
            help="names or positions of features, or all: does the output only rise, or only fall, with each?"
        ),
    ] = None,
    of: Annotated[int | None, typer.Option(help="--monotone: which entry of the output")] = None,
    feature_names: Annotated[
        str | None, typer.Option("--names", help="--monotone: names of all features, with commas")
    ] = None,
    arch: Arch = None,
    trust_code: Trust = False,
    input_shape: InputShape = None,
    as_json: Json = False,
) -> None:
    """Bound a model's Lipschitz constant from above and from below."""
    common = parsed(locals())
    names = _with_solver(words(analyzers), solver)
    if not names:
        raise UsageError("give at least one analyzer")
    wanted_radius = None if radius is None else parse_radius(radius)
    Norm.parse(norm), Norm.parse(norm_out or norm), Norm.parse(ball or norm)
    if wanted_radius is not None and data is None:
        raise UsageError("--radius needs --data: the balls are around the points of a file")
    if wanted_radius is None:
        refuse_alone("--data and --radius", ("--ball", ball))
    if data is None:
        refuse_alone("--data", ("--limit", limit))
    if fail_above is not None and not fail_above >= 0:
        raise UsageError(f"--fail-above takes a limit of at least 0, not {fail_above}")
    if execution not in (None, "float32") or (execution is not None and box is None):
        raise UsageError("--execution takes float32 and needs --box LO,HI: the inputs it is about")
    if monotone is not None:
        if any(value is not None for value in (norm_out, ball, fail_above, junit, statement_file, execution)):
            raise UsageError(
                "--monotone answers another question: --norm-out, --ball, --fail-above, --junit, --statement and --execution "
                "are about bounds; ask for those in a run without it"
            )
        from lipverify.monotonicity import command

        question = command.Options(
            **common, model=model, features=monotone, names=feature_names, of=of, radius=wanted_radius
        )
        raise typer.Exit(_monotone(command.run_monotone(question), as_json))

    refuse_alone("--monotone", ("--of", of), ("--names", feature_names))
    from lipverify import pipeline
    from lipverify.auditing import Options, run_audit
    from lipverify.reporting import pipelines, terminal

    options = Options(
        **common,
        model=model,
        norm=norm,
        norm_out=norm_out,
        analyzers=names,
        radius=wanted_radius,
        ball=ball,
        execution=execution,
    )
    result, document = run_audit(options)
    if junit is not None:
        pipelines.write_text(junit, pipelines.junit(document, fail_above))
    if statement_file is not None:
        made = pipelines.statement(document, result.certificate_files())
        pipelines.write_text(statement_file, pipelines.as_json(made))
    if as_json:
        print_json(document)
    else:
        terminal.print_audit(document)
        say_report(out)
    code = pipeline.exit_code(result)
    if code == 0 and fail_above is not None:
        _gate(document["best"], fail_above)
    raise typer.Exit(code)


def _monotone(found: Monotonicity, as_json: bool) -> int:
    """Prints the findings; the exit code."""
    if as_json:
        print_json(found.to_json())
    else:
        from lipverify.reporting.monotone import print_monotone

        print_monotone(found.to_json())
    return 0 if found.decided else Undecided.exit_code


def _with_solver(names: tuple[str, ...], solver: str | None) -> tuple[str, ...]:
    """The analyzers, `lipsdp-cvxpy` with the solver that is wanted."""
    if solver is None:
        return names
    if solver.lower() not in ("clarabel", "scs") or "lipsdp-cvxpy" not in names:
        raise UsageError("--solver takes clarabel or scs, and is for the analyzer lipsdp-cvxpy")
    chosen = "lipsdp-cvxpy:scs" if solver.lower() == "scs" else "lipsdp-cvxpy"
    return tuple(chosen if name == "lipsdp-cvxpy" else name for name in names)


def _gate(best: dict[str, Any], limit: float) -> None:
    """The gate of `--fail-above`: anything but a bound at or below the limit fails."""
    from lipverify.reporting.pipelines import worst

    if not worst(best) <= limit:
        raise Refuted(f"the best bound {best.get('upper', 'beyond float64')} exceeds the limit {limit}")
