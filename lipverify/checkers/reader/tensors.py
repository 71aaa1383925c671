"""Stored tensors of ONNX files: numbers of one known type, in one place, in each of the forms that they may be written in."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from lipverify.checkers.kernel.program import Array
from lipverify.checkers.reader.building import BFLOAT16, INT4, MAX_AXES, UINT4
from lipverify.checkers.reader.refusals import need
from lipverify.checkers.reader.wire import Message

KINDS = {
    1: ("<f4", "float_data"), 2: ("u1", "int32_data"), 3: ("i1", "int32_data"), 4: ("<u2", "int32_data"),
    5: ("<i2", "int32_data"), 6: ("<i4", "int32_data"), 7: ("<i8", "int64_data"), 9: ("?", "int32_data"),
    10: ("<f2", "int32_data"), 11: ("<f8", "double_data"), 12: ("<u4", "uint64_data"), 13: ("<u8", "uint64_data"),
}  # fmt: skip
"""Element type -> numbers, and the field that lists them where they are not raw."""
_NARROW = {16: BFLOAT16, 21: UINT4, 22: INT4}
"""Stored alone; no input and no computed number is of these types."""
_DATA = ("raw_data", "float_data", "int32_data", "int64_data", "double_data", "uint64_data")


def tensor(entry: Message) -> Array:
    """A stored tensor: numbers of one known type, as many as its shape says, in one place."""
    need(entry.get("data_location", 0) == 0, "external data is not covered by the checker")
    shape, kind = entry["dims"], entry.get("data_type", 0)
    need(len(shape) <= MAX_AXES and all(n >= 0 for n in shape), "a stored tensor of an invalid shape")
    if kind in _NARROW:
        return _narrow(entry, _NARROW[kind], math.prod(shape)).reshape(shape)
    need(kind in KINDS, f"element type {kind} is not covered by the checker")
    form, typed = KINDS[kind]
    dtype, count = np.dtype(form), math.prod(shape)
    filled = [name for name in _DATA if name in entry and len(entry[name])]
    need(filled in ([], ["raw_data"], [typed]), "a stored tensor with data of another type")
    need(filled or count == 0, "a stored tensor without data")
    if filled == [typed]:
        return known(_listed(entry[typed], dtype, count).reshape(shape))
    raw = entry.get("raw_data", b"")
    need(len(raw) == count * dtype.itemsize, "a stored tensor of another size")
    need(form != "?" or not np.any(np.frombuffer(raw, "u1") > 1), "a truth value other than 0 and 1")
    return known(np.frombuffer(raw, dtype, count).reshape(shape))


def _narrow(entry: Message, kind: np.dtype[Any], count: int) -> Array:
    """Numbers of 16 bits that are the upper half of a float32, or two of 4 bits in a byte, the lower half first."""
    filled = [name for name in _DATA if name in entry and len(entry[name])]
    need(filled in ([], ["raw_data"], ["int32_data"]), "a stored tensor with data of another type")
    size = np.dtype("<u2") if kind == BFLOAT16 else np.dtype("u1")
    words = count if kind == BFLOAT16 else (count + 1) // 2
    if filled == ["int32_data"]:
        bits = _listed(entry["int32_data"], size, words)
    else:
        raw = entry.get("raw_data", b"")
        need(len(raw) == words * size.itemsize, "a stored tensor of another size")
        bits = np.frombuffer(raw, size, words)
    found = np.empty(count, kind)
    (name,) = kind.names or ()
    if kind == BFLOAT16:
        found[name] = known((bits.astype("<u4") << 16).view("<f4"))
        return found
    halves = np.stack([bits & 15, bits >> 4], 1).reshape(-1)
    need(count % 2 == 0 or not halves[-1:].any(), "a stored number behind the last one")
    halves = halves[:count].astype("i1")
    found[name] = halves if kind == UINT4 else halves - 16 * (halves > 7).astype("i1")
    return found


def _listed(numbers: Sequence[Any], dtype: np.dtype[Any], count: int) -> Array:
    """Numbers of a typed field, every one within the type of the tensor."""
    if dtype.kind == "f" and dtype.itemsize > 2:
        flat: Array = np.concatenate([np.atleast_1d(np.asarray(n, dtype)) for n in numbers])
        need(len(flat) == count, "a stored tensor of another size")
        return flat
    need(len(numbers) == count, "a stored tensor of another size")
    wide = np.array(numbers, np.uint64 if dtype.kind == "u" and dtype.itemsize == 8 else np.int64)
    bits = np.dtype("<u2") if dtype.kind == "f" else dtype
    narrow = wide.astype(bits)
    need(bool((narrow == wide).all()), "a stored number that its type cannot hold")
    return narrow.view(dtype) if dtype.kind == "f" else narrow


def known(array: Array) -> Array:
    """Numbers, and -infinity, which a mask ahead of a softmax has and nothing else reads."""
    good = array.dtype.kind != "f" or bool((array < np.inf).all())
    need(good, "a stored tensor that is not finite")
    return array
