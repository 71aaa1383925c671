"""Upsample and Resize to the nearest entry: numbers are copied, none is changed."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

import numpy as np

from lipverify.checkers.kernel.program import Array
from lipverify.checkers.reader.building import FLOATS, Builder, size_of
from lipverify.checkers.reader.calls import Call
from lipverify.checkers.reader.moves import Results, Run, array_of, axis_of, like
from lipverify.checkers.reader.refusals import need


def resize(p: Builder, c: Call) -> Results:
    """Upsample and Resize to the nearest entry."""
    x = c.any(0)
    array = array_of(x)
    p.charge(array.size)
    need(c.text("mode", "nearest") == "nearest", "resizing that interpolates is not covered by the checker")
    old = c.op == "Upsample" or c.version < 11
    place, rounding = "asymmetric", "floor"
    axes, sizes = list(range(array.ndim)), None
    if not old:
        place = c.text("coordinate_transformation_mode", "half_pixel")
        rounding = c.text("nearest_mode", "round_prefer_floor")
        # Settings of other modes.
        c.number("cubic_coeff_a", -0.75), c.flag("exclude_outside", 0), c.number("extrapolation_value", 0.0)
    if c.version >= 18:
        need(
            not c.flag("antialias", 0) and c.text("keep_aspect_ratio_policy", "stretch") == "stretch",
            "this resizing",
        )
        axes = [axis_of(a, array.ndim) for a in c.integers("axes", axes)]
    if not old:
        need(c.operand(1) is None or c.stored(1).dtype in FLOATS, "a region of another type")
        sizes = None if c.operand(3) is None else c.integers_at(3)
    scales = _scales(c, 2 if not old else 1)
    need((scales is None) != (sizes is None) and len(set(axes)) == len(axes), "this resizing")
    told: Sequence[Any] = scales if sizes is None and scales is not None else sizes or ()
    need(len(told) == len(axes), "a resizing of other axes")
    shape_after = list(array.shape)
    for axis, number in zip(axes, told, strict=True):
        shape_after[axis] = number if sizes is not None else _size(array.shape[axis], number)
    need(min(shape_after) >= 1, "a resizing to nothing")
    p.charge(2 * size_of(shape_after))
    kept = [np.arange(n) for n in array.shape]
    for axis, number in zip(axes, told, strict=True):
        n, m = array.shape[axis], shape_after[axis]
        scale = Fraction(m, n) if sizes is not None else Fraction(number)
        need(
            old is False or scale.denominator == 1,
            "a resizing by parts of an entry is not covered by the checker",
        )
        kept[axis] = _nearest(p, n, m, scale, place, rounding)
    # All axes at once: on the way from one axis to the next there may be more numbers than at either end.
    return [like(p, x, array[np.ix_(*kept)])]


def _size(n: int, scale: float) -> int:
    """How many entries n become: refused where an exact product and one of float32 say different numbers.

    A scale that keeps the size is 1: by another one runtimes copy all entries as they are, and ONNX's text does not.
    """
    size = math.floor(Fraction(scale) * n)
    in_float32 = math.floor(float(np.float32(n) * np.float32(scale)))
    need(size == in_float32, "a resizing whose size hangs on a rounding is not covered by the checker")
    need(size != n or scale == 1 or n == 1, "a scale other than 1 that keeps the size")
    return size


def _scales(c: Call, place: int) -> list[float] | None:
    if c.op == "Upsample" and c.version < 9:
        found = c.reals_given("scales")
    elif c.operand(place) is None or not c.stored(place).size:
        return None
    else:
        array = c.stored(place)
        need(array.dtype == np.dtype("<f4") and array.ndim == 1, "scales of another type")
        found = [float(n) for n in array]
    need(all(math.isfinite(n) and 0 < n < 1 << 24 for n in found), "a scale")
    return found


def _nearest(p: Builder, n: int, m: int, scale: Fraction, place: str, rounding: str) -> Array:
    """Which of n entries each of m entries is: exactly, and refused where float32 may round to another one.

    Scales that are whole numbers, or one over a power of 2, are exact in every runtime. One over another number is not: of 7
    entries resized to 1, half_pixel, entry 3 is meant, and float32(1/7) leads to 2.9999998. Runtimes divide by the rounded scale
    or multiply by its inverse; where both come to the exact answer it is read.
    """
    rules: dict[str, Callable[[int], Fraction]] = {
        "asymmetric": lambda k: k / scale,
        "half_pixel": lambda k: (k + _HALF) / scale - _HALF,
        "pytorch_half_pixel": lambda k: (k + _HALF) / scale - _HALF if m > 1 else Fraction(0),
        "align_corners": lambda k: Fraction(k * (n - 1), m - 1) if m > 1 else Fraction(0),
    }
    need(place in rules and rounding in _ROUNDING, "a resizing of this mode is not covered by the checker")
    p.charge(_SLOW * m)
    part = 1 in (scale.numerator, scale.denominator) and place != "align_corners"
    exact = part and (scale.denominator & (scale.denominator - 1)) == 0
    found = []
    for k in range(m):
        at = rules[place](k)
        near = (
            [at] if exact else [at, *_in_float32(k, m, scale, place)] if part else [at, at + _SHY, at - _SHY]
        )
        chosen = {min(max(_ROUNDING[rounding](x), 0), n - 1) for x in near}
        need(len(chosen) == 1, "a resizing that hangs on a rounding is not covered by the checker")
        found.append(chosen.pop())
    return np.array(found, np.int64)


def _in_float32(k: int, m: int, scale: Fraction, place: str) -> list[Fraction]:
    """Where runtimes look for entry k in float32: over the rounded scale, and times its rounded inverse."""
    half = np.float32(0 if place == "asymmetric" or (place == "pytorch_half_pixel" and m == 1) else 0.5)
    at = np.float32(k) + half
    over = at / np.float32(float(scale)) - half
    times = at * np.float32(float(1 / scale)) - half
    return [Fraction(float(over)), Fraction(float(times))]


_SLOW = 1000
_HALF, _SHY = Fraction(1, 2), Fraction(1, 1000)
_ROUNDING: dict[str, Callable[[Fraction], int]] = {
    "floor": math.floor,
    "ceil": math.ceil,
    "round_prefer_floor": lambda x: math.ceil(x - _HALF),
    "round_prefer_ceil": lambda x: math.floor(x + _HALF),
}


RESIZING: dict[str, tuple[str, Run]] = {"Upsample": ("7 9 !10", resize), "Resize": ("10 11 13 18 19", resize)}
