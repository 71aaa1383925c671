"""How objects show themselves: one line in a console, the same line in a notebook; arrays are never printed."""

from __future__ import annotations

import html
from collections.abc import Sequence
from decimal import ROUND_CEILING, ROUND_FLOOR, Context

from torch import Tensor


class Shown:
    """A notebook shows the line that a console shows."""

    def _repr_html_(self) -> str:
        return f"<code>{html.escape(repr(self))}</code>"


def sizes(shape: Sequence[int]) -> str:
    """`3x32x32`, or `1 number` for a sample that is one."""
    return "x".join(map(str, shape)) if shape else "1 number"


def at_most(value: float | Tensor | None) -> str:
    """`at most 9.73`: six digits, rounded up; of several bounds the smallest and the largest."""
    return f"at most {above(value)}"


def above(value: float | Tensor | None) -> str:
    """`9.73`: the number of `at_most`."""
    return _digits(value, ROUND_CEILING)


def at_least(value: float | Tensor | None) -> str:
    """`at least 9.72`: six digits, rounded down."""
    return f"at least {_digits(value, ROUND_FLOOR)}"


def _digits(value: float | Tensor | None, rounding: str) -> str:
    if isinstance(value, Tensor) and value.numel() != 1:
        ends = (float(value.min()), float(value.max())) if value.numel() else ()
        return " to ".join(_digits(end, rounding) for end in ends) or "nothing"
    if value is None:
        return "nothing"
    context = Context(prec=6, rounding=rounding)
    return f"{context.normalize(context.create_decimal(float(value))):g}"
