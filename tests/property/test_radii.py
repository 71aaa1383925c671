"""On random networks of many operators no certified radius reaches an adversarial example, by any method and norm."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

import lipverify as lv
from lipverify import ops
from lipverify.errors import UnsupportedModel
from lipverify.ir.graph import Node
from lipverify.ir.norm import Norm
from lipverify.robustness import Attack, Plan
from lipverify.robustness.branching import FIRST_STEPS, begun, proved_on
from lipverify.robustness.domains import Neurons, Search
from lipverify.robustness.pairs import differences, predict
from tests.networks import chain, random_graph, tensor
from tests.tiers import tier

COUNT = tier(2, 300)


@pytest.mark.parametrize("seed", range(COUNT))
def test_radii_lie_below_adversarial_examples(seed: int) -> None:
    """`radii` raises where they do not; sampled perturbations inside the radius are tried as well."""
    rng = np.random.default_rng([seed, 20])
    graph = random_graph(rng, layers=4)
    while graph.output.size < 2:
        graph = random_graph(rng, layers=4)
    norm = Norm.L2 if seed % 2 else Norm.LINF
    x = torch.tensor(rng.standard_normal((2, *graph.input_shape)))
    plan = Plan(norm, "auto", looks=5, attack=Attack(6, 12, 4, 8))
    try:
        found = lv.radii(graph, x, plan=plan)
    except UnsupportedModel:
        pytest.skip("no method covers this network")
    exact = graph.to(dtype=torch.float64)
    for index, record in enumerate(found.records):
        if not 0 < record.radius < 1e100:
            continue
        noise = torch.tensor(rng.standard_normal((400, *graph.input_shape)))
        size = torch.linalg.vector_norm(noise.flatten(1), ord=norm.order, dim=1)
        inside = noise / size.reshape(-1, *(1,) * len(graph.input_shape)) * record.radius * (1 - 1e-9)
        labels = lv.evaluate(exact, x[index] + inside).flatten(1).argmax(1)
        assert bool((labels == record.predicted).all())


def test_a_larger_network_constant_gives_smaller_radii(rng: np.random.Generator) -> None:
    """Scaling the input of a network by c scales its radii by 1 / c."""
    first = tensor(rng, 9, 4)
    second = tensor(rng, 3, 9)
    x = torch.tensor(rng.standard_normal((3, 4)))
    plan = Plan(Norm.L2, "global", attack=None)
    radius = lv.radii(chain([first, second], ops.ReLU()), x, plan=plan).radius
    scaled = lv.radii(chain([first * 4, second], ops.ReLU()), x / 4, plan=plan).radius
    assert torch.allclose(scaled * 4, radius, rtol=1e-3)


RELU = tier(2, 200)


@pytest.mark.parametrize("seed", range(RELU))
def test_branched_margins_hold_at_every_sampled_point(seed: int) -> None:
    """Networks whose margins a dense grid of a two-dimensional ball nearly attains: never shown positive where they are not."""
    rng = np.random.default_rng([seed, 21])
    graph = chain([tensor(rng, 8, 2), tensor(rng, 6, 8), tensor(rng, 3, 6)], ops.ReLU())
    x = torch.tensor(rng.standard_normal((1, 2)))
    norm = Norm.L2 if seed % 2 else Norm.LINF
    ball = lv.Ball(x, float(10.0 ** rng.uniform(-1, 0.3)), norm)
    label = predict(graph, x[0])
    network = differences(graph, label)
    ranges = lv.bounds(network, ball)
    axis = torch.linspace(-1, 1, 301).double() * ball.radius
    grid = torch.cartesian_prod(axis, axis)
    if norm is Norm.L2:
        grid = grid[grid.norm(dim=1) <= ball.radius]
    values = lv.evaluate(network.to(dtype=torch.float64), x + grid)
    neurons = Neurons.of(ranges.known)
    rows, _ = begun(neurons, [0, 1], {})
    search = Search(neurons)
    best, closed = search.searched(rows, FIRST_STEPS, lambda: False)
    lowest, margins = values.amin(0), search.lower(best)
    assert bool((margins <= lowest).all())
    for j in range(2):
        assert not bool(closed[j]) or float(lowest[j]) > 0
        # A constant added to the output moves the question to where branch and bound has to decide.
        spread = float(values[:, j].max() - values[:, j].min())
        for share, wanted in ((1e-3, None), (-0.02, False), (0.35, True)):
            moved = with_shift(network, j, float(-lowest[j]) + share * spread)
            wider = Neurons.of(lv.bounds(moved, ball).known)
            found = proved_on(wider, [j], {}, lambda: False, most=3000)
            if wanted is not None:
                assert (found is not None) is wanted
            if found is not None:
                assert set(found) == {j}
                again = proved_on(wider, [j], found, lambda: False, most=3000)
                assert again is not None
                assert set(again[j]) == set(found[j])


def with_shift(graph: lv.Graph, output: int, shift: float) -> lv.Graph:
    """The network with a number added to one of its outputs."""
    offset = torch.zeros(graph.output.size, dtype=torch.float64)
    offset[output] = shift
    size = graph.output.size
    node = Node(
        "moved", ops.Linear(torch.eye(size, dtype=torch.float64), offset), (graph.output.name,), (size,)
    )
    return replace(graph, nodes=(*graph.nodes, node), outputs=("moved",), output_index=0)
