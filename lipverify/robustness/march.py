"""Where to look in l2: first where linear bounds end, then shell by shell outward with constants by semidefinite programs.

A look at linear bounds is cheap beside a constant. The margins M fall slower than their constants L promise at the ball before,
because L grows; so every shell ends half way to where M / L of the shell before ends, and the next one begins there.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from lipverify.analyzers.protocol import Compute
from lipverify.robustness.arithmetic import LARGEST
from lipverify.robustness.shells import Shell, Shells, between

Steepen = Callable[[float, Tensor, Tensor], Tensor | None]
"""Constants [rivals] on the ball of a radius; from constants that hold there already and the margins where its shell begins."""
FIRST, STEP, SHARE = 0.6, 0.4, 0.6
"""The first shell and the longest step, of the radius of linear bounds; the share of M / L that a step takes."""
POWER = 2.5
"""Of the radius, like which margins of attention are lost; until two balls tell it."""
ENOUGH = 0.1
"""The part of the resolution within which an end that is foreseen ends the search."""
LAST, NEAR = 1.0, 0.025
"""The share of the last step, which is taken once M / L is this part of the radius."""


POSITIVE = 5e-324
"""What a margin is at least that is only shown to be positive."""
PART, SHORT = 0.125, 0.05
"""The first step beyond what is certified, of the way to the attack; the share of the time left that makes a step short."""
TRIAL = 1 / 64
"""The first step of the radius where forms bound products and softmaxes: what they leave open no sign of a neuron settles."""


def grow(
    shells: Shells,
    prove: Callable[[float, float], bool],
    farthest: float,
    looks: int | None,
    resolution: float,
    compute: Compute,
    trial: bool = False,
) -> None:
    """Goes outward by branch and bound: every ball from the trees of the one before; longer steps while they are cheap.

    Args:
        farthest: no radius beyond can be certified. looks: balls at most; None: as many as time lasts for. trial: begin with a
            ball hardly larger, and end if not even that is proved.
    """
    low, high = max(shells.radius(), shells.optimised()), farthest
    step = PART * (high - low) if high < LARGEST else PART * low
    step = min(step, TRIAL * low) if trial else step
    while (looks is None or looks > 0) and step > resolution * low > 0.0:
        remaining = compute.remaining()
        radius = min(low + step, 0.5 * (low + high)) if high < LARGEST else low + step
        if remaining <= 0 or not low < radius < LARGEST:
            return
        started = time.monotonic()
        # Half of what is left: a ball that is too large leaves time for smaller ones.
        if prove(radius, started + 0.5 * remaining):
            margins = torch.full_like(shells.margin, POSITIVE)
            shells.known.append(Shell(radius, None, None, margins, branched=True))
            shells.known.sort(key=lambda shell: shell.radius)
            low = radius
            if time.monotonic() - started < SHORT * remaining or looks is not None:
                step *= 2.0
            trial = False
        elif trial:
            return
        else:
            high, step = radius, 0.5 * (radius - low)
        step = min(step, 0.5 * (high - low)) if high < LARGEST else step
        looks = None if looks is None else looks - 1


def bracket(shells: Shells, first: float, farthest: float, resolution: float, compute: Compute) -> None:
    """Looks at balls until linear bounds are known, or foreseen, to end within the resolution, or at the deadline.

    What the smallest margin has lost grows like a power of the radius that grows slowly: a secant in logarithms, and then an
    inverse parabola, find where all is lost. A ball too large shows nothing, so guesses are a little too small.
    """
    whole = float(shells.margin.min())
    low, high, radius = 0.0, farthest, first
    lost: list[tuple[float, float]] = []
    widths: list[float] = []
    for _ in range(64):
        if not 0.0 < radius < LARGEST or (shells.known and not shells.time_for_more(compute)):
            return
        margins = shells.add(radius).best
        value = -math.inf if margins is None else float(margins.min())
        if value > 0:
            low = radius
        else:
            high = radius
        if high - low <= resolution * high:
            return
        if -math.inf < value < whole:
            lost.append((math.log(radius), math.log1p(-value / whole)))
        widths.append(high - low)
        # Four guesses that do not halve the gap are no better than the middle.
        stuck = len(widths) > 4 and widths[-1] > 0.5 * widths[-5]
        end = None if stuck else _foreseen(low, high, lost)
        if end is not None and end <= low * (1.0 + ENOUGH * resolution):
            return
        radius = _next(low, high, end, resolution)


def _next(low: float, high: float, end: float | None, resolution: float) -> float:
    """A little inside of the end that is foreseen; the middle where none is."""
    if high >= LARGEST:
        return 2.0 * low
    if end is None:
        return between(low, high)
    inside = 0.1 * resolution * high
    return min(max(end * (1.0 - 0.5 * ENOUGH * resolution), low + inside), high - inside)


def _foreseen(low: float, high: float, lost: list[tuple[float, float]]) -> float | None:
    """Where the guesses so far predict the end, between `low` and `high`; None where they say nothing.

    Args:
        lost: logarithms of radii and of the lost share of the margin, 0 at the end.
    """
    near = sorted((point for point in lost if abs(point[1]) <= 3.0), key=lambda point: abs(point[1]))[:3]
    ends = []
    if len(near) == 3:
        (a, x), (b, y), (c, z) = near
        if len({x, y, z}) == 3:
            ends = [
                a * y * z / ((x - y) * (x - z))
                + b * x * z / ((y - x) * (y - z))
                + c * x * y / ((z - x) * (z - y))
            ]
    if len(near) > 1:
        (a, x), (b, y) = near[:2]
        # Linear bounds lose margin at least in proportion to the radius.
        ends.append(a - x / (max((y - x) / (b - a), 1.0) if y != x else 1.0))
    elif near:
        ends = [near[0][0] - near[0][1] / POWER]
    lowest = math.log(low) if low > 0.0 else -math.inf
    return next((math.exp(end) for end in ends if lowest < end < math.log(high)), None)


def march(
    shells: Shells, steepen: Steepen, farthest: float, looks: int, resolution: float, compute: Compute
) -> None:
    """Gives constants to at most `looks` balls, outward; stops where nothing is gained, or at the deadline.

    Args:
        farthest: no radius beyond can be certified (an example lies there).
    """
    base = max(shells.linear(), shells.radius())
    if not 0.0 < base < farthest:
        return
    radius, ceiling, last = FIRST * base, farthest, False
    longest = shells.longest
    for left in range(looks - 1, -1, -1):
        if not 0.0 < radius < LARGEST or compute.remaining() <= longest:
            return
        started = time.monotonic()
        if not _steepened(shells, steepen, radius):
            return
        longest = max(longest, time.monotonic() - started)
        reached = shells.radius()
        if reached < radius:
            # The constants of this ball are too large: a smaller one is worth more.
            ceiling = min(ceiling, radius)
            following, start = 0.5 * (reached + ceiling), reached
        elif last:
            return
        else:
            rest = _rest(shells, radius)
            last = left == 1 or rest <= NEAR * radius
            share = LAST if last else SHARE
            following = radius + min(share * rest, STEP * base)
            if following >= ceiling:
                following = ceiling if last else 0.5 * (radius + ceiling)
            start = radius
        if following - start <= resolution * following:
            return
        radius = following


def _steepened(shells: Shells, steepen: Steepen, radius: float) -> bool:
    """Computes the constants on one ball, new or seen before; whether there are any."""
    if all(shell.radius != radius for shell in shells.known):
        shells.add(radius)
    place = next(k for k, shell in enumerate(shells.known) if shell.radius == radius)
    margin, slope = shells.state(radius)
    known = torch.full_like(shells.margin, torch.inf) if slope is None else slope
    found = steepen(radius, known, margin)
    if found is None:
        return False
    shells.known[place] = replace(shells.known[place], constants=found)
    return True


def _rest(shells: Shells, radius: float) -> float:
    """How far the margins at a radius last with the constants of its ball."""
    margin, slope = shells.state(radius, inside=False)
    return 0.0 if slope is None else float((margin / slope.clamp_min(1e-300)).min())
