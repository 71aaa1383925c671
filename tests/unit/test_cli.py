"""The command line as scripts use it: one JSON document, fixed fields, exit codes, one sentence for every error."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lipverify import zoo
from tests.command import lipverify


def document(*arguments: str | Path) -> dict[str, Any]:
    done = lipverify(*arguments, "--json")
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.fixture(scope="module")
def points(tmp_path_factory: pytest.TempPathFactory) -> Path:
    x, y = zoo.points("digits-relu-mlp", 4)
    path = tmp_path_factory.mktemp("data") / "points.npz"
    np.savez(path, x=x.numpy(), y=y.numpy())
    return path


def test_a_process_of_its_own_prints_one_document_and_its_exit_code() -> None:
    command = [
        sys.executable,
        "-m",
        "lipverify",
        "audit",
        "zoo:digits-relu-mlp",
        "--analyzers",
        "product",
        "--json",
    ]
    done = subprocess.run(
        [*command, "--fail-above", "0.1"],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 3
    assert json.loads(done.stdout)["schema"] == "lipverify.audit/1"


def test_audit_prints_the_fixed_fields_and_writes_the_folder(tmp_path: Path) -> None:
    out = tmp_path / "report"
    found = document("audit", "zoo:digits-relu-mlp", "--analyzers", "product", "--budget", "5s", "--out", out)
    assert found["schema"] == "lipverify.audit/1"
    assert set(found["model"]) >= {
        "path",
        "sha256",
        "graph_digest",
        "format",
        "input_shape",
        "output_shape",
        "parameters",
        "operators",
        "import_check",
    }
    assert found["query"]["norm_in"] == found["query"]["norm_out"] == "l2"
    assert found["query"]["region"] == {"kind": "everywhere"}
    (row,) = found["results"]
    assert set(row) >= {"analyzer", "upper", "rigour", "seconds", "certificate"}
    assert found["lower"]["value"] <= row["upper"]
    assert found["best"] == {"analyzer": "product", "upper": row["upper"]}
    assert json.loads((out / "result.json").read_text())["best"] == found["best"]
    assert (out / "report.html").read_text().startswith("<!")
    assert (out / row["certificate"]).is_file()
    with np.load(out / found["lower"]["witness"]) as stored:
        assert len(stored.files) >= 2


def test_a_local_region_gives_one_number_for_each_centre(points: Path) -> None:
    options = ["--norm", "linf", "--data", points, "--radius", "8/255", "--box", "0,1", "--limit", "3"]
    found = document("audit", "zoo:digits-relu-mlp", *options, "--budget", "2s", "--analyzers", "local")
    assert found["query"]["region"] == {
        "kind": "ball",
        "norm": "linf",
        "radius": 8 / 255,
        "count": 3,
        "box": [0, 1],
    }
    assert len(found["results"][0]["upper"]) == len(found["lower"]["value"]) == 3
    assert all(
        low <= up for low, up in zip(found["lower"]["value"], found["results"][0]["upper"], strict=True)
    )


def test_a_margin_is_one_output() -> None:
    found = document(
        "audit", "zoo:digits-relu-mlp", "--margin", "3,5", "--budget", "2s", "--analyzers", "product"
    )
    assert found["model"]["output_shape"] == [1]


def test_inspect_lists_nodes_and_what_every_analyzer_says() -> None:
    found = document("inspect", "zoo:digits-cnn")
    assert {"name", "op", "inputs", "shape"} <= set(found["nodes"][0])
    assert found["analyzers"]["product"] is None


@pytest.mark.parametrize("command", [["analyzers"], ["doctor"], ["zoo", "list"]])
def test_listings_print_json_and_text(command: list[str]) -> None:
    assert document(*command)["schema"].startswith("lipverify.")
    assert lipverify(*command).stdout.strip()


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["audit", "absent.onnx"], 2),
        (["audit", "zoo:absent"], 2),
        (["audit", "zoo:digits-relu-mlp", "--norm", "l3"], 2),
        (["audit", "zoo:digits-relu-mlp", "--analyzers", "absent"], 2),
        (["audit", "zoo:digits-relu-mlp", "--radius", "0.1"], 2),
        (["audit", "zoo:digits-relu-mlp", "--radius", "0,1"], 2),
        (["audit", "zoo:digits-relu-mlp", "--output", "7"], 2),
        (["audit", "zoo:digits-relu-mlp", "--margin", "3,10"], 2),
        (["audit", "zoo:digits-relu-mlp", "--device", "tpu"], 2),
        (["audit", "zoo:digits-relu-mlp", "--budget", "soon"], 2),
        (["audit", "zoo:digits-relu-mlp", "--budget", "1s", "--fail-above", "1"], 3),
        (["audit", "zoo:digits-relu-mlp", "--budget", "1s", "--fail-above", "1000"], 0),
        (["audit"], 2),
        (["nonsense"], 2),
    ],
)
def test_exit_codes(arguments: list[str], code: int) -> None:
    done = lipverify(*arguments)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    if code:
        assert done.stderr.strip()


def test_weights_without_architecture_or_trust(tmp_path: Path) -> None:
    weights = zoo.root() / "digits-relu-mlp" / "weights.safetensors"
    architecture = f"{zoo.root() / 'digits-relu-mlp' / 'model.py'}:build"
    assert lipverify("audit", weights).returncode == 2
    refused = lipverify("audit", weights, "--arch", architecture)
    assert refused.returncode == 6
    assert "--trust-code" in refused.stderr
    options = ["--arch", architecture, "--trust-code", "--input-shape", "64", "--budget", "2s"]
    found = document("audit", weights, *options)
    assert found["model"]["trusted_code"]
    assert (
        found["model"]["graph_digest"] == document("inspect", "zoo:digits-relu-mlp")["model"]["graph_digest"]
    )
