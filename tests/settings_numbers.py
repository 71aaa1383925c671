"""What the public verbs say about two small networks, to the last bit; `python -m tests.settings_numbers FILE` prints it."""

from __future__ import annotations

import json
import locale
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

import lipverify as lv
from lipverify.falsify import Search
from lipverify.robustness import Attack, Plan

SHAPE = (2, 6)


def network() -> nn.Module:
    """The same weights whatever the default type or device is."""
    generator = np.random.default_rng(0)
    with torch.random.fork_rng(devices=[]):
        layers = [
            nn.Conv1d(2, 3, 3, dtype=torch.float32, device="cpu"),
            nn.Linear(12, 3, dtype=torch.float32, device="cpu"),
        ]
    with torch.no_grad():
        for layer in layers:
            for parameter in layer.parameters():
                parameter.copy_(
                    torch.from_numpy(generator.standard_normal(parameter.shape, dtype=np.float32))
                )
    return nn.Sequential(layers[0], nn.ReLU(), nn.Flatten(), layers[1], nn.Tanh()).eval()


def points() -> np.ndarray[Any, Any]:
    """Three inputs."""
    return np.random.default_rng(1).standard_normal((3, *SHAPE)).astype(np.float32)


def write(path: Path) -> None:
    """A network as an ONNX file."""
    generator = np.random.default_rng(2)
    tensors = {
        name: generator.standard_normal(shape, dtype=np.float32)
        for name, shape in (("w", (5, 4)), ("b", (5,)), ("v", (3, 5)), ("c", (3,)))
    }
    nodes = [
        helper.make_node("Gemm", ["x", "w", "b"], ["h"], transB=1),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("Gemm", ["r", "v", "c"], ["y"], transB=1),
    ]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3])]
    stored = [numpy_helper.from_array(array, name) for name, array in tensors.items()]
    graph = helper.make_graph(nodes, "net", inputs, outputs, stored)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, str(path))


def numbers(file: str) -> dict[str, Any]:
    """Bounds, radii, ranges, directions, deviations, execution and a verdict."""

    def said(value: Any) -> Any:
        many = isinstance(value, torch.Tensor)
        return [float(v).hex() for v in value.flatten().tolist()] if many else float(value).hex()

    quick = Search(restarts=2, rounds=4)  # counted, so that no load ends it earlier
    plan = Plan(lv.Norm.L2, "crown", looks=5, attack=Attack(4, 8, 3, 6))
    x = torch.tensor(points().tolist(), dtype=torch.float32, device="cpu")
    graph, read = lv.extract(network(), x), lv.load(file)
    ball = lv.Ball(x[:1], 0.1, box=(-9, 9))
    whole = lv.audit(read, analyzers="product,lipsdp-fast,lipsdp", search=quick)
    local = lv.audit(graph, region=ball, norm="linf", analyzers="local", search=quick)
    rows = (*whole.rows, *local.rows)
    return {
        "digests": [graph.digest, read.digest],
        "upper": [said(row.upper) for row in rows],
        "rigour": [str(row.certificate.rigour) for row in rows if row.certificate is not None],
        "lower": [said(whole.lower.value), said(local.lower.value)],
        "radius": said(lv.radii(graph, x[:1], plan=plan).radius),
        "bounds": said(lv.bounds(graph, ball).output.upper),
        "monotone": [str(f.verdict) for f in lv.monotone(read, (0, 1), [0], output=0).findings],
        "deviation": said(lv.deviation(read, read, lv.InputBox((4,), -1, 1)).upper),
        "execution": said(lv.execution_error(read, (-1, 1)).linf),
        "verified": said(lv.verify(whole.certificates["lipsdp"], read).to_json()["upper"]),
        "evaluated": said(lv.evaluate(graph, x)),
        "printed": str(whole).splitlines()[-1][:20],
    }


if __name__ == "__main__":
    locale.setlocale(locale.LC_ALL, "")
    torch.set_num_threads(1)
    found = numbers(sys.argv[1])
    found["decimal point"] = locale.localeconv()["decimal_point"]
    print(json.dumps(found))
