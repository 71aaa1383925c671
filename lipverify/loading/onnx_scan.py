"""A look at the wire format of an ONNX file before any library builds objects from it.

An empty node takes 2 bytes in the file and about 160 in memory, and many tools take time exponential in the
nesting of subgraphs. The scan walks all messages with an explicit stack and stops at the first limit, so its time
and memory are bounded by the limits and not by what the file claims.

It is strict, so that a file has one meaning for every reader: a field that the ONNX format does not have (bytes in
front of the model or behind it are such fields), a field of another wire type, and a second value for a field that
holds one are refused. Protobuf itself skips the first two and merges or overwrites the third.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

from lipverify.errors import InvalidFile, UnsupportedModel
from lipverify.loading.files import Path
from lipverify.loading.names import sentence

MAX_NODES = 50_000
MAX_NESTING = 8
MAX_FIELDS = 2_000_000

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_MODEL, _GRAPH, _NODE = "onnx.ModelProto", "onnx.GraphProto", "onnx.NodeProto"


class _Field(NamedTuple):
    """name: for messages; wires: allowed wire types; once: a bit that may be set once, 0 for repeated fields; inside: the
    message in it."""

    name: str
    wires: tuple[int, ...]
    once: int
    inside: str | None


@cache
def _messages() -> dict[str, dict[int, _Field]]:
    """Every message of the ONNX format that the installed onnx knows: field number -> what may stand there."""
    import onnx

    found: dict[str, dict[int, _Field]] = {}
    waiting = [onnx.ModelProto.DESCRIPTOR]
    while waiting:
        message = waiting.pop()
        if message.full_name in found:
            continue
        fields = found[message.full_name] = {}
        for field in message.fields:
            child = field.message_type
            fields[field.number] = _Field(field.name, _wires(field), _bit(field), child and child.full_name)
            if child is not None:
                waiting.append(child)
    return found


def _wires(field: object) -> tuple[int, ...]:
    """Wire types of a field; repeated numbers may also be packed into one run of bytes."""
    kind = field.type  # type: ignore[attr-defined]
    if kind in (9, 10, 11, 12):  # string, group, message, bytes
        return (_BYTES,)
    wire = _FIXED64 if kind in (1, 6, 16) else _FIXED32 if kind in (2, 7, 15) else _VARINT
    return (wire, _BYTES) if _repeated(field) else (wire,)


def _repeated(field: object) -> bool:
    found: bool = field.is_repeated if hasattr(field, "is_repeated") else field.label == 3  # type: ignore[attr-defined]
    return found


def _bit(field: object) -> int:
    """Fields of which only one may be there share a bit."""
    if _repeated(field):
        return 0
    choice = field.containing_oneof  # type: ignore[attr-defined]
    number: int = field.number if choice is None else min(other.number for other in choice.fields)  # type: ignore[attr-defined]
    return 1 << number


def scan(data: bytes, path: Path) -> int:
    """The number of nodes, subgraphs and functions included.

    Raises UnsupportedModel above MAX_NODES, MAX_NESTING levels of subgraphs or MAX_FIELDS fields, InvalidFile
    when the bytes are not one ONNX model and nothing else.
    """
    messages = _messages()
    nodes = count = 0
    waiting = [(_MODEL, 0, len(data), 0)]
    while waiting:
        message, position, stop, depth = waiting.pop()
        fields = messages[message]
        seen = 0
        while position < stop:
            count += 1
            if count > MAX_FIELDS:
                raise _too_large(path, f"more than {MAX_FIELDS} fields")
            tag, position = varint(data, position, stop, path)
            number, wire = tag >> 3, tag & 7
            if wire == _VARINT:
                _, position = varint(data, position, stop, path)
            elif wire == _BYTES:
                length, position = varint(data, position, stop, path)
                start, position = position, position + length
            elif wire in (_FIXED64, _FIXED32):
                position += 8 if wire == _FIXED64 else 4
            else:
                raise _damaged(path)
            if position > stop or number == 0:
                raise _damaged(path)
            field = fields.get(number)
            if field is None or wire not in field.wires:
                raise _foreign(path, message, number)
            if seen & field.once:
                raise _twice(path, message, field.name)
            seen |= field.once
            if field.inside is not None:
                nodes += field.inside == _NODE
                deeper = depth + (field.inside == _GRAPH)
                if nodes > MAX_NODES:
                    raise _too_large(path, f"more than {MAX_NODES} nodes")
                if deeper > MAX_NESTING:
                    raise _too_large(path, f"subgraphs nested more than {MAX_NESTING} deep")
                waiting.append((field.inside, start, position, deeper))
    return nodes


def varint(data: bytes, position: int, stop: int, path: Path) -> tuple[int, int]:
    """A number of the wire format, and where it ends. Raises InvalidFile where none does."""
    value = shift = 0
    while position < stop and shift < 70:
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
    raise _damaged(path)


def _too_large(path: Path, what: str) -> UnsupportedModel:
    return UnsupportedModel(sentence(path, f"the ONNX graph has {what}", "export a smaller, flat graph"))


def _damaged(path: Path) -> InvalidFile:
    return InvalidFile(sentence(path, "is a damaged ONNX file (not a protobuf message)", "export it again"))


def _foreign(path: Path, message: str, number: int) -> InvalidFile:
    what = (
        f"holds data that is no part of the ONNX format (field {number} of {message.removeprefix('onnx.')})"
    )
    return InvalidFile(sentence(path, what, "export it again"))


def _twice(path: Path, message: str, name: str) -> InvalidFile:
    what = f'gives field "{name}" of {message.removeprefix("onnx.")} twice'
    return InvalidFile(sentence(path, what, "export it again"))
