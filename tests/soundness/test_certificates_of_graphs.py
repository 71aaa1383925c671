"""`lv.verify(certificate, graph)`: what a certificate says of the digest of a graph that has a file is its author's word."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import lipverify as lv
from lipverify.errors import OtherModel
from lipverify.ir.graph import Graph
from lipverify.pipeline import margin
from tests.onnx_models import model, node


@pytest.fixture
def graphs(tmp_path: Path) -> dict[str, Graph]:
    """Two outputs of one file, .1 relu(x) and diag(100, -100) relu(x), and a difference of two entries."""
    weights = {"a": np.eye(2, dtype=np.float32) / 10, "b": np.diag([100.0, -100.0]).astype(np.float32)}
    nodes = [node("Relu", ["x"], ["r"]), node("MatMul", ["r", "a"], ["y"]), node("MatMul", ["r", "b"], ["z"])]
    file = tmp_path / "two.onnx"
    file.write_bytes(model(nodes, [1, 2], constants=weights, outputs=("y", "z")).SerializeToString())
    first, second, named = (lv.load(file, output=output) for output in (0, 1, "z"))
    return {"first": first, "second": second, "named": named, "margin": margin(second, 0, 1)}


@pytest.mark.parametrize("asked", ["second", "named", "margin"])
def test_a_certificate_of_another_output_that_names_the_graphs_digest(
    graphs: dict[str, Graph], asked: str, tmp_path: Path
) -> None:
    issued = lv.audit(graphs["first"], analyzers=["product"]).certificates["product"].issued
    assert issued is not None
    for name, data in issued.files("c.json").items():
        (tmp_path / name).write_bytes(data)
    assert lv.verify(tmp_path / "c.json", graphs["first"]).upper < 0.11
    with pytest.raises(OtherModel):
        lv.verify(tmp_path / "c.json", graphs[asked])
    forged = json.loads((tmp_path / "c.json").read_text())
    forged["models"][0]["graph_digest"] = graphs[asked].digest
    (tmp_path / "c.json").write_text(json.dumps(forged))
    with pytest.raises(OtherModel, match="another output"):
        lv.verify(tmp_path / "c.json", graphs[asked])


@pytest.mark.parametrize("asked", ["first", "second", "named", "margin"])
def test_a_certificate_of_the_graph_is_about_it(graphs: dict[str, Graph], asked: str) -> None:
    found = lv.audit(graphs[asked], analyzers=["product"]).certificates["product"]
    assert lv.verify(found, graphs[asked]).upper > 0.09
