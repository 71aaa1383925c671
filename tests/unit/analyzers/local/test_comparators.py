"""Maxima, sorts and reflections written out as ReLUs compute the same function."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lipverify import ops
from lipverify.analyzers.local.comparators import elementary
from lipverify.interpreter import evaluate
from lipverify.ir.graph import Graph, Node
from lipverify.ir.op import Input
from lipverify.testing.case import OperatorCase
from lipverify.testing.cases import operator_cases
from tests.networks import random_graph

WRITTEN_OUT = (
    ops.Maximum,
    ops.Minimum,
    ops.MaxPool,
    ops.ReduceMax,
    ops.ReduceMin,
    ops.GroupSort,
    ops.Householder,
)
CASES = [case for case in operator_cases() if isinstance(case.op, WRITTEN_OUT)]


def one_node(case: OperatorCase) -> Graph:
    """The operator alone; several inputs are slices of one vector."""
    sizes = [int(np.prod(shape)) for shape in case.input_shapes]
    nodes = [Node("x", Input(), (), (sum(sizes),))]
    for index, shape in enumerate(case.input_shapes):
        start = sum(sizes[:index])
        nodes.append(Node(f"s{index}", ops.Slice(0, start, start + sizes[index]), ("x",), (sizes[index],)))
        nodes.append(Node(f"r{index}", ops.Reshape(shape), (f"s{index}",), shape))
    names = tuple(f"r{index}" for index in range(len(sizes)))
    xs = [torch.zeros(1, *shape) for shape in case.input_shapes]
    from lipverify.rules import forward

    shape = tuple(forward(case.op, *xs).shape[1:])
    return Graph((*nodes, Node("y", case.op, names, shape)), ("y",))


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_each_operator(case: OperatorCase, whole: bool) -> None:
    graph = one_node(case)
    written = elementary(graph, whole)
    left = (ops.Maximum, ops.Minimum) if whole else ()
    assert not any(
        isinstance(node.op, WRITTEN_OUT) and not isinstance(node.op, left) for node in written.nodes
    )
    assert written.output.name == "y"
    x = torch.randn(50, *graph.input_shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    x[0] = 0.0
    x[1] = x[1].round()
    expected = evaluate(graph.to(dtype=torch.float64), x)
    found = evaluate(written.to(dtype=torch.float64), x)
    assert torch.allclose(found, expected, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("seed", range(30))
def test_random_graphs(seed: int) -> None:
    rng = np.random.default_rng(seed)
    graph = random_graph(rng)
    x = torch.tensor(rng.standard_normal((5, *graph.input_shape)))
    expected = evaluate(graph.to(dtype=torch.float64), x)
    found = evaluate(elementary(graph).to(dtype=torch.float64), x)
    assert torch.allclose(found, expected, rtol=1e-10, atol=1e-10 * float(expected.abs().max()))
