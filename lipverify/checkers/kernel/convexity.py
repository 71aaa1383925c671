"""Which numbers of a program are convex or concave functions of the input: what sums and compositions keep, step by step.

A sum with weights >= 0 of convex functions is convex; so is a convex rising function of a convex one, a convex falling function
of a concave one, any convex function of an affine one, and the maximum of convex ones (Boyd, Vandenberghe, section 3.2). Signs of
stored weights are exact; no number is computed.
"""

from __future__ import annotations

import numpy as np

from lipverify.checkers.kernel.account import charge
from lipverify.checkers.kernel.curves import curve
from lipverify.checkers.kernel.program import Affine, Array, Constant, Input, Order, Program, Scalar, Step


def bent(program: Program) -> tuple[Array, Array]:
    """For every number of the last step, whether it is known to be convex, and to be concave; both: affine. [size] each."""
    known: list[tuple[Array, Array]] = []
    for step in program.steps:
        charge(4 * step.size)
        known.append(_step(step, known))
    return known[-1]


def _step(step: Step, known: list[tuple[Array, Array]]) -> tuple[Array, Array]:
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
    curve(step.law, step.settings, step.slopes)  # the settings are the law's own
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
