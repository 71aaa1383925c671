"""LipSDP in other norms than l2: exact values, one search for many outputs, evidence that carries the bound."""

from __future__ import annotations

import itertools
import time

import numpy as np
import pytest
import torch

from lipverify import ops, pipeline
from lipverify.analyzers.lipsdp.analyzer import LipSDP, LipSDPFast, LipSDPReference
from lipverify.analyzers.lipsdp.bound import certified_upper
from lipverify.analyzers.lipsdp.canonical import canonical_form
from lipverify.analyzers.lipsdp.evidence import Multipliers, Proofs
from lipverify.analyzers.lipsdp.norms import differences, each_output
from lipverify.analyzers.lipsdp.solver import Settings
from lipverify.analyzers.lipsdp.system import BlockSystem, one_output
from lipverify.analyzers.protocol import Compute
from lipverify.errors import UnsupportedModel
from lipverify.ir.graph import Graph
from lipverify.ir.norm import Norm
from lipverify.ir.region import Ball, Query
from tests.networks import chain, tensor

NORMS = [(Norm.LINF, Norm.LINF), (Norm.LINF, Norm.L2), (Norm.L2, Norm.LINF)]


def relu_net(rng: np.random.Generator, *widths: int) -> Graph:
    return chain([tensor(rng, o, i).double() for i, o in itertools.pairwise(widths)], ops.ReLU())


def upper(graph: Graph, *norms: Norm, method: LipSDP | LipSDPFast | None = None) -> float:
    found = (method or LipSDP()).bound(graph, Query(*norms), Compute()).upper
    assert found is not None
    return float(found)


def test_a_linear_network_has_its_operator_norms(rng: np.random.Generator) -> None:
    matrix = tensor(rng, 3, 5).double()
    graph = chain([matrix])
    assert upper(graph, Norm.LINF, Norm.LINF) == pytest.approx(float(matrix.abs().sum(1).max()), rel=1e-4)
    assert upper(graph, Norm.L2, Norm.LINF) == pytest.approx(float(matrix.norm(dim=1).max()), rel=1e-6)
    signs = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=5)), dtype=torch.float64)
    exact = float((signs @ matrix.T).norm(dim=1).max())
    # The diagonal relaxation is at most sqrt(pi / 2) above it (Nesterov 1998).
    assert exact <= upper(graph, Norm.LINF, Norm.L2) <= 1.2534 * exact


def test_linf_outputs_are_the_largest_single_output(rng: np.random.Generator) -> None:
    graph = relu_net(rng, 4, 7, 6, 5)
    for norm_in in (Norm.L2, Norm.LINF):
        singles = [upper(chain_of_row(graph, row), norm_in, Norm.LINF) for row in range(graph.output.size)]
        found = upper(graph, norm_in, Norm.LINF)
        assert found == pytest.approx(max(singles), rel=1e-4)
        assert found <= upper(graph, norm_in, Norm.L2) * (1 + 1e-4)


def chain_of_row(graph: Graph, row: int) -> Graph:
    pick = torch.zeros(1, graph.output.size, dtype=torch.float64)
    pick[0, row] = 1.0
    return graph.append(ops.Linear(pick, None), (1,), "row")


def test_one_output_has_one_answer_whatever_the_output_norm(rng: np.random.Generator) -> None:
    graph = relu_net(rng, 4, 6, 1)
    for norm_in in (Norm.L2, Norm.LINF):
        found = {upper(graph, norm_in, norm_out) for norm_out in Norm}
        assert len(found) == 1


def test_margins_in_linf(rng: np.random.Generator) -> None:
    graph = relu_net(rng, 4, 8, 3)
    margin = pipeline.margin(graph, 0, 2)
    single = upper(margin, Norm.LINF, Norm.LINF)
    assert single <= 2 * upper(graph, Norm.LINF, Norm.LINF)
    assert single <= upper(margin, Norm.LINF, Norm.LINF, method=LipSDPFast()) * (1 + 1e-9)


@pytest.mark.parametrize("norm", [Norm.L2, Norm.LINF])
def test_all_differences_of_outputs_share_one_search(norm: Norm, rng: np.random.Generator) -> None:
    graph = relu_net(rng, 4, 8, 8, 4)
    pairs = list(itertools.combinations(range(4), 2))
    system = differences(canonical_form(graph), pairs)
    found = each_output(system, norm, Compute(), Settings())
    assert [proof.outputs for proof in found] == [(row,) for row in range(len(pairs))]
    for (a, b), proof in zip(pairs, found, strict=True):
        single = upper(pipeline.margin(graph, a, b), norm, norm)
        assert float(proof.upper) == pytest.approx(single, rel=1e-4)
    # Without time the multipliers of the one search remain: valid for every difference.
    spent = each_output(system, norm, Compute(deadline=time.monotonic()), Settings())
    assert all(
        float(late.upper) >= float(best.upper) * (1 - 1e-4) for late, best in zip(spent, found, strict=True)
    )


def test_what_is_not_answered_is_refused_with_a_remedy(rng: np.random.Generator) -> None:
    graph = relu_net(rng, 4, 6, 3)
    for method in (LipSDP(), LipSDPFast()):
        assert "l1" in (method.reject(graph, Query(Norm.L1, Norm.L1)) or "")
        assert "product" in (method.reject(graph, Query(Norm.L2, Norm.L1)) or "")
        with pytest.raises(UnsupportedModel, match="in l1"):
            method.bound(graph, Query(Norm.L1, Norm.L2), Compute())
    assert "ask lipsdp" in (LipSDPReference().reject(graph, Query(Norm.LINF, Norm.LINF)) or "")


@pytest.mark.parametrize("norms", NORMS)
def test_the_evidence_proves_the_bound_again(norms: tuple[Norm, Norm], rng: np.random.Generator) -> None:
    """From weights and multipliers alone: inputs scaled by the roots of the weights, then the l2 proof."""
    graph = relu_net(rng, 4, 7, 6, 3)
    system = canonical_form(graph)
    found = LipSDP().bound(graph, Query(*norms), Compute())
    assert isinstance(found.evidence, Proofs)
    (proofs,) = found.evidence.centres
    covered = set()
    for proof in proofs:
        rows = range(system.outputs) if proof.outputs is None else proof.outputs
        covered |= set(rows)
        for row in rows:
            single = system if proof.outputs is None else one_output(system, row)
            price = 1.0
            if proof.weights is not None:
                weights = proof.weights * 4.0**proof.weights_exponent
                single, price = times(single, weights.sqrt()), float((1 / weights).sum())
            proved = certified_upper(single, proof.diagonals, proof.exponents)
            assert proved is not None
            assert float(proved) * price**0.5 <= float(proof.upper) * (1 + 1e-7)
            assert float(proof.upper) <= float(found.upper)  # type: ignore[arg-type]
    assert covered == set(range(system.outputs))
    document = found.evidence.to_json()
    assert document["norm_in"] == str(norms[0])
    assert ("weights" in document["centres"][0][0]) == (norms[0] is Norm.LINF)


def times(system: BlockSystem, scales: torch.Tensor) -> BlockSystem:
    from dataclasses import replace

    return replace(
        system,
        U={k: m * scales for k, m in system.U.items()},
        V0=None if system.V0 is None else system.V0 * scales,
    )


def test_l2_keeps_its_own_evidence(rng: np.random.Generator) -> None:
    graph = relu_net(rng, 4, 6, 3)
    assert isinstance(LipSDP().bound(graph, Query(), Compute()).evidence, Multipliers)


@pytest.mark.parametrize("norms", NORMS)
def test_balls_of_several_centres(norms: tuple[Norm, Norm], rng: np.random.Generator) -> None:
    graph = relu_net(rng, 3, 6, 6, 2)
    center = torch.tensor(rng.standard_normal((3, 3)))
    query = Query(*norms, Ball(center, 0.05))
    found = LipSDP().bound(graph, query, Compute())
    assert found.upper is not None
    assert found.upper.shape == (3,)
    assert float(found.upper.max()) <= upper(graph, *norms) * (1 + 1e-4)
    assert float(found.upper.min()) < upper(graph, *norms)
    # Each centre alone has the same answer.
    alone = LipSDP().bound(graph, Query(*norms, Ball(center[1:2], 0.05)), Compute())
    assert float(alone.upper) == pytest.approx(float(found.upper[1]), rel=1e-9)  # type: ignore[arg-type]


@pytest.mark.parametrize("norms", NORMS)
def test_any_budget_gives_a_valid_bound(norms: tuple[Norm, Norm], rng: np.random.Generator) -> None:
    graph = relu_net(rng, 10, 20, 20, 20, 6)
    best = upper(graph, *norms)
    for seconds in (0.0, 0.1, 0.5):
        found = LipSDP().bound(graph, Query(*norms), Compute(deadline=time.monotonic() + seconds))
        assert found.upper is not None
        assert float(found.upper) >= best * (1 - 1e-3)
        values = [bound for _, bound in found.trace]
        assert values == sorted(values, reverse=True)
        assert values[-1] == float(found.upper)
