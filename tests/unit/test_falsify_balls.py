"""Slopes that gains of layers prove: never above the exact proof, near it where points are far apart, 0 where they are not."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch

from lipverify import ops, pipeline
from lipverify.analyzers.product import Product
from lipverify.analyzers.protocol import Compute
from lipverify.errors import LipverifyError, UnsupportedModel
from lipverify.falsify import Search
from lipverify.falsify.balls import layer_gains, slopes_by_gains
from lipverify.frontends.builder import Builder, Value
from lipverify.ir.graph import Graph, Origin
from lipverify.ir.norm import Norm
from lipverify.ir.region import Query
from lipverify.propagation.points import slopes_below
from tests.networks import chain, random_graph, tensor


@cache
def network() -> Graph:
    """A convolution with normalisation, a block around which its input goes, a maximum over windows, and a dense layer."""
    b, rng = Builder(symbolic_batch=True), np.random.default_rng(0)

    def conv(v: Value) -> Value:
        weight = tensor(rng, 4, v.shape[0], 3, 3, scale=0.3)
        return b.conv(v, ops.Conv(weight, tensor(rng, 4), (1, 1), ((1, 1), (1, 1)), (1, 1)))

    x = b.batch_norm(
        conv(b.input((1, 2, 6, 6), 0)), torch.ones(4), *tensor(rng, 2, 4), tensor(rng, 4).abs() + 0.5, 1e-5
    )
    x = b.elementwise(ops.ReLU(), x)
    x = b.elementwise(ops.ReLU(), b.plus(x, conv(b.elementwise(ops.ReLU(), conv(x)))))
    x = b.flatten(b.max_pool(x, (2, 2), (2, 2), ((0, 0), (0, 0)), (1, 1), False), 1, -1)
    return b.graph([b.linear(x, tensor(rng, 3, 36))], Origin())


def gains_of(graph: Graph) -> dict[str, float] | None:
    return layer_gains(graph, Product().bound(graph, Query(), Compute()))


def test_far_pairs_are_proved_as_well_as_exactly_and_near_ones_not_at_all() -> None:
    graph = network()
    gains = gains_of(graph)
    assert gains is not None
    torch.manual_seed(1)
    x, v = 4.0 * torch.randn(2, 3, 2, 6, 6, dtype=torch.float64)
    exact = slopes_below(graph, x, x + v, Norm.L2, Norm.L2)
    found = slopes_by_gains(graph, x, x + v, gains)
    assert bool((exact > 0).all())
    assert bool((found <= exact * (1 + 1e-12)).all())
    assert bool((found > exact * (1 - 1e-9)).all())
    near = slopes_by_gains(graph, x, x + 1e-15 * v, gains)
    assert not near.any()
    assert not slopes_by_gains(graph, x, x, gains).any()


def test_random_networks_are_never_proved_steeper_than_exactly() -> None:
    rng = np.random.default_rng(0)
    shown = 0
    for seed in range(16):
        graph = random_graph(np.random.default_rng(seed))
        x, v = (torch.tensor(rng.standard_normal((2, *graph.input_shape))) for _ in range(2))
        y = x + v * 10.0 ** rng.uniform(-14, 1)
        try:
            gains = gains_of(graph)
            exact = slopes_below(graph, x, y, Norm.L2, Norm.L2)
            if gains is None:
                continue
            found = slopes_by_gains(graph, x, y, gains)
        except LipverifyError:
            continue
        assert bool((found <= exact + 1e-9 * exact).all())
        shown += int((found > 0.5 * exact).all())
    assert shown > 4


def test_a_radius_grows_by_the_gain_of_what_follows() -> None:
    """1e16 times a difference that rounding has eaten: 0 is shown, whatever float64 computes."""
    graph = chain([torch.tensor([[1.0, -1.0]]), torch.tensor([[1e16]])], ops.ReLU())
    gains = gains_of(graph)
    assert gains is not None
    x = torch.tensor([[0.1 + 0.2, 0.3]], dtype=torch.float64)
    y = torch.tensor([[0.3, 0.3]], dtype=torch.float64)
    assert float(slopes_by_gains(graph, x, y, gains)) <= float(slopes_below(graph, x, y, Norm.L2, Norm.L2))


def test_gains_are_missed_by_name() -> None:
    graph = network()
    with pytest.raises(UnsupportedModel, match="no gain of its own"):
        slopes_by_gains(graph, *torch.randn(2, 1, 2, 6, 6, dtype=torch.float64), {})


def test_audits_of_large_networks_use_them(monkeypatch: pytest.MonkeyPatch) -> None:
    def exact(*asked: object) -> None:
        raise AssertionError("the exact proof")

    monkeypatch.setattr(pipeline, "LARGE", 0.0)
    monkeypatch.setattr("lipverify.falsify.witness.slopes_below", exact)
    result = pipeline.audit(network(), analyzers=["product"], search=Search(restarts=4, rounds=6))
    assert not result.lower.failed
    assert 0 < float(result.lower.value) < float(result.upper)
