"""Operators that give the same numbers another shape, order or type, or copies of them."""

from __future__ import annotations

import math

import numpy as np
import torch

from lipverify import ops
from lipverify.frontends.builder import Masked, Value
from lipverify.frontends.building.choices import Choice, Condition
from lipverify.frontends.checking import as_numpy
from lipverify.frontends.onnx import forms
from lipverify.frontends.onnx.call import Call
from lipverify.frontends.onnx.lowering import Stored
from lipverify.frontends.onnx.registry import lower

_FLOATS: dict[int, torch.dtype] = {1: torch.float32, 10: torch.float16, 11: torch.float64, 16: torch.bfloat16}


@lower.register("Identity", "OptionalGetElement")  # of a tensor, which is all that is read
def _identity(c: Call) -> Value | Masked | Choice:
    return c.comparison(0) or _same(c)


def _same(c: Call) -> Value | Masked:
    found = c.raw(0)
    return found if isinstance(found, Masked) else c.value()


@lower.register("Dropout")
def _dropout(c: Call) -> Value | Masked:
    if c.raw(2) is not None and (isinstance(c.raw(2), Value) or bool(np.any(c.array(2, "training_mode")))):
        raise c.refuse("drops entries at random", "export in evaluation mode")
    if any(c.used[1:]):
        raise c.refuse("uses the mask of a dropout", "export in evaluation mode")
    return _same(c)


@lower.register("Cast")
def _cast(c: Call) -> Value | Masked | Condition:
    condition = c.comparison(0)
    if isinstance(condition, Condition) and c.attribute("to") in _FLOATS:
        return condition  # 1 where it holds, 0 elsewhere
    return _converted(c, _FLOATS.get(c.attribute("to")), f"ONNX element type {c.attribute('to')}")


@lower.register("CastLike")
def _cast_like(c: Call) -> Value | Masked | Stored:
    x, like = c.raw(0), c.raw(1)
    if isinstance(like, Value):  # of the graph's own type
        return x if isinstance(x, (Value, Masked)) else as_numpy(c.stored(0, "number").to(c.build.dtype))
    kind = (
        None
        if like is None or isinstance(like, Masked)
        else {str(d).removeprefix("torch."): d for d in _FLOATS.values()}.get(like.dtype.name)
    )
    return _converted(c, kind, str(None if like is None or isinstance(like, Masked) else like.dtype))


def _converted(c: Call, dtype: torch.dtype | None, shown: str) -> Value | Masked:
    """A conversion that is the identity on real numbers: not to integers, nor to a type coarser than float32 and the input's."""
    if dtype is None:
        raise c.refuse(
            f"converts computed numbers to {shown}, which jumps or leaves the real numbers",
            "export a floating-point model",
        )
    finest = min(torch.finfo(torch.float32).eps, torch.finfo(c.build.dtype).eps)
    if torch.finfo(dtype).eps > finest and dtype != c.build.dtype:
        raise c.refuse(f"rounds computed numbers to {dtype}", "export the whole model in one type")
    if dtype != c.build.dtype:
        c.build.notes.append(
            f"{c.build.where} converts computed numbers to {dtype}; in real numbers that changes nothing"
        )
    return _same(c)


@lower.register("Reshape")
def _reshape(c: Call) -> Value:
    x = c.value()
    target = c.attribute("shape") if c.version < 5 else c.ints(1, "shape")
    return c.build.reshape(x, forms.reshaped(c, x.source_shape, target or []))


@lower.register("Flatten")
def _flatten(c: Call) -> Value:
    x, b = c.value(), c.build
    axis = c.attribute("axis", 1)
    if not -x.rank <= axis <= x.rank:
        raise c.invalid(f"axis {axis} of a tensor with {x.rank} axes")
    axis = axis + x.rank if axis < 0 else axis
    if b.symbolic_batch and x.batch is not None and x.batch >= axis:
        raise c.refuse("flattens the batch axis together with others", "flatten from axis 1 on")
    shape = x.source_shape
    return b.reshape(x, [math.prod(shape[:axis]), math.prod(shape[axis:])])


@lower.register("Transpose")
def _transpose(c: Call) -> Value:
    x = c.value()
    order = c.attribute("perm") or list(reversed(range(x.rank)))
    if sorted(order) != list(range(x.rank)):
        raise c.invalid(f"perm {order[:16]} of a tensor with {x.rank} axes")
    return c.build.transpose(x, order)


@lower.register("Squeeze")
def _squeeze(c: Call) -> Value:
    x = c.value()
    axes = forms.axes(c, 13)
    if axes is None:
        return c.build.squeeze(x, None)
    found = forms.all_normalised(c, axes, x.rank)
    if any(x.source_shape[axis] != 1 for axis in found):
        raise c.invalid(f"axes {axes} of {list(x.source_shape)} are not all of size 1")
    return c.build.squeeze(x, found)


@lower.register("Unsqueeze")
def _unsqueeze(c: Call) -> Value:
    x = c.value()
    axes = forms.axes(c, 13)
    if axes is None:
        raise c.invalid("it has no axes")
    return c.build.unsqueeze(x, forms.all_normalised(c, axes, x.rank + len(axes)))


@lower.register("Expand")
def _expand(c: Call) -> Value:
    x = c.value()
    target = c.ints(1, "shape") or []
    if any(size < 1 for size in target):
        raise c.refuse(f"expands to {target[:16]}, a tensor without entries")
    # An axis of size 1 in the target keeps the size that is there, as do axes the target does not name.
    target = [1] * (x.rank - len(target)) + target
    lead = [1] * (len(target) - x.rank) + list(x.source_shape)
    return c.build.expand(x, [have if want == 1 else want for have, want in zip(lead, target, strict=True)])


@lower.register("Tile")
def _tile(c: Call) -> Value:
    x, b = c.value(), c.build
    repeats = c.ints(1, "repeats") or []
    if len(repeats) != x.rank or any(n < 1 for n in repeats):
        raise c.refuse(f"repeats {repeats[:16]} times a tensor with {x.rank} axes")
    for axis, count in enumerate(repeats):
        if count == 1:
            continue
        if x.batch == axis and b.symbolic_batch:
            raise c.refuse("repeats the samples of the batch")
        x = b.free(x, axis)
        shape = list(x.source_shape)
        copies = b.expand(b.unsqueeze(x, [axis]), [*shape[:axis], count, *shape[axis:]])
        x = b.reshape(copies, [*shape[:axis], count * shape[axis], *shape[axis + 1 :]])
    return x


@lower.register("Pad")
def _pad(c: Call) -> Value:
    x = c.value()
    mode = c.choice("mode", "constant", "constant", "reflect", "edge", "wrap")
    fill = c.attribute("value", 0.0) if c.version < 11 else (c.scalar(2, "padding value") or 0.0)
    pads = forms.pads(c, x.rank)
    if mode == "constant":
        if not math.isfinite(fill):
            raise c.refuse(f"pads with {fill}", "use a finite number, or pads of MaxPool")
        return c.build.pad(x, pads, "constant", float(fill))
    if any(n < 0 for pair in pads for n in pair):
        raise c.refuse(f"negative pads in mode {mode} are not covered", "slice first")
    if mode == "reflect" and any(
        max(pair) >= max(n, 2) for pair, n in zip(pads, x.source_shape, strict=True) if any(pair)
    ):
        raise c.invalid(f"reflects further than the tensor {list(x.source_shape)} reaches")
    return c.build.pad(x, pads, {"edge": "replicate", "wrap": "circular"}.get(mode, mode))


@lower.register("DepthToSpace")
def _depth_to_space(c: Call) -> Value:
    x, block, b = c.value(), c.attribute("blocksize"), c.build
    if x.rank != 4:
        raise c.invalid(f"needs [batch, channels, height, width], and has {list(x.source_shape)}")
    count, channels, height, width = x.source_shape
    if block < 1 or channels % block**2:
        raise c.invalid(f"blocks of {block} in {channels} channels")
    column_first = c.choice("mode", "DCR", "DCR", "CRD") == "CRD"
    if x.batch != 0 and count == 1:
        x = b.reshape(x, x.source_shape)
    if x.batch == 0:
        return b.add(ops.DepthToSpace(block, column_first), (x,), x.batch)
    few = channels // block**2
    cut = (
        [count, few, block, block, height, width]
        if column_first
        else [count, block, block, few, height, width]
    )
    order = [0, 1, 4, 2, 5, 3] if column_first else [0, 3, 4, 1, 5, 2]
    return b.reshape(b.transpose(b.reshape(x, cut), order), [count, few, height * block, width * block])


@lower.register("SpaceToDepth")
def _space_to_depth(c: Call) -> Value:
    x, block, b = c.value(), c.attribute("blocksize"), c.build
    if x.rank != 4:
        raise c.invalid(f"needs [batch, channels, height, width], and has {list(x.source_shape)}")
    count, channels, height, width = x.source_shape
    if block < 1 or height % block or width % block:
        raise c.invalid(f"blocks of {block} in an image {height} x {width}")
    rows, columns = height // block, width // block
    cut = b.reshape(x, [count, channels, rows, block, columns, block])
    order = [0, 1, 3, 5, 2, 4] if c.choice("mode", "DCR", "DCR", "CRD") == "CRD" else [0, 3, 5, 1, 2, 4]
    return b.reshape(b.transpose(cut, order), [count, channels * block**2, rows, columns])
