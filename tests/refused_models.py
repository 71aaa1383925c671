"""What the importer refuses, the checker refuses: every model of the importer's refusals is shown to the checker's reader too."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lipverify.checkers.reader import Model, model_of_bytes
from lipverify.checkers.reader.agreement import agree
from lipverify.errors import LipverifyError, NotCovered

READ = {
    "test_operator_sets_outside_the_range[22]": "the checker reads operator sets that no front end speaks",
    "test_newer_operators_than_were_read": "what the importer has read is made less by the test",
    "test_a_wrong_translation_is_caught_and_located": "the fault is one that the test plants in the importer",
    "test_a_stack_of_a_million_matrices": "its account is one of numbers, not of matrices",
    "test_what_is_not_covered[constants0-2 scales]": "the importer has no rule for a scale of every channel of computed numbers",
}
"""Tests whose models the reader reads, and why: their meaning is not in doubt."""
SECONDS = 6.0


@pytest.fixture
def asked_again(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Models that `extract_onnx` or `read_onnx` of a test's module refuses are no program for the checker."""
    refused: list[bytes] = []

    def wrapped(read: Any) -> Any:
        def asked(source: Any, *arguments: Any, **options: Any) -> Any:
            try:
                return read(source, *arguments, **options)
            except LipverifyError:
                data = _bytes_of(source)
                if data is not None:
                    refused.append(data)
                raise

        return asked

    for name in ("extract_onnx", "read_onnx"):
        if hasattr(request.module, name):
            monkeypatch.setattr(request.module, name, wrapped(getattr(request.module, name)))
    yield
    allowed = request.node.name in READ
    for data in refused:
        started = time.monotonic()
        found = model_of_bytes("refused.onnx", data)
        assert time.monotonic() - started < SECONDS
        assert _refused(found, data) != allowed, (
            "the checker reads what the importer refuses, or no longer does"
        )
        assert found.program is not None or found.reason


def _refused(found: Model, data: bytes) -> bool:
    """Whether the reader refuses the file or an output of it, or a runtime does not agree with what was read."""
    if found.program is None or found.refused:
        return True
    try:
        agree(data, found.program, 0)
    except NotCovered:
        return True
    return False


def _bytes_of(source: Any) -> bytes | None:
    if isinstance(source, Path):
        return source.read_bytes() if source.stat().st_size < 1 << 28 else None
    return source.SerializeToString() if hasattr(source, "SerializeToString") else None
