"""Semidefinite local bounds: below `local` and the global optimum, above every sampled Jacobian."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
import torch

from lipverify import ops
from lipverify.analyzers.lipsdp.analyzer import LipSDP, LipSDPFast
from lipverify.analyzers.local.analyzer import Local
from lipverify.analyzers.local.sdp import Anywhere, LocalSDP, Smaller
from lipverify.analyzers.protocol import Analyzer, Compute
from lipverify.certificates import issue
from lipverify.interpreter import evaluate
from lipverify.ir.certificate import Rigour
from lipverify.ir.norm import Norm
from lipverify.ir.op import Op
from lipverify.ir.region import Ball, Query
from tests.networks import chain, tensor


@pytest.mark.parametrize("op", [ops.ReLU(), ops.Tanh(), ops.GroupSort(2)], ids=str)
def test_between_samples_and_both_parts(op: Op, rng: np.random.Generator) -> None:
    graph = chain([tensor(rng, 10, 5), tensor(rng, 10, 10, scale=0.4), tensor(rng, 3, 10)], op)
    exact = graph.to(dtype=torch.float64)
    center = torch.tensor(rng.standard_normal((2, 5)))
    query = Query(region=Ball(center, 0.2, Norm.L2))
    found = LocalSDP().bound(graph, query, Compute())
    assert found.upper is not None
    parts = [
        Local().bound(graph, query, Compute()).upper,
        LipSDP(LocalSDP().settings).bound(graph, query, Compute()).upper,
    ]
    for part in parts:
        assert part is not None
        assert bool((found.upper <= part).all())
    assert found.evidence.to_json()["names"] == ["local", "lipsdp"]
    for i in range(2):
        step = torch.tensor(rng.standard_normal((100, 5)))
        points = query.region.project((center[i : i + 1] + 0.2 * step)[:, None].expand(100, 2, 5))[:, i]
        for x in points:
            j = torch.autograd.functional.jacobian(lambda z: evaluate(exact, z[None])[0], x)
            assert float(found.upper[i]) >= float(torch.linalg.matrix_norm(j, 2)) * (1 - 1e-12)


def test_refusals_are_those_of_its_parts(rng: np.random.Generator) -> None:
    graph = chain([tensor(rng, 4, 4), tensor(rng, 2, 4)], ops.ReLU())
    assert "ball" in (LocalSDP().reject(graph, Query()) or "")
    other = Query(Norm.L1, Norm.L1, Ball(torch.zeros(1, 4), 0.1))
    assert "l2 or linf" in (LocalSDP().reject(graph, other) or "")


@pytest.mark.parametrize("norm_out", [Norm.LINF, Norm.L2])
@pytest.mark.parametrize("op", [ops.ReLU(), ops.Tanh(), ops.GroupSort(2)], ids=str)
def test_inputs_in_linf(op: Op, norm_out: Norm, rng: np.random.Generator) -> None:
    """Between sampled Jacobians and `local`, strictly below `local` where many slopes are unknown."""
    graph = chain([tensor(rng, 12, 5), tensor(rng, 12, 12, scale=0.4), tensor(rng, 3, 12)], op)
    exact = graph.to(dtype=torch.float64)
    center = torch.tensor(rng.standard_normal((2, 5)))
    query = Query(Norm.LINF, norm_out, Ball(center, 0.5, Norm.LINF))
    found = LocalSDP().bound(graph, query, Compute()).upper
    plain = Local().bound(graph, query, Compute()).upper
    assert found is not None
    assert plain is not None
    assert bool((found <= plain).all())
    assert bool((found < 0.95 * plain).any())
    signs = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=5)), dtype=torch.float64)
    for i in range(2):
        for x in center[i] + 0.5 * (2 * torch.tensor(rng.random((100, 5))) - 1):
            j = torch.autograd.functional.jacobian(lambda z: evaluate(exact, z[None])[0], x)
            truth = torch.linalg.vector_norm(signs @ j.T, ord=norm_out.order, dim=1).max()
            assert float(found[i]) >= float(truth) * (1 - 1e-12)


def test_searched_ranges_are_tighter() -> None:
    rng = np.random.default_rng(2)
    weights = [tensor(rng, 12, 5), *(tensor(rng, 12, 12, scale=0.4) for _ in range(2)), tensor(rng, 3, 12)]
    graph = chain(weights, ops.ReLU())
    query = Query(region=Ball(torch.tensor(rng.standard_normal((2, 5))), 0.4, Norm.L2))
    pairs: list[tuple[Analyzer, Analyzer]] = [
        (Local(with_product=False), Local(with_product=False, ranges="alpha")),
        (LocalSDP(), LocalSDP(ranges="alpha")),
    ]
    for plain, tight in pairs:
        before, after = (analyzer.bound(graph, query, Compute()).upper for analyzer in (plain, tight))
        assert before is not None
        assert after is not None
        assert bool((after <= before).all())
        assert bool((after < 0.95 * before).any())


def test_never_above_one_constant_of_the_whole_space(rng: np.random.Generator) -> None:
    """Where ranges over wide balls say little the constant of the whole space counts, and the checker proves it there."""
    graph = chain(
        [tensor(rng, 8, 4), *(tensor(rng, 8, 8, scale=0.7) for _ in range(4)), tensor(rng, 2, 8)], ops.Tanh()
    )
    query = Query(region=Ball(torch.zeros(1, 4), 3.0, Norm.L2))
    whole = LipSDPFast().bound(graph, Query(), Compute())
    first = Local().bound(graph, query, Compute())
    assert whole.upper is not None
    assert first.upper is not None
    assert bool((whole.upper < first.upper).all())
    found = LocalSDP().improved(first, graph, query, Compute())
    assert found.upper is not None
    assert bool((found.upper <= whole.upper).all())
    assert isinstance(found.evidence, Smaller)
    assert found.evidence.names == ("local", "everywhere", "lipsdp")
    alone = Anywhere(whole.evidence)
    claim = dataclasses.replace(found, upper=whole.upper.expand(1).clone(), evidence=alone)
    assert issue(claim, graph, query, LocalSDP(), 0.0).rigour is Rigour.CHECKED
