"""Scalar functions and arithmetic with broadcasting."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from lipverify import ops
from lipverify.errors import InvalidFile
from lipverify.frontends.building.nodes import Masked, Operand, Value
from lipverify.frontends.building.shapes import Shapes
from lipverify.ir.op import Op, Shape
from lipverify.loading.names import display


class Arithmetic(Shapes):
    """What computes entry by entry."""

    def elementwise(self, op: Op, v: Value) -> Value:
        """A scalar activation."""
        return self.add(op, (v,), v.batch)

    def prelu(self, v: Value, slope: Tensor) -> Value:
        """Leaky ReLU with stored slopes, broadcast in source coordinates."""
        (v,), (slope,) = self._aligned([v], [slope])
        return self.add(ops.PReLU(slope), (v,), v.batch)

    # -- arithmetic with broadcasting

    def plus(self, a: Operand, b: Operand) -> Value:
        """a + b."""
        return self._binary(a, b, ops.Add(), lambda v, c: ops.Scale(None, c))

    def minus(self, a: Operand, b: Operand) -> Value:
        """a - b."""
        if isinstance(a, Tensor):
            assert isinstance(b, Value)
            (v,), (c,) = self._aligned([b], [a])
            return self.add(ops.Scale(-torch.ones((), dtype=c.dtype), c), (v,), v.batch)
        return self._binary(a, b, ops.Sub(), lambda v, c: ops.Scale(None, -c))

    def times(self, a: Operand, b: Operand) -> Value:
        """a * b."""
        return self._binary(a, b, ops.Mul(), lambda v, c: ops.Scale(c, None))

    def over(self, a: Operand, b: Operand) -> Value:
        """a / b."""
        if isinstance(a, Tensor):
            assert isinstance(b, Value)
            return self.times(self.elementwise(ops.Reciprocal(), b), a)
        if isinstance(b, Tensor) and bool((b == 0).any()):
            raise InvalidFile(f'{self.what} "{display(self.where)}": divides by a stored zero')
        return self._binary(a, b, ops.Div(), lambda v, c: ops.DivideBy(c))

    def negative(self, v: Value) -> Value:
        """-v."""
        return self.add(ops.Scale(torch.tensor(-1.0), None), (v,), v.batch)

    def maximum(self, a: Operand, b: Operand) -> Value:
        """Elementwise maximum; with one stored number it is a clip."""
        return self._extreme(a, b, ops.Maximum(), lambda c: ops.Clip(c, math.inf))

    def minimum(self, a: Operand, b: Operand) -> Value:
        """Elementwise minimum; with one stored number it is a clip."""
        return self._extreme(a, b, ops.Minimum(), lambda c: ops.Clip(-math.inf, c))

    def masked(self, v: Value, *kept: Tensor | None) -> Value | Masked:
        """v where all of these masks hold, which broadcast to it, -infinity elsewhere."""
        found = [mask for mask in kept if mask is not None]
        if not found:
            return v
        whole = found[0]
        for mask in found[1:]:
            whole = whole & mask
        return Masked(v, whole.expand(v.source_shape))

    def chosen(
        self, mask: Tensor, on: tuple[Operand, Tensor | None], off: tuple[Operand, Tensor | None]
    ) -> Value | Masked:
        """`on` where a stored mask of booleans holds, `off` elsewhere; each a tensor and where it counts, -infinity elsewhere
        (None: everywhere). At least one depends on the input.

        mask on + (1 - mask) off is exact, as each term is a number or zero; where one branch is -infinity wherever it is taken,
        the other one is the sum.
        """
        taken = ((*on, mask), (*off, ~mask))
        shapes = [x.source_shape if isinstance(x, Value) else tuple(x.shape) for x, _, _ in taken]
        shape = list(np.broadcast_shapes(tuple(mask.shape), *shapes))
        shown = [None if kept is None else kept | ~own for _, kept, own in taken]
        for (x, _, _), (_, kept, own) in (taken, taken[::-1]):
            if isinstance(x, Value) and kept is not None and not bool((kept & own).any()):
                return self.masked(self.expand(x, shape), *shown)
        parts = [
            self.times(x, own.to(self.stored_dtype))
            if isinstance(x, Value)
            else torch.where(own, x, torch.zeros_like(x))
            for x, _, own in taken
        ]
        return self.masked(self.expand(self.plus(parts[0], parts[1]), shape), *shown)

    def masked_softmax(self, m: Masked, axis: int) -> Value:
        """Softmax along a source axis of a tensor that holds -infinity.

        Raises:
            InvalidFile: a row holds nothing else, where softmax is not defined.
        """
        v = self.free(m.value, axis)
        kept = m.kept if v.batch is None else m.kept.squeeze(v.batch)
        sample = self.axis(v, axis)
        if not bool(kept.any(sample).all()):
            raise InvalidFile(
                f'{self.what} "{display(self.where)}": a row of its input is -infinity throughout, where softmax is not defined'
            )
        return self.add(ops.MaskedSoftmax(sample, kept.contiguous()), (v,), v.batch)

    def _extreme(self, a: Operand, b: Operand, op: Op, clip: Callable[[float], Op]) -> Value:
        if isinstance(a, Tensor):
            a, b = b, a
        assert isinstance(a, Value)
        if isinstance(b, Tensor) and bool(b.isinf().any()):
            # No limit: there the other operand is the tensor itself.
            numbers = torch.where(b.isinf(), torch.zeros_like(b), b)
            if bool(b.isinf().all()):
                return self.expand(a, np.broadcast_shapes(a.source_shape, tuple(b.shape)))
            b = self.plus(self.times(a, b.isinf().to(b.dtype)), numbers)
        if isinstance(b, Tensor):
            if b.numel() == 1:
                return self.elementwise(clip(float(b)), a)
            (a,), (b,) = self._aligned([a], [b])
            full = self.constant(b.expand(a.shape).contiguous(), None)
            return self.add(op, (a, replace(full, batch=a.batch)), a.batch)
        return self._binary(a, b, op, lambda v, c: op)

    def _binary(self, a: Operand, b: Operand, op: Op, stored: Callable[[Value, Tensor], Op]) -> Value:
        if isinstance(a, Tensor):
            a, b = b, a
        assert isinstance(a, Value)
        if isinstance(b, Tensor):
            (a,), (b,) = self._aligned([a], [b])
            return self.add(stored(a, b), (a,), a.batch)
        values, _ = self._aligned([a, b], [])
        return self.add(op, values, values[0].batch)

    def _aligned(self, values: Sequence[Value], stored: Sequence[Tensor]) -> tuple[list[Value], list[Tensor]]:
        """Numpy broadcasting: all values with one batch axis and one sample shape, stored tensors ready for that shape."""
        rank = max([v.rank for v in values] + [c.ndim for c in stored])
        values = [self.unsqueeze(v, range(rank - v.rank)) if v.rank < rank else v for v in values]
        stored = [c.reshape((1,) * (rank - c.ndim) + tuple(c.shape)) for c in stored]
        batches = {v.batch for v in values if v.batch is not None}
        batch = batches.pop() if len(batches) == 1 else None
        clash = bool(batches) or (
            batch is not None
            and any(
                s[batch] != 1 for s in [*(v.source_shape for v in values), *(tuple(c.shape) for c in stored)]
            )
        )
        if clash:
            if self.symbolic_batch:
                raise self.refuse("mixes the batch axis with another axis", [*values, *stored])
            batch = None
        values = [
            v if v.batch == batch else self.view(v, _without(v.source_shape, batch), batch) for v in values
        ]
        stored = [c if batch is None else c.squeeze(batch) for c in stored]
        try:
            shape = np.broadcast_shapes(*(v.shape for v in values), *(c.shape for c in stored))
        except ValueError:
            raise InvalidFile(
                f'{self.what} "{display(self.where)}": shapes do not broadcast: '
                f"{[list(v.shape) for v in values] + [list(c.shape) for c in stored]}"
            ) from None
        values = [
            v if v.shape == tuple(shape) else self.add(ops.Expand(tuple(shape)), (v,), v.batch)
            for v in values
        ]
        return values, [_trimmed(c) for c in stored]


def _without(shape: Shape, axis: int | None) -> Shape:
    return tuple(size for a, size in enumerate(shape) if a != axis)


def _trimmed(c: Tensor) -> Tensor:
    """Without leading axes of size 1, which broadcasting adds anyway."""
    while c.ndim > 0 and c.shape[0] == 1:
        c = c.squeeze(0)
    return c
