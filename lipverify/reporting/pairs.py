"""Two inputs side by side with their difference, where they are shaped like images."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lipverify.reporting.format import decimal_text
from lipverify.reporting.png import image_of, png_address

SMALLEST_ROW = 64
"""Entries of a row of numbers that is drawn as a square."""


@dataclass(frozen=True)
class Pair:
    """Addresses of two pictures and of their difference, and what the grey of the difference stands for."""

    first: str
    second: str
    change: str
    scale: str
    rows: str
    """How a row of numbers was laid out; empty for images."""


def pair(
    first: NDArray[Any], second: NDArray[Any], low: float | None = None, high: float | None = None
) -> Pair | None:
    """Pictures of two inputs on one scale; None where they have no shape of an image.

    low, high: shown as black and white; by default the range of both inputs. The difference is grey where nothing changes.
    """
    shaped, rows = picture_shape(first)
    if shaped is None:
        return None
    both = [np.asarray(each, np.float64).reshape(shaped) for each in (first, second)]
    low = float(min(each.min() for each in both)) if low is None else low
    high = float(max(each.max() for each in both)) if high is None else high
    change = both[1] - both[0]
    most = float(np.abs(change).max())
    images = [image_of(each, low, high) for each in both] + [image_of(change, -(most or 1.0), most or 1.0)]
    if any(image is None for image in images):
        return None
    addresses = [png_address(image) for image in images if image is not None]
    return Pair(addresses[0], addresses[1], addresses[2], decimal_text(most, digits=3), rows)


def picture_shape(sample: NDArray[Any]) -> tuple[tuple[int, ...] | None, str]:
    """The shape in which an input is drawn, and in words how a row of numbers was laid out; None where it is no picture."""
    shape = np.shape(sample)
    if len(shape) == 1 and shape[0] >= SMALLEST_ROW and math.isqrt(shape[0]) ** 2 == shape[0]:
        side = math.isqrt(shape[0])
        return (side, side), f"its {shape[0]} numbers drawn row by row as {side} × {side}"
    return (shape, "") if image_of(np.zeros(shape), 0.0, 1.0) is not None else (None, "")
