"""Tensors stored in the network, joined with computed values: ranges, constants and radii of the whole function."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import lipverify as lv
from lipverify import ops
from lipverify.analyzers.lipsdp.neurons import Signal, add
from lipverify.analyzers.local.gradients import derivative_ranges, interval_gradients
from lipverify.analyzers.local.walk import Walk
from lipverify.analyzers.protocol import Compute
from lipverify.analyzers.registry import resolve
from lipverify.errors import InternalError
from lipverify.frontends.builder import Builder
from lipverify.interpreter import evaluate_all
from lipverify.ir.graph import Graph, Origin
from lipverify.ir.norm import Norm
from lipverify.ir.op import Op
from lipverify.ir.region import Ball, Query
from lipverify.propagation.functionals import Functionals, ends_of
from lipverify.propagation.knowledge import Knowledge
from tests.networks import chain, tensor


def joined(stored: list[float], weight: torch.Tensor, op: Op, last: torch.Tensor) -> Graph:
    """last op(weight (x, stored)) with a bias 1 on the first output."""
    b = Builder(symbolic_batch=True)
    x = b.input((1, weight.shape[1] - len(stored)), 0)
    hidden = b.linear(b.concat([x, torch.tensor([stored])], 1), weight)
    bias = torch.zeros(len(last))
    bias[0] = 1.0
    return b.graph([b.linear(b.elementwise(op, hidden), last, bias)], Origin())


def one_kink() -> Graph:
    """x -> (1, relu(3 x)): the larger output changes at 1/3."""
    weight, last = torch.tensor([[1.0, 1.0], [3.0, 0.0]]), torch.tensor([[0.0, 0.0], [0.0, 1.0]])
    return joined([-0.5], weight, ops.ReLU(), last)


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_a_radius_ends_where_the_label_changes(norm: str) -> None:
    """A Constant at a Concat once bent the range of another entry: the radius was 1.493."""
    found = lv.radii(one_kink(), torch.zeros(1, 1), torch.tensor([0]), norm=norm)
    assert 0.3 < float(found.radius) <= 1 / 3


def test_slopes_of_another_entry_stay_unknown() -> None:
    """x -> (1, tanh(3 x)) has slope 3 at 0; a bent range made it 1.26."""
    weight, last = torch.tensor([[1.0, 1.0], [3.0, 0.0]]), torch.tensor([[0.0, 0.0], [0.0, 1.0]])
    graph = joined([-2.0], weight, ops.Tanh(), last)
    found = lv.audit(graph, norm="linf", region=Ball(torch.zeros(1, 1), 1.0), analyzers=["local"])
    assert 3.0 <= float(found.best.upper) <= 3.0 + 1e-9


@pytest.mark.parametrize("width", range(1, 5))
@pytest.mark.parametrize("op", [ops.ReLU(), ops.Abs(), ops.Tanh()], ids=str)
def test_ranges_hold_samples_for_every_width(op: Op, width: int, rng: np.random.Generator) -> None:
    for method in ("linear", "alpha"):
        graph = joined([0.7, -0.4], tensor(rng, width, 4), op, tensor(rng, 2, width))
        centre = torch.tensor(rng.standard_normal((3, 2)))
        found = lv.bounds(graph, Ball(centre, 1.5), method=method)
        points = centre + 1.5 * torch.tensor(rng.uniform(-1, 1, (300, 3, 2)))
        exact = graph.to(dtype=torch.float64)
        for index in range(3):
            for name, value in evaluate_all(exact, points[:, index]).items():
                assert bool((value >= found[name].lower[index] - 1e-12).all()), name
                assert bool((value <= found[name].upper[index] + 1e-12).all()), name


def test_functionals_of_other_shapes_are_no_bounds() -> None:
    """Nothing is broadcast over rows: each of these once gave a number."""
    graph = one_kink()
    known = Knowledge.of(graph, Ball(torch.zeros(2, 1), 1.0), torch.device("cpu"))
    node = graph.output
    rows, owner = torch.ones(3, *node.shape, dtype=torch.float64), torch.zeros(3, dtype=torch.long)
    with pytest.raises(InternalError, match="shape"):
        Functionals.start(known, {node.name: rows[:1]}, owner)
    with pytest.raises(InternalError, match="shape"):
        Functionals.start(known, {node.name: rows[:, :1]}, owner)
    walk = Functionals.start(known, {node.name: rows}, owner)
    with pytest.raises(InternalError, match="negative"):
        walk.ends()
    with pytest.raises(InternalError, match="among"):
        walk.keep(torch.ones(3, dtype=torch.bool))
    walk.mirror()
    with pytest.raises(InternalError, match="once"):
        walk.mirror()
    with pytest.raises(InternalError, match="negatives"):
        ends_of(torch.ones(3))


def test_signals_and_gradients_of_other_shapes_are_no_bounds() -> None:
    with pytest.raises(InternalError, match="matrix of shape"):
        Signal({0: torch.ones(1, 3)}, 2)
    with pytest.raises(InternalError, match="are added"):
        add(Signal({0: torch.ones(1, 3)}, 1), Signal({0: torch.ones(2, 3)}, 2))
    graph = chain([torch.ones(2, 3), torch.ones(1, 2)], ops.ReLU()).to(dtype=torch.float64)
    ranges = lv.bounds(graph, Ball(torch.zeros(2, 3), 1.0))
    seeds, factors = torch.ones(1, 1, dtype=torch.float64), derivative_ranges(graph, ranges)
    found = interval_gradients(graph, factors, seeds, 2)
    rows, owner = torch.ones(4, 1, 3, dtype=torch.float64), torch.tensor([0, 0, 1, 1])
    assert Walk(found, {graph.input.name: rows}, owner).upper().shape == (4, 1)
    with pytest.raises(InternalError, match="gradient"):
        Walk(found, {graph.input.name: rows[:1]}, owner).upper()


def test_minima_with_stored_tensors_keep_their_slopes() -> None:
    """relu(-1.5 min(x, 1)) has slope 1.5 below 0; the local constant was 0."""
    b = Builder(symbolic_batch=True)
    x = b.linear(b.input((1, 1), 0), torch.tensor([[1.0], [0.0]]))
    least = b.minimum(x, torch.tensor([1.0, 0.0]))
    bent = b.elementwise(ops.ReLU(), b.linear(least, torch.tensor([[0.0, -1.5], [-1.5, -1.5]])))
    graph = b.graph([b.linear(bent, torch.tensor([[0.0, 1.0]]))], Origin())
    query = Query(Norm.LINF, Norm.LINF, Ball(torch.zeros(1, 1), 1.0))
    for name in ("local", "local-sdp", "local-bab", "lipsdp"):
        assert float(resolve(name).bound(graph, query, Compute()).upper) >= 1.5, name
