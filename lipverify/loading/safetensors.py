"""Strict reader and writer of the safetensors format: a JSON header and raw numbers, nothing that could run.

Layout: 8 bytes n (little-endian), n bytes of JSON {name: {dtype, shape, data_offsets}}, then the data. The
tensors must tile the data exactly: an overlap, a gap or trailing bytes could hide a second meaning.
"""

from __future__ import annotations

import json
import math
import struct
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

from lipverify.errors import InternalError, InvalidFile, UnsupportedModel
from lipverify.loading.files import Path, read_regular
from lipverify.loading.formats import Format, require_format
from lipverify.loading.names import display, sentence

if TYPE_CHECKING:
    from torch import Tensor

MAX_HEADER_BYTES = 16 << 20
MAX_RANK = 16
MAX_DIGITS = 19  # of an integer in the header: below 2^63

# name in the file -> (torch dtype, bytes per element)
DTYPES = {
    "F64": ("float64", 8),
    "F32": ("float32", 4),
    "F16": ("float16", 2),
    "BF16": ("bfloat16", 2),
    "I64": ("int64", 8),
    "I32": ("int32", 4),
    "I16": ("int16", 2),
    "I8": ("int8", 1),
    "U8": ("uint8", 1),
    "BOOL": ("bool", 1),
}


@dataclass(frozen=True)
class Slot:
    """Where one tensor lies: `start` and `stop` are offsets from the beginning of the file."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Tensors of a .safetensors file in the order of its header, on the CPU, in the dtype of the file.

    Raises InvalidFile for anything the format forbids and for NaN or infinity (tensor and index named),
    UnsupportedModel for a dtype that no network arithmetic here uses.
    """
    file = read_regular(path)
    require_format(file, {Format.SAFETENSORS}, Format.SAFETENSORS.value)
    return parse_safetensors(file.data, file.path)


def parse_safetensors(data: bytes, path: Path) -> dict[str, Tensor]:
    """Tensors in the bytes of a safetensors file; `path` is only for messages. Raises as read_safetensors."""
    tensors, _ = parse_tensors(data, path)
    for name, tensor in tensors.items():
        require_finite(tensor, name, path)
    return tensors


def parse_tensors(data: bytes, path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors, NaN and infinity among them, and metadata in the bytes of a safetensors file."""
    slots, metadata = parse_header(data, path)
    return {name: _tensor(data, slot, name, path) for name, slot in slots.items()}, metadata


def require_finite(tensor: Tensor, name: str, path: Path) -> None:
    """Raises InvalidFile naming tensor and index when an entry is NaN or infinite."""
    if not tensor.is_floating_point():
        return
    finite = tensor.isfinite()
    if bool(finite.all()):
        return
    index = (~finite).nonzero()[0].tolist()
    value = float(tensor[tuple(index)])
    where = f'tensor "{display(name, 60)}", index {index}'
    raise InvalidFile(sentence(path, f"holds {value} ({where})", "no bound exists for such weights"))


def parse_header(data: bytes, path: Path) -> tuple[dict[str, Slot], dict[str, str]]:
    """Slots and metadata of a safetensors file, after every check that needs no look at the numbers."""
    if len(data) < 8:
        _fail(path, f"has {len(data)} bytes, too few for a safetensors file")
    (length,) = struct.unpack_from("<Q", data)
    if length > MAX_HEADER_BYTES or 8 + length > len(data):
        _fail(path, f"safetensors header of {length} bytes does not fit the file or the limit")
    header = _json(data[8 : 8 + length], path)
    if not isinstance(header, dict):
        _fail(path, "safetensors header is not a JSON object")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        _fail(path, "safetensors metadata is not a table of strings")
    slots = {name: _slot(name, entry, 8 + length, path) for name, entry in header.items()}
    end = 8 + length
    for name, slot in sorted(slots.items(), key=lambda item: (item[1].start, item[1].stop)):
        if slot.start != end:
            _fail(
                path,
                f'tensor "{display(name, 60)}" {"overlaps another" if slot.start < end else "leaves a gap"}',
            )
        end = slot.stop
    if end != len(data):
        _fail(path, f"tensors end at byte {end}, the file at {len(data)}")
    return slots, metadata


def write_safetensors(tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> bytes:
    """The bytes of a safetensors file with these dense tensors, in the given order and without padding."""
    import torch

    names = {dtype: name for name, (dtype, _) in DTYPES.items()}
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    body: list[bytes | memoryview] = []
    offset = 0
    for name, tensor in tensors.items():
        dense = tensor.detach().to("cpu").contiguous()
        # Copied once, when all are joined.
        raw = dense.reshape(-1).view(torch.uint8).numpy().data if dense.numel() else b""
        dtype = names[str(dense.dtype).removeprefix("torch.")]
        header[name] = {
            "dtype": dtype,
            "shape": list(dense.shape),
            "data_offsets": [offset, offset + len(raw)],
        }
        body.append(raw)
        offset += len(raw)
    text = json.dumps(header, ensure_ascii=True).encode()
    text += b" " * (-len(text) % 8)
    return b"".join([struct.pack("<Q", len(text)), text, *body])


def _json(text: bytes, path: Path) -> Any:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        table = dict(pairs)
        if len(table) != len(pairs):
            _fail(path, "safetensors header names something twice")
        return table

    def integer(digits: str) -> int:
        if len(digits) > MAX_DIGITS:
            _fail(path, "safetensors header holds an integer out of range")
        return int(digits)

    def refuse(number: str) -> NoReturn:
        _fail(path, f"safetensors header holds {display(number, 20)} where only integers belong")

    try:
        decoded = text.decode("utf-8", "strict")
        return json.loads(
            decoded, object_pairs_hook=unique, parse_int=integer, parse_float=refuse, parse_constant=refuse
        )
    except InvalidFile:
        raise
    except (ValueError, RecursionError):
        _fail(path, "safetensors header is not JSON in UTF-8")


def _slot(name: str, entry: Any, base: int, path: Path) -> Slot:
    shown = display(name, 60)
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        _fail(path, f'tensor "{shown}" needs exactly dtype, shape and data_offsets')
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str):
        _fail(path, f'tensor "{shown}" has a dtype that is not a string')
    if dtype not in DTYPES:
        what = f'tensor "{shown}" has dtype {display(dtype, 20)}'
        raise UnsupportedModel(sentence(path, what, f"convert it to one of {', '.join(DTYPES)}"))
    # type(...) is int: JSON true is an int for isinstance.
    if (
        not isinstance(shape, list)
        or len(shape) > MAX_RANK
        or not all(type(n) is int and n >= 0 for n in shape)
    ):
        _fail(path, f'tensor "{shown}" has a shape that is not a list of at most {MAX_RANK} sizes')
    if (
        not isinstance(offsets, list)
        or len(offsets) != 2
        or not all(type(n) is int and n >= 0 for n in offsets)
    ):
        _fail(path, f'tensor "{shown}" has data_offsets that are not two positions')
    start, stop = offsets
    if stop - start != math.prod(shape) * DTYPES[dtype][1]:
        _fail(
            path,
            f'tensor "{shown}" has {stop - start} bytes of data, its shape and dtype need another number',
        )
    return Slot(dtype, tuple(shape), base + start, base + stop)


def _tensor(data: bytes, slot: Slot, name: str, path: Path) -> Tensor:
    import torch

    if sys.byteorder != "little":
        raise InternalError("safetensors are read on little-endian machines only")
    dtype = getattr(torch, DTYPES[slot.dtype][0])
    if slot.start == slot.stop:
        return torch.zeros(slot.shape, dtype=dtype)
    # A copy of its own: writable, and the file's bytes can go.
    raw = torch.frombuffer(bytearray(memoryview(data)[slot.start : slot.stop]), dtype=torch.uint8)
    if dtype is torch.bool and bool((raw > 1).any()):
        _fail(path, f'tensor "{display(name, 60)}" is BOOL and holds bytes other than 0 and 1')
    return raw.view(dtype).reshape(slot.shape)


def _fail(path: Path, what: str) -> NoReturn:
    raise InvalidFile(sentence(path, what)) from None
