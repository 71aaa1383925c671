"""Proofs as they are written: steps of docs/proof-format.md, each held against the checker's kernel before the next one.

Nothing here needs trust: what is written is proved again from its bytes. Evidence (`Evidence.proof`) calls a `Writer` with what
its analyzer found: bounds, multipliers, parts of balls; the writer knows the program that the checker reads.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import cached_property, partial
from typing import Any, NamedTuple

import numpy as np
import torch

from lipverify.certificates import chains
from lipverify.certificates.fitting import costliest, derivatives, filled, neurons
from lipverify.checkers.envelope import Ball as BallOf
from lipverify.checkers.envelope import region_of
from lipverify.checkers.evaluation import evaluate
from lipverify.checkers.kernel import theorems
from lipverify.checkers.kernel.arithmetic import above
from lipverify.checkers.kernel.elementary import behind
from lipverify.checkers.kernel.language import Rows, Subject
from lipverify.checkers.kernel.program import Affine, Program
from lipverify.checkers.kernel.proof import parse_step
from lipverify.checkers.kernel.ranges import Condition, Empty, Ranges
from lipverify.checkers.kernel.theorems import AtLeast, Constant, Emptiness, Fact, Known, lowest
from lipverify.deadline import look
from lipverify.errors import NotCovered, RefutedCertificate
from lipverify.interpreter import evaluate_all
from lipverify.ir.graph import Graph
from lipverify.ir.region import Ball

Array = np.ndarray[Any, np.dtype[Any]]
ROOM = (0.0, 2.0**-26, 2.0**-22, 1e-6, 1e-4, 1e-3, 1e-2, 4.9e-2)
"""What multipliers may need above the bound of their analyzer, relatively, tried in this order; the first are rounding."""
NOTHING = 2.0**-200
"""Beyond the smallest numbers a bound of 0, for a network that is constant there, would need none of the checker's margins."""


NAMED: dict[str, dict[str, tuple[str, ...]]] = {
    "fact": {
        **dict.fromkeys(("multipliers", "jacobian", "sign", "value", "empty"), ("ranges",)),
        "product": ("gains",),
        "cover": ("above", "below"),
        "rows": ("of",),
        "compose": ("first", "second"),
        "walk": ("value", "constants"),
    },
    "region": {"ranges": ("region",), "carried": ("region",), "walk": ("regions",)},
    "array": {"implicit": ("multipliers",), "multipliers": ("wider", "blocks", "weights")},
}
"""Fields of steps that name facts, regions and arrays: they are numbered anew where some are left out."""
LITTLE = 1 << 24
"""Numbers of which derivatives everywhere are tried beside products of gains."""


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


@dataclass
class Writer:
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
        self._regions: list[Any] = []
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
        if ball not in self.balls:
            self.balls.append(ball)
            self._regions.append(region_of(ball, self.centres, self.box))
        return self.balls.index(ball)

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
                fact = theorems.THEOREMS[kind](self._facts, **step.fields)
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
                self._facts.found[number] = theorems.THEOREMS[step.kind](self._facts, **step.fields)

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
        except RefutedCertificate:
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

    # -- facts

    def ranges(self, part: Part) -> int:
        """What every layer reads over a part, or that no input is in it."""
        conditions = [
            [c.layer, c.entry, c.at.hex(), "above" if c.above else "below"] for c in part.conditions
        ]
        key = "ranges", part.region, part.conditions
        return self.once(key, lambda: self.add("ranges", region=part.region, conditions=conditions))

    def carried(self, part: Part, pairs: Mapping[int, int]) -> int:
        """The same, with the results of layers written as those of others plus a change."""
        conditions = [
            [c.layer, c.entry, c.at.hex(), "above" if c.above else "below"] for c in part.conditions
        ]
        written = [list(pair) for pair in pairs.items()]
        return self.add("carried", region=part.region, conditions=conditions, pairs=written)

    def at_least(self, ranges: int, rows: Rows, sign: int) -> tuple[int, float]:
        """A value of rows over a part, and the least it is shown to be; whoever checks the proof computes it again."""
        known = self.fact(ranges)
        if isinstance(known, Emptiness):
            return ranges, math.inf
        assert isinstance(known, Known)
        low = lowest(known.ranges, rows, sign)
        fields = {
            "ranges": ranges,
            "rows": [v for v in rows if v is not None],
            "sign": sign,
            "limit": low.hex(),
        }
        return self._put({"step": "value", **fields}, AtLeast(known.part, Fraction(low), rows, sign)), low

    def is_empty(self, number: int) -> bool:
        """Whether a fact is that no input is in its part."""
        return isinstance(self.fact(number), Emptiness)

    def empty(self, part: Part, weights: Sequence[float]) -> int:
        """A weighted sum of the conditions is negative everywhere."""
        return self.add("empty", ranges=self.ranges(part), weights=[float(w).hex() for w in weights])

    def product(self, part: Part) -> int:
        """Products of gains along the paths between two steps, everywhere; or, where they are larger than the analyzer's, ranges
        of all derivatives everywhere."""
        key = part.start, part.end, part.norms
        found = self.once(("product", *key), lambda: self._product(part))
        if self.limit(found) <= part.upper * (1.0 + 1e-6) + NOTHING or self._work(part) > LITTLE:
            return found
        wanted = replace(part.whole(), upper=part.upper)
        try:
            other = self.once(("derivatives", *key), lambda: self.jacobian(wanted))
        except RefutedCertificate:
            return found
        return other if self.limit(other) < self.limit(found) else found

    def _work(self, part: Part) -> int:
        """About how many numbers the derivatives of all rows are."""
        return (
            self.program.steps[part.end].size * sum(self.layers(part)) * self.program.steps[part.start].size
        )

    def _product(self, part: Part) -> int:
        gains: dict[int, int] = {}
        for stage in chains.stages(self.subject, part.start, part.end):
            if stage.kind == "implicit" and stage.last in gains:
                continue  # a smaller gain of the layer is proved
            try:
                gains[stage.last] = self.once(stage.key, partial(self._stage, stage))
            except RefutedCertificate:
                if stage.kind != "implicit":
                    raise
        missing = [k for k in chains.implicit_layers(self.subject, part.start, part.end) if k not in gains]
        if missing:
            raise NotCovered(
                f"the implicit layer at step {missing[0]} has no multipliers that the checker accepts"
            )
        proved = chains.constant(
            self.program, part.start, part.end, part.norms, [self.fact(g) for g in gains.values()]
        )
        return self.add("product", start=part.start, end=part.end, gains=list(gains.values()), norms=list(part.norms),
                        limit=above(proved).hex())  # fmt: skip

    def _stage(self, stage: chains.Stage) -> int:
        fields = dict(stage.fields)
        if stage.kind == "implicit":
            fields["multipliers"] = self.array(fields["multipliers"])
        return self.add(stage.kind, **fields)

    def jacobian(self, part: Part, most: float = math.inf, difference: tuple[int, int] | None = None) -> int:
        """Ranges of all derivatives of some rows over a part, at most the bound of the analyzer where they are `ahead`.

        Args:
            difference: of two outputs, instead of the rows of the part.

        Raises:
            RefutedCertificate: they prove more than `most`.
        """
        rows, norms = Rows(*part.rows), part.norms
        if difference is not None:
            rows = Rows(difference[0], difference[0] + 1, difference[1])
        ranges = None if part.region is None else self.ranges(part)
        fields = {
            "start": part.start,
            "end": part.end,
            "ranges": ranges,
            "rows": [v for v in rows if v is not None],
            "norms": list(norms),
        }
        if self.ahead and part.region is not None and not part.conditions:
            limit = part.upper * (1.0 + 2.0**-26) + NOTHING
        else:
            if ranges is not None and self.is_empty(ranges):
                return ranges
            try:
                proved = derivatives(self.subject, part.start, part.end, self._ranges(ranges), rows, norms)
            except Empty:
                assert ranges is not None
                empty = {"step": "jacobian", **fields, "limit": (0.0).hex()}
                return self._put(empty, self._emptiness(ranges))
            if not proved <= most:
                raise RefutedCertificate(f"ranges alone prove {proved:.6g}")
            near = proved <= part.upper * (1.0 + 1e-9) + NOTHING and math.isfinite(part.upper)
            limit = max(proved, part.upper) if near else proved
        known = theorems.Part(part.region, part.conditions)
        fact = Constant(known, Fraction(limit), part.start, part.end, rows, norms)
        return self._put({"step": "jacobian", **fields, "limit": limit.hex()}, fact)

    def difference(self, part: Part, label: int, rival: int) -> int:
        """The constant of the difference of two outputs over a part or everywhere, where no search has found one.

        Derivatives of all of it where they are few; else the product up to the last step that is not affine, times the rest.
        """
        if self._work(part) <= LITTLE:
            return self.jacobian(part, difference=(label, rival))
        steps = self.program.steps
        cut = max(
            (k for k in behind(steps, part.end, part.start) if not isinstance(steps[k], Affine)), default=0
        )
        first = self.product(self.between(part, (part.start, cut), (part.norms[0], "l2"), math.inf))
        rest = self.between(part.whole(), (cut, part.end), ("l2", part.norms[1]), math.inf)
        second = self.jacobian(rest, difference=(label, rival))
        return self.add("compose", first=first, second=second)

    def value(self, part: Part, difference: tuple[int, int]) -> tuple[int, float]:
        """The least value of the difference of two outputs over a ball: its fact, and the number."""
        ranges = self._ranges(self.ranges(part))
        assert ranges is not None
        low = lowest(ranges, Rows(difference[0], difference[0] + 1, difference[1]), 1)
        rows = [difference[0], difference[0] + 1, difference[1]]
        key = "value", part.region, difference
        number = self.ranges(part)
        made = self.once(key, lambda: self.add("value", ranges=number, rows=rows, sign=1, limit=low.hex()))
        return made, low

    def value_in_parts(self, part: Part, difference: tuple[int, int], parts: int) -> tuple[int, float]:
        """As `value`, above 0: of parts of the ball where that is needed, at most so many, split at the kinks that cost most.

        Raises:
            RefutedCertificate: they are not enough.
        """
        rows = Rows(difference[0], difference[0] + 1, difference[1])
        left = [parts]

        def proved(inner: Part) -> tuple[int, float]:
            left[0] -= 1
            number = self.ranges(inner)
            known = self.fact(number)
            if isinstance(known, Emptiness):
                return number, math.inf
            assert isinstance(known, Known)
            try:
                low = lowest(known.ranges, rows, 1)
            except Empty:
                low = math.inf
            if low > 0:
                limit = low if math.isfinite(low) else 0.0
                fields = {"rows": [v for v in rows if v is not None], "sign": 1, "limit": limit.hex()}
                return self.add("value", ranges=number, **fields), low
            place = costliest(self.subject, known.ranges, rows) if left[0] > 0 else None
            if place is None:
                raise RefutedCertificate(f"ranges alone prove {low:.6g} in {parts} parts")
            sides = [proved(inner.within(Condition(*place, 0.0, side))) for side in (True, False)]
            return self.add("cover", above=sides[0][0], below=sides[1][0]), min(low for _, low in sides)

        with self.attempt():
            return proved(part)

    def walk(self, value: int, shells: Sequence[tuple[int, int]]) -> int:
        """From a value on a ball outward: (constant, larger ball) one after another."""
        if not shells:
            return value
        constants, regions = zip(*shells, strict=True)
        return self.add("walk", value=value, constants=list(constants), regions=list(regions))

    def multipliers(
        self,
        part: Part,
        diagonals: Sequence[Array],
        *,
        row: int | None = None,
        minus: int | None = None,
        weights: Array | None = None,
        layers: Callable[[], Sequence[Layer]] | None = None,
    ) -> int:
        """LipSDP over a part or everywhere. diagonals: of every layer with unknown slopes, for these alone or for all neurons.

        Args:
            row, minus: one output, less another; by default all of `part.rows`. weights: of the inputs, for linf.
            layers: whose neurons the multipliers are those of, where it may be others than the checker's.
        """
        ranges = None if part.region is None else self.ranges(part)
        if ranges is not None and self.is_empty(ranges):
            return ranges
        rows = list(part.rows) if row is None else [row, row + 1, *([] if minus is None else [minus])]
        blocks, wider = self._fitted(part, ranges, diagonals, weights, layers)
        fields: dict[str, Any] = {
            "start": part.start,
            "end": part.end,
            "ranges": ranges,
            "wider": wider,
            "blocks": [self.array(b) for b in blocks],
            "weights": None if weights is None else self.array(weights),
            "rows": rows,
            "norms": list(part.norms),
        }
        for room in ROOM:
            try:
                return self.add("multipliers", **fields, limit=(part.upper * (1.0 + room)).hex())
            except NotCovered:
                raise
            except RefutedCertificate:
                if room == ROOM[-1]:
                    raise
        raise AssertionError("unreachable")

    def _fitted(
        self,
        part: Part,
        ranges: int | None,
        diagonals: Sequence[Array],
        weights: Array | None,
        layers: Callable[[], Sequence[Layer]] | None,
    ) -> tuple[list[Array], list[str | None] | None]:
        """Positive multipliers of all neurons of the checker's layers; and slopes as the analyzer knew them, if less."""
        places = self.subject.layers(part.start, part.end)
        known = self._ranges(ranges)
        found = neurons(self.subject, part.start, part.end, known, {})
        sizes = [self.subject.elements.size(k) for k in places]
        free = dict.fromkeys(places, np.empty(0, np.int64)) | {k: own for k, own, _ in found.layers}
        wider: dict[int, Array] = {}
        smooth = known is not None and any(k in known.bends for k in places)
        whole = {k: np.zeros(size) for k, size in zip(places, sizes, strict=True)}
        if [len(d) for d in diagonals] == sizes and not smooth:
            whole = {k: np.array(d) for k, d in zip(places, diagonals, strict=True)}
        elif layers is not None and (
            smooth or [len(d) for d in diagonals] != [len(free[k]) for k in places if len(free[k])]
        ):
            theirs = list(layers())
            if [layer.size for layer in theirs] != sizes:
                raise NotCovered("the checker arranges the layers of this network in another way")
            left = iter(diagonals)
            for k, layer in zip(places, theirs, strict=True):
                if len(layer.free):
                    whole[k][layer.free] = next(left)
                if known is not None and k in known.bends:
                    low, high = known.slopes[k]
                    wider[k] = np.array([np.minimum(layer.low, low), np.maximum(layer.high, high)])
            if wider:
                found = neurons(self.subject, part.start, part.end, known, wider)
        else:
            there = [k for k in places if len(free[k])]
            if [len(d) for d in diagonals] != [len(free[k]) for k in there]:
                raise NotCovered("the checker arranges the neurons of this network in another way")
            for k, d in zip(there, diagonals, strict=True):
                whole[k][free[k]] = d
        blocks = [whole[k][own] for k, own, _ in found.layers]
        if any((b <= 0).any() for b in blocks):
            blocks = filled(blocks, found, weights)
        # What is known of a neuron needs no multiplier: any number stands for it.
        complete = {k: np.ones(size) for k, size in zip(places, sizes, strict=True)}
        for (k, own, _), block in zip(found.layers, blocks, strict=True):
            complete[k][own] = block
        names = [self.array(wider[k]) if k in wider else None for k in places] if wider else None
        return [complete[k] for k in places], names

    def _ranges(self, number: int | None) -> Ranges | None:
        if number is None:
            return None
        fact = self.fact(number)
        assert isinstance(fact, Known)
        return fact.ranges

    def rows(self, part: Part, facts: Sequence[int]) -> int:
        """Constants of rows that follow each other, in any order, as one of all."""
        if len(facts) == 1:
            return facts[0]
        constants = [(self.fact(number), number) for number in facts]
        if all(isinstance(fact, Emptiness) for fact, _ in constants):
            return facts[0]
        order = sorted((fact.rows.low, number) for fact, number in constants if isinstance(fact, Constant))
        return self.add("rows", of=[number for _, number in order], norm=part.norms[1])

    # -- pieces of a network

    def span(self, first: str, last: str) -> tuple[int, int] | None:
        """The steps that compute the values of two nodes of the graph; None where they are one.

        Raises:
            NotCovered: the checker computes one of them nowhere as one step.
        """
        start, end = (self._step(name) for name in (first, last))
        return None if start == end else (start, end)

    def _step(self, name: str) -> int:
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


__all__ = ["Condition", "Layer", "Part", "Writer"]
