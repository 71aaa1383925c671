"""Ranges of all nodes: they hold samples, are tighter than intervals, and do not depend on batching."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch

import lipverify as lv
from lipverify import ops
from lipverify.errors import UnsupportedModel, UsageError
from lipverify.interpreter import evaluate, evaluate_all
from lipverify.ir.graph import Graph, Node
from lipverify.ir.interval import Interval
from lipverify.ir.norm import Norm
from lipverify.ir.op import Input
from lipverify.ir.region import Ball
from lipverify.propagation import Bounds, bounds
from lipverify.propagation import linear as linear_bounds
from tests.attention_networks import prenorm_patches
from tests.networks import chain, random_graph, tensor
from tests.tiers import tier

COUNT = tier(100, 2000)


def relu_net(rng: np.random.Generator, widths: tuple[int, ...] = (6, 20, 20, 4)) -> Graph:
    weights = [tensor(rng, b, a, scale=a**-0.5) for a, b in itertools.pairwise(widths)]
    return chain(weights, ops.ReLU())


def sampled(ball: Ball, rng: np.random.Generator, count: int) -> torch.Tensor:
    noise = torch.tensor(rng.standard_normal((count, *ball.center.shape)))
    scale = torch.tensor(10.0 ** rng.uniform(-1, 0.7, (count, *(1,) * ball.center.ndim)))
    return ball.project(ball.center + ball.radius * scale * noise)


def violation(found: Bounds, graph: Graph, points: torch.Tensor) -> float:
    """How far samples [n, count, ...] leave the ranges, relative to their size."""
    exact, worst = graph.to(dtype=torch.float64), 0.0
    for index in range(points.shape[1]):
        for name, y in evaluate_all(exact, points[:, index]).items():
            box = found[name]
            beyond = torch.maximum(box.lower[index] - y, y - box.upper[index])
            worst = max(worst, float((beyond / (1.0 + y.abs())).amax()) if beyond.numel() else 0.0)
    return worst


@pytest.mark.parametrize("block", range(4))
def test_ranges_hold_samples(block: int) -> None:
    done = 0
    for index in range(COUNT // 4):
        seed = 1000 * block + index
        rng = np.random.default_rng(seed)
        graph = random_graph(rng)
        center = torch.tensor(rng.standard_normal((2, *graph.input_shape)))
        box = (float(center.min()) - 0.01, float(center.max()) + 0.05) if seed % 2 else None
        ball = Ball(center, 10.0 ** rng.uniform(-4, 0.5), "l2" if seed % 3 else "linf", box)
        # The samples are evaluated in float64, which rounds on its own.
        assert violation(lv.bounds(graph, ball), graph, sampled(ball, rng, 100)) <= 1e-13, f"seed {seed}"
        done += 1
    assert done == COUNT // 4


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_never_wider_than_intervals_and_much_tighter_behind(norm: str, rng: np.random.Generator) -> None:
    graph = relu_net(rng)
    ball = Ball(torch.tensor(rng.standard_normal((3, 6))), 0.05, norm)
    linear, interval = lv.bounds(graph, ball), lv.bounds(graph, ball, method="interval")
    for name in linear:
        assert bool((linear[name].lower >= interval[name].lower).all())
        assert bool((linear[name].upper <= interval[name].upper).all())
    assert float((linear.output.width / interval.output.width).mean()) < 0.5


def test_a_linear_network_has_its_exact_range(rng: np.random.Generator) -> None:
    """c'x over the ball: c'x0 -+ r |c|, with the matrix of the whole network."""
    weights = [tensor(rng, 5, 6), tensor(rng, 7, 5), tensor(rng, 3, 7)]
    matrix = weights[2].double() @ weights[1].double() @ weights[0].double()
    center = torch.tensor(rng.standard_normal((2, 6)))
    for norm, order in (("l2", 2), ("linf", 1)):
        found = lv.bounds(chain(weights), Ball(center, 0.3, norm)).output
        reach = 0.3 * torch.linalg.vector_norm(matrix, ord=order, dim=1)
        truth = center @ matrix.T
        for end, sign in ((found.upper, 1), (found.lower, -1)):
            assert torch.allclose(end, truth + sign * reach, rtol=1e-11, atol=1e-11)
            assert bool((sign * (end - truth - sign * reach) >= -1e-14).all())


def test_a_batch_equals_single_runs(rng: np.random.Generator) -> None:
    graph, center = relu_net(rng), torch.tensor(rng.standard_normal((64, 6)))
    whole = lv.bounds(graph, Ball(center, 0.1, "l2"))
    for index in range(0, 64, 7):
        one = lv.bounds(graph, Ball(center[index : index + 1], 0.1, "l2"))
        for name in one:
            for end in ("lower", "upper"):
                a, b = getattr(whole[name], end)[index], getattr(one[name], end)[0]
                assert torch.allclose(a, b, rtol=1e-11, atol=1e-12), name


def test_chunks_change_nothing_beyond_rounding(rng: np.random.Generator) -> None:
    graph, ball = relu_net(rng), Ball(torch.tensor(rng.standard_normal((3, 6))), 0.2)
    whole, pieces = lv.bounds(graph, ball), lv.bounds(graph, ball, memory=1)
    for name in whole:
        assert torch.allclose(whole[name].upper, pieces[name].upper, rtol=1e-11, atol=1e-12)


def test_radius_zero_is_the_value_itself(rng: np.random.Generator) -> None:
    graph, center = relu_net(rng), torch.tensor(rng.standard_normal((2, 6)))
    found = lv.bounds(graph, Ball(center, 0.0))
    y = evaluate(graph.to(dtype=torch.float64), center)
    assert found.output.contains(y)
    assert float(found.output.width.max()) < 1e-12


def test_the_input_box_cuts_the_ball(rng: np.random.Generator) -> None:
    graph, center = relu_net(rng), torch.full((1, 6), 0.01, dtype=torch.float64)
    free, cut = lv.bounds(graph, Ball(center, 0.5)), lv.bounds(graph, Ball(center, 0.5, box=(0, 1)))
    assert float(cut.output.width.mean()) < float(free.output.width.mean())


def test_refusals_name_what_is_wrong(rng: np.random.Generator) -> None:
    graph = relu_net(rng)
    with pytest.raises(UsageError, match=r"shape \[5\]"):
        lv.bounds(graph, Ball(torch.zeros(1, 5), 0.1))
    with pytest.raises(UsageError, match="unknown method"):
        lv.bounds(graph, Ball(torch.zeros(1, 6), 0.1), method="magic")
    root = chain([tensor(rng, 6, 6), tensor(rng, 2, 6)], ops.Sqrt())
    with pytest.raises(UnsupportedModel, match="Sqrt"):
        lv.bounds(root, Ball(torch.zeros(1, 6), 0.1))


@pytest.mark.parametrize("method", ["linear", "alpha"])
def test_a_quotient_of_computed_tensors_beside_sums_that_read_it(method: str) -> None:
    """Forms bound x / y by way of 1 / y: what they keep of that product says nothing about y."""
    rng = np.random.default_rng(3)
    graph = Graph(
        (
            Node("x", Input(), (), (4,)),
            Node("above", ops.Linear(tensor(rng, 3, 4)), ("x",), (3,)),
            Node("smooth", ops.Softmax(0), ("above",), (3,)),
            Node("below", ops.Exp(), ("smooth",), (3,)),
            Node("quotient", ops.Div(), ("above", "below"), (3,)),
            Node("mixed", ops.Linear(tensor(rng, 3, 3)), ("quotient",), (3,)),
            Node("y", ops.Linear(tensor(rng, 2, 3)), ("mixed",), (2,)),
        ),
        ("y",),
    )
    ball = Ball(tensor(rng, 2, 4), 0.3, Norm.LINF)
    points = sampled(ball, rng, 200)
    found = lv.bounds(graph, ball, method=method)
    assert violation(found, graph, points) <= 1e-12
    known = {name: found[name] for name in ("above", "smooth")}
    again = bounds(graph, ball, method="linear", device=torch.device("cpu"), within=known)
    assert violation(again, graph, points) <= 1e-12


@pytest.mark.parametrize(("seed", "radius"), [(2, 0.003), (6, 0.05)])
def test_linear_bounds_tell_nothing_new_where_all_planes_are_parallel(
    seed: int, radius: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through attention, norms and smooth activations they are the forms' own lines, as long as no form is given up."""
    graph, x = prenorm_patches(seed, depth=2, d=8)
    ball, asked, tightened = Ball(x, radius, Norm.LINF), list[str](), linear_bounds.tightened

    def counted(known: Any, node: Node, *more: Any, **options: Any) -> Interval:
        asked.append(node.name)
        return tightened(known, node, *more, **options)

    monkeypatch.setattr(linear_bounds, "tightened", counted)
    found = lv.bounds(graph, ball)
    assert not asked
    monkeypatch.setattr(linear_bounds, "_bent", lambda graph: -1)
    others = lv.bounds(graph, ball)
    assert len(asked) > 10
    for name in found:
        width = others[name].upper - others[name].lower
        assert bool((found[name].upper - found[name].lower <= width * (1.0 + 1e-9)).all()), name
