"""Slices, selections, joins and writes into parts of a tensor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lipverify import ops
from lipverify.frontends.builder import Operand, Value
from lipverify.frontends.torch_export.lowering import BatchSize, Lowerer
from lipverify.frontends.torch_export.registry import lower

_END = 2**62  # torch writes the largest int64 for "to the end"

# -- taking parts


@lower.register("aten.slice", "aten.slice_copy")
def _slice(b: Lowerer, x: Value, dim: int = 0, start: Any = None, end: Any = None, step: int = 1) -> Value:
    return b.slice(x, dim, 0 if start is None else start, _END if end is None else end, step)


@lower.register("aten.narrow")
def _narrow(b: Lowerer, x: Value, dim: int, start: int, length: int) -> Value:
    begin = start % x.source_shape[dim % x.rank]
    return b.slice(x, dim, begin, begin + length)


@lower.register("aten.select.int", "aten.select_copy")
def _select(b: Lowerer, x: Value, dim: int, index: int) -> Value:
    b.axis(x, dim)
    begin = index % x.source_shape[dim % x.rank]
    return b.squeeze(b.slice(x, dim, begin, begin + 1), [dim])


def _pieces(b: Lowerer, x: Value, sizes: Sequence[int], dim: int) -> list[Value]:
    b.axis(x, dim)
    ends = torch.tensor(sizes).cumsum(0).tolist()
    return [b.slice(x, dim, end - size, end) for size, end in zip(sizes, ends, strict=True)]


@lower.register("aten.split_with_sizes", "aten.split.sizes", "aten.split_with_sizes_copy")
def _split_with_sizes(b: Lowerer, x: Value, sizes: Sequence[int], dim: int = 0) -> list[Value]:
    return _pieces(b, x, sizes, dim)


@lower.register("aten.split.Tensor", "aten.split_copy", "aten.unsafe_split.Tensor")
def _split(b: Lowerer, x: Value, size: int, dim: int = 0) -> list[Value]:
    total = x.source_shape[dim % x.rank]
    return _pieces(b, x, [min(size, total - begin) for begin in range(0, total, size)], dim)


@lower.register("aten.chunk", "aten.unsafe_chunk")
def _chunk(b: Lowerer, x: Value, chunks: int, dim: int = 0) -> list[Value]:
    return _split(b, x, -(-x.source_shape[dim % x.rank] // chunks), dim)


@lower.register("aten.unbind.int")
def _unbind(b: Lowerer, x: Value, dim: int = 0) -> list[Value]:
    b.axis(x, dim)
    return [_select(b, x, dim, index) for index in range(x.source_shape[dim % x.rank])]


@lower.register("aten.index_select")
def _index_select(b: Lowerer, x: Value, dim: int, index: Any) -> Value:
    b.axis(x, dim)
    return b.gather(x, dim, b.stored(index, "index").reshape(-1))


@lower.register("aten.index.Tensor")
def _index(b: Lowerer, x: Value, indices: Sequence[Any]) -> Value:
    axes = [axis for axis, index in enumerate(indices) if index is not None]
    chosen = [b.stored(indices[axis], "index") for axis in axes]
    if len(chosen) == 1 and chosen[0].dtype == torch.bool:
        mask = chosen[0]
        if mask.ndim > 1:
            x = b.flatten(x, axes[0], axes[0] + mask.ndim - 1)
        chosen = [mask.reshape(-1).nonzero().reshape(-1)]
    if any(index.dtype == torch.bool for index in chosen) or axes != list(range(axes[0], axes[-1] + 1)):
        raise b.refuse(
            "indexing separated axes or several masks at once is not covered",
            (x, *chosen),
            "index one axis after another",
        )
    sizes = x.source_shape
    flat = torch.zeros((), dtype=torch.int64)
    for axis, index in zip(axes, chosen, strict=True):
        b.axis(x, axis)
        index = index.cpu()
        flat = flat * sizes[axis] + torch.where(index < 0, index + sizes[axis], index)
    if len(axes) > 1:
        x = b.flatten(x, axes[0], axes[-1])
    return b.gather(x, axes[0], flat)


@lower.register("aten.flip")
def _flip(b: Lowerer, x: Value, dims: Sequence[int]) -> Value:
    for dim in dims:
        b.axis(x, dim)
        size = x.source_shape[dim % x.rank]
        x = b.slice(x, dim, size - 1, -size - 1, -1)
    return x


@lower.register("aten.roll")
def _roll(b: Lowerer, x: Value, shifts: Sequence[int], dims: Sequence[int] = ()) -> Value:
    if not dims:
        raise b.refuse("rolls over all axes at once, the batch axis among them", (x,), "name the axis")
    for shift, dim in zip(shifts, dims, strict=True):
        b.axis(x, dim)
        x = b.gather(x, dim, torch.arange(x.source_shape[dim % x.rank]).roll(shift))
    return x


@lower.register("aten.repeat_interleave.self_int")
def _repeat_interleave(
    b: Lowerer, x: Value, repeats: int, dim: Any = None, *, output_size: Any = None
) -> Value:
    if dim is None:
        raise b.refuse("flattens the batch axis together with others", (x,), "name the axis")
    b.axis(x, dim)
    return b.gather(x, dim, torch.arange(x.source_shape[dim % x.rank]).repeat_interleave(repeats))


# -- joining


def joined(b: Lowerer, operands: Sequence[Operand], dim: int) -> Value:
    """Concatenation; parts that are all consecutive slices of one tensor give that tensor back."""
    values = [v for v in operands if isinstance(v, Value)]
    if len(values) == len(operands) > 1 and (whole := _undone(b, values, dim)) is not None:
        return whole
    return b.concat(operands, dim)


def _undone(b: Lowerer, parts: Sequence[Value], dim: int) -> Value | None:
    sample = b.axis(parts[0], dim)
    position, sources = 0, set()
    for part in parts:
        node = b.node(part.name)
        op = node.op
        if not isinstance(op, ops.Slice) or (op.axis, op.start, op.step) != (sample, position, 1):
            return None
        position = op.stop
        sources.add((node.inputs[0], part.batch))
    if len(sources) != 1:
        return None
    name, batch = sources.pop()
    shape = b.node(name).shape
    return Value(name, shape, batch) if shape[sample] == position else None


@lower.register("aten.cat", "aten.concat")
def _cat(b: Lowerer, tensors: Sequence[Any], dim: int = 0) -> Value:
    kept = [
        t for t in tensors if isinstance(t, Value) or tuple(t.shape) != (0,)
    ]  # torch skips these empty ones
    return joined(b, [b.operand(t) for t in kept], dim)


@lower.register("aten.stack")
def _stack(b: Lowerer, tensors: Sequence[Any], dim: int = 0) -> Value:
    raised = []
    for t in tensors:
        axis = dim % ((t.rank if isinstance(t, Value) else t.ndim) + 1)
        raised.append(b.unsqueeze(t, [axis]) if isinstance(t, Value) else b.operand(t).unsqueeze(axis))  # type: ignore[union-attr]
    return b.concat(raised, axis)


# -- writing into parts


@lower.register("aten.slice_scatter")
def _slice_scatter(
    b: Lowerer, x: Any, src: Any, dim: int = 0, start: Any = None, end: Any = None, step: int = 1
) -> Value:
    shape = x.source_shape if isinstance(x, Value) else tuple(x.shape)
    axis = dim % len(shape)
    batch = next(v.batch for v in (x, src) if isinstance(v, Value))
    if axis == batch:
        whole = (
            start in (None, 0) and step == 1 and (end is None or isinstance(end, BatchSize) or end >= _END)
        )
        if whole and isinstance(src, Value):
            return src
        raise b.refuse(
            "writes into single samples of the batch", [v for v in (x, src) if isinstance(v, Value)]
        )
    taken = range(shape[axis])[slice(start, end, step)]
    if len(taken) == 0:
        raise b.refuse("writes into an empty slice", [v for v in (x, src) if isinstance(v, Value)])
    old, new = b.operand(x), b.operand(src)
    if step == 1:
        before, behind = _part(b, old, axis, 0, taken.start), _part(b, old, axis, taken.stop, shape[axis])
        parts = [part for part in (before, new, behind) if part is not None]
        return parts[0] if len(parts) == 1 and isinstance(parts[0], Value) else b.concat(parts, axis)
    order = torch.arange(shape[axis])
    order[torch.tensor(list(taken))] = shape[axis] + torch.arange(len(taken))
    return b.gather(b.concat([old, new], axis), axis, order)


def _part(b: Lowerer, x: Operand, axis: int, start: int, stop: int) -> Operand | None:
    if start >= stop:
        return None
    return b.slice(x, axis, start, stop) if isinstance(x, Value) else x.narrow(axis, start, stop - start)


@lower.register("aten.select_scatter")
def _select_scatter(b: Lowerer, x: Any, src: Any, dim: int, index: int) -> Value:
    shape = x.source_shape if isinstance(x, Value) else tuple(x.shape)
    axis = dim % len(shape)
    if isinstance(x, Value):
        b.axis(x, axis)
    begin = index % shape[axis]
    raised = b.unsqueeze(src, [axis]) if isinstance(src, Value) else src.unsqueeze(axis)
    return _slice_scatter(b, x, raised, axis, begin, begin + 1)


@lower.register("aten.copy")
def _copy(b: Lowerer, x: Any, src: Any, non_blocking: bool = False) -> Operand:
    shape = x.source_shape if isinstance(x, Value) else tuple(x.shape)
    new = b.operand(src)
    return b.expand(new, shape) if isinstance(new, Value) else new.expand(shape)


@lower.register("aten.fill.Tensor")
def _fill(b: Lowerer, x: Value, number: Any) -> Tensor:
    return b.stored(b.operand(number), "number").expand(x.source_shape)
