"""What the checks run on: an operator with sample shapes, inputs and boxes that are likely to refute a wrong rule."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from lipverify.ir.interval import Interval
from lipverify.ir.op import Op, Shape

# The checks evaluate in float64: their own numbers carry a relative error near 1e-13 (Jacobians are sums of at most a few
# hundred products). A wrong rule that is off by less than this is beyond what samples can show.
TOLERANCE = 1e-9


@dataclass(frozen=True)
class OperatorCase:
    """An operator with sample shapes to test it on.

    domains: for each input the range its entries are drawn from (one range counts for all inputs).
    bounded: whether a finite gain exists over the whole space. point_width: how wide the box of a single point may be,
    relative to the result.
    """

    op: Op
    input_shapes: tuple[Shape, ...]
    label: str = ""
    domains: tuple[tuple[float, float], ...] = ((-40.0, 40.0),)
    bounded: bool = True
    point_width: float = 1e-8

    def __str__(self) -> str:
        shapes = "x".join("_".join(map(str, shape)) or "scalar" for shape in self.input_shapes) or "none"
        return f"{self.op.kind()}-{self.label}-{shapes}" if self.label else f"{self.op.kind()}-{shapes}"

    def domain(self, index: int) -> tuple[float, float]:
        """The range of one input."""
        return self.domains[min(index, len(self.domains) - 1)]

    def exact(self) -> Op:
        """The operator with its stored numbers in float64."""
        return self.op.to(dtype=torch.float64)

    def sample(self, rng: torch.Generator, batch: int) -> tuple[Tensor, ...]:
        """Inputs [batch, *shape] in float64: zeros, spikes, ties and noise at several scales, inside the domains."""
        return tuple(
            self._points(rng, batch, shape, self.domain(i)) for i, shape in enumerate(self.input_shapes)
        )

    def _points(self, rng: torch.Generator, batch: int, shape: Shape, domain: tuple[float, float]) -> Tensor:
        size = math.prod(shape)
        rows = []
        for row in range(batch):
            noise = torch.randn(size, generator=rng, dtype=torch.float64)
            kind = row % 8
            if kind == 0:
                values = torch.zeros(size, dtype=torch.float64)
            elif kind in (1, 2):
                # One or two entries dominate all others.
                values = noise * 0.01
                values[torch.randint(max(size, 1), (kind,), generator=rng)[: size * kind]] = 30.0
            elif kind == 3:
                values = torch.full((size,), 1.5, dtype=torch.float64)
            else:
                values = noise * (0.05, 1.0, 3.0, 12.0)[kind - 4]
            rows.append(values)
        stacked = torch.stack(rows) if rows else torch.zeros(0, size, dtype=torch.float64)
        return stacked.clamp(*domain).reshape(batch, *shape)

    def random_box(self, rng: torch.Generator, batch: int = 6) -> tuple[Interval, ...]:
        """Boxes [batch, *shape] around samples: of width 0, tiny, moderate, and many times wider than the operator's bends."""
        boxes = []
        for index, center in enumerate(self.sample(rng, batch)):
            low, high = self.domain(index)
            widths = torch.tensor(
                [(0.0, 1e-9, 0.1, 1.0, 5.0, 20.0)[row % 6] for row in range(batch)], dtype=torch.float64
            )
            shape = (batch, *(1,) * (center.ndim - 1))
            below, above = (
                torch.rand(center.shape, generator=rng, dtype=torch.float64) * widths.reshape(shape)
                for _ in range(2)
            )
            # A bend at the end of a box is the classic way to lose a slope: two of the boxes start and end at 0.
            lower, upper = (center - below).clamp(low, high), (center + above).clamp(low, high)
            if low < 0 < high and batch > 3:
                lower[2], upper[2] = torch.zeros_like(lower[2]), upper[2].clamp(min=0.0)
                lower[3], upper[3] = lower[3].clamp(max=0.0), torch.zeros_like(upper[3])
            boxes.append(Interval(lower, upper))
        return tuple(boxes)

    def points(
        self, boxes: tuple[Interval, ...], rng: torch.Generator, count: int
    ) -> Iterator[tuple[Tensor, ...]]:
        """At least `count` inputs inside the boxes, [batch, *shape] each."""
        yield from zip(*(points_in(box, rng, count) for box in boxes), strict=True)


@dataclass(frozen=True)
class DifferenceCase(OperatorCase):
    """Inputs (d_1 .., a_1 .., b_1 ..) with d_i = a_i - b_i: what the rules of the operator take for granted.

    The d are rounded differences: off by one rounding, which the slack of the checks covers.
    """

    def sample(self, rng: torch.Generator, batch: int) -> tuple[Tensor, ...]:
        drawn = super().sample(rng, batch)
        count = len(drawn) // 3
        first = drawn[count : 2 * count]
        # Arguments far apart, close together, and the same.
        share = torch.tensor([(1.0, 1e-3, 0.0)[row % 3] for row in range(batch)], dtype=torch.float64)
        second = tuple(
            a + share.reshape(-1, *(1,) * (a.ndim - 1)) * (b - a)
            for a, b in zip(first, drawn[2 * count :], strict=True)
        )
        return (*(a - b for a, b in zip(first, second, strict=True)), *first, *second)

    def random_box(self, rng: torch.Generator, batch: int = 6) -> tuple[Interval, ...]:
        """Boxes of a and b of one width around samples, inside the domain; boxes of d of any width around their differences."""
        point = self.sample(rng, batch)
        count = len(point) // 3
        width = torch.tensor([(0.0, 1e-9, 0.1, 1.0, 5.0, 20.0)[row % 6] for row in range(batch)])
        boxes: list[list[Interval]] = [[], [], []]
        for i, (d, a, b) in enumerate(
            zip(point[:count], point[count : 2 * count], point[2 * count :], strict=True)
        ):
            low, high = self.domain(i)
            reach = width.to(torch.float64).reshape(-1, *(1,) * (a.ndim - 1)).expand_as(a)
            for center in (a, b):
                reach = torch.minimum(reach, torch.minimum(center - low, high - center).clamp(min=0.0))
            share = torch.rand(a.shape, generator=rng, dtype=torch.float64)
            for found, center, size in zip(
                boxes, (d, a, b), (2.0 * share * reach, reach, reach), strict=True
            ):
                found.append(Interval(center - size, center + size))
        return tuple(box for group in boxes for box in group)

    def points(
        self, boxes: tuple[Interval, ...], rng: torch.Generator, count: int
    ) -> Iterator[tuple[Tensor, ...]]:
        """a anywhere in its box, b where both its box and the box of the difference allow it."""
        third = len(boxes) // 3
        for first in zip(*(points_in(box, rng, count) for box in boxes[third : 2 * third]), strict=True):
            second = []
            for a, d, b in zip(first, boxes[:third], boxes[2 * third :], strict=True):
                low, high = torch.maximum(b.lower, a - d.upper), torch.minimum(b.upper, a - d.lower)
                share = torch.rand(low.shape, generator=rng, dtype=torch.float64)
                share = torch.where(share < 0.2, 0.0, torch.where(share > 0.8, 1.0, share))
                second.append(low + share * (high - low).clamp(min=0.0))
            yield (*(a - b for a, b in zip(first, second, strict=True)), *first, *second)


@dataclass(frozen=True)
class SameCase(OperatorCase):
    """Two inputs that are equal, each with a box of its own around them."""

    def sample(self, rng: torch.Generator, batch: int) -> tuple[Tensor, ...]:
        return (super().sample(rng, batch)[0],) * 2

    def random_box(self, rng: torch.Generator, batch: int = 6) -> tuple[Interval, ...]:
        (center, _) = self.sample(rng, batch)
        reach = [torch.rand(center.shape, generator=rng, dtype=torch.float64) for _ in range(4)]
        return tuple(Interval(center - reach[i], center + reach[i + 1]) for i in (0, 2))

    def points(
        self, boxes: tuple[Interval, ...], rng: torch.Generator, count: int
    ) -> Iterator[tuple[Tensor, ...]]:
        lower = torch.maximum(boxes[0].lower, boxes[1].lower)
        upper = torch.minimum(boxes[0].upper, boxes[1].upper)
        yield from ((x, x) for x in points_in(Interval(lower, upper), rng, count))


def points_in(box: Interval, rng: torch.Generator, count: int) -> Tensor:
    """Points of a box, [count, batch, *shape]: both ends, the centre, random corners and random points."""
    found = [box.lower, box.upper, torch.minimum(box.upper, torch.maximum(box.lower, box.center))]
    while len(found) < count:
        share = torch.rand(box.lower.shape, generator=rng, dtype=torch.float64)
        if len(found) % 2:
            share = share.round()
        point = box.lower + share * (box.upper - box.lower)
        found.append(torch.minimum(box.upper, torch.maximum(box.lower, point)))
    return torch.stack(found)
