"""What the importer refuses, the checker refuses: every model of the importer's refusals is shown to the checker's reader too."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lipverify.checkers.reader import model_of_bytes
from lipverify.errors import LipverifyError

READ = {
    "test_operators_without_a_rule[Log-": "a logarithm has values, and slopes where its argument is known to be positive",
    "test_operator_sets_outside_the_range[22]": "the checker reads operator sets that no front end speaks",
    "test_a_stack_of_a_million_matrices": "its account is one of numbers, not of matrices",
}
"""Tests whose models the reader may read, and why."""
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
    allowed = any(request.node.name.startswith(name) for name in READ)
    for data in refused:
        started = time.monotonic()
        found = model_of_bytes("refused.onnx", data)
        assert time.monotonic() - started < SECONDS
        assert found.program is None or found.refused or allowed, (
            "the checker reads what the importer refuses"
        )
        assert found.program is not None or found.reason


def _bytes_of(source: Any) -> bytes | None:
    if isinstance(source, Path):
        return source.read_bytes() if source.stat().st_size < 1 << 28 else None
    return source.SerializeToString() if hasattr(source, "SerializeToString") else None
