"""Boxes of few inputs are cut: ranges only shrink, hold every sample, and end close to what a search finds."""

from __future__ import annotations

import pytest
import torch

import lipverify as lv
from lipverify import ops
from lipverify.analyzers.protocol import Compute
from lipverify.ir.graph import Graph
from lipverify.questions.climb import Climb, climb, strictly_inside
from lipverify.questions.deviation_proof import Asked, certified
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
        refined(graph, region, before, value, Compute(), Splitting(batch=8, near_without_budget=1.05))
    )
    assert len(steps) >= 3
    for box in steps:
        assert bool((box.lower >= before.lower).all())
        assert bool((box.upper <= before.upper).all())
        assert bool((y >= box.lower[0] - 1e-12).all())
        assert bool((y <= box.upper[0] + 1e-12).all())
        before = box
    assert float(value(before)[0]) < 1.1 * float(y.abs().max())


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_deviation_of_few_inputs_ends_near_its_witness(norm: str) -> None:
    f, g = net(0), net(0, noise=0.02)
    answer = lv.deviation(f, g, lv.Ball(torch.zeros(1, 2), 1.0, norm))
    ratio = float(answer.upper / answer.lower)
    assert 1.0 <= ratio < (1.4 if norm == "linf" else 20.0)
    values = [value for _, value in answer.trace]
    assert values == sorted(values, reverse=True)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.usefixtures("whole_search")
def test_a_narrow_difference_is_found_where_no_gradient_leads_to_it(norm: str) -> None:
    place = torch.tensor([0.337, -0.21], dtype=torch.float64)

    def value(x: torch.Tensor) -> torch.Tensor:
        return (1.0 - 40.0 * (x - place).abs().amax(1)).relu() + 0.1 * (x[:, 0] < 0)

    region = lv.Ball(torch.zeros(2, 2), 1.0, norm)
    found = climb(value, region, Compute(), 10.0, Climb())
    assert bool((value(found) > 0.9).all())
    assert bool((value(climb(value, region, Compute(), 10.0, Climb(scattered=0))) < 0.5).all())
    assert bool(
        (torch.linalg.vector_norm(found, ord=2.0 if norm == "l2" else float("inf"), dim=1) <= 1.0).all()
    )


def test_a_proof_tells_the_largest_difference_it_came_by() -> None:
    f, g = (graph.to(dtype=torch.float64) for graph in (net(0), net(0, noise=0.02)))
    region = lv.Ball(torch.zeros(1, 2, dtype=torch.float64), 1.0, "linf")
    proved = certified(Asked(f, g, region, "linf", [1.0], parts=5), Compute())
    x = strictly_inside(torch.from_numpy(proved.far[0])[None], region)
    apart = float((lv.evaluate(f, x) - lv.evaluate(g, x)).abs().max())
    assert proved.upper[0] / 8 < apart <= proved.upper[0]


def test_a_budget_ends_it_and_a_point_is_not_cut() -> None:
    f, g = net(0), net(1)
    assert lv.deviation(f, g, lv.Ball(torch.zeros(1, 2), 1.0), budget=0.5).seconds < 20.0
    point = lv.deviation(f, g, lv.Ball(torch.ones(1, 2), 0.0))
    assert float(point.upper) == pytest.approx(float(point.lower), rel=1e-9)


def test_regions_are_cut_by_how_far_each_is_from_what_is_seen_there() -> None:
    """A region whose values are a thousand times smaller than another's is brought as near to its own truth."""
    small = (
        net(0)
        .to(dtype=torch.float64)
        .append(ops.Scale(torch.full((2,), 1e-3, dtype=torch.float64), None), (2,), "s")
    )
    region = lv.Ball(torch.tensor([[0.0, 0.0], [40.0, 40.0]]), 1.5, "linf")
    value = lambda box: torch.maximum(box.upper, -box.lower).amax(1)  # noqa: E731
    first = lv.bounds(small, region).output
    *_, last = refined(small, region, first, value, Compute(), Splitting(batch=4))
    x = torch.rand(4000, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 3 - 1.5
    for k, centre in enumerate(region.center.double()):
        truth = float(lv.evaluate(small, x + centre).abs().max())
        assert truth <= float(value(last)[k]) < 1.35 * truth


def test_parts_begin_with_the_ranges_of_what_they_were_cut_from() -> None:
    """With and without the memory of parts every range holds; with it none is looser."""
    graph = net(2).to(dtype=torch.float64)
    region = lv.Ball(torch.zeros(1, 2), 1.5, "linf")
    first = lv.bounds(graph, region).output
    value = lambda box: torch.maximum(box.upper, -box.lower).amax(1)  # noqa: E731
    ends = []
    for numbers in (1 << 26, 0):
        *_, last = refined(
            graph,
            region,
            first,
            value,
            Compute(),
            Splitting(batch=4, parts_without_budget=64, remembered=numbers),
        )
        ends.append(float(value(last)[0]))
    x = torch.rand(4000, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 3 - 1.5
    assert float(lv.evaluate(graph, x).abs().max()) <= min(ends)
    assert ends[0] <= ends[1] * 1.2
