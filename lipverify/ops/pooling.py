"""Pooling over windows and reductions over whole axes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from functools import reduce

import torch
from torch import Tensor

from lipverify.errors import UnsupportedModel
from lipverify.ir.interval import Interval
from lipverify.ir.norm import Norm
from lipverify.ir.op import Op, Shape
from lipverify.linalg.dense import operator_norm_upper
from lipverify.linalg.rounding import Upper
from lipverify.ops.convolution import Pads, flat_pads
from lipverify.ops.embedding import SAME_NORMS, blocks_norm, copies_norm, embedding, single
from lipverify.ops.enclosure import Enclosure, linear_box, monotone_box
from lipverify.ops.planes import largest_planes, smallest_planes
from lipverify.rules import Gain, Relaxation, forward, gain, interval, linear, magnitude, relax


@dataclass(frozen=True, eq=False)
class MaxPool(Op):
    """Maximum over windows of the last len(kernel) axes; a border that no window reaches is cut.

    padding: (before, after) with -inf for each of these axes.
    """

    kernel: Shape
    stride: Shape
    padding: Pads
    dilation: Shape


@dataclass(frozen=True, eq=False)
class AvgPool(Op):
    """Mean over windows of the last len(kernel) axes, zero padding (before, after).

    count_include_pad: padded zeros count in the mean; `uncounted` (after, each axis) is padding that never counts: the part
    a ceil-mode window hangs over.
    """

    kernel: Shape
    stride: Shape
    padding: Pads
    count_include_pad: bool
    uncounted: Shape


@dataclass(frozen=True, eq=False)
class ReduceSum(Op):
    """Sum over sample axes (>= 0, sorted)."""

    axes: Shape
    keepdims: bool


@dataclass(frozen=True, eq=False)
class ReduceMean(Op):
    """Mean over sample axes; global average pooling is the mean over all spatial axes."""

    axes: Shape
    keepdims: bool


@dataclass(frozen=True, eq=False)
class ReduceMax(Op):
    """Maximum over sample axes; global max pooling is the maximum over all spatial axes."""

    axes: Shape
    keepdims: bool


@dataclass(frozen=True, eq=False)
class ReduceMin(Op):
    """Minimum over sample axes."""

    axes: Shape
    keepdims: bool


def windows(x: Tensor, kernel: Shape, stride: Shape, dilation: Shape) -> Tensor:
    """All windows of the last len(kernel) axes: [..., *positions, *kernel]."""
    first = x.ndim - len(kernel)
    for i, (size, step, spread) in enumerate(zip(kernel, stride, dilation, strict=True)):
        x = x.unfold(first + i, spread * (size - 1) + 1, step)[..., ::spread]
    return x


def _places(x: Tensor, axis: int, size: int, step: int, spread: int = 1) -> list[Tensor]:
    """The first, the second, ... entry of every window along one axis, counted from the end: of each [..., positions, ...]."""
    reach = step * ((x.shape[axis] - spread * (size - 1) - 1) // step) + 1
    moved = x.movedim(axis, -1)
    # Slices, and no `unfold`: gradients of many outputs at once have a rule for those alone.
    return [moved[..., spread * k : spread * k + reach : step].movedim(-1, axis) for k in range(size)]


@forward.register(MaxPool)
def _max_pool(op: MaxPool, x: Tensor) -> Tensor:
    largest = torch.nn.functional.pad(x, flat_pads(op.padding), value=-float("inf"))
    # One axis after the other, and places of the window one after the other: a tenth of the time of all windows side by side.
    for axis, size, step, spread in zip(
        range(-len(op.kernel), 0), op.kernel, op.stride, op.dilation, strict=True
    ):
        largest = reduce(torch.maximum, _places(largest, axis, size, step, spread))
    return largest


@forward.register(AvgPool)
@linear.register(AvgPool)
def _avg_pool(op: AvgPool, x: Tensor) -> Tensor:
    return window_sums(op, x) / window_counts(op, x)


def window_sums(op: AvgPool, x: Tensor) -> Tensor:
    """Sum of every window, padding included as zeros."""
    pads = tuple((a, b + extra) for (a, b), extra in zip(op.padding, op.uncounted, strict=True))
    sums = torch.nn.functional.pad(x, flat_pads(pads))
    for axis, size, step in zip(range(-len(op.kernel), 0), op.kernel, op.stride, strict=True):
        sums = reduce(torch.add, _places(sums, axis, size, step))
    return sums


def window_counts(op: AvgPool, x: Tensor) -> Tensor:
    """How many entries every window divides by: [*positions]."""
    ones = torch.ones(x.shape[-len(op.kernel) :], dtype=x.dtype, device=x.device)
    pads = flat_pads(op.padding)
    if op.count_include_pad:
        ones = torch.nn.functional.pad(ones, pads, value=1.0)
        pads = [0] * len(pads)
    extra = flat_pads(tuple((0, size) for size in op.uncounted))
    padded = torch.nn.functional.pad(ones, [a + b for a, b in zip(pads, extra, strict=True)])
    return windows(padded, op.kernel, op.stride, (1,) * len(op.kernel)).sum(
        dim=tuple(range(-len(op.kernel), 0))
    )


def batched_axes(axes: Shape) -> tuple[int, ...]:
    """Sample axes counted with the batch axis in front."""
    return tuple(axis + 1 for axis in axes)


@forward.register(ReduceSum)
@linear.register(ReduceSum)
def _reduce_sum(op: ReduceSum, x: Tensor) -> Tensor:
    return x.sum(dim=batched_axes(op.axes), keepdim=op.keepdims)


@forward.register(ReduceMean)
@linear.register(ReduceMean)
def _reduce_mean(op: ReduceMean, x: Tensor) -> Tensor:
    return x.mean(dim=batched_axes(op.axes), keepdim=op.keepdims)


@forward.register(ReduceMax)
def _reduce_max(op: ReduceMax, x: Tensor) -> Tensor:
    return x.amax(dim=batched_axes(op.axes), keepdim=op.keepdims)


@forward.register(ReduceMin)
def _reduce_min(op: ReduceMin, x: Tensor) -> Tensor:
    return x.amin(dim=batched_axes(op.axes), keepdim=op.keepdims)


# No coefficient is negative.
magnitude.register(AvgPool)(_avg_pool)
magnitude.register(ReduceSum)(_reduce_sum)
magnitude.register(ReduceMean)(_reduce_mean)


@relax.register(MaxPool)
def _max_pool_planes(op: MaxPool, box: Interval) -> Relaxation:
    """The maximum of one entry a place in the window; a place outside repeats an entry of the window."""
    shape = box.lower.shape[1:]
    index = torch.arange(math.prod(shape), dtype=torch.float64, device=box.lower.device).reshape(1, *shape)
    padded = torch.nn.functional.pad(index, flat_pads(op.padding), value=-1.0)
    held = windows(padded, op.kernel, op.stride, op.dilation)[0].flatten(-len(op.kernel)).to(torch.int64)
    held = torch.where(held < 0, held.amax(-1, keepdim=True), held)
    return largest_planes(*_members(held.movedim(-1, 0), box))


@relax.register(ReduceMax, ReduceMin)
def _reduce_max_planes(op: ReduceMax | ReduceMin, box: Interval) -> Relaxation:
    """The maximum (minimum) of the entries along the axes."""
    shape = tuple(box.lower.shape[1:])
    index = torch.arange(math.prod(shape), device=box.lower.device).reshape(shape)
    kept = [axis for axis in range(len(shape)) if axis not in op.axes]
    result = [
        1 if axis in op.axes else size for axis, size in enumerate(shape) if op.keepdims or axis in kept
    ]
    held = index.permute(*op.axes, *kept).reshape(-1, *result)
    planes = largest_planes if isinstance(op, ReduceMax) else smallest_planes
    return planes(*_members(held, box))


def _members(held: Tensor, box: Interval) -> tuple[Tensor, Tensor, Tensor]:
    """Ends of the boxes of the entries `held` [terms, *shape of the result], each [terms, batch, ...], and `held` itself."""
    lower, upper = (end.flatten(1)[:, held].movedim(1, 0) for end in (box.lower, box.upper))
    return lower, upper, held


@gain.register(MaxPool)
def _max_pool_gain(op: MaxPool, shapes: tuple[Shape, ...], norm_in: Norm, norm_out: Norm) -> Gain:
    """|max over W of x - max over W of y|^s <= sum over W of |x_j - y_j|^s: an entry counts in every window that holds it.

    So the change is at most that of the map that copies entry j into its c_j windows, for s = l1, l2, linf (linf: 1); a
    change of one dominating entry attains it. Padding with -inf never wins. Mixed norms: the best s, embedded.
    """
    lead, spatial = shapes[0][: -len(op.kernel)], shapes[0][-len(op.kernel) :]
    axes = list(zip(spatial, op.kernel, op.stride, op.padding, op.dilation, strict=True))
    counts = [torch.ones(size, dtype=torch.int64) for size in lead] + [
        _windows_holding(*axis) for axis in axes
    ]
    outputs = math.prod(lead) * math.prod(_positions(*axis) for axis in axes)
    bounds = [copies_norm(counts, norm_in, s) * embedding(outputs, s, norm_out) for s in SAME_NORMS]
    return single(min(bounds))


def _positions(size: int, kernel: int, stride: int, padding: tuple[int, int], dilation: int) -> int:
    return (size + sum(padding) - dilation * (kernel - 1) - 1) // stride + 1


def _windows_holding(size: int, kernel: int, stride: int, padding: tuple[int, int], dilation: int) -> Tensor:
    """How many windows hold each entry of an axis."""
    starts = torch.arange(_positions(size, kernel, stride, padding, dilation)) * stride - padding[0]
    entries = (starts[:, None] + torch.arange(kernel) * dilation).reshape(-1)
    return torch.bincount(entries[(entries >= 0) & (entries < size)], minlength=size)


@gain.register(AvgPool)
def _avg_pool_gain(op: AvgPool, shapes: tuple[Shape, ...], norm_in: Norm, norm_out: Norm) -> Gain:
    """A Kronecker product of one averaging matrix for each axis and of identities: see `_nonnegative_norm`."""
    spatial = shapes[0][-len(op.kernel) :]
    total = embedding(math.prod(shapes[0][: -len(op.kernel)]), norm_in, norm_out)
    for axis, size in enumerate(spatial):
        total = total * _nonnegative_norm(_averaging(op, axis, size), norm_in, norm_out)
    return single(total)


def _averaging(op: AvgPool, axis: int, size: int) -> Tensor:
    """The averaging matrix of one axis [positions, size], entries rounded up."""
    kernel, stride, (before, after) = op.kernel[axis], op.stride[axis], op.padding[axis]
    reach = (before, after + op.uncounted[axis])
    starts = torch.arange(_positions(size, kernel, stride, reach, 1)) * stride - before
    entry = torch.arange(size)
    inside = (entry >= starts[:, None]) & (entry < starts[:, None] + kernel)
    low, high = (-before, size + after) if op.count_include_pad else (0, size)
    count = (starts + kernel).clamp(max=high) - starts.clamp(min=low)
    if not bool((count > 0).all()):
        raise UnsupportedModel("a window of the average holds no entry that counts; it divides zero by zero")
    matrix = inside.to(torch.float64) / count[:, None]
    exact = (count & (count - 1)) == 0  # 1 / count is a power of two
    return torch.where(
        exact[:, None] | ~inside, matrix, torch.nextafter(matrix, torch.full_like(matrix, math.inf))
    )


def _nonnegative_norm(matrix: Tensor, norm_in: Norm, norm_out: Norm) -> Upper:
    """Norm of a matrix with non-negative entries, and a factor of the norm of a Kronecker product of such matrices.

    Statement: l2 -> l2, l1 -> q and p -> linf (largest column or row norms) multiply over Kronecker factors. Where entries
    are non-negative, |A x|_q <= |A |x||_q, so linf -> q is attained by the vector of ones, l2 -> l1 by adjunction: these
    are norms of row or column sums and multiply too. Larger entries give larger norms.
    """
    if (norm_in, norm_out) in ((Norm.LINF, Norm.L1), (Norm.LINF, Norm.L2), (Norm.L2, Norm.L1)):
        lines = matrix if norm_in is Norm.LINF else matrix.mT
        sums = [Upper.sum(line) for line in lines.tolist()]
        return (
            Upper.sum(sums) if norm_in is Norm.LINF and norm_out is Norm.L1 else Upper.root_sum_squares(sums)
        )
    if norm_in is norm_out is Norm.L2 and bool(((matrix > 0).sum(0) <= 1).all()):
        # No entry lies in two windows: orthogonal rows.
        return Upper.largest(Upper.root_sum_squares(row) for row in matrix.tolist())
    return operator_norm_upper(matrix, norm_in.value, norm_out.value)


@gain.register(ReduceSum, ReduceMean)
def _reduce_sum_gain(
    op: ReduceSum | ReduceMean, shapes: tuple[Shape, ...], norm_in: Norm, norm_out: Norm
) -> Gain:
    """Blocks of one row of N equal entries: |sum of x| <= N^(1 - 1/p) |x|_p, attained by constants."""
    count, blocks = _reduced(shapes[0], op.axes)
    row = embedding(count, norm_in, Norm.L1)
    if isinstance(op, ReduceMean):
        # N^(1 - 1/p) / N = N^(-1/p)
        inverse = Upper.of(Fraction(1, max(count, 1)))
        row = {Norm.L1: inverse, Norm.L2: inverse.sqrt(), Norm.LINF: Upper.one()}[norm_in]
    return single(blocks_norm(row, blocks, norm_in, norm_out))


@gain.register(ReduceMax, ReduceMin)
def _reduce_max_gain(
    op: ReduceMax | ReduceMin, shapes: tuple[Shape, ...], norm_in: Norm, norm_out: Norm
) -> Gain:
    """|max x - max y| <= |x - y|_inf <= |x - y|_p in every block."""
    _, blocks = _reduced(shapes[0], op.axes)
    return single(blocks_norm(Upper.one(), blocks, norm_in, norm_out))


def _reduced(shape: Shape, axes: Shape) -> tuple[int, int]:
    """Entries of a block, number of blocks."""
    count = math.prod(shape[axis] for axis in axes)
    return count, math.prod(size for axis, size in enumerate(shape) if axis not in axes)


interval.register(MaxPool, ReduceMax, ReduceMin)(monotone_box)


@interval.register(AvgPool)
def _avg_pool_interval(op: AvgPool, box: Interval) -> Interval:
    def sums(x: Tensor) -> Tensor:
        return window_sums(op, x)

    counts = window_counts(op, Enclosure.of(box).lower)
    return Enclosure.of(linear_box(sums, sums, None, box, math.prod(op.kernel))) / Enclosure.of(counts)


@interval.register(ReduceSum)
def _reduce_sum_interval(op: ReduceSum, box: Interval) -> Interval:
    return Enclosure.of(box).sum(batched_axes(op.axes), op.keepdims)


@interval.register(ReduceMean)
def _reduce_mean_interval(op: ReduceMean, box: Interval) -> Interval:
    count = math.prod(box.lower.shape[axis] for axis in batched_axes(op.axes))
    return Enclosure.of(box).sum(batched_axes(op.axes), op.keepdims) / float(count)
