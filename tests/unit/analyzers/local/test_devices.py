"""The same bounds on every device: each local method, ranges, monotonicity and whole audits, float64 against the CPU."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

import lipverify as lv
from lipverify import ops
from lipverify.analyzers.local.bab import LocalBaB
from lipverify.analyzers.protocol import Compute
from lipverify.analyzers.registry import resolve
from lipverify.falsify import Search
from lipverify.frontends.builder import Builder
from lipverify.ir.graph import Graph, Origin
from lipverify.ir.norm import Norm
from lipverify.ir.op import Op
from lipverify.ir.region import Ball, Query
from lipverify.propagation import bounds
from tests.networks import chain, tensor
from tests.tiers import FULL

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)]
METHODS = ["local", "local:recurjac", "local:interval", "local-sdp", "local-bab"]
# Sums come in another order there; searches may then take another way.
ROUNDING, SEARCHED = 1e-9, 2e-3


def on(device: str) -> torch.device:
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    return torch.device(device)


def dense(op: Op, seed: int = 0) -> Graph:
    rng = np.random.default_rng(seed)
    return chain([tensor(rng, o, i, scale=(2 / i) ** 0.5) for i, o in itertools.pairwise([5, 12, 12, 3])], op)


def image() -> Graph:
    """A convolution, BatchNorm, a sum of feature maps, a maximum over windows."""
    rng = np.random.default_rng(1)
    b = Builder(symbolic_batch=True)
    v = b.input((1, 1, 6, 6), 0)
    v = b.conv(v, ops.Conv(tensor(rng, 3, 1, 3, 3), None, (1, 1), ((1, 1), (1, 1)), (1, 1)))
    v = b.batch_norm(v, tensor(rng, 3), tensor(rng, 3), tensor(rng, 3), tensor(rng, 3).abs() + 0.5, 1e-5)
    v = b.plus(v, b.elementwise(ops.ReLU(), v))
    v = b.max_pool(v, (2, 2), (2, 2), ((0, 0), (0, 0)), (1, 1), False)
    v = b.flatten(v, 1, -1)
    return b.graph([b.linear(v, tensor(rng, 2, v.shape[0]))], Origin())


NETWORKS = {
    "relu": dense(ops.ReLU()),
    "tanh": dense(ops.Tanh()),
    "gelu": dense(ops.GELU()),
    "sort": dense(ops.GroupSort(2)),
    "image": image(),
}


def question(graph: Graph, norm: Norm) -> Query:
    x = torch.tensor(np.random.default_rng(2).standard_normal((2, *graph.input_shape)))
    return Query(norm, norm, Ball(x, 0.1, norm, box=(-3.0, 3.0) if norm is Norm.LINF else None))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("norm", [Norm.L2, Norm.LINF], ids=str)
@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("method", METHODS)
def test_bounds_agree(method: str, name: str, norm: Norm, device: str) -> None:
    place, graph = on(device), NETWORKS[name]
    if device == "cpu" and method in ("local-bab", "local-sdp") and name != "relu" and not FULL:
        pytest.skip("takes long, and other tests do it on the CPU; set LIPVERIFY_SOUNDNESS=full")
    query = question(graph, norm)
    analyzer = LocalBaB(leaves=6) if method == "local-bab" else resolve(method)
    if analyzer.reject(graph, query) is not None:
        pytest.skip("refused on every device")
    here = analyzer.bound(graph, query, Compute()).upper
    there = analyzer.bound(graph, query, Compute(device=place)).upper
    assert here is not None
    assert there is not None
    assert there.device.type == "cpu"
    assert torch.allclose(
        there, here, rtol=ROUNDING if method.startswith("local:") or method == "local" else SEARCHED
    )


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("way", ["interval", "linear", "alpha"])
def test_ranges_agree(way: str, name: str, device: str) -> None:
    place, graph = on(device), NETWORKS[name]
    region = question(graph, Norm.LINF).region
    assert isinstance(region, Ball)
    here = bounds(graph, region, method=way)
    there = bounds(graph, region, method=way, device=place)
    for node, box in here.items():
        assert there[node].lower.device.type == place.type
        for mine, other in ((box.lower, there[node].lower), (box.upper, there[node].upper)):
            assert torch.allclose(
                other.cpu(),
                mine,
                rtol=1e-6 if way == "alpha" else ROUNDING,
                atol=1e-6 if way == "alpha" else 1e-9,
            )


@pytest.mark.parametrize("device", DEVICES)
def test_an_audit_and_monotonicity_run_there(device: str) -> None:
    place, graph = on(device), NETWORKS["relu"]
    region = question(graph, Norm.LINF).region
    found = lv.audit(
        graph,
        norm="linf",
        region=region,
        analyzers=["product", "local", "local:float32", "local-sdp", "lipsdp"],
        device=place,
        search=Search(restarts=4, rounds=4, seconds=0.5),
    )
    assert all(row.certificate is not None for row in found.rows)
    verdicts = [
        [f.verdict for f in lv.monotone(graph, (-0.5, 0.5), output=0, budget=20, device=d).findings]
        for d in ("cpu", place)
    ]
    assert verdicts[0] == verdicts[1]
