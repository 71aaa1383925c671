"""What a command says to a question that makes no sense: exit code 2 and a sentence with the way out; nothing is passed over."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import lipverify as lv
from lipverify import pipeline
from tests.command import lipverify

MODEL = "zoo:digits-relu-mlp"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of points: good ones, and ones that are not."""
    folder = tmp_path_factory.mktemp("data")
    x = np.random.default_rng(0).random((3, 64))
    np.savez(folder / "good.npz", x=x, y=np.array([1, 2, 3]))
    np.savez(folder / "empty.npz", x=np.zeros((0, 64)))
    np.savez(folder / "narrow.npz", x=x[:, :63])
    np.savez(folder / "objects.npz", x=np.array([{"a": 1}, 2], dtype=object))
    np.savez(folder / "nan.npz", x=np.full((2, 64), np.nan))
    (folder / "text.npz").write_text("hello")
    return folder


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("missing", "no such file"),
        ("empty", "holds no points"),
        ("narrow", "points of shape [63], the model takes [64]"),
        ("objects", "holds Python objects"),
        ("nan", "only finite numbers"),
        ("text", "no rows"),
    ],
)
def test_points_that_are_none(name: str, words: str, data: Path) -> None:
    done = lipverify(
        "audit", MODEL, "--analyzers", "local", "--data", data / f"{name}.npz", "--radius", "0.1"
    )
    assert done.returncode == 2
    assert words in done.stderr
    assert f"{name}.npz" in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize("radius", ["-1", "nan", "inf", "0", "0,1", "8/0", "abc", "", "1e999", "0x1p-3"])
def test_radii_that_are_none(radius: str, data: Path) -> None:
    done = lipverify("audit", MODEL, "--data", data / "good.npz", f"--radius={radius}")
    assert done.returncode == 2
    assert f'radius "{radius}" must be' in done.stderr


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--radius", "0.1"), "--radius needs --data"),
        (("--ball", "linf"), "--ball means nothing here without --data and --radius"),
        (("--limit", "2"), "--limit means nothing here without --data"),
        (("--of", "0"), "--of means nothing here without --monotone"),
        (("--names", "a,b"), "--names means nothing here without --monotone"),
        (("--solver", "scs"), "for the analyzer lipsdp-cvxpy"),
        (("--execution", "float32"), "needs --box"),
        (("--fail-above", "nan"), "--fail-above takes a limit of at least 0"),
        (("--monotone", "0", "--box", "0,1", "--fail-above", "3"), "--fail-above"),
        (("--monotone", "0", "--box", "0,1"), "say which one (--of 0"),
        (("--monotone", ",", "--box", "0,1", "--of", "0"), "name at least one feature"),
        (("--monotone", "0", "--of", "0"), "needs a region"),
        (("--margin", "3,77"), "two different outputs between 0 and 9"),
        (("--output", "4"), "there is no output 4; the model has one output, 0: "),
        (("--norm", "l3"), "choose l1, l2, linf, token-rms or token-l2"),
        (("--analyzers", "nonsense"), "there is no analyzer 'nonsense'"),
        (("--device", "tpu"), "choose auto, cpu or cuda"),
    ],
)
def test_options_that_make_no_sense(options: tuple[str, ...], words: str) -> None:
    done = lipverify("audit", MODEL, *options)
    assert done.returncode == 2
    assert words in done.stderr


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--ball", "linf"), "--ball means nothing here without --data and --radius"),
        (("--everywhere",), "--everywhere means nothing here without --data and --radius"),
        (("--limit", "2"), "--limit means nothing here without --data"),
        (("--radius", "0.1"), "--radius needs --data"),
        (("--norm", "l2,l7"), "choose l1, l2 or linf"),
        (("--resume",), "--resume needs --out"),
        (("--radii", "crown"), "--radii needs --data"),
        (("--analyzers", "nonsense"), "there is no analyzer 'nonsense'"),
    ],
)
def test_comparisons_that_make_no_sense(options: tuple[str, ...], words: str) -> None:
    done = lipverify("compare", MODEL, *options)
    assert done.returncode == 2
    assert words in done.stderr


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--norm", "l1"), "choose its norm by itself (--ball linf"),
        (("--norm", "linf", "--box", "0.9,1"), "centre 0 lies outside the input box"),
    ],
)
def test_balls_that_are_none(options: tuple[str, ...], words: str, data: Path) -> None:
    done = lipverify("audit", MODEL, "--data", data / "good.npz", "--radius", "1/8", *options)
    assert done.returncode == 2
    assert words in done.stderr


def test_a_bound_of_a_difference_never_passes_for_one_of_the_model(tmp_path: Path) -> None:
    """Terminal, document, report and statement say what the number is about."""
    part = "entry 3 minus entry 5 of the output"
    files = tmp_path / "statement.json", tmp_path / "out"
    done = lipverify(
        "audit", MODEL, "--margin", "3,5", "--budget", "1s", "--statement", files[0], "--out", files[1]
    )
    assert done.returncode == 0, done.stderr
    assert "Entry 3 minus entry 5 of the output changes by at most" in " ".join(done.stdout.split())
    for path in (files[0], files[1] / "result.json"):
        found = json.loads(path.read_text(encoding="utf-8"))
        query = found["predicate"]["query"] if "predicate" in found else found["query"]
        assert query["of"] == part
        assert f"the change of {part} (l2)" in query["words"]
    assert part in (files[1] / "report.html").read_text(encoding="utf-8").lower()


def test_other_outputs_and_no_difference_are_said_too() -> None:
    graph = lv.load(MODEL)
    assert graph.origin.part is None
    assert "of" not in lv.audit(graph, budget=1).to_json()["query"]
    both = lv.compare({"a": pipeline.margin(graph, 1, 0)}, analyzers=["product"], budget=20)
    assert both.to_json()["queries"][0]["of"] == "entry 1 minus entry 0 of the output"
    assert pipeline.margin(graph, 1, 0).digest == pipeline.margin(graph, 1, 0).digest


def test_features_are_asked_once() -> None:
    command = ("audit", MODEL, "--monotone", "2,2,5", "--margin", "3,5", "--box", "0,1", "--budget", "1s")
    done = lipverify(*command, "--json")
    found = json.loads(done.stdout)
    assert [row["feature"] for row in found["features"]] == [2, 5]
    assert found["query"]["of"] == "entry 3 minus entry 5 of the output"
    assert "does entry 3 minus entry 5 of the output rise or fall" in " ".join(
        lipverify(*command).stdout.split()
    )


@pytest.mark.parametrize(("name", "text"), [("prose.json", "hello"), ("other.json", '{"schema": "else"}')])
def test_a_certificate_that_is_none_is_named(name: str, text: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    done = lipverify("verify", path, "--model", MODEL)
    assert done.returncode == 7
    assert f"{name} is not proved for {MODEL}: " in done.stderr
