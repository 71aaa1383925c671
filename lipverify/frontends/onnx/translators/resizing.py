"""Nearest resizing: every entry of the result is a copy of one entry, chosen by stored sizes."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import torch

from lipverify import ops
from lipverify.frontends.builder import Value
from lipverify.frontends.onnx import forms
from lipverify.frontends.onnx.call import Call
from lipverify.frontends.onnx.lowering import MAX_NUMBERS
from lipverify.frontends.onnx.registry import lower

_HALF = Fraction(1, 2)
_ROUND: dict[str, Callable[[Fraction], int]] = {
    "round_prefer_floor": lambda x: math.ceil(x - _HALF),
    "round_prefer_ceil": lambda x: math.floor(x + _HALF),
    "floor": math.floor,
    "ceil": math.ceil,
}


@lower.register("Upsample")
def _upsample(c: Call) -> Value:
    c.choice("mode", "nearest", "nearest")
    scales = c.attribute("scales") if c.version < 9 else _scales(c, 1)
    return _resized(c, _checked(c, scales), None, "asymmetric", "floor")


@lower.register("Resize")
def _resize(c: Call) -> Value:
    c.choice("mode", "nearest", "nearest")
    if c.version < 11:
        return _resized(c, _checked(c, _scales(c, 1)), None, "asymmetric", "floor")
    if c.flag("antialias"):
        raise c.refuse("antialiasing is not covered")
    place = c.choice(
        "coordinate_transformation_mode", "half_pixel",
        "half_pixel", "pytorch_half_pixel", "asymmetric", "align_corners", "tf_half_pixel_for_nn", "half_pixel_symmetric",
    )  # fmt: skip
    rounding = c.choice("nearest_mode", "round_prefer_floor", *_ROUND)
    rank = c.value().rank
    scales = _scales(c, 2)
    sizes = c.ints(3, "sizes") or None
    if (scales is None) == (sizes is None):
        raise c.invalid("it needs either scales or sizes")
    if c.attribute("keep_aspect_ratio_policy", "stretch") != "stretch":
        raise c.refuse("keeping the aspect ratio is not covered", "export with fixed sizes")
    axes = c.attribute("axes") if c.version >= 18 else None
    where = list(range(rank)) if axes is None else forms.all_normalised(c, axes, rank)
    given = scales if scales is not None else sizes
    assert given is not None
    if len(given) != len(where):
        raise c.invalid(f"{len(given)} sizes for {len(where)} axes")
    if scales is not None:
        return _resized(c, _spread(where, scales, [1.0] * rank), None, place, rounding)
    shape = list(c.value().source_shape)
    return _resized(c, None, _spread(where, sizes or [], shape), place, rounding)


def _spread(where: list[int], given: list[Any], rest: list[Any]) -> list[Any]:
    return [given[where.index(axis)] if axis in where else rest[axis] for axis in range(len(rest))]


def _scales(c: Call, position: int) -> list[float] | None:
    """A stored list of factors; an empty one means that sizes are given."""
    if c.raw(position) is None:
        return None
    array = c.array(position, "scales")
    if array.ndim != 1 or array.size > 16 or array.dtype.kind != "f":
        raise c.invalid(f"scales {array.dtype} {list(array.shape)}")
    return [float(x) for x in array] or None


def _checked(c: Call, scales: list[float] | None) -> list[float]:
    if scales is None or len(scales) != c.value().rank:
        raise c.invalid("its scales do not fit its input")
    return scales


def _resized(
    c: Call, scales: list[float] | None, sizes: list[int] | None, place: str, rounding: str
) -> Value:
    x = c.value()
    maps: dict[int, list[int]] = {}
    for axis, size in enumerate(x.source_shape):
        if scales is not None:
            if not (math.isfinite(scales[axis]) and scales[axis] > 0):
                raise c.invalid(f"a scale of {scales[axis]}")
            scale = Fraction(scales[axis])
            length = math.floor(np.float32(size) * np.float32(scales[axis]))  # readers multiply in float32
        else:
            assert sizes is not None
            length, scale = sizes[axis], Fraction(sizes[axis], size)
        if place == "align_corners" and abs(length - size * scale) > 1e-4:
            raise c.refuse(
                f"readers disagree how align_corners reads a scale of {float(scale):g} here", "give sizes"
            )
        if not 1 <= length <= MAX_NUMBERS // max(1, x.source_shape[0]) or length > 1 << 20:
            raise c.refuse(f"resizes an axis of size {size} to {length}")
        if length != size or scale != 1:
            maps[axis] = [_source(o, size, length, scale, place, rounding) for o in range(length)]
    return _copied(c, x, maps)


def _source(o: int, size: int, length: int, scale: Fraction, place: str, rounding: str) -> int:
    """Which entry the result copies at position o, by the definition of Resize, in exact arithmetic."""
    position = {
        "asymmetric": lambda: o / scale,
        "half_pixel": lambda: (o + _HALF) / scale - _HALF,
        "pytorch_half_pixel": lambda: (o + _HALF) / scale - _HALF if length > 1 else Fraction(0),
        "tf_half_pixel_for_nn": lambda: (o + _HALF) / scale,
        "align_corners": lambda: Fraction(o * (size - 1), length - 1) if length > 1 else Fraction(0),
        "half_pixel_symmetric": lambda: (
            Fraction(size, 2) * (1 - Fraction(length) / (scale * size)) + (o + _HALF) / scale - _HALF
        ),
    }[place]()
    return min(max(_ROUND[rounding](Fraction(position)), 0), size - 1)


def _copied(c: Call, x: Value, maps: dict[int, list[int]]) -> Value:
    """Repetition where every entry is copied equally often in order, else a choice by index."""
    b = c.build
    factors = {}
    for axis, chosen in maps.items():
        size = x.source_shape[axis]
        factor = len(chosen) // size
        if chosen == list(range(size)):
            continue
        if axis == x.batch and b.symbolic_batch:
            raise c.refuse("resizes the batch axis")
        if factor and chosen == [o // factor for o in range(factor * size)]:
            factors[axis] = factor
        else:
            x = b.gather(x, axis, torch.tensor(chosen))
    if not factors:
        return x
    x = b.free(x, *factors)
    whole = tuple(factors.get(axis, 1) for axis in range(x.rank) if axis != x.batch)
    return b.add(ops.Upsample(whole), (x,), x.batch)
