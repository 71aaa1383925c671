"""The certified evaluation: above every sampled Jacobian, sharp against a dense test, and no answer where none is proved."""

import math

import pytest
import torch

from lipverify.analyzers.lipsdp.bound import certified_upper
from lipverify.analyzers.lipsdp.reduction import live_neurons, restricted, transposed
from lipverify.analyzers.lipsdp.solver import fast
from lipverify.analyzers.lipsdp.system import BlockSystem
from lipverify.analyzers.protocol import Compute
from tests.unit.analyzers.lipsdp.systems import (
    bordered,
    chain,
    dense,
    he_chain,
    random_system,
    residual_example,
    sampled_norm,
    semidefinite,
)


def random_multipliers(system, seed, spread):
    """Around the closed form, or without any relation to the system for a spread above 2."""
    generator = torch.Generator().manual_seed(seed)
    base = fast(system, Compute()).multipliers
    noise = [torch.randn(len(d), generator=generator, dtype=torch.float64) for d in base]
    return tuple(torch.exp(spread * n) * (d if spread < 2 else 1.0) for d, n in zip(base, noise, strict=True))


def exact_bound(system, d):
    """sqrt(lmax(Y(D))) by dense algebra, None where A(D) is not positive definite."""
    live = live_neurons(system)
    small = restricted(system, live)
    joined = torch.cat([part[chosen] for part, chosen in zip(d, live, strict=True)])
    c, u, v, direct = dense(small)
    a = 2 * torch.diag(joined) - joined[:, None] * c.T - c * joined - u @ u.T
    b = joined[:, None] * v.T + u @ direct.T
    if small.neurons and torch.linalg.eigvalsh(a)[0] <= 0:
        return None
    y = direct @ direct.T + b.T @ torch.linalg.solve(a, b)
    return math.sqrt(float(torch.linalg.eigvalsh(y)[-1]))


@pytest.mark.parametrize("seed", range(60))
def test_any_positive_multipliers_give_a_valid_bound_or_none(seed):
    system = random_system(seed)
    sampled = sampled_norm(system, 64, seed)
    answered = 0
    for spread in (0.0, 0.1, 0.3, 1.0, 3.0):
        d = random_multipliers(system, seed, spread)
        upper = certified_upper(system, d)
        expected = exact_bound(system, d)
        assert (upper is None) == (expected is None)
        if upper is not None:
            answered += 1
            assert float(upper) >= sampled
            assert expected * (1 - 1e-12) <= float(upper) <= expected * (1 + 1e-8) + 1e-12
    assert answered


@pytest.mark.parametrize(
    "system", [residual_example(), he_chain(8, 12, 4, 3), random_system(1), random_system(12)]
)
def test_bound_is_the_edge_of_the_dense_semidefinite_condition(system):
    solution = fast(system, Compute())
    live = live_neurons(system)
    small = restricted(system, live)
    d = torch.cat([part[chosen] for part, chosen in zip(solution.multipliers, live, strict=True)])
    rho = solution.upper**2
    assert semidefinite(bordered(small, d, rho * (1 + 1e-6)))
    assert not semidefinite(bordered(small, d, rho * (1 - 1e-6)))


def test_multipliers_that_are_too_small_zero_or_not_numbers_are_refused():
    system = chain([torch.full((1, 1), 3.0, dtype=torch.float64), torch.ones(1, 1, dtype=torch.float64)])
    # A = 2 d - 9.
    for value in (4.4, 0.0, -5.0, math.nan, math.inf):
        assert certified_upper(system, (torch.tensor([value], dtype=torch.float64),)) is None
    # Y = d^2 / (2 d - 9) is smallest, 9, at d = 9.
    upper = certified_upper(system, (torch.tensor([9.0], dtype=torch.float64),))
    assert 3.0 <= float(upper) < 3.0 * (1 + 1e-10)


def test_singular_pencil_is_not_certified():
    """At 2 d = |u|^2 exactly A is zero: nothing is proved, though every number is representable."""
    system = chain([torch.full((1, 1), 2.0, dtype=torch.float64), torch.ones(1, 1, dtype=torch.float64)])
    assert certified_upper(system, (torch.tensor([2.0], dtype=torch.float64),)) is None


def test_bound_does_not_depend_on_powers_of_two():
    system = residual_example()
    d = fast(system, Compute()).multipliers
    plain = certified_upper(system, d)
    grown = certified_upper(system, [part * 2.0**-60 for part in d], [30] * len(d))
    assert float(plain) == float(grown)
    scaled = BlockSystem(
        system.inputs,
        system.outputs,
        system.sizes,
        {k: m * 2.0**40 for k, m in system.U.items()},
        system.C,
        system.V,
        None,
        system.names,
    )
    moved = certified_upper(scaled, d, [40] * len(d))
    assert float(moved) == float(plain) * 2.0**40


def test_neurons_without_influence_need_no_multiplier():
    first = torch.eye(3, dtype=torch.float64)
    first[1] = 0.0
    second = torch.ones(2, 3, dtype=torch.float64)
    second[:, 2] = 0.0
    system = chain([first, second])
    d = (torch.tensor([1.0, math.nan, 0.0], dtype=torch.float64),)
    # Only the first neuron is left: x_0 -> (1, 1).
    assert math.sqrt(2) <= float(certified_upper(system, d)) < math.sqrt(2) * (1 + 1e-12)


def test_system_without_neurons_is_a_matrix_norm():
    matrix = torch.tensor([[3.0, 0.0], [0.0, 4.0]], dtype=torch.float64)
    system = BlockSystem(2, 2, (), {}, {}, {}, matrix, ())
    assert float(certified_upper(system, ())) == 4.0
    assert float(certified_upper(BlockSystem(2, 2, (), {}, {}, {}, None, ()), ())) == 0.0


def test_transposition_twice_is_the_same_system():
    system = random_system(11)
    for ours, again in zip(dense(system), dense(transposed(transposed(system))), strict=True):
        assert torch.equal(ours, again)


def test_chains_that_leave_float64_are_scaled_at_the_first_block_that_drifts(monkeypatch):
    """Gates of two directions of an LSTM grow past their estimate, and eigenvalues of infinities were an internal error."""
    weights = [torch.full((1, 1), 2.0**60, dtype=torch.float64)] * 16
    system = chain([*weights, torch.full((1, 1), 2.0**-900, dtype=torch.float64)])
    expected = fast(system, Compute()).upper
    assert expected == pytest.approx(2.0**60)
    # Without any estimate the ninth block is beyond float64, squared.
    monkeypatch.setattr(
        "lipverify.analyzers.lipsdp.start._estimated_exponents", lambda s: ([0] * len(s.sizes), 0)
    )
    assert fast(system, Compute()).upper == pytest.approx(expected, rel=1e-6)
