"""Programs in processes of their own that need not wait for torch.

A process that imports torch and its exporter spends four seconds of a core before its first line; the suite starts
dozens. Here a server imports them once in each worker and forks a child for each program. A child is a real process:
it can be killed or interrupted, has its own folder, environment and exit code, and imports lipverify from nothing,
since the server has imported libraries of others alone. Its budgets count processor time (`clocks.py`). What a start
itself promises (`python -m lipverify`, what stays unimported, isolation) is tested on processes started by the system.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.context import ForkServerContext
from multiprocessing.forkserver import ensure_running
from multiprocessing.process import BaseProcess
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType

from tests import clocks

LIBRARIES = [
    "torch",
    "torch.export._trace",
    "torch._dynamo",
    "networkx",
    "scipy.optimize",
    "scipy.sparse.linalg",
]
"""No library that starts threads when it is imported: a fork would lose them."""


def server() -> ForkServerContext:
    """The server of this worker; also for pools that would spawn their processes."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(LIBRARIES)
    ensure_running()
    return context


def to_files(outputs: str) -> None:
    """Standard output and error of this process go to files of this folder."""
    for descriptor, name in ((1, "stdout"), (2, "stderr")):
        target = os.open(Path(outputs) / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        os.dup2(target, descriptor)
        os.close(target)


def _child(arguments: Sequence[str], folder: str, environment: Mapping[str, str], outputs: str) -> None:
    """The program of a child: `-m NAME ...`, `-c CODE ...` or `FILE ...`, as the interpreter reads them."""
    to_files(outputs)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    # A test runner in the background may have left the signal ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    time.monotonic = clocks.monotonic
    assert not any(name.partition(".")[0] == "lipverify" for name in sys.modules)
    sys.path[:0] = [path for path in environment.get("PYTHONPATH", "").split(os.pathsep) if path]
    kind, *rest = arguments
    if kind == "-m":
        sys.argv = rest
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    elif kind == "-c":
        sys.argv = ["-c", *rest[1:]]
        main = sys.modules["__main__"] = ModuleType("__main__")
        exec(compile(rest[0], "<string>", "exec"), main.__dict__)
    else:
        sys.argv = [kind, *rest]
        sys.path.insert(0, str(Path(kind).resolve().parent))
        runpy.run_path(kind, run_name="__main__")


@dataclass(frozen=True)
class Done:
    """What a program left behind."""

    returncode: int
    stdout: str
    stderr: str


@dataclass
class Running:
    """A program that runs; leaving the block kills it if it still does."""

    process: BaseProcess
    outputs: TemporaryDirectory[str]

    @property
    def pid(self) -> int:
        assert self.process.pid is not None
        return self.process.pid

    def signal(self, number: int) -> None:
        os.kill(self.pid, number)

    @property
    def alive(self) -> bool:
        return self.process.is_alive()

    def stderr(self) -> str:
        """What it has written until now."""
        path = Path(self.outputs.name) / "stderr"
        return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""

    def wait(self, timeout: float) -> Done:
        """Its code and output; a program that takes longer is killed and fails the test."""
        self.process.join(timeout)
        assert self.process.exitcode is not None, f"still running after {timeout} s: {self.stderr()}"
        texts = [Path(self.outputs.name) / name for name in ("stdout", "stderr")]
        out, err = (path.read_text(encoding="utf-8") if path.exists() else "" for path in texts)
        return Done(self.process.exitcode, out, err)

    def __enter__(self) -> Running:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.join()
        self.outputs.cleanup()


def start(
    *arguments: str | Path, folder: Path | None = None, environment: Mapping[str, str] | None = None
) -> Running:
    """Starts what `python ARGUMENTS` would run."""
    outputs: TemporaryDirectory[str] = TemporaryDirectory(prefix="lipverify-test-")
    process = server().Process(
        target=_child,
        args=(
            list(map(str, arguments)),
            str(folder or os.getcwd()),
            dict(os.environ if environment is None else environment),
            outputs.name,
        ),
    )
    process.start()
    return Running(process, outputs)


def run(
    *arguments: str | Path,
    folder: Path | None = None,
    environment: Mapping[str, str] | None = None,
    timeout: float = 250,
) -> Done:
    """Runs what `python ARGUMENTS` would run, until it ends."""
    with start(*arguments, folder=folder, environment=environment) as running:
        return running.wait(timeout)
