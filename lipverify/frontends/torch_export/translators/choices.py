"""Comparisons and what may be done with them: stored masks, and choices that do not jump (`building.choices`)."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from lipverify.frontends.builder import Masked, Value
from lipverify.frontends.building.choices import Condition, chosen, compared
from lipverify.frontends.torch_export.lowering import INFINITE, Forbidden, Lowerer
from lipverify.frontends.torch_export.registry import lower

_COMPARES = Forbidden(Condition.reason)

# -- comparisons


@lower.register("aten.gt", "aten.ge")
def _positive(b: Lowerer, x: Any, other: Any) -> Condition | Forbidden:
    return compared(x, other, True) or _COMPARES


@lower.register("aten.lt", "aten.le")
def _negative(b: Lowerer, x: Any, other: Any) -> Condition | Forbidden:
    return compared(x, other, False) or _COMPARES


@lower.register("aten.eq", "aten.ne")
def _equal(b: Lowerer, x: Any, other: Any) -> Forbidden:
    return _COMPARES


@lower.register("aten.logical_not", "aten.bitwise_not")
def _not(b: Lowerer, x: Any) -> Condition:
    if isinstance(x, Condition):
        return x.opposite()
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
