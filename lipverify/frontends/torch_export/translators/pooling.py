"""Pooling over windows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lipverify import ops
from lipverify.frontends.builder import Value
from lipverify.frontends.torch_export.lowering import Forbidden, Lowerer
from lipverify.frontends.torch_export.registry import lower
from lipverify.frontends.torch_export.translators.linear_maps import tupled
from lipverify.ir.op import Op, Shape

POSITIONS = Forbidden("uses the positions of maxima, which jump")


def _register_max_pool(rank: int) -> None:
    @lower.register(f"aten.max_pool{rank}d")
    def plain(
        b: Lowerer,
        x: Value,
        kernel: Any,
        stride: Any = (),
        padding: Any = 0,
        dilation: Any = 1,
        ceil: bool = False,
    ) -> Value:
        size = tupled(kernel, rank)
        pads = [(p, p) for p in tupled(padding, rank)]
        step = tupled(stride, rank) if stride else size
        return b.max_pool(x, size, step, pads, tupled(dilation, rank), ceil)

    @lower.register(f"aten.max_pool{rank}d_with_indices")
    def with_indices(b: Lowerer, x: Value, *given: Any, **named: Any) -> tuple[Value, Forbidden]:
        return plain(b, x, *given, **named), POSITIONS


def _register_avg_pool(rank: int) -> None:
    @lower.register(f"aten.avg_pool{rank}d")
    def plain(
        b: Lowerer,
        x: Value,
        kernel: Any,
        stride: Any = (),
        padding: Any = 0,
        ceil: bool = False,
        count_include_pad: bool = True,
        divisor_override: int | None = None,
    ) -> Value:
        if divisor_override is not None:
            raise b.refuse(
                "average pooling with a divisor of its own is not covered", (x,), "scale the result instead"
            )
        size = tupled(kernel, rank)
        pads = [(p, p) for p in tupled(padding, rank)]
        return b.avg_pool(x, size, tupled(stride, rank) if stride else size, pads, ceil, count_include_pad)


def _adaptive(b: Lowerer, x: Value, output: Sequence[int], kind: type[Op]) -> Shape | Value:
    """The window that an adaptive pooling slides, or its result where it reduces whole axes."""
    spatial = x.source_shape[x.rank - len(output) :]
    if all(size == 1 for size in output):
        return b.reduce(kind, x, range(x.rank - len(output), x.rank), True)
    if any(have % want for have, want in zip(spatial, output, strict=True)):
        raise b.refuse(
            f"adaptive pooling from {list(spatial)} to {list(output)} has windows of unequal size",
            (x,),
            "choose an output size that divides the input size",
        )
    return tuple(have // want for have, want in zip(spatial, output, strict=True))


def _register_adaptive(rank: int) -> None:
    zero = [(0, 0)] * rank

    @lower.register(f"aten.adaptive_avg_pool{rank}d", f"aten._adaptive_avg_pool{rank}d")
    def average(b: Lowerer, x: Value, output_size: Any) -> Value:
        found = _adaptive(b, x, tupled(output_size, rank), ops.ReduceMean)
        if isinstance(found, Value):
            return found
        return b.avg_pool(x, found, found, zero, False, True)

    @lower.register(f"aten.adaptive_max_pool{rank}d")
    def maximum(b: Lowerer, x: Value, output_size: Any) -> tuple[Value, Forbidden]:
        found = _adaptive(b, x, tupled(output_size, rank), ops.ReduceMax)
        if isinstance(found, Value):
            return found, POSITIONS
        return b.max_pool(x, found, found, zero, (1,) * rank, False), POSITIONS


for _rank in (1, 2, 3):
    _register_max_pool(_rank)
    _register_avg_pool(_rank)
    _register_adaptive(_rank)
