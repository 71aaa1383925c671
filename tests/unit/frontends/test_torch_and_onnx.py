"""The same network as a torch module and as an ONNX file gives the same operators and the same numbers."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper
from torch import nn

from lipverify.frontends.onnx import extract_onnx
from lipverify.frontends.torch_export import extract
from lipverify.interpreter import evaluate
from lipverify.passes.simplify import simplify


def mlp():
    module = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 3), nn.Tanh()).eval()
    nodes = [
        ("Gemm", ["x", "0.weight", "0.bias"], ["a"], {"transB": 1}),
        ("Relu", ["a"], ["b"], {}),
        ("Gemm", ["b", "2.weight", "2.bias"], ["c"], {"transB": 1}),
        ("Tanh", ["c"], ["y"], {}),
    ]
    return module, (5,), nodes, {}


class MaxMin(nn.Module):
    def forward(self, x):
        a, b = x.split(3, 1)
        return torch.cat([torch.max(a, b), torch.min(a, b)], 1)


def maxmin():
    module = nn.Sequential(nn.Linear(5, 6), MaxMin(), nn.Linear(6, 2)).eval()
    nodes = [
        ("Gemm", ["x", "0.weight", "0.bias"], ["a"], {"transB": 1}),
        ("Split", ["a", "sizes"], ["left", "right"], {"axis": 1}),
        ("Max", ["left", "right"], ["high"], {}),
        ("Min", ["left", "right"], ["low"], {}),
        ("Concat", ["high", "low"], ["b"], {"axis": 1}),
        ("Gemm", ["b", "2.weight", "2.bias"], ["y"], {"transB": 1}),
    ]
    return module, (5,), nodes, {"sizes": np.array([3, 3])}


def cnn():
    module = nn.Sequential(
        nn.Conv2d(2, 4, 3, stride=2, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(4, 3)
    ).eval()
    nodes = [
        (
            "Conv",
            ["x", "0.weight", "0.bias"],
            ["a"],
            {"strides": [2, 2], "pads": [1, 1, 1, 1], "kernel_shape": [3, 3]},
        ),
        ("Relu", ["a"], ["b"], {}),
        ("MaxPool", ["b"], ["c"], {"kernel_shape": [2, 2], "strides": [2, 2]}),
        ("Flatten", ["c"], ["d"], {"axis": 1}),
        ("Gemm", ["d", "4.weight", "4.bias"], ["y"], {"transB": 1}),
    ]
    return module, (2, 5, 4), nodes, {}


@pytest.mark.parametrize("network", [mlp, maxmin, cnn])
def test_both_routes_agree(network, tmp_path):
    torch.manual_seed(0)
    module, sample, nodes, extra = network()
    stored = {name: value.numpy() for name, value in module.state_dict().items()} | extra
    float32 = onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        [helper.make_node(kind, ins, outs, **attributes) for kind, ins, outs, attributes in nodes],
        "network",
        [helper.make_tensor_value_info("x", float32, ["batch", *sample])],
        [helper.make_tensor_value_info("y", float32, None)],
        [numpy_helper.from_array(value, name) for name, value in stored.items()],
    )
    path = tmp_path / "network.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), path)
    by_file = simplify(extract_onnx(path))
    by_module = simplify(extract(module, torch.zeros(2, *sample)))
    assert by_file.operators() == by_module.operators()
    x = torch.randn(4, *sample)
    torch.testing.assert_close(evaluate(by_file, x), evaluate(by_module, x))
