"""Options of a question: what the command line, its help and the shell read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from lipverify import options
from lipverify.errors import UsageError
from lipverify.ir.norm import Norm
from lipverify.loading.arguments import Entries, parse_radii
from lipverify.options import Free, Models, option, parse_gate, refuse_alone

__all__ = ["Options", "option"]


@dataclass(frozen=True, kw_only=True)
class Options(options.Options):
    """What every question takes; a question adds fields of its own (`Annotated` with `option`)."""

    models: Models
    radius: Annotated[
        float | Entries | None,
        option(
            "balls around the points, for example 0.03 or 8/255; or of features: age=2,income=500",
            parse_radii,
        ),
    ] = None
    free: Free = ()
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
        if self.radius is None:
            refuse_alone("--radius", ("--free", self.free or None))
        if isinstance(self.radius, Entries) and Norm.parse(self.ball) is not Norm.LINF:
            raise UsageError("radii of single features are those of a linf ball: give --ball linf")
