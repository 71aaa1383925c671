"""Journals, interrupted runs and the command line."""

from __future__ import annotations

import json
import multiprocessing
import random
import signal
import time
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lipverify import ops, zoo
from lipverify.commands.radius import JOURNAL
from lipverify.errors import UsageError
from lipverify.ir.norm import Norm
from lipverify.robustness import Attack, Plan, radii
from lipverify.robustness.journal import Journal
from tests.networks import chain, tensor
from tests.processes import run, start
from tests.tiers import tier

KILLS = tier(3, 20)
LIMIT = str(2 * KILLS + 2)
"""Points of the killed commands: more than all of them finish before their kill."""
MANY = max(40, int(LIMIT))
"""Points of the other commands: so many that a run cannot end before a signal reaches it."""
OPTIONS = ["zoo:digits-relu-mlp", "--box", "0,1", "--looks", "3", "--norm", "linf", "--method", "crown"]

QUICK = Plan(Norm.LINF, "crown", looks=6, attack=Attack(4, 8, 3, 6))


@pytest.fixture(scope="module")
def points(tmp_path_factory: pytest.TempPathFactory) -> Path:
    x, y = zoo.points("digits-relu-mlp", MANY)
    path = tmp_path_factory.mktemp("data") / "points.npz"
    np.savez(path, x=x.numpy(), y=y.numpy())
    return path


def command(points: Path, out: Path, *more: str) -> list[str]:
    return ["-m", "lipverify", "radius", *OPTIONS, "--data", str(points), "--out", str(out), *more]


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


def killed_after(process: BaseProcess, journal: Path, points: int, delay: float) -> bool:
    """Kills the process a moment after the journal has grown by this many points; it may end before. Whether it was."""
    start, limit = lines(journal), time.monotonic() + 120
    while lines(journal) < start + points and time.monotonic() < limit and process.is_alive():
        time.sleep(0.002)
    time.sleep(delay)
    process.kill()
    process.join()
    return process.exitcode == -signal.SIGKILL


def lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def run_points(folder: Path, journal: str) -> None:
    """All points of a small network, with a journal; the document without durations at the end."""
    torch.set_num_threads(1)
    rng = np.random.default_rng(3)
    graph = chain([tensor(rng, 24, 6), tensor(rng, 16, 24), tensor(rng, 4, 16)], ops.ReLU())
    x = torch.tensor(rng.random((8 * KILLS + 4, 6)))
    with Journal(folder / journal, {"graph": graph.digest}, resume=True) as book:
        found = radii(graph, x, plan=QUICK, journal=book)
    document = found.to_json()
    (folder / f"{journal}.json").write_text(json.dumps(document))


def test_a_run_killed_again_and_again_ends_as_an_undisturbed_one(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    choice, killed = random.Random(0), 0
    for attempt in range(KILLS):
        process = context.Process(target=run_points, args=(tmp_path, "broken"))
        process.start()
        killed += killed_after(process, tmp_path / "broken", choice.randint(0, 3), choice.uniform(0.0, 0.05))
        if attempt % 2:
            with (tmp_path / "broken").open("ab") as stream:
                stream.write(b"0badc0de {")
    assert killed == KILLS
    assert not (tmp_path / "broken.json").exists()
    for name in ("broken", "whole"):
        process = context.Process(target=run_points, args=(tmp_path, name))
        process.start()
        process.join()
        assert process.exitcode == 0
    assert timeless(tmp_path / "broken.json") == timeless(tmp_path / "whole.json")


def test_the_command_goes_on_where_it_was_killed(points: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with start(*command(points, out)) as running:
        assert killed_after(running.process, out / JOURNAL, 4, 0.0)
    before = (out / JOURNAL).read_bytes()
    assert run(*command(points, out, "--resume")).returncode == 0
    assert (out / JOURNAL).read_bytes().startswith(before[: before.rindex(b"\n") + 1])
    assert len(json.loads((out / "result.json").read_text())["points"]) == MANY


@pytest.mark.timeout(60 + 30 * KILLS)
def test_the_command_killed_again_and_again_ends_with_the_same_file(points: Path, tmp_path: Path) -> None:
    """Each process is killed as soon as it has written: its header, the shared numbers, or a point, and a moment later."""
    choice, out, killed = random.Random(1), tmp_path / "run", 0
    for attempt in range(KILLS):
        more = ["--limit", LIMIT, *(["--resume"] if attempt else [])]
        with start(*command(points, out, *more)) as running:
            # The first process lives until its first point: header, shared numbers, one point.
            killed += killed_after(
                running.process, out / JOURNAL, 1 if attempt else 3, choice.uniform(0.0, 0.05)
            )
    assert killed == KILLS
    assert not (out / "result.json").exists()
    for folder, more in ((out, ["--resume"]), (tmp_path / "whole", [])):
        assert run(*command(points, folder, "--limit", LIMIT, *more), timeout=300).returncode == 0
    assert timeless(out / "result.json") == timeless(tmp_path / "whole" / "result.json")


def test_ctrl_c_keeps_what_is_done(points: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with start(*command(points, out)) as running:
        limit = time.monotonic() + 120
        while lines(out / JOURNAL) < 4 and time.monotonic() < limit:
            time.sleep(0.002)
        running.signal(signal.SIGINT)
        assert running.wait(60).returncode == 130
    assert lines(out / JOURNAL) >= 4
    assert run(*command(points, out, "--resume"), timeout=300).returncode == 0
    assert len(json.loads((out / "result.json").read_text())["points"]) == MANY


def test_an_unfinished_run_is_not_thrown_away_unasked(points: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    out.mkdir()
    (out / JOURNAL).write_bytes(b"")
    done = run(*command(points, out), timeout=60)
    assert done.returncode == 2
    assert "--resume" in done.stderr


def test_json_and_report(points: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    done = run(*command(points, out, "--limit", "2", "--json"))
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
