"""The one shell of long commands: a dataclass of options becomes a command, its work a folder, a document, a page, an exit code.

Nothing heavy is imported before a command runs.
"""

from __future__ import annotations

import inspect
import json
import shlex
import sys
from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, dataclass, field, fields
from typing import TYPE_CHECKING, Annotated, Any, get_args, get_type_hints

import typer

from lipverify.errors import LipverifyError
from lipverify.options import Option, Options

if TYPE_CHECKING:
    from lipverify.commands.start import Start
    from lipverify.reporting.writing import Content

Json = Annotated[bool, typer.Option("--json", help="exactly one JSON document on standard output")]


@dataclass(frozen=True)
class Outcome:
    """What a command found. show: prints the document; page: makes the report of it. files: beside these two in the folder.
    failure: raised once all is written.

    beside: writes what lies outside the folder.
    """

    document: dict[str, Any]
    show: Callable[[dict[str, Any]], None]
    page: Callable[[dict[str, Any]], str]
    files: Mapping[str, Content] = field(default_factory=dict)
    code: int = 0
    failure: LipverifyError | None = None
    beside: Callable[[], None] = lambda: None


@dataclass(frozen=True)
class Verb:
    """A command: its options, its work, and the pattern of files that an unfinished run leaves in its folder."""

    options: type[Options]
    work: Callable[[Any, Start], Outcome]
    words: str
    unfinished: Callable[[Any], str | None] = lambda options: None


def run(verb: Verb, options: Options, as_json: bool) -> int:
    """Does the work, writes the folder, prints; the exit code.

    Raises:
        LipverifyError: as the work; and what the outcome fails with, after everything is written.
    """
    from lipverify.commands.start import begun
    from lipverify.reporting.places import REPORT, RESULT
    from lipverify.reporting.writing import document_bytes

    with begun(options, verb.unfinished(options)) as start:
        outcome = verb.work(options, start)
        start.progress.finish()
        if start.folder is not None:
            page = outcome.page(outcome.document).encode("utf-8")
            # The result last: its presence says that the others are complete.
            start.folder.write({**outcome.files, REPORT: page, RESULT: document_bytes(outcome.document)})
    outcome.beside()
    if as_json:
        print_json(outcome.document)
    else:
        outcome.show(outcome.document)
        if options.out is not None and not options.quiet:
            typer.echo(f"report: {options.out / REPORT}", err=True)
    if outcome.failure is not None:
        raise outcome.failure
    return outcome.code


def command(verb: Verb) -> Callable[..., None]:
    """The command as typer reads it."""
    return typed(verb.options, lambda options, as_json: run(verb, options, as_json), verb.words)


def typed(kind: type[Any], act: Callable[[Any, bool], int], words: str) -> Callable[..., None]:
    """A function with the fields of a dataclass as its parameters, and `--json`. act: from options to the exit code."""
    hints = get_type_hints(kind, include_extras=True)
    noted = [(each, note) for each in fields(kind) if (note := _note(hints[each.name])) is not None]
    own = set(inspect.get_annotations(kind))
    # What the command is about, then its own options, then those that all have.
    noted.sort(key=lambda pair: (not pair[1].position, pair[0].name not in own))
    typed_in = any(each.name == "command" for each in fields(kind))

    def command(as_json: bool, **given: Any) -> None:
        read = {each.name: _read(note, given[each.name]) for each, note in noted}
        if typed_in:
            quiet = bool(read.get("quiet")) or as_json
            read |= {"quiet": quiet, "command": shlex.join(["lipverify", *sys.argv[1:]])}
        empty = {
            each.name for each, _ in noted if read[each.name] is None and each.default_factory is not MISSING
        }
        raise typer.Exit(act(kind(**{k: v for k, v in read.items() if k not in empty}), as_json))

    parameters = [_parameter(each, note, hints[each.name]) for each, note in noted]
    json_hint = inspect.Parameter(
        "as_json", inspect.Parameter.POSITIONAL_OR_KEYWORD, default=False, annotation=Json
    )
    parameters.append(json_hint)
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in parameters}
    command.__doc__ = words
    return command


def _note(hint: Any) -> Option | None:
    return next((each for each in getattr(hint, "__metadata__", ()) if isinstance(each, Option)), None)


def _read(note: Option, value: Any) -> Any:
    return value if note.parse is None or value is None else note.parse(value)


def _parameter(each: Field[Any], note: Option, hint: Any) -> inspect.Parameter:
    """The parameter that typer reads: the type that is written, the default as it is written."""
    optional = each.default is None or each.default_factory is not MISSING
    kind = get_args(hint)[0]
    if note.parse is not None:
        kind = note.given | None if optional else note.given
    default: Any = inspect.Parameter.empty
    if optional:
        default = None
    elif each.default is not MISSING:
        default = each.default if note.shown is None else note.shown
    if note.position:
        shown = typer.Argument(help=note.words, metavar=note.metavar)
    else:
        flag = isinstance(each.default, bool) and each.default is False
        names = note.names or ((f"--{each.name.replace('_', '-')}",) if flag else ())
        shown = typer.Option(*names, help=note.words, min=note.least, metavar=note.metavar)
    annotation = Annotated.__class_getitem__((kind, shown))  # type: ignore[attr-defined]
    return inspect.Parameter(
        each.name, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=default, annotation=annotation
    )


def print_json(document: dict[str, Any]) -> None:
    """The one document on standard output."""
    sys.stdout.write(json.dumps(document, indent=1, allow_nan=False) + "\n")
