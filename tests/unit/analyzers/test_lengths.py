"""Vectors over their own length have the constant 1/e however that is spelled, and cosine attention has one with them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import lipverify as lv
from lipverify.analyzers.lengths import unit_vectors, with_units
from lipverify.analyzers.local.forms import constants_by_forms
from lipverify.analyzers.product import Product
from lipverify.analyzers.protocol import Compute
from lipverify.errors import UnsupportedModel
from lipverify.interpreter import evaluate
from lipverify.ir.interval import Interval
from lipverify.ir.norm import Norm
from lipverify.ir.region import Ball, Query
from lipverify.propagation.forms.unit import Unit
from lipverify.propagation.interval import interval_ranges
from lipverify.rules import Unbounded

SPELLINGS: dict[str, Callable[[Tensor], Tensor]] = {
    "normalize": lambda x: functional.normalize(x, dim=-1, eps=0.5),
    "clamp": lambda x: x / x.norm(dim=-1, keepdim=True).clamp_min(0.5),
    "added": lambda x: x / (x.norm(dim=-1, keepdim=True) + 0.5),
    "root": lambda x: x / torch.sqrt((x**2).sum(-1, keepdim=True) + 0.25),
    "rsqrt": lambda x: x * torch.rsqrt((x * x).sum(-1, keepdim=True) + 0.25),
    "first axis": lambda x: functional.normalize(x, dim=-2, eps=0.5),
}


class Calls(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def read(module: nn.Module) -> lv.Graph:
    return lv.extract(module.eval(), torch.ones(1, 4, 4))


def bound(graph: lv.Graph, norm: Norm) -> float:
    found = Product().bound(graph, Query(norm, norm), Compute()).upper
    assert isinstance(found, Tensor)
    return float(found)


@pytest.mark.parametrize("name", SPELLINGS)
def test_the_constant_is_one_over_e(name: str) -> None:
    graph = read(Calls(SPELLINGS[name]))
    (one,) = unit_vectors(graph).values()
    assert (one.count, one.width) == (4, 4)
    assert bound(graph, Norm.L2) == pytest.approx(2.0)
    assert bound(graph, Norm.LINF) == pytest.approx(4.0)  # root 4 times the same


@pytest.mark.parametrize("name", SPELLINGS)
def test_one_node_computes_the_same(name: str) -> None:
    """x / (|x| + e) has no such law and stays."""
    graph = read(Calls(SPELLINGS[name])).to(dtype=torch.float64)
    one = with_units(graph)
    assert any(isinstance(node.op, Unit) for node in one.nodes) == (name != "added")
    x = torch.randn(8, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 0.4
    assert torch.allclose(evaluate(one, x), evaluate(graph, x), rtol=1e-13, atol=0)
    inside = interval_ranges(one, Interval(x - 0.1, x + 0.1))[one.output.name]
    assert bool(((inside.lower <= evaluate(graph, x)) & (evaluate(graph, x) <= inside.upper)).all())


def test_a_length_without_a_floor_is_one_node_too() -> None:
    graph = read(Calls(lambda x: x / x.norm(dim=-1, keepdim=True))).to(dtype=torch.float64)
    ball = Ball(torch.ones(1, 4, 4, dtype=torch.float64), 0.5, Norm.L2)
    query = Query(Norm.L2, Norm.L2, ball)
    upper = float(constants_by_forms(with_units(graph), query, Compute()).upper)
    # |x_i| >= 2 - 1/2, where the Jacobian is the projection over |x_i|.
    assert 1 / 1.5 <= upper <= 1.05 / 1.5
    with pytest.raises(UnsupportedModel, match="may be zero"):
        constants_by_forms(
            with_units(graph), replace(query, region=Ball(ball.center, 3.0, Norm.L2)), Compute()
        )


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x / x.norm(dim=-1, keepdim=True),  # it jumps at 0
        lambda x: x / x.norm(dim=-1, keepdim=True).mT.clamp_min(0.5),  # the length of another vector
        lambda x: x / (x.norm(dim=-1, keepdim=True) - 0.5),
        lambda x: 2 * x.flip(-1) / x.norm(dim=-1, keepdim=True).clamp_min(0.5),
    ],
)
def test_others_are_refused(function: Callable[[Tensor], Tensor]) -> None:
    graph = read(Calls(function))
    assert unit_vectors(graph) == {}
    with pytest.raises(Unbounded, match=r"Div .*quotient of two computed tensors"):
        bound(graph, Norm.L2)


class Cosine(nn.Module):
    """Queries, keys and values over their lengths, or values as they are."""

    def __init__(self, unit: Callable[[Tensor], Tensor], values: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.q, self.k, self.v = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
        self.unit, self.values = unit, values

    def forward(self, x: Tensor) -> Tensor:
        p = (self.unit(self.q(x)) @ self.unit(self.k(x)).mT).softmax(-1)
        return p @ (self.unit(self.v(x)) if self.values else self.v(x))


@pytest.mark.parametrize("name", ["normalize", "rsqrt"])
def test_cosine_attention_has_a_constant(name: str) -> None:
    module = Cosine(SPELLINGS[name], True)
    upper, double = bound(read(module), Norm.L2), module.double()
    generator = torch.Generator().manual_seed(0)
    for size in (0.01, 0.1, 0.5, 2.0):
        x = size * torch.randn(1, 4, 4, generator=generator, dtype=torch.float64)
        j = torch.autograd.functional.jacobian(double, x).reshape(16, 16)
        assert float(torch.linalg.matrix_norm(j, 2)) <= upper < 100
    with pytest.raises(Unbounded, match=r'Linear "v\.linear" \[4, 4\] is not bounded over all inputs'):
        bound(read(Cosine(SPELLINGS[name], False)), Norm.L2)
