"""Jacobians around the middle of all slopes: every choice of slopes lies inside, and no more room than the generators need."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lipverify import ops
from lipverify.analyzers.local import spread
from lipverify.analyzers.local.comparators import elementary
from lipverify.analyzers.local.gradients import (
    Gradients,
    derivative_ranges,
    interval_gradients,
    reason_to_refuse,
)
from lipverify.analyzers.local.spread import input_ranges
from lipverify.ir.graph import Graph
from lipverify.ir.interval import Interval
from lipverify.ir.region import Ball
from lipverify.propagation import bounds
from tests.networks import chain, random_graph, tensor


def gradients(graph: Graph, ball: Ball) -> Gradients:
    factors = derivative_ranges(graph, bounds(graph, ball))
    size = graph.output.size
    seeds = torch.eye(size, dtype=torch.float64).reshape(size, *graph.output_shape)
    return interval_gradients(graph, factors, seeds, len(ball))


def jacobian(found: Gradients, rng: np.random.Generator, index: int, ends: bool) -> torch.Tensor:
    """One Jacobian with slopes chosen in their ranges, at their ends or between."""
    chosen = {}
    for name, parts in found.factors.items():
        points = []
        for f in parts:
            t = torch.tensor(rng.random(f.lower[index : index + 1].shape))
            t = t.round() if ends else t
            s = f.lower[index : index + 1] + t * (f.upper - f.lower)[index : index + 1]
            points.append(Interval(s, s))
        chosen[name] = tuple(points)
    box = interval_gradients(found.graph, chosen, found.seeds, 1).boxes[found.graph.input.name]
    return (box.lower + box.upper) / 2


@pytest.mark.parametrize("seed", range(30))
def test_every_choice_of_slopes_lies_inside(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(seed)
    graph = elementary(random_graph(rng)).to(dtype=torch.float64)
    if reason_to_refuse(graph) is not None:
        pytest.skip("an operator without slopes")
    ball = Ball(torch.tensor(rng.standard_normal((2, *graph.input_shape))), 0.3)
    found = gradients(graph, ball)
    if seed % 2:
        # Several chunks of generators.
        monkeypatch.setattr(spread, "MEMORY", 8 * 4 * 3 * sum(node.size for node in graph.nodes))
    for index in range(2):
        box = input_ranges(found, index)
        assert box is not None
        slack = 1e-12 * (1 + torch.maximum(box.lower.abs(), box.upper.abs()).max())
        for trial in range(20):
            j = jacobian(found, rng, index, trial % 2 == 0)
            assert bool(((j >= box.lower - slack) & (j <= box.upper + slack)).all())


def test_one_layer_is_exact(rng: np.random.Generator) -> None:
    """J = W2 diag(s) W1: the middle, and |W2| diag(half) |W1| to both sides."""
    first, second = tensor(rng, 9, 5), tensor(rng, 3, 9)
    graph = chain([first, second], ops.ReLU()).to(dtype=torch.float64)
    found = gradients(graph, Ball(torch.tensor(rng.standard_normal((1, 5))), 0.5))
    ((factor,),) = found.factors.values()
    middle, half = (factor.lower[0] + factor.upper[0]) / 2, (factor.upper[0] - factor.lower[0]) / 2
    assert float(half.max()) == 0.5
    first, second = first.double(), second.double()
    center, reach = second @ (middle[:, None] * first), second.abs() @ (half[:, None] * first.abs())
    box = input_ranges(found, 0)
    assert box is not None
    assert torch.allclose(box.lower[0], center - reach, rtol=1e-12, atol=1e-12)
    assert torch.allclose(box.upper[0], center + reach, rtol=1e-12, atol=1e-12)
    assert bool((box.upper[0] - box.lower[0] >= 2 * reach * (1 - 1e-15)).all())
