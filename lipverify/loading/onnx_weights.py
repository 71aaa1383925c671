"""Large stored tensors of an ONNX file beside its message, so that they are in memory once.

Protobuf copies bytes when it parses, gives them out and writes them, and frees none of them before the whole message: a file
of 500 MB would be there four times. Here the raw bytes of large tensors never enter a message. The arrays that hold them are
the parameters of the graph, and what a reader of the original computes with.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lipverify.loading.onnx_scan import varint

LARGE = 1 << 20
"""Bytes from which a stored tensor of the main graph is held beside the message."""

Held = dict[str, NDArray[Any]]
"""Large stored tensors of the main graph by name. The arrays can be written to, as torch asks of memory that it shares; nothing
does."""

TYPES = {1: "<f4", 2: "u1", 3: "i1", 6: "<i4", 7: "<i8", 10: "<f2", 11: "<f8"}
"""Codes of onnx.TensorProto.DataType, and how numpy calls what the raw bytes are."""

_BYTES = 2


class _Found(NamedTuple):
    """One field of a message: its number, where it begins with its tag, where its bytes begin and end."""

    number: int
    begin: int
    start: int
    stop: int


def without_large(data: bytes) -> tuple[bytes, dict[str, bytearray]]:
    """A scanned model (`scan`) without the raw bytes of large tensors, and those bytes by the tensors' names.

    Tensors without a name, of a name that another has, or of a type that numpy lacks stay as they are.
    """
    import onnx

    graph, stored = _number(onnx.ModelProto, "graph"), _number(onnx.GraphProto, "initializer")
    taken: dict[str, bytearray] = {}
    pieces: list[bytes] = []
    for field in _fields(data, 0, len(data)):
        if field.number != graph:
            pieces.append(data[field.begin : field.stop])
            continue
        inside: list[bytes] = []
        done = field.start
        for tensor in _fields(data, field.start, field.stop):
            place = _large(data, tensor, taken) if tensor.number == stored else None
            if place is None:
                continue
            name, raw = place
            taken[name] = bytearray(memoryview(data)[raw.start : raw.stop])
            inside += [data[done : tensor.begin], _message(stored, [
                data[tensor.start : raw.begin], data[raw.stop : tensor.stop]])]  # fmt: skip
            done = tensor.stop
        pieces.append(_message(graph, [*inside, data[done : field.stop]]))
    return (b"".join(pieces), taken) if taken else (data, {})


def _large(data: bytes, tensor: _Found, taken: Mapping[str, Any]) -> tuple[str, _Found] | None:
    """Name and raw bytes of a tensor that is held beside the message."""
    import onnx

    if tensor.stop - tensor.start < LARGE:
        return None
    names = ("name", "raw_data", "data_type", "dims", "doc_string")
    numbers = {name: _number(onnx.TensorProto, name) for name in names}
    found = {field.number: field for field in _fields(data, tensor.start, tensor.stop)}
    name, raw, kind = (found.get(numbers[key]) for key in names[:3])
    # One that has data elsewhere too contradicts itself: it stays whole, and is refused.
    if name is None or raw is None or kind is None or not found.keys() <= set(numbers.values()):
        return None
    if raw.stop - raw.start < LARGE:
        return None
    try:
        words = data[name.start : name.stop].decode()
    except UnicodeDecodeError:
        return None
    code, _ = varint(data, kind.start, kind.stop, "")
    return (words, raw) if words and words not in taken and code in TYPES else None


def _fields(data: bytes, start: int, stop: int) -> Iterator[_Found]:
    """The fields of a message that was scanned before: every length fits."""
    position = start
    while position < stop:
        begin = position
        tag, position = varint(data, position, stop, "")
        number, wire = tag >> 3, tag & 7
        inner = position
        if wire == _BYTES:
            length, inner = varint(data, position, stop, "")
            position = inner + length
        elif wire == 0:
            _, position = varint(data, position, stop, "")
        else:
            position += 8 if wire == 1 else 4
        yield _Found(number, begin, inner, position)


def _number(message: Any, name: str) -> int:
    number: int = message.DESCRIPTOR.fields_by_name[name].number
    return number


def _message(number: int, pieces: list[bytes]) -> bytes:
    """The field of this number that holds these bytes."""
    return b"".join([_varint(number << 3 | _BYTES), _varint(sum(map(len, pieces))), *pieces])


def _varint(value: int) -> bytes:
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    found.append(value)
    return bytes(found)


def array(tensor: Any, data: bytearray) -> NDArray[Any]:
    """The bytes of one tensor as what its message says, shared; its size was compared before."""
    return np.frombuffer(data, TYPES[tensor.data_type]).reshape(tuple(tensor.dims))


def holdable(tensor: Any) -> bool:
    """Whether a tensor whose data lies outside the file is held beside the message."""
    if not tensor.name or tensor.data_type not in TYPES:
        return False
    size: int = math.prod(tensor.dims) * np.dtype(TYPES[tensor.data_type]).itemsize
    return size >= LARGE


def completed(model: Any, held: Mapping[str, NDArray[Any]]) -> Any:
    """The model with all its tensors inside, for readers that know messages alone: the model itself where none is held."""
    import onnx

    if not held:
        return model
    whole = onnx.ModelProto()
    whole.CopyFrom(model)
    for tensor in whole.graph.initializer:
        if tensor.name in held and not tensor.raw_data:
            tensor.raw_data = held[tensor.name].tobytes()
    return whole
