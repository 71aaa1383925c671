"""Sorting."""

from __future__ import annotations

from lipverify.frontends.builder import Value
from lipverify.frontends.torch_export.lowering import Forbidden, Lowerer
from lipverify.frontends.torch_export.registry import lower

_ORDER = Forbidden("uses the order of sorted entries, which jumps")


@lower.register("aten.sort.default")
def _sort(b: Lowerer, x: Value, dim: int = -1, descending: bool = False) -> tuple[Value, Forbidden]:
    return b.sort(x, dim, descending), _ORDER


@lower.register("aten.sort.stable")
def _stable_sort(
    b: Lowerer, x: Value, *, stable: bool | None = None, dim: int = -1, descending: bool = False
) -> tuple[Value, Forbidden]:
    return b.sort(x, dim, descending), _ORDER


@lower.register("aten.msort")
def _msort(b: Lowerer, x: Value) -> Value:
    return b.sort(x, 0, False)


@lower.register("aten.topk")
def _topk(
    b: Lowerer, x: Value, k: int, dim: int = -1, largest: bool = True, sorted: bool = True
) -> tuple[Value, Forbidden]:
    if not sorted:
        raise b.refuse("promises no order of its results", (x,), "pass sorted=True")
    return b.slice(b.sort(x, dim, largest), dim, 0, k), _ORDER
