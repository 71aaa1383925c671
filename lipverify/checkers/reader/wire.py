"""Protobuf messages of ONNX, read strictly: what is not listed here is refused, and nothing large is made before it is measured.

Two libraries may read one file as two models where it repeats a field, hides one behind an unknown number or wire type, or
writes a number in more bytes than it needs. Here every byte belongs to one listed field, and every field that is not repeated
occurs once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from lipverify.checkers.kernel.account import charge
from lipverify.checkers.reader.refusals import need
from lipverify.errors import NotCovered

MAX_FIELDS, MAX_MESSAGES, MAX_NODES = 2_000_000, 400_000, 50_000
_LOOK, _TOP = 1 << 12, 1 << 16
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_FIXED = {"float": (_FIXED32, "<f4"), "double": (_FIXED64, "<f8")}
_RANGES = {
    "int64": (-(2**63), 2**63),
    "int32": (-(2**31), 2**31),
    "enum": (0, 2**31),
    "uint64": (0, 2**64),
}

_PLAIN = (
    "1 name string, 2 f float, 3 i int64, 4 s bytes, 5 t Tensor, 7 floats *float, 8 ints *int64, 9 strings *bytes, "
    "13 doc_string string, 20 type enum"
)
# Message: "number name type" of every field that is read; * repeated. What is refused with a reason of its own is in _REFUSED.
_FIELDS = {
    "Model": "1 ir_version int64, 2 producer_name string, 3 producer_version string, 4 domain string, 5 model_version int64, "
    "6 doc_string string, 7 graph Graph, 8 opset_import *OperatorSet, 14 metadata_props *Entry",
    "OperatorSet": "1 domain string, 2 version int64",
    "Entry": "1 key string, 2 value string",
    "Graph": "1 node *Node, 2 name string, 5 initializer *Tensor, 10 doc_string string, 11 input *ValueInfo, "
    "12 output *ValueInfo, 13 value_info *ValueInfo, 16 metadata_props *Entry",
    "Node": "1 input *string, 2 output *string, 3 name string, 4 op_type string, 5 attribute *Attribute, "
    "6 doc_string string, 7 domain string, 8 overload string, 9 metadata_props *Entry",
    "Attribute": f"{_PLAIN}, 6 g Body",
    # A body of If, Loop or Scan, whose own operators have none.
    "Body": "1 node *Inner, 2 name string, 5 initializer *Tensor, 10 doc_string string, 11 input *ValueInfo, "
    "12 output *ValueInfo, 13 value_info *ValueInfo, 16 metadata_props *Entry",
    "Inner": "1 input *string, 2 output *string, 3 name string, 4 op_type string, 5 attribute *Plain, "
    "6 doc_string string, 7 domain string, 8 overload string, 9 metadata_props *Entry",
    "Plain": _PLAIN,
    "Tensor": "1 dims *int64, 2 data_type int32, 4 float_data *float, 5 int32_data *int32, 7 int64_data *int64, 8 name string, "
    "9 raw_data bytes, 10 double_data *double, 11 uint64_data *uint64, 12 doc_string string, 14 data_location enum, "
    "16 metadata_props *Entry",
    "ValueInfo": "1 name string, 2 type Type, 3 doc_string string, 4 metadata_props *Entry",
    "Type": "1 tensor_type TensorType, 6 denotation string",
    "TensorType": "1 elem_type int32, 2 shape Shape",
    "Shape": "1 dim *Dimension",
    "Dimension": "1 dim_value int64, 2 dim_param string, 3 denotation string",
}
_REFUSED = {
    ("Model", 20): "training information is",
    ("Model", 25): "functions are",
    ("Model", 26): "configurations of devices are",
    ("Graph", 14): "quantisation annotations are",
    ("Graph", 15): "sparse initialisers are",
    ("Node", 10): "configurations of devices are",
    ("Attribute", 10): "lists of tensors are",
    ("Plain", 6): "subgraphs in subgraphs are",
    ("Plain", 10): "lists of tensors are",
    ("Plain", 11): "subgraphs are",
    ("Inner", 10): "configurations of devices are",
    ("Body", 14): "quantisation annotations are",
    ("Body", 15): "sparse initialisers are",
    ("Attribute", 11): "subgraphs are",
    ("Attribute", 14): "types as attributes are",
    ("Attribute", 15): "types as attributes are",
    ("Attribute", 21): "attributes of functions are",
    ("Attribute", 22): "sparse tensors are",
    ("Attribute", 23): "sparse tensors are",
    ("Tensor", 3): "tensors in segments are",
    ("Tensor", 6): "strings are",
    ("Tensor", 13): "external data is",
    ("Type", 4): "sequences are",
    ("Type", 5): "maps are",
    ("Type", 7): "opaque types are",
    ("Type", 8): "sparse tensors are",
    ("Type", 9): "optional values are",
}


class Message(dict[str, Any]):
    """Fields by name. Repeated fields are lists, and empty where absent: an empty message takes no room for them."""

    __slots__ = ()

    def __missing__(self, name: str) -> Any:
        return ()


class _Field(NamedTuple):
    name: str
    kind: str
    repeated: bool


def _fields(text: str) -> dict[int, _Field]:
    rows = [row.split() for row in text.split(", ")]
    return {int(n): _Field(name, kind.lstrip("*"), kind.startswith("*")) for n, name, kind in rows}


_SCHEMA = {message: _fields(text) for message, text in _FIELDS.items()}


class _Reader:
    """The bytes of one file, and how many fields have been read."""

    def __init__(self, data: bytes) -> None:
        self.data, self.fields, self.messages, self.nodes = data, 0, 0, 0

    def varint(self, position: int, stop: int) -> tuple[int, int]:
        value = 0
        for shift in range(0, 70, 7):
            need(position < stop, "the file ends within a number")
            byte = self.data[position]
            value |= (byte & 0x7F) << shift
            position += 1
            if byte < 0x80:
                need(
                    (byte or not shift) and value < 1 << 64,
                    "a number that is not written in its shortest form",
                )
                return value, position
        need(False, "a number of more than ten bytes")
        raise AssertionError("unreachable")

    def count(self) -> None:
        """One field more."""
        self.fields += 1
        if self.fields % _LOOK == 0:
            charge(0)  # whoever waits may have waited long enough
        if self.fields > MAX_FIELDS:
            raise NotCovered(f"a file of more than {MAX_FIELDS} fields is not covered by the checker")

    def message(self, kind: str, position: int, stop: int) -> Message:
        """One message. Messages nest as deep as the table does: none of them holds itself."""
        known: dict[int, _Field] = _SCHEMA[kind]
        found = Message()
        data = self.data
        while position < stop:
            self.count()
            tag = data[position]
            if tag < 0x80:
                position += 1
            else:
                tag, position = self.varint(position, stop)
            field = known.get(tag >> 3)
            if field is None:
                raise NotCovered(_unknown(kind, tag >> 3))
            if not field.repeated and field.name in found:
                raise NotCovered(f"{field.name} of {kind} occurs twice")
            position = self.field(field, tag & 7, position, stop, found)
        return found

    def field(self, field: _Field, wire: int, position: int, stop: int, found: Message) -> int:
        """One field after its tag, into `found`; the position behind it."""
        if wire != _BYTES:
            value, position = self.number(field, wire, position, stop)
            _put(found, field, value)
            return position
        length, position = self.varint(position, stop)
        end = position + length
        need(end <= stop, "a field reaches past the end of what holds it")
        if field.kind in _SCHEMA:
            self.messages += 1
            self.nodes += field.kind in ("Node", "Inner")
            need(
                self.messages <= MAX_MESSAGES,
                "a file of more than 400000 messages is not covered by the checker",
            )
            need(self.nodes <= MAX_NODES, "a graph of more than 50000 nodes is not covered by the checker")
            _put(found, field, self.message(field.kind, position, end))
        elif field.kind == "bytes":
            _put(found, field, self.data[position:end])
        elif field.kind == "string":
            _put(found, field, _text(self.data[position:end]))
        else:
            need(field.repeated, f"{field.name} has the wrong wire type")
            self.packed(field, position, end, found)
        return end

    def number(self, field: _Field, wire: int, position: int, stop: int) -> tuple[Any, int]:
        if field.kind in _FIXED:
            expected, form = _FIXED[field.kind]
            need(wire == expected, f"{field.name} has the wrong wire type")
            size = int(form[-1])
            need(position + size <= stop, "the file ends within a number")
            return float(np.frombuffer(self.data, form, 1, position)[0]), position + size
        need(field.kind in _RANGES and wire == _VARINT, f"{field.name} has the wrong wire type")
        value, position = self.varint(position, stop)
        low, high = _RANGES[field.kind]
        value -= 1 << 64 if low < 0 and value >> 63 else 0
        need(low <= value < high, f"{field.name} is out of range")
        return value, position

    def packed(self, field: _Field, position: int, end: int, found: Message) -> None:
        if field.kind in _FIXED:
            _, form = _FIXED[field.kind]
            need((end - position) % int(form[-1]) == 0, f"{field.name} is cut off")
            count = (end - position) // int(form[-1])
            found.setdefault(field.name, []).append(np.frombuffer(self.data, form, count, position))
            return
        while position < end:
            self.fields += 1
            need(self.fields <= MAX_FIELDS, f"a file of more than {MAX_FIELDS} fields")
            value, position = self.number(field, _VARINT, position, end)
            found.setdefault(field.name, []).append(value)


def _unknown(kind: str, number: int) -> str:
    if (kind, number) in _REFUSED:
        return f"{_REFUSED[kind, number]} not covered by the checker"
    return f"field {number} of {kind} is unknown"


def _put(found: Message, field: _Field, value: Any) -> None:
    if field.repeated:
        found.setdefault(field.name, []).append(value)
    else:
        found[field.name] = value


def _text(data: bytes) -> str:
    try:
        return data.decode("utf-8", "strict")
    except UnicodeDecodeError:
        need(False, "a name that is not UTF-8")
        raise AssertionError("unreachable") from None


def parse_model(data: bytes) -> Message:
    """The model message that all the bytes make, as dictionaries; repeated fields are lists, absent fields are absent.

    Raises:
        NotCovered: a byte that belongs to no listed field, a field twice, or more fields than the limits.
    """
    return _Reader(data).message("Model", 0, len(data))


class Span(NamedTuple):
    """One field in the bytes of a message: where its tag begins, its value, and where it ends."""

    number: int
    wire: int
    first: int
    value: int
    end: int

    def is_message(self, number: int) -> bool:
        """Whether it is this field, as bytes or a message."""
        return self.number == number and self.wire == _BYTES


class Spans:
    """Fields of one file by their places alone; how many have been looked at is limited as where they are read.

    Raises:
        NotCovered: bytes that are no fields, or more fields than are read.
    """

    def __init__(self, data: bytes) -> None:
        self.reader = _Reader(data)

    def within(self, position: int, stop: int) -> Iterator[Span]:
        """The fields between two places, one level deep, whatever they mean."""
        while position < stop:
            self.reader.count()
            span = _span(self.reader, position, stop)
            yield span
            position = span.end


def _span(reader: _Reader, first: int, stop: int) -> Span:
    tag, position = reader.varint(first, stop)
    value, wire = position, tag & 7
    if wire == _VARINT:
        _, position = reader.varint(position, stop)
    elif wire == _BYTES:
        length, value = reader.varint(position, stop)
        position = value + length
    else:
        need(wire in (_FIXED64, _FIXED32), "a field of an unknown wire type")
        position += 8 if wire == _FIXED64 else 4
    need(position <= stop, "a field reaches past the end of what holds it")
    return Span(tag >> 3, wire, first, value, position)


def entry_of(data: bytes, span: Span) -> tuple[str, str]:
    """Key and value of a field that is an entry.

    Raises:
        NotCovered: it is none.
    """
    found = _Reader(data).message("Entry", span.value, span.end)
    return found.get("key", ""), found.get("value", "")


def encoded(number: int, pieces: Sequence[bytes | memoryview]) -> list[bytes | memoryview]:
    """A field of bytes, or a message, that the pieces make one after the other; numbers in their shortest form."""
    head = bytearray()
    for value in (number << 3 | _BYTES, sum(map(len, pieces))):
        while value >= 0x80:
            head.append(value & 0x7F | 0x80)
            value >>= 7
        head.append(value)
    return [bytes(head), *pieces]


def is_protobuf(data: bytes) -> bool:
    """Whether a lenient library could read the bytes as some message, or may: then they are no file of weights.

    Behind more fields than any model has at its top the rest is not looked at: as a model the bytes are refused.
    """
    reader, position, open_groups = _Reader(data), 0, 0
    try:
        while position < len(data):
            reader.fields += 1
            if reader.fields > _TOP:
                return True
            tag, position = reader.varint(position, len(data))
            number, wire = tag >> 3, tag & 7
            if number == 0 or wire > 5:
                return False
            if wire == _VARINT:
                _, position = reader.varint(position, len(data))
            elif wire == _BYTES:
                length, position = reader.varint(position, len(data))
                position += length
            elif wire in (_FIXED64, _FIXED32):
                position += 8 if wire == _FIXED64 else 4
            else:
                open_groups += 1 if wire == 3 else -1
                if open_groups < 0:
                    return False
        return position == len(data) and open_groups == 0
    except NotCovered:
        return False
