"""The float32 execution statement is never below what float32 execution does, in whatever order it sums."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import lipverify as lv
from lipverify import ops, rules, zoo
from lipverify.ir.graph import Graph
from tests import networks

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
