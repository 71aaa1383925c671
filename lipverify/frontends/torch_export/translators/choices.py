"""Comparisons and what may be done with them: stored masks, leaky ReLU by hand, and reflections.

A choice between two branches by the sign of a computed number jumps in general. It does not where both branches are
multiples of that number (a leaky ReLU), nor where they are the two sides of a mirror: with w the normal vector of the
mirror, x -> x where w'x > 0 and x - 2 w (w'x) / |w|^2 elsewhere.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lipverify import ops
from lipverify.frontends.builder import Masked, Value
from lipverify.frontends.torch_export.lowering import INFINITE, Condition, Forbidden, Gated, Lowerer
from lipverify.frontends.torch_export.registry import lower

_COMPARES = Forbidden(Condition.reason)
_ADVICE = "write the choice as relu, maximum, abs or as a reflection of pairs"

# -- comparisons


def _compared(b: Lowerer, x: Any, other: Any, positive: bool) -> Condition | Forbidden:
    zero = not isinstance(other, (Value, Condition)) and bool((torch.as_tensor(other) == 0).all())
    return Condition(x, positive) if isinstance(x, Value) and zero else _COMPARES


@lower.register("aten.gt", "aten.ge")
def _positive(b: Lowerer, x: Any, other: Any) -> Condition | Forbidden:
    return _compared(b, x, other, True)


@lower.register("aten.lt", "aten.le")
def _negative(b: Lowerer, x: Any, other: Any) -> Condition | Forbidden:
    return _compared(b, x, other, False)


@lower.register("aten.eq", "aten.ne")
def _equal(b: Lowerer, x: Any, other: Any) -> Forbidden:
    return _COMPARES


@lower.register("aten.logical_not", "aten.bitwise_not")
def _not(b: Lowerer, x: Any) -> Condition:
    if isinstance(x, Condition):
        return Condition(x.value, not x.positive)
    raise b.refuse("reads a computed number as true or false, which jumps", (x,))


# -- choices


@lower.register("aten.where.self", "aten.where.ScalarOther", "aten.where.ScalarSelf", "aten.where.Scalar")
def _where(b: Lowerer, condition: Any, on: Any, off: Any) -> Value | Masked:
    if isinstance(condition, Tensor):
        return b.chosen(condition.bool(), b.extended(on), b.extended(off))
    if isinstance(on, Masked) or isinstance(off, Masked):
        raise b.refuse(INFINITE, (condition,))
    if isinstance(condition, Condition):
        return chosen(b, condition, on, off)
    raise b.refuse("reads a computed number as true or false, which jumps", (condition,))


@lower.register("aten.masked_fill")
def _masked_fill(b: Lowerer, x: Value, mask: Any, number: Any) -> Value | Masked:
    return _where(b, mask, number, x)


def chosen(b: Lowerer, condition: Condition, on: Any, off: Any) -> Value:
    """`on` where the condition holds, `off` elsewhere, if that is a leaky ReLU or one half of a reflection of pairs.

    Raises:
        UnsupportedModel: it is anything else.
    """
    upper, below = (on, off) if condition.positive else (off, on)
    if isinstance(upper, Value) and upper.name == condition.value.name:
        slope = _multiple(b, upper, below)
        if slope is not None and slope.ndim == 0:
            return b.elementwise(ops.LeakyReLU(float(slope)) if slope else ops.ReLU(), upper)
        if slope is not None:
            return b.elementwise(ops.PReLU(slope), upper)
    if isinstance(on, Value) and isinstance(off, Value):
        half = _mirrored_half(b, condition, on, off) or _mirrored_half(
            b, Condition(condition.value, not condition.positive), off, on
        )
        if half is not None:
            return half
    raise b.refuse(
        "chooses between branches by the sign of a computed number, which jumps unless it is a leaky ReLU or a reflection",
        [x for x in (condition.value, on, off) if isinstance(x, (Value, Tensor))],
        _ADVICE,
    )


def _multiple(b: Lowerer, x: Value, branch: Any) -> Tensor | None:
    """c where the branch is c x with stored c; None otherwise."""
    if not isinstance(branch, Value):
        zero = bool((torch.as_tensor(branch) == 0).all())
        return torch.zeros((), dtype=b.dtype) if zero else None
    node = b.node(branch.name)
    if isinstance(node.op, ops.Scale) and node.op.shift is None and node.inputs == (x.name,):
        return node.op.scale
    return None


@dataclass(frozen=True)
class _Pairs:
    """Pairs of entries of one tensor: entry first[i] with entry second[i] along a sample axis."""

    source: Value
    axis: int
    names: tuple[str, str]
    positions: tuple[range, range]


def _mirrored_half(b: Lowerer, condition: Condition, kept: Value, mirrored: Value) -> Value | None:
    """One member of every pair: `kept` where the condition holds, its mirror image elsewhere."""
    normal, image, itself = (_combination(b, v) for v in (condition.value, mirrored, kept))
    pairs = _pairs(b, condition.value, tuple(normal)) if len(normal) == 2 else None
    if pairs is None or len(itself) != 1 or not set(image) <= set(pairs.names):
        return None
    (name, one), count = next(iter(itself.items())), len(pairs.positions[0])
    if name not in pairs.names or not bool((one == 1).all()):
        return None
    shape = kept.shape
    columns = [_along(normal[n], shape, pairs.axis) for n in pairs.names]
    target = [_along(image.get(n, torch.zeros(())), shape, pairs.axis) for n in pairs.names]
    if any(column is None for column in (*columns, *target)) or shape[pairs.axis] != count:
        return None
    w = torch.stack([c for c in columns if c is not None], dim=1)
    w = w if condition.positive else -w
    which = pairs.names.index(name)
    wide = w.double()
    length = (wide**2).sum(1, keepdim=True)
    if bool((length == 0).any()):
        return None
    wanted = (
        torch.eye(2, dtype=torch.float64, device=w.device)[which]
        - 2 * wide * wide[:, which : which + 1] / length
    )
    gap = float((torch.stack([c for c in target if c is not None], dim=1).double() - wanted).abs().max())
    # The program's sines and cosines are rounded; beyond that the branches do not meet and the choice jumps.
    if gap > 16 * torch.finfo(b.dtype).eps:
        return None
    return _reflected(b, pairs, w, which, gap)


def _reflected(b: Lowerer, pairs: _Pairs, w: Tensor, which: int, gap: float) -> Value:
    """The chosen members of all pairs after the reflection; both members share one node."""
    key = (pairs.source.name, pairs.axis, pairs.positions, w.detach().cpu().numpy().tobytes())
    axis = pairs.axis + (pairs.source.batch is not None and pairs.axis >= pairs.source.batch)
    whole = b.reflections.get(key)
    if whole is None:
        order = torch.tensor(pairs.positions).T.reshape(-1)
        beside = b.gather(pairs.source, axis, order)
        turned = b.add(ops.Householder(w, pairs.axis), (beside,), beside.batch)
        whole = b.reflections[key] = b.gather(turned, axis, order.argsort())
        b.notes.append(
            f"{b.where} is certified as an exact reflection; its stored coefficients differ from one by at most {gap:.2g}"
        )
    return b.gather(whole, axis, torch.tensor(pairs.positions[which]))


def _pairs(b: Lowerer, like: Value, names: tuple[str, ...]) -> _Pairs | None:
    """The tensor whose two slices these are, if together they cover one axis of it."""
    nodes = [b.node(name) for name in names]
    slices = [node.op for node in nodes]
    first, second = slices
    if not (isinstance(first, ops.Slice) and isinstance(second, ops.Slice)):
        return None
    ranges = [range(op.start, op.stop, op.step) for op in (first, second)]
    size = b.node(nodes[0].inputs[0]).shape[first.axis]
    same = (
        nodes[0].inputs == nodes[1].inputs and first.axis == second.axis and len(ranges[0]) == len(ranges[1])
    )
    if not same or sorted([*ranges[0], *ranges[1]]) != list(range(size)):
        return None
    by_position = sorted(zip(ranges, names, strict=True), key=lambda entry: entry[0].start)
    source = Value(nodes[0].inputs[0], b.node(nodes[0].inputs[0]).shape, like.batch)
    (low, low_name), (high, high_name) = by_position
    return _Pairs(source, first.axis, (low_name, high_name), (low, high))


def _combination(b: Lowerer, v: Value) -> dict[str, Tensor]:
    """v as a linear combination of nodes with stored coefficients: node name -> coefficients that broadcast to v."""
    node = b.node(v.name)
    op = node.op
    if isinstance(op, ops.Scale) and op.shift is None and op.scale is not None:
        inner = _combination(b, Value(node.inputs[0], b.node(node.inputs[0]).shape, v.batch))
        return {name: b.held(c * op.scale, c, op.scale) for name, c in inner.items()}
    if isinstance(op, (ops.Add, ops.Sub)):
        sign = -1 if isinstance(op, ops.Sub) else 1
        total: dict[str, Tensor] = {}
        for factor, name in zip((1, sign), node.inputs, strict=True):
            for base, coefficient in _combination(b, Value(name, b.node(name).shape, v.batch)).items():
                total[base] = total[base] + factor * coefficient if base in total else factor * coefficient
        return total
    return {v.name: torch.ones((), dtype=b.dtype, device=b.device)}


def _along(coefficient: Tensor, shape: tuple[int, ...], axis: int) -> Tensor | None:
    """Coefficients as one number for each entry of an axis; None where they vary along other axes too."""
    rows = coefficient.expand(shape).movedim(axis, 0).reshape(shape[axis], -1)
    return rows[:, 0] if bool((rows == rows[:, :1]).all()) else None


def gated(b: Lowerer, x: Any, condition: Condition) -> Value | Gated:
    """x times a comparison read as 0 or 1: ReLU if x is what is compared, else one half of a choice."""
    if isinstance(x, Value) and x.name == condition.value.name:
        return b.elementwise(ops.ReLU() if condition.positive else ops.Clip(-math.inf, 0.0), x)
    return Gated(b.operand(x), condition)


def ungated(b: Lowerer, first: Gated, second: Gated) -> Value:
    """x * (s > 0) + y * (s <= 0).

    Raises:
        UnsupportedModel: the two comparisons are not opposite, or the choice jumps.
    """
    same = first.condition.value.name == second.condition.value.name
    if not same or first.condition.positive == second.condition.positive:
        raise b.refuse(_COMPARES.reason, (), _ADVICE)
    return chosen(b, first.condition, first.value, second.value)
