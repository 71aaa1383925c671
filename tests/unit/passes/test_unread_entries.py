"""Entries that the output does not read are left out, and nothing else changes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from lipverify import ops
from lipverify.interpreter import evaluate, infer_shape
from lipverify.ir.graph import Graph, Node
from lipverify.ir.op import Constant, Input
from lipverify.passes.unread_entries import without_unread_entries
from tests.attention_networks import Writer, random_transformer


def _reading_tokens(graph: Graph, op: ops.Slice | ops.Gather) -> Graph:
    """The transformer with some tokens of its last block in place of the mean of all."""
    last, mean = graph.output, graph[graph.output.inputs[0]]
    assert isinstance(mean.op, ops.ReduceMean)
    below = graph[mean.inputs[0]]
    part = Node("some", op, (below.name,), infer_shape(op, (below.shape,)))
    head = Node(last.name, last.op, ("some",), (*part.shape[:-1], *last.shape))
    kept = tuple(node for node in graph.nodes if node not in (last, mean))
    return replace(graph, nodes=(*kept, part, head))


@pytest.mark.parametrize("seed", range(8))
def test_last_block_is_of_the_tokens_that_are_read(seed: int) -> None:
    graph, x = random_transformer(seed)
    op = (ops.Slice(0, 0, 1), ops.Gather(0, torch.tensor([1, 0, 1])))[seed % 2]
    before = _reading_tokens(graph, op)
    after = without_unread_entries(before)
    x = torch.cat([x, -0.5 * x])
    torch.testing.assert_close(evaluate(after, x), evaluate(before, x), rtol=1e-12, atol=1e-12)
    for node in after.nodes:  # shapes are told by hand
        if node.inputs:
            assert infer_shape(node.op, tuple(after[name].shape for name in node.inputs)) == node.shape
    if seed % 2 == 0 or before[before["some"].inputs[0]].shape[0] > 2:
        assert sum(node.size for node in after.nodes) < sum(node.size for node in before.nodes)


def test_nodes_stay_where_all_entries_are_read() -> None:
    graph, _ = random_transformer(1)
    after = without_unread_entries(graph)
    assert len(after.nodes) == len(graph.nodes)
    assert all(new is old for new, old in zip(after.nodes, graph.nodes, strict=True))


def test_numbers_of_entries_go_with_them() -> None:
    """Stored tensors of every broadcast shape, a node read in two ways, and an operator that mixes all entries in between."""
    w = Writer(np.random.default_rng(0))
    w.nodes.append(Node("input", Input(), (), (3, 4)))
    rows = w.add(ops.Scale(w.tensor(3, 1), w.tensor(4)), ("input",), (3, 4))
    rows = w.add(ops.DivideBy(w.tensor(3, 4).abs() + 0.5), (rows,), (3, 4))
    rows = w.add(ops.Sub(), (rows, w.add(Constant(w.tensor(3, 4)), (), (3, 4))), (3, 4))
    rows = w.add(ops.Add(), (rows, w.add(Constant(w.tensor(1, 4)), (), (1, 4))), (3, 4))
    rows = w.add(ops.Tanh(), (rows,), (3, 4))
    first = w.add(ops.Slice(0, 0, 1), (rows,), (1, 4))
    third = w.add(ops.Slice(0, 2, 3), (rows,), (1, 4))
    both = w.add(ops.Mul(), (first, third), (1, 4))
    some = w.add(ops.Slice(1, 0, 4, 3), (both,), (1, 2))
    w.add(ops.Reshape((2,)), (some,), (2,))
    before = Graph(tuple(w.nodes), (w.nodes[-1].name,))
    after = without_unread_entries(before)
    x = torch.randn(5, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    assert torch.equal(evaluate(after, x), evaluate(before, x))
    assert after[rows].shape == (2, 2)
    assert after.input_shape == (3, 4)
    mixed = Node("mixed", ops.ReduceNorm((1,), True), (rows,), (3, 1))
    end = Node("end", ops.Slice(0, 2, 3), ("mixed",), (1, 1))
    assert without_unread_entries(Graph((*before.nodes[:-5], mixed, end), ("end",)))[rows].shape == (3, 4)


@pytest.mark.parametrize("axis", [0, 1])
def test_what_mixes_an_axis_keeps_all_of_it(axis: int) -> None:
    w = Writer(np.random.default_rng(1))
    w.nodes.append(Node("input", Input(), (), (3, 4)))
    size = (3, 4)[axis]
    x = w.add(ops.Linear(w.tensor(4, 4), w.tensor(4)), ("input",), (3, 4))
    kept = torch.tensor([[True, False, True, True], [True] * 4, [False, True, True, False]])
    x = w.add(ops.MaskedSoftmax(axis, kept), (x,), (3, 4))
    x = w.add(ops.LayerNorm((4,), w.tensor(4), w.tensor(4), 1e-5), (x,), (3, 4))
    numbers = (w.tensor(size), w.tensor(size), w.tensor(size), w.tensor(size).abs() + 0.1)
    x = w.add(ops.BatchNorm(*numbers, 1e-5, axis), (x,), (3, 4))
    x = w.add(ops.Gather(axis, torch.tensor([2, 1])), (x,), (2, 4) if axis == 0 else (3, 2))
    before = Graph(tuple(w.nodes), (x,))
    after = without_unread_entries(before)
    y = torch.randn(5, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(evaluate(after, y), evaluate(before, y), rtol=1e-13, atol=1e-13)
