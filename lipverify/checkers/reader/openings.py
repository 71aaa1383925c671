"""Inputs where gates of a program open and close: what lies behind relu(x - 2^20) is 0 at every input of an ordinary size.

Along lines through the regions of a claim, and through 0, the program says between which points an argument of an activation
passes a bend of it, or another entry of a maximum takes over. Inputs are taken there: gates that no other input moves come first.
Those that no line opens, such as conjunctions, are climbed: every step goes as far along the gate's own slope as the gate asks.
One line through each region and one through 0 are looked at whatever a program costs, with fewer points where it costs much.

Nothing is proved with this, and not every gate is found: it makes faults of the reader show that nobody hid on purpose.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from lipverify.checkers.kernel.program import Array, Program
from lipverify.checkers.reader.gates import Gates

_GATES = 1 << 12
"""Gates that are looked at."""
_LOOKING = 1 << 29
"""Products of numbers that looking for gates may take, beyond the lines that are always looked at: half a second."""
_AMONG = 1 << 20
"""Gates of which those are chosen that no known input turns."""
_LINES, _TARGETS, _CLIMB = 6, 4, 32
_RAW = (20, 28, 40, 60, 90)
"""Sizes of inputs, as powers of 2, that are taken whatever the program says: a gate may be what the reader missed."""
_REGIONS = 3
_SHARE = (5.0**0.5 - 1.0) / 2.0


class Around(NamedTuple):
    """A part of the input space that a claim is about: a point of it and the ends of a box around it, [inputs] each."""

    centre: Array
    low: Array
    high: Array


class Opened(NamedTuple):
    """rows: more inputs [count, inputs], what matters most first. gates: [count], which of them lie at gates.

    some: whether the program has gates.
    """

    rows: Array
    gates: Array
    some: bool


class _Effort(NamedTuple):
    """Points of lines through 0 and of lines through regions, how many gates are followed on each, and in how many rounds."""

    far: Array
    within: Array
    gates: int
    rounds: int

    @property
    def points(self) -> int:
        """How often the program is evaluated for one line."""
        return max(len(self.far), len(self.within)) + self.gates * self.rounds


def _effort(powers: Sequence[int], within: int, gates: int, rounds: int) -> _Effort:
    far = 2.0 ** np.array(powers)
    return _Effort(np.concatenate([-far[::-1], [0.0], far]), np.linspace(-1.0, 1.0, within), gates, rounds)


_EFFORTS = (
    _effort(range(-8, 125, 4), 33, 8, 10),
    _effort((-8, 0, 4, 8, 12, 20, 28, 40, 60, 80, 124), 17, 6, 8),
    _effort((0, 6, 12, 20, 40, 80), 9, 3, 6),
    _effort((4, 20, 60), 5, 3, 3),
)
"""The last one is made whatever it costs."""


class _Line(NamedTuple):
    """origin + t direction, for t in ascending order: at these points the program is looked at."""

    origin: Array
    direction: Array
    at: Array

    def points(self, t: Array) -> Array:
        return np.asarray(self.origin + np.outer(t, self.direction))


def openings(
    program: Program, known: Array, rng: np.random.Generator, regions: Sequence[Around] = ()
) -> Opened:
    """More inputs: of large sizes, in the regions, and at gates. known: inputs that are taken anyway, [n, inputs]."""
    size, gates = program.steps[0].size, Gates(program)
    each = max(1, gates.work + gates.work_at(_GATES))
    chosen = [regions[k] for k in rng.permutation(len(regions))[:_REGIONS]]
    points, least = _LOOKING // each, len(chosen) + 1
    effort = next((e for e in _EFFORTS if least * e.points <= points), _EFFORTS[-1])
    rows = [(2, 2.0**k * rng.standard_normal(size)) for k in _RAW]
    lines = [
        _Line(np.zeros(size), rng.standard_normal(size), effort.far),
        _Line(np.zeros(size), np.ones(size), effort.far),
        _Line(np.zeros(size), np.sign(rng.standard_normal(size)), effort.far),
        _Line(np.zeros(size), 1.0 * (np.arange(size) == rng.integers(size)), effort.far),
    ]
    for k, region in enumerate(chosen):
        corner = np.where(rng.random(size) < 0.5, region.low, region.high)
        inner = region.low + (region.high - region.low) * rng.random(size)
        rows += [(1, region.centre), (1, corner), (0, inner)]
        lines.insert(k, _Line(region.centre, corner - region.centre, effort.within))
    found = list[tuple[int, Array]]()
    if gates.count:
        looked, search = min(_LINES, max(least, points // effort.points)), _Search(gates, known, rng, effort)
        found = [row for line in lines[:looked] for row in search.along(line)]
        found += search.climbed(points - looked * effort.points)
    every = [(*row, False) for row in rows] + [(*row, True) for row in found]
    every.sort(key=lambda row: row[0])
    inputs = np.array([x for _, x, _ in every]).reshape(-1, size)
    return Opened(inputs, np.array([at for _, _, at in every], bool), gates.count > 0)


class _Search:
    """Gates of a program that are looked at, and how they stood at the inputs so far.

    side, turned: [gates], whether each is on at the first input, and whether it is not so at another one. rare: at how many
    known inputs it stands as at the fewest. near: of those that did not turn how near they came to it, from below 0; nearest: at
    which input.
    """

    def __init__(self, gates: Gates, known: Array, rng: np.random.Generator, effort: _Effort) -> None:
        self.gates, self.rng, self.effort, self.points = gates, rng, effort, list[Array]()
        most = max(_GATES, min(_AMONG, _LOOKING // (4 * len(known) * gates.work_at(1))))
        some = rng.permutation(self.gates.count)[:most]
        signs = self.gates.at(known, some) > 0
        idle = (signs == signs[:1]).all(0)
        self.chosen = some[np.argsort(~idle, kind="stable")[:_GATES]]
        z = self.gates.at(known, self.chosen)
        self.rare = (z > 0).sum(0)
        self.rare = np.minimum(self.rare, len(known) - self.rare)
        self.side, self.turned = z[0] > 0, np.zeros(len(self.chosen), bool)
        self.near, self.nearest = np.full(len(self.chosen), -np.inf), np.zeros(len(self.chosen), np.int64)
        self._note(known, z)

    def _note(self, x: Array, z: Array) -> None:
        finite = np.isfinite(z)
        self.turned |= (finite & ((z > 0) != self.side)).any(0)
        short = np.where(finite, np.where(self.side, -z, z), -np.inf)
        best = short.argmax(0)
        value = short[best, np.arange(len(best))]
        nearer = value > self.near
        self.near[nearer], self.nearest[nearer] = value[nearer], len(self.points) + best[nearer]
        self.points += list(x)

    def along(self, line: _Line) -> Iterator[tuple[int, Array]]:
        """How much they matter, and inputs of this line where gates turn: behind each, and between one and the next."""
        idle, x = ~self.turned, line.points(line.at)
        z = self.gates.at(x, self.chosen)
        self._note(x, z)
        passes = np.isfinite(z[:-1]) & np.isfinite(z[1:]) & ((z[:-1] > 0) != (z[1:] > 0))
        gates = np.flatnonzero(passes.any(0))
        # Those that fewest inputs have turned: what lies behind them has been compared least.
        fresh, other = gates[idle[gates]], self.rng.permutation(gates[~idle[gates]])
        other = other[np.argsort(self.rare[other], kind="stable")]
        most = self.effort.gates
        fresh = fresh[: most - min(len(other), most // 4)]
        picked = np.append(fresh, other[: most - len(fresh)])
        if not len(picked):
            return
        # Of a gate that is passed twice the nearest passage to the origin.
        first = np.array([min(np.flatnonzero(passes[:, g]), key=lambda k: abs(line.at[k])) for g in picked])
        turns = self._turns(line, first, z[first, picked], z[first + 1, picked], self.chosen[picked])
        # Not in the middle: between the ends of a quantiser that is a tie, which runtimes round as their last bits say.
        behind, between = turns * (1 + _SHARE * 2.0**-5), turns[:-1] + (turns[1:] - turns[:-1]) * _SHARE
        for t in (behind, between):
            yield from zip([0] + [1] * len(t), line.points(t), strict=False)
        yield from ((3, row) for row in line.points(np.append(line.at[first + (line.at[first] >= 0)], turns)))

    def _turns(self, line: _Line, first: Array, below: Array, above: Array, gates: Array) -> Array:
        """Where these gates turn between the points `first` and those after them: the end that is nearer to it, ascending."""
        own, low, high = np.arange(len(gates)), line.at[first], line.at[first + 1]
        for k in range(self.effort.rounds):
            t = low + (high - low) * (below / (below - above)) if k % 2 == 0 else low + (high - low) / 2
            t = np.where(np.isfinite(t), np.clip(t, low, high), low + (high - low) / 2)
            z = self.gates.at(line.points(t), gates)[own, own]
            left = (z > 0) == (below > 0)
            low, below = np.where(left, t, low), np.where(left, z, below)
            high, above = np.where(left, high, t), np.where(left, above, z)
        return np.unique(np.where(np.abs(below) < np.abs(above), low, high))

    def climbed(self, points: int) -> Iterator[tuple[int, Array]]:
        """Inputs around gates that no input has turned yet, by at most so many evaluations: of each as far as its slope asks."""
        closed = np.flatnonzero(~self.turned & np.isfinite(self.near))
        if not len(closed):
            return
        # The last ones of the program, behind others, and any.
        picked = np.unique(
            np.append(closed[self.chosen[closed].argsort()[-_TARGETS // 2 :]], closed[: _TARGETS // 2])
        )
        gates, sign = self.chosen[picked], np.where(self.side[picked], -1.0, 1.0)
        start = np.array([self.points[k] for k in self.nearest[picked]])
        x, left = start.copy(), np.ones(len(picked), bool)
        for _ in range(min(_CLIMB, points // (4 * len(picked)))):
            rows = np.flatnonzero(left)
            z, slope = self.gates.uphill(x[rows], gates[rows], False)
            flat = ~slope.any(1)
            if flat.any():
                slope[flat] = self.gates.uphill(x[rows[flat]], gates[rows[flat]], True)[1]
            square = np.square(slope).sum(1)
            ask = np.divide(
                1.25 * np.abs(z) + 2.0**-40, square, out=np.full(len(square), np.nan), where=square > 0
            )
            moved = x[rows] + (sign[rows] * ask)[:, None] * slope
            going = (sign[rows] * z <= 0) & np.isfinite(moved).all(1)
            x[rows[going]] = moved[going]
            left[rows[~going]] = False
            if not left.any():
                break
        z = sign * self.gates.at(x, gates)[np.arange(len(x)), np.arange(len(x))]
        for k in np.flatnonzero(z > 0):
            yield 0, x[k]
            # On the way there and beyond, others turn.
            yield from self.along(_Line(start[k], x[k] - start[k], 1.0 + self.effort.within))
