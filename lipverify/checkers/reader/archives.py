"""Archives of weights (npz, torch), read by a strict structure: entries one after another, and nothing else in the file."""

from __future__ import annotations

import ast
import math
import re
import struct
import zlib
from typing import NamedTuple

import numpy as np

from lipverify.checkers.kernel.account import charge
from lipverify.checkers.kernel.program import Array
from lipverify.checkers.reader.pickles import stored_tensors
from lipverify.checkers.reader.refusals import need
from lipverify.errors import NotCovered

MAX_ENTRIES, MAX_BYTES, MAX_INFLATED = 100_000, 4 << 30, 1 << 28
_LOCAL, _CENTRAL, _END, _DATA = b"PK\x03\x04", b"PK\x01\x02", b"PK\x05\x06", b"PK\x07\x08"
_END64, _LOCATOR = b"PK\x06\x06", b"PK\x06\x07"
_OF_TORCH = re.compile(
    r"data\.pkl|data/[0-9]+|byteorder|version|\.data/serialization_id|\.format_version|\.storage_alignment"
)
"""What torch.save puts into the archive's one folder. torch.load finds names whatever their case, and takes files with others
for programs: an archive with anything else may be another one for it."""


class _Entry(NamedTuple):
    name: str
    method: int
    crc: int
    packed: int
    size: int
    offset: int


def parse_archive(data: bytes) -> tuple[list[Array], int, str]:
    """Tensors of an npz or a torch archive, how many more it has whose numbers are repeated ones, and which of the two it is.

    Raises:
        NotCovered: another archive, or one that two readers could read as two.
    """
    entries = _directory(data)
    content, position, total = {}, 0, 0
    for entry in sorted(entries, key=lambda e: e.offset):
        charge(0)  # whoever waits may have waited long enough
        need(entry.offset == position, "an archive with bytes between its entries")
        total += entry.size if entry.method else 0
        need(total <= MAX_INFLATED, "an archive that unpacks to too much to check")
        body, position = _content(data, entry)
        content[entry.name] = body
    need(data[position : position + 4] == _CENTRAL, "an archive with bytes between its entries")
    if all(name.endswith(".npy") for name in content):
        return [_npy(body) for body in content.values()], 0, "npz"
    folders = {name.split("/")[0] for name in content}
    (folder, *others) = folders
    need(
        not others and f"{folder}/data.pkl" in content,
        "an archive of another kind than npz and torch",
    )
    inner = (name[len(folder) + 1 :] for name in content)
    need(
        all(_OF_TORCH.fullmatch(name) for name in inner),
        "a torch archive with an entry that torch does not write",
    )
    need(content.get(f"{folder}/byteorder", b"little") == b"little", "numbers with their large end first")
    inside = f"{folder}/data/"
    storages = {name[len(inside) :]: body for name, body in content.items() if name.startswith(inside)}
    return *stored_tensors(content[f"{folder}/data.pkl"], storages), "torch"


def _directory(data: bytes) -> list[_Entry]:
    """The table at the end: it ends with the file, and is where it says."""
    end = len(data) - 22
    need(end >= 0 and data[end : end + 4] == _END, "an archive with bytes behind its end")
    disk, first, here, count, size, start, comment = struct.unpack_from("<HHHHIIH", data, end + 4)
    stop = end
    if data[end - 20 : end - 16] == _LOCATOR:
        stop = end - 76
        need(
            stop >= 0
            and struct.unpack_from("<Q", data, end - 12)[0] == stop
            and data[stop : stop + 4] == _END64,
            "an archive with two ends",
        )
        count, size, start = struct.unpack_from("<QQQ", data, stop + 32)
        here = count
    need(
        disk == first == comment == 0 and here == count <= MAX_ENTRIES and start + size == stop,
        "an archive in several parts",
    )
    found, position = [], start
    for _ in range(count):
        need(position + 46 <= stop and data[position : position + 4] == _CENTRAL, "a damaged archive")
        (flags, method, _, crc, packed, full, name, extra, note, disk, _, _, offset) = struct.unpack_from(
            "<HHIIIIHHHHHII", data, position + 8
        )
        need(
            disk == 0 and not flags & 0x41 and note == 0,
            "an archive in several parts, encrypted or with notes",
        )
        text, beyond = (
            _name(data[position + 46 : position + 46 + name]),
            data[position + 46 + name : position + 46 + name + extra],
        )
        packed, full, offset = _long(beyond, [full, packed, offset])
        found.append(_Entry(text, method, crc, packed, full, offset))
        position += 46 + name + extra
    need(position == stop, "a damaged archive")
    need(len({e.name for e in found}) == len(found) > 0, "an archive with one name twice")
    return found


def _name(raw: bytes) -> str:
    need(
        raw.isascii() and 0 < len(raw) <= 1024 and b"\0" not in raw and not raw.endswith(b"/"),
        "a name in an archive",
    )
    return raw.decode("ascii")


def _long(extra: bytes, sizes: list[int]) -> tuple[int, int, int]:
    """(packed size, size, offset), with those of 64 bits in their place.

    Two fields of them are refused: some readers take the first, others the last, and an offset says which bytes an entry has.
    """
    position, fields = 0, list[bytes]()
    while position + 4 <= len(extra):
        kind, length = struct.unpack_from("<HH", extra, position)
        if kind == 1:
            fields.append(extra[position + 4 : position + 4 + length])
        position += 4 + length
    need(position == len(extra) and len(fields) <= 1, "a damaged archive")
    large = b"".join(fields)
    wide = [n == 0xFFFFFFFF for n in sizes]
    need(len(large) >= 8 * sum(wide), "a damaged archive")
    values = list(struct.unpack_from(f"<{sum(wide)}Q", large))
    full, packed, offset = (values.pop(0) if w else n for n, w in zip(sizes, wide, strict=True))
    return packed, full, offset


def _content(data: bytes, entry: _Entry) -> tuple[bytes, int]:
    """The bytes of an entry, and where the next one begins."""
    at = entry.offset
    need(at + 30 <= len(data) and data[at : at + 4] == _LOCAL, "a damaged archive")
    flags, method, _, crc, packed, full, name, extra = struct.unpack_from("<HHIIIIHH", data, at + 6)
    body = at + 30 + name + extra
    need(
        _name(data[at + 30 : at + 30 + name]) == entry.name and method == entry.method,
        "an archive with two tables of its entries",
    )
    later = bool(flags & 8)
    told = (crc, packed, full)
    need(
        later
        or told == (entry.crc, entry.packed, entry.size)
        or (0xFFFFFFFF in told[1:] and crc == entry.crc),
        "an archive with two tables of its entries",
    )
    end = body + entry.packed
    need(end <= len(data) and entry.size <= MAX_BYTES, "a damaged archive")
    raw = data[body:end]
    if entry.method == 8:
        inflate = zlib.decompressobj(-15)
        raw = inflate.decompress(raw, entry.size + 1)
        need(inflate.eof and not inflate.unused_data, "a damaged archive")
    else:
        need(entry.method == 0, "an archive packed by an unknown method")
    need(len(raw) == entry.size and zlib.crc32(raw) == entry.crc, "a damaged archive")
    if later and data[end : end + 4] == _DATA:
        wide = struct.unpack_from("<IQQ", data, end + 4) if end + 24 <= len(data) else None
        end += 24 if wide == (entry.crc, entry.packed, entry.size) else 16
    return raw, end


def _npy(body: bytes) -> Array:
    """One array in the format of numpy, as numbers alone."""
    need(body[:6] == b"\x93NUMPY" and body[6:8] in (b"\x01\x00", b"\x02\x00"), "an entry that is no array")
    form, start = ("<H", 10) if body[6] == 1 else ("<I", 12)
    (length,) = struct.unpack_from(form, body, 8)
    need(length <= 1 << 16 and start + length <= len(body), "an entry that is no array")
    charge(0)
    try:
        header = ast.literal_eval(body[start : start + length].decode("latin-1").strip())
        need(
            isinstance(header, dict) and header.keys() == {"descr", "fortran_order", "shape"},
            "an entry that is no array",
        )
        shape, dtype = header["shape"], np.dtype(header["descr"])
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        raise NotCovered("an entry that is no array") from None
    need(
        isinstance(header["descr"], str) and dtype.kind in "fiub" and not dtype.hasobject,
        "an array of another type",
    )
    need(
        isinstance(shape, tuple) and all(type(n) is int and n >= 0 for n in shape) and len(shape) <= 12,
        "an array of an invalid shape",
    )
    need(len(body) - start - length == math.prod(shape) * dtype.itemsize, "an array of another size")
    flat = np.frombuffer(body, dtype, math.prod(shape), start + length)
    return flat.reshape(shape[::-1]).T if header["fortran_order"] else flat.reshape(shape)
