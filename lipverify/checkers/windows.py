"""Convolutions and their adjoints as steps, and the windows they and pools look through."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from lipverify.checkers.arithmetic import Array, NotCovered, need
from lipverify.checkers.steps import MAX_SIZE, Call, Program, Value


def positions(x: Value) -> Array:
    return np.arange(x.places.size).reshape(x.places.shape)


def window(c: Call, x: Array, kernel: Sequence[int]) -> tuple[Array, tuple[Any, ...]]:
    """Windows [..., *positions, *kernel] of the last axes, padded with -1; (stride, dilation, padding)."""
    n = len(kernel)
    stride, dilation = c.integers("strides", [1] * n), c.integers("dilations", [1] * n)
    pads, auto = c.integers("pads", [0] * 2 * n), c.given.get("auto_pad", "NOTSET")
    if c.given.get("ceil_mode") or c.given.get("storage_order"):
        raise NotCovered("rounding up is not covered by the checker")
    need(auto in ("NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER"), "a padding")
    if (
        auto.startswith("SAME")
        and len(stride) == len(dilation) == n == x.ndim - 2
        and min(*stride, *dilation) >= 1
    ):
        sizes = zip(x.shape[2:], kernel, stride, dilation, strict=True)
        total = [max((-(-size // s) - 1) * s + d * (k - 1) + 1 - size, 0) for size, k, s, d in sizes]
        less, more = [t // 2 for t in total], [t - t // 2 for t in total]
        pads = less + more if auto == "SAME_UPPER" else more + less
    need(len(pads) == 2 * n == 2 * x.ndim - 4 and c.integers("kernel_shape", kernel) == [*kernel], "a window")
    need(min(*stride, *dilation, *kernel) >= 1 and min(pads) >= 0 and x.size < MAX_SIZE, "a window")
    padding = list(zip(pads[:n], pads[n:], strict=True))
    x = np.pad(x, [(0, 0)] * (x.ndim - n) + padding, constant_values=-1)
    reach = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
    view = sliding_window_view(x, reach, tuple(range(x.ndim - n, x.ndim)))
    cuts: Any = (..., *(slice(None, None, s) for s in (*stride, *dilation)))
    view = np.asarray(view[cuts])
    need(0 < view.size <= MAX_SIZE, "windows too many to check")
    return view, (stride, dilation, padding)


def optional(p: Program, c: Call, place: int) -> Array | None:
    """An operand that may be left out."""
    return (
        p.array(c.inputs[place]).astype(np.float64) if c.inputs[place : place + 1] not in ([], [""]) else None
    )


def conv(p: Program, c: Call) -> None:
    x, weight, groups = p.value(c.inputs[0]), p.array(c.inputs[1]), int(c.given.get("group", 1))
    taps, image = weight.shape[2:], x.places.shape[1:]
    need(groups > 0 and len(weight) % groups == 0 and image[0] == weight.shape[1] * groups, "channels")
    view, geometry = window(c, positions(x), taps)
    out = view.shape[2 : 2 + len(taps)]
    index = np.moveaxis(view.reshape(groups, weight.shape[1], math.prod(out), -1), 1, 2)
    split, bias = weight.reshape(groups, -1, *weight.shape[1:]), optional(p, c, 2)
    p.map(c.output, x, split.reshape(*split.shape[:2], -1), index.reshape(groups, math.prod(out), -1),
          (1, len(weight), *out), 0, (split, image, *geometry, False),
          None if bias is None else bias.reshape(-1, *(1,) * len(taps)))  # fmt: skip


def conv_transpose(p: Program, c: Call) -> None:
    """A convolution of the input with zeros between its entries; as a lattice, the convolution that it is the adjoint of."""
    x, weight, groups = p.value(c.inputs[0]), p.array(c.inputs[1]), int(c.given.get("group", 1))
    taps, image, n = weight.shape[2:], x.places.shape[2:], weight.ndim - 2
    stride, dilation = c.integers("strides", [1] * n), c.integers("dilations", [1] * n)
    more, pads = c.integers("output_padding", [0] * n), c.integers("pads", [0] * 2 * n)
    if c.given.get("auto_pad", "NOTSET") != "NOTSET" or "output_shape" in c.given:
        raise NotCovered("automatic padding is not covered by the checker")
    need(groups > 0 and x.places.shape[:2] == (1, len(weight)) and len(weight) % groups == 0, "channels")
    need(
        c.integers("kernel_shape", taps) == [*taps] and len(pads) == 2 * n and min(*pads, *more) >= 0,
        "a window",
    )
    need(min(*stride, *dilation, *taps) >= 1, "a window")
    reach = [d * (k - 1) for d, k in zip(dilation, taps, strict=True)]
    sizes = [s * (e - 1) + 1 + 2 * r + m for s, e, r, m in zip(stride, image, reach, more, strict=True)]
    need(len(weight) * math.prod(sizes) < MAX_SIZE, "a window")
    index = np.full((1, len(weight), *sizes), -1)
    between: Any = (
        ...,
        *(slice(r, r + s * (e - 1) + 1, s) for r, s, e in zip(reach, stride, image, strict=True)),
    )
    index[between] = positions(x)
    cut: Any = (..., *(slice(a, e - b) for a, b, e in zip(pads[:n], pads[n:], sizes, strict=True)))
    view, _ = window(Call(c.op, c.inputs, c.output, {"dilations": dilation}), index[cut], taps)
    out, split = view.shape[2 : 2 + n], weight.reshape(groups, -1, *weight.shape[1:])
    kernel = np.flip(np.swapaxes(split, 1, 2), tuple(range(3, 3 + n)))
    channels, bias = groups * weight.shape[1], optional(p, c, 2)
    places = np.moveaxis(view.reshape(groups, split.shape[1], math.prod(out), -1), 1, 2)
    lattice = (split, (channels, *out), stride, dilation, list(zip(pads[:n], pads[n:], strict=True)), True)
    p.map(c.output, x, kernel.reshape(*kernel.shape[:2], -1), places.reshape(groups, math.prod(out), -1),
          (1, channels, *out), 0, lattice, None if bias is None else bias.reshape(-1, *(1,) * n))  # fmt: skip
