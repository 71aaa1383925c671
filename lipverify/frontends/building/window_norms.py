"""Norms over windows, as a gather of every window's entries and one norm of each (LpPool)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import torch

from lipverify import ops
from lipverify.frontends.builder import Builder, Value
from lipverify.frontends.building.pieces import alike
from lipverify.ir.op import Shape


def window_norms(
    b: Builder,
    x: Value,
    kernel: Shape,
    stride: Shape,
    dilation: Shape,
    padding: Sequence[tuple[int, int]],
    ceil: bool,
    order: int,
) -> Value:
    """The norms of order 1, 2, 3, ... of all windows of the last axes, with zeros where a window hangs over."""
    rank = len(kernel)
    sizes = x.source_shape[-rank:]
    each = zip(sizes, kernel, stride, dilation, padding, strict=True)
    lines = [window_entries(*settings, ceil) for settings in each]
    found = b.pad(x, [(0, 0)] * (x.rank - rank) + [(before, after) for _, before, after in lines])
    for offset, (entries, _, _) in enumerate(lines):
        # [positions, kernel] in place of the axis; the axes before it have already got one more each.
        found = b.gather(found, x.rank - rank + 2 * offset, torch.tensor(entries))
    return norms(b, found, [x.rank - rank + 2 * i + 1 for i in range(rank)], False, order)


def norms(b: Builder, x: Value, axes: Sequence[int], keepdims: bool, order: int) -> Value:
    """The norm of this order along axes."""
    if order == 1:
        return b.reduce(ops.ReduceSum, b.elementwise(ops.Abs(), x), axes, keepdims)
    return b.reduce(partial(ops.ReduceNorm, order=order), x, axes, keepdims)


def rooted_windows(b: Builder, x: Value, power: float) -> Value | None:
    """(n mean of z^p)^(1/p) over windows of n entries, p even: what torch computes in place of their norms (LPPool). None where
    x^power is anything else."""
    factor = b.node(x.name)
    pool = b.node(factor.inputs[0]) if isinstance(factor.op, ops.Scale) else factor
    if not isinstance(pool.op, ops.AvgPool) or factor is pool:
        return None
    raised, window = b.node(pool.inputs[0]), pool.op
    if not isinstance(raised.op, ops.Power) or raised.op.exponent not in (2.0, 4.0) or any(window.uncounted):
        return None
    assert isinstance(factor.op, ops.Scale)
    counted = factor.op.shift is None and alike(factor.op.scale) and not any(map(any, window.padding))
    if not counted or power != 1 / raised.op.exponent:
        return None
    assert factor.op.scale is not None
    if float(factor.op.scale.reshape(-1)[0]) != math.prod(window.kernel):
        return None
    source = Value(raised.inputs[0], b.node(raised.inputs[0]).shape, x.batch)
    ones = (1,) * len(window.kernel)
    order = int(raised.op.exponent)
    return window_norms(b, source, window.kernel, window.stride, ones, window.padding, False, order)


def window_entries(
    size: int, kernel: int, stride: int, dilation: int, padding: tuple[int, int], ceil: bool
) -> tuple[list[list[int]], int, int]:
    """Which entries of the padded axis every window holds, and the padding that they reach into."""
    before, after = padding
    span = dilation * (kernel - 1) + 1
    room = size + before + after - span
    count = (-(-room // stride) if ceil else room // stride) + 1
    if ceil and (count - 1) * stride >= size + before:
        count -= 1
    entries = [[start * stride + j * dilation for j in range(kernel)] for start in range(count)]
    return entries, before, max(max(row[-1] for row in entries) + 1 - size - before, 0)
