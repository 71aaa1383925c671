"""Vectors over their own length have the constant 1/e however that is spelled, and cosine attention has one with them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import lipverify as lv
from lipverify.analyzers.lengths import unit_vectors
from lipverify.analyzers.product import Product
from lipverify.analyzers.protocol import Compute
from lipverify.ir.norm import Norm
from lipverify.ir.region import Query
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
