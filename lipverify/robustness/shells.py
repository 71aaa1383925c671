"""Lower bounds of the margins on growing balls: linear bounds on a ball, and constants of the differences integrated outward.

Legend: m_j = f_y - f_j; shells 0 = r_0 < r_1 < ...; L_j(r) >= constant of m_j over the ball of radius r; C_j(r) <= min of m_j
over it (CROWN); M_j(r) the bound in use.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lipverify.analyzers.protocol import Compute
from lipverify.errors import UnsupportedModel
from lipverify.linalg.rounding import down, up
from lipverify.robustness.arithmetic import LARGEST, quotient_down
from lipverify.robustness.branching import Forest
from lipverify.robustness.carried import Multipliers, Outward, Path


@dataclass(frozen=True)
class Shell:
    """What is known on the ball of one radius: margins [rivals] from below, constants [rivals] from above."""

    radius: float
    margins: Tensor | None = None
    constants: Tensor | None = None
    optimised: Tensor | None = None
    """Margins with searched planes, never below `margins`."""
    branched: bool = False
    """Whether branch and bound took part."""

    @property
    def best(self) -> Tensor | None:
        """The larger of both margins."""
        return self.margins if self.optimised is None else self.optimised


Look = Callable[[float], Shell]


def _longer(path: Path, more: Outward) -> Path:
    """A path with one more shell; two shells with one constant are one."""
    shells = path.shells
    if shells and shells[-1].ball == more.ball:
        shells = shells[:-1]
    return Path(path.start, (*shells, more))


@dataclass
class Shells:
    """Shells around one point.

    margin: m_j at the point, rounded down [rivals]; constants: of the whole input space, or None.
    """

    margin: Tensor
    constants: Tensor | None
    look: Look
    known: list[Shell] = field(default_factory=list)
    longest: float = 0.0
    """Seconds of the longest look so far."""
    multipliers: Mapping[tuple[float | None, int], Multipliers] = field(default_factory=dict)
    """By ball and rival what proves a constant, where it is no range of derivatives."""

    trees: Mapping[float, Forest] = field(default_factory=dict)
    """By ball what shows all margins to be positive on it, where ranges do not."""

    def trees_on(self, radius: float) -> dict[float, Forest]:
        """The trees of the largest ball within a radius, where its margins begin."""
        inside = [r for r in self.trees if r <= radius]
        return {max(inside): self.trees[max(inside)]} if inside else {}

    def time_for_more(self, compute: Compute) -> bool:
        """Whether another look as long as the longest one ends before the deadline."""
        return compute.remaining() > self.longest

    @property
    def steepened(self) -> bool:
        """Whether constants of some ball are known."""
        return any(shell.constants is not None for shell in self.known)

    def add(self, radius: float) -> Shell:
        """Looks at one more ball."""
        started = time.monotonic()
        found = self.look(radius)
        self.longest = max(self.longest, time.monotonic() - started)
        self.known.append(found)
        self.known.sort(key=lambda shell: shell.radius)
        return found

    def radius(self) -> float:
        """The largest radius that the shells together certify.

        Statement: no x' with |x' - x| < radius (and in the box) has another label.
        Source: for x' in the ball of r_i outside that of r_(i-1) the segment from x to x' leaves the smaller ball at a point
            with m_j >= M_j(r_(i-1)), and the rest of it, at most r_i - r_(i-1) long, lies in the ball of r_i:
            m_j(x') >= M_j(r_(i-1)) - (r_i - r_(i-1)) L_j(r_i). The larger of that and C_j(r_i) is M_j(r_i); both are valid.
        Sound when: balls, cut by the box, are convex; L_j(r) and C_j(r) are valid on the whole ball.
        """
        return self._walk(use_margins=True)[0]

    def integral(self) -> float:
        """As `radius`, without the linear bounds of the margins."""
        return self._walk(use_margins=False)[0]

    def linear(self) -> float:
        """The largest ball on which linear bounds alone keep the label."""
        return self._largest(s.margins for s in self.known)

    def optimised(self) -> float:
        """As `linear`, with searched planes."""
        return self._largest(None if s.branched else s.best for s in self.known)

    def branched(self) -> float:
        """As `linear`, with searched planes and branch and bound."""
        return self._largest(s.best for s in self.known)

    def _largest(self, margins: Iterable[Tensor | None]) -> float:
        kept = [
            s.radius
            for s, m in zip(self.known, margins, strict=True)
            if m is not None and bool((m > 0).all())
        ]
        return max(kept, default=0.0)

    def _walk(self, use_margins: bool) -> tuple[float, list[tuple[float, float, float]]]:
        """The radius, and (start, end, excess of L at the end over L at the start) of the shells that still matter."""
        margin, before = self.margin, 0.0
        slope_before: Tensor | None = None
        pieces: list[tuple[float, float, float]] = []
        for shell, slope in zip(self.known, self._slopes(), strict=True):
            after = self._after(margin, before, shell, slope, use_margins)
            if slope is not None:
                tightest = int((after if after is not None else margin).argmin())
                start = slope_before[tightest] if slope_before is not None else 0.5 * slope[tightest]
                pieces.append((before, shell.radius, float(slope[tightest] - start)))
            if after is None or not bool((after > 0).all()):
                reached = before if slope is None else self._reach(margin, before, slope, shell.radius)
                return reached, pieces
            if use_margins and shell.best is not None and bool((after <= shell.best).all()):
                pieces = []  # what came before no longer matters
            margin, before, slope_before = after, shell.radius, slope
        if self.constants is None:
            return before, pieces
        return self._reach(margin, before, self.constants, LARGEST), pieces

    def state(self, radius: float, inside: bool = True) -> tuple[Tensor, Tensor | None]:
        """The margins M where the shell that ends at this radius begins (or at its end), and constants that hold up to it."""
        margin, before = self.margin, 0.0
        slopes = self._slopes()
        held = next(
            (s for shell, s in zip(self.known, slopes, strict=True) if shell.radius >= radius), self.constants
        )
        for shell, slope in zip(self.known, slopes, strict=True):
            if shell.radius > radius or (inside and shell.radius == radius):
                break
            after = self._after(margin, before, shell, slope, use_margins=True)
            if after is None or not bool((after > 0).all()):
                break
            margin, before = after, shell.radius
        return margin, held

    def paths(self, radius: float) -> tuple[Path, ...]:
        """How the margin of every rival reaches this radius, which `radius` or one of the single methods certified."""
        margin, before = self.margin, 0.0
        found: list[Path] = [Path(0.0, ())] * len(margin)
        slopes, sources = self._slopes(), self._sources()
        beyond = Shell(radius)
        last: list[float | None] = [None] * len(margin)
        for shell, slope, source in zip(
            [*self.known, beyond], [*slopes, self.constants], [*sources, last], strict=True
        ):
            end = min(shell.radius, radius)
            whole = shell.radius <= radius and shell is not beyond
            known = shell.best if whole else None
            after = self._after(margin, before, Shell(end) if not whole else shell, slope, use_margins=True)
            slopes_here = None if slope is None else slope.tolist()
            for j, path in enumerate(found):
                falls = slope is None or (
                    known is not None and after is not None and bool(after[j] <= known[j])
                )
                if falls and known is not None:
                    found[j] = Path(end, ())
                elif end > before and slopes_here is not None:
                    found[j] = _longer(path, Outward(end, source[j], slopes_here[j]))
            if not whole:
                break
            if after is not None:
                margin, before = after, shell.radius
        return tuple(found)

    def _sources(self) -> list[list[float | None]]:
        """The balls that the constants of `_slopes` are those of, for every rival; None: the whole space."""
        size = len(self.margin)
        slope: Tensor | None = self.constants
        source: list[float | None] = [None] * size
        found: list[list[float | None]] = []
        for shell in reversed(self.known):
            if shell.constants is not None:
                smaller = [slope is None or bool(shell.constants[j] < slope[j]) for j in range(size)]
                source = [shell.radius if less else old for less, old in zip(smaller, source, strict=True)]
                slope = shell.constants if slope is None else torch.minimum(shell.constants, slope)
            found.append(list(source))
        return found[::-1]

    def _slopes(self) -> list[Tensor | None]:
        """Constants on every shell: what holds on a larger ball, or on the whole space, holds on a smaller one."""
        slope, found = self.constants, list[Tensor | None]()
        for shell in reversed(self.known):
            if shell.constants is not None:
                slope = shell.constants if slope is None else torch.minimum(shell.constants, slope)
            found.append(slope)
        return found[::-1]

    def _after(
        self, margin: Tensor, before: float, shell: Shell, slope: Tensor | None, use_margins: bool
    ) -> Tensor | None:
        known = shell.best if use_margins else None
        if slope is None:
            return known
        infinity = torch.full_like(margin, torch.inf)
        fall = torch.nextafter(up(shell.radius - before) * slope, infinity)
        found = torch.nextafter(margin - fall, -infinity)
        return found if known is None else torch.maximum(found, known)

    def _reach(self, margin: Tensor, before: float, slope: Tensor, end: float) -> float:
        """How far the margins last when they fall with these constants, which are valid up to `end`."""
        step = min(quotient_down(float(m), float(s)) for m, s in zip(margin, slope, strict=True))
        if step >= LARGEST:
            return end
        total = down(before + step) if before else step
        return min(max(total, before), end)

    # -- where to look

    def search(
        self, first: float, farthest: float, looks: int, resolution: float, local: bool, compute: Compute
    ) -> None:
        """Looks at `looks` balls at most, where the certified radius gains most; stops at the deadline.

        Args:
            first: radius of the first ball; farthest: no radius beyond can be certified (an example lies there).
        """
        low, high, radius = 0.0, farthest, first
        bisecting = max(2 * looks // 3, 3) if local else looks
        certain = self.radius()
        for _ in range(bisecting):
            if not 0.0 < radius < LARGEST or (self.known and not self.time_for_more(compute)):
                return
            shell = self.add(radius)
            # Bisect where linear bounds end, if there are any: the integral goes on from there.
            certified = self.radius() if shell.best is None else self.optimised()
            low = max(low, certified)
            if certified < radius:
                high = min(high, radius)
            if high - low <= resolution * high:
                break
            radius = between(max(low, certain), high) if high < LARGEST else 2.0 * radius
        if local and self.known:
            self.steepen(farthest, looks, resolution, compute)

    def steepen(self, farthest: float, looks: int, resolution: float, compute: Compute) -> None:
        """Looks where constants gain most, until `looks` balls are known; arguments as in `search`."""
        if (
            farthest < LARGEST
            and self.known[-1].radius < farthest
            and self.radius() <= self.known[-1].radius
            and self.time_for_more(compute)
        ):
            self.add(farthest)  # the constants there carry on from the last ball
        for _ in range(looks - len(self.known)):
            place = self._where(resolution)
            if place is None or not self.time_for_more(compute):
                return
            self.add(place)

    def _where(self, resolution: float) -> float | None:
        """The middle of the shell whose halving promises most, or a place just beyond the radius reached."""
        reached, pieces = self._walk(use_margins=True)
        if not reached > 0.0:
            return self.known[0].radius / 4 if self.known else None
        best, place = 0.0, None
        for start, end, excess in pieces:
            stop = min(end, reached * 1.03)
            if stop <= start or stop - start <= resolution * reached:
                continue
            gain = (stop - start) * max(excess, 0.0)
            # The shell in which the bound ends is cut close to where it ends.
            if gain > best:
                best, place = gain, (stop if end > stop * 1.01 else 0.5 * (start + stop))
        if place is None or any(abs(s.radius - place) <= 1e-6 * place for s in self.known):
            return None
        return place


def between(low: float, high: float) -> float:
    """The middle; of ends of different size the geometric one, because far balls cost time and show nothing."""
    if high > 3.0 * low:
        return math.sqrt(max(low, 1e-2 * high) * high)
    return 0.5 * (low + high)


def refuse(reasons: dict[str, str]) -> UnsupportedModel:
    """The error when no method answers."""
    listed = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
    return UnsupportedModel(f"no method certifies a radius for this network: {listed}")
