"""Answers kept between runs: one file for each, named by what decides its answer.

The folder belongs to the user, like any result: an entry that somebody forged is as little detected as a forged report. What is
detected is damage: every entry carries the sha256 of its body, and one that does not fit is computed again.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from lipverify.comparison.task import Solved
from lipverify.errors import UsageError
from lipverify.loading.names import GONE, cannot_write, display_path

SCHEMA = "lipverify.compare.entry/1"
_LARGEST = 1 << 31


Identity = Mapping[str, Any]
"""Everything that decides an answer, as JSON."""


def key_of(identity: Identity) -> str:
    """The name of an entry: sha256 of what decides the answer."""
    return hashlib.sha256(_bytes(identity)).hexdigest()


class Cache:
    """A folder of entries. Entries appear whole or not at all, so several runs may share one folder.

    Raises:
        UsageError: the path is something else than a folder. LipverifyError: the disk refuses.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        if self.folder.exists() and not self.folder.is_dir():
            raise UsageError(f"{display_path(self.folder)} is not a folder; give another one for the cache")

    def get(self, identity: Identity) -> Solved | None:
        """The kept answer; None where there is none that is whole and belongs to exactly this question."""
        path = self.folder / f"{key_of(identity)}.json"
        try:
            if path.is_symlink() or path.stat().st_size > _LARGEST:
                return None
            head, _, body = path.read_bytes().partition(b"\n")
            if head.decode("ascii") != hashlib.sha256(body).hexdigest():
                return None
            entry = json.loads(body)
            if entry["schema"] != SCHEMA or _bytes(entry["identity"]) != _bytes(identity):
                return None
            files = {name: base64.b64decode(data, validate=True) for name, data in entry["files"].items()}
            return Solved(entry["kind"], entry["document"], files)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return None

    def put(self, identity: Identity, solved: Solved) -> None:
        """Keeps an answer. Raises LipverifyError when the disk refuses."""
        files = {name: base64.b64encode(data).decode("ascii") for name, data in solved.files.items()}
        body = _bytes(
            {
                "schema": SCHEMA,
                "identity": identity,
                "kind": solved.kind,
                "document": solved.document,
                "files": files,
            }
        )
        part: str | None = None
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            handle, part = tempfile.mkstemp(prefix=".part-", dir=self.folder)
            with os.fdopen(handle, "wb") as file:
                file.write(hashlib.sha256(body).hexdigest().encode("ascii") + b"\n" + body)
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, self.folder / f"{key_of(identity)}.json")
        except OSError as error:
            gone = not self.folder.parent.exists()
            kept = GONE if gone else "; the answers before are kept there"
            raise cannot_write(self.folder, error, kept) from error
        finally:
            if part is not None:
                with suppress(OSError):
                    os.unlink(part)


def _bytes(value: Any) -> bytes:
    """One JSON text for equal values."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
