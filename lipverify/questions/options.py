"""Options of a question: what the command line, its help and the shell read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from lipverify import options
from lipverify.ir.norm import Norm
from lipverify.loading.arguments import parse_radius
from lipverify.options import Models, option, parse_gate, refuse_alone

__all__ = ["Options", "option"]


@dataclass(frozen=True, kw_only=True)
class Options(options.Options):
    """What every question takes; a question adds fields of its own (`Annotated` with `option`)."""

    models: Models
    radius: Annotated[
        float | None, option("balls around the points, for example 0.03 or 8/255", parse_radius)
    ] = None
    ball: Annotated[str, option("norm of the balls: l2 or linf")] = "linf"
    fail_above: Annotated[
        float | None,
        option(
            "gate: exit 3 if a witness exceeds this, 4 if only the bound does", parse_gate, metavar="FLOAT"
        ),
    ] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        Norm.parse(self.ball)
        if self.data is None:
            refuse_alone("--data", ("--radius", self.radius))
