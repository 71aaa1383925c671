"""Signs of derivatives; and which numbers are convex or concave functions of the input: what sums and compositions keep.

A sum with weights >= 0 of convex functions is convex; so is a convex rising function of a convex one, a convex falling function
of a concave one, any convex function of an affine one, and the maximum of convex ones (Boyd, Vandenberghe, section 3.2). Signs of
stored weights are exact; no number is computed.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from lipverify.checkers.kernel import language as is_
from lipverify.checkers.kernel.account import charge
from lipverify.checkers.kernel.arithmetic import need
from lipverify.checkers.kernel.curves import curve
from lipverify.checkers.kernel.jacobians import explicit, gradients
from lipverify.checkers.kernel.neurons import Differences
from lipverify.checkers.kernel.program import (
    Affine,
    Array,
    Constant,
    Implicit,
    Input,
    Order,
    Program,
    Scalar,
    Step,
)
from lipverify.checkers.kernel.signals import INPUT, Signal, scaled
from lipverify.checkers.kernel.theorems import Facts, Part, Stated, between, shown, theorem
from lipverify.errors import NotCovered


def bent(program: Program) -> tuple[Array, Array]:
    """For every number of the last step, whether it is known to be convex, and to be concave; both: affine. [size] each."""
    known: list[tuple[Array, Array]] = []
    for step in program.steps:
        charge(4 * step.size)
        known.append(_step(step, known))
    return known[-1]


def _step(step: Step, known: list[tuple[Array, Array]]) -> tuple[Array, Array]:
    if isinstance(step, Implicit):
        raise NotCovered(
            "convexity of networks with implicit layers, which may have no value, is not covered by the checker"
        )
    if isinstance(step, Input | Constant):
        return np.ones(step.size, bool), np.ones(step.size, bool)
    # Place -1 is the number 0: affine.
    convex, concave = (
        np.concatenate([*(known[s][side] for s in step.view.sources), [True]])[step.view.places]
        for side in (0, 1)
    )
    if isinstance(step, Affine):
        return _summed(step, convex, concave), _summed(step, concave, convex)
    if isinstance(step, Scalar):
        affine = convex & concave
        rising, falling, up, down = _law(step)
        inner = affine | (rising & convex) | (falling & concave)
        outer = affine | (rising & concave) | (falling & convex)
        return np.asarray(up & inner), np.asarray(down & outer)
    if isinstance(step, Order):
        charge(step.groups.size)
        every = [
            np.all(np.concatenate([side, [True]])[step.groups], axis=1, keepdims=False)
            for side in (convex, concave)
        ]
        if not step.whole:
            return np.asarray(every[0]), np.asarray(every[1] & ((step.groups >= 0).sum(1) < 2))
        top = np.zeros((2, *step.groups.shape), bool)
        top[0, :, -1], top[1, :, 0] = every
        return top[0].reshape(-1), top[1].reshape(-1)
    return np.zeros(step.size, bool), np.zeros(step.size, bool)


def _summed(step: Affine, convex: Array, concave: Array) -> Array:
    """Sums all of whose terms are convex: [size]."""
    groups, out, terms = step.kernel.shape
    charge(2 * groups * step.index.shape[1] * terms, groups * out * step.index.shape[1] * terms)
    bad: Array = np.zeros(())
    for sign, side in ((1.0, convex), (-1.0, concave)):
        missing = ~np.concatenate([side, [True]])[step.index]
        bad = bad + (sign * step.kernel > 0).astype(np.float64) @ missing.astype(np.float64).swapaxes(1, 2)
    return np.asarray(bad == 0.0).reshape(-1)


def _law(step: Scalar) -> tuple[Array, Array, Array, Array]:
    """Whether the function rises, falls, is convex, is concave, everywhere: [size] each, or one for all."""
    if curve(step.law, step.settings, step.slopes).positive:  # the settings are the law's own
        # 0 times such a number is not 0 where there is none.
        raise NotCovered(
            "convexity of networks with functions of positive numbers alone is not covered by the checker"
        )
    none, given = np.zeros((), bool), {"min": -np.inf, "max": np.inf, "beta": 1.0} | dict(step.settings)
    kinks = {"Relu": 0.0, "Abs": -1.0, "LeakyRelu": given.get("alpha", 0.01), "PRelu": step.slopes}
    if step.law in kinks:
        left = np.asarray(kinks[step.law])
        return left >= 0.0, none, left <= 1.0, left >= 1.0
    laws = {"Exp": (True, False), "Square": (True, False), "Softplus": (given["beta"] > 0.0, given["beta"] < 0.0),
            "Celu": (True, False), "Elu": (0.0 <= given.get("alpha", 1.0) <= 1.0, False), "LogSigmoid": (False, True),
            "Clip": (given["max"] == np.inf, given["min"] == -np.inf)}  # fmt: skip
    up, down = (np.asarray(end) for end in laws.get(step.law, (False, False)))
    return (up | down) & (step.law != "Square"), none, up, down


def never_falling(found: Differences, output: Signal) -> Array:
    """For which inputs no path to the one row `output` has a negative product: exact where slopes, and so ranges, end at 0."""
    explicit(found)
    if min(x.least for x in (*found.blocks, output)) < -900:
        return np.zeros(found.inputs, dtype=bool)
    paths: dict[int, Array] = {}  # whether positive and whether negative paths lead from a source to the row

    def add(x: Signal, ways: Array) -> None:
        for key, m in x.parts.items():
            error, there = x.errors(key), x.size(key) > 0
            positive, negative = (m > -error) & there, (m < error) & there
            rising = ways[0] @ positive | ways[1] @ negative
            falling = ways[0] @ negative | ways[1] @ positive
            paths[key] = paths.get(key, False) | np.array([rising, falling])

    add(output, np.array([[True], [False]]))
    for k in reversed(range(len(found.blocks))):
        if k in paths:
            add(found.blocks[k], paths.pop(k))
    return ~paths[INPUT][1] if INPUT in paths else np.ones(found.inputs, dtype=bool)


@dataclass(frozen=True)
class Monotone(Stated):
    """Along a segment in the direction of the input, almost wherever it is in the part, sign times the row does not fall."""

    row: int
    input: int
    sign: int


@dataclass(frozen=True)
class Bent(Stated):
    """sign times the row is a convex function of the input."""

    row: int
    sign: int


@theorem
def sign(facts: Facts, *, ranges: is_.Part, row: is_.Row, input: is_.Entry, sign: is_.Sign) -> Monotone:
    """No path to the row has a negative product, or the range of the derivative is on one side of 0."""
    need(not facts.subject.exact, "exact checking covers no ranges")
    part, known = facts.ranges(ranges)
    found = between(facts, 0, len(facts.subject.program.steps) - 1, known)
    output = scaled(np.array([float(sign)]), found.output.rows([row]))
    if not never_falling(found, output)[input]:
        (gradient,) = gradients(found, known, output, True)
        shown(bool(gradient.low[0, input] >= 0), "a derivative without that sign")
    return Monotone(part, Fraction(0), row, input, sign)


@theorem
def convex(facts: Facts, *, row: is_.Row, sign: is_.Sign) -> Bent:
    """Sums with weights of one sign, convex functions that rise or fall, maxima: what these keep, step by step."""
    shown(
        bool(bent(facts.subject.program)[0 if sign > 0 else 1][row]), "a row that is not known to be convex"
    )
    return Bent(Part(), Fraction(0), row, sign)
