"""Convolutions and their adjoints as steps, and the windows they and pools look through."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from lipverify.checkers.kernel.program import Array, Lattice
from lipverify.checkers.reader.building import Builder, Value, size_of
from lipverify.checkers.reader.calls import Call
from lipverify.checkers.reader.refusals import need


class Geometry(NamedTuple):
    """How windows lie on an image."""

    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]

    def counts(self, image: Sequence[int], kernel: Sequence[int]) -> list[int]:
        """Windows along every axis."""
        rows = zip(image, kernel, self.stride, self.dilation, self.padding, strict=True)
        found = [(n + a + b - d * (k - 1) - 1) // s + 1 for n, k, s, d, (a, b) in rows]
        need(min(found) >= 1, "a window larger than its image")
        return found


def geometry(
    c: Call, image: Sequence[int], kernel: Sequence[int], dilations: bool = True, same: bool = True
) -> Geometry:
    """Strides, dilations and padding, with `auto_pad` resolved."""
    n = len(kernel)
    need(n == len(image) > 0 and min(*kernel, 1) >= 1, "a window over other axes")
    stride = c.integers("strides", [1] * n)
    dilation = c.integers("dilations", [1] * n) if dilations else [1] * n
    need(len(stride) == len(dilation) == n and min(*stride, *dilation, 1) >= 1, "a window")
    need(max(*stride, *dilation, *kernel) < 1 << 24, "a window")
    auto, pads = c.text("auto_pad", "NOTSET"), [0] * 2 * n
    if auto == "NOTSET":
        pads = c.integers("pads", pads)
    # Pads beside an automatic padding are left over, and refused as such.
    elif auto != "VALID":
        need(
            same and auto in ("SAME_UPPER", "SAME_LOWER"),
            "this automatic padding is not covered by the checker",
        )
        # Some runtimes leave dilations out of this.
        need(max(dilation) == 1, "an automatic padding of dilated windows is not covered by the checker")
        sizes = zip(image, kernel, stride, dilation, strict=True)
        total = [(-(-size // s) - 1) * s + d * (k - 1) + 1 - size for size, k, s, d in sizes]
        # Where windows leave gaps, some runtimes cut the image instead of padding it.
        need(min(total) >= 0, "an automatic padding that is negative")
        less, more = [t // 2 for t in total], [t - t // 2 for t in total]
        pads = less + more if auto == "SAME_UPPER" else more + less
    need(len(pads) == 2 * n and min(pads) >= 0 and max(pads) < 1 << 24, "a padding")
    return Geometry(tuple(stride), tuple(dilation), tuple(zip(pads[:n], pads[n:], strict=True)))


def windows(p: Builder, x: Array, kernel: Sequence[int], g: Geometry) -> Array:
    """Windows [..., *positions, *kernel] of the last axes of an array of places, padded with -1."""
    n = len(kernel)
    lead, image = x.shape[:-n], x.shape[-n:]
    counts = g.counts(image, kernel)
    p.charge(size_of([*lead, *(size + a + b for size, (a, b) in zip(image, g.padding, strict=True))]))
    p.charge(math.prod([*lead, *counts, *kernel]))
    x = np.pad(x, [(0, 0)] * len(lead) + list(g.padding), constant_values=-1)
    reach = [d * (k - 1) + 1 for d, k in zip(g.dilation, kernel, strict=True)]
    view = sliding_window_view(x, reach, tuple(range(len(lead), x.ndim)))
    cuts: Any = (..., *(slice(None, None, s) for s in (*g.stride, *g.dilation)))
    found: Array = view[cuts]
    return found


def _weights(c: Call) -> tuple[Array, Array | None, int, int]:
    """Weights, bias, groups, and the roundings behind the weights."""
    x = c.any(0)
    kind, groups = x.kind, c.integer("group", 1)
    weight, rounded = c.weights(1, kind)
    need(
        weight.ndim >= 3 and weight.size > 0 and 0 < groups <= len(weight) and len(weight) % groups == 0,
        "channels",
    )
    taps = weight.shape[2:]
    need(c.integers("kernel_shape", taps) == list(taps), "a kernel of another shape")
    return weight, c.optional(2, kind), groups, rounded


def conv(p: Builder, c: Call) -> list[Value]:
    x = c.value(p, 0)
    weight, bias, groups, rounded = _weights(c)
    taps, out = weight.shape[2:], len(weight)
    need(
        x.places.ndim == weight.ndim and x.shape[0] == 1 and x.shape[1] == weight.shape[1] * groups,
        "channels",
    )
    need(bias is None or bias.shape == (out,), "a bias of another size")
    g = geometry(c, x.shape[2:], taps)
    counts = g.counts(x.shape[2:], taps)
    view = windows(p, p.positions(x), taps, g)
    split = weight.reshape(groups, -1, *weight.shape[1:])
    index = np.moveaxis(view.reshape(groups, weight.shape[1], math.prod(counts), -1), 1, 2)
    lattice = Lattice(split, x.shape[1:], *g, False)
    offset = None if bias is None else bias.reshape(-1, *(1,) * len(taps))
    return [p.affine(x, split.reshape(*split.shape[:2], -1), index.reshape(groups, math.prod(counts), -1), (1, out, *counts),
                     rounded, lattice, offset)]  # fmt: skip


def conv_transpose(p: Builder, c: Call) -> list[Value]:
    """A convolution of the input with zeros between its entries; as a lattice, the convolution that it is the adjoint of."""
    x = c.value(p, 0)
    weight, bias, groups, rounded = _weights(c)
    n, taps = weight.ndim - 2, weight.shape[2:]
    need(x.places.ndim == weight.ndim and x.shape[:2] == (1, len(weight)), "channels")
    channels, image = groups * weight.shape[1], x.shape[2:]
    need(bias is None or bias.shape == (channels,), "a bias of another size")
    need(not c.has("output_shape"), "a stated size of the output is not covered by the checker")
    g = geometry(c, image, taps, same=False)
    more = c.integers("output_padding", [0] * n)
    need(
        len(more) == n
        and all(0 <= m < max(s, d) for m, s, d in zip(more, g.stride, g.dilation, strict=True)),
        "a padding",
    )
    reach = [d * (k - 1) for d, k in zip(g.dilation, taps, strict=True)]
    sizes = [s * (e - 1) + 1 + 2 * r + m for s, e, r, m in zip(g.stride, image, reach, more, strict=True)]
    p.charge(size_of([len(weight), *sizes]))
    index = np.full((1, len(weight), *sizes), -1)
    between: Any = (
        ...,
        *(slice(r, r + s * (e - 1) + 1, s) for r, s, e in zip(reach, g.stride, image, strict=True)),
    )
    index[between] = p.positions(x)
    need(all(a + b < e for (a, b), e in zip(g.padding, sizes, strict=True)), "a padding")
    cuts: Any = (..., *(slice(a, e - b) for (a, b), e in zip(g.padding, sizes, strict=True)))
    plain = Geometry((1,) * n, g.dilation, ((0, 0),) * n)
    counts = plain.counts(index[cuts].shape[2:], taps)
    view = windows(p, index[cuts], taps, plain)
    split = weight.reshape(groups, -1, *weight.shape[1:])
    kernel = np.flip(np.swapaxes(split, 1, 2), tuple(range(3, 3 + n)))
    places = np.moveaxis(view.reshape(groups, split.shape[1], math.prod(counts), -1), 1, 2)
    # With so much more behind it that another window fits, x is a part of what that convolution gives.
    whole = g.counts(counts, taps) == list(image)
    lattice = Lattice(split, (channels, *counts), *g, True) if whole else None
    offset = None if bias is None else bias.reshape(-1, *(1,) * n)
    return [p.affine(x, kernel.reshape(*kernel.shape[:2], -1), places.reshape(groups, math.prod(counts), -1),
                     (1, channels, *counts), rounded, lattice, offset)]  # fmt: skip


def pool_windows(p: Builder, c: Call, x: Array) -> tuple[Array, list[int]]:
    """Groups [results, count] of places that a pool looks at, and the shape of its result."""
    kernel = c.integers("kernel_shape", None)
    need(0 < len(kernel) == x.ndim - 2 and min(kernel) >= 1, "a window over other axes")
    dilations = c.words or c.version >= (10 if c.op == "MaxPool" else 19)
    g = geometry(c, x.shape[2:], kernel, dilations)
    counts = g.counts(x.shape[2:], kernel)
    if (c.version >= 10 or c.words) and c.flag("ceil_mode", 0):
        g = _rounded_up(c, x.shape[2:], kernel, g)
        counts = g.counts(x.shape[2:], kernel)
    view = windows(p, x, kernel, g)
    return view.reshape(math.prod(view.shape[: -len(kernel)]), -1), [*x.shape[:2], *counts]


def _rounded_up(c: Call, image: Sequence[int], kernel: Sequence[int], g: Geometry) -> Geometry:
    """Padding behind the image for a last window that reaches beyond it.

    Maxima alone: how many entries a mean over such a window has is a matter that operator sets and runtimes disagree about, and
    so is a window that begins behind the image.
    """
    rows = zip(image, kernel, g.stride, g.dilation, g.padding, strict=True)
    left = [-(n + a + b - d * (k - 1) - 1) % s for n, k, s, d, (a, b) in rows]
    if any(left):
        need(c.op == "MaxPool", "a mean that rounds sizes up is not covered by the checker")
    padding = tuple((a, b + more) for (a, b), more in zip(g.padding, left, strict=True))
    wider = g._replace(padding=padding)
    counts = wider.counts(image, kernel)
    inside = [(m - 1) * s < n + a for m, s, n, (a, _) in zip(counts, g.stride, image, padding, strict=True)]
    need(all(inside), "a window behind the image")
    return wider


CONVOLUTIONS: dict[str, tuple[str, Callable[[Builder, Call], Sequence[Value]]]] = {
    "Conv": ("1 11 22", conv),
    "ConvTranspose": ("1 11 22", conv_transpose),
}
"""Operator -> the versions of its definition that are read, and how."""
