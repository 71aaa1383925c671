"""The command line: arguments to verbs, errors to exit codes. Nothing heavy is imported before a command runs."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Annotated

import typer

from lipverify.commands.prove import ProveOptions, prove
from lipverify.commands.questions import Verbs
from lipverify.commands.shell import Json, print_json, typed
from lipverify.commands.verify import verify
from lipverify.commands.zoo import zoo_app
from lipverify.errors import LipverifyError
from lipverify.options import Model, Reading
from lipverify.version import __version__

app = typer.Typer(
    name="lipverify",
    cls=Verbs,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.add_typer(zoo_app, name="zoo")


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"lipverify {__version__}")
        raise typer.Exit


@app.callback()
def _everywhere(
    version: Annotated[
        bool,
        typer.Option("--version", "-V", callback=_version, is_eager=True, help="the version, and no more"),
    ] = False,
) -> None:
    """Certified Lipschitz bounds for trained networks, with a witness beside every bound."""


@dataclass(frozen=True, kw_only=True)
class InspectOptions(Reading):
    """What `inspect` takes."""

    model: Model


def _inspect(options: InspectOptions, as_json: bool) -> int:
    from lipverify.commands.start import inspect_document, load

    document = inspect_document(load(options, options.model))
    if as_json:
        print_json(document)
    else:
        from lipverify.reporting.terminal import print_inspection

        print_inspection(document)
    return 0


app.command(name="inspect")(
    typed(InspectOptions, _inspect, "Show a model's layer graph and which analyzers can answer for it.")
)
app.command()(verify)
app.command(name="prove")(
    typed(ProveOptions, prove, "Prove the bounds of a report that its budget left no time for.")
)


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
    from lipverify.commands.doctor import findings, print_findings

    found = findings()
    if as_json:
        print_json(found)
    else:
        print_findings(found)


def main(arguments: list[str] | None = None) -> None:
    """Runs a command; ends the process with the exit code of `interface`."""
    try:
        _run(arguments)
    except KeyboardInterrupt:  # one more, while the first was told
        sys.exit(130)


def _run(arguments: list[str] | None) -> None:
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
