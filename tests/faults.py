"""Commands that something happens to: at a chosen operation on their folder, the process dies, the disk fills, the folder goes.

Which moment it is depends on no clock: a command asks the system for the same operations in the same order every time. It
runs in a fork of this process, which has imported everything: a killed command costs what it computed until then.
"""

from __future__ import annotations

import errno
import itertools
import json
import multiprocessing
import os
import shutil
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from lipverify.reporting.writing import LOCK
from tests.processes import Done, Running, to_files

KINDS = ("kill", "torn", "interrupt", "full", "read-only", "gone")

TIMES = {"created", "seconds", "command", "trace", "median_seconds", "times", "work"}
"""What differs between two runs, and with it how much came from an earlier one."""


@dataclass(frozen=True)
class Fault:
    """What happens at operation `at` (from 1) on files of a folder.

    kill: the process is killed before it. torn: half of a write, then killed. interrupt: Ctrl-C. full: it and every later
    one that needs room fails. read-only: it and every later change fails. gone: somebody removes the folder.
    """

    kind: str
    at: int


def run(arguments: list[str | Path], folder: Path, fault: Fault | None = None, timeout: float = 250) -> Done:
    """`lipverify ARGUMENTS`, with the fault at operations on files in `folder`."""

    def program() -> object:
        from lipverify.cli import main

        sys.argv = ["lipverify", *map(str, arguments)]
        return main()

    return run_function(program, folder, fault, timeout)


def run_function(
    program: Callable[[], object], folder: Path, fault: Fault | None = None, timeout: float = 250
) -> Done:
    """Any program, forked from this process. The count of its operations is the last line of its standard error."""
    outputs: TemporaryDirectory[str] = TemporaryDirectory(prefix="lipverify-test-")
    process = multiprocessing.get_context("fork").Process(
        target=_child, args=(program, folder.resolve(), fault, outputs.name)
    )
    process.start()
    with Running(process, outputs) as running:
        return running.wait(timeout)


def operations(done: Done) -> int:
    """How many operations on its folder a command that ended by itself asked for."""
    return int(done.stderr.rstrip().rsplit("\n", 1)[-1].removeprefix("operations: "))


def timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: timeless(each) for key, each in value.items() if key not in TIMES}
    return [timeless(each) for each in value] if isinstance(value, list) else value


def left(folder: Path) -> dict[str, Any]:
    """Every file of a folder: documents without times, pages and journals by name, others byte for byte.

    A lock that a disk refuses to let go says nothing.
    """
    found: dict[str, Any] = {}
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        if path.is_dir() or "cache/" in name or name == LOCK:
            continue
        if path.suffix == ".json":
            found[name] = timeless(json.loads(path.read_text()))
        elif path.suffix in (".html", ".jsonl"):
            found[name] = None
        else:
            found[name] = path.read_bytes()
    return found


def _child(program: Callable[[], object], folder: Path, fault: Fault | None, outputs: str) -> None:
    to_files(outputs)
    # Those of this process may be a test runner's.
    sys.stdout, sys.stderr = (os.fdopen(fd, "w", buffering=1, closefd=False) for fd in (1, 2))
    signal.signal(signal.SIGINT, signal.default_int_handler)
    count = itertools.count(1)
    _hook(folder, fault, count)
    try:
        program()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os.write(2, b"\noperations: %d\n" % (next(count) - 1))


def _hook(folder: Path, fault: Fault | None, count: itertools.count[int]) -> None:
    """Every function of `os` that changes something in the folder asks first."""

    def inside(target: Any, dir_fd: int | None) -> bool:
        if isinstance(target, int):
            path = os.readlink(f"/proc/self/fd/{target}")
        elif dir_fd is not None:
            path = os.path.join(os.readlink(f"/proc/self/fd/{dir_fd}"), os.fspath(target))
        else:
            path = os.path.abspath(os.fspath(target))
        return path == str(folder) or path.startswith(f"{folder}/")

    def before(name: str, real: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
        now = next(count)
        if fault is None or now < fault.at:
            return
        if fault.kind in ("kill", "torn") and now == fault.at:
            if fault.kind == "torn" and name == "write":
                real(arguments[0], arguments[1][: len(arguments[1]) // 2])
            os.kill(os.getpid(), signal.SIGKILL)
        if fault.kind == "interrupt" and now == fault.at:
            os.kill(os.getpid(), signal.SIGINT)
        if fault.kind == "gone" and now == fault.at:
            shutil.rmtree(folder, ignore_errors=True)
        if fault.kind == "full" and name in ("open", "write", "fsync", "mkdir"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if fault.kind == "read-only" and name != "fsync":
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    def hooked(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def asked(*arguments: Any, **options: Any) -> Any:
            reads = name == "open" and not arguments[1] & (os.O_CREAT | os.O_WRONLY | os.O_RDWR)
            near = options.get("dir_fd", options.get("src_dir_fd"))
            if not reads and inside(arguments[0], near):
                before(name, real, arguments)
            return real(*arguments, **options)

        return asked

    for name in ("open", "write", "fsync", "ftruncate", "mkdir", "rename", "replace", "unlink"):
        setattr(os, name, hooked(name, getattr(os, name)))
