"""Systems searched together: the bounds of single runs, whatever else is in the batch, and never below a Jacobian."""

import time
from dataclasses import replace

import numpy as np
import pytest
import torch

from lipverify import ops
from lipverify.analyzers.lipsdp import batched
from lipverify.analyzers.lipsdp.analyzer import LipSDP, LipSDPFast
from lipverify.analyzers.lipsdp.batched import pays, solve_many
from lipverify.analyzers.lipsdp.bound import certified_upper
from lipverify.analyzers.lipsdp.padding import Stack
from lipverify.analyzers.lipsdp.reduction import reduce
from lipverify.analyzers.lipsdp.regions import coupled_form, systems
from lipverify.analyzers.lipsdp.solver import Settings, Solution, fast, solve
from lipverify.analyzers.lipsdp.stacked import Found, improve
from lipverify.analyzers.lipsdp.start import SHARES, scalar_start
from lipverify.analyzers.lipsdp.system import BlockSystem
from lipverify.analyzers.protocol import Compute
from lipverify.ir.norm import Norm
from lipverify.ir.region import Ball, Query
from tests.networks import chain as network
from tests.networks import tensor
from tests.unit.analyzers.lipsdp.systems import chain, he_chain, random_system, sampled_norm

TIGHT = Settings(tol=1e-4)


def bound(found: Solution) -> float:
    assert found.upper is not None
    return found.upper


def around_centres(seed: int, count: int, radius: float) -> tuple[list[BlockSystem], object, Query]:
    """Systems of one small network, whose unstable neurons differ from centre to centre."""
    rng = np.random.default_rng(seed)
    graph = network(
        [tensor(rng, 20, 8), tensor(rng, 20, 20, scale=0.3), tensor(rng, 14, 20), tensor(rng, 4, 14)],
        ops.ReLU(),
    )
    query = Query(region=Ball(torch.tensor(rng.standard_normal((count, 8))), radius, Norm.L2))
    return list(systems(graph, query, Compute(), coupled_form)), graph, query


def test_centres_have_the_bounds_of_single_runs() -> None:
    given, graph, query = around_centres(0, 16, 0.2)
    assert len({system.sizes for system in given}) > 4
    found = solve_many(given, Compute(), TIGHT)
    gained = 0
    for k, (system, together) in enumerate(zip(given, found, strict=True)):
        alone = solve(system, Compute(), TIGHT)
        assert bound(together) == pytest.approx(bound(alone), rel=1e-3)
        assert bound(together) >= sampled_norm(system, 200, k) * (1 - 1e-12)
        closed = bound(fast(system, Compute()))
        assert bound(together) <= closed * (1 + 1e-12)
        gained += bound(together) < 0.98 * closed
        # The number is that of its own multipliers on its own system.
        again = certified_upper(system, together.multipliers, together.exponents)
        assert again is not None
        assert float(again) == bound(together)
    assert gained > 8
    upper = LipSDP(TIGHT).bound(graph, query, Compute()).upper
    assert upper is not None
    assert upper.tolist() == [bound(solution) for solution in found]


def test_order_and_company_change_nothing_beyond_the_tolerance() -> None:
    given, _, _ = around_centres(1, 9, 0.3)
    found = [bound(s) for s in solve_many(given, Compute(), TIGHT)]
    backwards = [bound(s) for s in solve_many(given[::-1], Compute(), TIGHT)][::-1]
    few = [bound(s) for s in solve_many(given[2:5], Compute(), TIGHT)]
    mixed = [bound(s) for s in solve_many([he_chain(8, 40, 3, 4), *given], Compute(), TIGHT)][1:]
    assert backwards == pytest.approx(found, rel=2e-4)
    assert few == pytest.approx(found[2:5], rel=2e-4)
    assert mixed == pytest.approx(found, rel=2e-4)


def test_systems_of_any_shape_and_without_neurons() -> None:
    rng = np.random.default_rng(3)
    direct = torch.from_numpy(rng.standard_normal((3, 5)))
    linear = BlockSystem(5, 3, (), {}, {}, {}, direct, ())
    nothing = chain([torch.zeros(4, 5, dtype=torch.float64), torch.ones(3, 4, dtype=torch.float64)])
    given = [random_system(seed) for seed in range(12)] + [linear, nothing, he_chain(6, 12, 9, 3)]
    assert not pays(given[-1])
    found = solve_many(given, Compute(), TIGHT)
    assert len(found) == len(given)
    for system, together in zip(given, found, strict=True):
        assert bound(together) == pytest.approx(bound(solve(system, Compute(), TIGHT)), rel=1e-3, abs=1e-300)
        assert bound(together) >= sampled_norm(system, 50, 0) * (1 - 1e-12)
    assert bound(found[12]) == pytest.approx(float(torch.linalg.matrix_norm(direct, 2)))
    assert bound(found[13]) == 0.0
    assert solve_many([], Compute()) == []


def test_padded_neurons_have_no_influence() -> None:
    """The same search on a system beside a larger one, whose blocks it is padded to."""
    small, large = he_chain(5, 7, 2, 3), he_chain(5, 11, 3, 3)
    starts = [scalar_start(reduce(system)) for system in (small, large)]
    factors = [factor for _, factor, _ in starts]
    values = [float(torch.linalg.eigvalsh(y)[-1]) for _, _, y in starts]
    both = Stack.of(factors, values)
    d = torch.rand(2, both.C.shape[1], generator=torch.Generator().manual_seed(0)).double() + 1.0
    lower, feasible = both.factor(d)
    assert bool(feasible.all())
    y = both.output_form(d, lower)
    for row, (factor, value) in enumerate(zip(factors, values, strict=True)):
        own = factor.pencil.factor(factor.d * both.without_padding(row, d, factor.pencil.sizes))
        assert own is not None
        assert torch.allclose(y[row] * value, own.output_form(), rtol=1e-11, atol=1e-12)
        # The last share is so near the edge that six digits are lost at every layer.
        for share in SHARES[:-1]:
            found, top = both.closed_form(share)
            single, _, expected = scalar_start(starts[row][0], share)
            assert single.exponents == starts[row][0].exponents
            assert float(top[row]) * value == pytest.approx(
                float(torch.linalg.eigvalsh(expected)[-1]), rel=1e-9
            )
            assert float(found[row].amin()) > 0.0
    result = Found.start(both)
    before = result.d.clone()
    tuning = batched.tuning_of(TIGHT, large)
    improve(both, result, tuning, lambda: False)
    padded = both.blocks.amax(1) == 0.0
    assert int(padded.sum()) == 33 - 14
    assert torch.equal(result.d[padded], before[padded])
    assert not torch.equal(result.d[~padded], before[~padded])
    assert bool(result.converged.all())


@pytest.mark.parametrize("op", [ops.ReLU(), ops.GroupSort(2)], ids=str)
def test_no_time_gives_the_closed_form(op) -> None:
    rng = np.random.default_rng(5)
    graph = network([tensor(rng, 10, 6), tensor(rng, 10, 10, scale=0.3), tensor(rng, 3, 10)], op)
    query = Query(region=Ball(torch.tensor(rng.standard_normal((5, 6))), 0.5, Norm.L2))
    late = Compute(deadline=time.monotonic() - 1.0)
    none = LipSDP(TIGHT).bound(graph, query, late).upper
    # There is no time for ranges by lines either: those of both are intervals.
    closed, early = (LipSDPFast().bound(graph, query, c).upper for c in (late, Compute()))
    assert none is not None
    assert closed is not None
    assert early is not None
    assert torch.allclose(none, closed, rtol=1e-9)
    assert bool((early <= closed * (1 + 1e-9)).all())


def test_an_unfinished_search_is_finished_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    given, _, _ = around_centres(2, 4, 0.3)
    full = [bound(s) for s in solve_many(given, Compute(), TIGHT)]

    monkeypatch.setattr(batched, "improve", lambda *_: None)
    assert [bound(s) for s in solve_many(given, Compute(), TIGHT)] == pytest.approx(full, rel=2e-4)

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(batched, "improve", interrupted)
    found = solve_many(given, Compute(), TIGHT)
    assert all(solution.interrupted for solution in found)
    closed = [bound(fast(system, Compute())) for system in given]
    assert [bound(solution) for solution in found] == pytest.approx(closed, rel=1e-9)


def test_extreme_weights_keep_their_scale() -> None:
    given, _, _ = around_centres(4, 3, 0.3)
    plain = [bound(s) for s in solve_many(given, Compute(), TIGHT)]
    for power in (-300, 300):
        shifted = [
            replace(
                s,
                V={k: m * 2.0**power for k, m in s.V.items()},
                V0=None if s.V0 is None else s.V0 * 2.0**power,
            )
            for s in given
        ]
        found = [bound(s) / 2.0**power for s in solve_many(shifted, Compute(), TIGHT)]
        assert found == pytest.approx(plain, rel=2e-4)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_cuda() -> None:
    given, _, _ = around_centres(0, 6, 0.3)

    def moved(matrices):
        return {k: m.cuda() for k, m in matrices.items()}

    there = [
        replace(s, U=moved(s.U), C=moved(s.C), V=moved(s.V), V0=None if s.V0 is None else s.V0.cuda())
        for s in given
    ]
    here = [bound(s) for s in solve_many(given, Compute(), TIGHT)]
    found = solve_many(there, Compute(device=torch.device("cuda")), TIGHT)
    assert [bound(s) for s in found] == pytest.approx(here, rel=1e-3)
