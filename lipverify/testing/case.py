"""What the checks run on: an operator with sample shapes, inputs and boxes that are likely to refute a wrong rule."""

from __future__ import annotations

import math
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
