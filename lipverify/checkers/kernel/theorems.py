"""Every proof step: a theorem that is checked from its fields and the facts that it names, and the facts there are.

The list in words is docs/proof-format.md. A theorem raises RefutedCertificate where what it would say is not shown.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import pairwise
from typing import TypeVar

import numpy as np

from lipverify.checkers.kernel import gains as paths
from lipverify.checkers.kernel import language as is_
from lipverify.checkers.kernel.arithmetic import above, need, root_above, trimmed
from lipverify.checkers.kernel.elementary import elementary
from lipverify.checkers.kernel.jacobians import jacobian_limit, moving
from lipverify.checkers.kernel.language import Rows, Subject
from lipverify.checkers.kernel.multipliers import multipliers_hold
from lipverify.checkers.kernel.neurons import Differences, differences, everywhere
from lipverify.checkers.kernel.program import Affine, Implicit, Input, Program, View
from lipverify.checkers.kernel.ranges import Condition, Ranges
from lipverify.checkers.kernel.ranges import Empty as NoInput
from lipverify.checkers.kernel.signals import Signal, mapped
from lipverify.checkers.kernel.theories import theory_of
from lipverify.errors import NotCovered, RefutedCertificate


@dataclass(frozen=True)
class Part:
    """Inputs in a region (its number in the certificate; None: everywhere) that fulfil conditions, and what a theory says."""

    region: int | None = None
    conditions: tuple[Condition, ...] = ()
    within: Hashable = None


@dataclass(frozen=True)
class Gained:
    """The last step of a chain, as a function of what the first one reads, changes by at most `gains` times as much."""

    first: int
    last: int
    gains: paths.Gains


@dataclass(frozen=True)
class Known:
    """Ranges over a part."""

    part: Part
    ranges: Ranges


@dataclass(frozen=True)
class Stated:
    """A statement about all inputs of a part, which statements about two halves of it make again."""

    part: Part
    limit: Fraction


@dataclass(frozen=True)
class Emptiness(Stated):
    """No input fulfils the conditions of the part; the limit says nothing."""


@dataclass(frozen=True)
class Constant(Stated):
    """Along a segment of inputs, almost wherever it is in the part, rows of `end` change at most limit times as fast as `start`.

    In the norms of `start` and of `end`. So from step 0 the rows of two points x, y of a whole region differ by limit |x - y|.
    """

    start: int
    end: int
    rows: Rows
    norms: tuple[str, str]


@dataclass(frozen=True)
class AtLeast(Stated):
    """sign times the row of the last step, or every one of several rows, is at least the limit."""

    rows: Rows
    sign: int


Fact = Gained | Known | Stated
Kind = TypeVar("Kind")
Theorem = Callable[..., Fact]
THEOREMS: dict[str, Theorem] = {}
"""Of the core, and of the theories that are loaded."""


def theorem(check: Theorem) -> Theorem:
    """A theorem under the name of its function: of the theory that this name belongs to, or of the core."""
    name, home = check.__name__, theory_of(check.__name__)
    module = __name__ if home is None else f"lipverify.checkers.theories.{home}"
    if check.__module__ != module or name in THEOREMS:
        raise ValueError(f"{name!r} is no step of {check.__module__}, or there are two")
    THEOREMS[name] = check
    return check


class Facts:
    """The facts so far, by their numbers; None where no later step needs one."""

    def __init__(self, subject: Subject) -> None:
        self.subject = subject
        self.found: list[Fact | None] = []

    def get(self, number: int, kind: type[Kind]) -> Kind:
        fact = self.found[number]
        need(isinstance(fact, kind), f"fact {number} is of another kind than the step needs")
        assert isinstance(fact, kind)
        return fact

    def ranges(self, number: int | None) -> tuple[Part, Ranges | None]:
        if number is None:
            return Part(), None
        known = self.get(number, Known)
        return known.part, known.ranges


def shown(condition: bool, message: str) -> None:
    if not condition:
        raise RefutedCertificate(message)


def _narrow(parts: Iterable[Part]) -> Part:
    """The one part among these that is not everything."""
    found = set(parts) - {Part()}
    need(len(found) < 2, "facts about different parts")
    return found.pop() if found else Part()


def picked(x: Signal, rows: Rows) -> Signal:
    if rows.minus is None:
        return x.rows(range(rows.low, rows.high))
    return mapped(np.array([[[1.0, -1.0]]]), np.array([[[rows.low, rows.minus]]]), x)


@theorem
def gain(facts: Facts, *, chain: is_.Chain, torus: is_.Grid, limit: is_.Limit) -> Gained:
    """A chain of affine steps has at most this l2 gain: limit^2 I - M'M is definite for its matrix, or for its symbol on a torus.

    Other norms by sums of absolute entries.
    """
    steps = facts.subject.program.steps
    maps = [s for k in chain if isinstance(s := steps[k], Affine)]
    need(len(maps) == len(chain) > 0, "a chain of other steps than affine ones")
    need(all(steps[b].view.sources == (a,) for a, b in pairwise(chain)), "steps that are no chain")
    found = paths.chain_gains(maps, limit, torus, facts.subject.exact)
    shown(found is not None, f"the gain {limit!r} of step {chain[-1]} is not proved")
    return Gained(chain[0], chain[-1], found or {})


@theorem
def implicit(facts: Facts, *, of: is_.StepId, multipliers: is_.Diagonal, limit: is_.Limit) -> Gained:
    """An implicit layer has one solution, and at most this l2 gain: the matrix of `multipliers` for it alone is definite."""
    step = facts.subject.program.steps[of]
    need(isinstance(step, Implicit), "another step than an implicit layer")
    n, none = len(step.view.places), View((), np.empty(0, dtype=np.int64))
    alone = elementary(Program((Input(none, n), replace(step, view=View((0,), np.arange(n))))))
    found = differences(alone, 0, 1, lambda k: None)
    shown(multipliers_hold(found, found.output, [multipliers], limit, None, facts.subject.exact),
           f"the multipliers of step {of} do not prove {limit!r}")  # fmt: skip
    return Gained(of, of, {("l2", "l2"): Fraction(limit)})


@theorem
def product(facts: Facts, *, start: is_.StepId, end: is_.StepId, gains: is_.FactIds, norms: is_.Norms,
            limit: is_.Limit) -> Constant:  # fmt: skip
    """Products of gains along every path, sums where paths meet."""
    given = [facts.get(k, Gained) for k in gains]
    chains = {g.last: (g.first, g.gains) for g in given}
    need(len(chains) == len(given), "two gains of one step")
    steps = facts.subject.program.steps
    factors = {} if facts.subject.exact else facts.subject.factors
    found = paths.product_constant(steps, start, end, norms, chains, factors)
    shown(found <= Fraction(limit), f"the gains prove {above(found)!r}, not {limit!r}")
    return Constant(Part(), Fraction(limit), start, end, Rows(0, steps[end].size), norms)


@theorem
def ranges(facts: Facts, *, region: is_.RegionId, conditions: is_.Conditions) -> Known | Emptiness:
    """Ranges of what every layer reads over a part, computed anew; or that it is empty, where they contradict each other."""
    return known_over(facts, Part(region, conditions), Ranges)


@theorem
def largest(facts: Facts, *, region: is_.RegionId) -> Known | Emptiness:
    """The same over a region, of the program with maxima as layers of their own: for derivatives and values alone."""
    return known_over(facts, Part(region), lambda p, r, c: Ranges(facts.subject.whole, r, c))


def known_over(facts: Facts, part: Part, make: Callable[..., Ranges]) -> Known | Emptiness:
    if facts.subject.exact:
        raise NotCovered("exact checking covers no ranges")
    assert part.region is not None
    try:
        return Known(part, make(facts.subject.elements, facts.subject.regions[part.region], part.conditions))
    except NoInput:
        return Emptiness(part, Fraction(0))


def counted(facts: Facts, known: Ranges | None) -> None:
    """Fields that are listed by layers count those of the program without whole maxima."""
    if known is not None and known.program is not facts.subject.elements:
        raise NotCovered("ranges of whole maxima, in a step that lists layers")


def between(
    facts: Facts,
    start: int,
    end: int,
    known: Ranges | None,
    wider: is_.Slopes = None,
    cut: bool = False,
) -> Differences:
    """Neurons between two steps; slopes as given have to hold those that are known. cut: whether sums may be blocks."""
    subject = facts.subject
    p = subject.elements if known is None else known.program
    given = dict(subject.steep if known is None else known.slopes)
    if known is None and subject.exact and given:
        raise NotCovered("exact checking covers no ranges")
    for k, pair in zip(subject.layers(start, end), wider or (), strict=wider is not None):
        if pair is not None:
            low, high = given[k] if k in given else everywhere(p.steps[p.layers[k]])
            held = bool(((pair[0] <= low) & (high <= pair[1])).all())
            shown(held, "slopes that are not shown to be as given")
            given[k] = pair[0], pair[1]
    return differences(p, p.place[start], p.place[end], given.get, cut=cut)


@theorem
def multipliers(facts: Facts, *, start: is_.StepId, end: is_.StepId, ranges: is_.Part, wider: is_.Slopes,
                blocks: is_.Diagonals, weights: is_.Inputs, rows: is_.Target, norms: is_.Norms,
                limit: is_.Limit) -> Constant:  # fmt: skip
    """LipSDP: one matrix, made of the neurons between two steps and of multipliers, is definite."""
    part, known = facts.ranges(ranges)
    need(norms[0] == ("l2" if weights is None else "linf"), "weights of the inputs go with linf")
    need(norms[1] != "l1" or rows.high == rows.low + 1, "l1 of several rows")
    counted(facts, known)
    found = between(facts, start, end, known, wider)
    places = {k: n for n, k in enumerate(facts.subject.layers(start, end))}
    own = [blocks[places[k]][free] for k, free, _ in found.layers]
    holds = multipliers_hold(found, picked(found.output, rows), own, limit, weights, facts.subject.exact)
    shown(holds, f"the multipliers do not prove {limit!r}")
    return Constant(part, Fraction(limit), start, end, rows, norms)


@theorem
def jacobian(facts: Facts, *, start: is_.StepId, end: is_.StepId, ranges: is_.Part, rows: is_.Target, norms: is_.Norms,
             limit: is_.Limit) -> Constant:  # fmt: skip
    """Ranges of all derivatives, gradients pushed back through slopes in their ranges; computed anew."""
    need(not facts.subject.exact, "exact checking covers no ranges")
    part, known = facts.ranges(ranges)
    found = between(facts, start, end, known, cut=True)
    proved = jacobian_limit(found, known, picked(found.output, rows), norms, moving(known, start))
    shown(proved <= limit, f"the derivatives prove {proved!r}, not {limit!r}")
    return Constant(part, Fraction(limit), start, end, rows, norms)


@theorem
def value(
    facts: Facts, *, ranges: is_.FactId, rows: is_.Target, sign: is_.Sign, limit: is_.Number
) -> AtLeast:
    """Rows of the last step, pushed back to the input."""
    known = facts.get(ranges, Known)
    shown(lowest(known.ranges, rows, sign) >= limit, f"a value that is not shown to be {limit!r}")
    return AtLeast(known.part, Fraction(limit), rows, sign)


def lowest(known: Ranges, rows: Rows, sign: int) -> float:
    """The least of these rows times sign, by the best of the forms that the last step is known in."""
    forms = [known.chain.ranges(picked(x, rows)) for x in known.outputs]
    return float(np.max([low if sign > 0 else -high for low, high in forms], 0).min())


@theorem
def cover(facts: Facts, *, above: is_.FactId, below: is_.FactId) -> Fact:
    """Two parts that differ in the side of their last condition are together the part without it; an empty one needs no bound."""
    sides = [facts.get(k, Stated) for k in (above, below)]
    need(all(s.part.conditions for s in sides), "a part without conditions")
    wholes = [replace(s.part, conditions=s.part.conditions[:-1]) for s in sides]
    first, second = (s.part.conditions[-1] for s in sides)
    opposite = first.above and first._replace(above=False) == second
    need(opposite, "parts that are not the two sides of a condition")
    need(wholes[0] == wholes[1], "parts that differ in more than a condition")
    stated = [s for s in sides if not isinstance(s, Emptiness)] or sides
    worst = (max if isinstance(stated[0], Constant) else min)(s.limit for s in stated)
    found = [replace(s, part=wholes[0], limit=worst) for s in stated]
    need(found[0] == found[-1], "facts that say different things of the two sides")
    return found[0]


@theorem
def rows(facts: Facts, *, of: is_.FactIds, norm: is_.Norm) -> Constant:
    """Constants of rows one after another make one of all: the largest, the root of the sum of squares, the sum."""
    found = [facts.get(k, Constant) for k in of]
    need(found, "no rows")
    first, last = found[0], found[-1]
    for c in found:
        same = (c.start, c.end, c.norms[0]) == (first.start, first.end, first.norms[0])
        need(same and c.rows.minus is None, "constants of other functions")
        need(c.norms[1] == norm or c.rows.high == c.rows.low + 1, "constants in another norm")
    need(all(a.rows.high == b.rows.low for a, b in pairwise(found)), "rows that do not follow each other")
    limits = [c.limit for c in found]
    squares = sum((v * v for v in limits), Fraction(0))
    whole = {"linf": max(limits), "l1": sum(limits, Fraction(0)), "l2": root_above(squares)}[norm]
    part, all_rows = _narrow(c.part for c in found), Rows(first.rows.low, last.rows.high)
    return Constant(part, whole, first.start, first.end, all_rows, (first.norms[0], norm))


@theorem
def compose(facts: Facts, *, first: is_.FactId, second: is_.FactId) -> Constant:
    """The constant of one function times that of the next, which is a function of all that the first one gives."""
    a, b = (facts.get(k, Constant) for k in (first, second))
    whole = Rows(0, facts.subject.program.steps[a.end].size)
    need(a.end == b.start and a.rows == whole, "functions that do not follow")
    need(a.norms[1] == b.norms[0], "constants in different norms")
    part, norms = _narrow([a.part, b.part]), (a.norms[0], b.norms[1])
    return Constant(part, trimmed(a.limit * b.limit), a.start, b.end, b.rows, norms)
