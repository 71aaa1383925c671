"""`compare --radii`: several models on one data set, as a document, a page and a run that can go on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import lipverify as lv
from lipverify import ops, zoo
from lipverify.errors import InternalError, UsageError
from lipverify.reporting.radii_compared import print_radii_compared, render_radii_compared
from lipverify.robustness import comparison_document
from tests.command import lipverify
from tests.networks import chain, tensor

MODELS = ("zoo:digits-relu-mlp", "zoo:digits-tanh-mlp")


@pytest.fixture(scope="module")
def points(tmp_path_factory: pytest.TempPathFactory) -> Path:
    x, y = zoo.points("digits-relu-mlp", 2)
    path = tmp_path_factory.mktemp("data") / "points.npz"
    np.savez(path, x=x.numpy(), y=y.numpy())
    return path


def test_a_folder_that_holds_what_single_runs_hold(
    points: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    options = ("--data", points, "--norm", "l2", "--radii", "crown")
    done = lipverify("compare", *MODELS, tmp_path / "none.onnx", *options, "--out", out, "--json")
    assert done.returncode == 0, done.stderr
    document: dict[str, Any] = json.loads(done.stdout)
    assert document["schema"] == "lipverify.compare-radii/1"
    assert [row["name"] for row in document["left_out"]] == ["none.onnx"]
    x, y = zoo.points("digits-relu-mlp", 2)
    for name, entry in zip(MODELS, document["models"], strict=True):
        alone = lv.radii(lv.load(name), x, y, norm="l2", method="crown")
        assert entry["radius"] == alone.radius.tolist()
        assert entry["attack_radius"] == alone.attack_radius.tolist()
    written = json.loads((out / "result.json").read_text())
    assert written["models"] == document["models"]
    page = (out / "report.html").read_text()
    assert all(name in page for name in MODELS)
    assert page.count('class="curve s1') == 3  # certified, attacked, legend
    # Killed after the last point: the journals have everything, the result is not there.
    (out / "result.json").unlink()
    refused = lipverify("compare", *MODELS, *options, "--out", out)
    assert refused.returncode == 2
    assert "--resume" in refused.stderr

    def never(*_: object) -> None:
        raise AssertionError("a point was certified again")

    monkeypatch.setattr("lipverify.robustness.run.answered", never)
    assert lipverify("compare", *MODELS, *options, "--out", out, "--resume").returncode == 0
    again = json.loads((out / "result.json").read_text())
    assert [m["radius"] for m in again["models"]] == [m["radius"] for m in document["models"]]


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--radii", "crown"], 2),
        (["--radii", "crown", "--data", "POINTS", "--norm", "l2,linf"], 2),
        (["--radii", "nonsense", "--data", "POINTS"], 2),
        (["--radii", "smoothing", "--data", "POINTS", "--norm", "linf"], 2),
    ],
)
def test_usage(arguments: list[str], code: int, points: Path) -> None:
    words = [str(points) if word == "POINTS" else word for word in arguments]
    assert lipverify("compare", MODELS[0], *words).returncode == code


def test_no_model_with_radii_ends_with_its_reason(points: Path) -> None:
    done = lipverify("compare", "zoo:wine-selu", "--data", points, "--norm", "l2", "--radii", "crown")
    assert done.returncode == 2
    assert "shape" in done.stderr


def test_the_page_marks_the_best_and_refuses_what_cannot_be() -> None:
    rng = np.random.default_rng(0)
    x = torch.tensor(rng.random((3, 5)))
    graphs = {name: chain([tensor(rng, 8, 5), tensor(rng, 3, 8)], ops.ReLU()) for name in MODELS}
    y = lv.evaluate(graphs[MODELS[0]].to(dtype=torch.float64), x).argmax(1)
    found = {
        name: lv.radii(graph, x, y, norm="l2", method="global", proofs=False)
        for name, graph in graphs.items()
    }
    document = comparison_document(found)
    best = max(document["models"], key=lambda m: m["mean_radius_common"])
    page = render_radii_compared(document)
    assert page.count('class="tag">best') == 1
    assert f"{best['name']} has the largest mean certified radius" in page
    print_radii_compared(document)
    document["models"][0]["radius"][0] = 1e9
    with pytest.raises(InternalError, match="above an example"):
        render_radii_compared(document)
    with pytest.raises(UsageError, match="nothing to compare"):
        comparison_document({})
