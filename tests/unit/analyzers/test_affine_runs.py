"""Channel-wise scalings beside convolutions of every kind are one operator with them."""

from __future__ import annotations

import pytest
import torch

from lipverify import ops
from lipverify.analyzers import affine_runs
from lipverify.analyzers.affine_runs import run_gain, run_matrix, runs
from lipverify.ir.graph import Graph, Node
from lipverify.ir.norm import Norm
from lipverify.ir.op import Input, Op
from lipverify.rules import forward


def normalisation(channels: int) -> ops.BatchNorm:
    g = torch.Generator().manual_seed(channels)
    weight, bias, mean, var = (torch.rand(channels, generator=g, dtype=torch.float64) for _ in range(4))
    return ops.BatchNorm(4.0 * weight - 1.0, bias, mean, var + 0.01, 1e-5, 0)


def chain(*steps: Op) -> Graph:
    nodes, x = [Node("x", Input(), (), (4, 5, 4))], torch.zeros(1, 4, 5, 4, dtype=torch.float64)
    for k, op in enumerate(steps):
        x = forward(op, x)
        nodes.append(Node(f"y{k}", op, (nodes[-1].name,), tuple(x.shape[1:])))
    return Graph(tuple(nodes), (nodes[-1].name,))


def weight(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


KERNELS = {
    "conv": lambda: (ops.Conv(weight(6, 4, 3, 2), None, (2, 1), ((1, 0), (0, 1)), (1, 1)), 6),
    "grouped": lambda: (ops.Conv(weight(6, 2, 3, 2), None, (1, 1), ((1, 1), (0, 1)), (1, 1), 2), 6),
    "depthwise": lambda: (ops.Conv(weight(8, 1, 3, 3), None, (1, 1), ((1, 1), (1, 1)), (1, 1), 4), 8),
    "transposed": lambda: (
        ops.ConvTranspose(weight(4, 6, 3, 3), None, (2, 2), ((1, 1), (1, 0)), (1, 0), (1, 1)),
        6,
    ),
    "transposed, grouped": lambda: (
        ops.ConvTranspose(weight(4, 3, 2, 3), None, (1, 2), ((0, 0), (1, 1)), (0, 1), (1, 1), 2),
        6,
    ),
}


@pytest.mark.parametrize("name", KERNELS)
def test_scalings_on_both_sides_join_the_kernel(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(affine_runs, "DENSE_ENTRIES", 0)
    op, channels = KERNELS[name]()
    graph = chain(normalisation(4), op, ops.Scale(torch.tensor(-2.0)), normalisation(channels))
    *_, run = runs(graph)
    assert len(run.nodes) == 4
    (piece,) = affine_runs._fused(run)
    assert type(piece.op) is type(op)
    matrix = run_matrix(run, lambda op: op)
    only = Graph((graph.nodes[0], Node("y", piece.op, ("x",), run.last.shape)), ("y",))
    *_, alone = runs(only)
    assert torch.allclose(run_matrix(alone, lambda op: op), matrix, rtol=1e-12, atol=1e-14)
    found = run_gain(run, Norm.L2, Norm.L2)
    norm = float(torch.linalg.matrix_norm(matrix, 2))
    assert found.note == "fused layers"
    assert norm * (1 - 1e-12) <= float(found.factors[0]) <= norm * (1 + 1e-6)


@pytest.mark.parametrize("norms", [(a, b) for a in Norm for b in Norm])
def test_a_slice_in_front_of_a_matrix_costs_no_matrix_of_the_run(
    norms: tuple[Norm, Norm], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step of a recurrent network reads a part of the input: the norm is that of its weights, over all of their columns."""
    monkeypatch.setattr(affine_runs, "_dense_gain", lambda *_: pytest.fail("no matrix is needed"))
    weight = torch.randn(6, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    graph = chain(ops.Slice(0, 2, 3), ops.Slice(1, 1, 2), ops.Reshape((4,)), ops.Linear(weight, None))
    run = list(runs(graph))[-1]
    alone = run_gain(
        list(runs(Graph((Node("x", Input(), (), (4,)), Node("y", run.last.op, ("x",), (6,))), ("y",))))[-1],
        *norms,
    )
    assert float(run_gain(run, *norms).factors[0]) == pytest.approx(float(alone.factors[0]), rel=1e-14)
