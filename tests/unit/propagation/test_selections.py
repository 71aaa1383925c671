"""Terms of maxima that never count are left out, and nothing else: ranges and derivatives hold what networks do."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import lipverify as lv
from lipverify.analyzers.local.analyzer import local_bounds
from lipverify.analyzers.local.comparators import elementary
from lipverify.analyzers.local.walk import Walk
from lipverify.analyzers.protocol import Compute
from lipverify.errors import InternalError
from lipverify.interpreter import evaluate, evaluate_all
from lipverify.ir.graph import Graph
from lipverify.ir.norm import Norm
from lipverify.ir.region import Query
from lipverify.propagation import bounds, linear, selections
from tests.tiers import tier


class Extremes(nn.Module):
    """A maximum of a sum and its shift, a minimum, and a ReLU behind a maximum that is negative at many inputs."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.layers = nn.ModuleList([nn.Linear(5, 6), nn.Linear(5, 6), nn.Linear(6, 6), nn.Linear(6, 3)])

    def forward(self, x: Tensor) -> Tensor:
        h = torch.maximum(self.layers[0](x), self.layers[1](x))
        h = torch.relu(torch.maximum(h - 1.5, 0.5 * h - 1.4))
        return torch.as_tensor(self.layers[3](torch.minimum(self.layers[2](h), h - 0.1)))


def pooled(seed: int, shift: float, relu: bool = True) -> nn.Module:
    """Windows that overlap and hang over the border; shift: of the first bias, so that maxima are of either sign."""
    torch.manual_seed(seed)
    activation = nn.ReLU if relu else nn.Identity
    first = nn.Conv2d(1, 3, 3, padding=1)
    with torch.no_grad():
        first.bias += shift
    pools = [nn.MaxPool2d(3, 2, 1), nn.MaxPool2d(2)]
    middle = [activation(), pools[0], nn.Conv2d(3, 2, 3, padding=1), activation(), pools[1]]
    return nn.Sequential(first, *middle, nn.Flatten(), nn.Linear(8, 3))


def graph_of(kind: int, seed: int) -> Graph:
    if kind == 0:
        return lv.extract(Extremes(seed).double(), torch.zeros(1, 5, dtype=torch.float64))
    module = pooled(seed, (0.0, -0.5, 0.4)[seed % 3], kind == 1).double()
    return lv.extract(module, torch.zeros(1, 1, 8, 8, dtype=torch.float64))


def balls(graph: Graph, seed: int, norm: str = "linf") -> lv.Ball:
    g = torch.Generator().manual_seed(seed)
    center = 0.5 * torch.randn(2, *graph.input_shape, generator=g, dtype=torch.float64)
    return lv.Ball(center, (0.02, 0.2)[seed % 2], norm)


def samples(ball: lv.Ball, index: int, seed: int) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    c = ball.center[index : index + 1]
    step = torch.rand(60, *c.shape[1:], generator=g, dtype=torch.float64) * 2 - 1
    step[::2] = step[::2].sign()
    if ball.norm is Norm.L2:
        step = step / step.flatten(1).norm(dim=1).reshape(-1, *[1] * (step.ndim - 1))
    return c + 0.999 * ball.radius * step


def outside(graph: Graph, ball: lv.Ball) -> bool:
    """Whether a value leaves its range, or the largest sampled derivative its bound."""
    written = elementary(graph, whole=True).to(dtype=torch.float64)
    found = bounds(written, ball)
    query = Query(Norm.LINF, Norm.LINF, ball)
    upper = local_bounds(graph, query, Compute()).upper
    for index in range(len(ball)):
        x = samples(ball, index, index)
        for name, value in evaluate_all(written, x).items():
            box = found[name]
            slack = 1e-12 * (1.0 + value.abs())
            if bool(((value < box.lower[index] - slack) | (value > box.upper[index] + slack)).any()):
                return True
        x = x[:20].clone().requires_grad_(True)
        y = evaluate(graph.to(dtype=torch.float64), x)
        rows = [
            torch.autograd.grad(y[:, k].sum(), x, retain_graph=True)[0].flatten(1) for k in range(y.shape[1])
        ]
        if float(torch.stack(rows).abs().sum(2).max()) > float(upper[index]) * (1.0 + 1e-12):
            return True
    return False


@pytest.mark.parametrize("kind", range(3))
def test_values_and_derivatives_lie_inside(kind: int) -> None:
    for seed in range(tier(2, 60)):
        graph = graph_of(kind, seed)
        assert any(selections.selects(node) for node in elementary(graph, whole=True).nodes)
        assert not outside(graph, balls(graph, seed, ("linf", "l2")[seed // 2 % 2])), seed


def test_where_all_terms_are_negative_the_maximum_with_zero_is_zero() -> None:
    graph = lv.extract(pooled(0, -9.0).double(), torch.zeros(1, 1, 8, 8, dtype=torch.float64))
    ball = balls(graph, 1)
    found = bounds(elementary(graph, whole=True), ball)
    centre = evaluate(graph.to(dtype=torch.float64), ball.center)
    assert torch.allclose(found.output.lower, centre, atol=1e-12)
    assert torch.allclose(found.output.upper, centre, atol=1e-12)


def test_a_repeated_entry_of_a_window_counts_once() -> None:
    graph = lv.extract(
        nn.Sequential(nn.MaxPool2d(3, 2, 1)).double(), torch.zeros(1, 1, 4, 4, dtype=torch.float64)
    )
    written = elementary(graph, whole=True)
    (node,) = (n for n in written.nodes if selections.selects(n))
    # At a constant image all ranges are equal: a corner window has four entries, one on an edge six.
    box = bounds(written, lv.Ball(torch.zeros(1, 1, 4, 4, dtype=torch.float64), 1.0, "linf"))
    possible = box.known.possible[node.name].sum(0)
    assert possible.flatten().tolist() == [4, 6, 6, 9]


def test_many_terms_are_compared_in_a_tournament() -> None:
    graph = lv.extract(nn.AdaptiveMaxPool2d(1).double(), torch.zeros(1, 1, 6, 6, dtype=torch.float64))
    assert not any(selections.selects(node) for node in elementary(graph, whole=True).nodes)


class Falling(nn.Module):
    """-max(3 x, y, 2 y - 1): the third term counts nowhere near 0."""

    def forward(self, x: Tensor) -> Tensor:
        return -torch.maximum(torch.maximum(3.0 * x[:, :1], x[:, 1:]), 2.0 * x[:, 1:] - 1.0)


def test_wrong_rules_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Terms are left out that may count; the smallest coefficient is forgotten."""
    right, ends = linear.compared, Walk._ends
    zero = torch.zeros(1, 2, dtype=torch.float64)
    graph, ball = lv.extract(Falling(), zero.float()), lv.Ball(zero, 0.2, "linf")
    assert not outside(graph, ball)
    assert float(local_bounds(graph, Query(Norm.LINF, Norm.LINF, ball), Compute()).upper) <= 3.0 + 1e-9

    def one_less(*args: object) -> Tensor:
        possible = right(*args)
        first = possible.long().cumsum(0) == 1
        return torch.where(possible.sum(0) > 1, possible & ~first, possible)

    def no_floor(self: Walk, node: object, inputs: object) -> list[tuple[Tensor, Tensor]]:
        return [(p, p) for p, _ in ends(self, node, inputs)]

    for place, name, mutant in ((linear, "compared", one_less), (Walk, "_ends", no_floor)):
        with monkeypatch.context() as changed:
            changed.setattr(place, name, mutant)
            try:
                noticed = outside(graph, ball)
            except InternalError:  # ends that cross
                noticed = True
            assert noticed, name
