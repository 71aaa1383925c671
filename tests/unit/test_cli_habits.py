"""What people try at a command line without reading: the version, completion, short options, times, a model's analyzers."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest

import lipverify as lv
from lipverify.reporting import terminal
from tests.command import lipverify

MODEL = "zoo:wine-selu"
APP = "import sys; sys.argv = ['lipverify']; from lipverify.cli import app; app(prog_name='lipverify')"


@pytest.mark.parametrize("option", ["--version", "-V"])
def test_the_version(option: str) -> None:
    done = lipverify(option)
    assert (done.returncode, done.stdout) == (0, f"lipverify {lv.__version__}\n")


def completed(words: str, count: int) -> list[str]:
    environment = {"_LIPVERIFY_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(count)}
    done = subprocess.run(
        [sys.executable, "-c", APP],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env={**os.environ, **environment},
    )
    return done.stdout.split()


def test_completion_knows_commands_and_the_options_of_one() -> None:
    assert completed("lipverify au", 1) == ["audit"]
    assert "--analyzers" in completed("lipverify audit --a", 2)
    assert "install-completion" in lipverify("--help").stdout


def test_short_options(tmp_path: Path) -> None:
    few = ("audit", MODEL, "--analyzers", "product", "--budget", "1 second")
    done = lipverify(*few, "-q", "-o", tmp_path / "report")
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "report" / "report.html").exists()
    said = lipverify(*few, "-v").stderr.splitlines()
    assert len(said) > 3
    assert any("s left" in line for line in said)


@pytest.mark.parametrize(
    ("arguments", "near"),
    [
        (("audti", MODEL), "audit"),
        (("audit", MODEL, "--anlyzers", "product"), "--analyzers"),
        (("audit", MODEL, "--analyzers", "lipsdb"), "lipsdp"),
        (("audit", "zoo:wine-sellu"), "wine-selu"),
        (("audit", "zoo:vit"), "digits-vit"),
    ],
)
def test_did_you_mean(arguments: tuple[str, ...], near: str) -> None:
    done = lipverify(*arguments)
    assert done.returncode == 2
    assert "did you mean" in done.stderr or "Possible options" in done.stderr
    assert near in done.stderr


def test_inspect_says_who_answers_around_points() -> None:
    said = " ".join(lipverify("inspect", MODEL).stdout.split())
    assert "local can answer around points (--data, --radius)" in said
    assert "lipsdp can answer" in said


def test_progress_counts_and_says_what_is_left() -> None:
    out = io.StringIO()
    with (
        mock.patch.object(terminal.time, "monotonic", return_value=100.0) as clock,
        terminal.Progress(file=out, verbose=True) as progress,
    ):
        progress.start("certifying points")
        clock.return_value += 20.0
        progress.update(2, 10)
        progress.limit(90.0)
        clock.return_value += 30.0
        progress.report("lipsdp", 9.72)
        clock.return_value += 90.0
        progress.report("lipsdp", 9.71)
    assert out.getvalue().splitlines() == [
        "certifying points",
        "certifying points: 2 of 10, about 1 min 20 s left",
        "lipsdp, at most 9.72001 so far, 60 s left",
        "lipsdp, at most 9.71001 so far, its time is over",
    ]
