"""Derivatives against finite differences; anchors, budget, interrupts, orientation and scale of the search."""

import math
import time
from dataclasses import replace

import pytest
import torch

from lipverify.analyzers.lipsdp.bound import certified_upper
from lipverify.analyzers.lipsdp.factor import Pencil
from lipverify.analyzers.lipsdp.newton import truncated_cg
from lipverify.analyzers.lipsdp.objective import Model, Point, Smoothed
from lipverify.analyzers.lipsdp.reduction import transposed
from lipverify.analyzers.lipsdp.solver import Settings, estimate, fast, solve
from lipverify.analyzers.lipsdp.system import BlockSystem
from lipverify.analyzers.protocol import Compute
from lipverify.errors import UnsupportedModel, UsageError
from tests.clocks import within
from tests.tiers import tier
from tests.unit.analyzers.lipsdp.systems import (
    bordered,
    chain,
    he_chain,
    random_system,
    residual_example,
    sampled_norm,
    semidefinite,
)


def gaussian(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def feasible_point(system, probes=5):
    pencil = Pencil(system)
    d = torch.cat(fast(system, Compute()).multipliers) * torch.exp(0.2 * gaussian(pencil.neurons).abs())
    model = Model(0.1 * gaussian(probes, pencil.neurons, seed=1), 0.03, 2.0, probes, negligible=0.0)
    return pencil, d, model


@pytest.mark.parametrize("system", [residual_example(), he_chain(5, 6, 3, 4)])
def test_gradient_and_hessian_products_match_finite_differences(system):
    pencil, d, model = feasible_point(system)
    point = Point(pencil.factor(d), model)
    point.prepare()
    direction = gaussian(pencil.neurons, seed=2)
    step = 1e-5

    def moved(sign):
        there = Point(pencil.factor(d * torch.exp(sign * step * direction)), model)
        there.prepare()
        return there

    ahead, behind = moved(1.0), moved(-1.0)
    slope = (ahead.value - behind.value) / (2 * step)
    assert slope == pytest.approx(float(point.gradient @ direction), rel=1e-6)
    product = point.hessian_times(direction) + point.gradient * direction
    difference = (ahead.gradient - behind.gradient) / (2 * step)
    assert torch.allclose(product, difference, rtol=1e-5, atol=1e-7 * float(product.abs().max()))


def test_smoothed_eigenvalue_weights_are_its_gradient():
    y, change = gaussian(6, 6), gaussian(6, 6, seed=1)
    y, change = y @ y.T, change + change.T
    middle = Smoothed.of(y, 0.05)
    slope = (Smoothed.of(y + 1e-6 * change, 0.05).value - Smoothed.of(y - 1e-6 * change, 0.05).value) / 2e-6
    assert slope == pytest.approx(float((middle.weights * change).sum()), rel=1e-6)
    assert float(middle.weights.trace()) == pytest.approx(1.0, rel=1e-12)


def test_truncated_cg_solves_inside_and_stops_at_the_radius():
    matrix = gaussian(12, 12)
    matrix = matrix @ matrix.T + torch.eye(12, dtype=torch.float64)
    gradient, diagonal = gaussian(12, seed=1), matrix.diagonal().clone()
    inside = truncated_cg(lambda p: matrix @ p, gradient, diagonal, 1e9, 100, tol=1e-12)
    assert torch.allclose(matrix @ inside.direction, -gradient, atol=1e-9)
    assert torch.allclose(inside.image, matrix @ inside.direction)
    short = truncated_cg(lambda p: matrix @ p, gradient, diagonal, 0.1, 100)
    assert short.at_radius
    assert float(short.direction @ (diagonal * short.direction)) == pytest.approx(0.01, rel=1e-9)


@pytest.mark.parametrize(
    ("system", "expected"),
    [
        (he_chain(10, 10, 2, 5), 6.74385),
        (he_chain(10, 20, 3, 5), 11.0550),
        (he_chain(20, 30, 4, 10), 25.7788),
        (he_chain(20, 50, 3, 10), 12.9675),
        (he_chain(64, 50, 10, 10), 825.21),
        (residual_example(), 40.4848),
    ],
    ids=["10-10x2-5", "10-20x3-5", "20-30x4-10", "20-50x3-10", "64-50x10-10", "residual"],
)
def test_anchors_of_the_cone_solvers(system, expected):
    """The first four agree with Clarabel; the dense semidefinite condition is checked at both sides of the bound."""
    solution = solve(system, Compute())
    assert solution.upper == pytest.approx(expected, rel=2e-4)
    if system.neurons <= 150:
        d, rho = torch.cat(solution.multipliers), solution.upper**2
        assert semidefinite(bordered(system, d, rho * (1 + 1e-6)))
        assert not semidefinite(bordered(system, d, rho * (1 - 1e-6)))


@pytest.mark.parametrize("seed", range(tier(100, 200)))
def test_bounds_of_random_systems_are_above_samples_and_ordered(seed):
    system = random_system(seed)
    first, best = fast(system, Compute()), solve(system, Compute(), Settings(tol=1e-3))
    sampled = sampled_norm(system, 64, seed)
    assert sampled <= best.upper <= first.upper
    proved = certified_upper(system, best.multipliers, best.exponents)
    assert float(proved) == best.upper
    bounds = [bound for _, bound in best.trace]
    assert bounds == sorted(bounds, reverse=True)
    assert bounds[-1] == best.upper
    if best.gap is not None:
        assert best.gap >= -1e-6


@pytest.mark.parametrize("seed", range(10))
def test_transposed_network_has_the_same_bound(seed):
    system = random_system(seed)
    ours, other = solve(system, Compute()), solve(transposed(system), Compute())
    assert ours.upper == pytest.approx(other.upper, rel=5e-4)


def test_wide_sides_are_narrowed_without_touching_the_certificate():
    """40 inputs and 50 outputs around 6 neurons: the search sees at most 6 of each, the certificate all of them."""
    system = chain([gaussian(6, 40), gaussian(5, 6, seed=1), gaussian(50, 5, seed=2)])
    solution = solve(system, Compute())
    assert sampled_norm(system, 200, 0) <= solution.upper
    d, rho = torch.cat(solution.multipliers), solution.upper**2
    assert semidefinite(bordered(system, d, rho * (1 + 1e-6)))
    assert not semidefinite(bordered(system, d, rho * (1 - 1e-6)))


def test_one_neuron_is_exact():
    system = chain(
        [torch.tensor([[3.0, 4.0]], dtype=torch.float64), torch.tensor([[2.0]], dtype=torch.float64)]
    )
    assert 10.0 <= solve(system, Compute()).upper <= 10.0 * (1 + 1e-4)


def test_linear_and_zero_systems():
    matrix = torch.tensor([[3.0, 0.0], [0.0, 4.0]], dtype=torch.float64)
    linear = BlockSystem(2, 2, (2,), {}, {}, {0: matrix}, matrix, ("dead",))
    solution = solve(linear, Compute())
    assert solution.upper == 4.0
    assert [float(d.sum()) for d in solution.multipliers] == [0.0]
    silent = BlockSystem(2, 2, (2,), {0: matrix}, {}, {}, None, ("unseen",))
    assert solve(silent, Compute()).upper == 0.0
    assert solve(silent, Compute()).log10_upper == -math.inf


def test_orthogonal_networks_are_one():
    blocks = [torch.linalg.qr(gaussian(6, 6, seed=k)).Q for k in range(9)]
    assert 1.0 - 1e-12 <= solve(chain(blocks), Compute()).upper <= 1.0001


@pytest.mark.parametrize("factor", [2.0**-300, 1e-8, 1e8, 2.0**300])
def test_scale_invariance(factor):
    weights = [gaussian(8, 6), gaussian(7, 8, seed=1), gaussian(4, 7, seed=2)]
    plain = solve(chain(weights), Compute())
    grown = solve(chain([weights[0], weights[1] * factor, weights[2]]), Compute())
    assert grown.upper == pytest.approx(plain.upper * factor, rel=2e-4)


def test_depth_beyond_float64_keeps_its_logarithm():
    """120 layers that grow by 1024 each: the bound has 360 digits."""
    weights = [1024.0 * torch.linalg.qr(gaussian(3, 3, seed=k)).Q for k in range(120)]
    solution = fast(chain(weights), Compute())
    assert solution.upper is None
    assert solution.log10_upper == pytest.approx(120 * math.log10(1024.0), rel=1e-9)
    assert certified_upper(chain(weights), solution.multipliers, solution.exponents) is not None
    shrinking = fast(chain([w / 2.0**20 for w in weights]), Compute())
    assert shrinking.log10_upper == pytest.approx(-120 * math.log10(1024.0), rel=1e-9)


def test_deadline_is_respected_and_still_certified():
    """A search of eleven seconds, ended after one and a half."""
    system = he_chain(64, 50, 50, 10)
    with within(6.0):
        solution = solve(system, Compute(deadline=time.monotonic() + 1.5))
    assert 6.8e13 < solution.upper <= fast(system, Compute()).upper


def test_interrupt_keeps_the_best():
    class Impatient:
        calls = 0

        def __call__(self, stage, best):
            self.calls += 1
            if self.calls == 6:
                raise KeyboardInterrupt

    system = he_chain(20, 30, 4, 10)
    solution = solve(system, Compute(report=Impatient()))
    assert solution.interrupted
    assert "interrupted" in solution.message
    assert 25.77 < solution.upper < fast(system, Compute()).upper


def test_memory_limit_names_both_sizes():
    system = he_chain(20, 30, 4, 10)
    needed, work = estimate(system)
    assert 100_000 < needed < 10_000_000
    assert work > 30**3
    with pytest.raises(UnsupportedModel, match="GB"):
        solve(system, Compute(), Settings(memory=needed // 2))


def test_weights_that_are_no_numbers_are_refused():
    for bad in (math.nan, math.inf):
        with pytest.raises(UsageError, match="not a number"):
            solve(
                chain([torch.full((2, 2), bad, dtype=torch.float64), torch.ones(1, 2, dtype=torch.float64)]),
                Compute(),
            )


def test_weak_barrier_is_searched_again_with_a_stronger_one():
    """With almost no barrier the first search jams far above the optimum, 825.21, and the second one does not."""
    system = he_chain(64, 50, 10, 10)
    weak = Settings(beta=1e-7, probes=1, hessian_probes=1, max_iterations=30)
    jammed = solve(system, Compute(), replace(weak, restart=False))
    repaired = solve(system, Compute(), replace(weak, restart=True))
    assert repaired.upper < jammed.upper
    assert "a second search with barrier" in repaired.message
    assert repaired.iterations > jammed.iterations


def test_healthy_search_says_that_the_second_one_found_nothing():
    solution = solve(he_chain(64, 50, 10, 10), Compute(), Settings(restart=True))
    assert "lowered the bound by 0.0e+00" in solution.message


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_agrees_with_the_cpu():
    system = he_chain(20, 30, 4, 10)
    moved = BlockSystem(
        system.inputs,
        system.outputs,
        system.sizes,
        {k: m.cuda() for k, m in system.U.items()},
        {k: m.cuda() for k, m in system.C.items()},
        {k: m.cuda() for k, m in system.V.items()},
        None,
        system.names,
    )
    solution = solve(moved, Compute(device=torch.device("cuda")))
    assert solution.upper == pytest.approx(25.7788, rel=2e-4)
    back = certified_upper(system, [d.cpu() for d in solution.multipliers], solution.exponents)
    assert float(back) == pytest.approx(solution.upper, rel=1e-9)
