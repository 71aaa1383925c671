"""The product bound: never below a witness, and the relations that every Lipschitz bound obeys."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lipverify import ops
from lipverify.analyzers.affine_runs import run_matrix, runs
from lipverify.analyzers.product import Product
from lipverify.analyzers.protocol import Compute
from lipverify.falsify import Search, falsify
from lipverify.frontends.builder import Builder
from lipverify.ir.graph import Graph, Origin
from lipverify.ir.norm import Norm
from lipverify.ir.region import Ball, Query
from lipverify.rules import linear
from tests.networks import chain, random_graph, tensor
from tests.tiers import tier

COUNT = tier(20, 3000)
PAIRS = [(p, q) for p in Norm for q in Norm]


def product(graph: Graph, query: Query | None = None) -> float:
    certificate = Product().bound(graph, query or Query(), Compute())
    assert certificate.upper is not None
    return float(certificate.upper.max())


@pytest.mark.parametrize("block", range(10))
def test_never_below_a_witness(block: int) -> None:
    for index in range(COUNT // 10):
        seed = block * 1_000_000 + index
        graph = random_graph(np.random.default_rng(seed))
        query = Query(*PAIRS[seed % len(PAIRS)]) if index % 2 else Query()
        witness = falsify(graph, query, Compute(seed=seed), Search(restarts=12, rounds=20, seconds=2))
        assert product(graph, query) >= float(witness.value.max()), f"seed {seed}"


def test_scaling_a_layer_scales_the_bound(rng: np.random.Generator) -> None:
    weights = [tensor(rng, 7, 5), tensor(rng, 6, 7), tensor(rng, 3, 6)]
    base = product(chain(weights, ops.ReLU()))
    scaled = product(chain([weights[0], weights[1] * 8.0, weights[2]], ops.ReLU()))
    assert scaled == pytest.approx(8 * base, rel=1e-9)


def test_composition_is_at_most_the_product(rng: np.random.Generator) -> None:
    first, second = [tensor(rng, 7, 5), tensor(rng, 6, 7)], [tensor(rng, 4, 6), tensor(rng, 3, 4)]
    whole = product(chain([*first, *second], ops.Tanh()))
    assert whole <= product(chain(first, ops.Tanh())) * product(chain(second, ops.Tanh())) * (1 + 1e-9)


def test_permuting_hidden_neurons_changes_nothing(rng: np.random.Generator) -> None:
    weights = [tensor(rng, 9, 5), tensor(rng, 4, 9)]
    order = torch.tensor(rng.permutation(9))
    base = product(chain(weights, ops.ReLU()))
    assert product(chain([weights[0][order], weights[1][:, order]], ops.ReLU())) == pytest.approx(
        base, rel=1e-9
    )


def test_orthogonal_maps_at_both_ends_change_nothing_in_l2(rng: np.random.Generator) -> None:
    weights = [tensor(rng, 6, 5).double(), tensor(rng, 4, 6).double()]
    q_in, q_out = (torch.linalg.qr(tensor(rng, n, n).double()).Q for n in (5, 4))
    base = product(chain(weights, ops.ReLU()))
    turned = product(chain([weights[0] @ q_in, q_out @ weights[1]], ops.ReLU()))
    assert turned == pytest.approx(base, rel=1e-9)


def test_a_ball_has_the_global_bound_around_every_centre(rng: np.random.Generator) -> None:
    graph = chain([tensor(rng, 6, 5), tensor(rng, 4, 6)], ops.ReLU())
    query = Query(region=Ball(torch.zeros(3, 5), 0.1, Norm.L2))
    certificate = Product().bound(graph, query, Compute())
    assert certificate.upper is not None
    assert certificate.upper.tolist() == [product(graph)] * 3


def test_more_than_float64_is_given_as_a_logarithm(rng: np.random.Generator) -> None:
    weights = [torch.eye(3, dtype=torch.float64) * 1e200 for _ in range(3)]
    certificate = Product().bound(chain(weights, ops.ReLU()), Query(), Compute())
    assert certificate.upper is None
    assert certificate.log10_upper == pytest.approx(600, abs=1e-9)


def test_within_two_percent_of_exact_norms_on_dense_chains(rng: np.random.Generator) -> None:
    weights = [tensor(rng, 40, 30), tensor(rng, 50, 40), tensor(rng, 10, 50)]
    exact = np.prod([np.linalg.norm(w.double().numpy(), 2) for w in weights])
    assert exact <= product(chain(weights, ops.ReLU())) <= 1.0001 * exact


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [8, 12, 16])
def test_within_two_percent_of_exact_norms_on_convolutional_chains(size: int, stride: int) -> None:
    rng = np.random.default_rng([size, stride])
    b = Builder(symbolic_batch=True)
    v = b.input((1, 2, size, size), 0)
    for index, channels in enumerate((4, 4)):
        b.where = f"conv{index}"
        kernel = tensor(rng, channels, v.shape[0], 3, 3)
        v = b.conv(v, ops.Conv(kernel, None, (stride, stride), ((1, 1), (1, 1)), (1, 1)))
        v = b.elementwise(ops.ReLU(), v)
    graph = b.graph([b.linear(b.flatten(v, 1, -1), tensor(rng, 5, int(np.prod(v.shape))))], Origin())
    exact = 1.0
    for run in runs(graph):
        if all(linear.covers(type(node.op)) for node in run.nodes):
            exact *= np.linalg.norm(run_matrix(run, lambda op: op).numpy(), 2)
    assert exact * (1 - 1e-12) <= product(graph) <= 1.02 * exact
