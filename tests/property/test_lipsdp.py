"""LipSDP over random networks of every kind it answers: never below a witness, tightest last, pieces above the whole."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from lipverify import ops
from lipverify.analyzers.lipsdp.analyzer import LipSDP, LipSDPFast, LipSDPReference
from lipverify.analyzers.lipsdp.solver import Settings
from lipverify.analyzers.product import Product
from lipverify.analyzers.protocol import Analyzer, Compute
from lipverify.falsify import Search, falsify
from lipverify.frontends.builder import Builder, Value
from lipverify.ir.graph import Graph, Origin
from lipverify.ir.norm import Norm
from lipverify.ir.op import Op
from lipverify.ir.region import Ball, Query
from tests.networks import tensor
from tests.tiers import tier

COUNT = tier(2, 180)
"""Networks of each kind: 2,160 in full."""
NORMS = [(Norm.L2, Norm.L2), (Norm.LINF, Norm.LINF), (Norm.LINF, Norm.L2), (Norm.L2, Norm.LINF)]
ROUGH = LipSDP(Settings(tol=1e-2, max_iterations=30))
"""A bound is valid wherever the search ends."""

Layer = Callable[[Builder, Value, np.random.Generator], Value]


def scalar(make: Callable[[np.random.Generator], Op]) -> Layer:
    return lambda b, v, rng: b.elementwise(make(rng), v)


def grouped(size: int) -> Layer:
    return lambda b, v, rng: b.add(ops.GroupSort(size, 0, bool(rng.integers(2))), (v,), v.batch)


def reflecting(b: Builder, v: Value, rng: np.random.Generator) -> Value:
    return b.add(ops.Householder(tensor(rng, v.shape[0] // 2, 2), 0), (v,), v.batch)


def residual(b: Builder, v: Value, rng: np.random.Generator) -> Value:
    n = v.shape[0]
    inner = b.elementwise(ops.ReLU(), b.linear(v, tensor(rng, 5, n, scale=n**-0.5)))
    return b.elementwise(ops.ReLU(), b.plus(v, b.linear(inner, tensor(rng, n, 5, scale=0.5))))


def concatenated(b: Builder, v: Value, rng: np.random.Generator) -> Value:
    n = v.shape[0]
    left = b.elementwise(ops.Tanh(), v)
    right = b.elementwise(ops.ReLU(), b.linear(v, tensor(rng, 3, n, scale=n**-0.5)))
    return b.concat([left, right], 1)


def pooled(b: Builder, v: Value, rng: np.random.Generator) -> Value:
    """Images of two channels; windows that overlap in one case of two."""
    images = b.reshape(v, (1, 2, v.shape[0] // 4, 2))
    stride = (int(rng.integers(1, 3)), 1)
    return b.flatten(b.max_pool(images, (2, 2), stride, ((0, 0), (0, 0)), (1, 1), False), 1, -1)


KINDS: dict[str, Layer] = {
    "relu": scalar(lambda rng: ops.ReLU()),
    "leaky": scalar(lambda rng: ops.LeakyReLU(float(rng.choice([-2.0, 0.1, 1.5, 3.0])))),
    "gelu": scalar(lambda rng: ops.GELU(tanh=bool(rng.integers(2)))),
    "silu": scalar(lambda rng: ops.SiLU()),
    "tanh": scalar(lambda rng: [ops.Tanh(), ops.Sigmoid(), ops.Abs()][rng.integers(3)]),
    "maxmin": grouped(2),
    "groupsort": grouped(4),
    "householder": reflecting,
    "residual": residual,
    "concat": concatenated,
    "pool": pooled,
}


def network(kind: str, rng: np.random.Generator) -> Graph:
    """One to three layers of one kind between dense ones, small enough that a search nearly finds their constant."""
    b = Builder(symbolic_batch=True)
    v = b.input((1, int(rng.integers(1, 6))), 0)
    for index in range(int(rng.integers(1, 4))):
        b.where = f"layer{index}"
        scale = 10.0 ** rng.uniform(-1, 1) / np.sqrt(v.shape[0])
        v = b.linear(v, tensor(rng, 8, v.shape[0], scale=scale), tensor(rng, 8))
        v = KINDS[kind](b, v, rng)
    b.where = "last"
    return b.graph([b.linear(v, tensor(rng, int(rng.integers(1, 4)), v.shape[0]))], Origin())


def implicit(rng: np.random.Generator) -> Graph:
    """A well-posed equilibrium layer before a dense one."""
    n, inputs = int(rng.integers(2, 7)), int(rng.integers(1, 5))
    recurrent = rng.standard_normal((n, n))
    recurrent *= rng.uniform(0.1, 0.9) / np.linalg.norm(recurrent, 2)
    activation = [ops.ReLU(), ops.Tanh(), ops.Sigmoid()][rng.integers(3)]
    drive, bias = torch.tensor(rng.standard_normal((n, inputs))), torch.tensor(rng.standard_normal(n))
    b = Builder(symbolic_batch=True)
    v = b.input((1, inputs), 0)
    v = b.add(ops.Implicit(torch.tensor(recurrent), drive, bias, activation), (v,), v.batch)
    return b.graph([b.linear(v, torch.tensor(rng.standard_normal((2, n))))], Origin())


def upper(graph: Graph, query: Query, method: LipSDP | LipSDPFast | Product = ROUGH) -> torch.Tensor:
    found = method.bound(graph, query, Compute()).upper
    assert found is not None
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_never_below_a_witness(kind: str) -> None:
    for index in range(COUNT):
        seed = list(KINDS).index(kind) * 1_000_000 + index
        rng = np.random.default_rng(seed)
        graph = network(kind, rng)
        query = Query(*NORMS[(index + seed // 1_000_000) % len(NORMS)])
        witness = falsify(graph, query, Compute(seed=seed), Search(restarts=12, rounds=15, seconds=0.5))
        value = float(witness.value.max())
        third = replace(ROUGH, pieces=2) if index % 3 == 0 else LipSDPFast()
        for method in (ROUGH, third):
            assert float(upper(graph, query, method)) >= value, f"{kind}, seed {seed}, {method.name}"


def test_never_below_a_witness_with_implicit_layers() -> None:
    pytest.importorskip("cvxpy")
    for seed in range(COUNT):
        graph = implicit(np.random.default_rng(seed))
        methods: list[Analyzer] = [m for m in (ROUGH, LipSDPReference()) if m.reject(graph, Query()) is None]
        assert methods
        witness = falsify(graph, Query(), Compute(seed=seed), Search(restarts=12, rounds=15, seconds=0.5))
        for method in methods:
            found = method.bound(graph, Query(), Compute()).upper
            assert found is not None
            assert float(found) >= float(witness.value.max()), f"seed {seed}, {method.name}"


@pytest.mark.parametrize("kind", KINDS)
def test_never_below_a_witness_in_balls(kind: str) -> None:
    for index in range(max(COUNT // 4, 2)):
        seed = list(KINDS).index(kind) * 1_000_000 + 500_000 + index
        rng = np.random.default_rng(seed)
        graph = network(kind, rng)
        center = torch.tensor(rng.standard_normal((2, *graph.input_shape)))
        ball = Ball(center, 10.0 ** rng.uniform(-2, 0), "l2" if seed % 2 else "linf")
        norms = NORMS[index % len(NORMS)]
        query = Query(*norms, ball)
        witness = falsify(graph, query, Compute(seed=seed), Search(restarts=10, rounds=10, seconds=1))
        local = upper(graph, query)
        assert bool((local >= witness.value).all()), f"{kind}, seed {seed}"


def test_the_search_is_below_the_closed_form_and_the_whole_below_its_pieces() -> None:
    for seed in range(3):
        rng = np.random.default_rng(seed)
        graph = network("relu", rng)
        for norms in NORMS:
            query = Query(*norms)
            best = float(upper(graph, query, LipSDP()))
            assert best <= float(upper(graph, query, LipSDPFast())) * (1 + 1e-9)
            assert best <= float(upper(graph, query, LipSDP(pieces=2))) * (1 + 1e-4)
        cut = float(upper(graph, Query(), LipSDP(pieces=2)))
        assert cut <= float(upper(graph, Query(), Product())) * (1 + 1e-9)


def test_norms_are_related_as_they_must_be() -> None:
    """|f|_inf <= |f|_2, and |x|_2 <= sqrt(n) |x|_inf, up to the tolerance of the search."""
    for seed in range(2):
        graph = network("residual" if seed % 2 else "gelu", np.random.default_rng(seed))
        n, m = graph.input.size, graph.output.size
        found = {norms: float(upper(graph, Query(*norms), LipSDP())) for norms in NORMS}
        slack = 1 + 1e-4
        for norm_in in (Norm.L2, Norm.LINF):
            single, joint = found[norm_in, Norm.LINF], found[norm_in, Norm.L2]
            assert single <= joint * slack <= single * m**0.5 * slack**2
        for norm_out in (Norm.L2, Norm.LINF):
            euclidean, weighted = found[Norm.L2, norm_out], found[Norm.LINF, norm_out]
            assert euclidean <= weighted * slack <= euclidean * n**0.5 * slack**2


def test_scaling_a_layer_scales_the_bound() -> None:
    rng = np.random.default_rng(0)
    first, last = tensor(rng, 8, 4).double(), tensor(rng, 3, 8).double()

    def made(factor: float) -> Graph:
        b = Builder(symbolic_batch=True)
        v = b.elementwise(ops.ReLU(), b.linear(b.input((1, 4), 0), first * factor))
        return b.graph([b.linear(v, last)], Origin())

    for norms in NORMS:
        query = Query(*norms)
        assert float(upper(made(2.0**70), query)) == pytest.approx(
            2.0**70 * float(upper(made(1.0), query)), rel=1e-3
        )
