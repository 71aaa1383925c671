"""A proof as it grows: its balls, its steps, each held against the checker's kernel before the next one, its arrays, its end."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch

from lipverify.checkers.evaluation import evaluate
from lipverify.checkers.kernel import theorems
from lipverify.checkers.kernel.arithmetic import above
from lipverify.checkers.kernel.language import Subject
from lipverify.checkers.kernel.program import Program
from lipverify.checkers.kernel.proof import added, parse_step
from lipverify.checkers.kernel.ranges import Condition, Empty, Region
from lipverify.checkers.kernel.theorems import Constant, Emptiness, Fact, Known
from lipverify.checkers.regions import Ball as BallOf
from lipverify.checkers.regions import region_of
from lipverify.deadline import look
from lipverify.errors import LipverifyError, NotCovered
from lipverify.interpreter import evaluate_all
from lipverify.ir.graph import Graph
from lipverify.ir.region import Ball

Array = np.ndarray[Any, np.dtype[Any]]
NAMED: dict[str, dict[str, tuple[str, ...]]] = {
    "fact": {
        **dict.fromkeys(("multipliers", "jacobian", "sign", "value", "leaf", "empty"), ("ranges",)),
        "product": ("gains",),
        "cover": ("above", "below"),
        "rows": ("of",),
        "compose": ("first", "second"),
        "walk": ("value", "constants"),
    },
    "region": {"ranges": ("region",), "largest": ("region",), "carried": ("region",), "walk": ("regions",)},
    "array": {
        "implicit": ("multipliers",),
        "multipliers": ("wider", "blocks", "weights"),
        "frequencies": ("channels", "blocks"),
        "leaf": ("slopes",),
    },
}
"""Fields of steps that name facts, regions and arrays: they are numbered anew where some are left out."""


class Layer(NamedTuple):
    """Neurons of an analyzer: how many, which of them have an unknown slope, and the ranges of all slopes."""

    size: int
    free: Array
    low: Array
    high: Array


@dataclass(frozen=True)
class Part:
    """What a fact is wanted about: a centre of the question (0 for the whole space), its ball, conditions, steps, rows and norms.

    upper: the bound of the analyzer, for what has to be told a number.
    """

    centre: int
    region: int | None
    upper: float
    norms: tuple[str, str]
    start: int
    end: int
    rows: tuple[int, int]
    conditions: tuple[Condition, ...] = ()

    def within(self, condition: Condition) -> Part:
        """The inputs that fulfil one more condition."""
        return replace(self, conditions=(*self.conditions, condition))

    def whole(self) -> Part:
        """Without its ball: everywhere."""
        return replace(self, region=None, conditions=())


class _Regions(Sequence[Region]):
    """The regions of balls, each made when it is looked at: of many balls all boxes together are twice their centres."""

    def __init__(self, balls: Sequence[BallOf], centres: Array, box: tuple[Array, Array] | None) -> None:
        self._balls, self._given = balls, (centres, box)
        self._last: tuple[int, Region] | None = None

    def __len__(self) -> int:
        return len(self._balls)

    def __getitem__(self, place: Any) -> Any:
        if self._last is None or self._last[0] != place:
            self._last = place, region_of(self._balls[place], *self._given)
        return self._last[1]


@dataclass
class Record:
    """A proof about a program. centres: [count, inputs] and box: those that regions are balls around, and are cut by.

    ahead: Jacobians are expected to prove the bound of the analyzer with a little room, and are not computed: whoever checks the
        proof does that anyway, and on convolutional networks it is what takes the time.
    """

    graph: Graph
    program: Program
    centres: Array
    box: tuple[Array, Array] | None = None
    ahead: bool = False
    steps: list[dict[str, Any]] = field(default_factory=list)
    arrays: dict[str, Array] = field(default_factory=dict)
    balls: list[BallOf] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._regions = _Regions(self.balls, self.centres, self.box)
        self._places = {ball: k for k, ball in enumerate(self.balls)}
        self.subject = Subject(self.program, self._regions)
        self._facts = theorems.Facts(self.subject)
        self._shared: dict[Any, int] = {}
        self._names: dict[bytes, str] = {}
        self._alive: list[int] = []

    # -- what the proof is about

    @property
    def last(self) -> int:
        """The step that a claim is about."""
        return len(self.program.steps) - 1

    def region(self, norm: str, radius: float, centre: int, box: bool = False) -> int:
        """The number of a ball; the same one for the same ball."""
        ball = BallOf(norm, radius, centre, box)
        if ball not in self._places:
            self._places[ball] = len(self.balls)
            self.balls.append(ball)
        return self._places[ball]

    def part(self, region: int | None, norms: tuple[str, str], upper: float, centre: int = 0) -> Part:
        """All of the output, over a ball or everywhere."""
        last = self.last
        return Part(centre, region, upper, norms, 0, last, (0, self.program.steps[last].size))

    def between(self, part: Part, span: tuple[int, int], norms: tuple[str, str], upper: float) -> Part:
        """All of one step as a function of another, over the same ball."""
        rows = 0, self.program.steps[span[1]].size
        return replace(part, start=span[0], end=span[1], norms=norms, upper=upper, rows=rows)

    def ball(self, part: Part) -> Ball:
        """The ball of a part, for the analyzer's own ranges."""
        assert part.region is not None
        ball = self.balls[part.region]
        shape = (1, *self.graph.input_shape)
        box = None
        if ball.box and self.box is not None:
            low, high = (torch.from_numpy(end.copy()).reshape(shape[1:]) for end in self.box)
            box = low, high
        centre = torch.from_numpy(self.centres[ball.centre].copy()).reshape(shape)
        return Ball(centre, ball.radius, ball.norm, box)

    def ends(self, region: int) -> tuple[Array, Array]:
        """The smallest box around a ball: (low, high) [inputs] each."""
        known = self._regions[region]
        return known.low, known.high

    def layers(self, part: Part) -> list[int]:
        """How many numbers every layer of the checker reads."""
        elements = self.subject.elements
        return [elements.size(k) for k in self.subject.layers(part.start, part.end)]

    # -- steps

    def add(self, kind: str, **fields: Any) -> int:
        """One more step, proved at once; the number of its fact.

        Raises:
            RefutedCertificate: it does not hold. NotCovered: there is no theorem for it.
        """
        look()
        entry = {"step": kind, **fields}
        step = parse_step(entry, len(self.steps), self.arrays, self.subject)
        self._recall(step.uses)
        try:
            with np.errstate(all="ignore"):
                fact = added(self._facts, step)
        except Empty:
            fact = self._emptiness(step.fields["ranges"])
        return self._put(entry, fact)

    def _emptiness(self, ranges: int) -> Emptiness:
        """What ranges that contradict each other say, as `kernel.proof.prove` reads it."""
        known = self.fact(ranges)
        assert isinstance(known, Known)
        return Emptiness(known.part, Fraction(0))

    def _put(self, entry: dict[str, Any], fact: Fact) -> int:
        self.steps.append(entry)
        self._facts.found.append(fact)
        number = len(self.steps) - 1
        if isinstance(fact, Known):
            # Ranges hold matrices: those of two parts at a time.
            self._alive.append(number)
            for old in self._alive[:-2]:
                self._facts.found[old] = None
            self._alive = self._alive[-2:]
        return number

    def _recall(self, numbers: Sequence[int] | frozenset[int]) -> None:
        """Ranges that were let go are computed again."""
        for number in numbers:
            if self._facts.found[number] is None:
                step = parse_step(self.steps[number], number, self.arrays, self.subject)
                self._facts.found[number] = added(self._facts, step)

    def fact(self, number: int) -> Fact:
        """A fact by its number."""
        self._recall([number])
        found = self._facts.found[number]
        assert found is not None
        return found

    def limit(self, number: int) -> float:
        """The number of a constant, rounded up; 0 where there is no input."""
        fact = self.fact(number)
        assert isinstance(fact, Constant | Emptiness)
        return above(fact.limit)

    def exact_limit(self, number: int) -> Fraction:
        """The number of a constant."""
        fact = self.fact(number)
        assert isinstance(fact, Constant)
        return fact.limit

    @contextmanager
    def attempt(self) -> Iterator[None]:
        """What is written inside is taken back when it fails."""
        before = len(self.steps)
        try:
            yield
        except LipverifyError:
            del self.steps[before:], self._facts.found[before:]
            self._alive = [k for k in self._alive if k < before]
            self._shared = {key: k for key, k in self._shared.items() if k < before}
            raise

    def once(self, key: Any, make: Callable[[], int]) -> int:
        """A fact that several parts share."""
        if key not in self._shared:
            self._shared[key] = make()
        return self._shared[key]

    def array(self, values: Array) -> str:
        """The name of an array of the sidecar; the same one for the same numbers."""
        values = np.ascontiguousarray(values, dtype=np.float64)
        key = repr(values.shape).encode() + values.tobytes()
        if key not in self._names:
            self._names[key] = f"array.{len(self._names):06d}"
            self.arrays[self._names[key]] = values
        return self._names[key]

    # -- pieces of a network

    def span(self, first: str, last: str) -> tuple[int, int] | None:
        """The steps that compute the values of two nodes of the graph; None where they are one.

        Raises:
            NotCovered: the checker computes one of them nowhere as one step.
        """
        start, end = (self.step(name) for name in (first, last))
        return None if start == end else (start, end)

    def step(self, name: str) -> int:
        """The step that computes the value of a node of the graph; as `span`."""
        if name == self.graph.input.name:
            return 0
        if name == self.graph.output.name:
            return self.last
        wanted, results = self._values[name], self._results
        for k in sorted(self.subject.elements.place):
            if results[k].shape == wanted.shape and np.allclose(results[k], wanted, rtol=1e-9, atol=1e-12):
                return k
        raise NotCovered(f"the checker computes the value {name[:60]!a} nowhere as one step")

    @cached_property
    def _points(self) -> Array:
        return np.random.default_rng(0).standard_normal((3, self.program.steps[0].size))

    @cached_property
    def _results(self) -> list[Array]:
        return evaluate(self.program, self._points)

    @cached_property
    def _values(self) -> dict[str, Array]:
        points = torch.from_numpy(self._points).reshape(-1, *self.graph.input_shape)
        found = evaluate_all(self.graph.to(dtype=torch.float64), points)
        return {name: value.reshape(len(points), -1).numpy() for name, value in found.items()}

    # -- the end

    def finished(
        self, claims: Sequence[int], places: Mapping[int, int] | None = None
    ) -> tuple[dict[str, Any], dict[str, Array], list[BallOf]]:
        """The proof of these facts, its arrays and its balls, without what they do not rest on.

        Args:
            places: new rows of centres, of which some are left out.
        """
        steps = [parse_step(entry, k, self.arrays, self.subject) for k, entry in enumerate(self.steps)]
        needed, waiting = set(claims), list(claims)
        while waiting:
            for used in steps[waiting.pop()].uses - needed:
                needed.add(used)
                waiting.append(used)
        place = {old: new for new, old in enumerate(sorted(needed))}
        regions = sorted({n for old in needed for n in _values(self.steps[old], "region")})
        region = {old: new for new, old in enumerate(regions)}
        written = []
        for old in sorted(needed):
            entry = _renumbered(self.steps[old], "fact", place)
            written.append(_renumbered(entry, "region", region))
        names = sorted({name for entry in written for name in _values(entry, "array")})
        balls = [self.balls[k] for k in regions]
        if places is not None:
            balls = [ball._replace(centre=places[ball.centre]) for ball in balls]
        proof = {"steps": written, "claims": [place[k] for k in claims]}
        return proof, {name: self.arrays[name] for name in names}, balls


def _renumbered(entry: dict[str, Any], rule: str, place: Mapping[int, int]) -> dict[str, Any]:
    """A step with other numbers in the fields of a rule."""
    found = dict(entry)
    for name in _fields(entry, rule):
        known = entry[name]
        found[name] = (
            None if known is None else place[known] if isinstance(known, int) else [place[k] for k in known]
        )
    return found


def _values(entry: dict[str, Any], rule: str) -> Iterator[Any]:
    """What the fields of a rule hold."""
    for name in _fields(entry, rule):
        for value in entry[name] if isinstance(entry[name], list) else [entry[name]]:
            if value is not None:
                yield value


def _fields(entry: dict[str, Any], rule: str) -> tuple[str, ...]:
    return NAMED[rule].get(entry["step"], ())
