"""The child that unpickles a checkpoint, forked from the test process: one that starts alone imports torch for two seconds.

It gets what the reader gives a program of the system: descriptors, an empty environment, a folder and a session of its own; the
same limits, and it can be killed. What only a start has (`-I`, a fresh interpreter) is the part of the tests that ask for
the fixture `system_child`.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from types import SimpleNamespace
from typing import IO, NoReturn


class ForkedChild:
    """In place of `subprocess.Popen`, as far as `lipverify.loading.state_dict` uses it."""

    def __init__(self, command: list[str], *, stdin: IO[bytes], stdout: IO[bytes], stderr: int, cwd: str,
                 env: dict[str, str], start_new_session: bool) -> None:  # fmt: skip
        assert "checkpoint_child" in command[3]
        assert stderr == subprocess.DEVNULL
        assert start_new_session
        self.returncode: int | None = None
        self.pid = os.fork()
        if self.pid == 0:
            _program(stdin.fileno(), stdout.fileno(), cwd, env)

    def wait(self, timeout: float | None = None) -> int:
        """Its exit code, or minus the signal that ended it; raises `subprocess.TimeoutExpired`."""
        end = None if timeout is None else time.monotonic() + timeout
        pause = 1e-4
        while self.returncode is None:
            done, status = os.waitpid(self.pid, 0 if end is None else os.WNOHANG)
            if done:
                self.returncode = os.waitstatus_to_exitcode(status)
            elif end is not None and time.monotonic() > end:
                raise subprocess.TimeoutExpired("checkpoint_child", float(timeout or 0))
            else:
                time.sleep(pause)
                pause = min(2 * pause, 0.01)
        return self.returncode


def _program(stdin: int, stdout: int, cwd: str, env: dict[str, str]) -> NoReturn:
    """What the child does; never returns into the test runner."""
    code = 1
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.setsid()
        nothing = os.open(os.devnull, os.O_WRONLY)
        for given, number in ((stdin, 0), (stdout, 1), (nothing, 2)):
            os.dup2(given, number)
        os.closerange(3, 1024)
        os.environ.clear()
        os.environ.update(env)
        os.chdir(cwd)
        from lipverify.loading.checkpoint_child import main

        main()
        code = 0
    finally:
        os._exit(code)


SYSTEM = SimpleNamespace(
    Popen=ForkedChild, DEVNULL=subprocess.DEVNULL, TimeoutExpired=subprocess.TimeoutExpired
)
"""In place of the module `subprocess`."""
