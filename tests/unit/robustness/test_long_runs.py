"""Journals, interrupted runs and the command line."""

from __future__ import annotations

import errno
import json
import os
import random
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lipverify import ops, zoo
from lipverify.commands.radius import JOURNAL
from lipverify.errors import LipverifyError, UsageError
from lipverify.ir.norm import Norm
from lipverify.robustness import Attack, Plan, radii
from lipverify.robustness.journal import Journal
from tests.command import lipverify
from tests.faults import Fault, run, run_function
from tests.networks import chain, tensor
from tests.tiers import tier

KILLS = tier(3, 20)
POINTS = 6
OPTIONS = ["zoo:digits-relu-mlp", "--box", "0,1", "--looks", "3", "--norm", "linf", "--method", "crown"]
FIRST = 10
"""The operation on its folder that the first point ends with; header and shared numbers come before."""

QUICK = Plan(Norm.LINF, "crown", looks=6, attack=Attack(4, 8, 3, 6))


@pytest.fixture(scope="module")
def points(tmp_path_factory: pytest.TempPathFactory) -> Path:
    x, y = zoo.points("digits-relu-mlp", POINTS)
    path = tmp_path_factory.mktemp("data") / "points.npz"
    np.savez(path, x=x.numpy(), y=y.numpy())
    return path


def command(points: Path, out: Path, *more: str) -> list[str | Path]:
    return ["radius", *OPTIONS, "--data", points, "--out", out, *more]


def timeless(path: Path) -> dict[str, Any]:
    """The document without moments and durations."""
    return without_times(json.loads(path.read_text()))


def without_times(document: dict[str, Any]) -> dict[str, Any]:
    document = json.loads(json.dumps(document))
    for key in ("created", "seconds", "command"):
        del document[key]
    for point in document["points"]:
        del point["seconds"]
    return document


def same_without_times(first: dict[str, Any], second: dict[str, Any]) -> bool:
    """Whether two documents are equal up to moments and durations, bit by bit."""
    return without_times(first) == without_times(second)


def lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def run_points(folder: Path, journal: str) -> None:
    """All points of a small network, with a journal; the document without durations at the end."""
    rng = np.random.default_rng(3)
    graph = chain([tensor(rng, 24, 6), tensor(rng, 16, 24), tensor(rng, 4, 16)], ops.ReLU())
    x = torch.tensor(rng.random((POINTS, 6)))
    with Journal(folder / journal, {"graph": graph.digest}, resume=True) as book:
        found = radii(graph, x, plan=QUICK, journal=book)
    document = found.to_json()
    (folder / f"{journal}.json").write_text(json.dumps(document))


def test_a_run_killed_again_and_again_ends_as_an_undisturbed_one(tmp_path: Path) -> None:
    """Killed in the middle of what it writes, after what it wrote, with rubbish at the end of its journal."""
    choice = random.Random(0)
    for attempt in range(KILLS):
        fault = Fault(choice.choice(["kill", "torn"]), choice.randint(1, 9))
        done = run_function(lambda: run_points(tmp_path, "broken"), tmp_path, fault)
        assert done.returncode == -signal.SIGKILL
        if attempt % 2:
            with (tmp_path / "broken").open("ab") as stream:
                stream.write(b"0badc0de {")
    assert not (tmp_path / "broken.json").exists()
    for name in ("broken", "whole"):
        run_points(tmp_path, name)
    assert timeless(tmp_path / "broken.json") == timeless(tmp_path / "whole.json")


def test_the_command_killed_again_and_again_ends_with_the_same_file(points: Path, tmp_path: Path) -> None:
    """Each process is killed as soon as it has written: its header, the shared numbers, or a point."""
    out, whole = tmp_path / "run", tmp_path / "whole"
    assert lipverify(*command(points, whole)).returncode == 0
    kept = b""
    for attempt in range(KILLS):
        more = ["--resume"] if attempt else []
        fault = Fault("kill", FIRST + attempt % 3 - 1)
        assert run(command(points, out, *more), out, fault).returncode == -signal.SIGKILL
        now = (out / JOURNAL).read_bytes()
        assert now.startswith(kept[: kept.rfind(b"\n") + 1])
        kept = now
    assert not (out / "result.json").exists()
    assert lipverify(*command(points, out, "--resume")).returncode == 0
    assert (out / JOURNAL).read_bytes().startswith(kept[: kept.rindex(b"\n") + 1])
    assert timeless(out / "result.json") == timeless(whole / "result.json")


def test_ctrl_c_keeps_what_is_done(points: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert run(command(points, out), out, Fault("interrupt", FIRST + 1)).returncode == 130
    assert lines(out / JOURNAL) == 3
    assert lipverify(*command(points, out, "--resume")).returncode == 0
    assert len(json.loads((out / "result.json").read_text())["points"]) == POINTS


def test_an_unfinished_run_is_not_thrown_away_unasked(points: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    out.mkdir()
    (out / JOURNAL).write_bytes(b"")
    done = lipverify(*command(points, out))
    assert done.returncode == 2
    assert "--resume" in done.stderr


def test_json_and_report(points: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    done = lipverify(*command(points, out, "--limit", "2", "--json"))
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["schema"] == "lipverify.radius/1"
    assert len(document["points"]) == 2
    for point in document["points"]:
        assert 0 < point["radius"] <= point["attack_radius"]
    assert json.loads((out / "result.json").read_text())["points"] == document["points"]
    assert "Certified radii" in (out / "report.html").read_text()


def test_a_journal_keeps_whole_lines_and_drops_cut_ones(tmp_path: Path) -> None:
    path = tmp_path / JOURNAL
    question = {"graph": "a", "sizes": (1, 2)}
    with Journal(path, question) as journal:
        journal.share({"constants": None})
        for index in range(3):
            journal.add({"index": index, "radius": 0.1 * index})
    data = path.read_bytes()
    for cut in range(1, 40, 7):
        path.write_bytes(data[:-cut])
        with Journal(path, question, resume=True) as journal:
            assert sorted(journal.records) == [0, 1]
            assert journal.shared == {"constants": None}
            journal.add({"index": 2, "radius": 0.2})
        assert path.read_bytes() == data
    flipped = bytearray(data)
    flipped[-10] ^= 1
    path.write_bytes(bytes(flipped))
    with Journal(path, question, resume=True) as journal:
        assert sorted(journal.records) == [0, 1]


def test_a_journal_of_another_question_is_refused(tmp_path: Path) -> None:
    path = tmp_path / JOURNAL
    with Journal(path, {"graph": "a", "norm": "l2"}) as journal:
        journal.add({"index": 0})
    with pytest.raises(UsageError, match="graph"), Journal(path, {"graph": "b", "norm": "l2"}, resume=True):
        pass
    with Journal(path, {"graph": "b", "norm": "l2"}) as journal:
        assert journal.records == {}


@pytest.mark.parametrize("operation", ["open", "ftruncate", "lseek", "write", "fsync"])
def test_what_a_disk_refuses_a_journal_is_its_fault(
    operation: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(os, operation, refuse)
    with pytest.raises(LipverifyError, match=r"cannot write to .*: Read-only file system"):
        Journal(tmp_path / JOURNAL, {"graph": "a"}).__enter__()
    monkeypatch.undo()
    with pytest.raises(LipverifyError, match="the folder is no longer there"):
        Journal(tmp_path / "gone" / JOURNAL, {"graph": "a"}).__enter__()
