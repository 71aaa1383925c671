"""Options of a command as one dataclass: its fields are what Python reads, their notes make the command line and its help.

Nothing heavy is imported, so that `--help` is quick.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from lipverify.errors import UsageError
from lipverify.loading.arguments import (
    Entries,
    parse_constant,
    parse_duration,
    parse_limits,
    parse_margin,
    parse_memory,
    parse_numbers,
    parse_scale,
)
from lipverify.loading.names import display

if TYPE_CHECKING:
    from lipverify.loading.data.settings import Settings


@dataclass(frozen=True)
class Option:
    """How a field is written at the command line; without `parse` the text is read as the field's type.

    parse: from what is written to the value of the field. given: the type that is written. shown: a default as it is written.
    """

    words: str
    parse: Callable[[Any], Any] | None = None
    given: Any = str
    names: tuple[str, ...] = ()
    shown: Any = None
    least: int | None = None
    metavar: str | None = None
    position: bool = False


def option(words: str, parse: Callable[[Any], Any] | None = None, **more: Any) -> Option:
    """The note of an option, for `Annotated`; fields as those of `Option`."""
    return Option(words, parse, **more)


def words(text: str) -> tuple[str, ...]:
    """Words between commas."""
    return tuple(word.strip() for word in text.split(",") if word.strip())


def refuse_alone(needed: str, *given: tuple[str, object]) -> None:
    """Options that mean nothing without another one are not passed over in silence.

    Raises:
        UsageError: one of them is given.
    """
    for name, value in given:
        if value is not None and value is not False:
            raise UsageError(f"{name} means nothing here without {needed}")


def parse_shape(text: str) -> tuple[int, ...]:
    """`--input-shape`. Raises UsageError."""
    try:
        found = tuple(int(size) for size in text.split(",")) if text.strip() else ()
    except ValueError:
        raise UsageError(f"--input-shape takes whole numbers with commas, not {text!r}") from None
    if any(size < 1 for size in found):
        raise UsageError(f"--input-shape takes sizes of at least 1, not {text!r}")
    return found


def parse_output(text: str) -> int | str:
    """`--output`: a position, or a name."""
    return int(text) if re.fullmatch("-?[0-9]{1,9}", text) else text


def parse_constants(texts: Sequence[str]) -> dict[str, Any]:
    """`--constant NAME=VALUE`, any number of times. Raises UsageError."""
    found: dict[str, Any] = {}
    for text in texts:
        name, value = parse_constant(text)
        if name in found:
            raise UsageError(f'--constant names input "{display(name)}" twice')
        if isinstance(value, Path):
            from lipverify.loading.numpy_archive import read_npy

            found[name] = read_npy(value)
        else:
            found[name] = value
    return found


def parse_gate(text: str) -> float:
    """`--fail-above`: a limit. Raises UsageError."""
    return _at_least_0("--fail-above takes a limit", text)


def parse_claimed(text: str) -> float:
    """`--claimed`: a constant. Raises UsageError."""
    return _at_least_0("--claimed takes a constant", text)


def _at_least_0(what: str, text: str) -> float:
    try:
        limit = float(text)
    except ValueError:
        limit = -1.0
    if not limit >= 0:
        raise UsageError(f"{what} of at least 0, not {display(text, 40)}")
    return limit


def parse_within(text: str) -> float:
    """`--within`: a positive number."""
    return _positive(text, "--within takes the largest norm of a token")


def parse_variance(text: str) -> float:
    """`--variance`: a positive number."""
    return _positive(text, "--variance takes the least variance of what is normalised")


def _positive(text: str, what: str) -> float:
    try:
        found = float(text)
    except ValueError:
        found = 0.0
    if not 0 < found < 2.0**100:
        raise UsageError(f"{what}, a positive number, not {display(text, 40)}")
    return found


Model = Annotated[
    str,
    option("an ONNX file, zoo:<name>, or weights together with --arch", position=True, metavar="MODEL"),
]
Models = Annotated[
    tuple[str, ...],
    option("ONNX files, zoo:<name>, or weights together with --arch", tuple, given=list[str], position=True),
]
Margin = Annotated[tuple[int, int] | None, option("A,B: bound the difference of two outputs", parse_margin)]
Jobs = Annotated[int, option("processes", least=1)]
Scheduler = Annotated[str | None, option("address of a Dask scheduler whose workers take the work")]
Resume = Annotated[bool, option("go on with the run in --out")]
Free = Annotated[
    tuple[str, ...],
    option("features that may change, by name or position; the others keep their value", words, shown=""),
]
NormOut = Annotated[str | None, option("norm at the output; default: the same")]
Analyzers = Annotated[
    tuple[str, ...],
    option(
        "auto: what the budget, or about a minute, buys; or names with commas, see `lipverify analyzers`",
        words,
        shown="auto",
    ),
]


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How a model is read."""

    output: Annotated[
        int | str,
        option(
            "which output of the model: its position, or its name in an ONNX file", parse_output, shown="0"
        ),
    ] = 0
    input: Annotated[
        str | None, option("ONNX files: the input that varies, of several, or a tensor inside to begin at")
    ] = None
    constants: Annotated[
        Mapping[str, Any],
        option(
            "fix another input: a number, numbers with commas, or an .npy file",
            parse_constants,
            given=list[str],
            names=("--constant",),
            metavar="NAME=VALUE",
        ),
    ] = field(default_factory=dict)
    steps: Annotated[
        int | None, option("ONNX files: the length of a sequence that the file leaves open", least=1)
    ] = None
    state: Annotated[
        str,
        option(
            "ONNX files: other real inputs are given by --constant, zero, or free: all inputs vary, as one vector"
        ),
    ] = "given"
    arch: Annotated[
        str | None,
        option("FILE.py:callable that builds the module for bare weights, or FILE.json that describes them"),
    ] = None
    trust_code: Annotated[bool, option("allow --arch to run that file")] = False
    input_shape: Annotated[
        tuple[int, ...] | None, option("shape of one sample, for example 3,32,32", parse_shape)
    ] = None


@dataclass(frozen=True, kw_only=True)
class Points:
    """How points are read (docs/data.md)."""

    data: Annotated[
        Path | None, option("points that are asked about: .npz, .npy, .csv, .pt, or a folder of images")
    ] = None
    limit: Annotated[int | None, option("use only the first N points", least=1)] = None
    data_x: Annotated[
        tuple[str, ...],
        option("--data: the array of the points, or their columns, with commas", words, shown=""),
    ] = ()
    data_y: Annotated[
        str | None, option("--data: the array or column (also its position) of the labels, or none")
    ] = None
    scale: Annotated[float, option("--data: multiply by this, for example 1/255", parse_scale, shown="1")] = (
        1.0
    )
    mean: Annotated[
        tuple[float, ...],
        option("--data: subtract after --scale; one, or one per channel", parse_numbers, shown=""),
    ] = ()
    std: Annotated[
        tuple[float, ...],
        option("--data: divide by, after --mean; one, or one per channel", parse_numbers, shown=""),
    ] = ()
    first_label: Annotated[int, option("--data: the label that names the first output")] = 0

    def __post_init__(self) -> None:
        if self.data is None:
            given: dict[str, object] = {
                "--limit": self.limit,
                "--data-x": self.data_x,
                "--data-y": self.data_y,
                "--scale": self.scale != 1.0,
                "--mean": self.mean,
                "--std": self.std,
                "--first-label": self.first_label,
            }
            refuse_alone("--data", *((name, value or None) for name, value in given.items()))

    @property
    def settings(self) -> Settings:
        """How the file is to be read. Raises UsageError for numbers that make no sense."""
        from lipverify.loading.data.settings import Settings

        return Settings(
            x=self.data_x,
            y=self.data_y,
            scale=self.scale,
            mean=self.mean,
            std=self.std,
            first_label=self.first_label,
            limit=self.limit,
        )


BEGAN: ContextVar[float | None] = ContextVar("began", default=None)
"""When the program was asked for a command; None where options are made in Python."""


@dataclass(frozen=True, kw_only=True)
class Options(Points, Reading):
    """What every long command takes; a command adds fields of its own.

    Raises:
        UsageError: options that mean nothing together.
    """

    box: Annotated[
        tuple[float, float] | Entries | None,
        option("LO,HI: the input box, which cuts the balls; or of features: age=18:90,...", parse_limits),
    ] = None
    budget: Annotated[float | None, option("time for everything: 90, 90s, 10m, 1:30", parse_duration)] = None
    memory: Annotated[
        int | None, option("what may be taken of it, for example 4g; default: what is free", parse_memory)
    ] = None
    device: Annotated[str, option("auto, cpu or cuda")] = "auto"
    seed: Annotated[int, option("seed of searches, attacks and noise")] = 0
    out: Annotated[
        Path | None,
        option("folder for result.json, report.html, certificates and witnesses", names=("--out", "-o")),
    ] = None
    force: Annotated[bool, option("write into a folder that is not empty")] = False
    quiet: Annotated[bool, option("no progress, which --json leaves out too", names=("--quiet", "-q"))] = (
        False
    )
    verbose: Annotated[bool, option("every step of progress in a line", names=("--verbose", "-v"))] = False
    command: str = ""
    """What was typed."""
    began: float = field(default_factory=lambda: BEGAN.get() or time.monotonic())
    """When the command began, before its libraries were imported and anything was read: the budget is that of the command."""

    @property
    def end(self) -> float | None:
        """The moment at which the command should have ended."""
        return None if self.budget is None else self.began + self.budget

    def left(self) -> float | None:
        """Seconds of the budget that are left, and at least a hundredth of it: something is always begun."""
        return (
            None
            if self.end is None or self.budget is None
            else max(self.end - time.monotonic(), self.budget / 100)
        )

    def uniform_box(self, needed: str) -> tuple[float, float] | None:
        """The box of what takes one for all entries. Raises UsageError for a box of single entries."""
        if isinstance(self.box, Entries):
            raise UsageError(
                f"{needed} takes one box LO,HI for all entries; audit and deviate take one of each"
            )
        return self.box

    def __post_init__(self) -> None:
        super().__post_init__()
        if getattr(self, "resume", False) and self.out is None:
            raise UsageError("--resume needs --out: the folder of the run to go on with")
