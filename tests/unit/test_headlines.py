"""`verify DIR` holds the numbers of a report against its certificates: a folder says nothing better than they prove."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lipverify.commands.headlines import overstated
from tests.command import lipverify
from tests.soundness.certified import kinked_network


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of an audit, of one over balls and of radii, of one network."""
    folder = tmp_path_factory.mktemp("reports")
    net = kinked_network(folder / "net.onnx", 0)
    np.savez(folder / "x.npz", x=np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32))
    data = ("--data", folder / "x.npz", "--norm", "linf")
    for name, line in {
        "audit": ("audit", net, "--analyzers", "product,lipsdp"),
        "balls": ("audit", net, "--analyzers", "local", *data, "--radius", "0.05"),
        "radius": ("radius", net, *data, "--method", "crown"),
    }.items():
        done = lipverify(*line, "--out", folder / name, "-q")
        assert done.returncode == 0, done.stderr
    return {"net": net, **{name: folder / name for name in ("audit", "balls", "radius")}}


def row(document: Any, key: str = "results") -> dict[str, Any]:
    found = document[key][0]
    assert found["rigour"] == "checked"
    assert isinstance(found, dict)
    return found


CHANGES: dict[str, tuple[str, Callable[[Any], Any], str]] = {
    "a smaller constant": ("audit", lambda d: row(d).update(upper=0.01), "it says 0.01 where"),
    "a constant for one of three balls": ("balls", lambda d: row(d)["upper"].pop(), "it says"),
    "a smaller one of three": ("balls", lambda d: row(d)["upper"].__setitem__(1, 1e-3), "it says"),
    "no number": ("audit", lambda d: row(d).update(upper=None), "it says None"),
    "a row without a certificate": ("audit", lambda d: row(d).update(certificate=None), "names no certificate"),
    "another norm": ("audit", lambda d: d["query"].update(norm_out="linf"), "its query is about linf"),
    "a better best": ("audit", lambda d: d["best"].update(upper=0.01), "that of no row"),
    "a larger radius": ("radius", lambda d: row(d, "points").update(radius=99.0), "it says radius 99.0"),
    "another label": ("radius", lambda d: row(d, "points").update(label=7), "with label 7"),
    "a point left out": ("radius", lambda d: d["points"].pop(), "its points are not those"),
    "a radius that is none": ("radius", lambda d: row(d, "points").update(radius="0.1"), "it says radius '0.1'"),
    "a smaller constant, called the proved one of nothing": (
        "radius", lambda d: row(d, "points").update(rigour="real", proved=9.0), "it says radius 9.0",
    ),
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_numbers_that_no_certificate_carries(reports: dict[str, Path], change: str, tmp_path: Path) -> None:
    kind, edit, said = CHANGES[change]
    shutil.copytree(reports[kind], tmp_path / "report")
    result = tmp_path / "report" / "result.json"
    document = json.loads(result.read_text())
    edit(document)
    result.write_text(json.dumps(document))
    done = lipverify("verify", tmp_path / "report", "--model", reports["net"], "--json")
    assert done.returncode == 3
    refused = [c for c in json.loads(done.stdout)["certificates"] if c["exit_code"]]
    assert all(c["certificate"].endswith("result.json") for c in refused)
    assert any(said in c["reason"] for c in refused), refused


@pytest.mark.parametrize("kind", ["audit", "balls", "radius"])
def test_reports_as_they_are_written_are_carried(reports: dict[str, Path], kind: str) -> None:
    done = lipverify("verify", reports[kind], "--model", reports["net"])
    assert done.returncode == 0, done.stdout


def test_the_files_to_give_are_named(reports: dict[str, Path], tmp_path: Path) -> None:
    for about in (reports["audit"], reports["audit"] / "certificates" / "product.json"):
        done = lipverify("verify", about)
        assert done.returncode == 2
        assert "add --model net.onnx" in done.stderr
    (tmp_path / "c.json").write_text("{}")
    assert "add --model FILE" in lipverify("verify", tmp_path / "c.json").stderr
    assert "does not exist" in lipverify("verify", tmp_path / "away.json").stderr


def test_whatever_stands_in_a_result_is_no_error() -> None:
    proved = {"certificates/a.json": {"upper": 2.0, "norm_in": "l2"}}
    for upper in (None, "3", [], {}, [[3.0]], True):
        said = {
            "results": [{"rigour": "checked", "certificate": "certificates/a.json", "upper": upper}, 1, None]
        }
        assert list(overstated(said, proved))
    for document in (
        None,
        3,
        [],
        {"results": 3, "points": {}, "best": 1},
        {"points": [3, {"certificate": 4}]},
    ):
        assert not list(overstated(document, proved))
