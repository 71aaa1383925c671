"""The command line: arguments to verbs, errors to exit codes. Nothing heavy is imported before a command runs."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from lipverify.errors import LipverifyError, Refuted, Undecided, UsageError
from lipverify.ir.norm import Norm
from lipverify.loading.arguments import parse_box, parse_duration, parse_margin, parse_radius

app = typer.Typer(
    name="lipverify",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Certified Lipschitz bounds for trained networks, with a witness beside every bound.",
)
zoo_app = typer.Typer(no_args_is_help=True, help="Networks that come with lipverify.")
app.add_typer(zoo_app, name="zoo")

Model = Annotated[str, typer.Argument(help="an ONNX file, zoo:<name>, or weights together with --arch")]
Json = Annotated[bool, typer.Option("--json", help="exactly one JSON document on standard output")]
Arch = Annotated[str | None, typer.Option(help="FILE.py:callable that builds the module for bare weights")]
Trust = Annotated[bool, typer.Option("--trust-code", help="allow --arch to run that file")]
InputShape = Annotated[str | None, typer.Option(help="shape of one sample, for example 3,32,32")]
Output = Annotated[int, typer.Option(help="which output of the model")]


@app.command()
def inspect(
    model: Model,
    output: Output = 0,
    arch: Arch = None,
    trust_code: Trust = False,
    input_shape: InputShape = None,
    as_json: Json = False,
) -> None:
    """Show a model's layer graph and which analyzers can answer for it."""
    from lipverify import pipeline
    from lipverify.documents import inspect_document

    shape = _shape(input_shape)
    graph = pipeline.load(model, arch=arch, trust_code=trust_code, input_shape=shape, output=output)
    document = inspect_document(graph)
    if as_json:
        _print_json(document)
        return
    from lipverify.reporting.terminal import print_inspection

    print_inspection(document)


@app.command()
def audit(
    model: Model,
    norm: Annotated[str, typer.Option(help="norm at the input: l1, l2 or linf")] = "l2",
    norm_out: Annotated[str | None, typer.Option(help="norm at the output; default: the same")] = None,
    analyzers: Annotated[
        str, typer.Option(help="comma-separated names, see `lipverify analyzers`")
    ] = "product",
    data: Annotated[Path | None, typer.Option(help=".npz with x (and y): centres of a local region")] = None,
    radius: Annotated[str | None, typer.Option(help="radius of the balls, for example 0.03 or 8/255")] = None,
    ball: Annotated[str | None, typer.Option(help="norm of the balls: l2 or linf; default: --norm")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="use only the first N points")] = None,
    box: Annotated[str | None, typer.Option(help="LO,HI: the input box")] = None,
    output: Output = 0,
    margin: Annotated[str | None, typer.Option(help="A,B: bound the difference of two outputs")] = None,
    budget: Annotated[str | None, typer.Option(help="time for everything, for example 90s or 10m")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda")] = "auto",
    seed: Annotated[int, typer.Option(help="seed of the search for the lower bound")] = 0,
    out: Annotated[
        Path | None, typer.Option(help="folder for result.json, report.html and certificates")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="write into a folder that is not empty")] = False,
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
    names = _words(analyzers)
    if not names:
        raise UsageError("give at least one analyzer")
    wanted_margin = None if margin is None else parse_margin(margin)
    wanted_box = None if box is None else parse_box(box)
    wanted_budget = None if budget is None else parse_duration(budget)
    wanted_radius = None if radius is None else parse_radius(radius)
    shape = _shape(input_shape)
    Norm.parse(norm), Norm.parse(norm_out or norm), Norm.parse(ball or norm)
    if wanted_radius is not None and data is None:
        raise UsageError("--radius needs --data: the balls are around the points of a file")
    if execution not in (None, "float32") or (execution is not None and wanted_box is None):
        raise UsageError("--execution takes float32 and needs --box LO,HI: the inputs it is about")
    if monotone is not None:
        from lipverify.errors import Undecided
        from lipverify.monotonicity.command import Options, run_monotone

        found = run_monotone(
            Options(
                model=model,
                features=monotone,
                names=feature_names,
                of=of,
                data=data,
                radius=wanted_radius,
                box=wanted_box,
                limit=limit,
                output=output,
                margin=wanted_margin,
                budget=wanted_budget,
                device=device,
                seed=seed,
                out=out,
                force=force,
                arch=arch,
                trust_code=trust_code,
                input_shape=shape,
                quiet=as_json,
                command=shlex.join(["lipverify", *sys.argv[1:]]),
            )
        )
        if as_json:
            _print_json(found.to_json())
        else:
            from lipverify.reporting.monotone import print_monotone

            print_monotone(found.to_json())
        raise typer.Exit(0 if found.decided else Undecided.exit_code)

    from contextlib import ExitStack
    from dataclasses import replace

    from lipverify import pipeline
    from lipverify.analyzers import registry
    from lipverify.reporting import pipelines, terminal
    from lipverify.reporting.writing import OutputFolder
    from lipverify.selection import choose_device, choose_region

    methods = [registry.resolve(name) for name in names]
    where = choose_device(device)
    with ExitStack() as stack:
        folder = None if out is None else stack.enter_context(OutputFolder(out, force=force))
        progress = stack.enter_context(terminal.Progress(quiet=as_json))
        progress.start(f"reading {model}")
        graph = pipeline.load(model, arch=arch, trust_code=trust_code, input_shape=shape, output=output)
        region, hints = choose_region(graph, data, wanted_radius, ball or norm, wanted_box, limit)
        if wanted_margin is not None:
            graph = pipeline.margin(graph, *wanted_margin)
        result = pipeline.audit(
            graph,
            norm=norm,
            norm_out=norm_out,
            region=region,
            analyzers=methods,
            budget=wanted_budget,
            device=where,
            seed=seed,
            box=wanted_box,
            hints=hints,
            report=progress.report,
        )
        progress.finish()
        result = replace(result, command=shlex.join(["lipverify", *sys.argv[1:]]))
        document = result.to_json()
        if wanted_box is not None and execution is not None:
            from lipverify.execution import statement

            document["execution"] = statement(graph, wanted_box)
        if folder is not None:
            folder.write_audit(result, document)
    if junit is not None:
        pipelines.write_text(junit, pipelines.junit(document, fail_above))
    if statement_file is not None:
        made = pipelines.statement(document, result.certificate_files())
        pipelines.write_text(statement_file, pipelines.as_json(made))
    if as_json:
        _print_json(document)
    else:
        terminal.print_audit(document)
        if folder is not None:
            typer.echo(f"report: {folder.path / 'report.html'}", err=True)
    code = pipeline.exit_code(result)
    if code == 0 and fail_above is not None:
        _gate(document["best"], fail_above)
    raise typer.Exit(code)


@app.command()
def verify(
    certificate: Annotated[
        Path, typer.Argument(help="certificate.json of an audit; its arrays lie beside it")
    ],
    model: Annotated[str, typer.Option(help="the model file, or zoo:<name>")],
    exact: Annotated[bool, typer.Option("--exact", help="integers alone, for networks small enough")] = False,
    as_json: Json = False,
) -> None:
    """Prove a certificate again: numpy alone, no torch, no solver, nothing of the analyzers."""
    from lipverify import checkers
    from lipverify.errors import UnreadableCertificate
    from lipverify.zoo.location import WEIGHTS, resolve

    folder = resolve(model)
    try:
        verdict = checkers.verify_file(
            certificate, Path(model) if folder is None else folder / WEIGHTS, exact
        )
    except (Refuted, UnreadableCertificate) as error:
        if as_json:
            _print_json({"schema": "lipverify.verify/1", "valid": False, "reason": str(error)})
        raise
    if as_json:
        _print_json(verdict.to_json())
    else:
        typer.echo(f"valid: {verdict.claim} ({verdict.seconds:.2f} s)")


@app.command()
def radius(
    model: Model,
    data: Annotated[Path, typer.Option(help=".npz with x and y: the points")],
    norm: Annotated[str, typer.Option(help="norm of the perturbation: l2 or linf")] = "linf",
    method: Annotated[
        str, typer.Option(help="auto, global, local, crown, alpha-crown, branching or smoothing")
    ] = "auto",
    limit: Annotated[int | None, typer.Option(min=1, help="use only the first N points")] = None,
    box: Annotated[str | None, typer.Option(help="LO,HI: inputs stay in this box")] = None,
    budget: Annotated[str | None, typer.Option(help="time for everything, for example 90s or 10m")] = None,
    looks: Annotated[int, typer.Option(min=1, help="balls to look at for each point")] = 16,
    attack: Annotated[bool, typer.Option(help="also search for adversarial examples")] = True,
    sigma: Annotated[float, typer.Option(help="smoothing: standard deviation of the noise")] = 0.25,
    samples: Annotated[int, typer.Option(min=2, help="smoothing: samples of estimation")] = 10_000,
    alpha: Annotated[
        float, typer.Option(help="smoothing: probability of a wrong radius, for each point")
    ] = 0.001,
    simplex: Annotated[str, typer.Option(help="smoothing: hardmax, softmax or sparsemax")] = "hardmax",
    temperatures: Annotated[str, typer.Option(help="smoothing: factors of the logits to choose from")] = "1",
    jobs: Annotated[int, typer.Option(min=1, help="processes")] = 1,
    scheduler: Annotated[
        str | None, typer.Option(help="address of a Dask scheduler whose workers take the points")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="go on with the run in --out")] = False,
    output: Output = 0,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda")] = "auto",
    seed: Annotated[int, typer.Option(min=0, help="seed of attacks and noise")] = 0,
    out: Annotated[
        Path | None, typer.Option(help="folder for result.json, report.html and the journal")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="write into a folder that is not empty")] = False,
    arch: Arch = None,
    trust_code: Trust = False,
    input_shape: InputShape = None,
    as_json: Json = False,
) -> None:
    """Certify for each point how far its input may move before the label can change."""
    wanted_box = None if box is None else parse_box(box)
    wanted_budget = None if budget is None else parse_duration(budget)
    shape = _shape(input_shape)
    if resume and out is None:
        raise UsageError("--resume needs --out: the folder of the run to go on with")
    from lipverify.robustness.command import Options, run_radius
    from lipverify.robustness.smoothing.settings import Smoothing, parse_temperatures

    bound = "clopper-pearson" if simplex == "hardmax" else "bernstein"
    smoothing = Smoothing(
        sigma, samples, max(100, samples // 100), alpha, bound, simplex, parse_temperatures(temperatures)
    )
    document = run_radius(
        Options(
            model=model,
            data=data,
            norm=norm,
            method=method,
            limit=limit,
            box=wanted_box,
            budget=wanted_budget,
            looks=looks,
            attack=attack,
            smoothing=smoothing,
            jobs=jobs,
            scheduler=scheduler,
            resume=resume,
            output=output,
            device=device,
            seed=seed,
            out=out,
            force=force,
            arch=arch,
            trust_code=trust_code,
            input_shape=shape,
            quiet=as_json,
            command=shlex.join(["lipverify", *sys.argv[1:]]),
        )
    )
    if as_json:
        _print_json(document)
        return
    from lipverify.reporting.radii import print_radii

    print_radii(document)
    if out is not None:
        typer.echo(f"report: {out / 'report.html'}", err=True)


@app.command()
def compare(
    models: Annotated[
        list[str], typer.Argument(help="ONNX files, zoo:<name>, or weights together with --arch")
    ],
    out: Annotated[
        Path | None, typer.Option(help="folder for result.json, report.html, certificates and the cache")
    ] = None,
    norm: Annotated[str, typer.Option(help="norms at the input, with commas: l1, l2, linf")] = "l2",
    norm_out: Annotated[str | None, typer.Option(help="norm at the output; default: the same")] = None,
    analyzers: Annotated[
        str, typer.Option(help="comma-separated names, see `lipverify analyzers`")
    ] = "product",
    data: Annotated[Path | None, typer.Option(help=".npz with x (and y): centres of local regions")] = None,
    radius: Annotated[str | None, typer.Option(help="radii of the balls, with commas: 0.03,8/255")] = None,
    everywhere: Annotated[
        bool, typer.Option("--everywhere", help="besides the balls, the whole space")
    ] = False,
    ball: Annotated[
        str | None, typer.Option(help="norm of the balls: l2 or linf; default: the first --norm")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="use only the first N points")] = None,
    curves: Annotated[
        str, typer.Option(help="certified accuracy on --data by this method of `radius`, or none")
    ] = "crown",
    box: Annotated[str | None, typer.Option(help="LO,HI: the input box")] = None,
    output: Output = 0,
    margin: Annotated[str | None, typer.Option(help="A,B: bound the difference of two outputs")] = None,
    budget: Annotated[str | None, typer.Option(help="time for everything, for example 90s or 10m")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda")] = "auto",
    seed: Annotated[int, typer.Option(help="seed of the search for lower bounds")] = 0,
    jobs: Annotated[int, typer.Option(min=1, help="processes")] = 1,
    cache: Annotated[Path | None, typer.Option(help="where answers are kept; default: inside --out")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="go on with the run in --out")] = False,
    force: Annotated[bool, typer.Option("--force", help="write into a folder that is not empty")] = False,
    arch: Arch = None,
    trust_code: Trust = False,
    input_shape: InputShape = None,
    as_json: Json = False,
) -> None:
    """Compare models and analyzers in one report."""
    wanted_margin = None if margin is None else parse_margin(margin)
    wanted_box = None if box is None else parse_box(box)
    wanted_budget = None if budget is None else parse_duration(budget)
    radii = () if radius is None else tuple(parse_radius(part) for part in radius.split(","))
    if resume and out is None:
        raise UsageError("--resume needs --out: the folder of the run to go on with")
    from lipverify.comparison.command import Options, run_compare

    found = run_compare(
        Options(
            models=tuple(models),
            analyzers=_words(analyzers),
            norms=_words(norm),
            norm_out=norm_out,
            data=data,
            radii=radii,
            everywhere=everywhere,
            ball=ball,
            limit=limit,
            curves=curves,
            box=wanted_box,
            output=output,
            margin=wanted_margin,
            budget=wanted_budget,
            device=device,
            seed=seed,
            jobs=jobs,
            cache=cache,
            resume=resume,
            out=out,
            force=force,
            arch=arch,
            trust_code=trust_code,
            input_shape=_shape(input_shape),
            quiet=as_json,
            command=shlex.join(["lipverify", *sys.argv[1:]]),
        )
    )
    document = found.to_json()
    if as_json:
        _print_json(document)
    else:
        from lipverify.reporting.comparison import print_comparison

        print_comparison(document)
        if out is not None:
            typer.echo(f"report: {out / 'report.html'}", err=True)
    raise typer.Exit(found.exit_code())


@app.command(name="analyzers")
def list_analyzers(as_json: Json = False) -> None:
    """List the analyzers that are installed, with what they state."""
    from lipverify.analyzers import registry
    from lipverify.analyzers.protocol import docstring_field

    rows = []
    for name in registry.names():
        analyzer = registry.resolve(name)
        labels = {"statement": "Statement", "source": "Source", "sound_when": "Sound when"}
        rows.append(
            {"name": name, **{key: docstring_field(analyzer, label) for key, label in labels.items()}}
        )
    if as_json:
        _print_json({"schema": "lipverify.analyzers/1", "analyzers": rows})
        return
    for row in rows:
        typer.echo(f"{row['name']}\n  states: {row['statement']}\n  source: {row['source']}")


@app.command()
def doctor(as_json: Json = False) -> None:
    """Show versions, devices and optional parts of this installation."""
    from lipverify.doctor import findings, print_findings

    found = findings()
    if as_json:
        _print_json(found)
    else:
        print_findings(found)


@zoo_app.command("list")
def zoo_list(as_json: Json = False) -> None:
    """List the networks of the model zoo."""
    from lipverify import zoo

    cards = [zoo.card(name) for name in zoo.names()]
    if as_json:
        rows = [
            {"name": c.name, "description": c.description, "input_shape": list(c.input_shape)} for c in cards
        ]
        _print_json({"schema": "lipverify.zoo/1", "networks": rows})
        return
    for card in cards:
        typer.echo(f"zoo:{card.name}  {list(card.input_shape)}  {card.description}")


@zoo_app.command("build")
def zoo_build(
    name: Annotated[str, typer.Argument(help="a network of the zoo, or all")],
    force: Annotated[bool, typer.Option("--force", help="also where weights exist already")] = False,
) -> None:
    """Train a network of the zoo again and write its weights and card."""
    from lipverify import zoo

    for card in zoo.build(name, force, lambda line: typer.echo(line, err=True)):
        typer.echo(f"zoo:{card.name}")


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip())


@zoo_app.command("check")
def zoo_check(
    name: Annotated[str, typer.Argument(help="a network of the zoo, or all")] = "all",
    as_json: Json = False,
) -> None:
    """Audit what the cards claim: exit 3 when a claim is refuted, 4 when it stays open.

    With `all`, a copy that is broken on purpose must be refuted and every other claim confirmed.
    """
    from lipverify import claims, zoo

    verdicts = {}
    for each in zoo.names() if name == "all" else (name,):
        verdict = verdicts[each] = claims.check(each)
        row = verdict.to_json(each)
        upper = "none" if row["best"] is None else f"{row['best'].get('upper', 'beyond float64')}"
        text = f"zoo:{each}: {verdict.verdict}: claimed {row['claim']}, proved {upper}, found {row['lower']}"
        typer.echo(text, err=as_json)
    if as_json:
        rows = [verdict.to_json(each) for each, verdict in verdicts.items()]
        _print_json({"schema": "lipverify.zoo-check/1", "networks": rows})
    odd = {e: v for e, v in verdicts.items() if not v.as_expected or (name != "all" and not v.claim.holds)}
    if odd:
        said = ", ".join(f"{each} is {verdict.verdict}" for each, verdict in odd.items())
        if any(verdict.verdict != claims.OPEN for verdict in odd.values()):
            raise Refuted(f"claims of the zoo: {said}")
        raise Undecided(f"claims of the zoo: {said}")


def _shape(text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    try:
        shape = tuple(int(size) for size in text.split(",")) if text.strip() else ()
    except ValueError:
        raise UsageError(f"--input-shape takes whole numbers with commas, not {text!r}") from None
    if any(size < 1 for size in shape):
        raise UsageError(f"--input-shape takes sizes of at least 1, not {text!r}")
    return shape


def _gate(best: dict[str, Any], limit: float) -> None:
    """The gate of `--fail-above`: anything but a bound at or below the limit fails."""
    from lipverify.reporting.pipelines import worst

    if not worst(best) <= limit:
        raise Refuted(f"the best bound {best.get('upper', 'beyond float64')} exceeds the limit {limit}")


def _print_json(document: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(document, indent=1, allow_nan=False) + "\n")


def main(arguments: list[str] | None = None) -> None:
    """Runs a command; ends the process with the exit code of `interface`."""
    debug = "--debug" in sys.argv
    if debug:
        sys.argv.remove("--debug")
    try:
        app(args=arguments, standalone_mode=True)
    except LipverifyError as error:
        if debug:
            raise
        typer.echo(f"error: {error}", err=True)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        typer.echo("interrupted", err=True)
        sys.exit(130)
    except BrokenPipeError:
        sys.exit(1)
    except Exception as error:
        if debug:
            raise
        kind = type(error).__name__
        typer.echo(f"error: internal error ({kind}: {error}); run again with --debug and report it", err=True)
        sys.exit(1)
