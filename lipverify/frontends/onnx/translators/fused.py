"""Operators that onnxruntime fuses transformers into (`com.microsoft`), as its documentation of contrib operators defines them.

Sequences come as [batch, places, heads * size]; the import check runs onnxruntime, which alone defines them.
"""

from __future__ import annotations

import math
from typing import NoReturn

import numpy as np
import torch
from torch import Tensor

from lipverify import ops
from lipverify.frontends.builder import Operand, Value
from lipverify.frontends.building.attention import attention, causal, rotated
from lipverify.frontends.onnx.call import Call
from lipverify.frontends.onnx.lowering import Stored
from lipverify.frontends.onnx.registry import lower

_EPSILON = float(np.float32(1e-12))
_HIDDEN = float(np.float32(-10000.0))
_QUICK = float(np.float32(1.702))


@lower.register("com.microsoft::Gelu", "com.microsoft::BiasGelu")
def _gelu(c: Call) -> Value:
    return c.build.elementwise(ops.GELU(), _biased(c, 1))


@lower.register("com.microsoft::FastGelu")
def _fast_gelu(c: Call) -> Value:
    return c.build.elementwise(ops.GELU(tanh=True), _biased(c, 1))


@lower.register("com.microsoft::QuickGelu")
def _quick_gelu(c: Call) -> Value:
    return c.build.elementwise(ops.SiLU(_real(c, "alpha", _QUICK)), c.value())


def _biased(c: Call, position: int) -> Value:
    x = c.value()
    return x if c.raw(position) is None else c.build.plus(x, c.operand(position))


@lower.register("com.microsoft::FusedMatMul")
def _fused_matmul(c: Call) -> Value:
    if c.flag("transBatchA") or c.flag("transBatchB"):
        raise c.refuse("transposes batch axes", "export with standard ONNX operators alone")
    first, second = (
        _turned(c, c.operand(i)) if c.flag(name) else c.operand(i)
        for i, name in enumerate(("transA", "transB"))
    )
    one, other = _shape(first), _shape(second)
    if not one or not other or one[-1] != other[-2 if len(other) > 1 else -1]:
        raise c.invalid(f"a product of {list(one)} and {list(other)}")
    product = c.build.matmul(first, second)
    alpha = _real(c, "alpha", 1.0)
    return product if alpha == 1.0 else c.build.times(product, _number(alpha))


def _turned(c: Call, x: Operand) -> Operand:
    """The last two axes the other way round."""
    if isinstance(x, Tensor):
        return x.mT if x.ndim > 1 else x
    rank = x.rank
    return x if rank < 2 else c.build.transpose(x, [*range(rank - 2), rank - 1, rank - 2])


def _number(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


def _shape(x: Operand) -> tuple[int, ...]:
    return x.source_shape if isinstance(x, Value) else tuple(x.shape)


def _whole(c: Call, name: str) -> int:
    """A setting that is a whole number, 0 where it is left out; no schema of ONNX has looked at its type."""
    found = c.attribute(name, 0)
    if not isinstance(found, int):
        raise c.invalid(f"its {name} is no whole number")
    return found


def _real(c: Call, name: str, default: float) -> float:
    """A setting that is a number."""
    found = c.attribute(name, default)
    if not isinstance(found, float):
        raise c.invalid(f"its {name} is no number of type float")
    return found


# -- normalisation of a sum


@lower.register("com.microsoft::SkipLayerNormalization", "com.microsoft::SkipSimplifiedLayerNormalization")
def _skip_norm(c: Call) -> list[Value | None]:
    """The norm of input + skip + bias, and that sum as output 3."""
    if any(c.used[1:3]):
        raise c.refuse("gives the mean or the deviation of a norm", "export without these outputs")
    simple = c.op == "SkipSimplifiedLayerNormalization"
    weight, shift = c.stored(2, "weight"), None if simple else c.optional(3, "shift")
    bias, eps = c.optional(3 if simple else 4, "bias"), _real(c, "epsilon", _EPSILON)
    width = _shape(c.value())[-1:]
    for part in (weight, shift, bias):
        if part is not None and (not width or tuple(part.shape) != width):
            raise c.invalid(f"weights {list(part.shape)} for {list(_shape(c.value()))}")
    if eps < 0.0:
        raise c.invalid(f"its epsilon is {eps!r}")
    total = c.build.plus(c.value(), c.operand(1))
    if bias is not None:
        total = c.build.plus(total, bias)
    y = (
        c.build.rms_norm(total, 1, weight, eps)
        if simple
        else c.build.layer_norm(total, 1, weight, shift, eps)
    )
    return [y, None, None, total]


@lower.register("com.microsoft::EmbedLayerNormalization")
def _embedding(c: Call) -> NoReturn:
    raise c.refuse(
        "looks up token indices, which are no continuous input",
        "take a tensor behind it as the input, --input NAME (Python: input=)",
    )


# -- attention


@lower.register("com.microsoft::Attention")
def _attention(c: Call) -> Value:
    _no_past(c, (4, 6))
    if c.flag("do_rotary"):
        raise c.refuse(
            "rotates queries and keys by places it does not store", "export RotaryEmbedding on its own"
        )
    if c.raw(2) is None:
        # onnxruntime, which the import is compared with, ends the process.
        raise c.refuse("has no bias, without which onnxruntime cannot run it", "store a bias of zeros")
    x, weight, bias = c.value(), c.stored(1, "weights"), c.stored(2, "bias")
    if x.rank != 3 or weight.ndim != 2 or weight.shape[0] != x.source_shape[2]:
        raise c.invalid(f"weights {list(weight.shape)} for {list(x.source_shape)}")
    if tuple(bias.shape) != (weight.shape[1],):
        raise c.invalid(f"a bias {list(bias.shape)} for weights {list(weight.shape)}")
    sizes = c.attribute("qkv_hidden_sizes") or [weight.shape[1] // 3] * 3
    if not isinstance(sizes, list) or not all(isinstance(size, int) for size in sizes):
        raise c.invalid("its qkv_hidden_sizes are no list of whole numbers")
    if len(sizes) != 3 or sum(sizes) != weight.shape[1] or sizes[0] != sizes[1] or min(sizes) < 1:
        raise c.invalid(f"weights {list(weight.shape)} for queries, keys and values of sizes {sizes[:4]}")
    parts = [
        c.build.linear(x, w.mT.contiguous(), shift)
        for w, shift in zip(weight.split(sizes, 1), bias.split(sizes), strict=True)
    ]
    return _attended(c, *(_heads(c, part, _whole(c, "num_heads")) for part in parts), padding=3, added=5)


@lower.register("com.microsoft::MultiHeadAttention")
def _multi_head(c: Call) -> Value:
    _no_past(c, (6, 7, 8, 9))
    bias, heads = c.optional(3, "bias"), _whole(c, "num_heads")
    _one_by_one(c)
    parts = [c.value(position) for position in range(3)]
    for x, ranks in zip(parts, ((3,), (3, 4), (3, 4)), strict=True):
        # Keys and values may come as [batch, heads, places, size].
        if x.rank not in ranks or (x.rank == 4 and x.source_shape[1] != heads):
            raise c.invalid(f"{heads} heads of a tensor {list(x.source_shape)}")
    sizes = [x.source_shape[-1] if x.rank == 3 else heads * x.source_shape[3] for x in parts]
    if bias is not None and tuple(bias.shape) != (sum(sizes),):
        raise c.invalid(f"a bias {list(bias.shape)} for queries, keys and values of sizes {sizes}")
    shifts = (None,) * 3 if bias is None else bias.split(sizes)
    found = []
    for x, shift in zip(parts, shifts, strict=True):
        turned = _heads(c, x, heads) if x.rank == 3 else x
        if shift is not None:
            turned = c.build.plus(turned, shift.reshape(heads, 1, -1))
        found.append(turned)
    return _attended(c, *found, padding=4, added=5)


@lower.register("com.microsoft::GroupQueryAttention")
def _grouped(c: Call) -> Value:
    """Always causal; every key and value serves a group of queries."""
    if any(_given(c, i) for i in (3, 4)) or any(c.used[1:]):
        raise c.refuse("keeps keys and values of its past", "export the model without a cache")
    if c.flag("smooth_softmax") or any(_given(c, i) for i in range(11, 14)) or _real(c, "softcap", 0.0):
        raise c.refuse(
            "a softmax with a sink or a cap is not covered", "export with standard ONNX operators alone"
        )
    _one_by_one(c)
    if _given(c, 9) or _given(c, 10):
        raise c.refuse(
            "places and biases of its own are not covered", "export with standard ONNX operators alone"
        )
    counts = [_whole(c, "num_heads"), *[_whole(c, "kv_num_heads")] * 2]
    q, k, v = (_heads(c, c.value(i), count) for i, count in enumerate(counts))
    _fitting(c, q, k, v)
    places = q.source_shape[-2]
    lengths = c.ints(5, "lengths of sequences")
    if k.source_shape[-2] != places or lengths is None or any(n != places - 1 for n in lengths):
        raise c.refuse(
            f"sequences of other lengths than the {places} places of its input", "export without padding"
        )
    if c.flag("do_rotary"):
        cos, sin = _rotations(c, 7, q)
        if len(cos) < places:
            raise c.invalid(f"{len(cos)} stored rotations for {places} places")
        q, k = (rotated(c.build, x, cos[:places], sin[:places], c.flag("rotary_interleaved")) for x in (q, k))
    window = _whole(c, "local_window_size") if "local_window_size" in c.attributes else -1
    seen = causal(places, places, None if window < 0 else window)
    return _joined(c, attention(c.build, q, k, v, _factor(c, q), seen))


@lower.register("com.microsoft::RotaryEmbedding")
def _rotary(c: Call) -> Value:
    x, places = c.value(), c.array(1, "places")
    if _real(c, "scale", 1.0) != 1.0 or c.flag("is_packed_batching"):
        raise c.refuse(
            "scaled or packed rotations are not covered", "export with standard ONNX operators alone"
        )
    if x.rank not in (3, 4) or places.dtype != np.int64:
        raise c.invalid(f"places of {places.dtype} for {list(x.source_shape)}")
    cos, sin = _rotations(c, 2, x)
    count, width = _whole(c, "num_heads"), _whole(c, "rotary_embedding_dim") or 2 * cos.shape[1]
    if width != 2 * cos.shape[1]:
        raise c.invalid(f"rotations {list(cos.shape)} of {width} entries")
    heads = x if x.rank == 4 else _heads(c, x, count or x.source_shape[-1] // width)
    if width > heads.source_shape[-1]:
        raise c.invalid(f"rotations {list(cos.shape)} for {list(heads.source_shape)}")
    length = heads.source_shape[-2]
    rows = torch.arange(length) + int(places.reshape(-1)[0]) if places.size == 1 else _rows(c, places, length)
    if bool(((rows < 0) | (rows >= len(cos))).any()):
        raise c.invalid(f"places outside {len(cos)} stored rotations")
    turned = rotated(c.build, heads, cos[rows], sin[rows], c.flag("interleaved"))
    return turned if x.rank == 4 else _joined(c, turned)


def _rotations(c: Call, position: int, x: Value) -> tuple[Tensor, Tensor]:
    """Stored cosines and sines, [places, n] both, for at most as many pairs as x has."""
    cos, sin = c.stored(position, "cosines"), c.stored(position + 1, "sines")
    if cos.ndim != 2 or cos.shape != sin.shape or not cos.numel() or 2 * cos.shape[1] > x.source_shape[-1]:
        raise c.invalid(f"rotations {list(cos.shape)} and {list(sin.shape)} for {list(x.source_shape)}")
    return cos, sin


def _rows(c: Call, places: Stored, length: int) -> Tensor:
    if places.shape != (1, length):
        raise c.refuse(
            f"places {list(places.shape)} of a batch", "export with a batch of one or of open size"
        )
    return torch.from_numpy(places.astype(np.int64)).reshape(-1)


def _one_by_one(c: Call) -> None:
    if c.raw(1) is None or c.raw(2) is None:
        raise c.refuse(
            "queries, keys and values packed in one tensor are not covered", "export them one by one"
        )


def _fitting(c: Call, query: Value, key: Value, value: Value) -> None:
    """Queries [batch, heads, places, size], keys and values [batch, heads of keys, keys, ...], as many queries for each head."""
    q, k, v = (x.source_shape for x in (query, key, value))
    if q[0] != k[0] or k[:3] != v[:3] or q[3] != k[3] or q[1] % k[1]:
        raise c.invalid(
            f"queries {list(q)}, keys {list(k)} and values {list(v)} ([batch, heads, places, size])"
        )


def _heads(c: Call, x: Value, count: int) -> Value:
    """[batch, places, heads * size] -> [batch, heads, places, size]."""
    if x.rank != 3 or count < 1 or x.source_shape[2] % count:
        raise c.invalid(f"{count} heads of a tensor {list(x.source_shape)}")
    batch, places, width = x.source_shape
    return c.build.transpose(c.build.reshape(x, [batch, places, count, width // count]), [0, 2, 1, 3])


def _joined(c: Call, x: Value) -> Value:
    """[batch, heads, places, size] -> [batch, places, heads * size]."""
    batch, heads, places, size = x.source_shape
    return c.build.reshape(c.build.transpose(x, [0, 2, 1, 3]), [batch, places, heads * size])


def _given(c: Call, position: int) -> bool:
    """Whether an input has entries."""
    found = c.raw(position)
    return found is not None and not (isinstance(found, np.ndarray) and found.size == 0)


def _no_past(c: Call, positions: tuple[int, ...]) -> None:
    if any(_given(c, i) for i in positions) or any(c.used[1:]):
        raise c.refuse("keeps keys and values of its past", "export the model without a cache")


def _factor(c: Call, query: Value) -> Tensor:
    return _number(_real(c, "scale", 0.0) or 1.0 / math.sqrt(query.source_shape[-1]))


def _attended(c: Call, query: Value, key: Value, value: Value, *, padding: int, added: int) -> Value:
    """Attention with what hides keys: a stored mask of 0 and 1, numbers that are added, and the order of places."""
    _fitting(c, query, key, value)
    heads, places, keys = *query.source_shape[1:3], key.source_shape[-2]
    masks = []
    if _given(c, padding):
        mask = c.array(padding, "mask")
        if mask.dtype.kind not in "iu":
            raise c.refuse(
                f"a mask of {mask.dtype} is not covered",
                "store whole numbers, 0 where a key is hidden, or numbers that are added to the scores",
            )
        if mask.shape not in ((1, keys), (1, places, keys)):
            raise c.refuse(
                f"a mask {list(mask.shape)} is not covered",
                f"store it as [1, {keys}] or [1, {places}, {keys}]",
            )
        hidden = _real(c, "mask_filter_value", _HIDDEN)
        masks.append(torch.where(torch.from_numpy(mask != 0), 0.0, hidden).to(c.build.dtype).unsqueeze(1))
        masks[-1] = masks[-1].reshape(1, 1, -1, keys)
    if _given(c, added):
        numbers = c.array(added, "numbers for the scores")
        if (
            numbers.dtype.kind != "f"
            or numbers.ndim != 4
            or numbers.shape[0] != 1
            or numbers.shape[1] not in (1, heads)
            or numbers.shape[2:] != (places, keys)
        ):
            raise c.invalid(
                f"numbers of {numbers.dtype} {list(numbers.shape)} for scores [1, {heads}, {places}, {keys}]"
            )
        masks.append(torch.from_numpy(numbers.copy()))
    if c.flag("unidirectional"):
        if places != keys:
            raise c.refuse(f"an order of {places} places and {keys} keys", "leave the order to a mask")
        masks.append(causal(places, keys))
    return _joined(c, attention(c.build, query, key, value, _factor(c, query), *masks))
