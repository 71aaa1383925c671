"""Choices between two branches by the sign of a computed number, where they are continuous.

Such a choice jumps in general. It does not where both branches are multiples of that number (a leaky ReLU), where the lower
one is alpha (exp(x) - 1) (an ELU, a SELU), where both are functions of straight pieces that meet at the threshold (`pieces`), nor
where they are the two sides of a mirror: with w the normal vector of the mirror, x -> x where w'x > 0 and
x - 2 w (w'x) / |w|^2 elsewhere.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from lipverify import ops
from lipverify.frontends.builder import Builder, Operand, Value
from lipverify.frontends.building.pieces import alike, joined, stored_number

COMPARES = "uses a comparison of computed numbers, which jumps"
ADVICE = "write the choice as relu, maximum, abs or as a reflection of pairs"


class Choice:
    """What comparisons and signs of computed numbers become; not a tensor of real numbers."""

    reason: ClassVar[str] = COMPARES
    value: Operand


@dataclass(frozen=True)
class Condition(Choice):
    """A comparison of a computed tensor with one number: `value` > level, or >=. Only what is continuous may use it."""

    value: Value
    positive: bool
    """True where the comparison holds for values above the level, false where it holds for those below."""
    level: float = 0.0

    def opposite(self) -> Condition:
        """Where this one does not hold."""
        return Condition(self.value, not self.positive, self.level)


@dataclass(frozen=True)
class Sign(Choice):
    """1 where `value` is positive, -1 where it is negative; only a product that does not jump may use it."""

    reason: ClassVar[str] = "jumps, so it is not continuous and has no Lipschitz constant"
    value: Value


@dataclass(frozen=True)
class Gated(Choice):
    """A tensor times a comparison read as 0 or 1; only a sum of two opposite ones may use it."""

    value: Operand
    condition: Condition


def compared(x: Any, other: Any, positive: bool) -> Condition | None:
    """x > other, if that compares one computed tensor with one number; positive: it holds above. None for every other one."""
    if isinstance(other, Value) and not isinstance(x, Value):
        x, other, positive = other, x, not positive
    if not isinstance(x, Value) or not isinstance(other, (Tensor, int, float)):
        return None
    level = stored_number(other, x.source_shape)
    return None if level is None else Condition(x, positive, level)


def _is_zero(number: Any, x: Value) -> bool:
    """Whether a stored tensor or number is 0, and broadcasts to the shape of x without making it larger."""
    return stored_number(number, x.source_shape) == 0


def chosen(b: Builder, condition: Condition, on: Any, off: Any) -> Value:
    """`on` where the condition holds, `off` elsewhere, if the two are seen to meet at the threshold.

    Raises:
        UnsupportedModel: they are not.
    """
    upper, below = (on, off) if condition.positive else (off, on)
    if condition.level == 0:
        found = _at_zero(b, condition, on, off)
        if found is not None:
            return found
    found = joined(b, condition.value, condition.level, upper, below)
    if found is not None:
        return found
    raise b.refuse(
        "chooses between branches by a comparison of computed numbers, and the branches are not seen to meet there",
        [x for x in (condition.value, on, off) if isinstance(x, (Value, Tensor))],
        ADVICE,
    )


def _at_zero(b: Builder, condition: Condition, on: Any, off: Any) -> Value | None:
    """A choice by a sign: a leaky ReLU, an ELU or SELU, or one half of a reflection of pairs."""
    upper, below = (on, off) if condition.positive else (off, on)
    selu = _selu(b, condition.value, upper, below)
    if selu is not None:
        return selu
    if isinstance(upper, Value) and upper == condition.value:
        alpha = _exponential(b, upper, below)
        if alpha is not None:
            return b.elementwise(ops.ELU(alpha), upper)
        slope = _multiple(b, upper, below)
        if slope is not None and slope.ndim == 0:
            return b.elementwise(ops.LeakyReLU(float(slope)) if slope else ops.ReLU(), upper)
        if slope is not None:
            return b.elementwise(ops.PReLU(slope), upper)
    if isinstance(below, Value) and below == condition.value:
        slope = _multiple(b, below, upper)
        if slope is not None and not bool(slope.any()):
            return b.elementwise(ops.Clip(-math.inf, 0.0), below)
    if isinstance(on, Value) and isinstance(off, Value):
        return _mirrored_half(b, condition, on, off) or _mirrored_half(b, condition.opposite(), off, on)
    return None


def _selu(b: Builder, x: Value, upper: Any, below: Any) -> Value | None:
    """gamma x above and gamma (alpha (exp(x) - 1)) below, with one gamma; None for anything else."""
    if not isinstance(upper, Value) or not isinstance(below, Value) or upper == x:
        return None
    node, above = b.node(below.name), _multiple(b, x, upper)
    if not isinstance(node.op, ops.Scale) or node.op.shift is not None:
        return None
    factor = node.op.scale
    if above is None or factor is None or not (alike(above) and alike(factor)):
        return None
    gamma = float(above.reshape(-1)[0])
    alpha = _exponential(b, x, Value(node.inputs[0], b.node(node.inputs[0]).shape, below.batch))
    if alpha is None or float(factor.reshape(-1)[0]) != gamma:
        return None
    return b.elementwise(ops.SELU(alpha, gamma), x)


def _multiple(b: Builder, x: Value, branch: Any) -> Tensor | None:
    """c where the branch is c x with stored c; None otherwise."""
    if not isinstance(branch, Value):
        return torch.zeros((), dtype=b.stored_dtype) if _is_zero(branch, x) else None
    node = b.node(branch.name)
    same = node.inputs == (x.name,) and branch.batch == x.batch
    if same and isinstance(node.op, ops.Scale) and node.op.shift is None:
        return node.op.scale
    return None


def _exponential(b: Builder, x: Value, branch: Any) -> float | None:
    """alpha where the branch is alpha (exp(x) - 1) as programs write it; None otherwise."""
    if not isinstance(branch, Value):
        return None
    steps: list[ops.Scale] = []
    node = b.node(branch.name)
    while isinstance(node.op, ops.Scale) and len(steps) < 3:
        steps.append(node.op)
        node = b.node(node.inputs[0])
    if not isinstance(node.op, ops.Exp) or node.inputs != (x.name,) or branch.batch != x.batch:
        return None
    alpha, shift = torch.ones((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    for step in reversed(steps):
        for factor in (step.scale, step.shift):
            if factor is not None and factor.numel() != 1:
                return None
        if step.scale is not None:
            scale = step.scale.double().reshape(())
            alpha, shift = b.held(alpha * scale, alpha, scale), shift * scale
        if step.shift is not None:
            shift = shift + step.shift.double().reshape(())
    return float(alpha) if bool(shift == -alpha) else None


@dataclass(frozen=True)
class _Pairs:
    """Pairs of entries of one tensor: entry first[i] with entry second[i] along a sample axis."""

    source: Value
    axis: int
    names: tuple[str, str]
    positions: tuple[range, range]


def _mirrored_half(b: Builder, condition: Condition, kept: Value, mirrored: Value) -> Value | None:
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
    if gap > 16 * torch.finfo(b.stored_dtype).eps:
        return None
    return _reflected(b, pairs, w, which, gap)


def _reflected(b: Builder, pairs: _Pairs, w: Tensor, which: int, gap: float) -> Value:
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


def _pairs(b: Builder, like: Value, names: tuple[str, ...]) -> _Pairs | None:
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


def _combination(b: Builder, v: Value) -> dict[str, Tensor]:
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
    return {v.name: torch.ones((), dtype=b.stored_dtype, device=b.device)}


def _along(coefficient: Tensor, shape: tuple[int, ...], axis: int) -> Tensor | None:
    """Coefficients as one number for each entry of an axis; None where they vary along other axes too."""
    rows = coefficient.expand(shape).movedim(axis, 0).reshape(shape[axis], -1)
    return rows[:, 0] if bool((rows == rows[:, :1]).all()) else None


def gated(b: Builder, x: Operand, condition: Condition) -> Value | Gated:
    """x times a comparison read as 0 or 1: a ReLU, or a multiple of one, if x is what is compared, or a multiple of it; else one
    half of a choice."""
    compared = condition.value
    if condition.level != 0:
        upper, below = (x, 0) if condition.positive else (0, x)
        return joined(b, compared, condition.level, upper, below) or Gated(x, condition)
    slope = None if x == compared else _multiple(b, compared, x)
    if x != compared and (slope is None or not isinstance(x, Value)):
        return Gated(x, condition)
    part = b.elementwise(ops.ReLU() if condition.positive else ops.Clip(-math.inf, 0.0), compared)
    return part if slope is None else b.add(ops.Scale(slope, None), (part,), part.batch)


def signed(b: Builder, sign: Sign, factor: Operand) -> Value:
    """sign(x) times a function of straight pieces of x that is 0 at 0, as programs shrink towards 0.

    Raises:
        UnsupportedModel: the factor is anything else.
    """
    opposite = b.negative(factor) if isinstance(factor, Value) else -factor
    found = joined(b, sign.value, 0.0, factor, opposite)
    if found is None:
        raise b.refuse(sign.reason, (sign.value,), ADVICE)
    return found


def ungated(b: Builder, first: Gated, second: Gated) -> Value:
    """x * (s > 0) + y * (s <= 0).

    Raises:
        UnsupportedModel: the two comparisons are not opposite, or the choice jumps.
    """
    compared, other = first.condition, second.condition
    same = (compared.value.name, compared.level) == (other.value.name, other.level)
    if not same or first.condition.positive == second.condition.positive:
        raise b.refuse(COMPARES, (), ADVICE)
    return chosen(b, first.condition, first.value, second.value)
