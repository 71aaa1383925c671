"""Operators that move, copy or keep entries."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lipverify import ops
from lipverify.frontends.builder import Value
from lipverify.frontends.torch_export.lowering import Lowerer
from lipverify.frontends.torch_export.registry import lower

# -- identities


@lower.register(
    "aten.clone", "aten.contiguous", "aten.alias", "aten.detach", "aten.detach_", "aten.lift_fresh_copy",
    "aten.positive", "aten.resolve_conj", "aten.resolve_neg",
)  # fmt: skip
def _same(b: Lowerer, x: Value, *_: Any, **__: Any) -> Value:
    return x


@lower.register("aten.dropout", "aten.alpha_dropout", "aten.feature_dropout", "aten.feature_alpha_dropout")
def _dropout(b: Lowerer, x: Value, p: float, train: bool) -> Value:
    if train and p > 0:
        raise b.refuse("dropout is active, so the output is random", (x,), "call module.eval() first")
    return x


@lower.register("aten.to.dtype", "aten._to_copy", "aten.to.dtype_layout", "aten.to.device", "aten.to.other")
def _convert(b: Lowerer, x: Any, *args: Any, **kwargs: Any) -> Any:
    for found in (*args, *kwargs.values()):
        if isinstance(found, Tensor):
            b.cast(found.dtype)
        elif isinstance(found, torch.dtype):
            b.cast(found)
    return x


# -- reshapes


@lower.register("aten.squeeze")
def _squeeze(b: Lowerer, x: Value, dim: Any = None) -> Value:
    if dim is None:
        return b.squeeze(x, None)
    axes = [axis % x.rank for axis in ([dim] if isinstance(dim, int) else dim)]
    # torch keeps an axis that is not of size 1, and the batch axis is not
    return b.squeeze(x, [axis for axis in axes if axis != x.batch and x.source_shape[axis] == 1])


@lower.register("aten.unsqueeze")
def _unsqueeze(b: Lowerer, x: Value, dim: int) -> Value:
    return b.unsqueeze(x, [dim])


@lower.register("aten.expand", "aten.broadcast_to")
def _expand(b: Lowerer, x: Value, size: Sequence[int], *, implicit: bool = False) -> Value:
    return b.expand(x, size)


@lower.register("aten.expand_as")
def _expand_as(b: Lowerer, x: Value, other: Any) -> Value:
    return b.expand(x, other.source_shape if isinstance(other, Value) else other.shape)


@lower.register("aten.repeat", "aten.tile")
def _repeat(b: Lowerer, x: Value, repeats: Sequence[int]) -> Value:
    missing = len(repeats) - x.rank
    v = b.unsqueeze(x, range(missing)) if missing > 0 else x
    for axis, count in enumerate([1] * max(-missing, 0) + list(repeats)):
        if count != 1:
            v = b.concat([v] * count, axis)
    return v


# -- orders


@lower.register("aten.permute", "aten.permute_copy")
def _permute(b: Lowerer, x: Value, dims: Sequence[int]) -> Value:
    return b.transpose(x, dims)


@lower.register("aten.transpose.int", "aten.swapaxes", "aten.swapdims")
def _transpose(b: Lowerer, x: Value, dim0: int, dim1: int) -> Value:
    order = list(range(x.rank))
    order[dim0], order[dim1] = order[dim1], order[dim0]
    return b.transpose(x, order)


@lower.register("aten.t", "aten.numpy_T", "aten.adjoint", "aten.mT")
def _t(b: Lowerer, x: Value) -> Value:
    if b.what in ("adjoint", "mT"):
        return _transpose(b, x, -2, -1)
    return b.transpose(x, range(x.rank - 1, -1, -1))


@lower.register("aten.movedim", "aten.moveaxis")
def _movedim(b: Lowerer, x: Value, source: Any, destination: Any) -> Value:
    order = torch.arange(x.rank).reshape(1, -1).expand(2, -1)[0].tolist()
    sources = [s % x.rank for s in ([source] if isinstance(source, int) else source)]
    targets = [d % x.rank for d in ([destination] if isinstance(destination, int) else destination)]
    rest = iter(axis for axis in order if axis not in sources)
    placed = dict(zip(targets, sources, strict=True))
    return b.transpose(x, [placed[axis] if axis in placed else next(rest) for axis in order])


# -- padding


def _padded(b: Lowerer, x: Value, pad: Sequence[int], mode: str, fill: float) -> Value:
    if mode != "constant" and min(pad) < 0:
        raise b.refuse(f"negative padding {list(pad)} in mode {mode} is not covered", (x,), "slice instead")
    pairs = list(zip(pad[::2], pad[1::2], strict=True))[::-1]
    whole = [(0, 0)] * (x.rank - len(pairs)) + pairs
    return b.pad(x, whole, mode, fill)


@lower.register("aten.pad", "aten.constant_pad_nd")
def _pad(b: Lowerer, x: Value, pad: Sequence[int], mode: Any = "constant", value: Any = None) -> Value:
    if not isinstance(mode, str):
        mode, value = "constant", mode
    fill = float(b.number(0 if value is None else value))
    return _padded(b, x, pad, mode, fill)


def _register_pad(kind: str, rank: int) -> None:
    @lower.register(f"aten.{kind}ion_pad{rank}d")
    def translate(b: Lowerer, x: Value, pad: Sequence[int]) -> Value:
        return _padded(b, x, pad, {"reflect": "reflect", "replicat": "replicate"}[kind], 0.0)


for _rank in (1, 2):
    _register_pad("reflect", _rank)
    _register_pad("replicat", _rank)


# -- channels and space


@lower.register("aten.pixel_shuffle")
def _pixel_shuffle(b: Lowerer, x: Value, upscale_factor: int) -> Value:
    if len(x.shape) != 3:
        raise b.refuse("needs [batch, channels, height, width]", (x,))
    return b.add(ops.DepthToSpace(upscale_factor, True), (x,), x.batch)


@lower.register("aten.pixel_unshuffle")
def _pixel_unshuffle(b: Lowerer, x: Value, r: int) -> Value:
    n, c, h, w = x.source_shape
    split = b.reshape(x, [n, c, h // r, r, w // r, r])
    return b.reshape(b.transpose(split, [0, 1, 3, 5, 2, 4]), [n, c * r * r, h // r, w // r])


@lower.register("aten.channel_shuffle", "aten.native_channel_shuffle")
def _channel_shuffle(b: Lowerer, x: Value, groups: int) -> Value:
    c = x.source_shape[1]
    return b.gather(x, 1, torch.arange(c).reshape(groups, c // groups).T.reshape(-1))


@lower.register("aten.upsample_nearest1d", "aten.upsample_nearest2d", "aten._upsample_nearest_exact1d",
                "aten._upsample_nearest_exact2d")  # fmt: skip
def _upsample_nearest(b: Lowerer, x: Value, output_size: Any, *scales: Any) -> Value:
    spatial = x.source_shape[2:]
    factors: Any = scales[0] if len(scales) == 1 and isinstance(scales[0], (list, tuple)) else scales
    exact = "exact" in b.what
    kernel = torch.ops.aten._upsample_nearest_exact1d if exact else torch.ops.aten.upsample_nearest1d
    if output_size is None:
        output_size = [math.floor(size * factor) for size, factor in zip(spatial, factors, strict=True)]
    v = x
    repeats = [1] * len(x.shape)
    for i, (size, new) in enumerate(zip(spatial, output_size, strict=True)):
        # torch itself says which entry each new one copies: its rounding of positions is part of the program
        positions = torch.arange(size, dtype=torch.float32).reshape(1, 1, -1)
        taken = kernel(positions, [new], factors[i] if len(factors) > i else None).reshape(-1).long()
        if new % size == 0 and bool((taken == torch.arange(size).repeat_interleave(new // size)).all()):
            repeats[i + 1] = new // size
        else:
            v = b.gather(v, i + 2, taken)
    return v if max(repeats) == 1 else b.add(ops.Upsample(tuple(repeats)), (v,), v.batch)


@lower.register("aten.upsample_linear1d.vec", "aten.upsample_bilinear2d.vec")
def _upsample_linear(
    b: Lowerer, x: Value, output_size: Any, align_corners: bool, scale_factors: Any = None
) -> Value:
    """Linear interpolation, one axis after the other, as a matrix on each: torch itself gives the weights."""
    v = x
    for i, size in enumerate(x.source_shape[2:]):
        unit = torch.eye(size, dtype=b.dtype, device=b.device).unsqueeze(1)
        new = None if output_size is None else [output_size[i]]
        scale = None if scale_factors is None else [scale_factors[i]]
        matrix = torch.ops.aten.upsample_linear1d.vec(unit, new, align_corners, scale).squeeze(1).T
        order = [axis for axis in range(x.rank) if axis != i + 2] + [i + 2]
        v = b.linear(b.transpose(v, order), matrix.contiguous())
        v = b.transpose(v, [order.index(axis) for axis in range(x.rank)])
    return v


# -- stored tensors in the shape of computed ones


def _filled(b: Lowerer, x: Value, number: float) -> Tensor:
    return torch.full(x.source_shape, number, dtype=b.dtype, device=b.device)


@lower.register("aten.zeros_like")
def _zeros_like(b: Lowerer, x: Value, **_: Any) -> Tensor:
    return _filled(b, x, 0.0)


@lower.register("aten.ones_like")
def _ones_like(b: Lowerer, x: Value, **_: Any) -> Tensor:
    return _filled(b, x, 1.0)


@lower.register("aten.full_like", "aten.fill.Scalar")
def _full_like(b: Lowerer, x: Value, number: Any, **_: Any) -> Tensor:
    return _filled(b, x, float(b.number(number)))


@lower.register("aten.new_zeros")
def _new_zeros(b: Lowerer, x: Value, size: Sequence[int], **_: Any) -> Tensor:
    return torch.zeros(list(size), dtype=b.dtype, device=b.device)


@lower.register("aten.new_ones")
def _new_ones(b: Lowerer, x: Value, size: Sequence[int], **_: Any) -> Tensor:
    return torch.ones(list(size), dtype=b.dtype, device=b.device)


@lower.register("aten.new_full")
def _new_full(b: Lowerer, x: Value, size: Sequence[int], number: Any, **_: Any) -> Tensor:
    return torch.full(list(size), float(b.number(number)), dtype=b.dtype, device=b.device)
