"""What a program and a runtime make of the same inputs, entry by entry: differences in parts of what rounding allows.

What stands beside an entry says nothing of it: every one that both hold as a finite number of the type is compared. An entry
tells nothing where any number would be allowed: at inputs of ordinary sizes that is measured against how much it changes over
them, at others against its own size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from lipverify.checkers.evaluation import absorbed, evaluate_with_deviations
from lipverify.checkers.kernel.account import charge, held, returned
from lipverify.checkers.kernel.program import Array, Program, Scalar
from lipverify.checkers.reader.gates import work_of

FACTOR = 64.0
"""Standard deviations (`evaluation`) that a difference may have."""
CLEAR = 1.0 / 64.0
"""Where more than this part of a change is allowed in the type of the file, float64 is asked."""
UNITS = {"float16": 2.0**-11, "float32": 2.0**-24, "float64": 2.0**-52}
_SEVERAL, _IDLE = 8, 2.0**-10
"""Inputs that tell how much an entry changes; and for how much one counts that does not change at them."""
_BESIDE = 2.0**-10
"""Of the most that an entry of an output changes: below it, what the type does not show of another one is nothing."""
_ENDS = {2.0**-11: 3e4, 2.0**-24: 1e37, 2.0**-52: 1e150}
"""Rounding -> the largest numbers that are compared: beyond float64's own, squares of deviations are infinite."""


def rounds(program: Program) -> bool:
    """Whether it rounds to steps: next to a tie that is a whole step off, in any type."""
    return any(isinstance(step, Scalar) and step.law == "Round" for step in program.steps)


class Held(NamedTuple):
    """One comparison, of every input [n]: shares, differences in parts of what is allowed; told, whether an entry was compared.

    Of every entry of each output [n, size]: lost, whether it has no finite number; hidden, whether sums inside hide it, at inputs
    that do not have to tell. left: at how many ordinary inputs one entry has no finite number, at most. within: the most that is
    allowed at those that have to tell, in parts of how much an output changes over them.
    executed: the largest difference at those that have to tell, in the same parts.
    """

    evaluator: str
    shares: Array
    told: Array
    hidden: Sequence[Array]
    lost: Sequence[Array]
    left: int
    within: float
    executed: float
    unanswered: bool = False
    """Whether a second opinion was asked for and did not come."""

    @property
    def differ(self) -> bool:
        """Whether there is a difference that is no rounding."""
        return not bool((self.shares <= 1.0).all())

    @property
    def hides(self) -> bool:
        """Whether any other function would be allowed as well."""
        return not self.within <= 1.0


class _Seen:
    """Of every entry [n] of one output, over ordinary inputs so far: ours, theirs [2, n], smallest and largest; the most of
    what is allowed, and of the difference; at how many inputs it was left out."""

    def __init__(self, size: int) -> None:
        self.ours, self.theirs = (np.array([[np.inf], [-np.inf]]).repeat(size, 1) for _ in range(2))
        self.allowed, self.apart, self.left = np.zeros(size), np.zeros(size), np.zeros(size, np.int64)

    def add(self, ours: Array, theirs: Array, allowed: Array, told: Array) -> None:
        """More inputs, of which those entries count that are `told`. All: [inputs, n]."""
        for ends, numbers in ((self.ours, ours), (self.theirs, theirs)):
            np.minimum(ends[0], np.where(told, numbers, np.inf).min(0, initial=np.inf), out=ends[0])
            np.maximum(ends[1], np.where(told, numbers, -np.inf).max(0, initial=-np.inf), out=ends[1])
        for most, numbers in ((self.allowed, allowed), (self.apart, np.abs(ours - theirs))):
            np.maximum(most, np.where(told, numbers, 0.0).max(0, initial=0.0), out=most)

    def changes(self, unit: float) -> Array:
        """[n]: how much each entry changes, 0 for those that change by a few roundings or not at all."""
        change = np.maximum(self.ours[1] - self.ours[0], self.theirs[1] - self.theirs[0])
        return np.where(change <= 4.0 * unit * np.abs(self.theirs).max(0), 0.0, change)

    def unseen(self, unit: float, lost: Array) -> Array:
        """[n]: how much those entries change that seem constant in the type; 0 for what is nothing beside the others.

        lost: what float64 itself does not show of how much each changes.
        """
        seen = self.changes(unit)
        change = self.ours[1] - self.ours[0]
        change = np.where(change > self.allowed * (UNITS["float64"] / unit), change, lost)
        change = np.where((seen > 0) | ~np.isfinite(self.ours).all(0), 0.0, change)
        return np.where(change > _BESIDE * max(change.max(initial=0.0), seen.max(initial=0.0)), change, 0.0)

    def within(self, unit: float, lost: Array) -> float:
        """The most of what is allowed in parts of how much its entry changes, whether the type shows that or not."""
        return _parts(self.allowed, np.maximum(self.changes(unit), self.unseen(unit, lost)))

    def executed(self, unit: float, several: bool) -> float:
        """The largest difference in parts of how much its entry changes, of those where the type shows it.

        several: inputs, enough that few entries change little by chance, which is nothing beside the others; else each changes as
        much as all do, as a root of squares.
        """
        change = self.changes(unit)
        if change.any():
            least = _BESIDE * change.max() if several else np.sqrt(np.mean(change[change > 0] ** 2))
            change = np.where(change > 0, np.maximum(change, least), 0.0)
        return _parts(self.apart, change)


def _parts(most: Array, change: Array) -> float:
    """The largest of these numbers in parts of the changes beside them, but for those that are 0."""
    return float(np.where(change > 0, most / np.where(change > 0, change, 1.0), 0.0).max(initial=0.0))


def _absorbed(program: Program, outputs: Sequence[int], pair: Array) -> list[Array]:
    """Of each entry how much it changes from one input to another where float64 does not show it. pair: [2, inputs]."""
    before, sizes = held(), [s.size for s in program.steps]
    charge(3 * sum(sizes) + 12 * max(sizes), 8 * 5 * work_of(program))
    found = absorbed(program, pair)
    returned(before - held())
    return [found[k] for k in outputs]


def compared(program: Program, outputs: Sequence[int], inputs: Array, which: Array, found: Sequence[Array], unit: float,
             evaluator: str, ordinary: int, telling: int, rows: int) -> Held:  # fmt: skip
    """Holds the program against the numbers `found` of a runtime, a few inputs at once.

    Args:
        inputs: [n, inputs], the first of them `ordinary` ones, of which the first `telling` have to tell.
        which: the input of every row of `found`, each once first. found: [len(which), size] for each output.
        rows: how many inputs are evaluated together.
    """
    ties = rounds(program)
    seen = [_Seen(numbers.shape[1]) for numbers in found]
    shares, told_at = np.zeros(len(inputs)), np.zeros(len(inputs), bool)
    hidden_at, lost_at = ([np.zeros((len(inputs), one.shape[1]), bool) for one in found] for _ in range(2))
    for start in range(0, len(inputs), rows):
        results, deviations = evaluate_with_deviations(program, inputs[start : start + rows], unit)
        at = np.flatnonzero((which >= start) & (which < start + rows))
        own, plain = which[at] - start, (which[at] < telling)[:, None]
        usual = (which[at] < ordinary)[:, None]
        for place, k in enumerate(outputs):
            ours, spread, theirs = results[k][own], deviations[k][own], found[place][at]
            with np.errstate(all="ignore"):
                fine = np.isfinite(ours) & np.isfinite(theirs) & np.isfinite(spread)
                fine &= np.abs(ours) < _ENDS[unit]
                rounding = FACTOR * spread + unit * np.abs(ours)
                allowed = rounding + 2.0**-120
                size = np.maximum(np.abs(ours), np.abs(theirs))
                # At a gate, far out, sums may cancel: an entry that is all rounding is no function to compare.
                told = fine & (plain | (allowed <= size / 4.0))
                share = np.where(told, np.abs(ours - theirs) / allowed, 0.0)
                seen[place].add(ours, theirs, allowed, fine & plain)
                # Told or not, entries differ by eight times what is allowed at most: little of how much they change. At a tie
                # whole steps are allowed.
                part = (1.0, 16.0) if ties else (1.0 / 8.0, 1.0)
                hidden = fine & ~plain & (rounding > CLEAR * part[1] * size)
                change = seen[place].changes(unit)
                hidden &= rounding > CLEAR * part[0] * np.where(change > 0, change, _IDLE)
            seen[place].left += (usual & ~fine)[at < len(inputs)].sum(0)
            np.maximum.at(shares, which[at], share.max(1, initial=0.0))
            np.logical_or.at(told_at, which[at], told.any(1))
            np.logical_or.at(hidden_at[place], which[at], hidden)
            np.logical_or.at(lost_at[place], which[at], ~fine)
    lost = [np.zeros(numbers.shape[1]) for numbers in found]
    if any(bool((one.changes(unit) == 0).any()) for one in seen):
        lost = _absorbed(program, outputs, inputs[:2])
    return Held(
        evaluator,
        shares,
        told_at,
        hidden_at,
        lost_at,
        max(int(one.left.max(initial=0)) for one in seen),
        max(one.within(unit, gone) for one, gone in zip(seen, lost, strict=True)),
        max(one.executed(unit, telling >= _SEVERAL) for one in seen),
    )
