"""Options that several commands share: how they are written, and what they mean once parsed. Nothing heavy is imported."""

from __future__ import annotations

import json
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from lipverify.errors import UsageError
from lipverify.loading.arguments import parse_box, parse_constant, parse_duration, parse_margin
from lipverify.loading.names import display

Model = Annotated[
    str, typer.Argument(metavar="MODEL", help="an ONNX file, zoo:<name>, or weights together with --arch")
]
Json = Annotated[bool, typer.Option("--json", help="exactly one JSON document on standard output")]
Arch = Annotated[str | None, typer.Option(help="FILE.py:callable that builds the module for bare weights")]
Trust = Annotated[bool, typer.Option("--trust-code", help="allow --arch to run that file")]
InputShape = Annotated[str | None, typer.Option(help="shape of one sample, for example 3,32,32")]
Output = Annotated[
    str, typer.Option(help="which output of the model: its position, or its name in an ONNX file")
]
Input = Annotated[
    str | None, typer.Option(help="ONNX files with several inputs: the name of the one that varies")
]
Constants = Annotated[
    list[str] | None,
    typer.Option(
        "--constant",
        metavar="NAME=VALUE",
        help="fix another input: a number, numbers with commas, or an .npy file",
    ),
]
NormOut = Annotated[str | None, typer.Option(help="norm at the output; default: the same")]
Analyzers = Annotated[str, typer.Option(help="comma-separated names, see `lipverify analyzers`")]
Limit = Annotated[int | None, typer.Option(min=1, help="use only the first N points")]
InputBox = Annotated[
    str | None, typer.Option(help="LO,HI: the input box; cuts the balls, and is where witnesses are searched")
]
Margin = Annotated[str | None, typer.Option(help="A,B: bound the difference of two outputs")]
Budget = Annotated[str | None, typer.Option(help="time for everything, for example 90s or 10m")]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda")]
Jobs = Annotated[int, typer.Option(min=1, help="processes")]
Resume = Annotated[bool, typer.Option("--resume", help="go on with the run in --out")]
Force = Annotated[bool, typer.Option("--force", help="write into a folder that is not empty")]


def parsed(given: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of `start.Common`, from the arguments of a command by their names.

    Raises:
        UsageError: a box, duration, shape or pair of outputs that is none; --resume without a folder.
    """
    if given.get("resume") and given["out"] is None:
        raise UsageError("--resume needs --out: the folder of the run to go on with")
    return {
        "data": given["data"],
        "limit": given["limit"],
        "box": None if given["box"] is None else parse_box(given["box"]),
        "margin": None if given.get("margin") is None else parse_margin(given["margin"]),
        "budget": None if given["budget"] is None else parse_duration(given["budget"]),
        "output": output(given["output"]),
        "input": given["input"],
        "constants": constants(given["constant"]),
        "device": given["device"],
        "seed": given["seed"],
        "out": given["out"],
        "force": given["force"],
        "resume": bool(given.get("resume")),
        "arch": given["arch"],
        "trust_code": given["trust_code"],
        "input_shape": shape(given["input_shape"]),
        "quiet": given["as_json"],
        "command": shlex.join(["lipverify", *sys.argv[1:]]),
    }


def refuse_alone(needed: str, *given: tuple[str, object]) -> None:
    """Options that mean nothing without another one are not passed over in silence.

    Raises:
        UsageError: one of them is given.
    """
    for name, value in given:
        if value is not None and value is not False:
            raise UsageError(f"{name} means nothing here without {needed}")


def words(text: str) -> tuple[str, ...]:
    """Words between commas."""
    return tuple(word.strip() for word in text.split(",") if word.strip())


def shape(text: str | None) -> tuple[int, ...] | None:
    """`--input-shape`. Raises UsageError."""
    if text is None:
        return None
    try:
        found = tuple(int(size) for size in text.split(",")) if text.strip() else ()
    except ValueError:
        raise UsageError(f"--input-shape takes whole numbers with commas, not {text!r}") from None
    if any(size < 1 for size in found):
        raise UsageError(f"--input-shape takes sizes of at least 1, not {text!r}")
    return found


def output(text: str) -> int | str:
    """`--output`: a position, or a name."""
    return int(text) if re.fullmatch("-?[0-9]{1,9}", text) else text


def constants(texts: Sequence[str] | None) -> dict[str, Any]:
    """`--constant NAME=VALUE`, any number of times. Raises UsageError."""
    found: dict[str, Any] = {}
    for text in texts or ():
        name, value = parse_constant(text)
        if name in found:
            raise UsageError(f'--constant names input "{display(name)}" twice')
        if isinstance(value, Path):
            from lipverify.loading.numpy_archive import read_npy

            found[name] = read_npy(value)
        else:
            found[name] = value
    return found


def print_json(document: dict[str, Any]) -> None:
    """The one document on standard output."""
    sys.stdout.write(json.dumps(document, indent=1, allow_nan=False) + "\n")


def say_report(out: Path | None) -> None:
    """Where the report lies, on standard error."""
    if out is not None:
        typer.echo(f"report: {out / 'report.html'}", err=True)
