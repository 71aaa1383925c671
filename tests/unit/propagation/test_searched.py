"""Searched lower planes: inside the plain ranges, strictly somewhere, and around every sampled value."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import lipverify as lv
from lipverify import ops
from lipverify.interpreter import evaluate
from lipverify.ir.norm import Norm
from lipverify.ir.region import Ball
from tests.networks import chain, tensor


@pytest.mark.parametrize("norm", [Norm.LINF, Norm.L2])
def test_between_samples_and_plain_ranges(norm: Norm, rng: np.random.Generator) -> None:
    weights = [
        tensor(rng, 12, 4),
        tensor(rng, 12, 12, scale=0.4),
        tensor(rng, 12, 12, scale=0.4),
        tensor(rng, 3, 12),
    ]
    graph = chain(weights, ops.ReLU())
    ball = Ball(torch.tensor(rng.standard_normal((2, 4))), 0.4, norm)
    plain, found = lv.bounds(graph, ball), lv.bounds(graph, ball, method="alpha")
    for name in plain:
        assert bool((found[name].lower >= plain[name].lower).all())
        assert bool((found[name].upper <= plain[name].upper).all())
    assert float(found.output.width.sum()) < 0.99 * float(plain.output.width.sum())
    points = ball.project(ball.center + 0.4 * torch.tensor(rng.standard_normal((300, 2, 4))))
    exact = graph.to(dtype=torch.float64)
    for index in range(2):
        values = evaluate(exact, points[:, index])
        assert bool((values >= found.output.lower[index]).all())
        assert bool((values <= found.output.upper[index]).all())


def test_without_unstable_neurons_nothing_changes(rng: np.random.Generator) -> None:
    graph = chain([tensor(rng, 6, 4), tensor(rng, 2, 6)], ops.Tanh())
    ball = Ball(torch.tensor(rng.standard_normal((1, 4))), 0.1)
    plain, found = lv.bounds(graph, ball), lv.bounds(graph, ball, method="alpha")
    assert torch.equal(plain.output.lower, found.output.lower)
    assert torch.equal(plain.output.upper, found.output.upper)
