"""Norms and soft maxima written out compute the same, and their local bounds are above witnesses and below the product."""

from __future__ import annotations

import pytest
import torch

import lipverify as lv
from lipverify import ops
from lipverify.analyzers.local.comparators import elementary
from lipverify.falsify import Search
from lipverify.interpreter import evaluate, infer_shape
from lipverify.ir.graph import Graph, Node
from lipverify.ir.op import Input, Op
from lipverify.passes import simplify

KEPT = torch.tensor([[True, False, True], [True, True, True]])
ENDS: list[tuple[tuple[int, ...], Op]] = [
    ((2, 3), ops.ReduceNorm((1,), False)),
    ((6,), ops.ReduceNorm((0,), False)),
    ((2, 3), ops.ReduceLogSumExp((0, 1), True)),
    ((2, 3), ops.Normalize((0,))),
    ((2, 3), ops.Normalize((1,), 1)),
    ((2, 3), ops.LogSoftmax(0)),
    ((1, 2, 3), ops.LogSoftmax(1)),
    ((2, 3), ops.MaskedSoftmax(1, KEPT)),
]


@pytest.mark.parametrize(("shape", "op"), ENDS, ids=lambda x: x.kind() if isinstance(x, Op) else "")
def test_written_out(shape: tuple[int, ...], op: Op) -> None:
    torch.manual_seed(0)
    nodes = [Node("x", Input(), (), (4,))]
    for i, layer in enumerate(
        (ops.Linear(torch.randn(6, 4), torch.randn(6)), ops.Tanh(), ops.Reshape(shape), op)
    ):
        below = nodes[-1]
        nodes.append(Node(f"n{i}", layer, (below.name,), infer_shape(layer, (below.shape,))))
    graph = simplify(Graph(tuple(nodes), (nodes[-1].name,)))
    written = elementary(graph)
    assert op.kind() not in written.operators()
    x = torch.randn(5, 4, dtype=torch.float64)
    assert torch.allclose(
        evaluate(graph.to(dtype=torch.float64), x), evaluate(written.to(dtype=torch.float64), x)
    )
    result = lv.audit(
        graph, analyzers=["local"], region=lv.Ball(x[:2], 0.02, "l2"), search=Search(seconds=0.2)
    )
    (row,) = result.rows
    assert row.certificate is not None, row.refused
    assert bool((torch.as_tensor(row.upper) >= result.lower.value).all())
    assert bool((torch.as_tensor(row.upper) <= 3.0 * result.lower.value).all())
