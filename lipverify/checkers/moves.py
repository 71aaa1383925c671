"""Operators that move numbers and change none: values are arrays of places, and so are their results."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from lipverify.checkers.arithmetic import Array, need
from lipverify.checkers.steps import MAX_SIZE, Call, Program, Value


def moved(p: Program, c: Call) -> None:
    """One operator that moves numbers: places of computed ones, or stored ones themselves."""
    need(c.op != "Dropout" or not any(c.inputs[2:]), "a dropout in training mode")
    if c.op == "Shape":
        p.stored[c.output] = np.array(p.value(c.inputs[0]).places.shape)
        return
    if c.inputs[0] in p.stored and c.op not in ("Pad", "Concat"):
        p.stored[c.output] = np.asarray(MOVES[c.op](p, c, p.stored[c.inputs[0]]))
        return
    if c.op == "Concat" and all(name in p.stored for name in c.inputs):
        p.stored[c.output] = np.concatenate([p.stored[name] for name in c.inputs], int(c.given["axis"]))
        return
    if c.op == "Concat":
        sources, places = p.joined(c.inputs)
        p.values[c.output] = Value(sources, np.concatenate(places, int(c.given["axis"])))
    else:
        x = p.value(c.inputs[0])
        p.values[c.output] = Value(x.sources, np.asarray(MOVES[c.op](p, c, x.places)))
    need(p.values[c.output].places.size <= MAX_SIZE, "a tensor too large to check")


def _reshape(p: Program, c: Call, x: Array) -> Array:
    axis = int(c.given.get("axis", 1))
    target = [math.prod(x.shape[:axis]), -1] if c.op == "Flatten" else p.listed(c, 1, "shape") or []
    need(not c.given.get("allowzero", 0) and axis >= 0, "a reshape")
    return x.reshape([x.shape[i] if n == 0 else n for i, n in enumerate(target)])


def _slice(p: Program, c: Call, x: Array) -> Array:
    starts, ends, axes, steps = (
        p.listed(c, i + 1, n) for i, n in enumerate(("starts", "ends", "axes", "steps"))
    )
    cut, count = [slice(None)] * x.ndim, len(starts or ())
    for a, *ends_ in zip(axes or range(count), starts or (), ends or (), steps or [1] * count, strict=True):
        need(ends_[2] > 0 and cut[a] == slice(None), "a slice")
        cut[a] = slice(*ends_)
    return np.asarray(x[tuple(cut)])


def _pad(p: Program, c: Call, x: Array) -> Array:
    pads, mode = p.listed(c, 1, "pads") or [], c.given.get("mode", "constant")
    need(len(pads) == 2 * x.ndim and min(pads) >= 0 and not any(c.inputs[3:]), "a padding")
    pairs = list(zip(pads[: x.ndim], pads[x.ndim :], strict=True))
    if mode == "constant":
        return np.pad(x, pairs, constant_values=-1)
    need(
        mode in ("reflect", "edge", "wrap") and all(max(q) < s for q, s in zip(pairs, x.shape, strict=True)),
        "padding",
    )
    return np.asarray(np.pad(x, pairs, mode=mode))


def _repeat(p: Program, c: Call, x: Array) -> Array:
    for axis, factor in enumerate(c.integers("factors", ())):
        x = np.repeat(x, factor, axis)
    return x


def _blocks(p: Program, c: Call, x: Array) -> Array:
    """Channels to space; mode CRD: the block comes after the channel."""
    n, (_, channels, *image) = int(c.given["blocksize"]), x.shape
    need(n > 0 and channels % n**2 == 0 and len(image) == 2, "blocks")
    later = c.given.get("mode", "DCR") == "CRD"
    x = (
        x.reshape(1, channels // n**2, n, n, *image)
        if later
        else x.reshape(1, n, n, channels // n**2, *image)
    )
    x = x.transpose(0, 1, 4, 2, 5, 3) if later else x.transpose(0, 3, 4, 1, 5, 2)
    return x.reshape(1, channels // n**2, n * image[0], n * image[1])


def _split(p: Program, c: Call, x: Array) -> Array:
    """One of the parts: the file's reader asks for each by itself."""
    axis, sizes, count = int(c.given.get("axis", 0)), p.listed(c, 1, "split"), int(c.given["parts"])
    sizes = sizes or [x.shape[axis] // count] * count
    need(len(sizes) == count and sum(sizes) == x.shape[axis] and min(sizes) >= 0, "parts of another size")
    start = sum(sizes[: c.given["part"]])
    return np.take(x, np.arange(start, start + sizes[c.given["part"]]), axis)


MOVES: dict[str, Callable[[Program, Call, Array], Array]] = {
    **dict.fromkeys(("Identity", "Dropout", "Concat"), lambda p, c, x: x), "Reshape": _reshape, "Flatten": _reshape,
    "Squeeze": lambda p, c, x: np.squeeze(x, tuple(p.listed(c, 1, "axes") or ()) or None), "Slice": _slice, "Pad": _pad,
    "DepthToSpace": _blocks, "Split": _split, "Shape": lambda p, c, x: x,
    "Unsqueeze": lambda p, c, x: np.expand_dims(x, tuple(p.listed(c, 1, "axes") or ())), "Repeat": _repeat,
    "Transpose": lambda p, c, x: x.transpose(c.given.get("perm")),
    "Gather": lambda p, c, x: np.take(x, p.array(c.inputs[1]), int(c.given.get("axis", 0))),
    "Expand": lambda p, c, x: np.broadcast_to(x, np.broadcast_shapes(x.shape, tuple(p.listed(c, 1, "shape") or ()))),
}  # fmt: skip
MOVED = "allowzero axes axis blocksize ends factors mode num_outputs pads part parts perm ratio seed shape split starts steps"
