"""Where l2 radii come from: the end of linear bounds, and shells with semidefinite constants."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch

from lipverify import ops
from lipverify.analyzers.protocol import Compute
from lipverify.interpreter import evaluate
from lipverify.ir.norm import Norm
from lipverify.ir.region import Ball
from lipverify.propagation import bounds
from lipverify.robustness import Plan, compare_radii, radii
from lipverify.robustness.ends import End
from lipverify.robustness.march import bracket, march
from lipverify.robustness.semidefinite import ball_constants
from lipverify.robustness.shells import Shell, Shells
from tests.networks import chain, tensor


@pytest.mark.parametrize(
    ("margin", "end"),
    [
        (lambda r: 0.5 - r, 0.5),
        (lambda r: 1.0 - r - 20.0 * r * r, (81**0.5 - 1) / 40),
        (lambda r: 1.0 - 1e4 * r**3, 1e-4 ** (1 / 3)),
        # Attention: what is lost grows faster and faster.
        (lambda r: 1.0 - r * math.exp(12.0 * r) / (0.3 * math.exp(3.6)), 0.3),
    ],
)
def test_the_end_of_linear_bounds_is_enclosed(margin: Callable[[float], float], end: float) -> None:
    looked: list[float] = []

    def look(radius: float) -> Shell:
        looked.append(radius)
        return Shell(radius, torch.tensor([margin(radius)], dtype=torch.float64))

    shells = Shells(torch.tensor([margin(0.0)], dtype=torch.float64), None, look)
    bracket(shells, 0.7, 1.0, 1e-3, Compute())
    assert end * (1 - 2e-3) <= shells.linear() < end
    assert len(looked) <= 9


def test_an_end_is_found_from_a_radius_beyond_it_in_a_few_steps() -> None:
    """As proofs look for the radius that lines reach, below that of a search: 1 - r exp(4 r) ends at .3076 or so."""
    end = End(1.0, 0.0, 0.6, 0.02, 0.005)
    radius: float | None = 0.6
    looked = 0
    while radius is not None:
        end.told(radius, 1.0 - radius * math.exp(4.0 * radius))
        radius, looked = end.following(), looked + 1
    assert 1.0 - end.low * math.exp(4.0 * end.low) > 0 > 1.0 - 1.02 * end.low * math.exp(4.08 * end.low)
    assert looked <= 6


def test_marching_integrates_a_growing_constant() -> None:
    """L(r) = 1 + 4 r and margin 1: the integral ends where r + 2 r^2 = 1, at 1/2; shells reach most of it, never more."""

    def steepen(radius: float, known: torch.Tensor, margin: torch.Tensor) -> torch.Tensor:
        return torch.minimum(known, torch.full_like(known, 1.0 + 4.0 * radius))

    shells = Shells(
        torch.ones(1, dtype=torch.float64),
        None,
        lambda radius: Shell(radius, torch.tensor([0.3 - radius], dtype=torch.float64)),
    )
    bracket(shells, 0.2, 1.0, 1e-3, Compute())
    march(shells, steepen, 1.0, 8, 2e-3, Compute())
    assert 0.4 < shells.integral() <= shells.radius() < 0.5


@pytest.mark.parametrize("activation", [ops.ReLU(), ops.Tanh()])
def test_constants_of_a_ball_exceed_every_slope_in_it(activation: ops.ReLU, rng: np.random.Generator) -> None:
    graph = chain([tensor(rng, 12, 5), tensor(rng, 10, 12), tensor(rng, 3, 10)], activation)
    center, radius = torch.tensor(rng.random((1, 5))), 0.3
    ranges = bounds(graph, Ball(center, radius, Norm.L2))
    nothing = torch.full((3,), torch.inf, dtype=torch.float64)
    found = ball_constants(
        graph, ranges, nothing, torch.tensor([1.0, 5.0, 9.0]).double(), torch.ones(3).double(), 2, Compute()
    )
    assert found is not None
    steps = torch.tensor(rng.standard_normal((2, 4000, 5)))
    steps = radius * steps / steps.norm(dim=2, keepdim=True) * torch.tensor(rng.random((2, 4000, 1))) ** 0.2
    exact = graph.to(dtype=torch.float64)
    a, b = center + steps[0], center + steps[1]
    slopes = (evaluate(exact, a) - evaluate(exact, b)).abs() / (a - b).norm(dim=1, keepdim=True)
    steepest = slopes.amax(0)
    assert bool((steepest <= found).all())
    # The output that was searched for is not loose: a wrong, far larger bound would be noticed.
    assert float(found[0]) <= 4.0 * float(steepest[0])


def test_comparisons_are_of_the_same_points(rng: np.random.Generator) -> None:
    graphs = {name: chain([tensor(rng, 8, 3), tensor(rng, 3, 8)], ops.ReLU()) for name in ("first", "second")}
    x = torch.tensor(rng.random((3, 3)))
    y = radii(graphs["first"], x, plan=Plan(Norm.L2, "crown")).predicted
    document = compare_radii(graphs, x, y, "l2", method="crown")
    first, second = document["models"]
    assert first["clean_accuracy"] == 1.0
    assert document["common"] == [k for k in range(3) if second["radius"][k] > 0]
    shared = [first["radius"][k] for k in document["common"]]
    assert first["mean_radius_common"] == (pytest.approx(sum(shared) / len(shared)) if shared else None)
