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
    return c.build.elementwise(ops.SiLU(c.attribute("alpha", _QUICK)), c.value())


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
    product = c.build.matmul(first, second)
    alpha = c.attribute("alpha", 1.0)
    return product if alpha == 1.0 else c.build.times(product, _number(alpha))


def _turned(c: Call, x: Operand) -> Operand:
    """The last two axes the other way round."""
    if isinstance(x, Tensor):
        return x.mT if x.ndim > 1 else x
    rank = x.rank
    return x if rank < 2 else c.build.transpose(x, [*range(rank - 2), rank - 1, rank - 2])


def _number(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


# -- normalisation of a sum


@lower.register("com.microsoft::SkipLayerNormalization", "com.microsoft::SkipSimplifiedLayerNormalization")
def _skip_norm(c: Call) -> list[Value | None]:
    """The norm of input + skip + bias, and that sum as output 3."""
    if any(c.used[1:3]):
        raise c.refuse("gives the mean or the deviation of a norm", "export without these outputs")
    simple = c.op == "SkipSimplifiedLayerNormalization"
    bias = c.raw(3 if simple else 4)
    total = c.build.plus(c.value(), c.operand(1))
    if bias is not None:
        total = c.build.plus(total, c.stored(3 if simple else 4, "bias"))
    weight, eps = c.stored(2, "weight"), c.attribute("epsilon", _EPSILON)
    y = (
        c.build.rms_norm(total, 1, weight, eps)
        if simple
        else c.build.layer_norm(total, 1, weight, c.optional(3, "shift"), eps)
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
    x, weight, bias = c.value(), c.stored(1, "weights"), c.optional(2, "bias")
    if weight.ndim != 2 or (bias is not None and tuple(bias.shape) != (weight.shape[1],)):
        raise c.invalid(f"weights {list(weight.shape)} that do not fit its bias")
    sizes = c.attribute("qkv_hidden_sizes") or [weight.shape[1] // 3] * 3
    if len(sizes) != 3 or sum(sizes) != weight.shape[1] or sizes[0] != sizes[1] or min(sizes) < 1:
        raise c.invalid(f"weights {list(weight.shape)} for queries, keys and values of sizes {sizes}")
    biases = (None,) * 3 if bias is None else bias.split(sizes)
    parts = [
        c.build.linear(x, w.mT.contiguous(), shift)
        for w, shift in zip(weight.split(sizes, 1), biases, strict=True)
    ]
    return _attended(c, *(_heads(c, part, _count(c)) for part in parts), padding=3, added=5)


@lower.register("com.microsoft::MultiHeadAttention")
def _multi_head(c: Call) -> Value:
    _no_past(c, (6, 7, 8, 9))
    bias, heads = c.optional(3, "bias"), _count(c)
    if c.value().rank != 3 or c.raw(1) is None or c.raw(2) is None:
        raise c.refuse(
            "queries, keys and values packed in one tensor are not covered", "export them one by one"
        )
    found, start = [], 0
    for position in range(3):
        x = c.value(position)
        if bias is not None:
            size = x.source_shape[-1] if x.rank == 3 else x.source_shape[1] * x.source_shape[3]
            part, start = bias[start : start + size], start + size
            shape = (size,) if x.rank == 3 else (heads, 1, size // heads)
            if part.numel() != size:
                raise c.invalid(f"a bias {list(bias.shape)} for {list(x.source_shape)}")
            x = c.build.plus(x, part.reshape(shape))
        found.append(_heads(c, x, heads) if x.rank == 3 else x)
    return _attended(c, *found, padding=4, added=5)


@lower.register("com.microsoft::GroupQueryAttention")
def _grouped(c: Call) -> Value:
    """Always causal; every key and value serves a group of queries."""
    if any(_given(c, i) for i in (3, 4)) or any(c.used[1:]):
        raise c.refuse("keeps keys and values of its past", "export the model without a cache")
    if c.flag("smooth_softmax") or any(_given(c, i) for i in range(11, 14)) or c.attribute("softcap", 0.0):
        raise c.refuse(
            "a softmax with a sink or a cap is not covered", "export with standard ONNX operators alone"
        )
    if c.raw(1) is None or c.raw(2) is None:
        raise c.refuse(
            "queries, keys and values packed in one tensor are not covered", "export them one by one"
        )
    if _given(c, 9) or _given(c, 10):
        raise c.refuse(
            "places and biases of its own are not covered", "export with standard ONNX operators alone"
        )
    counts = [c.attribute("num_heads", 0), *[c.attribute("kv_num_heads", 0)] * 2]
    q, k, v = (_heads(c, c.value(i), count) for i, count in enumerate(counts))
    places = q.source_shape[-2]
    lengths = c.ints(5, "lengths of sequences")
    if k.source_shape[-2] != places or lengths is None or any(n != places - 1 for n in lengths):
        raise c.refuse(
            f"sequences of other lengths than the {places} places of its input", "export without padding"
        )
    if c.flag("do_rotary"):
        cos, sin = (c.stored(i, "rotation")[:places] for i in (7, 8))
        if (
            cos.ndim != 2
            or cos.shape != sin.shape
            or len(cos) != places
            or 2 * cos.shape[1] > q.source_shape[-1]
        ):
            raise c.invalid(f"rotations {list(cos.shape)} for {list(q.source_shape)}")
        q, k = (rotated(c.build, x, cos, sin, c.flag("rotary_interleaved")) for x in (q, k))
    window = c.attribute("local_window_size", -1)
    seen = causal(places, places, None if window < 0 else window)
    return _joined(c, attention(c.build, q, k, v, _factor(c, q), seen))


@lower.register("com.microsoft::RotaryEmbedding")
def _rotary(c: Call) -> Value:
    x, places = c.value(), c.array(1, "places")
    cos, sin = c.stored(2, "cosines"), c.stored(3, "sines")
    if c.attribute("scale", 1.0) != 1.0 or c.flag("is_packed_batching"):
        raise c.refuse(
            "scaled or packed rotations are not covered", "export with standard ONNX operators alone"
        )
    count, width = c.attribute("num_heads", 0), c.attribute("rotary_embedding_dim", 0) or 2 * cos.shape[-1]
    heads = x if x.rank == 4 else _heads(c, x, count or x.source_shape[-1] // width)
    length = heads.source_shape[-2]
    rows = torch.arange(length) + int(places.reshape(-1)[0]) if places.size == 1 else _rows(c, places, length)
    if cos.ndim != 2 or cos.shape != sin.shape or 2 * cos.shape[1] != width or width > heads.source_shape[-1]:
        raise c.invalid(f"rotations {list(cos.shape)} for {list(heads.source_shape)}")
    if bool(((rows < 0) | (rows >= len(cos))).any()):
        raise c.invalid(f"places outside {len(cos)} stored rotations")
    turned = rotated(c.build, heads, cos[rows], sin[rows], c.flag("interleaved"))
    return turned if x.rank == 4 else _joined(c, turned)


def _rows(c: Call, places: Stored, length: int) -> Tensor:
    if places.shape != (1, length):
        raise c.refuse(
            f"places {list(places.shape)} of a batch", "export with a batch of one or of open size"
        )
    return torch.from_numpy(places.astype(np.int64)).reshape(-1)


def _count(c: Call) -> int:
    found: int = c.attribute("num_heads", 0)
    return found


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
    return _number(c.attribute("scale", 0.0) or 1.0 / math.sqrt(query.source_shape[-1]))


def _attended(c: Call, query: Value, key: Value, value: Value, *, padding: int, added: int) -> Value:
    """Attention with what hides keys: a stored mask of 0 and 1, numbers that are added, and the order of places."""
    places, keys = query.source_shape[-2], key.source_shape[-2]
    masks = []
    if _given(c, padding):
        mask = c.array(padding, "mask")
        if mask.dtype.kind not in "iu" or mask.shape not in ((1, keys), (1, places, keys)):
            raise c.refuse(
                f"a mask {list(mask.shape)} is not covered",
                f"store it as [1, {keys}] or [1, {places}, {keys}]",
            )
        hidden = c.attribute("mask_filter_value", _HIDDEN)
        masks.append(torch.where(torch.from_numpy(mask != 0), 0.0, hidden).to(c.build.dtype).unsqueeze(1))
        masks[-1] = masks[-1].reshape(1, 1, -1, keys)
    if _given(c, added):
        numbers = c.array(added, "numbers for the scores")
        masks.append(torch.from_numpy(numbers.copy()))
    if c.flag("unidirectional"):
        if places != keys:
            raise c.refuse(f"an order of {places} places and {keys} keys", "leave the order to a mask")
        masks.append(causal(places, keys))
    return _joined(c, attention(c.build, query, key, value, _factor(c, query), *masks))
