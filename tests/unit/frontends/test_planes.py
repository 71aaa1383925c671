"""Convolutions over three spatial axes, folded into ones over two."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from torch import nn

import lipverify as lv
from lipverify.checkers.reader import model_of_bytes
from lipverify.checkers.reader.agreement import agree
from lipverify.falsify import Search
from lipverify.frontends.torch_export import extract
from lipverify.interpreter import evaluate
from tests.onnx_models import agrees, model, node

LAYERS = {
    "plain": nn.Conv3d(2, 3, 3, padding=1),
    "strides": nn.Conv3d(2, 4, (2, 3, 1), stride=(2, 1, 2), padding=(1, 0, 0), bias=False),
    "dilated groups": nn.Conv3d(2, 4, (2, 2, 2), dilation=(3, 1, 2), groups=2),
    "same": nn.Conv3d(2, 2, (4, 3, 3), padding="same"),
    "adjoint": nn.ConvTranspose3d(
        2, 4, 3, stride=(2, 1, 2), padding=(1, 0, 1), output_padding=(1, 0, 0), groups=2
    ),
    "adjoint, dilated": nn.ConvTranspose3d(
        2, 3, (2, 2, 1), dilation=(3, 1, 1), padding=(2, 0, 0), bias=False
    ),
    "maxima": nn.MaxPool3d(2, stride=(2, 1, 1)),
    "means": nn.AvgPool3d((2, 1, 2), padding=(1, 0, 0)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_layers_over_three_axes_are_those_of_torch(name: str) -> None:
    torch.manual_seed(0)
    layer = LAYERS[name].double().eval()
    x = torch.randn(3, 2, 5, 4, 6, dtype=torch.float64)
    graph = extract(layer, x)
    torch.testing.assert_close(evaluate(graph, x), layer(x).detach(), rtol=1e-12, atol=1e-12)


def test_the_gain_of_a_folded_kernel_is_that_of_its_matrix() -> None:
    torch.manual_seed(0)
    layer = nn.Conv3d(1, 2, (2, 1, 2), stride=(2, 1, 1), padding=(1, 0, 0)).double().eval()
    identity = torch.eye(4 * 2 * 3, dtype=torch.float64).reshape(-1, 1, 4, 2, 3)
    matrix = (layer(identity) - layer(torch.zeros_like(identity))).flatten(1).detach()
    largest = float(torch.linalg.matrix_norm(matrix, 2))
    upper = lv.audit(
        extract(layer, identity[:2]), analyzers=["product"], search=Search(seconds=0.1, rounds=1)
    ).upper
    assert largest <= upper <= 1.2 * largest


def test_onnx_files_are_read_on_both_sides() -> None:
    weight = np.random.default_rng(0).standard_normal((4, 1, 2, 3, 2)).astype(np.float32)
    nodes = [
        node("Conv", ["x", "w"], ["a"], strides=[1, 2, 1], pads=[1, 0, 0, 0, 1, 0], group=2),
        node("Relu", ["a"], ["b"]),
        node("ConvTranspose", ["b", "v"], ["y"], strides=[2, 1, 1], output_padding=[1, 0, 0]),
    ]
    stored = {"w": weight, "v": weight[:, :, :, :2]}
    source = model(nodes, ["N", 2, 4, 5, 3], 13, stored)
    agrees(source)
    found = model_of_bytes("m.onnx", source.SerializeToString())
    assert found.program is not None, found.reason
    agree(source.SerializeToString(), found.program)


@pytest.mark.parametrize("wanted", [[10, 8], [9, 7], [11, 7]])
def test_a_stated_output_larger_than_the_full_one_has_zeros_behind(wanted: list[int]) -> None:
    weight = np.random.default_rng(0).standard_normal((1, 2, 3, 3)).astype(np.float32)
    nodes = [node("ConvTranspose", ["x", "w", "b"], ["y"], strides=[3, 2], output_shape=wanted)]
    source = model(nodes, [1, 1, 3, 3], 13, {"w": weight, "b": np.float32([1, -2])})
    graph = agrees(source)
    assert list(graph.output_shape) == [2, *wanted]


def test_files_of_the_classical_domain_alone_need_no_version_of_the_standard_one() -> None:
    made = onnx.helper.make_node(
        "Scaler", ["x"], ["y"], domain="ai.onnx.ml", offset=[1.0, 2.0], scale=[2.0, 0.5]
    )
    values = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, 2]) for name in "xy"]
    graph = onnx.helper.make_graph([made], "g", values[:1], values[1:])
    source = onnx.helper.make_model(
        graph, opset_imports=[onnx.helper.make_opsetid("ai.onnx.ml", 1)], ir_version=8
    )
    found = lv.frontends.onnx.extract_onnx(source)
    x = torch.tensor([[3.0, -2.0]])
    assert evaluate(found, x).tolist() == [[4.0, -2.0]]
