"""Implicit layers in LipSDP: a block that feeds itself, proved densely; the same proof agrees with the block-wise one."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor

import lipverify as lv
from lipverify import ops
from lipverify.analyzers.lipsdp.analyzer import LipSDP, LipSDPFast, LipSDPReference
from lipverify.analyzers.lipsdp.bound import certified_upper
from lipverify.analyzers.lipsdp.canonical import looped_form
from lipverify.analyzers.lipsdp.reference import certified_dense
from lipverify.analyzers.lipsdp.solver import fast
from lipverify.analyzers.lipsdp.system import BlockSystem, LoopedSystem
from lipverify.analyzers.product import Product
from lipverify.analyzers.protocol import Compute
from lipverify.errors import InternalError, UnsupportedModel
from lipverify.falsify import Search, falsify
from lipverify.frontends.builder import Builder
from lipverify.ir.graph import Graph, Origin
from lipverify.ir.norm import Norm
from lipverify.ir.op import Op
from lipverify.ir.region import Ball, Query
from tests.tiers import also, tier
from tests.unit.analyzers.lipsdp.systems import random_system


def equilibrium(
    rng: np.random.Generator, size: int, norm: float, activation: Op, layers: int = 1
) -> tuple[Graph, float]:
    """V z with z = phi(W z + U x), |W| = norm, Gaussian U and V; and the closed form of contractions."""
    b = Builder(symbolic_batch=True)
    v = b.input((1, size), 0)
    closed = 1.0
    for _ in range(layers):
        recurrent = rng.standard_normal((size, size))
        recurrent *= norm / np.linalg.norm(recurrent, 2)
        drive, out = rng.standard_normal((2, size, size))
        v = b.add(ops.Implicit(torch.tensor(recurrent), torch.tensor(drive), None, activation), (v,), v.batch)
        v = b.linear(v, torch.tensor(out))
        closed *= np.linalg.norm(out, 2) * np.linalg.norm(drive, 2) / (1 - norm)
    return b.graph([v], Origin()), closed


def upper(graph: Graph, analyzer: LipSDP | LipSDPFast | LipSDPReference | Product) -> float:
    found = analyzer.bound(graph, Query(), Compute()).upper
    assert found is not None
    return float(found)


@pytest.mark.usefixtures("whole_search")
@pytest.mark.parametrize("seed", range(tier(2, 4)))
def test_eight_neurons_of_norm_six_tenths(seed: int) -> None:
    """The size of the design measurement: SDP 3 % above the best Jacobian, the closed form 3 to 5 times above it."""
    graph, closed = equilibrium(np.random.default_rng(seed), 8, 0.6, ops.ReLU())
    witness = float(falsify(graph, Query(), Compute(), Search(16, 60, seconds=60)).value[0])
    found, layered = upper(graph, LipSDPReference()), upper(graph, Product())
    assert witness <= found <= 1.06 * witness
    assert found <= layered <= closed * (1 + 1e-9)
    assert closed > 2.5 * found


@pytest.mark.parametrize(
    "activation", [ops.Tanh(), ops.LeakyReLU(0.1), also(ops.Sigmoid(), "as Tanh")], ids=lambda a: a.kind()
)
def test_stacked_layers_stay_above_every_witness(activation: Op) -> None:
    graph, _ = equilibrium(np.random.default_rng(7), 5, 0.8, activation, layers=2)
    witness = float(falsify(graph, Query(), Compute(), Search(16, 40, seconds=2.0)).value[0])
    assert witness <= upper(graph, LipSDPReference()) <= upper(graph, Product())


def test_in_a_ball() -> None:
    graph, _ = equilibrium(np.random.default_rng(1), 5, 0.6, ops.ReLU())
    query = Query(region=Ball(torch.zeros(2, 5), 0.1))
    found = LipSDPReference().bound(graph, query, Compute()).upper
    lower = falsify(graph, query, Compute(), Search(8, 20, seconds=1.0)).value
    assert found is not None
    assert bool((found >= lower).all())


def jacobian_norm(system: LoopedSystem, slopes: Tensor) -> float:
    """Of a one-block system with given slopes."""
    loop, u, v = system.loops[0], system.causal.U[0], system.causal.V[0]
    inner = torch.linalg.solve(torch.eye(len(loop)).double() - loop * slopes, u)
    return float(torch.linalg.matrix_norm(v @ (slopes[:, None] * inner), 2))


@pytest.mark.parametrize("seed", range(8))
def test_any_multipliers_bound_every_slope_pattern(seed: int) -> None:
    graph, _ = equilibrium(np.random.default_rng(seed), 5, 0.7, ops.ReLU())
    system = looped_form(graph)
    patterns = [torch.tensor(p) for p in itertools.product((0.0, 0.5, 1.0), repeat=5)]
    largest = max(jacobian_norm(system, p.double()) for p in patterns)
    generator = torch.Generator().manual_seed(seed)
    answers = 0
    for scale in (1.0, 10.0, 100.0, 1000.0):
        for spread in (0.0, 0.2, 1.0):
            d = scale * torch.exp(spread * torch.randn(5, generator=generator, dtype=torch.float64))
            found = certified_dense(system, [d])
            if found is not None:
                answers += 1
                assert float(found) >= largest
    assert answers >= 3


@pytest.mark.parametrize("seed", range(20))
def test_dense_proof_agrees_with_the_proof_by_blocks(seed: int) -> None:
    system = random_system(seed)
    closed = fast(system, Compute())
    # Neurons without influence have no multiplier there; any positive one serves here.
    d = [torch.where(part > 0, part, 1.0) for part in closed.multipliers]
    by_blocks, dense = certified_upper(system, d), certified_dense(LoopedSystem(system, {}), d)
    assert by_blocks is not None
    if all(bool((part > 0).all()) for part in closed.multipliers):
        assert dense is not None
        assert float(dense) == pytest.approx(float(by_blocks), rel=1e-6)
    else:
        # The dense proof also carries the neurons without influence, with multipliers that nobody chose for them.
        assert dense is None or float(dense) >= float(by_blocks) * (1 - 1e-9)


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("activation", [ops.ReLU(), ops.Tanh(), ops.LeakyReLU(0.1)], ids=lambda a: a.kind())
def test_the_block_search_reaches_the_optimum_of_the_cone_solver(activation: Op, layers: int) -> None:
    for seed in range(tier(1, 2)):
        graph, _ = equilibrium(np.random.default_rng(seed), 6, 0.7, activation, layers)
        reference, found = upper(graph, LipSDPReference()), upper(graph, LipSDP())
        assert found == pytest.approx(reference, rel=2e-5)
        assert found <= upper(graph, LipSDPFast()) * (1 + 1e-9)


@pytest.mark.parametrize(("inputs", "outputs"), [(2, 9), (9, 2)])
def test_the_smaller_side_is_found_through_loops(inputs: int, outputs: int) -> None:
    rng = np.random.default_rng(inputs)
    recurrent = rng.standard_normal((6, 6))
    recurrent *= 0.9 / np.linalg.norm(recurrent, 2)
    b = Builder(symbolic_batch=True)
    v = b.input((1, inputs), 0)
    v = b.add(
        ops.Implicit(torch.tensor(recurrent), torch.tensor(rng.standard_normal((6, inputs)))), (v,), v.batch
    )
    v = b.linear(v, torch.tensor(rng.standard_normal((outputs, 6))))
    graph = b.graph([v], Origin())
    witness = float(falsify(graph, Query(), Compute(), Search(16, 40, seconds=2.0)).value[0])
    reference, found = upper(graph, LipSDPReference()), upper(graph, LipSDP())
    assert witness <= found == pytest.approx(reference, rel=2e-5)


def test_a_loop_that_is_no_contraction() -> None:
    """I - W is monotone although |W| = 3: the closed form and the search need K, not the norm."""
    rng = np.random.default_rng(3)
    skew = rng.standard_normal((6, 6))
    skew = skew - skew.T
    recurrent = torch.tensor(3.0 * skew / np.linalg.norm(skew, 2))
    weights = torch.exp(torch.tensor(rng.standard_normal(6)))
    recurrent = weights[:, None] * recurrent / weights
    b = Builder(symbolic_batch=True)
    v = b.input((1, 6), 0)
    v = b.add(ops.Implicit(recurrent, torch.tensor(rng.standard_normal((6, 6)))), (v,), v.batch)
    graph = b.graph([v], Origin())
    system = looped_form(graph)
    patterns = torch.rand(200, 6, generator=torch.Generator().manual_seed(0)).round().double()
    largest = max(jacobian_norm(system, p) for p in patterns)
    found, closed = upper(graph, LipSDP()), upper(graph, LipSDPFast())
    assert largest <= found <= closed
    assert found == pytest.approx(upper(graph, LipSDPReference()), rel=1e-4)


@pytest.mark.parametrize("seed", range(8))
def test_proofs_by_blocks_and_dense_agree_with_loops(seed: int) -> None:
    graph, _ = equilibrium(np.random.default_rng(seed), 5, 0.7, ops.ReLU(), 2)
    system = looped_form(graph)
    found = fast(system.couplings, Compute())
    for factor in (1.0, 2.0):
        d = [factor * part for part in found.multipliers]
        by_blocks, whole = certified_upper(system.couplings, d), certified_dense(system, d)
        assert by_blocks is not None
        assert whole is not None
        assert float(by_blocks) == pytest.approx(float(whole), rel=1e-7)
    # Multipliers that are too small for the loop prove nothing, in either form.
    tiny = [1e-3 * part for part in found.multipliers]
    assert certified_upper(system.couplings, tiny) is None
    assert certified_dense(system, tiny) is None


def test_weighted_inputs_are_refused_by_node() -> None:
    graph, _ = equilibrium(np.random.default_rng(0), 4, 0.6, ops.ReLU())
    query = Query(norm_in=Norm.LINF)
    for analyzer in (LipSDP(), LipSDPFast()):
        assert "Implicit" in str(analyzer.reject(graph, query))
        with pytest.raises(UnsupportedModel, match="Implicit"):
            analyzer.bound(graph, query, Compute())


def test_an_ill_posed_layer_is_refused() -> None:
    b = Builder(symbolic_batch=True)
    v = b.input((1, 2), 0)
    v = b.add(ops.Implicit(torch.tensor([[1.5, 0.0], [0.0, 0.0]]), torch.eye(2)), (v,), v.batch)
    graph = b.graph([v], Origin())
    with pytest.raises(UnsupportedModel, match="fixed point is unique"):
        LipSDPReference().bound(graph, Query(), Compute())


def test_a_loop_has_to_fit_its_block() -> None:
    plain = BlockSystem(1, 1, (2,), {0: torch.ones(2, 1)}, {}, {0: torch.ones(1, 2)}, None, ("z",))
    with pytest.raises(InternalError):
        LoopedSystem(plain, {0: torch.ones(3, 3)})
    with pytest.raises(InternalError):
        LoopedSystem(plain, {1: torch.ones(2, 2)})


def test_the_trained_network_of_the_zoo() -> None:
    graph = lv.load("zoo:digits-deq")
    witness = float(falsify(graph, Query(), Compute(), Search(16, 60, seconds=60)).value[0])
    found, searched = upper(graph, LipSDPReference()), upper(graph, LipSDP())
    assert witness <= found <= 1.03 * witness
    assert witness <= searched == pytest.approx(found, rel=1e-4)
    assert found < upper(graph, Product())
