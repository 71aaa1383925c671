"""One reader for every command: a table with names through `radius`, `audit`, `deviate` and `compare`."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest

from tests.command import lipverify
from tests.onnx_models import model, node

NAMES = "age,income,height,weight"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network of four inputs and three outputs, and a table of twelve points with the labels that it gives."""
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(4, 6)) / 2, rng.normal(size=(6, 3)) / 2
    nodes = [node("MatMul", ["x", "a"], ["h"]), node("Relu", ["h"], ["r"]), node("MatMul", ["r", "b"], ["y"])]
    place = tmp_path_factory.mktemp("data")
    onnx.save(model(nodes, ["n", 4], constants={"a": first, "b": second}), place / "net.onnx")
    x = rng.normal(size=(12, 4)) * 2
    labels = (np.maximum(x @ first.astype(np.float32), 0) @ second.astype(np.float32)).argmax(1)
    table(place / "good.csv", x, labels)
    table(place / "from-one.csv", x, labels + 1)
    table(place / "wrong.csv", x, (labels + 1) % 3)
    return place


def table(path: Path, x: np.ndarray, labels: np.ndarray) -> None:
    rows = [",".join(map(repr, row.tolist())) + f",{label}" for row, label in zip(x, labels, strict=True)]
    path.write_text("\n".join([f"{NAMES},label", *rows]) + "\n")


def asked(command: str, folder: Path, *rest: str, data: str = "good.csv") -> dict:
    done = lipverify(command, folder / "net.onnx", "--data", folder / data, "--json", *rest)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_radius(folder: Path) -> None:
    document = asked("radius", folder, "--method", "crown")
    assert document["clean_accuracy"] == 1.0
    assert document["data"]["points"] == 12
    assert document["data"]["notes"] == ['the labels are column "label"']


def test_radius_in_other_units(folder: Path) -> None:
    """Halving the points and doubling the network is no change of the answer; here the points alone are changed."""
    rest = ("--method", "crown", "--limit", "2", "--scale", "1/2", "--mean", "0.5", "--std", "2,1,1,1")
    document = asked("radius", folder, *rest, "--data-y", "none")
    assert document["data"]["scale"] == 0.5
    assert document["data"]["std"] == [2.0, 1.0, 1.0, 1.0]
    assert [point["label"] for point in document["points"]] == [
        point["predicted"] for point in document["points"]
    ]


def test_labels_that_are_all_wrong_are_no_report_of_zeros(folder: Path) -> None:
    done = lipverify("radius", folder / "net.onnx", "--data", folder / "wrong.csv")
    assert done.returncode == 2
    assert "all 12 labels are wrong" in done.stderr
    done = lipverify("radius", folder / "net.onnx", "--data", folder / "from-one.csv")
    assert done.returncode == 2
    assert "--first-label 1" in done.stderr
    document = asked(
        "radius", folder, "--method", "crown", "--limit", "3", "--first-label", "1", data="from-one.csv"
    )
    assert document["clean_accuracy"] == 1.0
    document = asked(
        "radius", folder, "--method", "crown", "--limit", "3", "--data-y", "none", data="wrong.csv"
    )
    assert max(point["radius"] for point in document["points"]) > 0


def test_audit_deviate_and_compare(folder: Path) -> None:
    document = asked(
        "audit", folder, "--radius", "0.1", "--limit", "2", "--norm", "linf", "--analyzers", "local"
    )
    assert len(document["results"][0]["upper"]) == 2
    assert document["data"]["points"] == 2
    done = lipverify(
        "deviate",
        folder / "net.onnx",
        folder / "net.onnx",
        "--data",
        folder / "good.csv",
        "--radius",
        "0.1",
        "--json",
    )
    assert json.loads(done.stdout)["data"]["points"] == 12
    done = lipverify(
        "compare",
        folder / "net.onnx",
        "--data",
        folder / "wrong.csv",
        "--radius",
        "0.1",
        "--limit",
        "10",
        "--json",
    )
    assert done.returncode == 0, done.stderr
    (curve,) = json.loads(done.stdout)["curves"]
    assert "labels are wrong" in curve["refused"]


@pytest.mark.parametrize("option", ["--data-x", "--data-y", "--scale", "--mean", "--std"])
def test_options_of_data_mean_nothing_without_it(option: str, folder: Path) -> None:
    done = lipverify("audit", folder / "net.onnx", option, "2")
    assert done.returncode == 2
    assert f"{option} means nothing here without --data" in done.stderr


@pytest.mark.parametrize(
    ("option", "value"), [("--scale", "0"), ("--mean", "1,x"), ("--std", "-1"), ("--scale", "1e400")]
)
def test_numbers_that_are_none(option: str, value: str, folder: Path) -> None:
    done = lipverify("radius", folder / "net.onnx", "--data", folder / "good.csv", option, value)
    assert done.returncode == 2
