"""What values can be whatever the input is: saturating functions are bounded by themselves, and so are the factors of gates."""

from __future__ import annotations

from contextlib import suppress

import numpy as np

from lipverify.checkers.kernel.arithmetic import TINY, Array
from lipverify.checkers.kernel.curves import curve
from lipverify.checkers.kernel.elementary import Elementary, Within, met
from lipverify.checkers.kernel.neurons import Slopes, follow
from lipverify.checkers.kernel.program import Implicit, Product, Scalar, Step
from lipverify.checkers.kernel.signals import Signal
from lipverify.errors import NotCovered

_SATURATED = {"Sigmoid": (0.0, 1.0), "HardSigmoid": (0.0, 1.0), "Tanh": (-1.0, 1.0), "Erf": (-1.0, 1.0),
              "Softsign": (-1.0, 1.0), "Sin": (-1.0, 1.0), "Cos": (-1.0, 1.0)}  # fmt: skip
"""Values of these laws for every number."""
UNBOUNDED = {"Square", "Exp", "Log", "Sqrt", "Reciprocal", "Power"}
"""Laws without slopes everywhere."""
_MARK, _LEAST = 0, -900.0
"""The source whose part is a mark; log2 of sizes below which one might underflow."""


def slopes_everywhere(p: Elementary) -> dict[int, Slopes]:
    """Slopes over all inputs of layers that have none for every argument, where what they read is bounded.

    Statement: of products, y for x and x for y: x y - x' y' = y (x - x') + x' (y - y'), for any two inputs. Of scalar functions
    the range of the derivative on an interval that holds every argument.
    Signals have no parts but marks: a row with a mark may be anything, of others `ends` are known.
    """
    found: dict[int, Slopes] = {}

    def layer(k: int, step: Step, v: Signal) -> Signal:
        if k < 0 or isinstance(step, Implicit):
            return _values(np.full(step.size, -np.inf), np.full(step.size, np.inf))
        if v.least < _LEAST:
            raise NotCovered("values over all inputs of a network with numbers that small are not covered")
        if v.ends is None:
            raise NotCovered(f"{type(step).__name__} over all inputs of numbers without ends is not covered")
        marked = ~np.isfinite(v.ends).all(0)
        if _MARK in v.parts:
            marked |= v.size(_MARK)[:, 0] > 0
        low, high = np.where(marked, -np.inf, v.ends[0]), np.where(marked, np.inf, v.ends[1])
        if not isinstance(step, Product):
            assert isinstance(step, Scalar)
            return _scalar(step, low, high, found, k)
        n = step.size
        if bool((np.isfinite(low) & np.isfinite(high)).all()):
            found[k] = np.roll(low, n), np.roll(high, n)
        with np.errstate(invalid="ignore", over="ignore"):
            corners = np.array([a[:n] * b[n:] for a in (low, high) for b in (low, high)])
        # 0 * infinity: the infinite end is a limit that no input reaches.
        corners = np.where(np.isnan(corners), 0.0, corners)
        slack = 2.0**-50 * np.abs(corners).max(0) + TINY
        bottom, top = corners.min(0), corners.max(0)
        bottom, top = (np.where(np.isfinite(e), e + s * slack, e) for e, s in ((bottom, -1), (top, 1)))
        if isinstance(step, Within):
            bottom, top = np.maximum(bottom, step.least), np.minimum(top, step.most)
        return _values(bottom, top)

    follow(p, 0, len(p.steps) - 1, layer, met)
    return found


def _scalar(step: Scalar, low: Array, high: Array, found: dict[int, Slopes], k: int) -> Signal:
    """Values of a function on intervals, some of them without an end. found: gets the slopes of one that has none everywhere."""
    least, most = _SATURATED.get(step.law, (-np.inf, np.inf))
    if step.law == "Clip":
        least, most = (dict(step.settings).get(key, end) for key, end in (("min", least), ("max", most)))
    known = np.isfinite(low) & np.isfinite(high)
    bottom, top = np.full(step.size, least), np.full(step.size, most)
    with suppress(NotCovered), np.errstate(all="ignore"):
        f = curve(step.law, step.settings, step.slopes)
        ends = np.where(known, low, 1.0), np.where(known, high, 1.0)
        slopes = f.slopes(*ends)
        if step.law in UNBOUNDED and bool(known.all() and np.isfinite(slopes).all()):
            found[k] = slopes
        lines = f.lines(*ends, *slopes)
        bottom = np.where(known, np.maximum(lines.low, least), bottom)
        top = np.where(known, np.minimum(lines.high, most), top)
    return _values(bottom, top)


def _values(low: Array, high: Array) -> Signal:
    """Values in these intervals; a row with an infinite end is marked."""
    known = np.isfinite(low) & np.isfinite(high)
    marks = np.where(known, 0.0, 1.0)[:, None]
    ends = np.array([np.where(known, low, 0.0), np.where(known, high, 0.0)])
    return Signal({_MARK: marks}, {_MARK: marks}, 1, ends=ends)
