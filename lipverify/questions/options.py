"""Options of a question: one dataclass that the command line, its help and the shell read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import typer

from lipverify.start import Common


def option(words: str) -> Any:
    """The help of an option of a question's own, for `Annotated`."""
    return typer.Option(help=words)


@dataclass(frozen=True, kw_only=True)
class Options(Common):
    """What every question takes, parsed; a question adds fields of its own (`Annotated` with `option`)."""

    models: tuple[str, ...]
    radius: float | None = None
    ball: str = "linf"
    fail_above: float | None = None
