"""The search finds the constant of networks whose constant is known, and never more."""

from __future__ import annotations

import time
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch

from lipverify import ops, pipeline
from lipverify.analyzers.protocol import Compute
from lipverify.falsify import Search, falsify, search, witness
from lipverify.falsify.search import Climber
from lipverify.falsify.steepness import steepest
from lipverify.frontends.builder import Builder
from lipverify.interpreter import evaluate
from lipverify.ir.graph import Graph, Origin
from lipverify.ir.norm import Norm
from lipverify.ir.op import Op
from lipverify.ir.region import Ball, Query
from lipverify.linalg.dense import operator_norm
from lipverify.propagation.points import slopes_below
from lipverify.rules import forward
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


@pytest.mark.parametrize("restarts", [1, 2])
def test_a_single_restart_climbs_as_well(restarts: int) -> None:
    graph, norm, constant = KNOWN["abs"]
    search = Search(restarts=restarts, rounds=20, seconds=5)
    value = float(falsify(graph, Query(norm, Norm.L2), Compute(), search).value)
    assert 0.999 * constant <= value <= constant


@pytest.mark.parametrize(("outputs", "rounds"), [(10, 1), (1000, 0)])
def test_the_largest_networks_get_one_restart_and_no_look_in_double_precision(
    outputs: int, rounds: int
) -> None:
    """Counted: 4e9 multiplications are a fifth of a second, and a look at a Jacobian takes tens of passes."""
    b = Builder(symbolic_batch=True)
    x = b.input((1, 64, 128, 128), 0)
    x = b.conv(x, ops.Conv(torch.ones(1024, 64, 4, 4), None, (2, 2), ((1, 1), (1, 1)), (1, 1)))
    x = b.conv(x, ops.Conv(torch.ones(outputs, 1024, 1, 1), None, (64, 64), ((0, 0), (0, 0)), (1, 1)))
    graph = b.graph([b.elementwise(ops.ReLU(), x)], Origin())
    climber = Climber(graph, Query(), Compute(), Search(seconds=10.0), None, None)
    assert (climber.restarts, climber.rounds, climber.last, climber.huge) == (1, rounds, 3, True)
    more = Climber(graph, Query(), Compute(), Search(seconds=10000.0), None, None)
    assert (more.restarts, more.last, more.huge) == (24, 12, False)


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
        for point, middle in zip(points.flatten(1).tolist(), center.flatten(1).tolist(), strict=True):
            squares = sum((Fraction(p) - Fraction(m)) ** 2 for p, m in zip(point, middle, strict=True))
            assert squares <= Fraction(0.1) ** 2
        assert bool((points >= 0).all() & (points <= 1).all())
    proved = slopes_below(graph, witness.points, witness.partner, Norm.L2, Norm.LINF)
    assert torch.equal(proved, witness.value)


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
            assert float(change / length) * (1 + 1e-12) >= float(witness.value[i])
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
    monkeypatch.setattr("lipverify.falsify.search.time.monotonic", lambda: 20.0 * real())
    second = falsify(graph, Query(), Compute(), search)
    assert torch.equal(first.value, second.value)
    assert torch.equal(first.points, second.points)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_what_rounding_invents_is_no_lower_bound(dtype: torch.dtype) -> None:
    """The Hilbert matrix, then its inverse: float64 sees slopes of thousands where the constant is about 1 (about 8)."""
    hilbert = 1.0 / (torch.arange(12)[:, None] + torch.arange(12) + 1.0).double()
    weights = [hilbert.to(dtype), torch.linalg.inv(hilbert.to(dtype).double()).to(dtype)]
    rows = [[[Fraction(v) for v in row] for row in weight.tolist()] for weight in weights]
    product = [
        [float(sum(a * b for a, b in zip(row, column, strict=True))) for column in zip(*rows[0], strict=True)]
        for row in rows[1]
    ]
    constant = float(np.linalg.norm(np.array(product), 2))
    for norm in Norm:
        truth = float(operator_norm(torch.tensor(product, dtype=torch.float64), str(norm), str(norm)))
        assert float(falsify(chain(weights), Query(norm, norm), Compute(), QUICK).value) <= truth
    assert constant < 10.0


@pytest.mark.parametrize("scale", [1e-320, 1e-160, 1e160])
def test_weights_of_any_size_have_a_lower_bound(scale: float, rng: np.random.Generator) -> None:
    weights = [torch.tensor(rng.standard_normal((4, 3))) * scale, torch.tensor(rng.standard_normal((2, 4)))]
    exact = [
        [
            sum(Fraction(u) * Fraction(w) for u, w in zip(row, column, strict=True)) / Fraction(scale)
            for column in zip(*weights[0].tolist(), strict=True)
        ]
        for row in weights[1].tolist()
    ]
    matrix = torch.tensor([[float(v) for v in row] for row in exact], dtype=torch.float64)
    constant = float(operator_norm(matrix, "l2", "l2"))
    value = float(falsify(chain(weights), Query(), Compute(), QUICK).value)
    assert 0.9 * constant < value / scale <= constant * (1 + 1e-3 * (scale < 1e-300))


def test_where_nothing_can_be_enclosed_nothing_is_claimed(rng: np.random.Generator) -> None:
    class Unknown(Op):
        """An operator with a value and nothing else."""

    forward.register(Unknown)(lambda op, x: 2.0 * x)
    graph = chain([tensor(rng, 3, 3)]).append(Unknown(), (3,), "unknown")
    witness = falsify(graph, Query(), Compute(), Search(restarts=4, rounds=2, seconds=1))
    assert float(witness.value) == 0.0
    assert "Unknown" in witness.note


@pytest.mark.parametrize("norm_in", list(Norm))
@pytest.mark.parametrize("norm_out", list(Norm))
@pytest.mark.parametrize("outputs", [3, 70])
def test_steepness_of_single_points(
    norm_in: Norm, norm_out: Norm, outputs: int, rng: np.random.Generator
) -> None:
    """Up to 64 outputs from all rows of the Jacobian, beyond by products with it: attained along the direction."""
    first, second = torch.tensor(rng.standard_normal((8, 5))), torch.tensor(rng.standard_normal((outputs, 8)))
    x, v = torch.tensor(rng.standard_normal((2, 6, 5)))
    slopes, directions = steepest(lambda z: torch.tanh(z @ first.T) @ second.T, x, v, (norm_in, norm_out))
    for index in range(6):
        jacobian = second @ torch.diag(1.0 - torch.tanh(first @ x[index]) ** 2) @ first
        norm = float(operator_norm(jacobian, str(norm_in), str(norm_out)))
        reached = torch.linalg.vector_norm(jacobian @ directions[index], ord=norm_out.order)
        assert float(slopes[index]) <= norm * (1 + 1e-9)
        assert float(
            reached / torch.linalg.vector_norm(directions[index], ord=norm_in.order)
        ) >= 0.99 * float(slopes[index])
        # From one start, products alone may end at a direction that is only locally the best.
        if outputs <= 64 or norm_in is norm_out is Norm.L2:
            assert float(slopes[index]) >= 0.8 * norm
        if outputs <= 64 and (norm_in is Norm.L1 or norm_out is Norm.LINF or norm_in is norm_out is Norm.L2):
            assert float(slopes[index]) == pytest.approx(norm, rel=1e-6)


def test_a_search_ends_where_nothing_is_gained() -> None:
    """A linear network has one slope: many rounds are allowed, and few are made."""
    calls = []
    climber = Climber(chain([torch.eye(3)]), Query(), Compute(), Search(seconds=100), None, None)
    whole = climber.looked_at
    climber.looked_at = lambda *batch: (calls.append(1), whole(*batch))[1]  # type: ignore[method-assign]
    climber.run()
    assert climber.rounds == Search().rounds
    assert len(calls) < climber.rounds / 3


def test_a_network_of_somebody_else_is_climbed(third_party: Path) -> None:
    """A convolutional network whose steepest known place has slope 41: noise alone finds 26."""
    graph = pipeline.load(third_party / "converted" / "kw-mnist-cnn.onnx")
    assert 34.0 < float(falsify(graph, Query(), Compute(), Search(seconds=2.0)).value) < 60.0


def test_pairs_in_a_network_of_many_parameters_are_shown_by_intervals(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No second copy of its weights: neither for the search nor, where intervals show a slope, for a proof."""
    graph = chain([tensor(rng, 6, 4), tensor(rng, 3, 6)], ops.ReLU()).to(dtype=torch.float32)
    usual = falsify(graph, Query(), Compute(), QUICK)
    monkeypatch.setattr(search, "MANY", 0)
    monkeypatch.setattr(witness, "MANY", 0)

    def copied(*_: object, **__: object) -> Graph:
        raise AssertionError("the whole network is copied")

    with monkeypatch.context() as patch:
        patch.setattr(witness, "slopes_below", copied)
        to = Graph.to
        patch.setattr(Graph, "to", lambda g, **k: copied() if k.get("dtype") is torch.float64 else to(g, **k))
        found = falsify(graph, Query(), Compute(), QUICK)
    assert 0.3 * float(usual.value[0]) < float(found.value[0]) <= float(usual.value[0]) * (1 + 1e-6)
    assert found.partner is not None
    shown = slopes_below(graph, found.points, found.partner, Norm.L2, Norm.L2)
    assert float(found.value[0]) <= float(shown[0]) * (1 + 1e-12)
    # Where intervals show nothing there is still the exact proof.
    monkeypatch.setattr(witness, "slopes_roughly_below", lambda graph, x, *_: torch.zeros(len(x)).double())
    assert float(falsify(graph, Query(), Compute(), QUICK).value[0]) > 0.3 * float(usual.value[0])


def test_after_proofs_that_show_nothing_others_are_not_tried_where_time_ends(
    monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator
) -> None:
    """Fifty steps of a recurrent network lose every digit: ten proofs took a third of the budget."""
    graph = chain([tensor(rng, 5, 5, scale=0.5) for _ in range(2)], ops.ReLU())
    tried = list[int]()

    def nothing(graph: Graph, x: torch.Tensor, *more: object) -> torch.Tensor:
        tried.append(len(x))
        return torch.zeros(len(x), dtype=torch.float64)

    monkeypatch.setattr(witness, "slopes_below", nothing)
    monkeypatch.setattr(
        witness, "slopes_roughly_below", lambda graph, x, *_: torch.zeros(len(x), dtype=torch.float64)
    )
    counts = []
    for compute in (Compute(), Compute(deadline=time.monotonic() + 600.0)):
        tried.clear()
        assert float(falsify(graph, Query(), compute, Search(restarts=8, rounds=4)).value) == 0.0
        counts.append(len(tried))
    assert counts[1] == witness.IN_VAIN < counts[0]
