"""What both front ends lower into: a graph under construction, spoken to in the source's own axis numbers.

A source counts the batch as an ordinary axis, a graph of ours does not. The builder follows, for every tensor, where the
source has its batch axis. Shapes are those of a batch of one sample, so an axis that is taken for the batch axis has size 1
there: whichever axis of size 1 is followed, the function of one sample is the same. What mixes the samples of a batch is
refused where the source has a symbolic batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lipverify import ops
from lipverify.errors import InvalidFile, UnsupportedModel
from lipverify.interpreter import infer_shape
from lipverify.ir.graph import Graph, Node, Origin
from lipverify.ir.op import Constant, Input, Op, Shape
from lipverify.loading.names import display


@dataclass(frozen=True)
class Value:
    """A tensor that depends on the input. shape: of one sample; batch: which axis of the source's tensor is the batch."""

    name: str
    shape: Shape
    batch: int | None

    @property
    def rank(self) -> int:
        """Axes of the source's tensor."""
        return len(self.shape) + (self.batch is not None)

    @property
    def source_shape(self) -> Shape:
        """Shape of the source's tensor for a batch of one."""
        if self.batch is None:
            return self.shape
        return (*self.shape[: self.batch], 1, *self.shape[self.batch :])


Operand = Value | Tensor


class Builder:
    """Collects nodes. All axes and shapes in method arguments are the source's, batch axis included."""

    def __init__(self, *, symbolic_batch: bool) -> None:
        self.symbolic_batch = symbolic_batch
        self.where = "input"
        """Name of the source's node in work, for messages and node names."""
        self.what = "Input"
        """Operator name of the source's node in work, for messages."""
        self.notes: list[str] = []
        self._nodes: list[Node] = []
        self._names: set[str] = set()

    # -- foundation

    def refuse(self, reason: str, operands: Sequence[Operand] = (), remedy: str = "") -> UnsupportedModel:
        """The error to raise for the source's node in work: node, operator, shapes, reason, remedy."""
        shapes = ", ".join(str(list(x.source_shape if isinstance(x, Value) else x.shape)) for x in operands)
        shown = f" {shapes}" if shapes else ""
        advice = f"; {remedy}" if remedy else ""
        return UnsupportedModel(f'{self.what} "{display(self.where)}"{shown}: {reason}{advice}')

    def input(self, source_shape: Shape, batch: int | None, name: str = "input") -> Value:
        """The one input of the graph."""
        shape = tuple(size for axis, size in enumerate(source_shape) if axis != batch)
        unique = self._unique(name)
        self._nodes.append(Node(unique, Input(), (), shape, source=name))
        return Value(unique, shape, batch)

    def add(self, op: Op, operands: Sequence[Value], batch: int | None) -> Value:
        """One more node; its sample shape comes from the operator's forward rule."""
        try:
            shape = infer_shape(op, tuple(v.shape for v in operands))
        except (RuntimeError, IndexError, ValueError) as error:
            raise InvalidFile(
                f'{self.what} "{display(self.where)}": {op.kind()} does not fit its inputs '
                f"{[list(v.shape) for v in operands]} ({display(str(error), 120)}); the file contradicts itself"
            ) from None
        name = self._unique(self.where)
        self._nodes.append(Node(name, op, tuple(v.name for v in operands), shape, source=self.where))
        return Value(name, shape, batch)

    def graph(self, outputs: Sequence[Operand], origin: Origin) -> Graph:
        """The finished graph, without nodes that no output needs."""
        values = [v if isinstance(v, Value) else self.constant(v, None) for v in outputs]
        notes = (*origin.notes, *self.notes)
        nodes, names = tuple(self._nodes), tuple(v.name for v in values)
        return Graph(nodes, names, origin=replace(origin, notes=notes)).pruned()

    def constant(self, value: Tensor, batch: int | None) -> Value:
        """A stored tensor where the graph needs a node; an axis of size 1 at `batch` is dropped."""
        sample = value if batch is None else value.squeeze(batch)
        name = self._unique(self.where)
        self._nodes.append(Node(name, Constant(sample), (), tuple(sample.shape), source=self.where))
        return Value(name, tuple(sample.shape), batch)

    def _unique(self, name: str) -> str:
        unique, count = name, 1
        while unique in self._names:
            unique, count = f"{name}.{count}", count + 1
        self._names.add(unique)
        return unique

    def axis(self, v: Value, axis: int) -> int:
        """The sample axis of a source axis that is not the batch axis."""
        source = axis + v.rank if axis < 0 else axis
        if not 0 <= source < v.rank:
            raise InvalidFile(
                f'{self.what} "{display(self.where)}": axis {axis} of a tensor {list(v.source_shape)}'
            )
        if source == v.batch:
            raise self.refuse(
                f"works along the batch axis {source}",
                (v,),
                "samples of a batch must not influence each other; export in evaluation mode",
            )
        return source - (v.batch is not None and source > v.batch)

    def free(self, v: Value, *axes: int) -> Value:
        """The same tensor with its batch axis counted as an ordinary axis of size 1, if one of these axes is the batch axis."""
        if v.batch is None or self.symbolic_batch or all(axis % v.rank != v.batch for axis in axes):
            return v
        return self._view(v, v.source_shape, None)

    def _view(self, v: Value, shape: Shape, batch: int | None) -> Value:
        """The same entries in the same order under another sample shape."""
        if shape == v.shape:
            return Value(v.name, shape, batch)
        return self.add(ops.Reshape(shape), (v,), batch)

    # -- shapes

    def reshape(self, v: Value, target: Sequence[int]) -> Value:
        """Row-major reshape; one entry may be -1. The batch axis stays where it was if that is possible."""
        total = math.prod(v.shape)
        known = math.prod(size for size in target if size != -1)
        if target.count(-1) > 1 or any(size < -1 for size in target):
            raise InvalidFile(f'{self.what} "{display(self.where)}": impossible shape {list(target)}')
        if -1 in target and known and total % known == 0:
            target = [total // known if size == -1 else size for size in target]
        if math.prod(target) != total:
            raise InvalidFile(
                f'{self.what} "{display(self.where)}": {list(v.source_shape)} does not reshape to {list(target)}'
            )
        batch: int | None = None
        candidates = [0] if v.batch is None else [v.batch, 0]
        if len(target) > 1 or v.rank == 1:
            batch = next((a for a in candidates if a < len(target) and target[a] == 1), None)
        if batch is None and v.batch is not None and self.symbolic_batch:
            raise self.refuse(f"merges the batch axis with others: reshape to {list(target)}", (v,))
        return self._view(v, tuple(size for a, size in enumerate(target) if a != batch), batch)

    def flatten(self, v: Value, start: int, end: int) -> Value:
        """Source axes start..end (inclusive) become one."""
        first, last = start % max(v.rank, 1), end % max(v.rank, 1)
        if v.batch is not None and first <= v.batch <= last and first != last and self.symbolic_batch:
            raise self.refuse("flattens the batch axis together with others", (v,))
        shape = v.source_shape
        return self.reshape(v, [*shape[:first], math.prod(shape[first : last + 1]), *shape[last + 1 :]])

    def transpose(self, v: Value, order: Sequence[int]) -> Value:
        """Source axes in a new order."""
        source = [axis % v.rank for axis in order]
        batch = None if v.batch is None else source.index(v.batch)
        sample = tuple(self.axis(v, axis) for axis in source if axis != v.batch)
        if sample == tuple(range(len(sample))):
            return replace(v, batch=batch)
        return self.add(ops.Transpose(sample), (v,), batch)

    def unsqueeze(self, v: Value, axes: Sequence[int]) -> Value:
        """New axes of size 1 at these positions of the result."""
        rank = v.rank + len(axes)
        new = {axis % rank for axis in axes}
        kept = [axis for axis in range(rank) if axis not in new]
        batch = None if v.batch is None else kept[v.batch]
        sizes = dict(zip(kept, v.source_shape, strict=True))
        shape = tuple(sizes.get(axis, 1) for axis in range(rank) if axis != batch)
        return self._view(v, shape, batch)

    def squeeze(self, v: Value, axes: Sequence[int] | None) -> Value:
        """Without these axes of size 1; None drops all of them except the batch axis of a symbolic batch."""
        source = v.source_shape
        if axes is None:
            gone = {
                a for a, size in enumerate(source) if size == 1 and not (a == v.batch and self.symbolic_batch)
            }
        else:
            gone = {axis % v.rank for axis in axes}
            if v.batch in gone and self.symbolic_batch:
                raise self.refuse("removes the batch axis", (v,))
        if any(source[axis] != 1 for axis in gone):
            raise InvalidFile(
                f'{self.what} "{display(self.where)}": cannot squeeze {sorted(gone)} of {list(source)}'
            )
        kept = [axis for axis in range(v.rank) if axis not in gone]
        batch = kept.index(v.batch) if v.batch in kept else None
        return self._view(v, tuple(source[axis] for axis in kept if axis != v.batch), batch)

    def expand(self, v: Value, target: Sequence[int]) -> Value:
        """Broadcast to a source shape of at least the same rank; -1 keeps a size."""
        v = self.unsqueeze(v, range(len(target) - v.rank)) if len(target) > v.rank else v
        wanted = []
        for axis, (have, want) in enumerate(zip(v.source_shape, target, strict=True)):
            if axis == v.batch:
                if want not in (1, -1):
                    raise self.refuse(f"repeats the sample along the batch axis: {list(target)}", (v,))
                continue
            if want not in (have, -1, 1) and have != 1:
                raise InvalidFile(f'{self.what} "{display(self.where)}": cannot expand {have} to {want}')
            wanted.append(max(have, want))
        shape = tuple(wanted)
        return v if shape == v.shape else self.add(ops.Expand(shape), (v,), v.batch)

    def slice(self, v: Value, axis: int, start: int, stop: int, step: int = 1) -> Value:
        """Entries start, start + step, ... before stop; Python's rules for negative and too large ends; step may be negative."""
        size = v.source_shape[axis % v.rank]
        taken = range(size)[start:stop:step]
        if taken == range(size):
            return v
        v = self.free(v, axis)
        sample = self.axis(v, axis)
        if len(taken) == 0:
            raise self.refuse("takes an empty slice", (v,))
        if step < 0:
            return self.add(ops.Gather(sample, torch.tensor(list(taken))), (v,), v.batch)
        return self.add(ops.Slice(sample, taken.start, taken[-1] + 1, step), (v,), v.batch)

    def gather(self, v: Value, axis: int, indices: Tensor) -> Value:
        """Entries with stored indices of any rank along one axis; the axes of `indices` replace it."""
        v = self.free(v, axis)
        axis %= v.rank
        sample, size = self.axis(v, axis), v.source_shape[axis]
        flat = indices.reshape(-1).to(torch.int64)
        if bool(((flat < -size) | (flat >= size)).any()) or flat.numel() == 0:
            raise InvalidFile(f'{self.what} "{display(self.where)}": indices outside an axis of size {size}')
        flat = torch.where(flat < 0, flat + size, flat)
        contiguous = bool((flat == torch.arange(int(flat[0]), int(flat[0]) + flat.numel())).all())
        if contiguous:
            taken = self.slice(v, axis, int(flat[0]), int(flat[-1]) + 1)
        else:
            taken = self.add(ops.Gather(sample, flat), (v,), v.batch)
        if indices.ndim == 1:
            return taken
        shape = taken.source_shape
        batch = taken.batch
        if batch is not None and batch > axis:
            batch += indices.ndim - 1
        target = (*shape[:axis], *indices.shape, *shape[axis + 1 :])
        return self._view(taken, tuple(s for a, s in enumerate(target) if a != batch), batch)

    def concat(self, operands: Sequence[Operand], axis: int) -> Value:
        """Side by side along one axis; stored tensors take part as constants."""
        rank = operands[0].rank if isinstance(operands[0], Value) else operands[0].ndim
        axis %= rank
        batches = {v.batch for v in operands if isinstance(v, Value)}
        if len(batches) > 1 or axis in batches:
            operands = [self._view(v, v.source_shape, None) if isinstance(v, Value) else v for v in operands]
            if self.symbolic_batch:
                raise self.refuse("joins tensors along the batch axis", operands)
            batches = {None}
        batch = batches.pop()
        values = [v if isinstance(v, Value) else self.constant(v, batch) for v in operands]
        if len(values) == 1:
            return values[0]
        return self.add(ops.Concat(self.axis(values[0], axis)), values, batch)

    def pad(
        self, v: Value, pads: Sequence[tuple[int, int]], mode: str = "constant", fill: float = 0.0
    ) -> Value:
        """Padding (before, after) for every source axis; negative sizes cut."""
        for axis, (before, after) in enumerate(pads):
            if before < 0 or after < 0:
                size = v.source_shape[axis]
                v = self.slice(v, axis, max(-before, 0), size - max(-after, 0))
        wanted = [(max(a, 0), max(b, 0)) for a, b in pads]
        if not any(a or b for a, b in wanted):
            return v
        v = self.free(v, *(axis for axis, pair in enumerate(wanted) if any(pair)))
        if v.batch is not None and any(wanted[v.batch]):
            raise self.refuse("pads the batch axis", (v,))
        sample = tuple(pair for axis, pair in enumerate(wanted) if axis != v.batch)
        return self.add(ops.Pad(sample, mode, fill), (v,), v.batch)

    # -- scalar functions

    def elementwise(self, op: Op, v: Value) -> Value:
        """A scalar activation."""
        return self.add(op, (v,), v.batch)

    def prelu(self, v: Value, slope: Tensor) -> Value:
        """Leaky ReLU with stored slopes, broadcast in source coordinates."""
        (v,), (slope,) = self._aligned([v], [slope])
        return self.add(ops.PReLU(slope), (v,), v.batch)

    # -- arithmetic with broadcasting

    def plus(self, a: Operand, b: Operand) -> Value:
        """a + b."""
        return self._binary(a, b, ops.Add(), lambda v, c: ops.Scale(None, c))

    def minus(self, a: Operand, b: Operand) -> Value:
        """a - b."""
        if isinstance(a, Tensor):
            assert isinstance(b, Value)
            (v,), (c,) = self._aligned([b], [a])
            return self.add(ops.Scale(-torch.ones((), dtype=c.dtype), c), (v,), v.batch)
        return self._binary(a, b, ops.Sub(), lambda v, c: ops.Scale(None, -c))

    def times(self, a: Operand, b: Operand) -> Value:
        """a * b."""
        return self._binary(a, b, ops.Mul(), lambda v, c: ops.Scale(c, None))

    def over(self, a: Operand, b: Operand) -> Value:
        """a / b."""
        if isinstance(a, Tensor):
            assert isinstance(b, Value)
            return self.times(self.elementwise(ops.Reciprocal(), b), a)
        if isinstance(b, Tensor) and bool((b == 0).any()):
            raise InvalidFile(f'{self.what} "{display(self.where)}": divides by a stored zero')
        return self._binary(a, b, ops.Div(), lambda v, c: ops.DivideBy(c))

    def negative(self, v: Value) -> Value:
        """-v."""
        return self.add(ops.Scale(torch.tensor(-1.0), None), (v,), v.batch)

    def maximum(self, a: Operand, b: Operand) -> Value:
        """Elementwise maximum; with one stored number it is a clip."""
        return self._extreme(a, b, ops.Maximum(), lambda c: ops.Clip(c, math.inf))

    def minimum(self, a: Operand, b: Operand) -> Value:
        """Elementwise minimum; with one stored number it is a clip."""
        return self._extreme(a, b, ops.Minimum(), lambda c: ops.Clip(-math.inf, c))

    def _extreme(self, a: Operand, b: Operand, op: Op, clip: Callable[[float], Op]) -> Value:
        if isinstance(a, Tensor):
            a, b = b, a
        assert isinstance(a, Value)
        if isinstance(b, Tensor):
            if b.numel() == 1:
                return self.elementwise(clip(float(b)), a)
            (a,), (b,) = self._aligned([a], [b])
            full = self.constant(b.expand(a.shape).contiguous(), None)
            return self.add(op, (a, replace(full, batch=a.batch)), a.batch)
        return self._binary(a, b, op, lambda v, c: op)

    def _binary(self, a: Operand, b: Operand, op: Op, stored: Callable[[Value, Tensor], Op]) -> Value:
        if isinstance(a, Tensor):
            a, b = b, a
        assert isinstance(a, Value)
        if isinstance(b, Tensor):
            (a,), (b,) = self._aligned([a], [b])
            return self.add(stored(a, b), (a,), a.batch)
        values, _ = self._aligned([a, b], [])
        return self.add(op, values, values[0].batch)

    def _aligned(self, values: Sequence[Value], stored: Sequence[Tensor]) -> tuple[list[Value], list[Tensor]]:
        """Numpy broadcasting: all values with one batch axis and one sample shape, stored tensors ready for that shape."""
        rank = max([v.rank for v in values] + [c.ndim for c in stored])
        values = [self.unsqueeze(v, range(rank - v.rank)) if v.rank < rank else v for v in values]
        stored = [c.reshape((1,) * (rank - c.ndim) + tuple(c.shape)) for c in stored]
        batches = {v.batch for v in values if v.batch is not None}
        batch = batches.pop() if len(batches) == 1 else None
        clash = bool(batches) or (
            batch is not None
            and any(
                s[batch] != 1 for s in [*(v.source_shape for v in values), *(tuple(c.shape) for c in stored)]
            )
        )
        if clash:
            if self.symbolic_batch:
                raise self.refuse("mixes the batch axis with another axis", [*values, *stored])
            batch = None
        values = [
            v if v.batch == batch else self._view(v, _without(v.source_shape, batch), batch) for v in values
        ]
        stored = [c if batch is None else c.squeeze(batch) for c in stored]
        try:
            shape = torch.broadcast_shapes(*(v.shape for v in values), *(c.shape for c in stored))
        except RuntimeError:
            raise InvalidFile(
                f'{self.what} "{display(self.where)}": shapes do not broadcast: '
                f"{[list(v.shape) for v in values] + [list(c.shape) for c in stored]}"
            ) from None
        values = [
            v if v.shape == tuple(shape) else self.add(ops.Expand(tuple(shape)), (v,), v.batch)
            for v in values
        ]
        return values, [_trimmed(c) for c in stored]

    # -- linear maps

    def linear(self, v: Value, weight: Tensor, bias: Tensor | None = None) -> Value:
        """x W' + b on the last source axis. weight [out, in], bias [out]."""
        v = self.free(v, v.rank - 1)
        self.axis(v, v.rank - 1)
        return self.add(ops.Linear(weight, bias), (v,), v.batch)

    def matmul(self, a: Operand, b: Operand) -> Value:
        """numpy.matmul of a computed tensor with a stored or another computed one."""
        if isinstance(a, Value) and isinstance(b, Value):
            return self._bilinear(a, b)
        if isinstance(a, Value):
            assert isinstance(b, Tensor)
            if b.ndim == 1:
                return self.squeeze(self.linear(a, b.reshape(1, -1)), [a.rank - 1])
            return self._stacked(a, b, a.rank - 1, lambda v, w: self.linear(v, w.T))
        assert isinstance(b, Value)
        if a.ndim == 1:
            a = a.reshape(1, -1)
            return self.squeeze(self.matmul(a, b), [max(b.rank, 2) - 2])
        if b.rank == 1:
            return self.linear(b, a)
        return self._stacked(b, a, b.rank - 2, self._left_multiply)

    def _left_multiply(self, v: Value, weight: Tensor) -> Value:
        """W x over the last but one axis."""
        swapped = [*range(v.rank - 2), v.rank - 1, v.rank - 2]
        return self.transpose(self.linear(self.transpose(v, swapped), weight), swapped)

    def _stacked(
        self, v: Value, weight: Tensor, axis: int, multiply: Callable[[Value, Tensor], Value]
    ) -> Value:
        """A matrix product with a stack of stored matrices [..., k, n]: one product a matrix, side by side again."""
        while weight.ndim > 2 and weight.shape[0] == 1:
            if v.rank < weight.ndim:
                v = self.unsqueeze(v, [0])
            weight = weight.squeeze(0)
        if weight.ndim == 2:
            return multiply(v, weight)
        if weight.ndim > 3:
            raise self.refuse("product with a stored tensor of more than three axes", (v, weight))
        if v.rank < 3:
            v = self.unsqueeze(v, range(3 - v.rank))
        where, count = v.rank - 3, weight.shape[0]
        v = self.free(v, where)
        own = v.source_shape[where] != 1
        parts = [multiply(self.slice(v, where, i, i + 1) if own else v, weight[i]) for i in range(count)]
        return self.concat(parts, where)

    def _bilinear(self, a: Value, b: Value) -> Value:
        if a.rank < 2 or b.rank < 2:
            raise self.refuse("product of a matrix and a vector that both depend on the input", (a, b))
        rank = max(a.rank, b.rank)
        pair = [self.unsqueeze(v, range(rank - v.rank)) if v.rank < rank else v for v in (a, b)]
        if pair[0].batch != pair[1].batch or (pair[0].batch or 0) >= rank - 2:
            if self.symbolic_batch:
                raise self.refuse("product along the batch axis", (a, b))
            pair = [self._view(v, v.source_shape, None) for v in pair]
        return self.add(ops.MatMul(), pair, pair[0].batch)

    def conv(self, v: Value, op: ops.Conv | ops.ConvTranspose) -> Value:
        """A convolution [batch, channels, *spatial], or one without batch axis."""
        v = self._channels_first(v, op.weight.ndim - 2)
        return self.add(op, (v,), v.batch)

    def _channels_first(self, v: Value, spatial: int) -> Value:
        if v.rank == spatial + 2 and v.batch != 0:
            if v.source_shape[0] != 1:
                raise self.refuse("needs the batch axis in front", (v,))
            v = self._view(v, v.source_shape[1:], 0)
        if len(v.shape) != spatial + 1:
            raise self.refuse(f"needs [batch, channels] and {spatial} spatial axes", (v,))
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
        v = self._channels_first(v, len(kernel))
        over = _overhang(v.shape[1:], kernel, stride, padding, dilation) if ceil else (0,) * len(kernel)
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
        v = self._channels_first(v, len(kernel))
        ones = (1,) * len(kernel)
        over = _overhang(v.shape[1:], kernel, stride, padding, ones) if ceil else (0,) * len(kernel)
        op = ops.AvgPool(kernel, stride, tuple(padding), count_include_pad, over)
        return self.add(op, (v,), v.batch)

    def reduce(self, kind: type[Op], v: Value, axes: Sequence[int] | None, keepdims: bool) -> Value:
        """ReduceSum, ReduceMean, ReduceMax or ReduceMin over source axes; None means all."""
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
        return self.add(kind(sample, keepdims), (v,), batch)  # type: ignore[call-arg]

    def along(self, kind: type[Op], v: Value, axis: int) -> Value:
        """Softmax or LogSoftmax along one source axis."""
        v = self.free(v, axis)
        return self.add(kind(self.axis(v, axis)), (v,), v.batch)  # type: ignore[call-arg]

    def batch_norm(
        self, v: Value, weight: Tensor, bias: Tensor, mean: Tensor, var: Tensor, eps: float
    ) -> Value:
        """Evaluation-mode batch normalisation on source axis 1 (or the only axis beside the batch)."""
        if v.batch is None and v.rank > 1 and v.source_shape[0] == 1:
            v = self._view(v, v.source_shape[1:], 0)
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


def _without(shape: Shape, axis: int | None) -> Shape:
    return tuple(size for a, size in enumerate(shape) if a != axis)


def _trimmed(c: Tensor) -> Tensor:
    """Without leading axes of size 1, which broadcasting adds anyway."""
    while c.ndim > 0 and c.shape[0] == 1:
        c = c.squeeze(0)
    return c
