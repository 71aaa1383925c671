"""The output folder: one run at a time, nothing half written, nothing of others touched."""

from __future__ import annotations

import errno
import io
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from lipverify.errors import LipverifyError, UsageError
from lipverify.ir.certificate import Witness
from lipverify.reporting import writing
from lipverify.reporting.html import render_audit
from lipverify.reporting.writing import OutputFolder
from tests.unit.reporting import documents

WRITTEN = {
    "result.json",
    "report.html",
    "witness.npz",
    "certificates",
    "certificates/product.json",
    "certificates/lipsdp.json",
}


@dataclass
class Lower:
    witness: Witness


class Audit:
    """What the folder asks of an audit."""

    def __init__(self, *analyzers: str) -> None:
        points = torch.arange(6.0, dtype=torch.float64).reshape(1, 6)
        value = torch.tensor([4.88], dtype=torch.float64)
        self.lower = Lower(Witness(value, points, "ascent", partner=points + 1))
        self.analyzers = analyzers

    def certificate_files(self) -> dict[str, dict[str, bytes]]:
        return {
            name: {f"{name}.json": f'{{"schema": "lipverify.certificate/1", "of": "{name}"}}'.encode()}
            for name in self.analyzers
        }


def write(folder: OutputFolder, document: documents.Document | None = None) -> None:
    document = document or documents.mlp()
    audit = Audit(*(row["analyzer"] for row in document["results"]))
    page, result = render_audit(document).encode(), writing.document_bytes(document)
    folder.write({**writing.audit_files(audit, document), "report.html": page, "result.json": result})


def tree(path: Path) -> set[str]:
    return {str(found.relative_to(path)) for found in path.rglob("*")}


def contents(path: Path) -> dict[str, bytes]:
    return {str(found.relative_to(path)): found.read_bytes() for found in path.rglob("*") if found.is_file()}


def test_an_audit_is_written_completely_and_nothing_else(tmp_path: Path) -> None:
    place = tmp_path / "reports" / "net"
    document = documents.mlp()
    with OutputFolder(place) as folder:
        write(folder, document)
    assert tree(place) == WRITTEN
    assert json.loads((place / "result.json").read_text()) == document
    assert json.loads((place / "certificates/lipsdp.json").read_text())["of"] == "lipsdp"
    assert "<h1>net.onnx</h1>" in (place / "report.html").read_text()
    with np.load(io.BytesIO((place / "witness.npz").read_bytes()), allow_pickle=False) as witness:
        assert witness["points"].dtype == np.float64
        assert witness["points"].tolist() == [[0, 1, 2, 3, 4, 5]]
        assert witness["partner"].tolist() == [[1, 2, 3, 4, 5, 6]]
        assert witness["value"].tolist() == [4.88]
        assert str(witness["method"]) == "ascent"


def test_our_own_folder_is_written_again_and_stale_certificates_go(tmp_path: Path) -> None:
    with OutputFolder(tmp_path) as folder:
        write(folder)
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "certificates" / "foreign.json").write_text("mine")
    with OutputFolder(tmp_path) as folder:
        write(folder, documents.residual_cnn())
    expected = (WRITTEN - {"certificates/lipsdp.json"}) | {"notes.txt", "certificates/foreign.json"}
    assert tree(tmp_path) == expected


@pytest.mark.parametrize("foreign", ["notes.txt", ".hidden", "result.json"])
def test_a_folder_with_something_else_is_refused_unless_forced(tmp_path: Path, foreign: str) -> None:
    (tmp_path / foreign).write_text('{"schema": "other/1"}')
    before = contents(tmp_path)
    with pytest.raises(UsageError, match="--force"), OutputFolder(tmp_path):
        pass
    assert contents(tmp_path) == before
    with OutputFolder(tmp_path, force=True) as folder:
        write(folder)
    assert tree(tmp_path) >= WRITTEN
    assert (tmp_path / foreign).exists()


def test_a_run_that_writes_nothing_leaves_no_folder(tmp_path: Path) -> None:
    place = tmp_path / "new"
    with OutputFolder(place):
        assert place.is_dir()
    assert not place.exists()


def test_a_second_run_in_the_same_folder_is_refused(tmp_path: Path) -> None:
    place = tmp_path / "out"
    code = (
        "import sys; from lipverify.reporting.writing import OutputFolder\n"
        "from lipverify.errors import LipverifyError\n"
        "try:\n    OutputFolder(sys.argv[1]).__enter__()\n"
        "except LipverifyError as error:\n    print(error); sys.exit(error.exit_code)\n"
    )
    command = [sys.executable, "-c", code, str(place)]
    with OutputFolder(place) as folder:
        with pytest.raises(UsageError, match="another run"), OutputFolder(place):
            pass
        second = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
        assert second.returncode == 2
        assert "another run is writing to" in second.stdout
        write(folder)
    assert tree(place) == WRITTEN
    # The other process ends without unlocking; the system does it.
    assert subprocess.run(command, capture_output=True, timeout=280, check=False).returncode == 0
    with OutputFolder(place) as folder:
        write(folder)
    assert tree(place) == WRITTEN


def test_what_a_killed_run_left_is_swept(tmp_path: Path) -> None:
    with OutputFolder(tmp_path) as folder:
        write(folder)
    for left in (".part-0", "certificates/.part-1", ".lipverify.lock"):
        (tmp_path / left).write_text("half")
    with OutputFolder(tmp_path) as folder:
        write(folder)
    assert tree(tmp_path) == WRITTEN
    other = tmp_path / "killed"
    other.mkdir()
    (other / ".part-3").write_text("half")
    with OutputFolder(other) as folder:
        write(folder)
    assert tree(other) == WRITTEN


@pytest.mark.parametrize("failing", ["write", "fsync"])
@pytest.mark.parametrize("at", [1, 3, 5])
def test_a_full_disk_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str, at: int
) -> None:
    with OutputFolder(tmp_path) as folder:
        write(folder)
    before = contents(tmp_path)
    calls = 0
    real_write, real_fsync = writing._write, os.fsync

    def full() -> None:
        nonlocal calls
        calls += 1
        if calls == at:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def failing_write(parent: int, name: str, data: writing.Content) -> None:
        whole = io.BytesIO()
        if callable(data):
            data(whole)
        written = whole.getvalue() if callable(data) else data
        real_write(parent, name, written[: len(written) // 2])
        full()

    def failing_fsync(file: int) -> None:
        full()
        real_fsync(file)

    with OutputFolder(tmp_path) as folder:
        if failing == "write":
            monkeypatch.setattr(writing, "_write", failing_write)
        else:
            monkeypatch.setattr(os, "fsync", failing_fsync)
        with pytest.raises(LipverifyError, match=r"No space left on device.*intact") as caught:
            write(folder, documents.mlp() | {"command": "another"})
    assert caught.value.exit_code == 1
    assert tmp_path.name in str(caught.value)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("another", [False, True])
def test_a_folder_removed_in_mid_run_is_named(another: bool, tmp_path: Path) -> None:
    """Also where somebody, such as a cache in it, has made another folder at its path."""
    place = tmp_path / "gone"
    with OutputFolder(place) as folder:
        os.unlink(place / ".lipverify.lock")
        place.rmdir()
        if another:
            place.mkdir()
        with pytest.raises(LipverifyError, match="the folder is no longer there") as caught:
            write(folder)
    assert caught.value.exit_code == 1
    assert place.exists() == another


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes to read-only folders")
def test_a_read_only_folder_is_named(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(UsageError, match="Permission denied"), OutputFolder(tmp_path):
            pass
    finally:
        tmp_path.chmod(0o700)


@pytest.mark.parametrize("function", ["mkdir", "open"])
def test_a_disk_that_is_full_from_the_start_is_no_wrong_argument(
    function: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, function, full)
    with (
        pytest.raises(LipverifyError, match=r"No space left on device$") as caught,
        OutputFolder(tmp_path / "a"),
    ):
        pass
    assert caught.value.exit_code == 1
    assert not (tmp_path / "a").exists()


def test_symbolic_links_are_not_followed(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.mkdir()
    (tmp_path / "link").symlink_to(target)
    with pytest.raises(UsageError, match="symbolic link"), OutputFolder(tmp_path / "link"):
        pass
    secret = tmp_path / "secret.txt"
    secret.write_text("keep")
    for name in ("report.html", "result.json", "witness.npz"):
        (target / name).symlink_to(secret)
    with OutputFolder(target, force=True) as folder:
        write(folder)
    assert secret.read_text() == "keep"
    assert not (target / "report.html").is_symlink()
    second = tmp_path / "second"
    second.mkdir()
    (second / "certificates").symlink_to(tmp_path)
    before = contents(tmp_path)
    with OutputFolder(second, force=True) as folder, pytest.raises(LipverifyError, match="second"):
        write(folder)
    assert {name: data for name, data in contents(tmp_path).items() if "lock" not in name} == before


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(UsageError, match="not a folder"), OutputFolder(tmp_path / "file"):
        pass


def test_certificates_have_no_place_but_their_own(tmp_path: Path) -> None:
    document = documents.mlp()
    document["results"][0]["certificate"] = "certificates/../../escape.json"
    with OutputFolder(tmp_path / "out") as folder, pytest.raises(LipverifyError, match="no certificate"):
        write(folder, document)
    assert tree(tmp_path) == set()
    document["results"][0]["certificate"] = "certificates/lipsdp.json"
    with OutputFolder(tmp_path / "out") as folder, pytest.raises(UsageError, match="share one file"):
        write(folder, document)
    assert tree(tmp_path) == set()


def test_no_number_that_is_not_finite_reaches_the_disk(tmp_path: Path) -> None:
    document = documents.mlp() | {"extra": float("nan")}
    with OutputFolder(tmp_path / "out") as folder, pytest.raises(ValueError, match="JSON"):
        write(folder, document)
    assert tree(tmp_path) == set()


def test_a_write_that_ends_in_the_middle_is_taken_up_by_the_next_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, rename = tmp_path / "out", os.rename

    def interrupted(source: str, target: str, **folders: int) -> None:
        if target == "result.json":
            raise KeyboardInterrupt
        rename(source, target, **folders)

    with monkeypatch.context() as patched:
        patched.setattr(os, "rename", interrupted)
        with pytest.raises(KeyboardInterrupt), OutputFolder(place) as folder:
            write(folder)
    assert not (place / "result.json").exists()
    with OutputFolder(place) as folder:
        write(folder)
    assert tree(place) == WRITTEN
