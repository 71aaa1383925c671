"""The verb `radius`: certified radii of points."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lipverify.commands.options import (
    Arch,
    Budget,
    Constants,
    Device,
    Force,
    Input,
    InputShape,
    Jobs,
    Json,
    Limit,
    Model,
    Output,
    Resume,
    Trust,
    parsed,
    print_json,
    say_report,
)


def radius(
    model: Model,
    data: Annotated[Path, typer.Option(help=".npz with x and y: the points")],
    norm: Annotated[str, typer.Option(help="norm of the perturbation: l2 or linf")] = "linf",
    method: Annotated[
        str, typer.Option(help="auto, global, local, crown, alpha-crown, branching, lirpa or smoothing")
    ] = "auto",
    limit: Limit = None,
    box: Annotated[str | None, typer.Option(help="LO,HI: inputs stay in this box")] = None,
    budget: Budget = None,
    looks: Annotated[int, typer.Option(min=1, help="balls to look at for each point")] = 16,
    attack: Annotated[bool, typer.Option(help="also search for adversarial examples")] = True,
    sigma: Annotated[float, typer.Option(help="smoothing: standard deviation of the noise")] = 0.25,
    samples: Annotated[int, typer.Option(min=2, help="smoothing: samples of estimation")] = 10_000,
    alpha: Annotated[
        float, typer.Option(help="smoothing: probability of a wrong radius, for each point")
    ] = 0.001,
    simplex: Annotated[str, typer.Option(help="smoothing: hardmax, softmax or sparsemax")] = "hardmax",
    temperatures: Annotated[str, typer.Option(help="smoothing: factors of the logits to choose from")] = "1",
    jobs: Jobs = 1,
    scheduler: Annotated[
        str | None, typer.Option(help="address of a Dask scheduler whose workers take the points")
    ] = None,
    resume: Resume = False,
    output: Output = "0",
    input: Input = None,
    constant: Constants = None,
    device: Device = "auto",
    seed: Annotated[int, typer.Option(min=0, help="seed of attacks and noise")] = 0,
    out: Annotated[
        Path | None, typer.Option(help="folder for result.json, report.html and the journal")
    ] = None,
    force: Force = False,
    arch: Arch = None,
    trust_code: Trust = False,
    input_shape: InputShape = None,
    as_json: Json = False,
) -> None:
    """Certify for each point how far its input may move before the label can change."""
    common = parsed(locals())
    from lipverify.robustness.command import Options, run_radius
    from lipverify.robustness.smoothing.settings import Smoothing, parse_temperatures

    bound = "clopper-pearson" if simplex == "hardmax" else "bernstein"
    smoothing = Smoothing(
        sigma, samples, max(100, samples // 100), alpha, bound, simplex, parse_temperatures(temperatures)
    )
    document, code = run_radius(
        Options(
            **common,
            model=model,
            norm=norm,
            method=method,
            looks=looks,
            attack=attack,
            smoothing=smoothing,
            jobs=jobs,
            scheduler=scheduler,
        )
    )
    if as_json:
        print_json(document)
    else:
        from lipverify.reporting.radii import print_radii

        print_radii(document)
        say_report(out)
    raise typer.Exit(code)
