"""The command: folders, resuming, several radii, curves."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

import lipverify as lv
from lipverify import zoo
from tests.command import lipverify


@pytest.fixture(scope="module")
def points(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "points.npz"
    shape = zoo.card("wine-selu").input_shape
    x = np.random.default_rng(0).standard_normal((5, *shape))
    np.savez(path, x=x.astype(np.float32), y=np.zeros(5, dtype=np.int64))
    return path


def documents(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((path / "result.json").read_text())
    return found


def test_a_folder_with_everything_and_a_second_run_from_the_cache(tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = (
        "compare",
        "zoo:wine-selu",
        tmp_path / "none.onnx",
        "--analyzers",
        "product,lipsdp-fast",
        "--out",
        out,
    )
    done = lipverify(*command)
    assert done.returncode == 0, done.stderr
    assert "none.onnx could not be read" in done.stdout.replace("\n", " ")
    found = documents(out)
    assert found["schema"] == "lipverify.compare/1"
    assert found["models"][1]["exit_code"] == 2
    assert found["work"] == {"computed": 3, "cached": 0}
    rows = found["models"][0]["audits"][0]["results"]
    for row in rows:
        assert lv.verify(out / row["certificate"], "zoo:wine-selu").upper == row["upper"]
    with np.load(out / "witnesses.npz") as witnesses:
        assert "0/0/points" in witnesses.files
    # The same again, and an unfinished run: the cache is there, the result is not.
    assert lipverify(*command).returncode == 0
    assert documents(out)["work"] == {"computed": 0, "cached": 3}
    (out / "result.json").unlink()
    refused = lipverify(*command)
    assert refused.returncode == 2
    assert "--resume" in refused.stderr
    assert lipverify(*command, "--resume").returncode == 0
    assert documents(out)["work"] == {"computed": 0, "cached": 3}
    assert {p.name for p in (out / "certificates").iterdir()} == {
        name for row in rows for name in _files(row["certificate"], out)
    }


def _files(place: str, out: Path) -> list[str]:
    name = Path(place).name
    beside = name.removesuffix(".json") + ".safetensors"
    return [name, beside] if (out / "certificates" / beside).exists() else [name]


def test_radii_norms_and_curves(points: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = lipverify(
        *(
            "compare",
            "zoo:wine-selu",
            "zoo:digits-relu-mlp",
            "--data",
            points,
            "--radius",
            "0.05,0.1",
            "--everywhere",
        ),
        *(
            "--norm",
            "l2,linf",
            "--ball",
            "linf",
            "--analyzers",
            "product,local",
            "--limit",
            "2",
            "--budget",
            "30s",
        ),
        *("--out", out, "--json"),
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    regions = [(q["norm_in"], q["region"].get("radius")) for q in found["queries"]]
    assert regions == [(norm, radius) for norm in ("l2", "linf") for radius in (None, 0.05, 0.1)]
    curves = {(curve["model"], curve["norm"]): curve for curve in found["curves"]}
    assert len(curves) == 4
    assert curves["zoo:wine-selu", "l2"]["certified_accuracy"][0] <= 1.0
    assert "shape" in curves["zoo:digits-relu-mlp", "linf"]["refused"]
    written = documents(out)
    assert {k: v for k, v in found.items() if k != "created"} == {
        k: v for k, v in written.items() if k != "created"
    }


@pytest.mark.parametrize(
    "arguments",
    [
        ["zoo:wine-selu", "--radius", "0.1"],
        ["zoo:wine-selu", "zoo:wine-selu"],
        ["zoo:wine-selu", "--analyzers", "nonsense"],
        ["zoo:wine-selu", "--resume"],
    ],
)
def test_usage(arguments: list[str]) -> None:
    assert lipverify("compare", *arguments).returncode == 2


def test_files_of_the_same_name_are_told_apart(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "net.onnx").write_bytes(b"damaged")
    done = lipverify("compare", tmp_path / "one/net.onnx", tmp_path / "two/net.onnx", "--json")
    assert [m["name"] for m in json.loads(done.stdout)["models"]] == ["one/net.onnx", "two/net.onnx"]
    assert done.returncode == 2
    shutil.rmtree(tmp_path / "one")


def test_copies_of_one_original(tmp_path: Path) -> None:
    """Each copy has its deviation with a certificate of its own, and a place in the picture; a stranger has its reason."""
    paths = [tmp_path / f"{name}.onnx" for name in ("float", "near", "far", "stranger")]
    rng = np.random.default_rng(0)
    first, last = (
        rng.standard_normal((3, 5)).astype(np.float32),
        rng.standard_normal((5, 2)).astype(np.float32),
    )
    for path, noise in zip(paths[:3], (0.0, 1e-3, 1e-1), strict=True):
        moved = first + np.float32(noise) * np.abs(first)
        path.write_bytes(_dense(moved, last))
    paths[3].write_bytes(_dense(first[:2], last))
    out = tmp_path / "out"
    done = lipverify(
        "compare", *paths, "--deviate", "--box", "0,1", "--analyzers", "product", "--out", out, "--json"
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)["deviations"]
    assert found["original"] == "float.onnx"
    assert found["bytes"] == paths[0].stat().st_size
    near, far, stranger = found["rows"]
    assert 0 < near["lower"] <= near["upper"] < far["lower"] <= far["upper"]
    assert [row["bytes"] for row in (near, far)] == [path.stat().st_size for path in paths[1:3]]
    assert "different shapes" in stranger["refused"]
    for row, path in zip((near, far), paths[1:3], strict=True):
        assert row["rigour"] == "checked"
        assert lv.verify(out / row["certificate"], [lv.load(paths[0]), lv.load(path)]).upper == row["upper"]
    page = (out / "report.html").read_text()
    assert "Copies of float.onnx" in page
    assert page.count("bytes</text>") == 1
    refused = lipverify("compare", paths[0], "--deviate", "--box", "0,1")
    assert refused.returncode == 2
    assert "--deviate needs copies" in refused.stderr
    refused = lipverify("compare", *paths[:2], "--deviate")
    assert refused.returncode == 2
    assert "give a region" in refused.stderr


def _dense(first: np.ndarray, last: np.ndarray) -> bytes:  # type: ignore[type-arg]
    nodes = [("MatMul", ["x", "v"], ["a"]), ("Relu", ["a"], ["r"]), ("MatMul", ["r", "w"], ["y"])]
    ends = [
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["n", size])
        for name, size in (("x", len(first)), ("y", last.shape[1]))
    ]
    stored = [numpy_helper.from_array(array, name) for name, array in (("v", first), ("w", last))]
    graph = helper.make_graph([helper.make_node(*parts) for parts in nodes], "g", ends[:1], ends[1:], stored)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(model.SerializeToString())
