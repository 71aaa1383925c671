"""Tensors whose batch axis is merged with others, as in `x.view(-1, features)` or the heads of nn.MultiheadAttention.

Such a tensor is kept as the value before merging: axes [before, batch, behind] stand for its one merged axis. Operators that
leave the merged axis alone act on that value, with their axis arguments renumbered.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lipverify.frontends.builder import Masked, Value
from lipverify.frontends.torch_export.lowering import INFINITE, Lowerer
from lipverify.frontends.torch_export.registry import lower
from lipverify.ir.op import Shape


@dataclass(frozen=True)
class Merged:
    """inner: a value whose source axes axis, axis + 1 (the batch), axis + 2 are one axis of the program's tensor."""

    inner: Value | Masked
    axis: int

    @property
    def rank(self) -> int:
        """Axes of the program's tensor."""
        return self.inner.rank - 2

    @property
    def source_shape(self) -> Shape:
        """Shape of the program's tensor for a batch of one."""
        shape, m = self.inner.source_shape, self.axis
        return (*shape[:m], math.prod(shape[m : m + 3]), *shape[m + 3 :])


def batch_axis(b: Lowerer, result: Value | Merged) -> tuple[int, int]:
    """Which axis of the program's result counts samples, and how many entries it has for each of them.

    Raises:
        UnsupportedModel: no axis or several axes do, or not in proportion to the batch.
    """
    axes = [a for a, size in enumerate(b.expected.shape) if b.counts_samples(size)]
    if len(axes) == 1:
        times = b.expected.shape[axes[0]].node.expr / b.batch_symbol
        if times.is_Integer and times >= 1:
            return axes[0], int(times)
    shown = [result if isinstance(result, Value) else result.inner]
    raise b.refuse("picks, mixes or repeats samples of the batch", shown, "each sample must stand for itself")


def viewed(b: Lowerer, x: Value | Merged) -> Value | Merged:
    """A row-major reshape to the shape the exported program has; the batch axis stays between the same entries."""
    v = x.inner if isinstance(x, Merged) else x
    if isinstance(v, Masked):
        raise b.refuse(INFINITE, (v,))
    axis, times = batch_axis(b, x)
    assert v.batch is not None
    sizes = b.sizes()
    total = math.prod(v.shape)
    unknown = [a for a, size in enumerate(sizes) if size == -1 and a != axis]
    known = times * math.prod(size for a, size in enumerate(sizes) if a != axis and a not in unknown)
    if len(unknown) == 1 and known:
        sizes[unknown[0]] = total // known
    lead, tail = math.prod(sizes[:axis]), math.prod(sizes[axis + 1 :])
    before = math.prod(v.source_shape[: v.batch])
    if lead * times * tail != total or before % lead or times % (before // lead):
        raise b.refuse(f"mixes the batch axis with others: reshape to {_words(b.expected.shape)}", (v,))
    if times == 1:
        return b.relabel(v, (*sizes[:axis], *sizes[axis + 1 :]), axis)
    first = before // lead
    inner = b.relabel(v, (*sizes[:axis], first, times // first, *sizes[axis + 1 :]), axis + 1)
    return Merged(inner, axis)


def _words(shape: Sequence[Any]) -> list[Any]:
    return ["batch" if isinstance(size, torch.SymInt) else size for size in shape]


@lower.register(
    "aten.view.default", "aten.reshape", "aten._unsafe_view", "aten.view_copy.default", "aten.flatten.using_ints",
    "aten.unflatten.int", "aten.view_as", "aten.reshape_as",
)  # fmt: skip
def _view(b: Lowerer, x: Value | Merged, *_: Any, **__: Any) -> Value | Merged:
    return viewed(b, x)


# Which positional arguments of an operator are axes, 0 where they are left out.
_AXES: dict[str, Sequence[int]] = {
    "transpose": (1, 2), "softmax": (1,), "_softmax": (1,), "log_softmax": (1,), "select": (1,), "slice": (1,), "unbind": (1,),
    "split": (2,), "split_with_sizes": (2,), "chunk": (2,),
}  # fmt: skip
_ALONG_LAST = {"linear": 1, "layer_norm": 1, "rms_norm": 1}
_ENTRYWISE = {
    "relu", "gelu", "silu", "tanh", "sigmoid", "elu", "leaky_relu", "softplus", "mish", "hardtanh", "clone", "contiguous",
    "alias", "detach", "dropout", "mul", "div", "add", "sub", "neg", "abs", "to", "_to_copy", "selu", "hardswish",
}  # fmt: skip
_PRODUCTS = {"bmm": 2, "matmul": 2, "baddbmm": 2, "scaled_dot_product_attention": 3}
"""Along the last two axes of so many tensors."""
_VIEWS = {"view", "reshape", "_unsafe_view", "view_copy", "flatten", "unflatten", "view_as", "reshape_as"}


def lowered(
    b: Lowerer, translate: Any, args: Sequence[Any], kwargs: dict[str, Any]
) -> Value | Merged | list[Merged]:
    """An operator with a merged argument, on the values before merging.

    Raises:
        UnsupportedModel: the operator would act along the merged axis, or is not known to leave it alone.
    """
    if b.what in _VIEWS:
        return viewed(b, args[0])
    merged = [a for a in args if isinstance(a, Merged)]
    x = merged[0]
    inner = [a.inner if isinstance(a, Merged) else _before(a, x) for a in args]
    first = args[0] is x
    plain = not any(isinstance(a, (Value, Masked)) for a in args)
    plain = plain and not any(isinstance(a, (Value, Masked, Merged, Tensor)) for a in kwargs.values())
    plain = plain and all((before is None) == (a is None) for a, before in zip(args, inner, strict=True))
    behind = x.rank - 1 - x.axis
    batches = plain and behind >= 2 and all(_alike(a, x, x.axis + 3) for a in merged)
    if batches and len(merged) == _PRODUCTS.get(b.what):
        return Merged(translate(b, *inner, **kwargs), x.axis)
    alike = plain and all(_alike(a, x, None) for a in merged)
    if b.what == "permute" and first:
        order = [a % x.rank for a in args[1]]
        return Merged(translate(b, x.inner, _spread(order, x.axis)), order.index(x.axis))
    if b.what == "transpose" and first:
        order = list(range(x.rank))
        order[args[1]], order[args[2]] = order[args[2]], order[args[1]]
        assert isinstance(x.inner, Value)
        return Merged(b.transpose(x.inner, _spread(order, x.axis)), order.index(x.axis))
    if alike and b.what in _ENTRYWISE:
        return Merged(translate(b, *inner, **kwargs), x.axis)
    if first and b.what in _ALONG_LAST and behind >= (len(args[1]) if isinstance(args[1], list) else 1):
        return Merged(translate(b, x.inner, *args[1:], **kwargs), x.axis)
    if alike and first and b.what in _AXES and not kwargs.keys() & {"dim", "dim0", "dim1"}:
        axes = [args[i] % x.rank if i < len(args) else 0 for i in _AXES[b.what]]
        if x.axis not in axes:
            for i, axis in zip(_AXES[b.what], axes, strict=True):
                if i < len(args):
                    inner[i] = axis + 2 if axis > x.axis else axis
            found = translate(b, *inner, **kwargs)
            axis = x.axis - (b.what in ("select", "unbind") and axes[0] < x.axis)
            return [Merged(part, axis) for part in found] if isinstance(found, list) else Merged(found, axis)
    raise b.refuse(
        "is not covered where the batch axis is merged with another one",
        [a.inner for a in merged],
        "keep the batch axis separate",
    )


def _before(a: Any, like: Merged) -> Any:
    """A stored tensor as it broadcasts to the value before merging; None for one that differs along the merged axis."""
    if not isinstance(a, Tensor) or a.ndim < like.rank - like.axis:
        return a
    axis, shape = like.axis - (like.rank - a.ndim), tuple(a.shape)
    before = like.inner.source_shape[like.axis : like.axis + 3]
    if shape[axis] not in (1, math.prod(before)):
        return None
    return a.reshape(*shape[:axis], *((1, 1, 1) if shape[axis] == 1 else before), *shape[axis + 1 :])


def _alike(a: Merged, other: Merged, axes: int | None) -> bool:
    """Whether both are merged of the same axes, and the first `axes` before merging, or all, are of the same sizes."""
    return (a.axis, a.rank, a.inner.batch, a.inner.source_shape[:axes]) == (
        other.axis,
        other.rank,
        other.inner.batch,
        other.inner.source_shape[:axes],
    )


def _spread(order: Sequence[int], axis: int) -> list[int]:
    """A permutation of the program's axes as one of the axes before merging."""
    spread: list[int] = []
    for a in order:
        spread += [a, a + 1, a + 2] if a == axis else [a + 2 if a > axis else a]
    return spread
