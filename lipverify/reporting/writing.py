"""The folder an audit is written to: locked against a second run, every file complete or not there at all."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol

from lipverify.errors import LipverifyError, UsageError
from lipverify.loading.names import GONE, cannot_write, display, display_path
from lipverify.reporting.places import CERTIFICATE, CERTIFICATES, REPORT, RESULT, WITNESS

if TYPE_CHECKING:
    from lipverify.ir.certificate import Witness

LOCK = ".lipverify.lock"
_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EIO}
"""What is wrong with the disk, whatever folder is given."""
_PART = ".part-"
_WRITTEN = {REPORT, WITNESS, CERTIFICATES}
"""What a run that is killed while it renames its files may leave without a result."""
_MARKER = re.compile(rb'\s*\{\s*"schema"\s*:\s*"lipverify\.')
_LARGEST_RESULT = 1 << 28


Content = bytes | Callable[[BinaryIO], object]
"""Of a file: its bytes, or what writes them."""


class _Lower(Protocol):
    @property
    def witness(self) -> Witness: ...


class WrittenAudit(Protocol):
    """What is written beside the document: certificates and witness."""

    @property
    def lower(self) -> _Lower: ...

    def certificate_files(self) -> Mapping[str, Mapping[str, bytes]]:
        """The files of every certificate by name, by analyzer."""
        ...


class OutputFolder:
    """A folder that only this run writes to. A context manager.

    Entering creates the folder and locks it; leaving unlocks it and, when nothing was written, removes a folder that
    was created here. Files are written under temporary names, flushed to disk and renamed together at the end, so a
    full disk leaves what was there before.

    Args:
        force: also write into a folder that holds something else. Nothing that we did not write is ever removed.

    Raises:
        UsageError: the path is no folder, is a symbolic link, holds something else, cannot be opened or made, or another run is
            writing to it. LipverifyError: the disk is full or broken, or refuses while it is written to; names the folder.
    """

    def __init__(self, path: str | os.PathLike[str], force: bool = False) -> None:
        self.path = Path(path)
        self.force = force
        self._folder: int | None = None
        self._lock: int | None = None
        self._created = False
        self._ours = False
        """A lock was left here by a run of ours that was killed, or ended while it wrote."""
        self._writing = False
        self._earlier: set[str] = set()
        """Certificates that an earlier result in this folder lists."""

    def __enter__(self) -> OutputFolder:
        try:
            self._open()
            self._lock = self._locked()
            self._accept()
        except OSError as error:
            # A folder that was made can be written to: the disk is full, or somebody removed it.
            refusal = self._refusal(error) if self._created or error.errno in _DISK else None
            self._close()
            if refusal is not None:
                raise refusal from error
            reason = error.strerror or type(error).__name__
            raise UsageError(
                f"cannot write to {display_path(self.path)}: {reason}; give a folder in which you may write"
            ) from error
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    def keep(self) -> None:
        """The folder holds something of ours from now on, even if the run ends early."""
        self._created = False

    def write(self, files: Mapping[str, Content]) -> None:
        """Writes files under plain names, or under `certificates/`; all of them are renamed only once all are on disk.

        Certificates of an earlier run of ours that are not among `files` are removed.
        """
        assert self._folder is not None, "the folder is entered before it is written to"
        staged: list[tuple[int, str, str]] = []
        self._writing = True
        with self._disk("; what was there before is intact"), self._certificates() as certificates:
            try:
                for index, (name, data) in enumerate(files.items()):
                    parent = certificates if "/" in name else self._folder
                    part = f"{_PART}{index}"
                    staged.append((parent, part, name.rpartition("/")[2]))
                    _write(parent, part, data)
                for parent, part, name in staged:
                    os.rename(part, name, src_dir_fd=parent, dst_dir_fd=parent)
            finally:
                for parent, part, _ in staged:
                    with suppress(FileNotFoundError):
                        os.unlink(part, dir_fd=parent)
            for name in self._earlier - set(files):
                with suppress(FileNotFoundError):
                    os.unlink(name.rpartition("/")[2], dir_fd=certificates)
            os.fsync(certificates)
            os.fsync(self._folder)
        self._writing = False
        self._created, self._earlier = False, {name for name in files if CERTIFICATE.fullmatch(name)}

    # -- opening and locking

    def _open(self) -> None:
        if self.path.is_symlink():
            raise UsageError(f"{display_path(self.path)} is a symbolic link; give the folder it points to")
        try:
            self.path.mkdir(parents=True)
            self._created = True
        except FileExistsError:
            if not self.path.is_dir():
                raise UsageError(f"{display_path(self.path)} is not a folder; give another one") from None
        self._folder = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)

    def _locked(self) -> int:
        """An exclusive lock that the system releases when the process ends, however it ends."""
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        while True:
            self._ours = LOCK in os.listdir(self._folder)
            lock = os.open(LOCK, flags, 0o600, dir_fd=self._folder)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(lock)
                raise UsageError(
                    f"another run is writing to {display_path(self.path)}; wait for it or give another folder"
                ) from None
            # A run that ended meanwhile may have removed the file that was locked here.
            with suppress(FileNotFoundError):
                if os.path.samestat(
                    os.fstat(lock), os.stat(LOCK, dir_fd=self._folder, follow_symlinks=False)
                ):
                    return lock
            os.close(lock)

    def _accept(self) -> None:
        """Refuses a folder with something else in it; sweeps what a killed run left."""
        assert self._folder is not None
        names = set(os.listdir(self._folder)) - {LOCK}
        earlier = self._earlier_result()
        foreign = {name for name in names if not name.startswith(_PART)}
        if foreign and earlier is None and not self.force and not (self._ours and foreign <= _WRITTEN):
            raise UsageError(
                f"{display_path(self.path)} holds {display(min(foreign), 40)}, which is no result of lipverify; "
                "give an empty folder, or --force to write beside it"
            )
        for name in names:
            if name.startswith(_PART):
                os.unlink(name, dir_fd=self._folder)
        self._earlier = set() if earlier is None else _listed_certificates(earlier)

    def _earlier_result(self) -> bytes | None:
        """The result of an earlier run of ours in this folder; None when there is none."""
        try:
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            file = os.open(RESULT, flags, dir_fd=self._folder)
        except OSError:
            return None
        with open(file, "rb") as stream:
            if not stat.S_ISREG(os.fstat(file).st_mode):
                return None
            data = stream.read(_LARGEST_RESULT)
        return data if _MARKER.match(data) else None

    @contextmanager
    def _certificates(self) -> Iterator[int]:
        with suppress(FileExistsError):
            os.mkdir(CERTIFICATES, dir_fd=self._folder)
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        folder = os.open(CERTIFICATES, flags, dir_fd=self._folder)
        try:
            for name in os.listdir(folder):
                if name.startswith(_PART):
                    os.unlink(name, dir_fd=folder)
            yield folder
        finally:
            os.close(folder)

    @contextmanager
    def _disk(self, state: str = "") -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise self._refusal(error, state) from error

    def _refusal(self, error: OSError, state: str = "") -> LipverifyError:
        made = self._created or self._folder is not None
        return cannot_write(self.path, error, GONE if made and self._gone() else state)

    def _gone(self) -> bool:
        """Whether the folder is no longer at its path; somebody may have made another one there."""
        try:
            now = os.stat(self.path)
        except OSError:
            return True
        return self._folder is not None and not os.path.samestat(os.fstat(self._folder), now)

    def _leaves_parts(self) -> bool:
        """Whether a write that did not end left something: the lock then says to the next run whose it is."""
        if self._writing:
            with suppress(OSError):
                os.rmdir(CERTIFICATES, dir_fd=self._folder)
        names = set(os.listdir(self._folder)) if self._writing else set()
        return bool(names & _WRITTEN) and RESULT not in names

    def _close(self) -> None:
        ours = self._created and not self._gone()
        if self._lock is not None:
            with suppress(OSError):
                if not self._leaves_parts():
                    os.unlink(LOCK, dir_fd=self._folder)
            os.close(self._lock)
            self._lock = None
        if self._folder is not None:
            os.close(self._folder)
            self._folder = None
        if ours:
            with suppress(OSError):
                self.path.rmdir()
        self._created = False


def _write(folder: int, name: str, data: Content) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with open(os.open(name, flags, 0o644, dir_fd=folder), "wb") as file:
        if callable(data):
            data(file)
        else:
            file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _listed_certificates(result: bytes) -> set[str]:
    """The certificates that a result lists; none of a result that cannot be read, so that nothing of it is removed."""
    try:
        rows = json.loads(result)["results"]
        names = {str(row.get("certificate")) for row in rows}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return set()
    beside = {name.removesuffix(".json") + ".safetensors" for name in names}
    return {name for name in names | beside if CERTIFICATE.fullmatch(name)}


def audit_files(audit: WrittenAudit, document: Mapping[str, Any]) -> dict[str, Content]:
    """Witness and certificates of an audit, by their places in a folder.

    Raises:
        UsageError: two certificates of one name.
    """
    shown = document["lower"]["witness"] is not None
    return {
        **_certificates(audit, document),
        **({WITNESS: partial(_witness, audit.lower.witness)} if shown else {}),
    }


def _certificates(audit: WrittenAudit, document: Mapping[str, Any]) -> dict[str, bytes]:
    certificates = audit.certificate_files()
    files: dict[str, bytes] = {}
    owners: dict[str, str] = {}
    for row in document["results"]:
        name = row.get("certificate")
        if name is None:
            continue
        if not CERTIFICATE.fullmatch(name) or not name.endswith(".json"):
            raise LipverifyError(f"no certificate is written to {display(name)}")
        if owners.setdefault(name, row["analyzer"]) != row["analyzer"]:
            both = f"{display(owners[name])} and {display(row['analyzer'])}"
            raise UsageError(
                f"the certificates of {both} would share one file; audit them one after the other"
            )
        folder = name.rpartition("/")[0]
        files |= {f"{folder}/{file}": data for file, data in certificates[row["analyzer"]].items()}
    return files


def document_bytes(document: Mapping[str, Any]) -> bytes:
    """A JSON document as it is written to disk."""
    return (json.dumps(document, indent=1, allow_nan=False) + "\n").encode("utf-8")


def _witness(witness: Witness, file: BinaryIO) -> None:
    import numpy as np

    target: Any = file if witness.let_go is None else _Relieved(file, witness.let_go)
    np.savez(target, method=np.array(witness.method), **witness.arrays())


class _Relieved:
    """A file before which what was written is let go: the pairs of many balls are in memory one piece after the other."""

    def __init__(self, file: BinaryIO, let_go: Callable[[], object]) -> None:
        self._file, self._let_go = file, let_go

    def write(self, data: bytes) -> int:
        written = self._file.write(data)
        self._let_go()
        return written

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)
