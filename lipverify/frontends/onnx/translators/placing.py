"""Operators that take or write entries at stored positions: where every entry goes is known, so they are linear."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lipverify.errors import UnsupportedModel
from lipverify.frontends.builder import Operand, Value
from lipverify.frontends.onnx import forms
from lipverify.frontends.onnx.call import Call
from lipverify.frontends.onnx.lowering import MAX_NUMBERS, Stored
from lipverify.frontends.onnx.registry import lower

_LARGEST_MATRIX = 1 << 22


def computed_indices(c: Call) -> UnsupportedModel:
    """The refusal of positions that depend on the input."""
    return c.refuse("chooses entries by computed numbers, which jumps", "use stored indices")


def _indices(c: Call, position: int, sizes: Any) -> Stored:
    """Stored indices into axes of these sizes, counted from the front."""
    if isinstance(c.raw(position), Value):
        raise computed_indices(c)
    found = c.array(position, "index list")
    if found.dtype.kind not in "iu":
        raise c.invalid(f"indices of type {found.dtype}")
    found = found.astype(np.int64)
    limit = np.asarray(sizes, np.int64)
    if bool(((found < -limit) | (found >= limit)).any()):
        raise c.invalid(f"indices outside axes of sizes {list(np.atleast_1d(limit))[:8]}")
    return np.where(found < 0, found + limit, found)


def _shape(x: Any) -> tuple[int, ...]:
    return x.source_shape if isinstance(x, Value) else tuple(x.shape)


def _positions(shape: tuple[int, ...]) -> Stored:
    return np.arange(math.prod(shape)).reshape(shape)


@lower.register("GatherElements")
def _gather_elements(c: Call) -> Value:
    if isinstance(c.raw(1), Value):
        raise computed_indices(c)
    x = c.value()
    axis = forms.normalised(c, c.attribute("axis", 0), x.rank)
    chosen = _indices(c, 1, x.source_shape[axis])
    fits = chosen.ndim == x.rank and all(
        n <= s for a, (n, s) in enumerate(zip(chosen.shape, x.source_shape, strict=True)) if a != axis
    )
    if not fits:
        raise c.invalid(f"indices {list(chosen.shape)} for a tensor {list(x.source_shape)}")
    coordinates = np.indices(chosen.shape)
    coordinates[axis] = chosen
    return c.build.picked(x, torch.from_numpy(np.ravel_multi_index(tuple(coordinates), x.source_shape)))


@lower.register("GatherND")
def _gather_nd(c: Call) -> Value:
    if isinstance(c.raw(1), Value):
        raise computed_indices(c)
    x, lead = c.value(), c.attribute("batch_dims", 0)
    raw = c.array(1, "index list")
    depth = raw.shape[-1] if raw.ndim else 0
    if raw.ndim <= lead or not 1 <= depth <= x.rank - lead or raw.shape[:lead] != x.source_shape[:lead]:
        raise c.invalid(f"indices {list(raw.shape)} for a tensor {list(x.source_shape)}")
    chosen = _indices(c, 1, x.source_shape[lead : lead + depth])
    rest = x.source_shape[lead + depth :]
    if math.prod(chosen.shape[:-1]) * math.prod(rest) > MAX_NUMBERS:
        raise c.refuse("takes more entries than one tensor may have")
    table = _positions(x.source_shape).reshape(*x.source_shape[: lead + depth], -1)
    groups = np.indices(chosen.shape[:-1])[:lead]
    found = table[(*groups, *np.moveaxis(chosen, -1, 0))]
    return c.build.picked(x, torch.from_numpy(found.reshape(*chosen.shape[:-1], *rest)))


@lower.register("Compress")
def _compress(c: Call) -> Value:
    if isinstance(c.raw(1), Value):
        raise computed_indices(c)
    x, kept, axis = c.value(), c.array(1, "condition").astype(bool), c.attribute("axis")
    if kept.ndim != 1:
        raise c.invalid(f"its condition has shape {list(kept.shape)}")
    if axis is None:
        return c.build.picked(x, torch.from_numpy(np.compress(kept, _positions(x.source_shape).reshape(-1))))
    axis = forms.normalised(c, axis, x.rank)
    chosen = np.compress(kept[: x.source_shape[axis]], np.arange(x.source_shape[axis])[: len(kept)])
    return c.build.gather(x, axis, torch.from_numpy(chosen.copy()))


@lower.register("ReverseSequence")
def _reverse_sequence(c: Call) -> Value:
    x, lengths = c.value(), c.array(1, "lengths").astype(np.int64)
    time, batch = c.attribute("time_axis", 0), c.attribute("batch_axis", 1)
    if x.rank < 2 or {time, batch} != {0, 1} or lengths.shape != (x.source_shape[batch],):
        raise c.invalid(f"lengths {list(lengths.shape)} for a tensor {list(x.source_shape)}")
    if bool(((lengths < 0) | (lengths > x.source_shape[time])).any()):
        raise c.invalid("a length is outside its axis")
    found = np.moveaxis(_positions(x.source_shape), (batch, time), (0, 1)).copy()
    for row, length in enumerate(lengths):
        found[row, :length] = found[row, :length][::-1].copy()
    return c.build.picked(x, torch.from_numpy(np.moveaxis(found, (0, 1), (batch, time)).copy()))


@lower.register("ScatterElements", "Scatter")
def _scatter_elements(c: Call) -> Value:
    data, updates = c.operand(0), c.operand(2)
    shape = _shape(data)
    axis = forms.normalised(c, c.attribute("axis", 0), len(shape))
    where = _indices(c, 1, shape[axis])
    if where.ndim != len(shape) or where.shape != _shape(updates):
        raise c.invalid(f"indices {list(where.shape)} for updates {list(_shape(updates))}")
    coordinates = np.indices(where.shape)
    coordinates[axis] = where
    if any(n > s for a, (n, s) in enumerate(zip(where.shape, shape, strict=True)) if a != axis):
        raise c.invalid(f"indices {list(where.shape)} for a tensor {list(shape)}")
    return _placed(c, data, updates, np.asarray(np.ravel_multi_index(tuple(coordinates), shape)))


@lower.register("ScatterND")
def _scatter_nd(c: Call) -> Value:
    data, updates = c.operand(0), c.operand(2)
    shape = _shape(data)
    if isinstance(c.raw(1), Value):
        raise computed_indices(c)
    raw = c.array(1, "index list")
    depth = raw.shape[-1] if raw.ndim else 0
    if not 1 <= depth <= len(shape) or (*raw.shape[:-1], *shape[depth:]) != _shape(updates):
        raise c.invalid(f"indices {list(raw.shape)} for updates {list(_shape(updates))}")
    where = _indices(c, 1, shape[:depth])
    table = _positions(shape).reshape(*shape[:depth], -1)
    return _placed(c, data, updates, table[tuple(np.moveaxis(where, -1, 0))].reshape(_shape(updates)))


@lower.register("TensorScatter")
def _tensor_scatter(c: Call) -> Value:
    data, updates = c.operand(0), c.operand(1)
    shape, size = _shape(data), _shape(updates)
    axis = forms.normalised(c, c.attribute("axis", -2), len(shape))
    starts = np.zeros(shape[0], np.int64)
    if c.raw(2) is not None:
        if isinstance(c.raw(2), Value):
            raise computed_indices(c)
        starts = c.array(2, "write indices").astype(np.int64)
    wraps = c.choice("mode", "linear", "linear", "circular") == "circular"
    if axis == 0 or starts.shape != (shape[0],) or len(size) != len(shape):
        raise c.invalid("its write indices do not fit its cache")
    coordinates = np.indices(size)
    coordinates[axis] += starts.reshape(-1, *(1,) * (len(shape) - 1))
    if wraps:
        coordinates[axis] %= shape[axis]
    if bool((coordinates[axis] >= shape[axis]).any() or (starts < 0).any()):
        raise c.invalid("writes behind the end of its cache")
    return _placed(c, data, updates, np.asarray(np.ravel_multi_index(tuple(coordinates), shape)))


def _placed(c: Call, data: Operand, updates: Operand, where: Stored) -> Value:
    """`updates` written into `data` at row-major positions `where`, of the shape of `updates`."""
    b, shape = c.build, _shape(data)
    way = c.choice("reduction", "none", "none", "add", "mul", "max", "min")
    flat = where.reshape(-1)
    if len(np.unique(flat)) < len(flat):
        return _placed_together(c, data, updates, flat, way)
    source = np.full(math.prod(shape), -1)
    source[flat] = np.arange(len(flat))
    written = torch.from_numpy(source >= 0).reshape(shape)
    chosen = torch.from_numpy(np.maximum(source, 0)).reshape(shape)
    spread: Operand = b.picked(updates, chosen) if isinstance(updates, Value) else updates.reshape(-1)[chosen]
    if way == "add":
        zeroed = _masked(c, spread, written)
        return b.plus(data, zeroed)
    if way == "mul":
        ones = torch.where(written, torch.zeros((), dtype=b.dtype), torch.ones((), dtype=b.dtype))
        factor = _masked(c, spread, written)
        return b.times(data, b.plus(factor, ones) if isinstance(factor, Value) else factor + ones)
    kept = _masked(c, data, ~written)
    new = _masked(c, spread, written)
    if isinstance(kept, Tensor) and isinstance(new, Tensor):
        raise c.refuse("writes nothing that depends on the graph's input")
    mixed = b.plus(kept, new)
    if way == "none":
        return mixed
    return b.maximum(data, mixed) if way == "max" else b.minimum(data, mixed)


def _masked(c: Call, x: Operand, mask: Tensor) -> Operand:
    if isinstance(x, Tensor):
        return torch.where(mask, x, torch.zeros((), dtype=x.dtype))
    return c.build.times(x, mask.to(c.build.dtype))


def _placed_together(c: Call, data: Operand, updates: Operand, flat: Stored, way: str) -> Value:
    """The same where several updates go to one place."""
    b, shape = c.build, _shape(data)
    total = math.prod(shape)
    if way == "none":
        raise c.invalid("writes one entry twice, in no order that the operator defines")
    if way == "add" and isinstance(updates, Value):
        if total * len(flat) > _LARGEST_MATRIX:
            raise c.refuse("adds too many entries to others at once")
        matrix = torch.zeros(total, len(flat), dtype=b.dtype)
        matrix[torch.from_numpy(flat), torch.arange(len(flat))] = 1.0
        whole = b.view(updates, (len(flat),), None)
        return b.plus(data, b.reshape(b.linear(whole, matrix), list(shape)))
    if isinstance(updates, Value) or not isinstance(data, Value):
        raise c.refuse(f"joins several computed entries in one place ({way})", "write each entry once")
    start = {"add": 0.0, "mul": 1.0, "max": -math.inf, "min": math.inf}[way]
    joined = np.full(total, start)
    ufunc = {"add": np.add, "mul": np.multiply, "max": np.maximum, "min": np.minimum}[way]
    ufunc.at(joined, flat, updates.double().reshape(-1).numpy())
    stored = torch.from_numpy(joined).reshape(shape).to(updates.dtype)
    combine = {"add": b.plus, "mul": b.times, "max": b.maximum, "min": b.minimum}[way]
    return combine(data, stored)


@lower.register("CumSum")
def _cumulated(c: Call) -> Value:
    x = c.value()
    axes = c.array(1, "axis")
    if axes.size != 1:
        raise c.invalid("its axis is not one number")
    axis = forms.normalised(c, int(axes.reshape(()).item()), x.rank)
    return c.build.running_sum(x, axis, exclusive=c.flag("exclusive"), backward=c.flag("reverse"))


@lower.register("CumProd")
def _cumulated_product(c: Call) -> Value:
    """One product after the other."""
    x, b = c.value(), c.build
    axes = c.array(1, "axis")
    if axes.size != 1:
        raise c.invalid("its axis is not one number")
    axis = forms.normalised(c, int(axes.reshape(()).item()), x.rank)
    size = x.source_shape[axis]
    if size > 64:
        raise c.refuse(f"multiplies {size} computed numbers with each other", "use a shorter axis")
    order = list(range(size))[:: -1 if c.flag("reverse") else 1]
    entries: dict[int, Any] = {i: b.slice(x, axis, i, i + 1) for i in range(size)}
    running: dict[int, Any] = {}
    so_far: Value | None = None
    ones = torch.ones([1 if a == axis else n for a, n in enumerate(x.source_shape)], dtype=b.dtype)
    for i in order:
        before = so_far
        so_far = entries[i] if so_far is None else b.times(so_far, entries[i])
        running[i] = (ones if before is None else before) if c.flag("exclusive") else so_far
    return b.concat([running[i] for i in range(size)], axis)
