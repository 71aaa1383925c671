"""L2 attention: recognised however it is spelled, bounded above every Jacobian, and refused where it has no constant."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import lipverify as lv
from lipverify.analyzers.distances import distances
from lipverify.analyzers.product import Product
from lipverify.analyzers.protocol import Compute
from lipverify.analyzers.tokens import Tokens
from lipverify.certificates.tokens import lambert
from lipverify.errors import UnsupportedModel
from lipverify.interpreter import evaluate
from lipverify.ir.norm import Norm
from lipverify.ir.region import Query
from lipverify.pipeline import answer
from lipverify.rules import Unbounded
from tests.steep_tokens import token_steepest

TOKENS, WIDTH, HEADS = 4, 8, 2
SIZES = (0.1, 0.3, 1.0, 1.0, 3.0, 10.0)
HEAD = WIDTH // HEADS
OF_TOKENS = Query(Norm.TOKEN_L2, Norm.TOKEN_L2)


def subtracted(q: Tensor, k: Tensor) -> Tensor:
    return ((q.unsqueeze(-2) - k.unsqueeze(-3)) ** 2).sum(-1)


def multiplied(q: Tensor, k: Tensor) -> Tensor:
    d = q.unsqueeze(-2) - k.unsqueeze(-3)
    return (d * d).sum(-1)


def expanded(q: Tensor, k: Tensor) -> Tensor:
    return (q * q).sum(-1, keepdim=True) + (k * k).sum(-1).unsqueeze(-2) - 2 * q @ k.mT


def of_norms(q: Tensor, k: Tensor) -> Tensor:
    return q.norm(dim=-1, keepdim=True) ** 2 + k.norm(dim=-1).unsqueeze(-2) ** 2 - 2 * (q @ k.mT)


def of_keys(q: Tensor, k: Tensor) -> Tensor:
    """A softmax does not see the squares of the queries."""
    return k.pow(2).sum(-1, keepdim=True).mT - 2 * (q @ k.mT)


def of_torch(q: Tensor, k: Tensor) -> Tensor:
    return torch.cdist(q, k).square()


SPELLINGS = (subtracted, multiplied, expanded, of_norms, of_keys, of_torch)


class Attention(nn.Module):
    """x [batch, tokens, WIDTH]."""

    def __init__(self, distance: Callable[[Tensor, Tensor], Tensor], kind: str = "tied") -> None:
        super().__init__()
        torch.manual_seed(0)
        self.distance, self.kind = distance, kind
        self.q, self.k, self.v = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH), nn.Linear(HEAD, HEAD)
        self.free = nn.Linear(WIDTH, WIDTH)
        if kind == "copied":
            self.k.load_state_dict(self.q.state_dict())

    def heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (HEADS, HEAD)).transpose(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        q = self.heads(self.q(x))
        k = self.heads(self.k(x)) if self.kind in ("untied", "copied") else q
        z = -self.distance(q, k) / math.sqrt(HEAD)
        if self.kind == "causal":
            z = z.masked_fill(torch.ones(TOKENS, TOKENS, dtype=torch.bool).triu(1), -torch.inf)
        if self.kind == "own key masked":
            z = z.masked_fill(torch.eye(TOKENS, dtype=torch.bool), -torch.inf)
        values = self.heads(self.free(x)) if self.kind == "free values" else self.v(q)
        return (z.softmax(-1) @ values).transpose(1, 2).flatten(2)


def read(network: nn.Module) -> lv.Graph:
    return lv.extract(network.eval(), torch.zeros(1, TOKENS, WIDTH))


def steepest(network: nn.Module, norm: Norm) -> float:
    """The largest norm of Jacobians at tokens that are close to each other and far apart."""
    network, generator = network.double(), torch.Generator().manual_seed(0)
    found = []
    for size in (0.1, 0.3, 1.0, 3.0, 10.0):
        x = size * torch.randn(1, TOKENS, WIDTH, generator=generator, dtype=torch.float64)
        j = torch.autograd.functional.jacobian(network, x)
        matrix = j.reshape(TOKENS * WIDTH, -1)
        found.append(
            float(matrix.abs().sum(1).max() if norm is Norm.LINF else torch.linalg.matrix_norm(matrix, 2))
        )
    return max(found)


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_spellings_are_one_attention(spelling: Callable[[Tensor, Tensor], Tensor]) -> None:
    network = Attention(spelling)
    found, reason = distances(read(network))
    (one,) = found.values()
    assert reason is None
    assert (one.heads, one.tokens, one.keys, one.width, one.uses) == (HEADS, TOKENS, TOKENS, HEAD, 1)
    assert float(one.values) == pytest.approx(
        float(torch.linalg.matrix_norm(network.v.weight.detach().double(), 2))
    )


@pytest.mark.parametrize("kind", ["tied", "copied", "causal"])
@pytest.mark.parametrize("norm", [Norm.L2, Norm.LINF])
def test_bounds_are_above_jacobians(kind: str, norm: Norm) -> None:
    network = Attention(expanded, kind)
    bound = Product().bound(read(network), Query(norm, norm), Compute()).upper
    assert isinstance(bound, Tensor)
    assert steepest(network, norm) <= float(bound) < 60


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("untied", r'Softmax "softmax" \[2, 4, 4\]: distances between different maps'),
        ("own key masked", r"MaskedSoftmax .*own key is masked"),
        ("free values", r"MatMul .*no matrix times the vectors"),
    ],
)
def test_what_has_no_constant_is_named(kind: str, reason: str) -> None:
    with pytest.raises(Unbounded, match=reason):
        Product().bound(read(Attention(expanded, kind)), Query(), Compute())


class PerHead(nn.Module):
    """As Kim, Papamakarios, Mnih 2021 write it: a matrix for every head, and its transpose in front of the values."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.w = nn.Parameter(torch.randn(HEADS, WIDTH, HEAD) / WIDTH**0.5)
        self.v = nn.Parameter(torch.randn(HEADS, WIDTH, HEAD) / WIDTH**0.5)

    def forward(self, x: Tensor) -> Tensor:
        q = x.unsqueeze(1) @ self.w
        p = (-subtracted(q, q) / math.sqrt(HEAD)).softmax(-1)
        return (p @ (q @ self.w.mT @ self.v)).transpose(1, 2).flatten(2)


def test_a_matrix_for_every_head() -> None:
    network = PerHead()
    graph = read(network)
    (one,) = distances(graph)[0].values()
    norms = torch.linalg.matrix_norm(network.w.double(), 2) * torch.linalg.matrix_norm(network.v.double(), 2)
    assert float(one.values) == pytest.approx(float(norms.detach().max()))
    upper = Product().bound(graph, Query(), Compute()).upper
    assert isinstance(upper, Tensor)
    assert steepest(network, Norm.L2) <= float(upper)


@pytest.mark.parametrize(
    "network",
    [
        *(Attention(spelling) for spelling in SPELLINGS),
        Attention(expanded, "causal"),
        PerHead(),
    ],
    ids=[*(spelling.__name__ for spelling in SPELLINGS), "causal", "per head"],
)
def test_tokens_have_a_checked_constant_that_another_limit_or_norm_does_not_get(network: nn.Module) -> None:
    graph = read(network)
    certificate = answer(Tokens(), graph, OF_TOKENS, Compute()).certificate
    assert certificate.rigour is lv.Rigour.CHECKED
    assert token_steepest(network, TOKENS, WIDTH, SIZES) <= float(certificate.upper) < 10
    assert lv.verify(certificate, graph).claim
    document = certificate.issued.document
    (step,) = document["proof"]["steps"]
    honest = dict(step)
    less = (float.fromhex(honest["limit"]) * 0.999).hex()
    for field, value in (("limit", less), ("norms", ["token-l2/4", "token-l2/8"])):
        step.update(honest | {field: value})
        with pytest.raises(lv.RefutedCertificate):
            lv.verify(certificate, graph)


BROKEN = {
    "untied": "other queries than keys",
    "own key masked": "no query among the keys",
    "free values": "values of another matrix of the input",
    "twice": "squares of keys count twice",
    "key by key": "a temperature for every key",
    "biased": "a score of its own for every key",
    "other head": "values of the other head",
    "other order": "values of the tokens in another order",
    "turned": "keys whose entries are in another order",
}


class Broken(Attention):
    """What looks like it, and has no such constant."""

    def forward(self, x: Tensor) -> Tensor:
        q = self.heads(self.q(x))
        k = q.flip(-1) if self.kind == "turned" else q
        z = -2 * q @ k.mT + q.pow(2).sum(-1, keepdim=True)
        z = -(z + (2 if self.kind == "twice" else 1) * k.pow(2).sum(-1, keepdim=True).mT)
        if self.kind == "key by key":
            z = z * torch.tensor([1.0, 2.0, 1.0, 1.0])
        if self.kind == "biased":
            z = z + torch.tensor([0.0, 9.0, 0.0, 0.0])
        v = {"other head": q.flip(1), "other order": q.flip(2)}.get(self.kind, q)
        return (z.softmax(-1) @ v).transpose(1, 2).flatten(2)


@pytest.mark.parametrize("kind", BROKEN)
def test_what_only_looks_like_it_has_no_checked_constant(kind: str) -> None:
    known = kind in ("untied", "own key masked", "free values")
    network = Attention(expanded, kind) if known else Broken(expanded, kind)
    with pytest.raises(UnsupportedModel, match=r"not bounded|no bound"):
        Tokens().bound(read(network), OF_TOKENS, Compute())


def test_what_is_not_broken_has_one() -> None:
    upper = Tokens().bound(read(Broken(expanded)), OF_TOKENS, Compute()).upper
    assert token_steepest(Broken(expanded), TOKENS, WIDTH, SIZES) <= float(upper) < 10  # type: ignore[arg-type]


@pytest.mark.parametrize("count", [1, 2, 3, 16, 196, 4096])
def test_the_lemma_is_attained(count: int) -> None:
    """Keys all at the squared distance 1 + W have the mean W; no others exceed it."""
    w = lambert(count)
    assert w * math.exp(w + 1) >= count
    b = 1 + w
    assert count * b * math.exp(-b) / (1 + count * math.exp(-b)) == pytest.approx(w, rel=1e-9)
    far = torch.rand(200, count, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 3 * b
    mean = (far * (-far).exp()).sum(1) / (1 + (-far).exp().sum(1))
    assert float(mean.max()) <= w


def test_one_token_attends_to_itself() -> None:
    assert lambert(0) == 0.0


@pytest.mark.parametrize("p", [1.0, 2.0, math.inf])
def test_distances_of_torch_are_those_of_rows(p: float) -> None:
    class Distances(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.cdist(x[:, :3], x, p=p, compute_mode="donot_use_mm_for_euclid_dist")

    x = torch.randn(2, TOKENS, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    graph = lv.extract(Distances(), x)
    torch.testing.assert_close(evaluate(graph, x), Distances()(x), rtol=1e-12, atol=1e-12)
