"""Operators that move, copy or drop entries without computing."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lipverify.ir.norm import Norm
from lipverify.ir.op import Op, Shape
from lipverify.ops.convolution import Pads, flat_pads
from lipverify.ops.embedding import copies_norm, embedding, single
from lipverify.ops.enclosure import monotone_box
from lipverify.rules import Gain, forward, gain, interval, linear, magnitude


@dataclass(frozen=True, eq=False)
class Reshape(Op):
    """Row-major reshape of the sample; flatten, squeeze and unsqueeze are spellings of it."""

    shape: Shape


@dataclass(frozen=True, eq=False)
class Transpose(Op):
    """Sample axes in a new order."""

    order: Shape


@dataclass(frozen=True, eq=False)
class Slice(Op):
    """Entries start, start + step, ... below stop of one axis (0 <= start, step >= 1, stop <= size)."""

    axis: int
    start: int
    stop: int
    step: int = 1


@dataclass(frozen=True, eq=False)
class Gather(Op):
    """Entries with these indices (int64, one axis, non-negative) of one sample axis, in this order; repeats allowed."""

    axis: int
    indices: Tensor


@dataclass(frozen=True, eq=False)
class Pad(Op):
    """Padding (before, after) for every sample axis. mode: constant (with `fill`), reflect, replicate, circular."""

    padding: Pads
    mode: str = "constant"
    fill: float = 0.0


@dataclass(frozen=True, eq=False)
class Upsample(Op):
    """Nearest resize by whole factors, one for each sample axis: every entry is repeated."""

    factors: Shape


@dataclass(frozen=True, eq=False)
class DepthToSpace(Op):
    """Channels to space on samples [channels, height, width]. `column_first`: torch pixel_shuffle and ONNX mode CRD; else DCR."""

    block: int
    column_first: bool


@dataclass(frozen=True, eq=False)
class Expand(Op):
    """Broadcast of the sample to a larger shape of equal rank: axes of size 1 are copied."""

    shape: Shape


@forward.register(Reshape)
@linear.register(Reshape)
def _reshape(op: Reshape, x: Tensor) -> Tensor:
    return x.reshape(x.shape[0], *op.shape)


@forward.register(Transpose)
@linear.register(Transpose)
def _transpose(op: Transpose, x: Tensor) -> Tensor:
    return x.permute(0, *(axis + 1 for axis in op.order))


@forward.register(Slice)
@linear.register(Slice)
def _slice(op: Slice, x: Tensor) -> Tensor:
    index = [slice(None)] * x.ndim
    index[op.axis + 1] = slice(op.start, op.stop, op.step)
    return x[tuple(index)]


@forward.register(Gather)
@linear.register(Gather)
def _gather(op: Gather, x: Tensor) -> Tensor:
    return torch.index_select(x, op.axis + 1, op.indices)


@forward.register(Pad)
def _pad(op: Pad, x: Tensor) -> Tensor:
    return _padded(op, x, op.fill)


@linear.register(Pad)
def _pad_part(op: Pad, x: Tensor) -> Tensor:
    return _padded(op, x, 0.0)


def _padded(op: Pad, x: Tensor, fill: float) -> Tensor:
    if op.mode == "constant":
        return torch.nn.functional.pad(x, flat_pads(op.padding), value=fill)
    for axis, (before, after) in enumerate(op.padding):
        if before or after:
            x = torch.index_select(
                x, axis + 1, padded_indices(op.mode, x.shape[axis + 1], before, after, x.device)
            )
    return x


def padded_indices(
    mode: str, size: int, before: int, after: int, device: torch.device | None = None
) -> Tensor:
    """Which entry every position of a padded axis copies. reflect leaves the edge out, replicate repeats it, circular wraps."""
    position = torch.arange(-before, size + after, device=device)
    if mode == "replicate":
        return position.clamp(0, size - 1)
    if mode == "circular":
        return position.remainder(size)
    period = max(2 * (size - 1), 1)
    folded = position.remainder(period)
    return torch.minimum(folded, period - folded) if size > 1 else torch.zeros_like(position)


@forward.register(Upsample)
@linear.register(Upsample)
def _upsample(op: Upsample, x: Tensor) -> Tensor:
    for axis, factor in enumerate(op.factors):
        if factor != 1:
            x = torch.repeat_interleave(x, factor, dim=axis + 1)
    return x


@forward.register(DepthToSpace)
@linear.register(DepthToSpace)
def _depth_to_space(op: DepthToSpace, x: Tensor) -> Tensor:
    batch, channels, height, width = x.shape
    b, kept = op.block, channels // op.block**2
    if op.column_first:
        return (
            x.reshape(batch, kept, b, b, height, width)
            .permute(0, 1, 4, 2, 5, 3)
            .reshape(batch, kept, height * b, width * b)
        )
    return (
        x.reshape(batch, b, b, kept, height, width)
        .permute(0, 3, 4, 1, 5, 2)
        .reshape(batch, kept, height * b, width * b)
    )


@forward.register(Expand)
@linear.register(Expand)
def _expand(op: Expand, x: Tensor) -> Tensor:
    return x.expand(x.shape[0], *op.shape)


# No coefficient is negative.
magnitude.register(Reshape)(_reshape)
magnitude.register(Transpose)(_transpose)
magnitude.register(Slice)(_slice)
magnitude.register(Gather)(_gather)
magnitude.register(Upsample)(_upsample)
magnitude.register(DepthToSpace)(_depth_to_space)
magnitude.register(Expand)(_expand)


@magnitude.register(Pad)
def _pad_size(op: Pad, x: Tensor) -> Tensor:
    return _padded(op, x, abs(op.fill))


@gain.register(Reshape, Transpose, DepthToSpace)
def _permutation_gain(
    op: Reshape | Transpose | DepthToSpace, shapes: tuple[Shape, ...], norm_in: Norm, norm_out: Norm
) -> Gain:
    """Entries change places: an isometry of every norm."""
    return single(embedding(math.prod(shapes[0]), norm_in, norm_out))


@gain.register(Slice)
def _slice_gain(op: Slice, shapes: tuple[Shape, ...], norm_in: Norm, norm_out: Norm) -> Gain:
    """Entries are kept once or dropped."""
    counts = _ones(shapes[0])
    kept = torch.zeros_like(counts[op.axis])
    kept[op.start : op.stop : op.step] = 1
    counts[op.axis] = kept
    return single(copies_norm(counts, norm_in, norm_out))


@gain.register(Gather)
def _gather_gain(op: Gather, shapes: tuple[Shape, ...], norm_in: Norm, norm_out: Norm) -> Gain:
    """An entry is copied as often as its index occurs."""
    counts = _ones(shapes[0])
    counts[op.axis] = torch.bincount(op.indices, minlength=shapes[0][op.axis])
    return single(copies_norm(counts, norm_in, norm_out))


@gain.register(Pad)
def _pad_gain(op: Pad, shapes: tuple[Shape, ...], norm_in: Norm, norm_out: Norm) -> Gain:
    """A constant border adds nothing; the other borders copy entries. Negative constant padding drops entries."""
    counts = _ones(shapes[0])
    for axis, (before, after) in enumerate(op.padding):
        size = shapes[0][axis]
        if op.mode == "constant":
            kept = torch.zeros_like(counts[axis])
            kept[max(0, -before) : max(0, size - max(0, -after))] = 1
            counts[axis] = kept
        elif before or after:
            counts[axis] = torch.bincount(padded_indices(op.mode, size, before, after), minlength=size)
    return single(copies_norm(counts, norm_in, norm_out))


@gain.register(Upsample)
def _upsample_gain(op: Upsample, shapes: tuple[Shape, ...], norm_in: Norm, norm_out: Norm) -> Gain:
    """Every entry is copied as often as the product of the factors."""
    counts = [one * factor for one, factor in zip(_ones(shapes[0]), op.factors, strict=True)]
    return single(copies_norm(counts, norm_in, norm_out))


@gain.register(Expand)
def _expand_gain(op: Expand, shapes: tuple[Shape, ...], norm_in: Norm, norm_out: Norm) -> Gain:
    """An axis of size 1 is copied."""
    counts = [
        one * (new // old) for one, old, new in zip(_ones(shapes[0]), shapes[0], op.shape, strict=True) if old
    ]
    return single(copies_norm(counts, norm_in, norm_out))


def _ones(shape: Shape) -> list[Tensor]:
    """One copy of every entry, axis by axis."""
    return [torch.ones(size, dtype=torch.int64) for size in shape]


interval.register(Reshape, Transpose, Slice, Gather, Pad, Upsample, DepthToSpace, Expand)(monotone_box)
