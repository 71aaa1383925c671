"""Inputs where gates of a program open and close: what lies behind relu(x - 2^20) is 0 at every input of an ordinary size.

Along lines through 0, and through the regions of a claim, the program says between which points an argument of an activation
passes a bend of it, or another entry of a maximum takes over. Inputs are taken there: gates that no other input moves come first.
Nothing is proved with this, and not every gate is found: it makes faults of the reader show that nobody hid on purpose.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from lipverify.checkers.evaluation import evaluate, shown
from lipverify.checkers.kernel.account import charge
from lipverify.checkers.kernel.program import Affine, Array, Order, Program, Scalar, Softmax

_GATES = 1 << 12
"""Arguments that are looked at."""
_CHOSEN, _ROUNDS, _LINES = 6, 10, 6
_LADDER = np.concatenate([-(2.0 ** np.arange(100, -9, -4)), [0.0], 2.0 ** np.arange(-8, 101, 4)])
_WITHIN = np.linspace(-1.0, 1.0, 33)
_RAW = (20, 28, 40, 60, 90)
"""Sizes of inputs, as powers of 2, that are taken whatever the program says: a gate may be what the reader missed."""
_REGIONS = 3
_SHARE = (5.0**0.5 - 1.0) / 2.0


class Around(NamedTuple):
    """A part of the input space that a claim is about: a point of it and the ends of a box around it, [inputs] each."""

    centre: Array
    low: Array
    high: Array


class _Line(NamedTuple):
    """origin + t direction, for t in ascending order: at these points the program is looked at."""

    origin: Array
    direction: Array
    at: Array

    def points(self, t: Array) -> Array:
        return np.asarray(self.origin + np.outer(t, self.direction))


def openings(
    program: Program, known: Array, rng: np.random.Generator, work: int, regions: Sequence[Around] = ()
) -> Array:
    """More inputs [count, inputs]: of large sizes, in the regions, and at gates.

    Args:
        known: inputs that are taken anyway, [n, inputs]. work: products of numbers that looking for gates may take.
    """
    size, each = program.steps[0].size, max(1, work_of(program))
    chosen = [regions[k] for k in rng.permutation(len(regions))[:_REGIONS]]
    rows = [2.0**k * rng.standard_normal(size) for k in _RAW]
    lines = [
        _Line(np.zeros(size), rng.standard_normal(size), _LADDER),
        _Line(np.zeros(size), np.ones(size), _LADDER),
    ]
    for region in chosen:
        corner = np.where(rng.random(size) < 0.5, region.low, region.high)
        rows += [region.centre, corner, region.low + (region.high - region.low) * rng.random(size)]
        lines.insert(0, _Line(region.centre, corner - region.centre, _WITHIN))
    lines.append(_Line(np.zeros(size), np.sign(rng.standard_normal(size)), _LADDER))
    lines.append(_Line(np.zeros(size), 1.0 * (np.arange(size) == rng.integers(size)), _LADDER))
    lines = lines[: min(_LINES, work // (2 * each * len(_LADDER)))]
    if lines:
        charge(
            8 * len(_LADDER) * sum(step.size for step in program.steps),
            each * len(_LADDER) * (len(lines) + 4),
        )
        rows += _at_gates(program, known, rng, lines)
    return np.array(rows).reshape(-1, size)


def work_of(program: Program) -> int:
    """Products of numbers that one input takes."""
    return sum(s.index.size * s.kernel.shape[1] if isinstance(s, Affine) else s.size for s in program.steps)


def _at_gates(
    program: Program, known: Array, rng: np.random.Generator, lines: Sequence[_Line]
) -> Iterator[Array]:
    signs = _arguments(program, known) > 0
    idle = (signs == signs[:1]).all(0)
    order = np.argsort(rng.random(len(idle)) - idle)[:_GATES]
    idle, found = idle[order], set[int]()
    for line in lines:
        z = _arguments(program, line.points(line.at))[:, order]
        with np.errstate(all="ignore"):
            passes = np.isfinite(z[:-1]) & np.isfinite(z[1:]) & ((z[:-1] > 0) != (z[1:] > 0))
        gates = np.flatnonzero(passes.any(0))
        fresh = [int(g) for g in gates if idle[g] and g not in found]
        other = [int(g) for g in rng.permutation(gates) if not idle[g]]
        picked = [*fresh[:_CHOSEN], *other[:2]]
        if not picked:
            continue
        found |= set(fresh[:_CHOSEN])
        # Of a gate that is passed twice the nearest passage to the origin.
        first = [min(np.flatnonzero(passes[:, g]), key=lambda k: abs(line.at[k])) for g in picked]
        low, high = line.at[first], line.at[np.array(first) + 1]
        yield from line.points(np.unique(np.where(np.abs(low) > np.abs(high), low, high)))
        yield from _between(program, line, low, high, order[picked])


def _between(program: Program, line: _Line, low: Array, high: Array, gates: Array) -> Iterator[Array]:
    """At the places between low and high [n] where the gates turn, and between one place and the next."""
    own = np.arange(len(gates))
    below, above = (_arguments(program, line.points(end))[own, gates] for end in (low, high))
    for k in range(_ROUNDS):
        with np.errstate(all="ignore"):
            t = low + (high - low) * (below / (below - above)) if k % 2 == 0 else low + (high - low) / 2
        t = np.where(np.isfinite(t), np.clip(t, low, high), low + (high - low) / 2)
        z = _arguments(program, line.points(t))[own, gates]
        left = (z > 0) == (below > 0)
        low, below = np.where(left, t, low), np.where(left, z, below)
        high, above = np.where(left, high, t), np.where(left, above, z)
    turns = np.unique(np.concatenate([low, high]))
    # Not in the middle: between the ends of a quantiser that is a tie, which runtimes round as their last bits say.
    between = turns[:-1] + (turns[1:] - turns[:-1]) * _SHARE
    yield from line.points(np.concatenate([turns, between, turns * (1 + _SHARE * 2.0**-5)]))


def _arguments(program: Program, x: Array) -> Array:
    """[batch, gates]: how far every argument of an activation is beyond a bend, and every entry beyond the largest other one."""
    results, found = evaluate(program, x), [np.zeros((len(x), 1))]
    for step in program.steps:
        if isinstance(step, Scalar):
            z = shown(step.view, results)
            scale = np.abs(step.slopes) if step.law == "Round" and step.slopes is not None else 1.0
            bends = {0.0, *(s * v for _, v in step.settings if np.isfinite(v) for s in (1.0, -1.0))}
            found += [z - scale * bend for bend in sorted(bends)]
        elif isinstance(step, Order | Softmax):
            z = np.append(shown(step.view, results), np.full((len(x), 1), -np.inf), axis=1)[:, step.groups]
            if z.shape[-1] > 1:
                top = np.sort(z, axis=-1)
                with np.errstate(all="ignore"):
                    other = np.where(z == top[..., -1:], top[..., -2:-1], top[..., -1:])
                    found.append((z - other).reshape(len(x), -1))
    return np.concatenate(found, axis=1)
