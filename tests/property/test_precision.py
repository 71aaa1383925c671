"""Bounds with float32 coefficients: valid, and off by no more than their correction says; on processors and GPUs."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lipverify import ops
from lipverify.analyzers.local.analyzer import Local, LocalSingle
from lipverify.analyzers.protocol import Compute
from lipverify.errors import UnsupportedModel, UsageError
from lipverify.falsify import Search, falsify
from lipverify.frontends.builder import Builder
from lipverify.interpreter import evaluate
from lipverify.ir.graph import Graph, Node, Origin
from lipverify.ir.interval import Interval
from lipverify.ir.norm import Norm
from lipverify.ir.op import Input
from lipverify.ir.region import Ball, Query
from lipverify.propagation import bounds
from lipverify.propagation.functionals import Functionals
from lipverify.propagation.knowledge import Knowledge
from lipverify.propagation.precision import DOUBLE, SINGLE, Precision, own_products
from tests.networks import chain, random_graph, tensor
from tests.tiers import tier

COUNT = tier(12, 400)
PAIRS = [(p, q) for p in Norm for q in Norm]
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)]


def needs(device: str) -> torch.device:
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no GPU here")
    return torch.device(device)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("block", range(2))
def test_float32_is_never_below_a_witness(block: int, device: str) -> None:
    """Nor are the ranges: values at random points of the ball lie inside."""
    place, answered = needs(device), 0
    for index in range(COUNT // 2):
        seed = block * 1_000_000 + index
        rng = np.random.default_rng(seed)
        graph = random_graph(rng)
        center = torch.tensor(rng.standard_normal((2, *graph.input_shape)))
        ball = Ball(center, 10.0 ** rng.uniform(-4, 0.3), "l2" if seed % 2 else "linf")
        query = Query(*PAIRS[seed % len(PAIRS)], ball)
        if LocalSingle().reject(graph, query) is not None:
            continue
        found = LocalSingle().bound(graph, query, Compute(device=place)).upper
        assert found is not None
        witness = falsify(graph, query, Compute(seed=seed), Search(restarts=6, rounds=6, seconds=0.5))
        assert bool((found >= witness.value).all()), f"seed {seed}"
        ranges = bounds(graph, ball, precision="float32", device=place)
        step = torch.tensor(rng.uniform(-1, 1, (20, 2, *graph.input_shape)))
        exact = graph.to(dtype=torch.float64)
        for point in ball.project(center + ball.radius * step.sign() * step.abs().sqrt()):
            value = evaluate(exact, point)
            low, high = ranges.output.lower.cpu(), ranges.output.upper.cpu()
            slack = 1e-12 * (1 + value.abs())
            assert bool(((value >= low - slack) & (value <= high + slack)).all()), f"seed {seed}"
        answered += 1
    assert answered > COUNT // 8


def same_planes(graph: Graph, ball: Ball, precision: Precision, device: torch.device) -> Knowledge:
    """Facts of float64 on the processor, so that both precisions meet the same planes."""
    ranges = bounds(graph, ball).known.ranges
    known = Knowledge.of(graph, ball, device, precision)
    known.ranges = {n: Interval(b.lower.to(device), b.upper.to(device)) for n, b in ranges.items()}
    return known


def bounded(known: Knowledge, node: Node, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Upper bounds of functionals of a node, and how much of each is correction."""
    walk = Functionals.start(
        known, {node.name: rows}, torch.zeros(len(rows), dtype=torch.long).to(rows.device)
    )
    with own_products(known.precision, rows.device):
        for step in reversed(known.graph.nodes):
            if not isinstance(step.op, Input):
                walk.step(step)
        return walk.upper().cpu(), walk.error.cpu()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("norm", [Norm.LINF, Norm.L2], ids=str)
@pytest.mark.parametrize("seed", range(tier(3, 24)))
def test_float32_with_its_correction_holds_float64_without(seed: int, norm: Norm, device: str) -> None:
    """Same functionals, same planes: float32 + correction >= float64 - its correction, and above by at most both corrections."""
    place, rng = needs(device), np.random.default_rng(seed)
    graph = random_graph(rng)
    ball = Ball(torch.tensor(rng.standard_normal((1, *graph.input_shape))), 0.1, norm)
    try:
        exact = same_planes(graph, ball, DOUBLE, torch.device("cpu"))
    except UnsupportedModel:
        pytest.skip("an operator without linear bounds")
    rough = same_planes(graph, ball, SINGLE, place)
    node = exact.graph.output
    # Sixteen bits: the same functionals in both types.
    rows = torch.tensor(rng.standard_normal((8, *node.shape))).to(torch.bfloat16).double()
    high, slack = bounded(exact, node, rows)
    found, correction = bounded(rough, node, rows.to(place))
    assert bool((found >= high - 2.0 * slack).all())
    assert bool((found <= high + 2.0 * correction + 2.0 * slack).all())
    assert bool((correction >= slack).all())


def test_without_the_correction_float32_is_too_low() -> None:
    """The test above can fail: what is printed less its correction is below float64 for some functional."""
    below = 0
    for seed in range(6):
        rng = np.random.default_rng(seed)
        graph = chain([tensor(rng, 40, 30), tensor(rng, 40, 40), tensor(rng, 6, 40)], ops.ReLU())
        ball = Ball(torch.tensor(rng.standard_normal((1, 30))), 0.1)
        node = graph.output
        rows = torch.tensor(rng.standard_normal((8, *node.shape))).to(torch.bfloat16).double()
        high, _ = bounded(same_planes(graph, ball, DOUBLE, torch.device("cpu")), node, rows)
        found, correction = bounded(same_planes(graph, ball, SINGLE, torch.device("cpu")), node, rows)
        below += int((found - correction < high).sum())
    assert below > 0


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("op", [ops.ReLU(), ops.Tanh(), ops.GroupSort(2)], ids=str)
def test_float32_loses_little(op: ops.Op, device: str, rng: np.random.Generator) -> None:
    place = needs(device)
    graph = chain([tensor(rng, 16, 6), tensor(rng, 16, 16, scale=0.3), tensor(rng, 4, 16)], op)
    query = Query(Norm.LINF, Norm.LINF, Ball(torch.tensor(rng.standard_normal((8, 6))), 0.1))
    plain = Local(with_product=False).bound(graph, query, Compute()).upper
    found = Local(with_product=False, precision="float32").bound(graph, query, Compute(device=place)).upper
    assert plain is not None
    assert found is not None
    assert bool((found >= plain * (1 - 1e-4)).all())
    assert bool((found <= plain * (1 + 1e-3)).all())
    assert not torch.equal(found, plain)


def test_weights_far_outside_float32_stay_sound(rng: np.random.Generator) -> None:
    """Products of 1e-60 and 1e60 are lost or overflow in float32: the bound is that of intervals, or holds their part."""
    first, second = tensor(rng, 6, 4).double() * 1e-60, tensor(rng, 3, 6).double() * 1e60
    graph = chain([first, second], ops.ReLU())
    ball = Ball(torch.tensor(rng.standard_normal((1, 4))), 0.3)
    ranges = bounds(graph, ball, precision="float32")
    exact = graph.to(dtype=torch.float64)
    for _ in range(50):
        x = ball.center + 0.3 * torch.tensor(rng.choice([-1.0, 1.0], (1, 4)))
        value = evaluate(exact, x)
        assert bool((value <= ranges.output.upper * (1 + 1e-12)).all())
        assert bool(
            (value >= ranges.output.lower * (1 + 1e-12)).all() or (value >= ranges.output.lower).all()
        )
    query = Query(Norm.LINF, Norm.LINF, ball)
    found = LocalSingle().bound(graph, query, Compute()).upper
    plain = Local(with_product=False).bound(graph, query, Compute()).upper
    assert found is not None
    assert plain is not None
    witness = falsify(graph, query, Compute(), Search(restarts=6, rounds=6, seconds=0.5))
    assert bool((found >= witness.value).all())


def test_precisions_that_do_not_exist_are_refused(rng: np.random.Generator) -> None:
    graph = chain([tensor(rng, 4, 4), tensor(rng, 2, 4)], ops.ReLU())
    with pytest.raises(UsageError, match="float64 or float32"):
        bounds(graph, Ball(torch.zeros(1, 4), 0.1), precision="float16")


def test_sums_with_too_many_terms_are_refused() -> None:
    assert SINGLE.gamma(1000) == pytest.approx(1000 * 2.0**-24, rel=1e-3)
    assert SINGLE.gamma(1000) > 1000 * 2.0**-24
    with pytest.raises(UnsupportedModel, match="use float64"):
        SINGLE.gamma(1 << 21)


def test_shorter_formats_are_off_inside_and_back_afterwards() -> None:
    torch.set_float32_matmul_precision("medium")
    try:
        with own_products(SINGLE, torch.device("cpu")):
            assert torch.get_float32_matmul_precision() == "highest"
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")


def test_coefficients_that_are_cut_off_count_behind_nodes_that_only_move() -> None:
    """Slopes of smooth activations are functionals of values: behind a slice they were rounded to float32 for free."""
    below = 0.0
    for seed in range(40):
        r = np.random.default_rng(seed)
        b = Builder(symbolic_batch=True)
        v = b.slice(b.input((1, 4), 0), 1, 1, 3)
        graph = b.graph([b.linear(b.elementwise(ops.Hardswish(), v), tensor(r, 1, 2))], Origin())
        centre = torch.tensor(r.uniform(-2.9, 2.9, (1, 4)))
        x = centre.clone().requires_grad_(True)
        (gradient,) = torch.autograd.grad(evaluate(graph.to(dtype=torch.float64), x).sum(), x)
        query = Query(Norm.LINF, Norm.LINF, Ball(centre, 0.0))
        upper = float(LocalSingle().bound(graph, query, Compute()).upper)
        below = max(below, 1.0 - upper / float(gradient.abs().sum()))
    assert below <= 1e-13
