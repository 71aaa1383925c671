"""Graphs are validated, selectable, hashable, and know their users."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from lipverify import ops
from lipverify.errors import InternalError, UsageError
from lipverify.frontends.builder import Builder
from lipverify.interpreter import evaluate, evaluate_all
from lipverify.ir.graph import Graph, Node, Origin
from lipverify.ir.op import Input
from tests.networks import random_graph, tensor


def two_heads(rng: np.random.Generator, scale: float = 1.0) -> Graph:
    b = Builder(symbolic_batch=True)
    x = b.input((1, 4), 0)
    b.where = "trunk"
    h = b.elementwise(ops.ReLU(), b.linear(x, tensor(rng, 5, 4) * scale))
    b.where = "left"
    left = b.linear(h, tensor(rng, 3, 5))
    b.where = "right"
    right = b.plus(b.linear(h, tensor(rng, 4, 5)), x)
    return b.graph([left, right], Origin())


def test_selecting_an_output_drops_what_it_does_not_need(rng: np.random.Generator) -> None:
    graph = two_heads(rng)
    x = tensor(rng, 6, 4)
    left, right = graph.select(0), graph.select(1)
    assert left.output_shape == (3,)
    assert right.output_shape == (4,)
    assert len(left.nodes) < len(graph.nodes)
    values = evaluate_all(graph, x)
    assert torch.equal(evaluate(right, x), values[graph.outputs[1]])
    with pytest.raises(UsageError, match="no output 2"):
        graph.select(2)


def test_the_digest_sees_parameters_and_wiring_but_not_names() -> None:
    first, again = two_heads(np.random.default_rng(1)), two_heads(np.random.default_rng(1))
    assert first.digest == again.digest
    assert first.digest != two_heads(np.random.default_rng(2)).digest
    assert first.digest != replace(first, output_index=1).digest
    renamed = Graph(
        tuple(
            replace(node, name=f"n.{node.name}", inputs=tuple(f"n.{name}" for name in node.inputs))
            for node in first.nodes
        ),
        tuple(f"n.{name}" for name in first.outputs),
    )
    assert renamed.digest == first.digest


def test_the_digest_sees_the_last_bit_of_a_weight(rng: np.random.Generator) -> None:
    weight = tensor(rng, 3, 3)
    changed = weight.clone()
    changed[1, 1] = torch.nextafter(changed[1, 1], torch.tensor(10.0))
    graphs = []
    for matrix in (weight, changed):
        b = Builder(symbolic_batch=True)
        graphs.append(b.graph([b.linear(b.input((1, 3), 0), matrix)], Origin()))
    assert graphs[0].digest != graphs[1].digest


def test_consumers_count_every_use(rng: np.random.Generator) -> None:
    b = Builder(symbolic_batch=True)
    x = b.input((1, 3), 0)
    graph = b.graph([b.plus(x, x)], Origin())
    assert len(graph.consumers[graph.input.name]) == 2
    assert graph.to_networkx().number_of_edges() == 2


@pytest.mark.parametrize(
    ("nodes", "outputs"),
    [
        ((Node("x", Input(), (), (2,)), Node("x", ops.ReLU(), ("x",), (2,))), ("x",)),
        ((Node("x", Input(), (), (2,)), Node("y", ops.ReLU(), ("z",), (2,))), ("y",)),
        ((Node("x", Input(), (), (2,)),), ("y",)),
        ((Node("y", ops.ReLU(), (), (2,)),), ("y",)),
        ((Node("x", Input(), (), (-2,)),), ("x",)),
    ],
)
def test_what_is_no_graph_is_refused(nodes: tuple[Node, ...], outputs: tuple[str, ...]) -> None:
    with pytest.raises(InternalError):
        Graph(nodes, outputs)


def test_evaluation_in_both_types_and_with_a_wrong_shape(rng: np.random.Generator) -> None:
    graph = random_graph(rng)
    x = torch.tensor(rng.standard_normal((5, *graph.input_shape)))
    exact = evaluate(graph.to(dtype=torch.float64), x)
    single = evaluate(graph.to(dtype=torch.float32), x.float())
    assert single.dtype == torch.float32
    assert torch.allclose(exact.float(), single, rtol=1e-3, atol=1e-3 * float(exact.abs().max()))
    with pytest.raises(UsageError, match="takes samples of shape"):
        evaluate(graph, x[:, :0])
