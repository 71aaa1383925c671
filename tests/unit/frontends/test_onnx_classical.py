"""Files as converters of scikit-learn write them, by hand: scalers, linear models, a network, dictionaries at the end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

import lipverify as lv
from lipverify.errors import UnsupportedModel
from lipverify.frontends.onnx import extract_onnx
from tests.onnx_models import node, random

pytestmark = pytest.mark.usefixtures("asked_again")

ML = "ai.onnx.ml"


def ml(op: str, inputs: Any, outputs: Any, **attributes: Any) -> Any:
    return helper.make_node(op, inputs, outputs, name=f"{outputs[0]}_node", domain=ML, **attributes)


def pipeline(nodes: Any, outputs: Any, stored: Any = None, width: int = 4) -> Any:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, width])],
        outputs,
        [numpy_helper.from_array(value, name) for name, value in (stored or {}).items()],
    )
    sets = [helper.make_opsetid("", 13), helper.make_opsetid(ML, 1)]
    return helper.make_model(graph, ir_version=8, opset_imports=sets)


def scores(name: str = "y", width: int | None = None) -> Any:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, width])


def test_a_scaler_and_a_network_with_probabilities(tmp_path: Path) -> None:
    w, b, v = random(4, 5), random(5), random(5, 3)
    nodes = [
        ml("Scaler", ["x"], ["s"], offset=[0.1, 0.2, -1.0, 3.0], scale=[2.0, 0.5, 1.0, 4.0]),
        node("MatMul", ["s", "w"], ["a"]),
        node("Add", ["a", "b"], ["h"]),
        node("Relu", ["h"], ["r"]),
        node("MatMul", ["r", "v"], ["l"]),
        node("Softmax", ["l"], ["p"], axis=1),
        node("ArgMax", ["p"], ["best"], axis=1, keepdims=0),
        ml("ArrayFeatureExtractor", ["classes", "best"], ["label"]),
        ml("ZipMap", ["p"], ["probabilities"], classlabels_int64s=[0, 1, 2]),
    ]
    listed = helper.make_value_info(
        "probabilities",
        helper.make_sequence_type_proto(
            helper.make_map_type_proto(
                TensorProto.INT64, helper.make_tensor_type_proto(TensorProto.FLOAT, None)
            )
        ),
    )
    outputs = [helper.make_tensor_value_info("label", TensorProto.INT64, [None]), listed]
    path = tmp_path / "pipeline.onnx"
    onnx.save(pipeline(nodes, outputs, {"w": w, "b": b, "v": v, "classes": np.array([0, 1, 2])}), path)
    graph = lv.load(path, output="probabilities")
    assert graph.origin.part == 'output "probabilities" of the model'
    assert any("list of dictionaries" in note for note in graph.origin.notes)
    x = torch.randn(2, 4)
    scaled = (x - torch.tensor([0.1, 0.2, -1.0, 3.0])) * torch.tensor([2.0, 0.5, 1.0, 4.0])
    wanted = torch.softmax(
        torch.relu(scaled @ torch.from_numpy(w) + torch.from_numpy(b)) @ torch.from_numpy(v), -1
    )
    assert torch.allclose(lv.evaluate(graph, x), wanted, atol=1e-5)
    with pytest.raises(UnsupportedModel, match="ArgMax"):
        lv.load(path)


def test_linear_models() -> None:
    coefficients = random(2, 4).reshape(-1).tolist()
    regressor = ml(
        "LinearRegressor", ["x"], ["y"], coefficients=coefficients, intercepts=[0.5, -1.0], targets=2
    )
    assert extract_onnx(pipeline([regressor], [scores()])).operators() == {"Linear": 1}
    classifier = ml(
        "LinearClassifier", ["x"], ["label", "y"], coefficients=random(3, 4).reshape(-1).tolist(), intercepts=[0.0, 1.0, 2.0],
        classlabels_ints=[0, 1, 2], multi_class=1, post_transform="SOFTMAX",
    )  # fmt: skip
    assert extract_onnx(pipeline([classifier], [scores()])).operators() == {"Linear": 1, "Softmax": 1}


def test_features() -> None:
    nodes = [
        ml("Imputer", ["x"], ["i"], imputed_value_floats=[0.0], replaced_value_float=float("nan")),
        ml("ArrayFeatureExtractor", ["i", "k"], ["e"]),
        ml("FeatureVectorizer", ["e", "i"], ["f"], inputdimensions=[2, 4]),
        ml("Normalizer", ["f"], ["y"], norm="L2"),
    ]
    graph = extract_onnx(pipeline(nodes, [scores()], {"k": np.array([[3, 0]])}))
    assert graph.output_shape == (6,)
    assert "Normalize" in graph.operators()


@pytest.mark.parametrize(
    ("op", "attributes", "reason"),
    [
        ("TreeEnsembleRegressor", {}, "ensemble of trees, piecewise constant: it jumps at every split"),
        ("Binarizer", {"threshold": 0.5}, "maps numbers to categories, which jumps"),
        (
            "Imputer",
            {"imputed_value_floats": [1.0], "replaced_value_float": 0.0},
            "replaces the number 0, which jumps there",
        ),
        ("SVMRegressor", {}, "support vector machines are not covered"),
    ],
)
def test_refusals(op: str, attributes: Any, reason: str) -> None:
    with pytest.raises(UnsupportedModel, match=reason):
        extract_onnx(pipeline([ml(op, ["x"], ["y"], **attributes)], [scores()]))
