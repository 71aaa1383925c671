"""A look at the wire format of an ONNX file before any library builds objects from it.

An empty node takes 2 bytes in the file and about 160 in memory, and many tools take time exponential in the
nesting of subgraphs. The scan walks nodes and subgraphs with an explicit stack and stops at the first limit, so
its time and memory are bounded by the limits and not by what the file claims.
"""

from __future__ import annotations

from lipverify.errors import InvalidFile, UnsupportedModel
from lipverify.loading.files import Path
from lipverify.loading.names import sentence

MAX_NODES = 50_000
MAX_NESTING = 8
MAX_FIELDS = 2_000_000

# message -> {field number: message inside}; every other field is stepped over.
_INSIDE: dict[str, dict[int, str]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node"},
    "graph": {1: "node", 5: "tensor"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph"},
    "tensor": {},
}
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


def scan(data: bytes, path: Path) -> int:
    """The number of nodes, subgraphs and functions included.

    Raises UnsupportedModel above MAX_NODES, MAX_NESTING levels of subgraphs or MAX_FIELDS fields, InvalidFile
    when the bytes are not a protobuf message.
    """
    nodes = fields = 0
    waiting = [("model", 0, len(data), 0)]
    while waiting:
        message, position, stop, depth = waiting.pop()
        inside = _INSIDE[message]
        while position < stop:
            fields += 1
            if fields > MAX_FIELDS:
                raise _too_large(path, f"more than {MAX_FIELDS} fields")
            tag, position = _varint(data, position, stop, path)
            number, wire = tag >> 3, tag & 7
            if wire == _VARINT:
                _, position = _varint(data, position, stop, path)
            elif wire == _BYTES:
                length, position = _varint(data, position, stop, path)
                child = inside.get(number)
                if child is not None and position + length <= stop:
                    nodes += child == "node"
                    deeper = depth + (child == "graph")
                    if nodes > MAX_NODES:
                        raise _too_large(path, f"more than {MAX_NODES} nodes")
                    if deeper > MAX_NESTING:
                        raise _too_large(path, f"subgraphs nested more than {MAX_NESTING} deep")
                    waiting.append((child, position, position + length, deeper))
                position += length
            elif wire in (_FIXED64, _FIXED32):
                position += 8 if wire == _FIXED64 else 4
            else:
                raise _damaged(path)
            if position > stop or number == 0:
                raise _damaged(path)
    return nodes


def _varint(data: bytes, position: int, stop: int, path: Path) -> tuple[int, int]:
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
