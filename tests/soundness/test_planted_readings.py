"""Nobody is deceived in the ways that a hostile reading found; without the check that keeps one out, somebody is."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import pytest

from tests.soundness.planted_readings import FAULTS

pytest.importorskip("onnxruntime")


@pytest.mark.parametrize("fault", FAULTS)
def test_without_its_check_a_fault_is_there_again(
    fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, name, without, deceived = FAULTS[fault]
    for folder in ("kept", "gone"):
        (tmp_path / folder).mkdir()
    assert not deceived(tmp_path / "kept")
    place, _, owner = module.partition(":")
    where = import_module(f"lipverify.{place}")
    where = getattr(where, owner) if owner else where
    monkeypatch.setattr(where, name, without(getattr(where, name)))
    assert deceived(tmp_path / "gone")
