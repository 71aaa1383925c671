"""Bound an ONNX file, as the command `lipverify audit net.onnx --analyzers product,lipsdp` does."""

import tempfile
from pathlib import Path

import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

import lipverify as lv

torch.manual_seed(0)
module = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 3)).eval()


def onnx_of(module: nn.Sequential) -> onnx.ModelProto:
    """Two matrices and a ReLU as ONNX; any exporter will do."""
    stored = [numpy_helper.from_array(p.detach().numpy(), n) for n, p in module.named_parameters()]
    nodes = [
        helper.make_node("Gemm", ["x", "0.weight", "0.bias"], ["a"], transB=1),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Gemm", ["b", "2.weight", "2.bias"], ["y"], transB=1),
    ]
    ends = [
        helper.make_tensor_value_info(n, TensorProto.FLOAT, ["batch", size])
        for n, size in (("x", 6), ("y", 3))
    ]
    graph = helper.make_graph(nodes, "net", ends[:1], ends[1:], stored)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


with tempfile.TemporaryDirectory() as folder:
    path = Path(folder) / "net.onnx"
    onnx.save(onnx_of(module), path)
    graph = lv.load(path)

check = graph.origin.import_check
print(f"import check: largest difference {check.max_abs_difference:.1e} on {check.samples} samples")
for norm in ("l2", "linf"):
    result = lv.audit(graph, norm=norm, analyzers=["product"], budget=3)
    print(f"{norm}: {result.lower.value:.4f} <= L <= {result.best.upper:.4f}")
