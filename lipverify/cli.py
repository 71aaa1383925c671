"""The command line: arguments to verbs, errors to exit codes. Nothing heavy is imported before a command runs."""

from __future__ import annotations

import sys

import typer

from lipverify.commands.audit import audit
from lipverify.commands.compare import compare
from lipverify.commands.options import (
    Arch,
    Constants,
    Input,
    InputShape,
    Json,
    Model,
    Output,
    Trust,
    constants,
    print_json,
    shape,
)
from lipverify.commands.options import output as parsed_output
from lipverify.commands.questions import Verbs
from lipverify.commands.radius import radius
from lipverify.commands.verify import verify
from lipverify.commands.zoo import zoo_app
from lipverify.errors import LipverifyError

app = typer.Typer(
    name="lipverify",
    cls=Verbs,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Certified Lipschitz bounds for trained networks, with a witness beside every bound.",
)
app.add_typer(zoo_app, name="zoo")


@app.command()
def inspect(
    model: Model,
    output: Output = "0",
    input: Input = None,
    constant: Constants = None,
    arch: Arch = None,
    trust_code: Trust = False,
    input_shape: InputShape = None,
    as_json: Json = False,
) -> None:
    """Show a model's layer graph and which analyzers can answer for it."""
    from lipverify import pipeline
    from lipverify.documents import inspect_document

    graph = pipeline.load(
        model,
        arch=arch,
        trust_code=trust_code,
        input_shape=shape(input_shape),
        output=parsed_output(output),
        input=input,
        constants=constants(constant),
    )
    document = inspect_document(graph)
    if as_json:
        print_json(document)
        return
    from lipverify.reporting.terminal import print_inspection

    print_inspection(document)


app.command()(audit)


app.command()(verify)
app.command()(radius)
app.command()(compare)


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
        print_json({"schema": "lipverify.analyzers/1", "analyzers": rows})
        return
    for row in rows:
        typer.echo(f"{row['name']}\n  states: {row['statement']}\n  source: {row['source']}")


@app.command()
def doctor(as_json: Json = False) -> None:
    """Show versions, devices and optional parts of this installation."""
    from lipverify.doctor import findings, print_findings

    found = findings()
    if as_json:
        print_json(found)
    else:
        print_findings(found)


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
