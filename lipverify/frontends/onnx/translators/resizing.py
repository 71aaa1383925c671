"""Resizing by stored sizes: copies of entries (nearest), or weighted sums of neighbours, one axis after the other."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
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
    mode = c.choice("mode", "nearest", "nearest", "linear", "bilinear")
    scales = c.attribute("scales") if c.version < 9 else _scales(c, 1)
    kind = _Kind("nearest" if mode == "nearest" else "linear", "asymmetric", "floor")
    return _resized(c, _checked(c, scales), None, kind)


@dataclass(frozen=True)
class _Kind:
    """What a resize does beside its sizes: how it weighs neighbours, how it counts positions."""

    mode: str
    place: str
    rounding: str = "round_prefer_floor"
    cubic: Fraction = Fraction(-3, 4)
    inside_only: bool = False
    smooth: bool = False
    outside: float = 0.0
    regions: tuple[tuple[Fraction, Fraction], ...] = ()
    """Start and end of the part of each axis that is resized, for tf_crop_and_resize."""


@lower.register("Resize")
def _resize(c: Call) -> Value:
    mode = c.choice("mode", "nearest", "nearest", "linear", "cubic")
    if c.version < 11:
        return _resized(c, _checked(c, _scales(c, 1)), None, _Kind(mode, "asymmetric", "floor"))
    place = c.choice(
        "coordinate_transformation_mode", "half_pixel",
        "half_pixel", "pytorch_half_pixel", "asymmetric", "align_corners", "tf_half_pixel_for_nn", "half_pixel_symmetric",
        "tf_crop_and_resize",
    )  # fmt: skip
    rank = c.value().rank
    scales = _scales(c, 2)
    sizes = c.ints(3, "sizes") or None
    if (scales is None) == (sizes is None):
        raise c.invalid("it needs either scales or sizes")
    axes = c.attribute("axes") if c.version >= 18 else None
    where = list(range(rank)) if axes is None else forms.all_normalised(c, axes, rank)
    given = scales if scales is not None else sizes
    assert given is not None
    if len(given) != len(where):
        raise c.invalid(f"{len(given)} sizes for {len(where)} axes")
    kind = _Kind(
        mode, place, c.choice("nearest_mode", "round_prefer_floor", *_ROUND),
        Fraction(c.attribute("cubic_coeff_a", -0.75)), c.flag("exclude_outside"), c.flag("antialias"),
        c.attribute("extrapolation_value", 0.0), _regions(c, where, rank) if place == "tf_crop_and_resize" else (),
    )  # fmt: skip
    if scales is not None:
        return _resized(c, _spread(where, scales, [1.0] * rank), None, kind)
    shape = list(c.value().source_shape)
    policy = c.attribute("keep_aspect_ratio_policy", "stretch")
    if policy != "stretch":
        return _kept_ratio(c, where, sizes or [], policy, kind)
    return _resized(c, None, _spread(where, sizes or [], shape), kind)


def _kept_ratio(c: Call, where: list[int], sizes: list[int], policy: str, kind: _Kind) -> Value:
    """One scale for all named axes: the smallest or the largest of those that the sizes ask for."""
    if policy not in ("not_larger", "not_smaller"):
        raise c.invalid(f"keep_aspect_ratio_policy {policy[:30]!r}")
    shape = c.value().source_shape
    ratios = [Fraction(size, shape[axis]) for size, axis in zip(sizes, where, strict=True)]
    scale = min(ratios) if policy == "not_larger" else max(ratios)
    kept = [math.floor(scale * shape[axis] + _HALF) for axis in where]
    scales: list[Any] = [Fraction(1)] * len(shape)
    for axis in where:
        scales[axis] = scale
    return _resized(c, scales, _spread(where, kept, list(shape)), kind)


def _regions(c: Call, where: list[int], rank: int) -> tuple[tuple[Fraction, Fraction], ...]:
    if c.raw(1) is None:
        raise c.invalid("it needs a region of interest")
    roi = [Fraction(float(n)) for n in c.finite(1, c.array(1, "region of interest")).reshape(-1)]
    if len(roi) != 2 * len(where):
        raise c.invalid(f"a region of {len(roi)} numbers for {len(where)} axes")
    found = [(Fraction(0), Fraction(1))] * rank
    for position, axis in enumerate(where):
        found[axis] = (roi[position], roi[len(where) + position])
    return tuple(found)


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


def _resized(c: Call, scales: list[Any] | None, sizes: list[int] | None, kind: _Kind) -> Value:
    """scales and sizes: where both are given, the sizes are those that the scales lead to."""
    x = c.value()
    maps: dict[int, list[int]] = {}
    blends: dict[int, tuple[torch.Tensor, torch.Tensor | None]] = {}
    for axis, size in enumerate(x.source_shape):
        if scales is not None:
            if not (math.isfinite(scales[axis]) and scales[axis] > 0):
                raise c.invalid(f"a scale of {scales[axis]}")
            scale = Fraction(scales[axis])
            region = kind.regions[axis] if kind.regions else (Fraction(0), Fraction(1))
            extent = np.float32(size) * np.float32(float(region[1] - region[0]))
            length = math.floor(extent * np.float32(float(scales[axis])))  # readers multiply in float32
            if sizes is not None:
                length = sizes[axis]
            elif not kind.regions and length != math.floor(size * scale):
                raise c.refuse(
                    f"readers disagree to which size {size} is scaled by {float(scale)}", "give sizes"
                )
            if not kind.regions and length == size > 1 and scale != 1:
                raise c.refuse(
                    f"readers disagree what a scale of {float(scale):g} does that keeps the size {size}",
                    "give sizes",
                )
        else:
            assert sizes is not None
            length, scale = sizes[axis], Fraction(sizes[axis], size)
        if kind.place == "align_corners" and abs(length - size * scale) > 1e-4:
            raise c.refuse(
                f"readers disagree how align_corners reads a scale of {float(scale):g} here", "give sizes"
            )
        if not 1 <= length <= MAX_NUMBERS // max(1, x.source_shape[0]) or length > 1 << 20:
            raise c.refuse(f"resizes an axis of size {size} to {length}")
        if (
            length == size
            and scale == 1
            and (not kind.regions or kind.regions[axis] == (Fraction(0), Fraction(1)))
        ):
            continue
        places = [_source(o, size, length, scale, kind, axis) for o in range(length)]
        if kind.mode == "nearest" and not kind.regions:
            maps[axis] = [_nearest(place, size, kind) for place in places]
            for o, nearest in enumerate(maps[axis]):
                if any(_nearest(x, size, kind) != nearest for x in _in_float32(o, size, length, scale, kind)):
                    raise c.refuse(
                        f"entry {o} of axis {axis}, resized from {size} to {length}, hangs on how a reader rounds",
                        "choose another nearest_mode or coordinate_transformation_mode, or a scale that is a whole number",
                    )
        elif length * size > 1 << 22:
            raise c.refuse(
                f"blends an axis of size {size} into {length}, which is too large", "use mode nearest"
            )
        else:
            blends[axis] = _blended(c, places, size, scale, kind)
    x = _copied(c, x, maps)
    for axis, (matrix, shift) in blends.items():
        x = c.build.along_axis(x, axis, matrix, shift)
    return x


def _source(o: int, size: int, length: int, scale: Fraction, kind: _Kind, axis: int) -> Fraction:
    """Where in the input the result looks for position o, by the definition of Resize, in exact arithmetic."""
    start, end = kind.regions[axis] if kind.regions else (Fraction(0), Fraction(1))
    return Fraction({
        "asymmetric": lambda: o / scale,
        "half_pixel": lambda: (o + _HALF) / scale - _HALF,
        "pytorch_half_pixel": lambda: (o + _HALF) / scale - _HALF if length > 1 else Fraction(0),
        "tf_half_pixel_for_nn": lambda: (o + _HALF) / scale,
        "align_corners": lambda: Fraction(o * (size - 1), length - 1) if length > 1 else Fraction(0),
            "half_pixel_symmetric": lambda: (
            Fraction(size, 2) * (1 - Fraction(length) / (scale * size)) + (o + _HALF) / scale - _HALF
        ),
        "tf_crop_and_resize": lambda: (
            start * (size - 1) + o * (end - start) * (size - 1) / Fraction(length - 1)
            if length > 1
            else (start + end) * (size - 1) / 2
        ),
    }[kind.place]())  # fmt: skip


def _nearest(place: Fraction, size: int, kind: _Kind) -> int:
    return min(max(_ROUND[kind.rounding](place), 0), size - 1)


def _in_float32(o: int, size: int, length: int, scale: Fraction, kind: _Kind) -> list[Fraction]:
    """`_source` as readers compute it: over the scale rounded to float32, and times its rounded inverse.

    ONNX says nothing of float32, and every runtime computes in it: of 7 entries resized to 1 by half_pixel, 3 is meant, and
    onnxruntime looks at 2.9999998.
    """
    f32, half = np.float32, np.float32(0.5)
    if kind.place == "align_corners":
        if length == 1:
            return []
        at = f32(o) * f32(size - 1)
        found = [at / f32(length - 1), f32(o) * (f32(size - 1) / f32(length - 1))]
        return [Fraction(float(x)) for x in found]
    if kind.place == "pytorch_half_pixel" and length == 1:
        return []
    before = f32(0) if kind.place == "asymmetric" else half
    after = f32(0) if kind.place in ("asymmetric", "tf_half_pixel_for_nn") else half
    start = f32(0)
    if kind.place == "half_pixel_symmetric":
        start = f32(size / 2) * (f32(1) - f32(length) / (f32(float(scale)) * f32(size)))
    at = f32(o) + before
    over, times = at / f32(float(scale)), at * f32(float(1 / scale))
    return [Fraction(float(start + x - after)) for x in (over, times)]


def _blended(
    c: Call, places: list[Fraction], size: int, scale: Fraction, kind: _Kind
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The matrix [length, size] of one axis, and what is put where a place lies outside, in the type of the graph."""
    matrix = torch.zeros(len(places), size, dtype=torch.float64)
    shift = torch.zeros(len(places), dtype=torch.float64)
    stretch = min(scale, Fraction(1)) if kind.smooth else Fraction(1)
    for row, place in enumerate(places):
        if kind.regions and not 0 <= place <= size - 1:
            shift[row] = kind.outside
            continue
        if kind.mode == "nearest":
            matrix[row, _nearest(place, size, kind)] = 1.0
            continue
        reach = (2 if kind.mode == "cubic" else 1) / stretch
        first, last = math.floor(place - reach), math.ceil(place + reach)
        weights = {j: _weight((j - place) * stretch, kind) for j in range(first, last + 1)}
        if kind.inside_only:
            weights = {j: w for j, w in weights.items() if 0 <= j < size}
        total = sum(weights.values())
        if total == 0:
            raise c.refuse("a weight of its neighbours divides by 0")
        if kind.smooth or kind.inside_only:
            weights = {j: w / total for j, w in weights.items()}
        for j, w in weights.items():
            matrix[row, min(max(j, 0), size - 1)] += float(w)
    wide = shift if bool(shift.any()) else None
    return matrix.to(c.build.dtype), None if wide is None else wide.to(c.build.dtype)


def _weight(distance: Fraction, kind: _Kind) -> Fraction:
    """Of a neighbour at this distance: Keys, IEEE Transactions on Acoustics 29 (1981), for cubic."""
    t = abs(distance)
    if kind.mode == "linear":
        return max(1 - t, Fraction(0))
    a = kind.cubic
    if t <= 1:
        return (a + 2) * t**3 - (a + 3) * t**2 + 1
    return a * t**3 - 5 * a * t**2 + 8 * a * t - 4 * a if t < 2 else Fraction(0)


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
