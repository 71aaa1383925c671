"""Attention, and the rotation of queries and keys by their places.

Legend: queries [..., heads, places, size], keys and values alike with places of their own; scores [..., heads, places, keys].
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lipverify import ops
from lipverify.frontends.builder import Builder, Masked, Operand, Value


def attention(
    b: Builder,
    query: Operand,
    key: Operand,
    value: Operand,
    factor: Tensor,
    *masks: Tensor,
) -> Value:
    """softmax(factor query key' + masks) value. Fewer heads of keys and values serve as many queries each.

    masks: of booleans (true: seen) or of numbers, -infinity where a key is not seen; they broadcast to the scores.

    Raises:
        UnsupportedModel: queries and keys are both stored, or a mask holds NaN or infinity. InvalidFile: a row sees no key.
    """
    operands = (query, key, value)
    if isinstance(query, Tensor) and isinstance(key, Tensor):
        raise b.refuse("attention with stored queries and keys is not covered", operands)
    if len(_shape(query)) > 2:
        heads = _shape(query)[-3]
        key, value = _repeated(b, key, heads), _repeated(b, value, heads)
    rank = len(_shape(key))
    order = [*range(rank - 2), rank - 1, rank - 2]
    turned = b.transpose(key, order) if isinstance(key, Value) else key.transpose(-1, -2)
    scores = b.times(b.matmul(query, turned), factor)
    kept = []
    for mask in masks:
        seen = mask
        if mask.dtype is not torch.bool:
            seen = mask != -math.inf
            numbers = torch.where(seen, mask, torch.zeros_like(mask))
            if not bool(numbers.isfinite().all()):
                raise b.refuse("a mask holds numbers that are neither finite nor -infinity", operands)
            if bool((numbers != 0).any()):
                scores = b.plus(scores, numbers)
        if not bool(seen.all()):
            kept.append(seen)
    shown = b.masked(scores, *kept)
    if isinstance(shown, Masked):
        return b.matmul(b.masked_softmax(shown, scores.rank - 1), value)
    return b.matmul(b.along(ops.Softmax, scores, scores.rank - 1), value)


def causal(places: int, keys: int, last: int | None = None) -> Tensor:
    """[places, keys] of booleans: keys up to a place's own are seen, and no more than `last` of them."""
    seen = torch.ones(places, keys, dtype=torch.bool).tril()
    return seen if last is None else seen & ~seen.tril(-last)


def rotated(b: Builder, x: Value, cos: Tensor, sin: Tensor, interleaved: bool) -> Value:
    """The first 2 n entries of the last axis turned pair by pair: (u cos - v sin, u sin + v cos). cos, sin [places, n].

    Pairs are entries i and i + n, or 2 i and 2 i + 1 where they are interleaved; entries behind them stay.
    """
    n, size = cos.shape[-1], x.source_shape[-1]
    first = torch.arange(n) * 2 if interleaved else torch.arange(n)
    second = first + (1 if interleaved else n)
    partner = torch.arange(size)
    partner[first], partner[second] = second, first
    own, other = cos.new_ones(len(cos), size), cos.new_zeros(len(cos), size)
    own[:, first], own[:, second] = cos, cos
    other[:, first], other[:, second] = -sin, sin
    return b.plus(b.times(x, own), b.times(b.gather(x, x.rank - 1, partner), other))


def _shape(x: Operand) -> tuple[int, ...]:
    return x.source_shape if isinstance(x, Value) else tuple(x.shape)


def _repeated(b: Builder, x: Operand, heads: int) -> Operand:
    """Every head of [..., fewer heads, keys, size] as often as queries share it, side by side."""
    own = _shape(x)[-3]
    if own in (1, heads) or heads % own:
        return x
    index = torch.arange(own).repeat_interleave(heads // own)
    return b.gather(x, x.rank - 3, index) if isinstance(x, Value) else x.index_select(-3, index)
