"""Local bounds: exact where everything is known, between the enumerated constant and the product elsewhere."""

from __future__ import annotations

import itertools
import time
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import lipverify as lv
from lipverify import ops
from lipverify.analyzers.local import analyzer as analyzer_of_balls
from lipverify.analyzers.local import coupled
from lipverify.analyzers.local.analyzer import Local
from lipverify.analyzers.protocol import Analyzer, Compute
from lipverify.analyzers.registry import resolve
from lipverify.certificates.writing import Writer
from lipverify.errors import UnsupportedModel
from lipverify.frontends.builder import Builder
from lipverify.interpreter import evaluate
from lipverify.ir.certificate import Rigour
from lipverify.ir.graph import Graph, Origin
from lipverify.ir.norm import Norm
from lipverify.ir.region import Ball, Query
from lipverify.pipeline import answer
from lipverify.propagation import bounds
from tests.networks import chain, tensor

PAIRS = [(p, q) for p in Norm for q in Norm]


def upper(analyzer: Analyzer, graph: Graph, query: Query) -> Tensor:
    found = analyzer.bound(graph, query, Compute()).upper
    assert found is not None
    return found


def jacobian(graph: Graph, x: Tensor) -> Tensor:
    exact = graph.to(dtype=torch.float64)
    return torch.autograd.functional.jacobian(lambda z: evaluate(exact, z[None])[0], x)


def norm_of(matrix: Tensor, norm_in: Norm, norm_out: Norm) -> float:
    """Exact norms of small matrices; the hard ones by all signs."""
    if norm_in is norm_out is Norm.L2:
        return float(torch.linalg.matrix_norm(matrix, 2))
    if norm_in is Norm.L1:
        return float(torch.linalg.vector_norm(matrix, ord=norm_out.order, dim=0).max())
    if norm_out is Norm.LINF:
        return float(torch.linalg.vector_norm(matrix, ord=norm_in.dual.order, dim=1).max())
    if norm_in is Norm.LINF:
        signs = torch.tensor(
            list(itertools.product((-1.0, 1.0), repeat=matrix.shape[1])), dtype=torch.float64
        )
        return float(torch.linalg.vector_norm(signs @ matrix.T, ord=norm_out.order, dim=1).max())
    return norm_of(matrix.T, norm_out.dual, norm_in.dual)


@pytest.mark.parametrize(("norm_in", "norm_out"), PAIRS)
def test_radius_zero_with_one_output_is_the_gradient_norm(
    norm_in: Norm, norm_out: Norm, rng: np.random.Generator
) -> None:
    for op in (ops.ReLU(), ops.Tanh(), ops.GroupSort(2)):
        graph = chain([tensor(rng, 8, 5), tensor(rng, 6, 8), tensor(rng, 1, 6)], op)
        center = torch.tensor(rng.standard_normal((3, 5)))
        found = upper(Local(), graph, Query(norm_in, norm_out, Ball(center, 0.0)))
        truth = [norm_of(jacobian(graph, x), norm_in, norm_out) for x in center]
        assert found.tolist() == pytest.approx(truth, rel=1e-9)
        assert all(f >= t * (1 - 1e-14) for f, t in zip(found.tolist(), truth, strict=True))


@pytest.mark.parametrize("norm_in", list(Norm))
def test_radius_zero_with_several_outputs(norm_in: Norm, rng: np.random.Generator) -> None:
    """Exact into linf, and in l2 to l2."""
    graph = chain([tensor(rng, 8, 5), tensor(rng, 6, 8), tensor(rng, 4, 6)], ops.ReLU())
    center = torch.tensor(rng.standard_normal((3, 5)))
    for norm_out in {Norm.LINF, norm_in if norm_in is Norm.L2 else Norm.LINF}:
        found = upper(Local(), graph, Query(norm_in, norm_out, Ball(center, 0.0)))
        truth = [norm_of(jacobian(graph, x), norm_in, norm_out) for x in center]
        assert found.tolist() == pytest.approx(truth, rel=1e-9)


def test_between_the_enumerated_constant_and_the_product(rng: np.random.Generator) -> None:
    """One hidden layer: every pattern of the neurons that a ball makes unstable is reached by some pair of signs."""
    for _ in range(10):
        weights = [tensor(rng, 6, 3).double(), tensor(rng, 2, 6).double()]
        graph = chain(weights, ops.ReLU())
        center = torch.tensor(rng.standard_normal((1, 3)))
        z, reach = center[0] @ weights[0].T, 0.4 * weights[0].abs().sum(1)
        choices = [(0.0, 1.0) if abs(a) < b else (float(a > 0),) for a, b in zip(z, reach, strict=True)]
        relaxed = max(
            norm_of(weights[1] @ (torch.tensor(s, dtype=torch.float64)[:, None] * weights[0]), *PAIRS[-1])
            for s in itertools.product(*choices)
        )
        query = Query(Norm.LINF, Norm.LINF, Ball(center, 0.4))
        found = float(upper(Local(), graph, query))
        assert found >= relaxed * (1 - 1e-12)
        assert found <= float(upper(resolve("product"), graph, query))
        samples = center + 0.4 * torch.tensor(rng.uniform(-1, 1, (200, 3)))
        assert found >= max(norm_of(jacobian(graph, x), *PAIRS[-1]) for x in samples)


@pytest.mark.parametrize("name", ["local:recurjac", "local:interval"])
def test_coarser_tiers_are_never_tighter(name: str, rng: np.random.Generator) -> None:
    for op in (ops.ReLU(), ops.LeakyReLU(0.1), ops.Tanh(), ops.GroupSort(2), ops.GELU()):
        graph = chain([tensor(rng, 12, 6, scale=0.5), tensor(rng, 12, 12, scale=0.4), tensor(rng, 3, 12)], op)
        ball = Ball(torch.tensor(rng.standard_normal((4, 6))), 0.2)
        for query in (Query(Norm.LINF, Norm.LINF, ball), Query(region=ball)):
            coarse, fine = upper(resolve(name), graph, query), upper(Local(with_product=False), graph, query)
            assert bool((fine <= coarse * (1 + 1e-9)).all())


def test_a_comparison_has_one_unknown_slope(rng: np.random.Generator) -> None:
    """The gradient of max(p, q) + min(p, q) is known although neither gradient is."""
    weight = tensor(rng, 2, 4)
    graph = chain([weight, torch.ones(1, 2)], ops.GroupSort(2))
    truth = float(weight.double().sum(0).abs().sum())
    found = upper(Local(), graph, Query(Norm.LINF, Norm.LINF, Ball(torch.zeros(1, 4), 5.0)))
    assert float(found) == pytest.approx(truth, rel=1e-9)


def test_products_of_computed_values(rng: np.random.Generator) -> None:
    """x * x on [1, 3]: slope 6 at the end."""
    b = Builder(symbolic_batch=True)
    x = b.input((1, 1), 0)
    graph = b.graph([b.add(ops.Mul(), (x, x), x.batch)], Origin())
    found = upper(Local(), graph, Query(region=Ball(torch.full((1, 1), 2.0), 1.0)))
    assert 6.0 <= float(found) <= 6.0 * (1 + 1e-9)


def test_refusals(rng: np.random.Generator) -> None:
    graph = chain([tensor(rng, 4, 4), tensor(rng, 4, 4)], ops.Softmax(0))
    assert "ball" in (Local().reject(graph, Query()) or "")
    query = Query(region=Ball(torch.zeros(1, 4), 0.1))
    for other in map(
        resolve, ("local:recurjac", "local:interval", "local:float32", "local-sdp", "local-bab")
    ):
        assert "Softmax" in (other.reject(graph, query) or "")
    with pytest.raises(UnsupportedModel, match="ball"):
        Local().bound(chain([tensor(rng, 4, 4)]), Query(), Compute())


def test_an_audit_shows_it_beside_a_lower_bound(rng: np.random.Generator) -> None:
    graph = chain([tensor(rng, 12, 6), tensor(rng, 12, 12), tensor(rng, 3, 12)], ops.ReLU())
    ball = lv.Ball(torch.tensor(rng.standard_normal((3, 6))), 0.1, "linf")
    result = lv.audit(graph, norm="linf", region=ball, analyzers=["local", "local:interval", "product"])
    found = result.certificates["local"].upper
    assert found is not None
    assert bool((torch.as_tensor(result.lower.value) <= found).all())
    assert result.certificates["local"].evidence.to_json()["kind"] == "jacobian-rows"


@pytest.fixture(scope="module")
def gated() -> tuple[lv.Graph, Query, float]:
    """A recurrent network, a ball, and the bound of the analyzer."""

    class Last(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.GRU(2, 3, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            states: Tensor = self.layer(x)[0]
            return states[:, -1]

    torch.manual_seed(2)
    net = Last().eval()
    for p in net.parameters():
        p.data *= 2.5
    graph = lv.extract(net, torch.zeros(1, 3, 2))
    query = Query(Norm.L2, Norm.L2, lv.Ball(torch.zeros(1, 3, 2), 0.3, "l2"))
    return graph, query, upper(Local(), graph, query).item()


@pytest.mark.parametrize(
    ("seconds", "took", "lowered"),
    [(float("inf"), 0.0, True), (0.0, 0.0, False), (1e3, 100.0, True), (1e3, 1e3, False)],
)
def test_through_gates_the_smaller_bound_of_the_checker_is_issued_where_time_allows(
    gated: tuple[lv.Graph, Query, float],
    seconds: float,
    took: float,
    lowered: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The bound of the analyzer was issued, though the checker alone proves less: 46.9 for 28.4 of a GRU on digits."""
    graph, query, own = gated
    monkeypatch.setattr(analyzer_of_balls, "left", lambda: seconds)
    monkeypatch.setattr(Writer, "took", took)
    found = answer(Local(), graph, query, Compute())
    assert found.certificate is not None
    assert found.certificate.rigour is Rigour.CHECKED
    assert found.certificate.upper is not None
    assert (found.certificate.upper.item() < 0.98 * own) is lowered
    assert found.certificate.upper.item() <= own * (1.0 + 1e-6)
    assert lv.verify(found.certificate, graph).upper == [found.certificate.upper.item()]


def test_lines_around_slopes_of_many_layers_are_those_of_each(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(5)
    net = chain([tensor(rng, 6, 6, scale=0.5) for _ in range(5)], ops.Tanh())
    net = net.to(dtype=torch.float64)
    known = bounds(net, Ball(torch.tensor(rng.standard_normal((3, 6))), 0.1)).known
    together = coupled.slope_lines(net, known)
    monkeypatch.setattr(coupled, "TOGETHER", 1)
    alone = coupled.slope_lines(net, known)
    assert together.keys() == alone.keys()
    for name, one in alone.items():
        other = together[name]
        for a, b in ((one.lower, other.lower), (one.upper, other.upper)):
            assert torch.equal(a.offset, b.offset)
            assert torch.equal(a.slopes[0], b.slopes[0])


def test_in_little_time_rows_alone_have_planes_around_slopes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of many layers first; both bounds hold, and with time the smaller one is what there would be without a deadline."""
    rng = np.random.default_rng(6)
    net = chain([tensor(rng, 5, 5, scale=0.6) for _ in range(10)], ops.Tanh())
    query = Query(Norm.LINF, Norm.LINF, Ball(torch.tensor(rng.standard_normal((2, 5))), 0.05))
    free = analyzer_of_balls.local_bounds(net, query, Compute())
    within = analyzer_of_balls.local_bounds(net, query, Compute(deadline=time.monotonic() + 600.0))
    assert bool((within.upper <= free.upper).all())
    assert bool((within.rows <= free.rows).all())
    deep = list[int]()
    norms = analyzer_of_balls.norm_bounds

    def counted(*args: Any, **more: Any) -> Any:
        found = norms(*args, **more)
        deep.append(args[3].deep)
        return found

    monkeypatch.setattr(analyzer_of_balls, "norm_bounds", counted)
    monkeypatch.setattr(Compute, "remaining", lambda self: 0.0 if deep else 600.0)
    hurried = analyzer_of_balls.local_bounds(net, query, Compute(deadline=time.monotonic() + 600.0))
    assert deep == [0]
    assert bool((hurried.upper >= within.upper).all())
