"""Sums, means and extremes over whole axes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lipverify import ops
from lipverify.frontends.builder import Value
from lipverify.frontends.torch_export.lowering import Forbidden, Lowerer
from lipverify.frontends.torch_export.registry import lower
from lipverify.frontends.torch_export.translators.pooling import POSITIONS
from lipverify.ir.op import Op


def _reduced(b: Lowerer, kind: type[Op], x: Value, dim: int | Sequence[int] | None, keepdim: bool) -> Value:
    if dim is None or (not isinstance(dim, int) and len(dim) == 0):
        return b.reduce(kind, x, None, keepdim)
    return b.reduce(kind, x, [dim] if isinstance(dim, int) else list(dim), keepdim)


def _register(name: str, kind: type[Op]) -> None:
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


def _register_with_positions(name: str, kind: type[Op]) -> None:
    @lower.register(f"aten.{name}.dim")
    def along(b: Lowerer, x: Value, dim: int, keepdim: bool = False) -> tuple[Value, Forbidden]:
        return _reduced(b, kind, x, dim, keepdim), POSITIONS

    @lower.register(f"aten.{name}.default")
    def everything(b: Lowerer, x: Value) -> Value:
        return b.reduce(kind, x, None, False)


_register_with_positions("max", ops.ReduceMax)
_register_with_positions("min", ops.ReduceMin)
