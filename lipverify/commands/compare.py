"""The verb `compare`: several models in one report, over analyzers or over certified radii."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

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
    Jobs,
    Json,
    Limit,
    Margin,
    NormOut,
    Output,
    Resume,
    Trust,
    parsed,
    print_json,
    refuse_alone,
    say_report,
    words,
)
from lipverify.ir.norm import Norm
from lipverify.loading.arguments import parse_radius


def compare(
    models: Annotated[
        list[str], typer.Argument(help="ONNX files, zoo:<name>, or weights together with --arch")
    ],
    out: Annotated[
        Path | None, typer.Option(help="folder for result.json, report.html, certificates and the cache")
    ] = None,
    norm: Annotated[str, typer.Option(help="norms at the input, with commas: l1, l2, linf")] = "l2",
    norm_out: NormOut = None,
    analyzers: Analyzers = "product",
    data: Annotated[Path | None, typer.Option(help=".npz with x (and y): centres of local regions")] = None,
    radius: Annotated[str | None, typer.Option(help="radii of the balls, with commas: 0.03,8/255")] = None,
    everywhere: Annotated[
        bool, typer.Option("--everywhere", help="besides the balls, the whole space")
    ] = False,
    ball: Annotated[
        str | None, typer.Option(help="norm of the balls: l2 or linf; default: the first --norm")
    ] = None,
    limit: Limit = None,
    curves: Annotated[
        str, typer.Option(help="certified accuracy on --data by this method of `radius`, or none")
    ] = "crown",
    certified: Annotated[
        str | None,
        typer.Option(
            "--radii", help="compare certified radii on --data instead of bounds, by this method of `radius`"
        ),
    ] = None,
    box: InputBox = None,
    output: Output = "0",
    input: Input = None,
    constant: Constants = None,
    margin: Margin = None,
    budget: Budget = None,
    device: Device = "auto",
    seed: Annotated[int, typer.Option(help="seed of the search for lower bounds")] = 0,
    jobs: Jobs = 1,
    cache: Annotated[Path | None, typer.Option(help="where answers are kept; default: inside --out")] = None,
    resume: Resume = False,
    force: Force = False,
    arch: Arch = None,
    trust_code: Trust = False,
    input_shape: InputShape = None,
    as_json: Json = False,
) -> None:
    """Compare models and analyzers in one report."""
    common = parsed(locals())
    radii = () if radius is None else tuple(parse_radius(part) for part in radius.split(","))
    for name in (*words(norm), *words(norm_out or ""), *words(ball or "")):
        Norm.parse(name)
    if not radii:
        refuse_alone("--data and --radius", ("--ball", ball), ("--everywhere", everywhere))
    if data is None:
        refuse_alone("--data", ("--limit", limit))
    from lipverify.comparison.command import Options, run_compare

    options = Options(
        **common,
        models=tuple(models),
        analyzers=words(analyzers),
        norms=words(norm),
        norm_out=norm_out,
        radii=radii,
        everywhere=everywhere,
        ball=ball,
        curves=curves,
        certified=certified,
        jobs=jobs,
        cache=cache,
    )
    if certified is not None:
        from lipverify.comparison.radii import run_compare_radii
        from lipverify.reporting.radii_compared import print_radii_compared

        (document, code), show = run_compare_radii(options), print_radii_compared
    else:
        from lipverify.reporting.comparison import print_comparison

        found = run_compare(options)
        document, code, show = found.to_json(), found.exit_code(), print_comparison
    if as_json:
        print_json(document)
    else:
        show(document)
        say_report(out)
    raise typer.Exit(code)
