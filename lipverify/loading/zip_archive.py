"""Strict reader of zip archives in memory (.npz files and torch checkpoints are zip archives).

Every byte of the file must belong to exactly one member, to the directory or to the end record, and the two
descriptions of a member (before its data and in the directory) must agree: readers that trust different
copies would otherwise see different contents, which is how one file is made to look harmless to one program
and not to the next. Nothing is unpacked before the sizes were checked.
"""

from __future__ import annotations

import stat
import struct
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NoReturn

from lipverify.errors import InvalidFile, UnsafeInput
from lipverify.loading.files import Path
from lipverify.loading.names import display, sentence

MAX_MEMBERS = 10_000
MAX_RATIO = 20  # of unpacked to packed size
SMALL_MEMBER = 1 << 20  # a constant array packs 1000:1 and harms nobody while it is this small
STORED, DEFLATED = 0, 8

_END, _END64, _LOCATOR64 = b"PK\x05\x06", b"PK\x06\x06", b"PK\x06\x07"
_CENTRAL, _LOCAL, _DESCRIPTOR = b"PK\x01\x02", b"PK\x03\x04", b"PK\x07\x08"
_FULL16, _FULL32 = 0xFFFF, 0xFFFFFFFF
# Deflate level (1, 2), sizes behind the data (3), name in UTF-8 (11); others change how data is read.
_KNOWN_FLAGS = 0b1000_0000_1110
_HAS_DESCRIPTOR, _UTF8 = 1 << 3, 1 << 11


@dataclass(frozen=True)
class Member:
    """One file in the archive: its data are the bytes start:start + packed of the archive."""

    name: str
    method: int
    crc: int
    packed: int
    size: int
    start: int


@dataclass(frozen=True)
class _Entry:
    """A member as the directory describes it; `offset` is where its own header begins."""

    raw_name: bytes
    flags: int
    method: int
    crc: int
    packed: int
    size: int
    offset: int


def looks_like_zip_end(data: bytes) -> bool:
    """True when the file ends as a zip archive does, whatever it begins with."""
    if data[-22:-18] != _END:
        return False
    size, offset = struct.unpack_from("<II", data, len(data) - 10)
    start = len(data) - 22 - size
    return offset == _FULL32 or (start >= 0 and data[start : start + 4] in (_CENTRAL, _END))


def members(data: bytes, path: Path) -> dict[str, Member]:
    """Members by name. Raises UnsafeInput for what only an attack contains (bytes outside the archive,
    members that overlap or occur twice, names that leave a folder, links, bombs), InvalidFile for damage."""
    start, stop, count = _directory(data, path)
    entries = list(_entries(data, start, stop, count, path))
    found: dict[str, Member] = {}
    position = 0
    for entry in sorted(entries, key=lambda entry: entry.offset):
        name = _name(entry, path)
        if name in found:
            _unsafe(path, f'archive member "{display(name, 60)}" occurs twice')
        if entry.offset != position:
            what = "overlap" if entry.offset < position else "leave hidden bytes between them"
            _unsafe(path, f"archive members {what}")
        found[name], position = _locate(data, entry, name, start, path)
    if position != start:
        _unsafe(path, "archive holds hidden bytes before its directory")
    _check_sizes(found.values(), len(data), path)
    return found


def read_member(data: bytes, member: Member, path: Path) -> bytes:
    """The unpacked bytes of one member. Raises InvalidFile when size or CRC are not those recorded."""
    raw = data[member.start : member.start + member.packed]
    if member.method == DEFLATED:
        unpacker = zlib.decompressobj(-15)
        try:
            # One byte more than promised, so a member that lies about its size is noticed, not unpacked.
            raw = unpacker.decompress(raw, member.size + 1)
        except zlib.error:
            raw = b""
        if not unpacker.eof or unpacker.unused_data or unpacker.unconsumed_tail:
            _damaged(path, f'archive member "{display(member.name, 60)}" is damaged')
    if len(raw) != member.size or zlib.crc32(raw) != member.crc:
        _damaged(path, f'archive member "{display(member.name, 60)}" is damaged (CRC)')
    return raw


def _directory(data: bytes, path: Path) -> tuple[int, int, int]:
    """Start and stop of the directory, and the number of members it lists."""
    end = len(data) - 22
    if end < 0 or data[end : end + 4] != _END or data[-2:] != b"\0\0":
        # A complete end record with something behind it; an incomplete one is only cut off.
        if data.rfind(_END, max(0, end - _FULL16), max(0, end + 4)) >= 0:
            _unsafe(path, "has bytes after the end of its zip archive")
        _damaged(path, "zip archive is cut off")
    disk, first_disk, here, count, size, offset = struct.unpack_from("<HHHHII", data, end + 4)
    stop = end
    if data[max(0, end - 20) : end].startswith(_LOCATOR64):
        (record,) = struct.unpack_from("<Q", data, end - 12)
        stop = end - 20 - 56
        if record != stop or data[stop : stop + 4] != _END64:
            _damaged(path, "zip64 end record is damaged")
        disk, first_disk, here, count, size, offset = struct.unpack_from("<IIQQQQ", data, stop + 16)
    if disk or first_disk or here != count:
        _damaged(path, "zip archive claims several disks")
    if count > MAX_MEMBERS:
        _unsafe(path, f"zip archive has {count} members, more than the limit of {MAX_MEMBERS}")
    if offset + size < stop:
        _unsafe(path, "has bytes before its zip archive")
    if offset + size != stop:
        _damaged(path, "zip directory does not fit the file")
    return offset, stop, count


def _entries(data: bytes, start: int, stop: int, count: int, path: Path) -> Iterator[_Entry]:
    for _ in range(count):
        if start + 46 > stop or data[start : start + 4] != _CENTRAL:
            _damaged(path, "zip directory is damaged")
        flags, method, _, _, crc, packed, size = struct.unpack_from("<HHHHIII", data, start + 8)
        name_size, extra_size, comment_size, disk, _, attributes, offset = struct.unpack_from(
            "<HHHHHII", data, start + 28
        )
        name_end = start + 46 + name_size
        after = name_end + extra_size + comment_size
        if after > stop or disk not in (0, _FULL16):
            _damaged(path, "zip directory is damaged")
        raw_name = data[start + 46 : name_end]
        size, packed, offset = _wide(data[name_end : name_end + extra_size], [size, packed, offset], path)
        if stat.S_ISLNK(attributes >> 16):
            _unsafe(path, f'archive member "{display(raw_name, 60)}" is a symbolic link')
        yield _Entry(raw_name, flags, method, crc, packed, size, offset)
        start = after
    if start != stop:
        _damaged(path, "zip directory lists more members than the end record")


def _wide(extra: bytes, values: list[int], path: Path) -> list[int]:
    """Replaces the values that are marked as too wide for 32 bits by those of the zip64 extra field."""
    if _FULL32 not in values:
        return values
    while len(extra) >= 4:
        kind, length = struct.unpack_from("<HH", extra)
        if kind == 1 and 4 + length <= len(extra):
            wide = [number for (number,) in struct.iter_unpack("<Q", extra[4 : 4 + length // 8 * 8])]
            if len(wide) < values.count(_FULL32):
                break
            return [wide.pop(0) if value == _FULL32 else value for value in values]
        extra = extra[4 + length :]
    raise InvalidFile(sentence(path, "zip64 sizes are missing"))


def _name(entry: _Entry, path: Path) -> str:
    shown = display(entry.raw_name, 60)
    try:
        name = entry.raw_name.decode("utf-8" if entry.flags & _UTF8 else "ascii")
    except UnicodeDecodeError:
        _damaged(path, f'archive member "{shown}" has a name that is not UTF-8')
    parts = name.split("/")
    # A folder, a drive, a control character or an empty part: no writer of .npz or .pt files makes these.
    if (
        any(part in ("", ".", "..") for part in parts)
        or "\\" in name
        or ":" in parts[0]
        or not name.isprintable()
    ):
        _unsafe(path, f'archive member "{shown}" is not a plain relative file name')
    return name


def _locate(data: bytes, entry: _Entry, name: str, limit: int, path: Path) -> tuple[Member, int]:
    """The member, and the position right behind it, after comparing its own header with the directory."""
    shown, at = display(name, 60), entry.offset
    if entry.flags & ~_KNOWN_FLAGS or entry.method not in (STORED, DEFLATED):
        _damaged(path, f'archive member "{shown}" is encrypted or packed by an unknown method')
    if at + 30 > limit or data[at : at + 4] != _LOCAL:
        _damaged(path, f'archive member "{shown}" has no header')
    flags, method, _, _, crc, packed, size, name_size, extra_size = struct.unpack_from(
        "<HHHHIIIHH", data, at + 6
    )
    start = at + 30 + name_size + extra_size
    if data[at + 30 : at + 30 + name_size] != entry.raw_name or (flags, method) != (
        entry.flags,
        entry.method,
    ):
        _unsafe(path, f'archive member "{shown}" contradicts the directory')
    size, packed = _wide(data[start - extra_size : start], [size, packed], path)
    described = (crc, packed, size)
    stop = start + entry.packed
    if stop > limit:
        _damaged(path, f'archive member "{shown}" is cut off')
    if flags & _HAS_DESCRIPTOR:
        described, stop = _descriptor(data, stop, entry, described)
    if described != (entry.crc, entry.packed, entry.size):
        _unsafe(path, f'archive member "{shown}" contradicts the directory')
    return Member(name, method, crc=entry.crc, packed=entry.packed, size=entry.size, start=start), stop


def _descriptor(
    data: bytes, at: int, entry: _Entry, described: tuple[int, int, int]
) -> tuple[tuple[int, int, int], int]:
    """Sizes written behind the data, in any of the four layouts in use, and the position behind them.

    The header before the data then holds zeros or the same values; anything else is left to the caller.
    """
    expected = (entry.crc, entry.packed, entry.size)
    before_is_open = all(given in (0, value) for given, value in zip(described, expected, strict=True))
    for signature in (_DESCRIPTOR, b""):
        for layout in ("<III", "<IQQ"):
            try:
                text = signature + struct.pack(layout, *expected)
            except struct.error:
                continue
            if before_is_open and data[at : at + len(text)] == text and _ends_here(data, at + len(text)):
                return expected, at + len(text)
    return described, at


def _ends_here(data: bytes, at: int) -> bool:
    return data[at : at + 4] in (_LOCAL, _CENTRAL)


def _check_sizes(found: Iterable[Member], packed_total: int, path: Path) -> None:
    total = 0
    for member in found:
        total += member.size
        if member.method == STORED and member.size != member.packed:
            _damaged(path, f'archive member "{display(member.name, 60)}" is stored with two sizes')
        if member.size > max(SMALL_MEMBER, MAX_RATIO * member.packed):
            _bomb(path, f'archive member "{display(member.name, 60)}"')
    if total > MAX_RATIO * packed_total + 16 * SMALL_MEMBER:
        _bomb(path, "zip archive")


def _bomb(path: Path, what: str) -> NoReturn:
    remedy = "store it uncompressed (np.savez, torch.save)"
    raise UnsafeInput(sentence(path, f"{what} unpacks to more than {MAX_RATIO} times its size", remedy))


def _unsafe(path: Path, what: str) -> NoReturn:
    raise UnsafeInput(sentence(path, what, "save it again from a source you trust"))


def _damaged(path: Path, what: str) -> NoReturn:
    raise InvalidFile(sentence(path, what))
