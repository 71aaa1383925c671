"""Opening files of strangers: regular files only, of bounded size, read once and hashed."""

from __future__ import annotations

import hashlib
import io
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from lipverify.errors import InvalidFile, UnsafeInput
from lipverify.loading.names import display, sentence

MAX_FILE_BYTES = 4 << 30

Path = str | os.PathLike[str]

_FLAGS = (
    os.O_RDONLY
    | getattr(os, "O_CLOEXEC", 0)
    | getattr(os, "O_NONBLOCK", 0)
    | getattr(os, "O_NOCTTY", 0)
    | getattr(os, "O_BINARY", 0)
)


@dataclass(frozen=True)
class FileBytes:
    """The bytes of one file and their SHA-256. Everything later is derived from these bytes, never from a
    second look at the path, so the hash speaks of what was used."""

    path: str
    data: bytes = field(repr=False)
    sha256: str


def read_regular(path: Path, max_bytes: int = MAX_FILE_BYTES) -> FileBytes:
    """Reads a regular file that the user named (a symbolic link there is the user's choice and is followed).

    Raises InvalidFile when it is missing, unreadable, empty, larger than `max_bytes` or not a regular
    file. A FIFO, device or socket is never opened, so nothing hangs and no driver is touched.
    """
    text = os.fspath(path)
    try:
        # Looked at before it is opened: opening a device can already have an effect.
        _require_regular(text, os.stat(text))
        descriptor = os.open(text, _FLAGS)
    except (OSError, ValueError) as problem:
        raise InvalidFile(sentence(text, f"cannot be read ({_reason(problem)})")) from None
    try:
        # Looked at again behind the descriptor: the name may point elsewhere by now.
        data = _read(descriptor, text, max_bytes)
    finally:
        os.close(descriptor)
    return FileBytes(text, data, hashlib.sha256(data).hexdigest())


class Range(NamedTuple):
    """The bytes of one tensor in a file."""

    start: int
    stop: int
    tensor: str


def read_inside(
    folder: Path,
    location: str,
    max_bytes: int,
    model: Path,
    ranges: Sequence[Range],
    take: Callable[[int, bytearray], None],
) -> tuple[int, str]:
    """Reads a file that a *model file* names, which may only lie below `folder`: its size and SHA-256.

    The file passes by once and is never in memory as a whole: take(k, bytes of ranges[k]) is called when they have passed, so
    the hash speaks of what was used.

    Sound when: the folder is not rewritten during the call by someone else with write access to it (each
    component is opened relative to its parent without following links, so even then nothing outside is read).

    Raises UnsafeInput for an absolute path, `..`, a symbolic link at any component, a second hard link, or
    anything but a regular file, and for a range behind its end, before one byte of the target is read; InvalidFile when it is
    missing or empty.
    """
    parts = _components(location, model)
    shown = display(location, 60)
    nofollow = getattr(os, "O_NOFOLLOW", 0)
    descriptor = -1
    try:
        descriptor = os.open(os.fspath(folder) or ".", os.O_RDONLY | getattr(os, "O_DIRECTORY", 0))
        for position, part in enumerate(parts):
            last = position == len(parts) - 1
            status = os.stat(part, dir_fd=descriptor, follow_symlinks=False)
            if stat.S_ISLNK(status.st_mode):
                raise _unsafe(model, f'external data "{shown}" is a symbolic link')
            if not (stat.S_ISREG(status.st_mode) if last else stat.S_ISDIR(status.st_mode)):
                raise _unsafe(model, f'external data "{shown}" is not a regular file')
            opened = os.open(part, _FLAGS | nofollow, dir_fd=descriptor)
            descriptor, parent = opened, descriptor
            os.close(parent)
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise _unsafe(model, f'external data "{shown}" is not a regular file')
        if status.st_nlink != 1:
            # A second name could lie anywhere: a hard link reaches outside the folder as a symbolic one does.
            raise _unsafe(model, f'external data "{shown}" is a hard link')
        for wanted in ranges:
            if wanted.stop > status.st_size:
                raise _unsafe(
                    model, f'external data of tensor "{wanted.tensor}" reaches past the end of its file'
                )
        digest = hashlib.sha256()
        _passed(_pieces(descriptor, location, max_bytes), digest.update, ranges, take)
    except OSError as problem:
        what = f'external data "{shown}" cannot be read ({_reason(problem)})'
        raise InvalidFile(sentence(model, what, "keep the data file beside the model")) from None
    finally:
        if descriptor >= 0:
            os.close(descriptor)
    return status.st_size, digest.hexdigest()


def _passed(
    pieces: Iterator[bytes],
    see: Callable[[bytes], None],
    ranges: Sequence[Range],
    take: Callable[[int, bytearray], None],
) -> None:
    """Shows every piece, and hands out each range when its last byte has passed."""
    waiting = sorted(range(len(ranges)), key=lambda k: ranges[k].start, reverse=True)
    begun: dict[int, bytearray] = {}
    here = 0
    for piece in pieces:
        see(piece)
        end = here + len(piece)
        while waiting and ranges[waiting[-1]].start < end:
            k = waiting.pop()
            # No longer than the file, which was compared.
            begun[k] = bytearray(ranges[k].stop - ranges[k].start)
        for k, found in list(begun.items()):
            start, stop, _ = ranges[k]
            part = memoryview(piece)[max(start - here, 0) : stop - here]
            first = max(here - start, 0)
            found[first : first + len(part)] = part
            if stop <= end:
                take(k, begun.pop(k))
        here = end
    for k in waiting:  # of no bytes, at the end of the file
        take(k, bytearray())


def _components(location: str, model: Path) -> list[str]:
    shown = display(location, 60)
    parts = location.split("/")
    if location.startswith("/") or "\\" in location or ":" in parts[0] or "\0" in location:
        raise _unsafe(model, f'external data "{shown}" is not a plain relative path')
    if ".." in parts:
        raise _unsafe(model, f'external data "{shown}" leaves the folder of the model')
    parts = [part for part in parts if part not in ("", ".")]
    if not parts:
        raise _unsafe(model, f'external data location "{shown}" names no file')
    return parts


def _unsafe(model: Path, what: str) -> UnsafeInput:
    return UnsafeInput(sentence(model, what, "embed the weights in the model file"))


def _require_regular(path: str, status: os.stat_result) -> None:
    if stat.S_ISDIR(status.st_mode):
        raise InvalidFile(sentence(path, "is a folder, not a regular file", "name the file inside it"))
    if not stat.S_ISREG(status.st_mode):
        raise InvalidFile(sentence(path, "is not a regular file", "copy it to a file first"))


def _read(descriptor: int, path: str, max_bytes: int) -> bytes:
    # Pieces and their sum are never both in memory; the value is the buffer itself.
    buffer = io.BytesIO()
    for piece in _pieces(descriptor, path, max_bytes):
        buffer.write(piece)
    return buffer.getvalue()


def _pieces(descriptor: int, path: str, max_bytes: int) -> Iterator[bytes]:
    status = os.fstat(descriptor)
    _require_regular(path, status)
    size = status.st_size
    if size == 0:
        raise InvalidFile(sentence(path, "is empty"))
    if size > max_bytes:
        raise InvalidFile(sentence(path, f"has {size} bytes, more than the limit of {max_bytes}"))
    left = size
    while left:
        piece = os.read(descriptor, min(left, 1 << 24))
        if not piece:
            raise InvalidFile(sentence(path, "became shorter while it was read"))
        yield piece
        left -= len(piece)


def _reason(problem: OSError | ValueError) -> str:
    if isinstance(problem, FileNotFoundError):
        return "no such file"
    if isinstance(problem, OSError) and problem.strerror:
        return problem.strerror.lower()
    return "not a valid path"
