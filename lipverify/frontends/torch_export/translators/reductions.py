"""Sums, means and extremes over whole axes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from torch import Tensor

from lipverify import ops
from lipverify.frontends.builder import Value
from lipverify.frontends.torch_export.lowering import Forbidden, Lowerer
from lipverify.frontends.torch_export.registry import lower
from lipverify.frontends.torch_export.translators.pooling import POSITIONS
from lipverify.ir.op import Op, Shape


def _reduced(
    b: Lowerer, kind: Callable[[Shape, bool], Op], x: Value, dim: int | Sequence[int] | None, keepdim: bool
) -> Value:
    if dim is None or (not isinstance(dim, int) and len(dim) == 0):
        return b.reduce(kind, x, None, keepdim)
    return b.reduce(kind, x, [dim] if isinstance(dim, int) else list(dim), keepdim)


def _register(name: str, kind: Callable[[Shape, bool], Op]) -> None:
    @lower.register(f"aten.{name}")
    def translate(
        b: Lowerer, x: Value, dim: Any = None, keepdim: bool = False, *, dtype: Any = None
    ) -> Value:
        if dtype is not None:
            b.cast(dtype)
        return _reduced(b, kind, x, dim, keepdim)


_register("mean", ops.ReduceMean)
_register("sum", ops.ReduceSum)
_register("amax", ops.ReduceMax)
_register("amin", ops.ReduceMin)


def _register_with_positions(name: str, kind: Callable[[Shape, bool], Op]) -> None:
    @lower.register(f"aten.{name}.dim")
    def along(b: Lowerer, x: Value, dim: int, keepdim: bool = False) -> tuple[Value, Forbidden]:
        return _reduced(b, kind, x, dim, keepdim), POSITIONS

    @lower.register(f"aten.{name}.default")
    def everything(b: Lowerer, x: Value) -> Value:
        return b.reduce(kind, x, None, False)


_register_with_positions("max", ops.ReduceMax)
_register_with_positions("min", ops.ReduceMin)


@lower.register("aten.var.correction")
def _var(b: Lowerer, x: Value, dim: Any = None, *, correction: Any = None, keepdim: bool = False) -> Value:
    axes = _axes(b, x, dim)
    deviation = b.minus(x, b.reduce(ops.ReduceMean, x, axes, True))
    mean = b.reduce(ops.ReduceMean, b.elementwise(ops.Power(2.0), deviation), axes, keepdim)
    count = math.prod(x.source_shape[axis] for axis in axes)
    lost = 1 if correction is None else correction
    if count <= lost:
        raise b.refuse(f"the variance of {count} numbers with correction {lost} divides by nothing", (x,))
    return mean if lost == 0 else b.times(mean, b.number(count / (count - lost)))


@lower.register("aten.std.correction")
def _std(b: Lowerer, x: Value, dim: Any = None, *, correction: Any = None, keepdim: bool = False) -> Value:
    return b.elementwise(ops.Sqrt(), _var(b, x, dim, correction=correction, keepdim=keepdim))


@lower.register("aten.linalg_vector_norm")
def _vector_norm(
    b: Lowerer, x: Value, ord: float = 2, dim: Any = None, keepdim: bool = False, *, dtype: Any = None
) -> Value:
    if dtype is not None:
        b.cast(dtype)
    axes = _axes(b, x, dim)
    if math.isfinite(ord) and ord >= 2 and ord == int(ord):
        return b.reduce(partial(ops.ReduceNorm, order=int(ord)), x, axes, keepdim)
    if ord not in (1, math.inf):
        raise b.refuse(
            f"a vector norm of order {ord} is not covered", (x,), "use a whole order from 1 on, or inf"
        )
    return b.reduce(ops.ReduceSum if ord == 1 else ops.ReduceMax, b.elementwise(ops.Abs(), x), axes, keepdim)


@lower.register("aten.norm.ScalarOpt_dim")
def _norm(b: Lowerer, x: Value, p: float | None, dim: Any, keepdim: bool = False) -> Value:
    """As `pairwise_distance` traces; no order means 2."""
    return _vector_norm(b, x, 2 if p is None else p, dim, keepdim)


@lower.register("aten.cdist", "aten._cdist_forward")
def _cdist(b: Lowerer, x: Any, y: Any, p: float = 2.0, compute_mode: int | None = None) -> Value:
    """Distances of the rows of x [..., n, d] from those of y [..., m, d]: [..., n, m]; the mode is a way to compute them."""
    rows, columns = (
        v.unsqueeze(axis) if isinstance(v, Tensor) else b.unsqueeze(b.value(v), [axis])
        for v, axis in ((x, -2), (y, -3))
    )
    apart = b.minus(rows, columns)
    return _vector_norm(b, apart, p, apart.rank - 1)


@lower.register("aten.cumsum")
def _cumsum(b: Lowerer, x: Value, dim: int, *, dtype: Any = None) -> Value:
    if dtype is not None:
        b.cast(dtype)
    return b.running_sum(x, dim % x.rank)


@lower.register("aten.logsumexp", "aten.special_logsumexp")
def _log_sum_exp(b: Lowerer, x: Value, dim: Any, keepdim: bool = False) -> Value:
    return b.reduce(ops.ReduceLogSumExp, x, _axes(b, x, dim), keepdim)


def _axes(b: Lowerer, x: Value, dim: Any) -> list[int]:
    """The axes of a reduction; none of them may be the batch axis."""
    axes = list(range(x.rank)) if dim is None or dim == [] else [dim] if isinstance(dim, int) else list(dim)
    for axis in axes:
        b.axis(x, axis)
    return axes
