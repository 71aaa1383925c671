"""The float32 execution statement is never below what float32 execution does, in whatever order it sums."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

import lipverify as lv
from lipverify import ops, rules, zoo
from lipverify.ir.graph import Graph
from tests import networks
from tests.onnx_models import model
from tests.onnx_models import node as written

NAMES = [
    "digits-relu-mlp",
    "digits-cnn",
    "digits-groupsort",
    "digits-tanh-mlp",
    "digits-silu-mlp",
    "digits-resnet",
]


def shuffled_linear(op: ops.Linear, x: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """float32 sums in a random order, one term after another."""
    order = torch.from_numpy(rng.permutation(op.weight.shape[-1]))
    total = torch.zeros(*x.shape[:-1], op.weight.shape[0], dtype=torch.float32)
    for i in order.tolist():
        total = total + x[..., i, None] * op.weight[:, i]
    return total if op.bias is None else total + op.bias


def executed(graph: Graph, x: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """The graph in float32, sums of dense layers in a random order."""
    values = {graph.input.name: x.float()}
    for node in graph.nodes[1:]:
        op = node.op.to(dtype=torch.float32)
        inputs = [values[name] for name in node.inputs]
        dense = isinstance(op, ops.Linear)
        values[node.name] = shuffled_linear(op, inputs[0], rng) if dense else rules.forward(op, *inputs)
    return values[graph.output.name]


@pytest.mark.parametrize("name", NAMES)
def test_the_figure_is_never_below_an_observed_difference(name: str, rng: np.random.Generator) -> None:
    if zoo.resolve(f"zoo:{name}") is None:
        pytest.skip("not in the zoo")
    graph = lv.load(f"zoo:{name}")
    found = lv.execution_error(graph, (0.0, 1.0))
    x = torch.from_numpy(rng.random((24, *graph.input_shape)))
    exact = lv.evaluate(graph.to(dtype=torch.float64), x)
    seen = torch.zeros_like(found.entries)
    for _ in range(3):
        seen = torch.maximum(seen, (executed(graph, x, rng).double() - exact).abs().amax(0))
    assert bool((seen <= found.entries).all())
    assert bool((seen > 0).any())
    if name == "digits-relu-mlp":
        assert found.linf < 0.01  # a figure of use, not only a true one


WRITTEN: dict[str, tuple[list[tuple[str, str, str]], dict[str, float], type]] = {
    "a clip far away": ([("Add", "x c", "a"), ("Relu", "a", "r"), ("Sub", "r c", "y")], {"c": 1e6}, ops.Clip),
    "a steep leak": (
        [("Relu", "x", "r"), ("Mul", "r s", "a"), ("Mul", "x t", "b"), ("Add", "a b", "y")],
        {"s": 1.0 - 2.0**20, "t": 2.0**20}, ops.LeakyReLU,
    ),
    "a large gate": (
        [("Erf", "x", "e"), ("Add", "e one", "a"), ("Mul", "x a", "b"), ("Mul", "b k", "y")],
        {"one": 1.0, "k": 1e6}, ops.ErfGate,
    ),
    "a large exponential": ([("Elu", "x", "y")], {}, ops.ELU),
    "a maximum": (
        [("Add", "x c", "f"), ("Sub", "x f", "d"), ("Relu", "d", "r"), ("Add", "r f", "y")], {"c": 1e5}, ops.Maximum,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WRITTEN)
def test_what_a_file_writes_out_is_rounded_where_it_is_written(
    name: str, tmp_path: Path, rng: np.random.Generator
) -> None:
    """Recognised as one operator, it rounded nothing: 6e-8 was printed of a file that is executed 0.03 away."""
    lines, numbers, kind = WRITTEN[name]
    nodes = [
        written(op, given.split(), [out], **({"alpha": 1e6} if op == "Elu" else {}))
        for op, given, out in lines
    ]
    stored = {key: np.array(value, np.float32) for key, value in numbers.items()}
    (tmp_path / "m.onnx").write_bytes(model(nodes, [1, 4], 13, stored).SerializeToString())
    graph = lv.load(tmp_path / "m.onnx")
    box = (-1e-3, 0.0) if name == "a large exponential" else (-4.0, 4.0)
    if name != "a maximum":
        assert any(isinstance(n.op, kind) for n in graph.nodes)
    figure = lv.execution_error(graph, box).entries
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx", providers=["CPUExecutionProvider"])
    x = rng.uniform(*box, (500, 4)).astype(np.float32)
    theirs = np.concatenate([session.run(None, {"x": row[None]})[0] for row in x])
    exact = lv.evaluate(graph.to(dtype=torch.float64), torch.from_numpy(x).double())
    seen = (torch.from_numpy(theirs).double() - exact).abs().amax(0)
    assert bool((seen <= figure).all())
    assert float(seen.max()) > 1e-3


def test_cancellation_is_seen(rng: np.random.Generator) -> None:
    """A mean of sums that cancel: the result is small, the error is not."""
    weight = torch.tensor([[1e6, -1e6, 1.0]], dtype=torch.float32)
    found = lv.execution_error(networks.chain([weight], ops.ReLU()), (0.999, 1.0))
    assert found.linf > 1e6 * 2.0**-24
    assert found.to_json()["format"] == "float32"


def test_overflow_and_empty_boxes_are_refused() -> None:
    graph = networks.chain([torch.full((2, 2), 1e30), torch.full((1, 2), 1e30)], ops.ReLU())
    with pytest.raises(lv.UnsupportedModel, match="overflow"):
        lv.execution_error(graph, (-1.0, 1.0))
    with pytest.raises(lv.UsageError):
        lv.execution_error(graph, (1.0, 0.0))
