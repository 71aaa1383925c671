"""Convolutions of many rows that are zero outside small windows."""

from __future__ import annotations

import torch
from torch import Tensor

from lipverify.ops import Conv
from lipverify.rules import linear

SMALL = 0.5
"""Share of the results beyond which windows save nothing."""


def convolved(op: Conv, rows: Tensor) -> Tensor:
    """`linear(op, rows)` for rows [n, *shape], computed only where a row is not zero.

    Statement: every result that a nonzero entry of its row touches is the same sum of products; all others are zero.
    """
    if rows.ndim != 4 or len(rows) == 0:
        return linear(op, rows)
    busy = (rows != 0).any(1)  # [n, height, width]
    result = [
        (size + before + after - step * (length - 1) - 1) // stride + 1
        for size, (before, after), length, step, stride in zip(
            rows.shape[2:], op.padding, op.weight.shape[2:], op.dilation, op.stride, strict=True
        )
    ]
    starts, lengths = zip(
        *(_touched(busy.any(2 - axis), op, axis, result[axis]) for axis in range(2)), strict=True
    )
    if lengths[0] * lengths[1] > SMALL * result[0] * result[1]:
        return linear(op, rows)
    pads = [size for pair in reversed(op.padding) for size in pair]
    padded = torch.nn.functional.pad(rows, pads)
    place = [
        starts[axis].unsqueeze(1) * op.stride[axis]
        + torch.arange(
            (lengths[axis] - 1) * op.stride[axis] + op.dilation[axis] * (op.weight.shape[2 + axis] - 1) + 1,
            device=rows.device,
        )
        for axis in range(2)
    ]
    part = _flat_places(place, padded.shape[3])  # [n, 1, window]
    window = padded.flatten(2).gather(2, part.expand(-1, padded.shape[1], -1))
    window = window.reshape(len(rows), padded.shape[1], place[0].shape[1], place[1].shape[1])
    value = torch.nn.functional.conv2d(window, op.weight, None, op.stride, 0, op.dilation, op.groups)
    found = rows.new_zeros(len(rows), value.shape[1], result[0] * result[1])
    target = [
        starts[axis].unsqueeze(1) + torch.arange(lengths[axis], device=rows.device) for axis in range(2)
    ]
    found.scatter_(2, _flat_places(target, result[1]).expand(-1, value.shape[1], -1), value.flatten(2))
    return found.reshape(len(rows), -1, *result)


def _touched(busy: Tensor, op: Conv, axis: int, size: int) -> tuple[Tensor, int]:
    """Where the results start that nonzero entries touch along one axis, [n], and how many there are at most."""
    marks = busy.to(torch.int8)
    first, last = marks.argmax(1), busy.shape[1] - 1 - marks.flip(1).argmax(1)
    before, stride = op.padding[axis][0], op.stride[axis]
    reach = op.dilation[axis] * (op.weight.shape[2 + axis] - 1)
    start = torch.div(first + before - reach + stride - 1, stride, rounding_mode="floor").clamp(0, size - 1)
    end = torch.div(last + before, stride, rounding_mode="floor").clamp(0, size - 1)
    length = int(torch.where(busy.any(1), end - start, torch.zeros_like(end)).clamp_min(0).max()) + 1
    return start.clamp_max(size - length), length


def _flat_places(place: list[Tensor], width: int) -> Tensor:
    """Row-major positions of a window: [n, 1, height * width of the window]."""
    return (place[0].unsqueeze(2) * width + place[1].unsqueeze(1)).flatten(1).unsqueeze(1)
