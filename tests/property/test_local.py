"""Local bounds over random networks: never below a witness, independent of batching, tighter in smaller balls."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lipverify import ops
from lipverify.analyzers.lipsdp.analyzer import LipSDP
from lipverify.analyzers.lipsdp.solver import Settings
from lipverify.analyzers.local.analyzer import Local, LocalInterval, LocalRecurJac
from lipverify.analyzers.local.bab import LocalBaB
from lipverify.analyzers.local.sdp import LocalSDP
from lipverify.analyzers.protocol import Analyzer, Compute
from lipverify.analyzers.registry import resolve
from lipverify.falsify import Search, falsify
from lipverify.interpreter import evaluate
from lipverify.ir.graph import Graph
from lipverify.ir.norm import Norm
from lipverify.ir.region import Ball, Query
from lipverify.propagation import bounds
from tests.networks import chain, random_graph, tensor
from tests.tiers import FULL, also, tier

COUNT = tier(12, 2000)
PAIRS = [(p, q) for p in Norm for q in Norm]


@pytest.mark.parametrize("block", range(4))
def test_never_below_a_witness(block: int) -> None:
    answered = 0
    for index in range(COUNT // 4):
        seed = block * 1_000_000 + index
        rng = np.random.default_rng(seed)
        graph = random_graph(rng)
        center = torch.tensor(rng.standard_normal((2, *graph.input_shape)))
        box = (float(center.min()) - 0.01, float(center.max()) + 0.02) if seed % 3 == 0 else None
        ball = Ball(center, 10.0 ** rng.uniform(-4, 0.3), "l2" if seed % 2 else "linf", box)
        query = Query(*PAIRS[seed % len(PAIRS)], ball)
        names = ["local", "local:recurjac", "local:interval"][: 1 + 2 * (seed % 2)]
        if resolve(names[0]).reject(graph, query) is not None:
            continue
        witness = falsify(graph, query, Compute(seed=seed), Search(restarts=10, rounds=10, seconds=1))
        for name in names:
            if name != "local" and resolve(name).reject(graph, query) is not None:
                continue  # attention and normalisation: `local` alone has forms for them
            found = resolve(name).bound(graph, query, Compute()).upper
            assert found is not None
            assert bool((found >= witness.value).all()), f"seed {seed}, {name}"
        for tight in _tight(seed):
            if tight.reject(graph, query) is None:
                found = tight.bound(graph, query, Compute()).upper
                assert found is not None
                assert bool((found >= witness.value).all()), f"seed {seed}, {tight!r}"
        answered += 1
    assert answered > COUNT // 10


def _tight(seed: int) -> list[Analyzer]:
    """The slower methods, on a part of the networks."""
    if seed % 5 == 0:
        return [LocalSDP(Settings(tol=1e-2))]
    return [LocalBaB(leaves=8, sdp=False)] if seed % 5 == 1 else []


@pytest.mark.parametrize("op", [ops.ReLU(), ops.Tanh(), ops.GroupSort(2)], ids=str)
@pytest.mark.parametrize("analyzer", [LocalSDP(), LocalBaB(leaves=4)], ids=lambda a: a.name)
def test_radius_zero_is_the_gradient_norm(analyzer: Analyzer, op: ops.Op, rng: np.random.Generator) -> None:
    graph = chain([tensor(rng, 8, 5), tensor(rng, 6, 8), tensor(rng, 3, 6)], op)
    exact = graph.to(dtype=torch.float64)
    center = torch.tensor(rng.standard_normal((2, 5)))
    for norm in (Norm.LINF, Norm.L2):
        found = analyzer.bound(graph, Query(norm, norm, Ball(center, 0.0, norm)), Compute()).upper
        assert found is not None
        for index, x in enumerate(center):
            j = torch.autograd.functional.jacobian(lambda z: evaluate(exact, z[None])[0], x)
            truth = float(torch.linalg.matrix_norm(j, ord=norm.order))
            assert float(found[index]) == pytest.approx(truth, rel=1e-9)
            assert float(found[index]) >= truth * (1 - 1e-14)


# Products of matrices add their terms in an order that depends on how many rows there are: last bits, which the bounds carry on
# and divisions by widths of ranges enlarge. A search ends near its tolerance from the optimum, as it estimates it: small systems
# that are searched together take other steps than one alone.
LAST_BITS, SEARCHED = 1e-10, 1e-3
SEARCH = Settings(tol=SEARCHED / 10)
BATCHED: dict[str, tuple[Analyzer, float]] = {
    "local": (Local(), LAST_BITS),
    "local with searched ranges": (Local(ranges="alpha"), LAST_BITS),
    "local:recurjac": (LocalRecurJac(), LAST_BITS),
    "local:interval": (LocalInterval(), LAST_BITS),
    "local-bab": (LocalBaB(leaves=4, sdp=False), LAST_BITS),
    "local-sdp": (LocalSDP(SEARCH), SEARCHED),
    "lipsdp": (LipSDP(SEARCH), SEARCHED),
}


def small_network(op: ops.Op, rng: np.random.Generator) -> tuple[Graph, torch.Tensor]:
    graph = chain([tensor(rng, 8, 4), tensor(rng, 8, 8, scale=0.4), tensor(rng, 2, 8)], op)
    return graph, torch.tensor(rng.standard_normal((64, 4)))


@pytest.mark.parametrize("name", list(BATCHED))
@pytest.mark.parametrize(
    ("op", "norm"),
    [
        (ops.ReLU(), Norm.LINF),
        (ops.ReLU(), Norm.L2),
        (ops.GroupSort(2), Norm.LINF),
        also((ops.GroupSort(2), Norm.L2), "a quarter of the time"),
        also((ops.Tanh(), Norm.LINF), "a third of the time"),
        also((ops.Tanh(), Norm.L2), "a third of the time"),
    ],
    ids=str,
)
def test_a_batch_of_64_equals_64_single_runs(
    op: ops.Op, norm: Norm, name: str, rng: np.random.Generator
) -> None:
    """To the last bits where nothing is searched, within the tolerance of the search otherwise."""
    graph, center = small_network(op, rng)
    analyzer, difference = BATCHED[name]
    # Searches take seconds: all 64 of them in the full run.
    center = center if FULL or (difference == LAST_BITS and name != "local-bab") else center[:3]
    some = list(range(0, len(center), tier(len(center) // 3, 1)))

    def upper(part: torch.Tensor) -> torch.Tensor:
        found = analyzer.bound(graph, Query(norm, norm, Ball(part, 0.1, norm)), Compute()).upper
        assert found is not None
        return found

    single = torch.cat([upper(center[i : i + 1]) for i in some])
    assert upper(center)[some].tolist() == pytest.approx(single.tolist(), rel=difference)


@pytest.mark.parametrize("method", ["interval", "linear", "alpha"])
@pytest.mark.parametrize("norm", [Norm.LINF, Norm.L2], ids=str)
@pytest.mark.parametrize("op", [ops.ReLU(), ops.Tanh(), ops.GroupSort(2)], ids=str)
def test_ranges_of_a_batch_of_64_are_those_of_64_single_runs(
    op: ops.Op, norm: Norm, method: str, rng: np.random.Generator
) -> None:
    """To the last bits of the largest value of a node; every node, both ends."""
    graph, center = small_network(op, rng)
    whole = bounds(graph, Ball(center, 0.1, norm), method=method)
    for index in range(0, 64, tier(21, 1)):
        single = bounds(graph, Ball(center[index : index + 1], 0.1, norm), method=method)
        for name, box in single.items():
            largest = float(torch.maximum(box.lower.abs(), box.upper.abs()).max())
            for one, many in ((box.lower, whole[name].lower), (box.upper, whole[name].upper)):
                assert float((one[0] - many[index]).abs().max()) <= 1e-12 * largest


@pytest.mark.parametrize("seed", range(tier(3, 6)))
def test_a_smaller_radius_is_never_looser(seed: int) -> None:
    rng = np.random.default_rng(seed)
    op = (ops.ReLU(), ops.Tanh(), ops.GroupSort(2))[seed % 3]
    graph = chain([tensor(rng, 16, 6), tensor(rng, 16, 16, scale=0.3), tensor(rng, 4, 16)], op)
    center = torch.tensor(rng.standard_normal((4, 6)))
    for norm in (Norm.LINF, Norm.L2):
        before = None
        for radius in (1.6, 0.4, 0.2, 0.1, 0.025, 0.0):
            found = Local().bound(graph, Query(norm, norm, Ball(center, radius, norm)), Compute()).upper
            assert found is not None
            assert before is None or bool((found <= before * (1 + 1e-9)).all()), f"radius {radius}"
            before = found
