"""Verbs that are questions: each is made from its own description when it is called, and nothing heavy is imported before."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import MISSING, fields
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer
from typer.core import TyperCommand, TyperGroup

from lipverify.commands.options import (
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
    Output,
    Trust,
    parsed,
    refuse_alone,
)
from lipverify.errors import UsageError
from lipverify.ir.norm import Norm
from lipverify.loading.arguments import parse_radius

GROUP = "lipverify.questions"
BUILT_IN = {
    "deviate": (
        "lipverify.questions.deviation:Deviation",
        "Bound how far changed copies of a network can answer differently, and whose labels are kept.",
    )
}
"""Verb -> the question's class, and the line of `lipverify --help`. Other packages add theirs through entry points of `GROUP`."""


def verbs() -> tuple[str, ...]:
    """Every verb that is a question, built-in ones first."""
    return (*BUILT_IN, *sorted({entry.name for entry in entry_points(group=GROUP)} - set(BUILT_IN)))


def resolve(verb: str) -> Any:
    """The class of a question. Raises UsageError for a verb that is none."""
    if verb in BUILT_IN:
        module, _, attribute = BUILT_IN[verb][0].partition(":")
        return getattr(import_module(module), attribute)
    for entry in entry_points(group=GROUP):
        if entry.name == verb:
            return entry.load()
    raise UsageError(f"there is no question {verb!r}; choose from {', '.join(verbs())}")


class Verbs(TyperGroup):
    """The group of all commands, with a command for every question."""

    def list_commands(self, ctx: Any) -> list[str]:
        return [*super().list_commands(ctx), *verbs()]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        found = super().get_command(ctx, cmd_name)
        return Later(cmd_name) if found is None and cmd_name in verbs() else found


class Later(TyperCommand):
    """A command that stands in the list of commands with its one line, and is built when it is called."""

    def __init__(self, verb: str) -> None:
        super().__init__(
            verb, help=BUILT_IN[verb][1] if verb in BUILT_IN else "A question of another package."
        )

    def built(self) -> Any:
        """The command with its options."""
        assert self.name is not None
        app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
        app.command()(function(resolve(self.name)))
        found = typer.main.get_command(app)
        found.name = self.name
        return found

    def make_context(self, info_name: Any, args: Any, parent: Any = None, **extra: Any) -> Any:
        return self.built().make_context(info_name, args, parent=parent, **extra)


def _shared(
    models: Annotated[
        list[str], typer.Argument(help="ONNX files, zoo:<name>, or weights together with --arch")
    ],
    data: Annotated[
        Path | None, typer.Option(help=".npz with x (and y): points that are asked about")
    ] = None,
    radius: Annotated[
        str | None, typer.Option(help="balls around the points, for example 0.03 or 8/255")
    ] = None,
    ball: Annotated[str, typer.Option(help="norm of the balls: l2 or linf")] = "linf",
    limit: Limit = None,
    box: InputBox = None,
    output: Output = "0",
    input: Input = None,
    constant: Constants = None,
    budget: Budget = None,
    device: Device = "auto",
    seed: Annotated[int, typer.Option(help="seed of the search for witnesses")] = 0,
    fail_above: Annotated[
        float | None,
        typer.Option(help="gate: exit 3 if a witness exceeds this, 4 if only the bound does"),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="folder for result.json, report.html and witnesses")
    ] = None,
    force: Force = False,
    arch: Arch = None,
    trust_code: Trust = False,
    input_shape: InputShape = None,
    as_json: Json = False,
) -> None:
    """The options that every question has."""


def function(question: Any) -> Callable[..., None]:
    """The command of a question as typer reads it: the shared options, then those of `question.options`."""
    hints = get_type_hints(_shared, include_extras=True)
    shared = [p.replace(annotation=hints[name]) for name, p in inspect.signature(_shared).parameters.items()]
    kind = question.options
    base = {field.name for field in fields(kind.__mro__[1])}
    own_hints = get_type_hints(kind, include_extras=True)
    own = [
        inspect.Parameter(
            field.name,
            inspect.Parameter.POSITIONAL_OR_KEYWORD,
            default=inspect.Parameter.empty if field.default is MISSING else field.default,
            annotation=own_hints[field.name],
        )
        for field in fields(kind)
        if field.name not in base
    ]

    def command(**given: Any) -> None:
        common = parsed(given | {"margin": None})
        if given["fail_above"] is not None and not given["fail_above"] >= 0:
            raise UsageError(f"--fail-above takes a limit of at least 0, not {given['fail_above']}")
        Norm.parse(given["ball"])
        if given["data"] is None:
            refuse_alone("--data", ("--limit", given["limit"]), ("--radius", given["radius"]))
        from lipverify.commands.running import run

        options = kind(
            **common,
            models=tuple(given["models"]),
            radius=None if given["radius"] is None else parse_radius(given["radius"]),
            ball=given["ball"],
            fail_above=given["fail_above"],
            **{p.name: given[p.name] for p in own},
        )
        raise typer.Exit(run(question, options, given["as_json"]))

    parameters = [*shared, *own]
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in parameters}
    command.__name__, command.__doc__ = question.name, (question.__doc__ or "").split("\n\n")[0]
    return command
