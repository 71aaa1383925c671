"""Branch and bound over the box for the sign of one partial derivative: worst boxes first, many at a time."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lipverify.analyzers.protocol import Compute
from lipverify.deadline import within
from lipverify.errors import BudgetEnded
from lipverify.ir.interval import Interval
from lipverify.monotonicity.pairs import PairSearch
from lipverify.monotonicity.results import Pair
from lipverify.monotonicity.slopes import PartialDerivatives


@dataclass(frozen=True)
class Settings:
    """batch: boxes cut at once; boxes: most boxes looked at for each feature and direction; samples: points tried first."""

    batch: int = 128
    boxes: int = 20_000
    samples: int = 512


@dataclass(frozen=True)
class Proof:
    """How one direction ended. least: proved lower bound of sign * slope over the whole box."""

    least: float
    boxes: int
    pair: Pair | None = None

    @property
    def holds(self) -> bool:
        """Whether the direction is proved."""
        return self.least >= 0.0


@dataclass
class _Open:
    """Boxes without a proof yet, flat: lower, upper, influence [n, inputs]; least [n]: bound of sign * slope."""

    lower: Tensor
    upper: Tensor
    least: Tensor
    influence: Tensor

    def take(self, rows: Tensor) -> _Open:
        return _Open(self.lower[rows], self.upper[rows], self.least[rows], self.influence[rows])

    def joined(self, other: _Open) -> _Open:
        return _Open(
            *(torch.cat(pair) for pair in zip(vars(self).values(), vars(other).values(), strict=True))
        )


class Branching:
    """State of one feature and direction. Every open or closed box has a bound, so the least of them holds at any time."""

    def __init__(
        self,
        partials: PartialDerivatives,
        pairs: PairSearch,
        feature: int,
        sign: int,
        settings: Settings,
        compute: Compute,
    ) -> None:
        self.partials, self.pairs, self.feature, self.sign = partials, pairs, feature, sign
        self.settings, self.compute = settings, compute
        self.shape = pairs.lower.shape
        self.widths = (pairs.upper - pairs.lower).flatten()
        self.boxes = 0
        self.pair: Pair | None = None

    def run(self) -> Proof:
        """Until every box is proved, a pair contradicts, or the budget is gone."""
        root_lower, root_upper = (end.flatten()[None] for end in (self.pairs.lower, self.pairs.upper))
        none = root_lower.new_full((1,), -torch.inf)
        try:
            with within(self.compute.deadline):
                todo = self._bounded(root_lower, root_upper, none)
        except BudgetEnded:
            return Proof(-torch.inf, self.boxes)
        closed = float("inf")
        while True:
            done = todo.least >= 0
            if bool(done.any()):
                closed = min(closed, float(todo.least[done].min()))
            todo = todo.take(~done)
            least = min(closed, float(todo.least.min())) if len(todo.least) else closed
            self.compute.report(f"feature {self.feature}: {len(todo.least)} boxes open", None)
            spent = self.boxes >= self.settings.boxes or self.compute.remaining() <= 0
            if len(todo.least) == 0 or self.pair is not None or spent:
                return Proof(least, self.boxes, self.pair)
            order = torch.argsort(todo.least)
            worst, rest = todo.take(order[: self.settings.batch]), todo.take(order[self.settings.batch :])
            lower, upper, owner = self._halves(worst)
            if len(lower) == 0:
                return Proof(least, self.boxes, self.pair)
            try:
                with within(self.compute.deadline):
                    parts = self._bounded(lower, upper, worst.least[owner])
            except BudgetEnded:
                return Proof(least, self.boxes, self.pair)
            todo = rest.joined(parts)

    def _bounded(self, lower: Tensor, upper: Tensor, parent: Tensor) -> _Open:
        """Bounds of boxes [n, inputs], never below those of the boxes they were cut from; and pairs around their centres."""
        shaped = Interval(lower.reshape(-1, *self.shape), upper.reshape(-1, *self.shape))
        found = self.partials.over(shaped, [self.feature])
        least = found.lower[:, 0] if self.sign > 0 else -found.upper[:, 0]
        least = torch.maximum(least, parent)
        self.boxes += len(least)
        undecided = least < 0
        if bool(undecided.any()):
            self._look(shaped.center[undecided])
        return _Open(lower, upper, least, found.influence)

    def _look(self, points: Tensor) -> None:
        slopes = self.pairs.gradients(points)[:, self.feature]
        self.pair = self.pairs.contradiction(points, slopes, self.feature, self.sign)

    def _halves(self, worst: _Open) -> tuple[Tensor, Tensor, Tensor]:
        """Each box cut across the input on which its open slopes depend most; a little for relative width, so that every input
        has its turn. What cannot be cut any more makes the search end."""
        width = worst.upper - worst.lower
        score = width * worst.influence
        relative = width / self.widths.clamp(min=torch.finfo(torch.float64).tiny)
        score = (
            score / score.amax(1, keepdim=True).clamp(min=torch.finfo(torch.float64).tiny) + 0.05 * relative
        )
        axis = score.argmax(1, keepdim=True)
        low, high = worst.lower.gather(1, axis), worst.upper.gather(1, axis)
        middle = low + (high - low) / 2
        if not bool(((low < middle) & (middle < high)).all()):
            return worst.lower[:0], worst.upper[:0], axis[:0, 0]
        first = worst.upper.scatter(1, axis, middle)
        second = worst.lower.scatter(1, axis, middle)
        owner = torch.arange(len(width), device=width.device).repeat(2)
        return torch.cat([worst.lower, second]), torch.cat([first, worst.upper]), owner
