"""What the fields of a proof step may hold: each is looked at once, where it is read, and is a typed value afterwards.

A theorem (`theorems`) is a function; the types of its arguments hold the rules by which its fields are read.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import Annotated, Any, NamedTuple

import numpy as np

from lipverify.checkers.kernel.account import charge
from lipverify.checkers.kernel.arithmetic import Array, need
from lipverify.checkers.kernel.elementary import Elementary, behind, elementary
from lipverify.checkers.kernel.gains import NORMS, Factors, Torus
from lipverify.checkers.kernel.neurons import Slopes as Pair
from lipverify.checkers.kernel.program import Product, Program, Scalar, views_of, width
from lipverify.checkers.kernel.ranges import Condition, Region
from lipverify.checkers.kernel.values import UNBOUNDED, slopes_everywhere
from lipverify.errors import NotCovered


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

    def __post_init__(self) -> None:
        size = (self.program.steps[0].size,)
        for r in self.regions:
            fits = all(a.shape == size and bool(np.isfinite(a).all()) for a in (r.centre, r.low, r.high))
            need(fits and bool(((r.low <= r.centre) & (r.centre <= r.high)).all()), "a misfit region")
            need(r.norm in ("l2", "linf") and 0.0 <= r.radius < 2.0**100, "a region that is no ball")

    @cached_property
    def reached(self) -> frozenset[int]:
        """The steps behind the last one."""
        return frozenset(behind(self.program.steps, len(self.program.steps) - 1))

    @cached_property
    def width(self) -> int:
        """Numbers of all results, and of all that steps look at: about what going once through the program takes."""
        steps = self.program.steps
        looked = (width(view, steps) for step in steps for view in views_of(step))
        return sum(step.size for step in steps) + sum(looked)

    @cached_property
    def elements(self) -> Elementary:
        """The program in elementary steps: made where layers are spoken of."""
        return elementary(self.program)

    @cached_property
    def whole(self) -> Elementary:
        """The same with whole maxima."""
        return elementary(self.program, True)

    @cached_property
    def steep(self) -> dict[int, Pair]:
        """Slopes over all inputs of layers that have none for every argument, of those that have any."""
        needed = any(isinstance(s, Product) or getattr(s, "law", "") in UNBOUNDED for s in self.program.steps)
        try:
            return slopes_everywhere(self.elements) if needed else {}
        except NotCovered:
            return {}

    @cached_property
    def factors(self) -> Factors:
        """By how much the steps of `steep` multiply changes of what they read, over all inputs: of products, of either factor."""
        found: dict[int, tuple[Fraction, ...]] = {}
        if not self.steep:
            return found
        p = self.elements
        layers = {step: k for k, step in enumerate(p.layers)}
        for number, step in enumerate(self.program.steps):
            slopes = self.steep.get(layers.get(p.place.get(number, -1), -1))
            if isinstance(step, Product | Scalar) and slopes is not None:
                most = np.abs(slopes).max(0).reshape(1 + isinstance(step, Product), -1).max(1)
                found[number] = tuple(map(Fraction, most.tolist()))
        return found

    def layers(self, start: int, end: int) -> list[int]:
        """Layers between two steps of the program.

        Raises:
            UnreadableCertificate: the second is no function of the first alone.
        """
        place = self.elements.place
        between = set(behind(self.elements.steps, place[end], place[start]))
        return [k for k, step in enumerate(self.elements.layers) if step in between]


class Scope:
    """What the fields of one step are read against; `start`, `end` and `of` are read before what they decide."""

    def __init__(self, subject: Subject, arrays: Mapping[str, Array], number: int) -> None:
        self.subject, self.arrays, self.number, self.uses = subject, arrays, number, set[int]()
        self.seen: dict[str, Any] = {"start": 0, "end": len(subject.program.steps) - 1}

    def size(self, name: str) -> int:
        return int(self.subject.program.steps[self.seen[name]].size)

    def integer(self, value: Any, low: int, high: int) -> int:
        need(type(value) is int and low <= value < high, "an integer out of its range")
        return int(value)

    def distinct(self, value: Any, read: Callable[[Any], int]) -> tuple[int, ...]:
        need(isinstance(value, list), "a list")
        found = tuple(read(v) for v in value)
        need(len(set(found)) == len(found), "a number twice in a list")
        return found

    def fact(self, value: Any) -> int:
        found = self.integer(value, 0, self.number)
        self.uses.add(found)
        return found

    def real(self, value: Any) -> float:
        """A float64 in the one form that Python writes in hexadecimal."""
        need(isinstance(value, str) and 5 < len(value) < 30, "a number is not hexadecimal")
        try:
            found = float.fromhex(value)
        except (ValueError, OverflowError):
            found = math.nan
        need(math.isfinite(found) and found.hex() == value, "a number in another form, or not finite")
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

    def norms(self, value: Any) -> tuple[str, str]:
        need(isinstance(value, list) and len(value) == 2, "two norms")
        return self.text(value[0], NORMS), self.text(value[1], NORMS)

    def step(self, value: Any) -> int:
        found = self.integer(value, 0, len(self.subject.program.steps))
        need(found in self.subject.reached, "a step that is not behind the output")
        return found

    def array(self, name: Any, shape: tuple[int, ...], positive: bool = True) -> Array:
        need(type(name) is str and name in self.arrays, "an array that is not there")
        found = self.arrays[name]
        need(found.dtype == np.float64 and found.shape == shape, "an array of another type or shape")
        charge(0, 8 * found.size)  # for every name of it: a list may have the same one as often as it likes
        need(bool((np.isfinite(found) & ((found > 0) | (not positive))).all()), "an array with other numbers")
        return found

    def rows(self, value: Any) -> Rows:
        """[low, high], or [low, low + 1, minus]."""
        need(isinstance(value, list) and len(value) in (2, 3), "rows")
        height = self.size("end")
        low, high = self.integer(value[0], 0, height), self.integer(value[1], 1, height + 1)
        minus = self.integer(value[2], 0, height) if len(value) == 3 else None
        need(low < high and (minus is None or (high == low + 1 and minus != low)), "rows")
        return Rows(low, high, minus)

    def condition(self, value: Any) -> Condition:
        need(isinstance(value, list) and len(value) == 4, "a condition")
        elements = self.subject.elements
        layer = self.integer(value[0], -1, len(elements.layers))
        entry = self.integer(value[1], 0, elements.size(layer))
        side = self.text(value[3], ("above", "below"))
        return Condition(layer, entry, self.real(value[2]), side == "above")

    def axis(self, value: Any) -> tuple[int, int]:
        need(isinstance(value, list) and len(value) == 2, "an axis of a torus")
        return self.integer(value[0], 1, (1 << 15) + 1), self.integer(value[1], 0, 2)

    def by_layer(self, value: Any, read: Callable[[Any, int], Any], start: str = "start") -> tuple[Any, ...]:
        layers = self.subject.layers(self.seen[start], self.seen["end"])
        need(isinstance(value, list) and len(value) == len(layers), "a list for other layers")
        return tuple(read(v, self.subject.elements.size(k)) for v, k in zip(value, layers, strict=True))

    def slopes(self, name: Any, size: int) -> Array | None:
        found = None if name is None else self.array(name, (2, size), positive=False)
        need(found is None or bool((found[0] <= found[1]).all()), "slopes that contradict each other")
        return found


def listed(read: Callable[[Scope, Any], Any]) -> Callable[[Scope, Any], tuple[Any, ...]]:
    def found(scope: Scope, value: Any) -> tuple[Any, ...]:
        need(isinstance(value, list), "a list")
        return tuple(read(scope, v) for v in value)

    return found


def or_null(read: Callable[[Scope, Any], Any]) -> Callable[[Scope, Any], Any]:
    return lambda scope, value: None if value is None else read(scope, value)


StepId = Annotated[int, Scope.step]
FactId = Annotated[int, Scope.fact]
Part = Annotated[int | None, or_null(Scope.fact)]
FactIds = Annotated[tuple[int, ...], lambda s, v: s.distinct(v, s.fact)]
Chain = Annotated[tuple[int, ...], lambda s, v: s.distinct(v, s.step)]
Grid = Annotated[Torus | None, or_null(listed(Scope.axis))]
Norm = Annotated[str, lambda s, v: s.text(v, NORMS)]
Norms = Annotated[tuple[str, str], Scope.norms]
RegionId = Annotated[int, lambda s, v: s.integer(v, 0, len(s.subject.regions))]
Conditions = Annotated[tuple[Condition, ...], listed(Scope.condition)]
Target = Annotated[Rows, Scope.rows]
Row = Annotated[int, lambda s, v: s.integer(v, 0, s.size("end"))]
Entry = Annotated[int, lambda s, v: s.integer(v, 0, s.size("start"))]
Sign = Annotated[int, Scope.sign]
Number = Annotated[float, Scope.real]
Limit = Annotated[float, Scope.limit]
Limits = Annotated[tuple[float, ...], listed(Scope.limit)]
Diagonal = Annotated[Array, lambda s, v: s.array(v, (s.size("of"),))]
Diagonals = Annotated[tuple[Array, ...], lambda s, v: s.by_layer(v, lambda name, n: s.array(name, (n,)))]
Slopes = Annotated[tuple[Array | None, ...] | None, or_null(lambda s, v: s.by_layer(v, s.slopes))]
Inputs = Annotated[Array | None, or_null(lambda s, v: s.array(v, (s.size("start"),)))]
