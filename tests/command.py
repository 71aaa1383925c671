"""The command line inside the test process: a process of its own costs two seconds to start, and few tests need one."""

from __future__ import annotations

import contextlib
import io
import sys
from pathlib import Path
from unittest import mock

from lipverify.cli import main
from tests.processes import Done


def lipverify(*arguments: str | Path) -> Done:
    """Runs `lipverify ARGUMENTS` through its entry point."""
    out, err = io.StringIO(), io.StringIO()
    code: object = 0
    with (
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        mock.patch.object(sys, "argv", ["lipverify", *map(str, arguments)]),
    ):
        try:
            main()
        except SystemExit as end:
            code = end.code
    assert code is None or isinstance(code, int)
    return Done(code or 0, out.getvalue(), err.getvalue())
