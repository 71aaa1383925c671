"""auto_LiRPA as an analyzer: the plain module computes the graph; the adapter's values are compared, never believed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import lipverify as lv
from lipverify import ops
from lipverify.analyzers.lirpa import analyzer as adapter
from lipverify.analyzers.lirpa.analyzer import Lirpa, available
from lipverify.analyzers.lirpa.module import Plain, plain_graph, reason_to_refuse
from lipverify.analyzers.local.analyzer import Local
from lipverify.analyzers.protocol import Compute
from lipverify.commands.doctor import findings
from lipverify.errors import Refuted, UnsupportedModel
from lipverify.frontends.builder import Builder
from lipverify.interpreter import evaluate
from lipverify.ir.graph import Graph, Origin
from lipverify.ir.norm import Norm
from lipverify.ir.region import Ball, Query
from tests.networks import chain, random_graph, tensor

needs_package = pytest.mark.skipif(not available(), reason=f"auto_LiRPA is not importable; {adapter.INSTALL}")


def images(rng: np.random.Generator, residual: bool = True) -> Graph:
    """Convolution, BatchNorm, a sum of feature maps, average pooling, dense."""
    b = Builder(symbolic_batch=True)
    v = b.input((1, 1, 6, 6), 0)
    v = b.conv(v, ops.Conv(tensor(rng, 4, 1, 3, 3), None, (2, 2), ((1, 1), (1, 1)), (1, 1)))
    v = b.batch_norm(v, tensor(rng, 4), tensor(rng, 4), tensor(rng, 4), tensor(rng, 4).abs() + 0.5, 1e-5)
    v = b.elementwise(ops.ReLU(), v)
    if residual:
        inner = b.conv(
            v, ops.Conv(tensor(rng, 4, 4, 3, 3, scale=0.3), None, (1, 1), ((1, 1), (1, 1)), (1, 1))
        )
        v = b.plus(v, b.elementwise(ops.ReLU(), inner))
    v = b.avg_pool(v, (3, 3), (1, 1), ((0, 0), (0, 0)), False, False)
    v = b.flatten(v, 1, -1)
    return b.graph([b.linear(v, tensor(rng, 3, v.shape[0]))], Origin())


def test_the_plain_module_computes_the_graph(rng: np.random.Generator) -> None:
    answered = 0
    for index in range(80):
        graph = images(rng) if index == 0 else random_graph(rng, layers=4)
        plain = plain_graph(graph)
        if reason_to_refuse(plain) is not None:
            continue
        answered += 1
        x = torch.tensor(rng.normal(size=(5, *graph.input_shape)))
        wanted = evaluate(graph.to(dtype=torch.float64), x).flatten(1)
        found = Plain(plain, torch.float64)(x)
        assert torch.allclose(found, wanted, rtol=1e-9, atol=1e-9 * float(1 + wanted.abs().max()))
    assert answered >= 8


def test_normalisation_is_merged(rng: np.random.Generator) -> None:
    assert "BatchNorm" not in plain_graph(images(rng)).operators()


def test_refusals_name_the_node_and_the_remedy(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = chain([tensor(rng, 4, 3), tensor(rng, 2, 4)], ops.GELU())
    ball = Ball(torch.zeros(1, 3), 0.1)
    monkeypatch.setattr(adapter, "available", lambda: True)
    assert "GELU" in str(Lirpa().reject(graph, Query(Norm.LINF, Norm.LINF, ball)))
    assert "linf" in str(Lirpa().reject(graph, Query(region=ball)))
    assert "ball" in str(Lirpa().reject(graph, Query()))
    monkeypatch.setattr(adapter, "available", lambda: False)
    query = Query(Norm.LINF, Norm.LINF, ball)
    assert "pip install --no-deps" in str(Lirpa().reject(graph, query))
    with pytest.raises(UnsupportedModel, match="not installed"):
        Lirpa().bound(graph, query, Compute())


@pytest.mark.parametrize(
    ("factor", "words"), [(0.5, "below a sampled gradient"), (10.0, "far above intervals")]
)
def test_a_wrong_value_is_an_error_and_never_a_number(
    factor: float, words: str, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = chain([tensor(rng, 6, 3), tensor(rng, 2, 6)], ops.ReLU())
    query = Query(Norm.LINF, Norm.LINF, Ball(torch.ones(2, 3), 1e-3))
    truth = Local(with_product=False).bound(graph, query, Compute()).upper
    assert truth is not None

    class Wrong:
        version = "0"

        def __init__(self, *_: object) -> None:
            pass

        def rows(self, index: int) -> torch.Tensor:
            return truth[index].expand(2) * factor

    monkeypatch.setattr(adapter, "available", lambda: True)
    monkeypatch.setattr(adapter, "_Bounded", Wrong)
    with pytest.raises(Refuted, match=words):
        Lirpa().bound(graph, query, Compute())


def test_doctor_reports_it() -> None:
    (part,) = (part for part in findings()["parts"] if part["name"] == "auto_LiRPA")
    assert (part["version"] is None) == (not available())
    if part["version"] is None:
        assert adapter.INSTALL in part["warning"]


@needs_package
def test_searched_planes_are_no_looser(rng: np.random.Generator) -> None:
    """auto_LiRPA as its documentation has it (alpha-CROWN): tighter or equal, and above sampled gradients all the same."""
    graph = chain([tensor(rng, 16, 5), tensor(rng, 16, 16), tensor(rng, 3, 16)], ops.ReLU())
    query = Query(Norm.LINF, Norm.LINF, Ball(torch.tensor(rng.normal(size=(2, 5))), 0.2))
    plain, searched = (Lirpa(optimize=o).bound(graph, query, Compute()).upper for o in (False, True))
    assert plain is not None
    assert searched is not None
    assert bool((searched <= plain * (1 + 1e-4)).all())
    assert "optimize=True" in Lirpa(optimize=True).bound(graph, query, Compute()).made_by


@needs_package
def test_equal_to_local_on_relu_networks(rng: np.random.Generator) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 20), nn.ReLU(), nn.Linear(20, 20), nn.ReLU(), nn.Linear(20, 3)).double()
    graph = lv.extract(net.eval(), torch.zeros(2, 6, dtype=torch.float64))
    for radius in (1e-3, 0.1, 0.5):
        query = Query(Norm.LINF, Norm.LINF, Ball(torch.tensor(rng.normal(size=(3, 6))), radius))
        certificate = Lirpa().bound(graph, query, Compute())
        ours = Local(with_product=False).bound(graph, query, Compute()).upper
        assert certificate.upper is not None
        assert ours is not None
        # Ours adds entrywise sums and ranges around the middle of the slopes: never above, and mostly the same.
        assert bool((ours <= certificate.upper * (1 + 1e-4)).all())
        assert bool((certificate.upper <= 1.3 * ours).all())
        assert certificate.rigour == lv.Rigour.REAL
        assert certificate.evidence.to_json()["version"]


@needs_package
def test_maxima_images_and_tanh(rng: np.random.Generator) -> None:
    graphs = [
        images(rng, residual=False),
        chain([tensor(rng, 8, 4), tensor(rng, 8, 8), tensor(rng, 2, 8)], ops.GroupSort(2)),
    ]
    graphs.append(chain([tensor(rng, 8, 4), tensor(rng, 2, 8)], ops.Tanh()))
    for graph in graphs:
        ball = Ball(torch.tensor(rng.normal(size=(2, *graph.input_shape))), 0.05)
        query = Query(Norm.LINF, Norm.LINF, ball)
        upper = Lirpa().bound(graph, query, Compute()).upper
        lower = lv.audit(graph, norm="linf", region=ball, analyzers=["local"], budget=3).lower.value
        assert upper is not None
        assert bool((upper >= torch.as_tensor(lower) * (1 - 1e-4)).all())
