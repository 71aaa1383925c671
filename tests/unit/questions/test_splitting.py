"""Boxes of few inputs are cut: ranges only shrink, hold every sample, and end close to what a search finds."""

from __future__ import annotations

import pytest
import torch

import lipverify as lv
from lipverify import ops
from lipverify.analyzers.protocol import Compute
from lipverify.ir.graph import Graph
from lipverify.questions.splitting import Splitting, refined
from tests import networks


def net(seed: int, noise: float = 0.0) -> Graph:
    weights = []
    for place, (rows, columns) in enumerate([(24, 2), (24, 24), (2, 24)]):
        rng = torch.Generator().manual_seed(seed + place)
        weight = torch.randn(rows, columns, generator=rng) / columns**0.5
        weights.append(weight + noise * torch.randn(rows, columns, generator=rng))
    return networks.chain(weights, ops.ReLU())


def test_ranges_shrink_and_hold_every_sample() -> None:
    graph = net(0).to(dtype=torch.float64)
    region = lv.Ball(torch.zeros(2, 2), 1.5, "linf")
    before = lv.bounds(graph, region).output
    value = lambda box: torch.maximum(box.upper, -box.lower).amax(1)  # noqa: E731
    x = torch.rand(4000, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 3 - 1.5
    y = lv.evaluate(graph, x)
    steps = list(
        refined(graph, region, before, value, Compute(), Splitting(batch=8, parts_without_budget=200))
    )
    assert len(steps) > 5
    for box in steps:
        assert bool((box.lower >= before.lower).all())
        assert bool((box.upper <= before.upper).all())
        assert bool((y >= box.lower[0] - 1e-12).all())
        assert bool((y <= box.upper[0] + 1e-12).all())
        before = box
    assert float(value(before)[0]) < 1.3 * float(y.abs().max())


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_deviation_of_few_inputs_ends_near_its_witness(norm: str) -> None:
    f, g = net(0), net(0, noise=0.02)
    answer = lv.deviation(f, g, lv.Ball(torch.zeros(1, 2), 1.0, norm))
    ratio = float(answer.upper / answer.lower)
    assert 1.0 <= ratio < (1.4 if norm == "linf" else 20.0)
    values = [value for _, value in answer.trace]
    assert values == sorted(values, reverse=True)


def test_a_budget_ends_it_and_a_point_is_not_cut() -> None:
    f, g = net(0), net(1)
    assert lv.deviation(f, g, lv.Ball(torch.zeros(1, 2), 1.0), budget=0.5).seconds < 20.0
    point = lv.deviation(f, g, lv.Ball(torch.ones(1, 2), 0.0))
    assert float(point.upper) == pytest.approx(float(point.lower), rel=1e-9)
