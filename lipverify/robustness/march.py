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
from lipverify.robustness.ends import End
from lipverify.robustness.shells import Shell, Shells

Steepen = Callable[[float, Tensor, Tensor], Tensor | None]
"""Constants [rivals] on the ball of a radius; from constants that hold there already and the margins where its shell begins."""
FIRST, STEP, SHARE = 0.6, 0.4, 0.6
"""The first shell and the longest step, of the radius of linear bounds; the share of M / L that a step takes."""
ENOUGH = 0.5
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

    A ball too large shows nothing, so guesses are a little too small.
    """
    end = End(float(shells.margin.min()), 0.0, farthest, resolution, ENOUGH * resolution)
    radius: float | None = first
    for _ in range(64):
        if (
            radius is None
            or not 0.0 < radius < LARGEST
            or (shells.known and not shells.time_for_more(compute))
        ):
            return
        margins = shells.add(radius).best
        end.told(radius, -math.inf if margins is None else float(margins.min()))
        radius = end.following()


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
