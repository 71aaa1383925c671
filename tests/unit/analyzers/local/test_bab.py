"""Branch and bound: exact on small networks, never above its parts' methods, its leaves cover the ball."""

from __future__ import annotations

import itertools
import math
from typing import cast

import numpy as np
import pytest
import torch
from scipy.optimize import linprog
from torch import nn

import lipverify as lv
from lipverify import ops
from lipverify.analyzers.local.analyzer import Local
from lipverify.analyzers.local.bab import LocalBaB, Trees
from lipverify.analyzers.local.emptiness import proofs_of_emptiness
from lipverify.analyzers.local.parts import Split, children, parallel_values
from lipverify.analyzers.local.sdp import LocalSDP
from lipverify.analyzers.protocol import Compute
from lipverify.certificates.writing import Layer, Writer
from lipverify.errors import NotCovered
from lipverify.falsify import Search, falsify
from lipverify.interpreter import evaluate
from lipverify.ir.graph import Graph
from lipverify.ir.norm import Norm
from lipverify.ir.region import Ball, Query
from tests.networks import chain, random_graph, tensor
from tests.tiers import also, tier
from tests.unit.checkers.kernel.programs import Writing

Rows = list[list[float]]


def hidden(weight: Rows, bias: list[float], out: list[float]) -> nn.Sequential:
    net = nn.Sequential(
        nn.Linear(len(weight[0]), len(weight)), nn.ReLU(), nn.Linear(len(weight), 1, bias=False)
    ).double()
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor(weight))
        net[0].bias.copy_(torch.tensor(bias))
        net[2].weight.copy_(torch.tensor([out]))
    return net


def tent() -> nn.Sequential:
    return hidden([[1.0], [1.0], [1.0]], [0.0, -0.5, -1.0], [2.0, -4.0, 2.0])


def graph_of(net: nn.Module, inputs: int) -> Graph:
    return lv.extract(net, torch.zeros(2, inputs, dtype=torch.float64))


def closed(a: float) -> dict[Norm, float]:
    return dict.fromkeys(Norm, a)


# Closed forms: the largest dual norm over the gradients of the linear pieces.
CLOSED = {
    "r(x)+r(-x)": (hidden([[1.0], [-1.0]], [0.0, 0.0], [1.0, 1.0]), 1, closed(1.0)),
    "r(x)-r(-x)": (hidden([[1.0], [-1.0]], [0.0, 0.0], [1.0, -1.0]), 1, closed(1.0)),
    "clip": (hidden([[1.0], [1.0]], [0.0, -1.0], [1.0, -1.0]), 1, closed(1.0)),
    "hat": (hidden([[1.0], [1.0], [1.0]], [0.0, -1.0, -2.0], [1.0, -2.0, 1.0]), 1, closed(1.0)),
    "tent": (tent(), 1, closed(2.0)),
    "tent 4 times": (nn.Sequential(*(tent() for _ in range(4))), 1, closed(16.0)),
    "max(x,y)": (
        hidden([[1.0, -1.0], [0.0, 1.0], [0.0, -1.0]], [0.0] * 3, [1.0, 1.0, -1.0]), 2, closed(1.0),
    ),
    "|x|+|y|": (
        hidden([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]], [0.0] * 4, [1.0] * 4), 2,
        {Norm.L1: 1.0, Norm.L2: math.sqrt(2.0), Norm.LINF: 2.0},
    ),
    "r(x+y)+r(x-y)": (hidden([[1.0, 1.0], [1.0, -1.0]], [0.0, 0.0], [1.0, 1.0]), 2, closed(2.0)),
    "r(x+y)-r(x-y)": (hidden([[1.0, 1.0], [1.0, -1.0]], [0.0, 0.0], [1.0, -1.0]), 2, closed(2.0)),
}  # fmt: skip


@pytest.mark.parametrize("norm", list(Norm))
@pytest.mark.parametrize("name", list(CLOSED))
def test_closed_forms(name: str, norm: Norm) -> None:
    net, inputs, expected = CLOSED[name]
    ball = Ball(torch.full((1, inputs), 0.3, dtype=torch.float64), 3.0)
    found = LocalBaB(sdp=False).bound(graph_of(net, inputs), Query(norm, norm, ball), Compute()).upper
    assert found is not None
    assert float(found) == pytest.approx(expected[norm], abs=1e-6)
    assert float(found) >= expected[norm]


def test_a_dead_network_has_constant_zero() -> None:
    """r(-r(x) - 1) = 0."""
    net = nn.Sequential(nn.Linear(1, 1), nn.ReLU(), nn.Linear(1, 1), nn.ReLU()).double()
    with torch.no_grad():
        for index, (weight, bias) in {0: (1.0, 0.0), 2: (-1.0, -1.0)}.items():
            net[index].weight.fill_(weight)
            net[index].bias.fill_(bias)
    ball = Ball(torch.zeros(1, 1), 3.0)
    found = LocalBaB().bound(graph_of(net, 1), Query(region=ball), Compute()).upper
    assert found is not None
    assert float(found) == 0.0


def enumerated(net: nn.Sequential, center: np.ndarray, radius: float) -> float:
    """The largest l1 norm of a row over all linear pieces that a box meets in more than a boundary."""
    layers = [m for m in net if isinstance(m, nn.Linear)]
    pairs = [(m.weight.detach().numpy(), m.bias.detach().numpy()) for m in layers]
    size, best = len(center), 0.0
    limits = [*zip(center - radius, center + radius, strict=True), (None, 1.0)]

    def feasible(conditions: list[tuple[np.ndarray, float]]) -> bool:
        matrix = np.array([np.append(g, np.linalg.norm(g)) for g, _ in conditions])
        right = np.array([h for _, h in conditions])
        result = linprog(np.append(np.zeros(size), -1.0), matrix, right, bounds=limits, method="highs")
        return result.status == 0 and -result.fun > 1e-9

    def visit(
        layer: int,
        a: np.ndarray,
        b: np.ndarray,
        conditions: list[tuple[np.ndarray, float]],
        signs: list[float],
    ) -> None:
        nonlocal best
        if layer == len(pairs) - 1:
            best = max(best, float(np.abs(a).sum(1).max()))
            return
        if len(signs) == len(b):
            weight, bias = pairs[layer + 1]
            pattern = np.array(signs)
            visit(layer + 1, weight @ (pattern[:, None] * a), weight @ (pattern * b) + bias, conditions, [])
            return
        i = len(signs)
        for sign, condition in ((1.0, (-a[i], b[i])), (0.0, (a[i], -b[i]))):
            if feasible([*conditions, condition]):
                visit(layer, a, b, [*conditions, condition], [*signs, sign])

    visit(0, *pairs[0], [], [])
    return best


@pytest.mark.parametrize("seed", range(5))
def test_small_networks_are_exact(seed: int) -> None:
    rng = np.random.default_rng(seed)
    inputs, widths = int(rng.integers(2, 4)), [int(rng.integers(3, 6)) for _ in range(2)]
    net = nn.Sequential(
        nn.Linear(inputs, widths[0]), nn.ReLU(), nn.Linear(widths[0], widths[1]), nn.ReLU(),
        nn.Linear(widths[1], 2),
    ).double()  # fmt: skip
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(torch.tensor(rng.standard_normal(parameter.shape)))
    center, radius = rng.standard_normal(inputs), float(10.0 ** rng.uniform(-1, 0.4))
    query = Query(Norm.LINF, Norm.LINF, Ball(torch.tensor(center)[None], radius))
    found = LocalBaB(sdp=False).bound(graph_of(net, inputs), query, Compute()).upper
    assert found is not None
    assert float(found) == pytest.approx(enumerated(net, center, radius), rel=1e-6)


@pytest.mark.parametrize(
    "op",
    [ops.ReLU(), also(ops.Tanh(), "ten seconds"), ops.GroupSort(2), also(ops.LeakyReLU(0.1), "as ReLU")],
    ids=str,
)
@pytest.mark.parametrize("norms", [(Norm.LINF, Norm.LINF), (Norm.L2, Norm.L2)])
def test_more_parts_are_never_looser(op: ops.Op, norms: tuple[Norm, Norm], rng: np.random.Generator) -> None:
    graph = chain([tensor(rng, 10, 5), tensor(rng, 10, 10, scale=0.4), tensor(rng, 3, 10)], op)
    query = Query(*norms, Ball(torch.tensor(rng.standard_normal((1, 5))), 0.4))
    before = LocalSDP().bound(graph, query, Compute()).upper
    assert before is not None
    witness = falsify(graph, query, Compute(), Search(restarts=10, rounds=10, seconds=1))
    for leaves in (6, 24):
        certificate = LocalBaB(leaves=leaves, sdp=leaves < 24).bound(graph, query, Compute())
        found = certificate.upper
        assert found is not None
        if leaves < 24:
            assert bool((found <= before * (1 + 1e-12)).all())
        assert bool((found >= witness.value).all())
        if leaves >= 24:
            linear = Local().bound(graph, query, Compute()).upper
            assert linear is not None
            assert bool((found <= linear).all())


def test_the_leaves_cover_the_ball(rng: np.random.Generator) -> None:
    """Every point lies in a leaf of every row, and the gradient there is below that leaf's bound."""
    graph = chain([tensor(rng, 8, 3), tensor(rng, 8, 8, scale=0.5), tensor(rng, 2, 8)], ops.ReLU())
    center, radius = torch.tensor(rng.standard_normal((1, 3))), 0.7
    query = Query(Norm.LINF, Norm.LINF, Ball(center, radius))
    evidence = LocalBaB(leaves=60, sdp=False).bound(graph, query, Compute()).evidence
    assert isinstance(evidence, Trees)
    assert evidence.to_json()["kind"] == "trees"
    exact = graph.to(dtype=torch.float64)
    for x in center + radius * (2 * torch.tensor(rng.random((50, 3))) - 1):
        values = {"input": x, "layer0": exact["layer0"].op.weight @ x}
        values["layer1"] = exact["layer1"].op.weight @ values["layer0"].clamp(min=0)
        values[graph.input.name] = x
        jacobian = torch.autograd.functional.jacobian(lambda z: evaluate(exact, z[None])[0], x)
        for row in range(2):
            here = [
                leaf
                for leaf in evidence.centres[0]
                if leaf.outputs[0] <= row < leaf.outputs[1]
                and all(
                    (float(values[s.node].flatten()[s.entry]) >= s.threshold) == s.above for s in leaf.splits
                )
            ]
            assert len(here) == 1
            assert here[0].by != "empty"
            assert float(jacobian[row].abs().sum()) <= here[0].upper * (1 + 1e-12)


def test_values_that_are_parallel_split_together() -> None:
    graph = graph_of(hidden([[2.0], [-2.0], [2.0]], [0.5, -0.5, 0.125], [1.0, 1.0, 1.0]), 1)
    twins = parallel_values(graph)
    name = graph.nodes[1].name
    above, below = children((), Split(name, 0, 0.0, True), twins)
    assert (above[1].entry, above[1].above, above[1].threshold) == (2, True, -0.375)
    assert (above[2].entry, above[2].above, above[2].threshold) == (1, False, 0.0)
    assert [s.above for s in below] == [False, False, True]
    assert below[1].threshold == -0.375


def test_contradictory_signs_are_proved_empty(rng: np.random.Generator) -> None:
    """x >= 1 and y >= 1 and x + y <= 1.9 meet nowhere; without the last there are points."""
    net = hidden([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]], [-1.0, -1.0, -1.9], [1.0, 1.0, 1.0])
    graph = graph_of(net, 2)
    ball = Ball(torch.zeros(1, 2, dtype=torch.float64).expand(2, 2), 2.0)
    name = graph.nodes[1].name
    both = (Split(name, 0, 0.0, True), Split(name, 1, 0.0, True))
    found = proofs_of_emptiness(lv.bounds(graph, ball).known, [(*both, Split(name, 2, 0.0, False)), both])
    assert found[0] is not None
    assert min(found[0]) >= 0.0
    assert found[1] is None


@pytest.mark.parametrize("seed", range(0, 12, tier(5, 1)))
def test_never_below_a_witness(seed: int) -> None:
    rng = np.random.default_rng(seed)
    graph = random_graph(rng)
    norms = list(itertools.product(Norm, Norm))[seed % 9]
    ball = Ball(torch.tensor(rng.standard_normal((1, *graph.input_shape))), 10.0 ** rng.uniform(-2, 0.3))
    query = Query(*norms, ball)
    analyzer = LocalBaB(leaves=16, sdp=seed % 4 == 0)
    if analyzer.reject(graph, query) is not None:
        pytest.skip("an operator without a local rule")
    found = analyzer.bound(graph, query, Compute()).upper
    assert found is not None
    witness = falsify(graph, query, Compute(seed=seed), Search(restarts=10, rounds=10, seconds=1))
    assert bool((found >= witness.value).all())


def test_parts_without_inputs_may_have_bounds_that_cross() -> None:
    """Planes of tanh see the conditions of a part that no input fulfils: its gradients keep the range from before."""
    rng = np.random.default_rng(241)
    graph = random_graph(rng)
    center = torch.tensor(rng.standard_normal((2, *graph.input_shape)))
    ball = Ball(center, 10.0 ** rng.uniform(-4, 0.3), "l2")
    query = Query(*list(itertools.product(Norm, Norm))[241 % 9], ball)
    found = LocalBaB(leaves=8, sdp=False).bound(graph, query, Compute()).upper
    plain = Local().bound(graph, query, Compute()).upper
    assert found is not None
    assert plain is not None
    assert bool((found <= plain).all())
    witness = falsify(graph, query, Compute(seed=0), Search(restarts=10, rounds=10, seconds=1))
    assert bool((found >= witness.value).all())


@pytest.mark.parametrize("free", [[0, 1], [0, 1, 2]])
def test_multipliers_of_other_neurons_than_are_free_are_not_covered(free: list[int]) -> None:
    """Ranges of a search may be tighter than where its proof is written: the row ended in an internal error."""
    w = Writing(2)
    w.dense(np.array([[1.0, 0.5], [-0.5, 1.0], [0.25, -1.0]]))
    w.scalar("Tanh")
    w.dense(np.ones((1, 3)))
    writer = Writer(cast(Graph, None), w.program(), np.zeros((1, 2)))
    part = writer.part(writer.region("l2", 0.5, 0), ("l2", "l2"), 3.0)
    layers = [Layer(3, np.array(free), np.full(3, 0.5), np.ones(3))]
    given = [np.full(3, 2.0)]
    if len(free) == 3:
        assert writer.multipliers(part, given, layers=lambda: layers) >= 0
        return
    with pytest.raises(NotCovered, match="of other neurons"):
        writer.multipliers(part, given, layers=lambda: layers)
