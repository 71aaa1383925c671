"""Sums, products, extrema and choices of two or more tensors."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce

import numpy as np
import torch
from torch import Tensor

from lipverify import ops
from lipverify.frontends.builder import Operand, Value
from lipverify.frontends.onnx.call import Call
from lipverify.frontends.onnx.lowering import Stored
from lipverify.frontends.onnx.registry import lower


@lower.register("Add")
def _add(c: Call) -> Value:
    return c.build.plus(c.operand(0), c.operand(1))


@lower.register("Sub")
def _sub(c: Call) -> Value:
    return c.build.minus(c.operand(0), c.operand(1))


@lower.register("Mul")
def _mul(c: Call) -> Value:
    return c.build.times(c.operand(0), c.operand(1))


@lower.register("Div")
def _div(c: Call) -> Value:
    return c.build.over(c.operand(0), c.operand(1))


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
def _max(c: Call) -> Value:
    return _joined(c, c.build.maximum, torch.maximum)


@lower.register("Min")
def _min(c: Call) -> Value:
    return _joined(c, c.build.minimum, torch.minimum)


def _joined(
    c: Call, pair: Callable[[Operand, Operand], Value], stored: Callable[[Tensor, Tensor], Tensor]
) -> Value:
    """One pair after the other, stored tensors first among themselves."""
    operands = c.operands()
    constants = [x for x in operands if isinstance(x, Tensor)]
    values = [x for x in operands if isinstance(x, Value)]
    result = reduce(pair, values[1:], values[0])
    return pair(result, reduce(stored, constants)) if constants else result


@lower.register("Pow")
def _pow(c: Call) -> Value:
    exponent = c.operand(1)
    if isinstance(exponent, Value):
        raise c.refuse("its exponent depends on the graph's input", "only stored exponents are covered")
    x = c.value()
    powers = exponent.unique()
    if len(powers) != 1:
        raise c.refuse("raises entries to different powers", "split the tensor")
    if exponent.numel() > 1:
        x = c.build.expand(x, torch.broadcast_shapes(x.source_shape, tuple(exponent.shape)))
    power = float(powers)
    if power == 1:
        return x
    return c.build.elementwise(ops.Sqrt() if power == 0.5 else ops.Power(power), x)


@lower.register("Where")
def _where(c: Call) -> Value | Stored:
    """A stored choice between two tensors: mask * x + (1 - mask) * y, exact because each term is a number or zero."""
    b = c.build
    condition = c.raw(0)
    if not isinstance(condition, np.ndarray):
        raise c.refuse("chooses by computed numbers, which jumps", "use max, min or a fixed mask")
    if condition.dtype != np.bool_:
        raise c.invalid("its condition is not boolean")
    shapes = [x.source_shape if isinstance(x, Value) else x.shape for x in c.inputs if x is not None]
    shape = list(torch.broadcast_shapes(*shapes))
    mask = torch.from_numpy(condition.copy())
    for everywhere, position in ((mask.all(), 1), (~mask.any(), 2)):
        kept = c.raw(position)
        if bool(everywhere):
            return b.expand(kept, shape) if isinstance(kept, Value) else np.broadcast_to(kept, shape)  # type: ignore[arg-type]
    parts = [(c.operand(1), mask), (c.operand(2), ~mask)]
    weighted = [
        b.times(x, m.to(b.dtype)) if isinstance(x, Value) else torch.where(m, x, torch.zeros_like(x))
        for x, m in parts
    ]
    result = b.plus(weighted[0], weighted[1])
    return b.expand(result, shape)
