"""Where a number that falls as a ball grows reaches 0: a margin by linear bounds, or by the checker's lines.

What it has lost grows like a power of the radius that itself grows slowly: a secant in logarithms, and then an inverse
parabola, find where all is lost.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from lipverify.robustness.arithmetic import LARGEST
from lipverify.robustness.shells import between

POWER, STEEP = 2.5, 6.0
"""Of the radius, like which margins of attention are lost, before their end and beyond it; until two balls tell it."""
EXPLODED = 3.0
"""Balls on which exp of this times the number is lost say nothing of where it ends."""


@dataclass
class End:
    """Radii that were tried, and the next one.

    whole: the number at radius 0; low, high: radii at which it is, and is not, above 0. within: relative distance of these two
    that is near enough; near: that of an end that is foreseen from `low`.
    """

    whole: float
    low: float
    high: float
    within: float
    near: float
    lost: list[tuple[float, float]] = field(default_factory=list)
    """Logarithms of radii and of the lost share, 0 at the end."""
    widths: list[float] = field(default_factory=list)

    def told(self, radius: float, value: float) -> None:
        """The number at a radius; minus infinity where nothing is known but that it is not above 0."""
        if value > 0:
            self.low = max(self.low, radius)
        else:
            self.high = min(self.high, radius)
        if -math.inf < value < self.whole:
            self.lost.append((math.log(radius), math.log1p(-value / self.whole)))
        self.widths.append(self.high - self.low)

    def following(self) -> float | None:
        """Where to try next: a little inside of where the end is foreseen, the middle where it is not; None: near enough."""
        low, high = self.low, self.high
        if high - low <= self.within * high:
            return None
        # Four guesses that do not halve the gap are no better than the middle.
        stuck = len(self.widths) > 4 and self.widths[-1] > 0.5 * self.widths[-5]
        end = None if stuck else self._foreseen()
        if end is not None and end <= low * (1.0 + self.near):
            return None
        if high >= LARGEST:
            return 2.0 * low
        if end is None:
            return between(low, high)
        inside = self.near * high
        return min(max(end * (1.0 - 0.5 * self.near), low + inside), high - inside)

    def _foreseen(self) -> float | None:
        """What three, two or one of the nearest guesses predict between `low` and `high`."""
        near = sorted((p for p in self.lost if p[1] <= EXPLODED), key=lambda point: abs(point[1]))[:3]
        ends = []
        if len({y for _, y in near}) == 3:
            (a, x), (b, y), (c, z) = near
            first, second = a * y * z / ((x - y) * (x - z)), b * x * z / ((y - x) * (y - z))
            ends = [first + second + c * x * y / ((z - x) * (z - y))]
        if len(near) > 1:
            (a, x), (b, y) = near[:2]
            # At least in proportion to the radius.
            ends.append(a - x / (max((y - x) / (b - a), 1.0) if y != x else 1.0))
        elif near:
            ends = [near[0][0] - near[0][1] / (POWER if near[0][1] < 0.0 else STEEP)]
        lowest = math.log(self.low) if self.low > 0.0 else -math.inf
        return next((math.exp(end) for end in ends if lowest < end < math.log(self.high)), None)
