"""Commands that are killed, run out of disk or lose their folder: what they say, what is left, and how they go on."""

from __future__ import annotations

import itertools
import signal
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

import lipverify as lv
from lipverify.interpreter import evaluate
from lipverify.reporting.writing import OutputFolder
from tests.command import lipverify
from tests.faults import Fault, left, operations, run
from tests.onnx_models import model, node
from tests.tiers import FULL, also

# A run and the one that goes on after it are forks of this process: their searches are as short.


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two small networks and two points that both label: every operation on a folder is here, in a second."""
    folder = tmp_path_factory.mktemp("files")
    rng = np.random.default_rng(0)
    w, v = rng.standard_normal((6, 4)), rng.standard_normal((3, 6))
    nodes = [
        node("Gemm", ["x", "w"], ["h"], transB=1),
        node("Relu", ["h"], ["r"]),
        node("Gemm", ["r", "v"], ["y"], transB=1),
    ]
    for name, scale in (("a", 1.0), ("b", 1.01)):
        onnx.save(model(nodes, ["n", 4], constants={"w": scale * w, "v": v}), folder / f"{name}.onnx")
    x = torch.from_numpy(rng.random((2, 4)).astype(np.float32))
    y = evaluate(lv.load(folder / "a.onnx"), x).argmax(1)
    np.savez(folder / "points.npz", x=x.numpy(), y=y.numpy())
    return folder


def commands(files: Path) -> dict[str, tuple[list[str | Path], list[str]]]:
    """The arguments of each, and what a second run adds to go on after the first was ended."""
    a, b = files / "a.onnx", files / "b.onnx"
    around: list[str | Path] = ["--data", files / "points.npz"]
    return {
        "audit": (["audit", a, *around, "--radius", "0.02", "--analyzers", "product,local"], []),
        "radius": (["radius", a, *around, "--method", "crown", "--looks", "3"], ["--resume"]),
        "compare": (["compare", a, b, "--analyzers", "product,lipsdp-fast"], ["--resume"]),
        "deviate": (["deviate", a, b, *around, "--radius", "0.02"], []),
    }


@pytest.mark.parametrize("verb", ["audit", "radius", "compare", "deviate"])
def test_a_command_that_is_ended_goes_on_as_if_nothing_had_happened(
    verb: str, files: Path, tmp_path: Path
) -> None:
    """Killed at operations of its beginning, middle and end, and in the middle of a write; every one in the second tier."""
    arguments, more = commands(files)[verb]
    whole, out = tmp_path / "whole", tmp_path / "out"
    count = operations(run([*arguments, "--out", whole], whole))
    expected = left(whole)
    assert count > 10
    moments = range(1, count + 1) if FULL else (count // 3, count - 2)
    for at in moments:
        for kind in ("kill", "torn") if FULL else (("kill", "torn")[at % 2],):
            ended = run([*arguments, "--out", out], out, Fault(kind, at))
            assert ended.returncode == -signal.SIGKILL, (kind, at)
            again = lipverify(*arguments, "--out", out)
            if again.returncode == 2:
                assert "--resume" in again.stderr
                again = lipverify(*arguments, "--out", out, *more)
            assert again.returncode == 0, (kind, at, again.stderr)
            assert left(out) == expected, (kind, at)
            for path in sorted(out.rglob("*"), reverse=True):
                path.rmdir() if path.is_dir() else path.unlink()


WORDS = {
    "full": "No space left on device",
    "read-only": "Read-only file system",
    "gone": "the folder is no longer there",
}
SAMPLE = {
    ("audit", "full"),
    ("radius", "full"),
    ("radius", "gone"),
    ("compare", "read-only"),
    ("deviate", "gone"),
}


@pytest.mark.parametrize(
    ("verb", "kind"),
    [
        pair if pair in SAMPLE else also(pair, "as the others")
        for pair in itertools.product(("audit", "radius", "compare", "deviate"), WORDS)
    ],
)
def test_a_disk_that_refuses_is_said_in_one_sentence(
    verb: str, kind: str, files: Path, tmp_path: Path
) -> None:
    arguments, _ = commands(files)[verb]
    out = tmp_path / "out"
    for at in range(1, 40) if FULL else (1, 5):
        done = run([*arguments, "--out", out], out, Fault(kind, at))
        if done.returncode == 0:
            break
        # No folder can be made on a disk that is read-only: another one has to be given.
        assert done.returncode == (2 if (kind, at) == ("read-only", 1) else 1)
        error = next(line for line in done.stderr.splitlines() if line.startswith("error: "))
        assert "cannot write to" in error
        assert WORDS[kind] in error
        assert "Traceback" not in done.stderr
        assert not (out / "result.json").exists()


@pytest.mark.parametrize("verb", ["audit", "radius", "compare", "deviate"])
def test_two_runs_never_share_a_folder(verb: str, files: Path, tmp_path: Path) -> None:
    arguments, _ = commands(files)[verb]
    with OutputFolder(tmp_path / "out"):
        second = lipverify(*arguments, "--out", tmp_path / "out")
    assert second.returncode == 2
    assert "another run is writing to" in second.stderr
