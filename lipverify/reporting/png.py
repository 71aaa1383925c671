"""Inputs that are images, as PNG data addresses."""

from __future__ import annotations

import base64
import struct
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

SMALLEST, LARGEST = 4, 512
"""Sides of what is taken for an image."""


def image_of(sample: NDArray[Any], low: float, high: float) -> NDArray[np.uint8] | None:
    """The sample as [height, width] or [height, width, 3] bytes; None where its shape is not that of an image.

    low, high: values shown as black and white.
    """
    array = np.asarray(sample, dtype=np.float64)
    if array.ndim == 3 and array.shape[0] in (1, 3):
        array = np.moveaxis(array, 0, 2)
    if array.ndim == 2:
        array = array[:, :, None]
    if array.ndim != 3 or array.shape[2] not in (1, 3):
        return None
    if not all(SMALLEST <= side <= LARGEST for side in array.shape[:2]):
        return None
    scaled = (array - low) / (high - low) if high > low else np.zeros_like(array)
    found = np.rint(np.clip(scaled, 0.0, 1.0) * 255.0).astype(np.uint8)
    return found[:, :, 0] if found.shape[2] == 1 else found


def png_address(image: NDArray[np.uint8]) -> str:
    """`data:image/png;base64,...` of [height, width] or [height, width, 3] bytes (PNG, ISO/IEC 15948)."""
    height, width = image.shape[:2]
    colour = 2 if image.ndim == 3 else 0
    # Every line begins with its filter; 0 is none.
    lines = np.concatenate([np.zeros((height, 1), np.uint8), image.reshape(height, -1)], axis=1)
    data = b"\x89PNG\r\n\x1a\n"
    data += _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, colour, 0, 0, 0))
    data += _chunk(b"IDAT", zlib.compress(lines.tobytes(), 9)) + _chunk(b"IEND", b"")
    return "data:image/png;base64," + base64.b64encode(data).decode("ascii")


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
