"""The journal of a long run: a header that says what is asked, and one checked line for each point that is done.

A line is `<crc32 in hex> <JSON>`. Lines are appended in one write and flushed to disk before the next point begins, so that a
process that is killed loses the point in progress and nothing else; a line that was cut is recognised and dropped.
"""

from __future__ import annotations

import json
import os
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from lipverify.errors import InvalidFile, UsageError
from lipverify.loading.names import GONE, cannot_write, display_path, sentence

SCHEMA = "lipverify.radius.journal/1"
_LARGEST_LINE = 1 << 24
KEPT = "; what was done before is kept, go on with --resume"


@dataclass
class Journal:
    """An append-only file. A context manager.

    question: what decides the numbers (model, data, settings); shared: results that all points share.
    """

    path: Path
    question: dict[str, Any]
    resume: bool = False
    shared: dict[str, Any] | None = None
    records: dict[int, dict[str, Any]] = field(default_factory=dict)
    _file: int | None = None

    def __enter__(self) -> Journal:
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            self._file = os.open(self.path, flags, 0o644)
            end = self._read() if self.resume else 0
            os.ftruncate(self._file, end)
            os.lseek(self._file, end, os.SEEK_SET)
            if end == 0:
                self.records, self.shared = {}, None
                self._append({"kind": "header", "schema": SCHEMA, "question": self.question})
        except BaseException as error:
            self.close()
            if isinstance(error, OSError):
                gone = "" if self.path.parent.exists() else GONE
                raise cannot_write(self.path, error, gone) from error
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the file; may be called more than once."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def share(self, shared: dict[str, Any]) -> None:
        """Stores what all points share."""
        self.shared = shared
        self._append({"kind": "shared", "shared": shared})

    def add(self, record: dict[str, Any]) -> None:
        """Stores the record of one point."""
        self.records[int(record["index"])] = record
        self._append({"kind": "point", "record": record})

    def _append(self, entry: dict[str, Any]) -> None:
        assert self._file is not None, "the journal is entered before it is written to"
        body = json.dumps(entry, allow_nan=False, separators=(",", ":")).encode()
        line = b"%08x %s\n" % (zlib.crc32(body), body)
        written = 0
        try:
            while written < len(line):
                written += os.write(self._file, line[written:])
            os.fsync(self._file)
        except OSError as error:
            raise cannot_write(self.path, error, KEPT) from error

    def _read(self) -> int:
        """Reads all whole lines; returns where the first damaged one begins."""
        assert self._file is not None
        end, first = 0, True
        with os.fdopen(os.dup(self._file), "rb") as stream:
            stream.seek(0)
            while line := stream.readline(_LARGEST_LINE):
                entry = _entry(line)
                if entry is None:
                    break
                if first:
                    self._check(entry)
                elif entry.get("kind") == "shared":
                    self.shared = entry["shared"]
                elif entry.get("kind") == "point":
                    self.records[int(entry["record"]["index"])] = entry["record"]
                first = False
                end += len(line)
        return end

    def _check(self, header: dict[str, Any]) -> None:
        if header.get("kind") != "header" or header.get("schema") != SCHEMA:
            raise InvalidFile(sentence(self.path, "is no journal of a run over points"))
        before = header.get("question", {})
        asked = json.loads(json.dumps(self.question))  # tuples as lists
        changed = [key for key in asked if before.get(key) != asked[key]]
        if changed:
            raise UsageError(
                f"{display_path(self.path)} belongs to another question ({', '.join(changed)} differ); "
                "repeat the options of that run, or give --force without --resume to begin again"
            )


def _entry(line: bytes) -> dict[str, Any] | None:
    """The entry of a whole line; None for a damaged one."""
    try:
        check, body = line[:8], line[9:-1]
        if line[8:9] != b" " or not line.endswith(b"\n") or int(check, 16) != zlib.crc32(body):
            return None
        entry = json.loads(body)
    except (ValueError, RecursionError):
        return None
    return entry if isinstance(entry, dict) else None
