"""The search finds the constant of networks whose constant is known, and never more."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch

from lipverify import ops
from lipverify.analyzers.protocol import Compute
from lipverify.falsify import Search, falsify, slope_of
from lipverify.frontends.builder import Builder
from lipverify.interpreter import evaluate
from lipverify.ir.graph import Graph, Origin
from lipverify.ir.norm import Norm
from lipverify.ir.region import Ball, Query
from lipverify.linalg.dense import operator_norm
from tests.networks import chain, random_graph, tensor

QUICK = Search(restarts=24, rounds=60, seconds=5)


def relu_rows(first: list[list[float]], bias: list[float], second: list[list[float]]) -> Graph:
    """second @ relu(first x + bias)."""
    b = Builder(symbolic_batch=True)
    x = b.input((1, len(first[0])), 0)
    hidden = b.linear(x, torch.tensor(first), torch.tensor(bias))
    return b.graph([b.linear(b.elementwise(ops.ReLU(), hidden), torch.tensor(second))], Origin())


# Rows 106 to 124 of the table of exactly known constants: (network, norm at the input, constant).
KNOWN = {
    "abs": (relu_rows([[1.0], [-1.0]], [0.0, 0.0], [[1.0, 1.0]]), Norm.L2, 1.0),
    "identity": (relu_rows([[1.0], [-1.0]], [0.0, 0.0], [[1.0, -1.0]]), Norm.L2, 1.0),
    "clip": (relu_rows([[1.0], [1.0]], [0.0, -1.0], [[1.0, -1.0]]), Norm.L2, 1.0),
    "hat": (relu_rows([[1.0]] * 3, [0.0, -1.0, -2.0], [[1.0, -2.0, 1.0]]), Norm.L2, 1.0),
    "sum of abs, l2": (
        relu_rows([[1.0, 0], [-1, 0], [0, 1], [0, -1]], [0.0] * 4, [[1.0] * 4]),
        Norm.L2,
        2**0.5,
    ),
    "sum of abs, linf": (
        relu_rows([[1.0, 0], [-1, 0], [0, 1], [0, -1]], [0.0] * 4, [[1.0] * 4]),
        Norm.LINF,
        2.0,
    ),
    "sum of abs, l1": (relu_rows([[1.0, 0], [-1, 0], [0, 1], [0, -1]], [0.0] * 4, [[1.0] * 4]), Norm.L1, 1.0),
    "r(x+y)+r(x-y)": (relu_rows([[1.0, 1], [1, -1]], [0.0, 0], [[1.0, 1]]), Norm.LINF, 2.0),
}


@pytest.mark.parametrize("name", KNOWN)
def test_known_constants_are_reached_and_not_exceeded(name: str) -> None:
    graph, norm, constant = KNOWN[name]
    value = float(falsify(graph, Query(norm, Norm.L2), Compute(), QUICK).value)
    assert 0.999 * constant <= value <= constant


def test_a_dead_network_has_constant_zero() -> None:
    b = Builder(symbolic_batch=True)
    inner = b.elementwise(ops.ReLU(), b.input((1, 1), 0))
    graph = b.graph([b.elementwise(ops.ReLU(), b.minus(b.negative(inner), torch.ones(1)))], Origin())
    assert float(falsify(graph, Query(), Compute(), QUICK).value) == 0.0


@pytest.mark.parametrize("norm_in", list(Norm))
@pytest.mark.parametrize("norm_out", list(Norm))
def test_linear_maps(norm_in: Norm, norm_out: Norm, rng: np.random.Generator) -> None:
    matrix = tensor(rng, 5, 4)
    exact = float(operator_norm(matrix, str(norm_in), str(norm_out)))
    value = float(falsify(chain([matrix]), Query(norm_in, norm_out), Compute(), QUICK).value)
    assert 0.97 * exact <= value <= exact


def test_witnesses_lie_in_the_ball_and_carry_their_slope(rng: np.random.Generator) -> None:
    graph = random_graph(rng)
    center = torch.tensor(rng.uniform(0.2, 0.8, (4, *graph.input_shape)))
    ball = Ball(center, 0.1, Norm.L2, box=(0.0, 1.0))
    query = Query(Norm.L2, Norm.LINF, ball)
    witness = falsify(graph, query, Compute(), QUICK)
    assert witness.partner is not None
    for points in (witness.points, witness.partner):
        assert float(torch.linalg.vector_norm((points - center).flatten(1), dim=1).max()) <= 0.1 * (1 + 1e-9)
    assert bool((slope_of(graph, query, witness) >= witness.value).all())


def test_the_same_seed_finds_the_same_witness(rng: np.random.Generator) -> None:
    graph = random_graph(rng)
    settings = Search(restarts=8, rounds=10, seconds=60)
    first, again = (falsify(graph, Query(), Compute(seed=3), settings) for _ in range(2))
    assert torch.equal(first.points, again.points)


def test_a_ball_of_radius_zero_has_the_norm_of_its_jacobian(rng: np.random.Generator) -> None:
    """There are no pairs in it; the witness is a direction, and the change along it per unit is the value."""
    graph = chain([tensor(rng, 8, 5), tensor(rng, 6, 8), tensor(rng, 4, 6)], ops.Tanh())
    center = torch.tensor(rng.standard_normal((3, 5)))
    exact = graph.to(dtype=torch.float64)
    for norm in Norm:
        query = Query(norm, norm, Ball(center, 0.0))
        witness = falsify(graph, query, Compute(), Search(seconds=2))
        assert witness.partner is None
        assert witness.direction is not None
        for i in range(3):
            jacobian = torch.autograd.functional.jacobian(lambda z: evaluate(exact, z[None])[0], center[i])
            change = torch.linalg.vector_norm(jacobian @ witness.direction[i], ord=norm.order)
            length = torch.linalg.vector_norm(witness.direction[i], ord=norm.order)
            assert float(change / length) >= float(witness.value[i])
            order = {Norm.L1: 1, Norm.L2: 2, Norm.LINF: float("inf")}[norm]
            truth = torch.linalg.matrix_norm(jacobian, order)
            assert float(witness.value[i]) == pytest.approx(float(truth), rel=1e-3)


def test_a_seed_and_no_clock_decides_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    graph = chain([tensor(rng, 40, 20), tensor(rng, 40, 40), tensor(rng, 5, 40)], ops.ReLU())
    search = Search(rounds=40, seconds=2.0)
    first = falsify(graph, Query(), Compute(), search)
    # A clock that runs so fast that the seconds are over many times: a machine that much slower.
    real = time.monotonic
    monkeypatch.setattr("lipverify.falsify.time.monotonic", lambda: 20.0 * real())
    second = falsify(graph, Query(), Compute(), search)
    assert torch.equal(first.value, second.value)
    assert torch.equal(first.points, second.points)
