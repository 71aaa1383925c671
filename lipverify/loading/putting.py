"""Files that somebody names for a result: a path that cannot be written is their word, not an accident."""

from __future__ import annotations

from pathlib import Path

from lipverify.errors import UsageError
from lipverify.loading.names import display_path


def put(path: str | Path, data: bytes | str) -> None:
    """Writes a file; text as UTF-8.

    Raises:
        UsageError: the path cannot be written.
    """
    try:
        Path(path).write_bytes(data.encode() if isinstance(data, str) else data)
    except OSError as error:
        raise UsageError(f"{display_path(path)} cannot be written: {error.strerror}") from None
