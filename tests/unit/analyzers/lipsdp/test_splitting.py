"""Cutting networks: where every path crosses, what a piece computes, and what the product of pieces says about itself."""

from __future__ import annotations

import itertools
import time

import numpy as np
import pytest
import torch

from lipverify import ops
from lipverify.analyzers.lipsdp import splitting
from lipverify.analyzers.lipsdp.analyzer import LipSDP
from lipverify.analyzers.lipsdp.canonical import canonical_form
from lipverify.analyzers.lipsdp.cutting import between, cut_points, need
from lipverify.analyzers.lipsdp.evidence import Parts
from lipverify.analyzers.lipsdp.solver import Settings, estimate
from lipverify.analyzers.product import Product
from lipverify.analyzers.protocol import Compute
from lipverify.errors import UnsupportedModel
from lipverify.frontends.builder import Builder
from lipverify.interpreter import evaluate
from lipverify.ir.graph import Graph, Origin
from lipverify.ir.norm import Norm
from lipverify.ir.region import Ball, Query
from tests.networks import chain, tensor


def residual(rng: np.random.Generator, blocks: int = 3, width: int = 6) -> Graph:
    """relu, then blocks relu(x + G relu(F x)), then a dense layer."""
    b = Builder(symbolic_batch=True)
    b.where = "stem"
    v = b.elementwise(ops.ReLU(), b.linear(b.input((1, 4), 0), tensor(rng, width, 4)))
    for index in range(blocks):
        b.where = f"block{index}"
        inner = b.elementwise(ops.ReLU(), b.linear(v, tensor(rng, 5, width, scale=0.5)))
        v = b.elementwise(ops.ReLU(), b.plus(v, b.linear(inner, tensor(rng, width, 5, scale=0.5))))
    b.where = "head"
    return b.graph([b.linear(v, tensor(rng, 3, width))], Origin())


def upper(graph: Graph, method: LipSDP | Product, query: Query | None = None) -> float:
    found = method.bound(graph, query or Query(), Compute()).upper
    assert found is not None
    return float(found)


def test_residual_networks_are_cut_between_blocks_only(rng: np.random.Generator) -> None:
    graph = residual(rng)
    names = [node.name for node in cut_points(graph)]
    # The activation behind the stem and behind every sum; nothing inside a block.
    assert [graph[name].op.kind() for name in names] == ["ReLU"] * 4
    assert [graph[graph[name].inputs[0]].op.kind() for name in names] == ["Linear", *["Add"] * 3]


def test_a_value_beside_the_path_prevents_a_cut(rng: np.random.Generator) -> None:
    b = Builder(symbolic_batch=True)
    x = b.input((1, 4), 0)
    v = b.elementwise(ops.ReLU(), b.linear(x, tensor(rng, 4, 4)))
    v = b.elementwise(ops.Tanh(), b.linear(v, tensor(rng, 4, 4)))
    graph = b.graph([b.linear(b.plus(v, x), tensor(rng, 2, 4))], Origin())
    assert cut_points(graph) == []


def test_pieces_compute_what_the_network_computes(rng: np.random.Generator) -> None:
    graph = residual(rng).to(dtype=torch.float64)
    ends = [graph.input, *cut_points(graph), graph.output]
    x = torch.tensor(rng.standard_normal((5, 4)))
    value = x
    for first, last in itertools.pairwise(ends):
        value = evaluate(between(graph, first, last), value)
    assert torch.equal(value, evaluate(graph, x))


def test_needs_are_those_of_the_block_system(rng: np.random.Generator) -> None:
    dense = chain([tensor(rng, 30, 20), tensor(rng, 40, 30), tensor(rng, 5, 40)], ops.ReLU())
    for graph in (dense, residual(rng)):
        found, (_, work) = need(graph), estimate(canonical_form(graph))
        assert found.neurons == canonical_form(graph).neurons
        assert 0.5 * work <= found.work <= 2.0 * work


@pytest.mark.parametrize("norms", [(Norm.L2, Norm.L2), (Norm.LINF, Norm.LINF), (Norm.L2, Norm.LINF)])
def test_pieces_lie_between_the_whole_and_the_product(
    norms: tuple[Norm, Norm], rng: np.random.Generator
) -> None:
    graph, query = residual(rng), Query(*norms)
    whole, product = upper(graph, LipSDP(), query), upper(graph, Product(), query)
    for count in (2, 4):
        method = LipSDP(pieces=count)
        found = method.bound(graph, query, Compute())
        assert found.upper is not None
        assert whole <= float(found.upper) * (1 + 1e-4)
        assert float(found.upper) <= product * (1 + 1e-9)
        assert isinstance(found.evidence, Parts)
        assert "pieces of the network" in found.evidence.notes[0]
        assert found.evidence.to_json()["kind"] == "parts"


def test_the_bound_is_the_product_of_what_the_parts_say(rng: np.random.Generator) -> None:
    found = LipSDP(pieces=3).bound(residual(rng), Query(), Compute())
    assert isinstance(found.evidence, Parts)
    assert found.upper is not None
    total = sum(part.log10_upper for part in found.evidence.parts)
    assert float(found.upper.log10()) == pytest.approx(total, abs=1e-12)
    # The pieces follow one another from the input to the output.
    parts = found.evidence.parts
    assert all(a.last == b.first for a, b in itertools.pairwise(parts))


def test_a_network_beyond_the_memory_is_cut_and_says_so(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = [
        tensor(rng, 40, 6),
        tensor(rng, 40, 40),
        tensor(rng, 12, 40),
        tensor(rng, 12, 12),
        tensor(rng, 3, 12),
    ]
    graph = chain(weights, ops.ReLU())
    limit = int(1.01 * need(between(graph, cut_points(graph)[2], graph.output)).bytes)
    monkeypatch.setattr("lipverify.analyzers.lipsdp.canonical.MAX_BYTES", limit)
    assert LipSDP().reject(graph, Query()) is None
    found = LipSDP().bound(graph, Query(), Compute())
    assert isinstance(found.evidence, Parts)
    by = {part.by for part in found.evidence.parts}
    assert {"lipsdp", "product"} <= by
    assert "GiB" in found.evidence.notes[0]
    assert found.upper is not None
    assert float(found.upper) < upper(graph, Product())
    # No piece at all fits: refused with the size needed; a ball has no pieces either.
    monkeypatch.setattr("lipverify.analyzers.lipsdp.canonical.MAX_BYTES", 1000)
    assert "not even on a piece" in (LipSDP().reject(graph, Query()) or "")
    with pytest.raises(UnsupportedModel, match="needs about"):
        LipSDP().bound(graph, Query(), Compute())


def test_a_budget_too_small_for_the_whole_cuts(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = residual(rng, blocks=6)
    assert not isinstance(LipSDP().bound(graph, Query(), Compute()).evidence, Parts)
    # A machine so slow that the whole cannot take two steps within a minute.
    monkeypatch.setattr(splitting, "RATE", {"cpu": 1.5 * need(graph).work / 60})
    found = LipSDP().bound(graph, Query(), Compute(deadline=time.monotonic() + 60))
    assert isinstance(found.evidence, Parts)
    assert float(found.upper) <= upper(graph, Product()) * (1 + 1e-9)  # type: ignore[arg-type]


def test_balls_are_answered_by_the_whole(rng: np.random.Generator) -> None:
    graph = residual(rng)
    query = Query(region=Ball(torch.zeros(1, 4), 0.1))
    assert not isinstance(LipSDP(pieces=3).bound(graph, query, Compute()).evidence, Parts)


def test_max_pooling_and_sorts_may_be_cut(rng: np.random.Generator) -> None:
    b = Builder(symbolic_batch=True)
    v = b.linear(b.input((1, 4), 0), tensor(rng, 16, 4))
    images = b.reshape(v, (1, 1, 4, 4))
    v = b.flatten(b.max_pool(images, (2, 2), (2, 2), ((0, 0), (0, 0)), (1, 1), False), 1, -1)
    v = b.linear(v, tensor(rng, 8, 4))
    v = b.add(ops.GroupSort(4, 0), (v,), v.batch)
    graph = b.graph([b.linear(v, tensor(rng, 2, 8))], Origin())
    kinds = [node.op.kind() for node in cut_points(graph)]
    assert {"MaxPool", "GroupSort"} <= set(kinds)
    assert len(splitting.pieces(graph, 1e12, Settings(), 2)) == 2
    assert upper(graph, LipSDP()) <= upper(graph, LipSDP(pieces=2)) * (1 + 1e-4)
    assert upper(graph, LipSDP(pieces=2)) <= upper(graph, Product()) * (1 + 1e-9)
