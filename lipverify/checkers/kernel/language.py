"""What the fields of a proof step may hold: each is looked at once, where it is read, and is a typed value afterwards.

A theorem (`theorems`) is a function; the types of its arguments name the rules here by which its fields are read.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, NamedTuple

import numpy as np

from lipverify.checkers.kernel.arithmetic import Array, need
from lipverify.checkers.kernel.elementary import Elementary, behind, elementary
from lipverify.checkers.kernel.gains import NORMS, Torus
from lipverify.checkers.kernel.program import Program
from lipverify.checkers.kernel.ranges import Condition, Region


class Rows(NamedTuple):
    """Rows low <= i < high of a result; with `minus` a single row, less that one."""

    low: int
    high: int
    minus: int | None = None


@dataclass(frozen=True)
class Subject:
    """What a proof is about: a program, and the regions of the certificate. exact: whether integers alone are to prove it."""

    program: Program
    regions: Sequence[Region] = ()
    exact: bool = False
    elements: Elementary = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "elements", elementary(self.program))

    def layers(self, start: int, end: int) -> list[int]:
        """Layers between two steps of the program.

        Raises:
            UnreadableCertificate: the second is no function of the first alone.
        """
        place = self.elements.place
        between = set(behind(self.elements.steps, place[end], place[start]))
        return [k for k, step in enumerate(self.elements.layers) if step in between]


StepId = Annotated[int, "step"]
FactId = Annotated[int, "fact"]
Part = Annotated[int | None, "fact or null"]
FactIds = Annotated[tuple[int, ...], "facts"]
AnyFactIds = Annotated[tuple[int, ...], "facts or none"]
Chain = Annotated[tuple[int, ...], "chain"]
Grid = Annotated[Torus | None, "torus"]
Norm = Annotated[str, "norm"]
Norms = Annotated[tuple[str, str], "norms"]
RegionId = Annotated[int, "region"]
Conditions = Annotated[tuple[Condition, ...], "conditions"]
Target = Annotated[Rows, "rows"]
Row = Annotated[int, "row"]
Entry = Annotated[int, "input"]
Sign = Annotated[int, "sign"]
Number = Annotated[float, "number"]
Limit = Annotated[float, "limit"]
Weights = Annotated[tuple[float, ...], "limits"]
Diagonal = Annotated[Array, "array of the step"]
Diagonals = Annotated[tuple[Array, ...], "arrays of all layers"]
Slopes = Annotated[tuple[Array | None, ...] | None, "slopes of layers or null"]
Inputs = Annotated[Array | None, "array of the start or null"]


class Scope:
    """What the fields of one step are read against; `start`, `end` and `of` are read before what they decide."""

    def __init__(self, subject: Subject, arrays: Mapping[str, Array], number: int) -> None:
        self.subject, self.arrays, self.number = subject, arrays, number
        self.seen: dict[str, Any] = {"start": 0, "end": len(subject.program.steps) - 1}

    def size(self, name: str) -> int:
        return int(self.subject.program.steps[self.seen[name]].size)

    def integer(self, value: Any, low: int, high: int) -> int:
        need(type(value) is int and low <= value < high, "an integer out of its range")
        return int(value)

    def integers(self, value: Any, low: int, high: int, least: int = 1) -> tuple[int, ...]:
        need(isinstance(value, list) and len(value) >= least, "a list")
        found = tuple(self.integer(v, low, high) for v in value)
        need(len(set(found)) == len(found), "a number twice in a list")
        return found

    def real(self, value: Any) -> float:
        """A float64 in the one form that Python writes in hexadecimal."""
        need(isinstance(value, str) and 5 < len(value) < 30, "a number is not hexadecimal")
        try:
            found = float.fromhex(value)
        except (ValueError, OverflowError):
            found = math.nan
        need(
            math.isfinite(found) and found.hex() == value, "a number is not finite, or written in another way"
        )
        return found

    def limit(self, value: Any) -> float:
        found = self.real(value)
        need(math.copysign(1.0, found) > 0, "a number that is negative")
        return found

    def sign(self, value: Any) -> int:
        need(type(value) is int and value in (1, -1), "a sign")
        return int(value)

    def text(self, value: Any, among: Sequence[str]) -> str:
        need(type(value) is str and value in among, f"none of {', '.join(among)}")
        return str(value)

    def step(self, value: Any) -> int:
        found = self.integer(value, 0, len(self.subject.program.steps))
        need(found in self.subject.elements.place, "a step that is not behind the output")
        return found

    def array(self, name: Any, shape: tuple[int, ...], positive: bool = True) -> Array:
        need(type(name) is str and name in self.arrays, "an array that is not there")
        found = self.arrays[name]
        need(found.dtype == np.float64 and found.shape == shape, "an array of another type or shape")
        need(
            bool(np.isfinite(found).all() and (not positive or (found > 0).all())),
            "an array with other numbers",
        )
        return found

    def rows(self, value: Any) -> Rows:
        """[low, high], or [low, low + 1, minus]."""
        need(isinstance(value, list) and len(value) in (2, 3), "rows")
        height = self.size("end")
        low, high = self.integer(value[0], 0, height), self.integer(value[1], 1, height + 1)
        minus = self.integer(value[2], 0, height) if len(value) == 3 else None
        need(low < high and (minus is None or (high == low + 1 and minus != low)), "rows")
        return Rows(low, high, minus)

    def conditions(self, value: Any) -> tuple[Condition, ...]:
        need(
            isinstance(value, list) and all(isinstance(c, list) and len(c) == 4 for c in value), "conditions"
        )
        steps, found = self.subject.elements, []
        for layer, entry, at, side in value:
            k = self.integer(layer, -1, len(steps.layers))
            above = self.text(side, ("above", "below")) == "above"
            found.append(Condition(k, self.integer(entry, 0, steps.size(k)), self.real(at), above))
        return tuple(found)

    def torus(self, value: Any) -> Torus:
        need(isinstance(value, list) and all(isinstance(v, list) and len(v) == 2 for v in value), "a torus")
        return tuple((self.integer(n, 1, (1 << 15) + 1), self.integer(twist, 0, 2)) for n, twist in value)

    def diagonals(self, value: Any) -> tuple[Array, ...]:
        layers = self.subject.layers(self.seen["start"], self.seen["end"])
        need(isinstance(value, list) and len(value) == len(layers), "arrays of other layers")
        return tuple(
            self.array(n, (self.subject.elements.size(k),)) for n, k in zip(value, layers, strict=True)
        )

    def slopes(self, value: Any) -> tuple[Array | None, ...]:
        layers = self.subject.layers(self.seen["start"], self.seen["end"])
        need(isinstance(value, list) and len(value) == len(layers), "slopes of other layers")
        sizes = [(2, self.subject.elements.size(k)) for k in layers]
        found = [None if n is None else self.array(n, s, False) for n, s in zip(value, sizes, strict=True)]
        need(all(f is None or bool((f[0] <= f[1]).all()) for f in found), "slopes that contradict each other")
        return tuple(found)


def _list(scope: Scope, value: Any, read: Callable[[Any], Any]) -> tuple[Any, ...]:
    need(isinstance(value, list), "a list")
    return tuple(read(v) for v in value)


RULES: dict[str, Callable[[Scope, Any], Any]] = {
    "step": Scope.step,
    "fact": lambda s, v: s.integer(v, 0, s.number),
    "fact or null": lambda s, v: None if v is None else s.integer(v, 0, s.number),
    "facts": lambda s, v: s.integers(v, 0, s.number),
    "facts or none": lambda s, v: s.integers(v, 0, s.number, 0),
    "chain": lambda s, v: tuple(map(s.step, s.integers(v, 1, len(s.subject.program.steps)))),
    "torus": lambda s, v: None if v is None else s.torus(v),
    "norm": lambda s, v: s.text(v, NORMS),
    "norms": lambda s, v: tuple(
        s.text(n, NORMS) for n in (v if isinstance(v, list) and len(v) == 2 else [v])
    ),
    "region": lambda s, v: s.integer(v, 0, len(s.subject.regions)),
    "conditions": Scope.conditions,
    "rows": Scope.rows,
    "row": lambda s, v: s.integer(v, 0, s.size("end")),
    "input": lambda s, v: s.integer(v, 0, s.size("start")),
    "sign": Scope.sign,
    "number": Scope.real,
    "limit": Scope.limit,
    "limits": lambda s, v: _list(s, v, s.limit),
    "array of the step": lambda s, v: s.array(v, (s.size("of"),)),
    "arrays of all layers": Scope.diagonals,
    "slopes of layers or null": lambda s, v: None if v is None else s.slopes(v),
    "array of the start or null": lambda s, v: None if v is None else s.array(v, (s.size("start"),)),
}
