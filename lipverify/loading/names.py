"""Names that come out of a stranger's file, made fit for a terminal, a log line or an error message."""

from __future__ import annotations

import hashlib
import os

from lipverify.errors import LipverifyError

_DIGEST = 8  # hexadecimal digits that tell apart two names with the same beginning


def display(name: str | bytes, limit: int = 80) -> str:
    """The name in printable ASCII, at most `limit` characters long.

    Everything outside the printable ASCII range (control and escape characters, NUL, bidirectional overrides,
    lone surrogates) and the backslash are written as Python escapes, so two different short names never look
    alike and no terminal acts on one. A longer name is cut and ends in `...#` and part of its SHA-256. HTML
    and Rich markup need their own escaping on top.
    """
    if isinstance(name, bytes):
        name = name.decode("utf-8", "surrogateescape")
    # One character takes at least one place: the rest of a megabyte is never escaped, only hashed.
    escaped = "".join(_escape(character) for character in name[: limit + 1])
    if len(escaped) <= limit:
        return escaped
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:_DIGEST]
    room = max(limit - _DIGEST - len("...#"), 0)
    kept = ""
    for character in name[:room]:
        piece = _escape(character)
        if len(kept) + len(piece) > room:
            break
        kept += piece
    return f"{kept}...#{digest}"


def display_path(path: str | os.PathLike[str], limit: int = 60) -> str:
    """The last part of a path that fits, printable: the file name matters more than the folders before it."""
    text = os.fspath(path)
    if len(display(text, limit=4096)) <= limit:
        return display(text, limit)
    return display(os.path.basename(text.rstrip("/")) or text, limit)


GONE = "; the folder is no longer there"
"""Of a folder that was there when the run began."""


def cannot_write(path: str | os.PathLike[str], error: OSError, state: str = "") -> LipverifyError:
    """What to raise where a disk refuses; state: what became of the work, after the reason."""
    reason = error.strerror or type(error).__name__
    return LipverifyError(f"cannot write to {display_path(path)}: {reason}{state}")


def sentence(path: str | os.PathLike[str], what: str, remedy: str = "") -> str:
    """`<file>: <what>; <what to do>`: the form of every message about a file."""
    return f"{display_path(path)}: {what}" + (f"; {remedy}" if remedy else "")


def _escape(character: str) -> str:
    if " " <= character <= "~" and character != "\\":
        return character
    if character == "\\":
        return "\\\\"
    code = ord(character)
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
