"""Files beside an ONNX file, in which exporters put its stored tensors: read where the file names them, and put into its bytes.

What follows reads one file that holds everything, the runtime it is compared with too: nothing behind this line opens a path.
A name leads below the folder of the model and nowhere else: no link is followed, and a file with a second name is refused.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from lipverify.checkers.kernel.account import charge
from lipverify.checkers.reader.refusals import need
from lipverify.checkers.reader.wire import MAX_NODES, Span, Spans, encoded, entry_of

_GRAPH, _INITIALISER, _RAW, _WHERE, _EXTERNAL = 7, 5, 9, 13, 14
_MOST, _PIECE, _DIGITS = (1 << 31) - (1 << 20), 1 << 24, 18
"""Bytes of a message: what libraries of protobuf read; of one piece of a file; digits of a number of bytes."""
_KEYS = {"location", "offset", "length", "checksum"}


class Whole(NamedTuple):
    """data: the model with everything in it; files: name and sha256 of each file beside it, by name; size: of all of them."""

    data: bytes
    files: tuple[tuple[str, str], ...] = ()
    size: int = 0


class _Place(NamedTuple):
    file: str
    start: int
    stop: int


def joined(data: bytes, folder: Path) -> Whole:
    """The bytes of a model whose initialisers hold what lies beside it in `folder`; the same bytes where none does.

    Each such initialiser loses its fields 13 and 14, and what they name becomes its `raw_data`; all other bytes stay. Tensors of
    operators and of subgraphs stay as they are, and are refused where they are read.

    Raises:
        NotCovered: a name that leads elsewhere, a file that is none or has two names, numbers behind its end, tensors that share
            numbers, or more than libraries read as one message. Nothing is read before the sizes are known.
    """
    fields = Spans(data)
    outside: dict[int, _Place] = {}
    for tensor in _external(data):
        outside[tensor.first] = _place(data, fields, tensor)
        need(len(outside) <= MAX_NODES, f"a model with more than {MAX_NODES} tensors in other files")
    if not outside:
        return Whole(data)
    need(len(data) + sum(p.stop - p.start for p in outside.values()) <= _MOST, "a model of more than 2 GiB")
    stored: dict[int, memoryview] = {}
    files, size = [], 0
    for name in sorted({place.file for place in outside.values()}):
        mine = {first: place for first, place in outside.items() if place.file == name}
        content = _content(folder, name, list(mine.values()))
        files.append((name, hashlib.sha256(content).hexdigest()))
        size += len(content)
        stored |= {first: memoryview(content)[place.start : place.stop] for first, place in mine.items()}
    return Whole(_replaced(data, stored), tuple(files), size)


def _external(data: bytes) -> Iterator[Span]:
    """Initialisers whose numbers lie in another file."""
    fields = Spans(data)
    for graph in fields.within(0, len(data)):
        if graph.is_message(_GRAPH):
            for tensor in fields.within(graph.value, graph.end):
                inner = fields.within(tensor.value, tensor.end) if tensor.is_message(_INITIALISER) else ()
                if any(_is_place(data, s) for s in inner):
                    yield tensor


def _is_place(data: bytes, span: Span) -> bool:
    """Whether it is the field that says that the numbers lie in another file."""
    return span.number == _EXTERNAL and data[span.value : span.end] == b"\1"


def _place(data: bytes, fields: Spans, tensor: Span) -> _Place:
    told: dict[str, str] = {}
    said = 0
    for span in fields.within(tensor.value, tensor.end):
        said += span.number == _EXTERNAL
        if span.is_message(_WHERE):
            key, value = entry_of(data, span)
            need(key in _KEYS and key not in told, "external data that is described in another way")
            told[key] = value
    need(said == 1, "data_location of Tensor occurs twice")
    need("location" in told and "length" in told, "external data without its file or its length")
    numbers = [told.get("offset", "0"), told["length"]]
    digits = all(t.isascii() and t.isdigit() and len(t) <= _DIGITS for t in numbers)
    need(digits, "external data without a number of bytes")
    start, length = map(int, numbers)
    return _Place(told["location"], start, start + length)


def _content(folder: Path, name: str, places: Sequence[_Place]) -> bytes:
    """A whole file, when all places are known to lie in it and none of its bytes is taken twice."""
    parts, shown = name.split("/"), f"the external data {name[:80]!a}"
    plain = bool(name) and "\0" not in name and "\\" not in name and not {"", ".", ".."} & set(parts)
    need(plain, f"{shown} is not named as a file below the model's folder")
    try:
        with ExitStack() as opened:

            def step(what: str | Path, flags: int, below: int | None) -> int:
                handle = os.open(what, os.O_RDONLY | os.O_CLOEXEC | flags, dir_fd=below)
                opened.callback(os.close, handle)
                return handle

            here = step(folder, os.O_DIRECTORY, None)
            for part in parts[:-1]:
                here = step(part, os.O_DIRECTORY | os.O_NOFOLLOW, here)
            # Looked at before it is opened: opening a device can have an effect.
            status = os.stat(parts[-1], dir_fd=here, follow_symlinks=False)
            need(stat.S_ISREG(status.st_mode), f"{shown} is not a regular file")
            handle = step(parts[-1], os.O_NOFOLLOW | os.O_NONBLOCK, here)
            status = os.fstat(handle)
            need(
                stat.S_ISREG(status.st_mode) and status.st_nlink == 1,
                f"{shown} is no regular file of one name",
            )
            need(status.st_size <= _MOST, f"{shown} has more than 2 GiB")
            need(max(p.stop for p in places) <= status.st_size, f"{shown} ends before a tensor does")
            taken = sum(p.stop - p.start for p in places)
            need(taken <= status.st_size, f"{shown} holds tensors that share their numbers")
            found = bytearray()
            while piece := os.read(handle, min(_PIECE, status.st_size + 1 - len(found))):
                charge(0)  # whoever waits may have waited long enough
                found += piece
            need(len(found) == status.st_size, f"{shown} changed while it was read")
    except (OSError, ValueError) as error:
        need(False, f"{shown} cannot be read ({type(error).__name__})")
    return bytes(found)


def _replaced(data: bytes, stored: dict[int, memoryview]) -> bytes:
    fields = Spans(data)
    pieces: list[bytes | memoryview] = []
    for graph in fields.within(0, len(data)):
        if not graph.is_message(_GRAPH):
            pieces.append(data[graph.first : graph.end])
            continue
        inside: list[bytes | memoryview] = []
        begin = graph.value
        for tensor in fields.within(graph.value, graph.end):
            if tensor.first in stored:
                kept = _without_places(data, fields, tensor)
                inside += [
                    data[begin : tensor.first],
                    *encoded(_INITIALISER, [*kept, *encoded(_RAW, [stored[tensor.first]])]),
                ]
                begin = tensor.end
        pieces += encoded(_GRAPH, [*inside, data[begin : graph.end]])
    return b"".join(pieces)


def _without_places(data: bytes, fields: Spans, tensor: Span) -> list[bytes]:
    """What a tensor holds but where its numbers lie: at most six pieces."""
    kept, begin = [], tensor.value
    for span in fields.within(tensor.value, tensor.end):
        if span.is_message(_WHERE) or _is_place(data, span):
            kept.append(data[begin : span.first])
            begin = span.end
    return [*kept, data[begin : tensor.end]]
