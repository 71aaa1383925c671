"""Tensors of an ONNX model: declared size against the data that is there, finite values, external data.

onnx.checker accepts NaN weights, data of the wrong length and two data fields that disagree; every reader then
picks its own meaning. Here each tensor has exactly one.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from lipverify.errors import InvalidFile, UnsafeInput, UnsupportedModel
from lipverify.loading.files import Path, Range, read_inside
from lipverify.loading.names import display, sentence
from lipverify.loading.onnx_weights import Held, array, holdable

MAX_TOTAL_BYTES = (2 << 30) - (1 << 20)  # what one protobuf message can carry
MAX_RANK = 16

# onnx.TensorProto.DataType -> (name, bits, field with typed data, numpy type of the raw bytes)
_TYPES: dict[int, tuple[str, int, str, str]] = {
    1: ("FLOAT", 32, "float_data", "<f4"),
    2: ("UINT8", 8, "int32_data", "u1"),
    3: ("INT8", 8, "int32_data", "i1"),
    4: ("UINT16", 16, "int32_data", "<u2"),
    5: ("INT16", 16, "int32_data", "<i2"),
    6: ("INT32", 32, "int32_data", "<i4"),
    7: ("INT64", 64, "int64_data", "<i8"),
    9: ("BOOL", 8, "int32_data", "u1"),
    10: ("FLOAT16", 16, "int32_data", "<u2"),
    11: ("DOUBLE", 64, "double_data", "<f8"),
    12: ("UINT32", 32, "uint64_data", "<u4"),
    13: ("UINT64", 64, "uint64_data", "<u8"),
    16: ("BFLOAT16", 16, "int32_data", "<u2"),
    21: ("UINT4", 4, "int32_data", "u1"),
    22: ("INT4", 4, "int32_data", "u1"),
}
"""Numbers of 4 bits lie two in a byte, the first in its lower half."""
_STRING = 8
_DATA_FIELDS = (
    "raw_data",
    "float_data",
    "int32_data",
    "string_data",
    "int64_data",
    "double_data",
    "uint64_data",
)
# Bits of infinity in the 16-bit formats; above it, without the sign, lies NaN.
_INFINITY = {10: 0x7C00, 16: 0x7F80}
_EXTERNAL = 1


@dataclass
class ExternalData:
    """Files beside the model, each read once: their SHA-256 by name."""

    model: Path
    files: dict[str, str] = field(default_factory=dict)

    def place(self, tensor: Any, shown: str, needed: int) -> tuple[str, Range]:
        """Where the bytes of one external tensor are. Raises UnsafeInput unless that is said as the loader's policy asks."""
        entries: dict[str, str] = {}
        for entry in tensor.external_data:
            if not isinstance(entry.key, str) or not isinstance(entry.value, str) or entry.key in entries:
                self._unsafe(f'external data of tensor "{shown}" is described twice or not in UTF-8')
            entries[entry.key] = entry.value
        offset = self._number(entries.get("offset", "0"), shown)
        length = self._number(entries["length"], shown) if "length" in entries else needed
        if length != needed:
            what = f'tensor "{shown}" needs {needed} bytes, its external data has {length}'
            raise InvalidFile(sentence(self.model, what))
        return entries.get("location", ""), Range(offset, offset + length, shown)

    def read(self, places: Sequence[tuple[str, Range]], take: Callable[[int, bytearray], None]) -> None:
        """Every file, one after the other; take(k, bytes of places[k]) as they pass. Raises as `read_inside`."""
        # The folder is never empty: an empty base folder is how containment checks were bypassed elsewhere.
        folder = os.path.dirname(os.path.abspath(os.fspath(self.model)))
        by_file: dict[str, list[int]] = {}
        for k, (location, _) in enumerate(places):
            by_file.setdefault(location, []).append(k)
        left = MAX_TOTAL_BYTES
        for location, wanted in by_file.items():
            size, self.files[location] = read_inside(
                folder,
                location,
                MAX_TOTAL_BYTES,
                self.model,
                [places[k][1] for k in wanted],
                lambda k, data, wanted=wanted: take(wanted[k], data),  # type: ignore[misc]
            )
            left -= size
            if left < 0:
                raise UnsupportedModel(sentence(self.model, "its external data files exceed 2 GiB together"))

    def _number(self, text: str, shown: str) -> int:
        if not (text.isascii() and text.isdigit() and len(text) <= 18):
            self._unsafe(f'external data of tensor "{shown}" has an invalid offset or length')
        return int(text)

    def _unsafe(self, what: str) -> NoReturn:
        raise UnsafeInput(sentence(self.model, what, "embed the weights in the model file"))


def tensors(graph: Any) -> Iterator[tuple[str, Any]]:
    """Every TensorProto of a graph or function with a name for messages, subgraphs included.

    The nesting was bounded by the scan before, so the recursion is.
    """
    for tensor in getattr(graph, "initializer", ()):
        yield _text(tensor.name), tensor
    for node in graph.node:
        for attribute in node.attribute:
            name = f"{_text(node.name) or _text(node.op_type)}.{_text(attribute.name)}"
            if attribute.HasField("t"):
                yield name, attribute.t
            for position, tensor in enumerate(attribute.tensors):
                yield f"{name}[{position}]", tensor
            for inner in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                yield from tensors(inner)


def check_tensors(model: Any, external: ExternalData, taken: Mapping[str, bytearray] | None = None) -> Held:
    """Checks every tensor and moves external data into the model, in place.

    taken: bytes of large tensors that are not in the message (`onnx_weights`). With it, also external data of large tensors of
    the main graph stays beside the message, and what does is given back; without it none does.

    Infinities are numbers here: masks and limits hold them. What computes with them decides.

    Raises InvalidFile for a tensor that contradicts itself or holds NaN (tensor and index named),
    UnsafeInput for external data outside the policy, UnsupportedModel for element types and sizes beyond it.
    """
    total = 0
    pending = []
    held: Held = {}
    for name, tensor, stored in _all(model):
        shown = display(name, 60)
        found = taken.get(tensor.name) if taken and stored else None
        needed = _declared_bytes(tensor, shown, external.model, found)
        total += needed
        if total > MAX_TOTAL_BYTES:
            raise UnsupportedModel(sentence(external.model, "its tensors need more than 2 GiB"))
        if found is not None:
            held[tensor.name] = array(tensor, found)
        pending.append((shown, tensor, needed, taken is not None and stored and holdable(tensor)))
    # Only now is anything read or converted: the declared sizes are known to be small enough.
    outside = [one for one in pending if one[1].data_location == _EXTERNAL]
    places = [external.place(tensor, shown, needed) for shown, tensor, needed, _ in outside]

    def take(k: int, data: bytearray) -> None:
        shown, tensor, _, beside = outside[k]
        if beside:
            held[tensor.name] = array(tensor, data)
        else:
            tensor.raw_data = bytes(data)
        _check_values(tensor, shown, external.model, held.get(tensor.name) if beside else None)

    external.read(places, take)
    for shown, tensor, _, beside in pending:
        # Whatever reads the model later finds no path in it.
        tensor.ClearField("external_data")
        if tensor.data_location != _EXTERNAL:
            _check_values(tensor, shown, external.model, held.get(tensor.name) if beside else None)
        tensor.ClearField("data_location")
    return held


def _all(model: Any) -> Iterator[tuple[str, Any, bool]]:
    """Every tensor of a model as `tensors` gives them, and whether it is a stored one of the main graph."""
    stored = len(model.graph.initializer)
    for position, (name, tensor) in enumerate(tensors(model.graph)):
        yield name, tensor, position < stored
    for function in model.functions:
        yield from ((name, tensor, False) for name, tensor in tensors(function))


def _declared_bytes(tensor: Any, shown: str, path: Path, beside: bytearray | None = None) -> int:
    dims: list[int] = list(tensor.dims)
    if len(dims) > MAX_RANK or any(n < 0 for n in dims):
        raise InvalidFile(sentence(path, f'tensor "{shown}" has an invalid shape'))
    if tensor.HasField("segment"):
        raise UnsupportedModel(sentence(path, f'tensor "{shown}" is stored in segments', "export it again"))
    filled = [name for name in _DATA_FIELDS if len(getattr(tensor, name))]
    count = math.prod(dims)
    if tensor.data_type == _STRING:
        if filled not in ([], ["string_data"]) or len(tensor.string_data) != count:
            raise InvalidFile(sentence(path, f'tensor "{shown}" does not hold the strings of its shape'))
        return 0
    if tensor.data_type not in _TYPES:
        what = f'tensor "{shown}" has ONNX element type {tensor.data_type}'
        raise UnsupportedModel(sentence(path, what, "export real numbers of 16, 32 or 64 bits"))
    kind, bits, typed, _ = _TYPES[tensor.data_type]
    needed: int = (count * bits + 7) // 8
    if tensor.data_location == _EXTERNAL:
        if filled:
            raise InvalidFile(sentence(path, f'tensor "{shown}" has data both inside and outside the file'))
        return needed
    if len(filled) > 1 or (filled and filled[0] not in ("raw_data", typed)):
        raise InvalidFile(sentence(path, f'tensor "{shown}" has data in fields that do not belong to {kind}'))
    if beside is not None:
        found = len(beside)
    elif filled and filled[0] == "raw_data":
        found = len(tensor.raw_data)
    else:
        found = len(getattr(tensor, typed)) * max(bits, 8) // 8
    if found != needed:
        size = f"{needed} bytes" if needed < 1 << 63 else "more than 2^63 bytes"
        what = f'tensor "{shown}" needs {size} for shape {display(str(dims), 40)}, the file has {found}'
        raise InvalidFile(sentence(path, what))
    return needed


def _check_values(tensor: Any, shown: str, path: Path, beside: NDArray[Any] | None = None) -> None:
    if tensor.data_type == _STRING:
        return
    kind, bits, typed, layout = _TYPES[tensor.data_type]
    values: NDArray[Any]
    if beside is not None:
        values = beside.reshape(-1).view(layout)
    elif tensor.raw_data:
        values = np.frombuffer(tensor.raw_data, layout)
    else:
        wide = np.array(
            getattr(tensor, typed), dtype=layout if bits >= 32 and typed != "uint64_data" else None
        )
        values = wide.astype(layout)
        if values.dtype.kind in "iu" and bool((values != wide).any()):
            # Cut to fewer bits by one reader, refused by the next.
            raise InvalidFile(sentence(path, f'tensor "{shown}" holds numbers out of the range of {kind}'))
    if kind == "BOOL" and bool((values > 1).any()):
        raise InvalidFile(sentence(path, f'tensor "{shown}" is BOOL and holds numbers other than 0 and 1'))
    if bits == 4 and math.prod(tensor.dims) % 2 and int(values[-1]) > 15:
        # Half a byte that belongs to no number: readers may take it for anything.
        raise InvalidFile(sentence(path, f'tensor "{shown}" holds half a byte more than its numbers'))
    infinity = _INFINITY.get(tensor.data_type)
    if infinity is not None:
        bad = (values & 0x7FFF) > infinity
    elif values.dtype.kind == "f":
        bad = np.isnan(values)
    else:
        return
    if bool(bad.any()):
        index = [int(i) for i in np.unravel_index(int(np.argmax(bad)), tuple(tensor.dims))]
        what = f'holds NaN (tensor "{shown}", index {index})'
        raise InvalidFile(sentence(path, what, "no bound exists for such weights"))


def _text(name: Any) -> str:
    return name if isinstance(name, str) else ascii(name)
