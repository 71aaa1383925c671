"""Sums, products, extrema and choices of two or more tensors."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import reduce

import numpy as np
import torch
from torch import Tensor

from lipverify import ops
from lipverify.frontends.builder import Masked, Operand, Value
from lipverify.frontends.building.choices import (
    Condition,
    Gated,
    Sign,
    chosen,
    compared,
    gated,
    signed,
    ungated,
)
from lipverify.frontends.onnx.call import Call
from lipverify.frontends.onnx.lowering import Stored
from lipverify.frontends.onnx.registry import lower


@lower.register("Add")
def _add(c: Call) -> Value | Masked:
    first, second = c.comparison(0), c.comparison(1)
    if isinstance(first, Gated) and isinstance(second, Gated):
        return ungated(c.build, first, second)
    (x, kept), (y, also) = c.extended(0), c.extended(1)
    return c.build.masked(c.build.plus(x, y), kept, also)


@lower.register("Sub")
def _sub(c: Call) -> Value | Masked:
    x, kept = c.extended(0)
    return c.build.masked(c.build.minus(x, c.operand(1)), kept)


@lower.register("Mul")
def _mul(c: Call) -> Value | Masked | Gated:
    for position in (0, 1):
        condition = c.comparison(position)
        if isinstance(condition, Condition):
            return gated(c.build, c.operand(1 - position), condition)
        if isinstance(condition, Sign):
            return signed(c.build, condition, c.operand(1 - position))
        found = c.raw(position)
        if isinstance(found, Masked):
            return c.build.masked(c.build.times(found.value, _positive(c, 1 - position)), found.kept)
    return c.build.times(c.operand(0), c.operand(1))


@lower.register("Sign")
def _sign(c: Call) -> Sign:
    return Sign(c.value())


@lower.register("Div")
def _div(c: Call) -> Value | Masked:
    found = c.raw(0)
    if isinstance(found, Masked):
        return c.build.masked(c.build.over(found.value, _positive(c, 1)), found.kept)
    return c.build.over(c.operand(0), c.operand(1))


def _positive(c: Call, position: int) -> Tensor:
    """A stored factor of a tensor that holds -infinity: positive ones alone leave it there."""
    factor = c.operand(position)
    if isinstance(factor, Value) or not bool((factor > 0).all()):
        raise c.refuse("multiplies -infinity by numbers that are not positive")
    return factor


@lower.register("Neg")
def _neg(c: Call) -> Value:
    return c.build.times(c.value(), c.build.number(-1.0))


@lower.register("Sum")
def _sum(c: Call) -> Value:
    return _joined(c, c.build.plus, torch.add)


@lower.register("Mean")
def _mean(c: Call) -> Value:
    return c.build.over(_joined(c, c.build.plus, torch.add), c.build.number(float(len(c.inputs))))


@lower.register("Max")
def _max(c: Call) -> Value | Stored:
    """The maximum; -infinity takes part in it as what no number is below."""
    b, pairs = c.build, [c.extended(position) for position in range(len(c.inputs))]
    lead = next((x for x, kept in pairs if isinstance(x, Value) and kept is None), None)
    operands: list[Operand] = []
    for x, kept in pairs:
        if kept is None:
            operands.append(x)
        elif isinstance(x, Tensor):
            operands.append(torch.where(kept, x, torch.full_like(x, -math.inf)))
        elif lead is None:
            raise c.refuse("compares tensors that all hold -infinity")
        else:  # the other operand where this one is -infinity
            mask = kept.to(b.dtype)
            operands.append(b.plus(b.times(x, mask), b.times(lead, 1.0 - mask)))
    return _folded(operands, b.maximum, torch.maximum)


@lower.register("Min")
def _min(c: Call) -> Value:
    pairs = [c.extended(position, math.inf) for position in range(len(c.inputs))]
    operands = [
        x if kept is None or isinstance(x, Value) else torch.where(kept, x, torch.full_like(x, math.inf))
        for x, kept in pairs
    ]
    return _folded(operands, c.build.minimum, torch.minimum)


def _joined(
    c: Call, pair: Callable[[Operand, Operand], Value], stored: Callable[[Tensor, Tensor], Tensor]
) -> Value:
    return _folded(c.operands(), pair, stored)


def _folded(
    operands: list[Operand],
    pair: Callable[[Operand, Operand], Value],
    stored: Callable[[Tensor, Tensor], Tensor],
) -> Value:
    """One pair after the other, stored tensors first among themselves."""
    constants = [x for x in operands if isinstance(x, Tensor)]
    values = [x for x in operands if isinstance(x, Value)]
    result = reduce(pair, values[1:], values[0])
    return pair(result, reduce(stored, constants)) if constants else result


@lower.register("Pow")
def _pow(c: Call) -> Value:
    exponent = c.operand(1)
    if isinstance(exponent, Value):
        return _exponential(c, exponent)
    x = c.value()
    powers = exponent.unique()
    if len(powers) != 1:
        return _powers(c, x, exponent)
    if exponent.numel() > 1:
        x = c.build.expand(x, np.broadcast_shapes(x.source_shape, tuple(exponent.shape)))
    power = float(powers)
    if power == 1:
        return x
    return c.build.elementwise(ops.Sqrt() if power == 0.5 else ops.Power(power), x)


def _exponential(c: Call, exponent: Value) -> Value:
    """base^y = exp(y log base) for stored positive bases."""
    base = c.operand(0)
    if isinstance(base, Value):
        raise c.refuse("raises a computed number to a computed power", "only one of them may be computed")
    if not bool((base > 0).all()):
        raise c.refuse("raises stored numbers that are not positive to computed powers", "use positive ones")
    return c.build.elementwise(ops.Exp(), c.build.times(exponent, torch.log(base.double())))


def _powers(c: Call, x: Value, exponent: Tensor) -> Value:
    """Every entry to a power of its own: the sum of x^p where p is its power, over all different ones."""
    b, powers = c.build, exponent.unique()
    if len(powers) > 16:
        raise c.refuse("raises entries to more than 16 different powers", "split the tensor")
    shape = np.broadcast_shapes(x.source_shape, tuple(exponent.shape))
    x, total = b.expand(x, shape), None
    for power in powers.tolist():
        mask = (exponent == power).expand(shape).to(b.dtype)
        if power == 0:
            total = mask if total is None else b.plus(total, mask)
            continue
        # Elsewhere the argument is 1, where every power is defined.
        kept = b.plus(b.times(x, mask), 1.0 - mask)
        raised = kept if power == 1 else b.elementwise(ops.Sqrt() if power == 0.5 else ops.Power(power), kept)
        part = b.times(raised, mask)
        total = part if total is None else b.plus(total, part)
    assert isinstance(total, Value)
    return total


@lower.register("Where")
def _where(c: Call) -> Value | Masked | Stored:
    """A stored choice between two tensors: mask * x + (1 - mask) * y, exact because each term is a number or zero. Or one by
    the sign of a computed tensor that does not jump."""
    b = c.build
    sign = c.comparison(0)
    if isinstance(sign, Condition):
        return chosen(b, sign, c.operand(1), c.operand(2))
    condition = c.raw(0)
    if not isinstance(condition, np.ndarray):
        raise c.refuse("chooses by computed numbers, which jumps", "use max, min or a fixed mask")
    if condition.dtype != np.bool_:
        raise c.invalid("its condition is not boolean")
    shapes = [
        x.source_shape if isinstance(x, (Value, Masked)) else x.shape for x in c.raws() if x is not None
    ]
    shape = list(np.broadcast_shapes(*shapes))
    mask = torch.from_numpy(condition.copy())
    for everywhere, position in ((mask.all(), 1), (~mask.any(), 2)):
        kept = c.raw(position)
        if bool(everywhere) and not isinstance(kept, Masked):
            return b.expand(kept, shape) if isinstance(kept, Value) else np.broadcast_to(kept, shape)  # type: ignore[arg-type]
    return b.chosen(mask, c.extended(1), c.extended(2))


def _compares(name: str, *, positive: bool) -> None:
    @lower.register(name)
    def translate(c: Call) -> Condition:
        """The sign of a computed tensor; what may be chosen by it is up to who reads it."""
        found = compared(c.operand(0), c.operand(1), positive)
        if found is None:
            raise c.refuse(
                "jumps, so it is not continuous and has no Lipschitz constant",
                "leave it out of the exported model",
            )
        return found


for _name, _above in (("Greater", True), ("GreaterOrEqual", True), ("Less", False), ("LessOrEqual", False)):
    _compares(_name, positive=_above)


@lower.register("Not")
def _not(c: Call) -> Condition:
    """The opposite choice."""
    condition = c.comparison(0)
    if isinstance(condition, Condition):
        return condition.opposite()
    raise c.refuse(
        "reads computed numbers as true or false, which jumps", "leave it out of the exported model"
    )
