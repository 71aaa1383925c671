"""Boxes of tensors: elementwise lower and upper ends."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lipverify.errors import InternalError


@dataclass(frozen=True)
class Interval:
    """All tensors x with lower <= x <= upper, elementwise. Both ends [batch, *shape], finite or infinite, never NaN.

    Raises:
        InternalError: shapes differ, an end is NaN, or the ends are in the wrong order.
    """

    lower: Tensor
    upper: Tensor

    def __post_init__(self) -> None:
        if self.lower.shape != self.upper.shape:
            raise InternalError(f"interval ends differ in shape: {self.lower.shape}, {self.upper.shape}")
        if not bool((self.lower <= self.upper).all()):  # also false where an end is NaN
            raise InternalError("an interval has its ends in the wrong order or a NaN end")

    @property
    def center(self) -> Tensor:
        """Midpoint."""
        return self.lower + (self.upper - self.lower) / 2

    @property
    def width(self) -> Tensor:
        """Distance between the ends."""
        return self.upper - self.lower

    def contains(self, x: Tensor) -> bool:
        """Whether every entry of x lies between the ends."""
        return bool(((self.lower <= x) & (x <= self.upper)).all())

    def widened(self, margin: Tensor | float) -> Interval:
        """Both ends moved outward by a margin and by one more rounding step."""
        infinity = torch.full_like(self.lower, float("inf"))
        return Interval(
            torch.nextafter(self.lower - margin, -infinity), torch.nextafter(self.upper + margin, infinity)
        )
