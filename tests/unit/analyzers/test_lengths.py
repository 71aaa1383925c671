"""Vectors over their own length have the constant 1/e however that is spelled, and cosine attention has one with them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import lipverify as lv
from lipverify.analyzers.lengths import roots, unit_vectors, with_units
from lipverify.analyzers.local.forms import constants_by_forms
from lipverify.analyzers.product import Product
from lipverify.analyzers.protocol import Compute
from lipverify.analyzers.tokens import Tokens
from lipverify.errors import UnsupportedModel
from lipverify.falsify import Search
from lipverify.interpreter import evaluate
from lipverify.ir.interval import Interval
from lipverify.ir.norm import Norm
from lipverify.ir.region import Ball, Query
from lipverify.pipeline import answer
from lipverify.propagation.forms.unit import Unit
from lipverify.propagation.interval import interval_ranges
from lipverify.rules import Unbounded
from tests.steep_tokens import token_steepest

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


ROOTS: dict[str, tuple[Callable[[Tensor], Tensor], float]] = {
    "deviation": (lambda x: x.std(-1), 3**-0.5),
    "of the average": (lambda x: (x.var(-1, unbiased=False) + 1e-5).sqrt(), 0.5),
    "written out": (lambda x: ((x - x.mean(-1, keepdim=True)).pow(2).mean(-1) * 4 + 0.01) ** 0.5, 1.0),
    "root mean square": (lambda x: torch.sqrt((x * x).mean(-1, keepdim=True) / 4), 0.25),
    "another axis": (lambda x: torch.sqrt((x**2).sum(-2) + 1.0), 1.0),
}


@pytest.mark.parametrize("name", ROOTS)
def test_roots_of_sums_of_squares_have_a_constant(name: str) -> None:
    """sqrt(c |x|^2 + e) has sqrt(c), which pairs of inputs reach."""
    function, expected = ROOTS[name]
    graph = read(Calls(function))
    assert roots(graph)[graph.output.name].width == 4
    assert bound(graph, Norm.L2) == pytest.approx(expected)
    assert bound(graph, Norm.LINF) == pytest.approx(2 * expected)  # root 4 times the same
    x = 100 * torch.randn(1, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x -= x.mean(-1, keepdim=True)
    slope = (function(1.01 * x) - function(x)).norm() / (0.01 * x).norm()
    assert 0.999 * expected < float(slope) <= expected * (1 + 1e-9)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: torch.sqrt((x**2).sum(-1) - 0.5),  # the slope has no bound where it begins
        lambda x: torch.sqrt((x**2).sum(-1) + x[..., 0].abs()),
        lambda x: torch.sqrt((x**4).sum(-1) + 1.0),
        lambda x: ((x**2).sum(-1) + 1.0) ** 0.75,
    ],
)
def test_other_roots_have_none(function: Callable[[Tensor], Tensor]) -> None:
    graph = read(Calls(function))
    assert roots(graph) == {}
    with pytest.raises(Unbounded):
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


FLOORS: dict[str, tuple[Callable[[Tensor], Tensor], float]] = {
    **{name: (SPELLINGS[name], 2.0) for name in SPELLINGS if name != "first axis"},
    "power": (lambda x: x * (x.square().sum(-1, keepdim=True) + 0.25) ** -0.5, 2.0),
    "in front of the root": (lambda x: x / (x * x).sum(-1, keepdim=True).clamp_min(0.25).sqrt(), 2.0),
    "on both sides": (lambda x: x / ((x * x).sum(-1, keepdim=True) + 0.25).sqrt().clamp_min(0.75), 4 / 3),
    "twice": (lambda x: x / ((x * x).sum(-1, keepdim=True).clamp_min(0.25).sqrt() + 0.5), 1.0),
    "mean": (lambda x: x / (x.square().mean(-1, keepdim=True) + 0.25).sqrt(), 2.0),
    "inverse under the root": (lambda x: x * (1 / ((x * x).sum(-1, keepdim=True) + 0.25)).sqrt(), 2.0),
}


def token_bound(module: nn.Module) -> float:
    upper = Tokens().bound(read(module), Query(Norm.TOKEN_L2, Norm.TOKEN_L2), Compute()).upper
    assert isinstance(upper, Tensor)
    return float(upper)


@pytest.mark.parametrize("name", FLOORS)
def test_tokens_over_their_length_have_one_over_what_it_is_at_0(name: str) -> None:
    function, slope = FLOORS[name]
    assert slope <= token_bound(Calls(function)) <= slope * (1 + 1e-9)


def test_sums_of_vectors_over_their_length_are_bounded() -> None:
    found = token_bound(Calls(lambda x: SPELLINGS["root"](x).sum(-2, keepdim=True)))
    assert 8.0 <= found <= 8.0 * (1 + 1e-9)  # four tokens, each 2


class Heads(Cosine):
    """Cosine attention of two heads of 2 entries; `unit` is of [batch, heads, tokens, entries]."""

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            self.unit(part(x).unflatten(-1, (2, 2)).transpose(1, 2)) for part in (self.q, self.k, self.v)
        )
        return ((5 * q @ k.mT).softmax(-1) @ v).transpose(1, 2).flatten(2)


@pytest.mark.parametrize("name", FLOORS)
def test_cosine_attention_of_tokens_is_checked_and_another_limit_is_not(name: str) -> None:
    network = Heads(FLOORS[name][0], True)
    graph = read(network)
    certificate = answer(Tokens(), graph, Query(Norm.TOKEN_L2, Norm.TOKEN_L2), Compute()).certificate
    assert certificate.rigour is lv.Rigour.CHECKED
    assert token_steepest(network, 4, 4, (0.01, 0.1, 0.3, 1.0, 3.0)) <= float(certificate.upper) < 100
    assert lv.verify(certificate, graph).claim
    (step,) = certificate.issued.document["proof"]["steps"]
    step["limit"] = (float.fromhex(step["limit"]) * 0.999).hex()
    with pytest.raises(lv.RefutedCertificate):
        lv.verify(certificate, graph)


def length(x: Tensor, squares: Tensor) -> Tensor:
    return x / (squares.sum(-1, keepdim=True) + 0.25).sqrt()


BROKEN: dict[str, Callable[[Tensor], Tensor]] = {
    "no floor": lambda x: x / (x * x).sum(-1, keepdim=True).sqrt(),
    "a square missing": lambda x: length(x, (x * x)[..., :-1]),
    "a square twice": lambda x: length(x, (x * x)[..., [0, 0]]),
    "a square too small": lambda x: length(x, torch.tensor([1.0, 0.5]) * x * x),
    "of products": lambda x: length(x, x * x.flip(-1)),
    "another head's": lambda x: length(x, (x * x).flip(-3)),
    "another token's": lambda x: length(x, (x * x).flip(-2)),
    "less": lambda x: x / ((x * x).sum(-1, keepdim=True).sqrt() - 0.5),
    "at most": lambda x: x / (x * x).sum(-1, keepdim=True).sqrt().clamp(0.5, 2.0),
    "half": lambda x: x / (0.5 * (x * x).sum(-1, keepdim=True).sqrt() + 0.5),
    "a floor for every entry": lambda x: (
        x / ((x * x).sum(-1, keepdim=True).sqrt() + torch.tensor([0.5, 5.0]))
    ),
    "no root": lambda x: x / ((x * x).sum(-1, keepdim=True) + 0.25),
    "two roots": lambda x: x / ((x * x).sum(-1, keepdim=True).sqrt().sqrt() + 0.25),
    "sum of sizes": lambda x: x / (x.abs().sum(-1, keepdim=True) + 0.5),
    "a floor behind the inverse": lambda x: x * (1 / (x * x).sum(-1, keepdim=True)).clamp_min(0.5).sqrt(),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_only_looks_like_a_length_has_no_checked_constant(name: str) -> None:
    with pytest.raises(UnsupportedModel, match=r"has no bound"):
        token_bound(Heads(BROKEN[name], True))


@pytest.mark.parametrize("root", [False, True])
def test_the_limit_of_a_larger_floor_is_refuted(root: bool) -> None:
    """What holds for 1/2 does not for 0.4, in front of the root or behind it."""

    def network(e: float) -> Heads:
        in_front = lambda x: x / ((x * x).sum(-1, keepdim=True) + e).sqrt()  # noqa: E731
        return Heads(in_front if root else lambda x: x / (x.norm(dim=-1, keepdim=True) + e), True)

    larger, graph = token_bound(network(0.5)), read(network(0.4))
    result = lv.audit(graph, norm="token-l2", analyzers="tokens", search=Search(seconds=0.1))
    assert larger * 1.05 < float(result.upper)
    (step,) = result.best.certificate.issued.document["proof"]["steps"]
    step["limit"] = larger.hex()
    with pytest.raises(lv.RefutedCertificate, match="norms of tokens prove"):
        lv.verify(result.best.certificate, graph)


def test_values_as_they_are_need_bounded_tokens() -> None:
    module = Cosine(SPELLINGS["normalize"], False)
    with pytest.raises(UnsupportedModel, match="the values that it averages are not bounded"):
        token_bound(module)
    query = Query(Norm.TOKEN_L2, Norm.TOKEN_L2, lv.Bounded(3.0))
    upper = Tokens().bound(read(module), query, Compute()).upper
    assert isinstance(upper, Tensor)
    assert 0 < float(upper) < 40
