"""On random networks of many operators no certified radius reaches an adversarial example, by any method and norm."""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch

import lipverify as lv
from lipverify import ops
from lipverify.errors import UnsupportedModel
from lipverify.ir.norm import Norm
from lipverify.robustness import Attack, Plan
from tests.networks import chain, random_graph, tensor

COUNT = 300 if os.environ.get("LIPVERIFY_SOUNDNESS") == "full" else 12


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
