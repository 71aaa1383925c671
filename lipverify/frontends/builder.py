"""What both front ends lower into: a graph under construction, spoken to in the source's own axis numbers.

A source counts the batch as an ordinary axis, a graph of ours does not. The builder follows, for every tensor, where the
source has its batch axis. Shapes are those of a batch of one sample, so an axis that is taken for the batch axis has size 1
there: whichever axis of size 1 is followed, the function of one sample is the same. What mixes the samples of a batch is
refused where the source has a symbolic batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from lipverify import ops
from lipverify.errors import InvalidFile
from lipverify.frontends.building.arithmetic import Arithmetic
from lipverify.frontends.building.nodes import Masked, Operand, Value
from lipverify.frontends.building.planes import LARGEST_FOLDED, folded_depth, over_planes
from lipverify.ir.op import Op, Shape
from lipverify.loading.names import display

__all__ = ["Builder", "Masked", "Operand", "Value"]


LARGEST_SIDE = 4096
"""Of matrices that a front end makes itself."""


class Builder(Arithmetic):
    """Collects nodes. All axes and shapes in method arguments are the source's, batch axis included."""

    # -- linear maps

    def along_axis(self, v: Value, axis: int, matrix: Tensor, shift: Tensor | None = None) -> Value:
        """The same stored matrix [out, in] (and shift [out]) on every line along one source axis."""
        v = self.free(v, axis)
        self.axis(v, axis)
        axis %= v.rank
        order = [*(a for a in range(v.rank) if a != axis), axis]
        moved = v if axis == v.rank - 1 else self.transpose(v, order)
        result = self.linear(moved, matrix, shift)
        return (
            result if axis == v.rank - 1 else self.transpose(result, [order.index(a) for a in range(v.rank)])
        )

    def running_sum(self, v: Value, axis: int, *, exclusive: bool = False, backward: bool = False) -> Value:
        """Sums of all entries up to each one along an axis; exclusive: without itself; backward: from it to the end."""
        size = v.source_shape[axis]
        if size > LARGEST_SIDE:
            raise self.refuse(f"running sums along an axis of size {size}", (v,), "use a shorter axis")
        ones = torch.ones(size, size, dtype=self.stored_dtype)
        keep = torch.triu if backward else torch.tril
        return self.along_axis(v, axis, keep(ones, (1 if backward else -1) if exclusive else 0))

    def picked(self, v: Value, positions: Tensor) -> Value:
        """The entries at stored row-major positions of the source's tensor, in a tensor of the shape of `positions`."""
        if positions.numel() == 0:
            raise self.refuse("takes no entries at all", (v,))
        whole = self.view(v, v.source_shape, None) if v.batch is not None and not self.symbolic_batch else v
        if whole.batch is not None:
            raise self.refuse("takes entries by positions that count the batch axis", (v,))
        flat = self.reshape(whole, [math.prod(whole.shape)]) if whole.rank != 1 else whole
        return self.reshape(self.gather(flat, 0, positions.reshape(-1)), list(positions.shape))

    def linear(self, v: Value, weight: Tensor, bias: Tensor | None = None) -> Value:
        """x W' + b on the last source axis. weight [out, in], bias [out]."""
        v = self.free(v, v.rank - 1)
        self.axis(v, v.rank - 1)
        return self.add(ops.Linear(weight, bias), (v,), v.batch)

    def matmul(self, a: Operand, b: Operand) -> Value:
        """numpy.matmul of a computed tensor with a stored or another computed one."""
        if any((x.rank if isinstance(x, Value) else x.ndim) == 0 for x in (a, b)):
            raise InvalidFile(f'{self.what} "{display(self.where)}": a matrix product with a single number')
        if isinstance(a, Value) and isinstance(b, Value):
            return self._bilinear(a, b)
        if isinstance(a, Value):
            assert isinstance(b, Tensor)
            if b.ndim == 1:
                return self.squeeze(self.linear(a, b.reshape(1, -1)), [a.rank - 1])
            return self._stacked(a, b, lambda v, w: self.linear(v, w.T))
        assert isinstance(b, Value)
        if a.ndim == 1:
            a = a.reshape(1, -1)
            return self.squeeze(self.matmul(a, b), [max(b.rank, 2) - 2])
        if b.rank == 1:
            return self.linear(b, a)
        return self._stacked(b, a, self._left_multiply)

    def _left_multiply(self, v: Value, weight: Tensor) -> Value:
        """W x over the last but one axis."""
        swapped = [*range(v.rank - 2), v.rank - 1, v.rank - 2]
        return self.transpose(self.linear(self.transpose(v, swapped), weight), swapped)

    def _stacked(self, v: Value, weight: Tensor, multiply: Callable[[Value, Tensor], Value]) -> Value:
        """A matrix product with a stack of stored matrices [..., k, n]: one product a matrix, side by side again."""
        if weight.ndim == 2:
            return multiply(v, weight)
        if v.rank < weight.ndim:
            v = self.unsqueeze(v, range(weight.ndim - v.rank))
        if weight.shape[0] == 1:
            return self._stacked(v, weight[0], multiply)
        where = v.rank - weight.ndim
        v = self.free(v, where)
        own = v.source_shape[where] != 1
        parts = [
            self._stacked(self.slice(v, where, i, i + 1) if own else v, matrix, multiply)
            for i, matrix in enumerate(weight)
        ]
        return self.concat(parts, where)

    def _bilinear(self, a: Value, b: Value) -> Value:
        if a.rank < 2 or b.rank < 2:
            raise self.refuse("product of a matrix and a vector that both depend on the input", (a, b))
        rank = max(a.rank, b.rank)
        pair = [self.unsqueeze(v, range(rank - v.rank)) if v.rank < rank else v for v in (a, b)]
        if pair[0].batch != pair[1].batch or (pair[0].batch or 0) >= rank - 2:
            if self.symbolic_batch:
                raise self.refuse("product along the batch axis", (a, b))
            pair = [self.view(v, v.source_shape, None) for v in pair]
        return self.add(ops.MatMul(), pair, pair[0].batch)

    def conv(self, v: Value, op: ops.Conv | ops.ConvTranspose) -> Value:
        """A convolution [batch, channels, *spatial], or one without batch axis.

        Where the first axis belongs to the sample, its entries are convolved as groups of channels of their own.
        """
        spatial = op.weight.ndim - 2
        if v.batch is None and v.rank == spatial + 2 and v.source_shape[0] > 1:
            count, channels, *sizes = v.source_shape
            bias = None if op.bias is None else op.bias.repeat(count)
            weight = op.weight.repeat(count, *(1,) * (spatial + 1))
            wide = replace(op, weight=weight, bias=bias, groups=op.groups * count)
            result = self._convolved(self.view(v, (count * channels, *sizes), None), wide)
            return self.view(result, (count, result.shape[0] // count, *result.shape[1:]), None)
        return self._convolved(self._channels_first(v, spatial), op)

    def _convolved(self, v: Value, op: ops.Conv | ops.ConvTranspose) -> Value:
        """One sample [channels, *spatial]; of three spatial axes the first is counted among the channels."""
        if op.weight.ndim != 5:
            return self.add(op, (v,), v.batch)
        channels, depth, *sizes = v.shape
        deep, (first, second, _, *plane) = folded_depth(op, depth), op.weight.shape
        if (numbers := first * second * depth * deep * math.prod(plane)) > LARGEST_FOLDED:
            what = f"is a convolution over three spatial axes, whose matrix of {numbers} numbers is too large"
            raise self.refuse(what, (v,), "use fewer channels or less depth")
        flat = over_planes(op, depth)
        result = self.add(flat, (self.view(v, (channels * depth, *sizes), v.batch),), v.batch)
        return self.view(result, (result.shape[0] // deep, deep, *result.shape[1:]), v.batch)

    def _channels_first(self, v: Value, spatial: int) -> Value:
        if v.rank == spatial + 2 and v.batch != 0:
            if v.source_shape[0] != 1:
                raise self.refuse("needs the batch axis in front", (v,))
            v = self.view(v, v.source_shape[1:], 0)
        if len(v.shape) != spatial + 1:
            raise self.refuse(f"needs [batch, channels] and {spatial} spatial axes", (v,))
        return v

    def _last_axes(self, v: Value, spatial: int) -> Value:
        """Any axes in front of these many, the batch axis among them if there is one."""
        if v.rank < spatial + 1 or (v.batch is not None and v.batch >= v.rank - spatial):
            if self.symbolic_batch or v.rank < spatial + 1:
                raise self.refuse(f"needs [batch, channels] and {spatial} spatial axes", (v,))
            return self.view(v, v.source_shape, None)
        return v

    # -- windows, reductions, normalisation

    def max_pool(
        self,
        v: Value,
        kernel: Shape,
        stride: Shape,
        padding: Sequence[tuple[int, int]],
        dilation: Shape,
        ceil: bool,
    ) -> Value:
        """Max pooling over the last axes; a ceil-mode overhang is padding with -inf."""
        v = self._last_axes(v, len(kernel))
        over = (
            _overhang(v.shape[-len(kernel) :], kernel, stride, padding, dilation)
            if ceil
            else (0,) * len(kernel)
        )
        pads = tuple((a, b + extra) for (a, b), extra in zip(padding, over, strict=True))
        return self.add(ops.MaxPool(kernel, stride, pads, dilation), (v,), v.batch)

    def avg_pool(
        self,
        v: Value,
        kernel: Shape,
        stride: Shape,
        padding: Sequence[tuple[int, int]],
        ceil: bool,
        count_include_pad: bool,
    ) -> Value:
        """Average pooling over the last axes."""
        v = self._last_axes(v, len(kernel))
        ones = (1,) * len(kernel)
        over = (
            _overhang(v.shape[-len(kernel) :], kernel, stride, padding, ones) if ceil else (0,) * len(kernel)
        )
        op = ops.AvgPool(kernel, stride, tuple(padding), count_include_pad, over)
        return self.add(op, (v,), v.batch)

    def reduce(
        self, kind: Callable[[Shape, bool], Op], v: Value, axes: Sequence[int] | None, keepdims: bool
    ) -> Value:
        """A reduction, made of its axes and whether they are kept, over source axes; None means all."""
        if axes is None:
            axes = [a for a in range(v.rank) if not (a == v.batch and self.symbolic_batch)]
            if len(axes) < v.rank and not keepdims:
                raise self.refuse("reduces over the batch axis", (v,))
        v = self.free(v, *axes)
        sample = tuple(sorted({self.axis(v, axis) for axis in axes}))
        if not sample:
            return v
        batch = v.batch
        if batch is not None and not keepdims:
            batch -= sum(axis % v.rank < batch for axis in axes)
        return self.add(kind(sample, keepdims), (v,), batch)

    def along(self, kind: type[Op], v: Value, axis: int) -> Value:
        """Softmax or LogSoftmax along one source axis."""
        v = self.free(v, axis)
        return self.add(kind(self.axis(v, axis)), (v,), v.batch)  # type: ignore[call-arg]

    def batch_norm(
        self, v: Value, weight: Tensor, bias: Tensor, mean: Tensor, var: Tensor, eps: float
    ) -> Value:
        """Evaluation-mode batch normalisation on source axis 1 (or the only axis beside the batch)."""
        if v.batch is None and v.rank > 1 and v.source_shape[0] == 1:
            v = self.view(v, v.source_shape[1:], 0)
        axis = self.axis(v, 1 if v.rank > 1 else 0)
        smallest = float(var.min())
        if smallest < 0 or (smallest == 0 and eps == 0):
            raise InvalidFile(
                f'{self.what} "{display(self.where)}": variance {smallest:g} with eps {eps:g} divides by nothing real'
            )
        return self.add(ops.BatchNorm(weight, bias, mean, var, eps, axis), (v,), v.batch)

    def layer_norm(
        self, v: Value, axes: int, weight: Tensor | None, bias: Tensor | None, eps: float
    ) -> Value:
        """Layer normalisation over the last `axes` source axes."""
        v = self.free(v, *range(v.rank - axes, v.rank))
        for axis in range(v.rank - axes, v.rank):
            self.axis(v, axis)
        return self.add(ops.LayerNorm(v.shape[-axes:], weight, bias, eps), (v,), v.batch)

    def rms_norm(self, v: Value, axes: int, weight: Tensor | None, eps: float) -> Value:
        """The same without the mean."""
        v = self.free(v, *range(v.rank - axes, v.rank))
        for axis in range(v.rank - axes, v.rank):
            self.axis(v, axis)
        return self.add(ops.RMSNorm(v.shape[-axes:], weight, eps), (v,), v.batch)

    def sort(self, v: Value, axis: int, descending: bool) -> Value:
        """Full sort along one source axis."""
        v = self.free(v, axis)
        sample = self.axis(v, axis)
        return self.add(ops.GroupSort(v.shape[sample], sample, descending), (v,), v.batch)


def _overhang(
    sizes: Shape, kernel: Shape, stride: Shape, padding: Sequence[tuple[int, int]], dilation: Shape
) -> Shape:
    """How far the last ceil-mode window hangs over each axis. A window that would start in the padding behind is dropped."""
    over = []
    for size, k, s, (before, after), d in zip(sizes, kernel, stride, padding, dilation, strict=True):
        span = d * (k - 1) + 1
        count = -(-(size + before + after - span) // s) + 1
        if (count - 1) * s >= size + before:
            count -= 1
        over.append(max((count - 1) * s + span - (size + before + after), 0))
    return tuple(over)
