"""l_inf inputs: above the largest l1 gradient, sharp where that is known, proved by the dense condition of the scaled network."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from lipverify.analyzers.lipsdp.linf import solve_linf
from lipverify.analyzers.lipsdp.reduction import live_neurons, restricted
from lipverify.analyzers.lipsdp.solver import Settings, solve
from lipverify.analyzers.lipsdp.system import BlockSystem
from lipverify.analyzers.protocol import Compute
from lipverify.errors import UsageError
from tests.unit.analyzers.lipsdp.systems import bordered, chain, dense, random_system, semidefinite


def scalar_net(depth):
    """The nets of the l_inf measurements: 20 inputs, `depth` layers of 20, one output."""
    generator = np.random.default_rng(1000 * depth + 20)
    widths = [20] * (depth + 1) + [1]
    return chain(
        [
            torch.from_numpy(generator.standard_normal((o, i)) * math.sqrt(2 / i))
            for i, o in itertools.pairwise(widths)
        ]
    )


def jacobians(system, count, seed):
    c, u, v, direct = dense(system)
    generator = torch.Generator().manual_seed(seed)
    slopes = torch.rand(count, system.neurons, generator=generator, dtype=torch.float64).round()
    identity = torch.eye(system.neurons, dtype=torch.float64)
    inner = torch.linalg.solve(identity - c * slopes[:, None, :], u.expand(count, -1, -1))
    return direct + v @ (slopes[:, :, None] * inner)


@pytest.mark.parametrize(("depth", "expected"), [(1, 8.985), (2, 16.621), (3, 25.285)])
def test_values_of_the_cone_solver(depth, expected):
    system = scalar_net(depth)
    solution = solve_linf(system, Compute(), 0)
    assert float(solution.upper) == pytest.approx(expected, rel=4e-4)
    assert float(jacobians(system, 500, 0).abs().sum(-1).amax()) <= float(solution.upper)
    assert float(solution.upper) < math.sqrt(20) * solve(system, Compute()).upper


@pytest.mark.parametrize("seed", range(40))
def test_random_systems_stay_above_samples_and_satisfy_the_dense_condition(seed):
    system = random_system(seed)
    row = seed % (system.outputs + 1)
    chosen = row if row < system.outputs else None
    solution = solve_linf(system, Compute(), chosen, Settings(tol=1e-3))
    sampled = jacobians(system, 64, seed)
    if chosen is None:
        # The l_inf -> l2 norm at sign vectors.
        signs = torch.randn(system.inputs, 32, dtype=torch.float64).sign()
        reached = (sampled @ signs).norm(dim=1).amax()
    else:
        reached = sampled[:, chosen].abs().sum(-1).amax()
        system = replace(
            system,
            outputs=1,
            V={k: m[chosen : chosen + 1] for k, m in system.V.items()},
            V0=None if system.V0 is None else system.V0[chosen : chosen + 1],
        )
    assert float(reached) <= float(solution.upper)
    used = solution.weights > 0
    if not bool(used.any()):
        assert float(solution.upper) == 0.0
        return
    scale = solution.weights.sqrt()
    scaled = replace(
        system,
        U={k: m * scale for k, m in system.U.items()},
        V0=None if system.V0 is None else system.V0 * scale,
    )
    live = live_neurons(system)
    small = restricted(scaled, live)
    d = torch.cat([part[keep] for part, keep in zip(solution.multipliers, live, strict=True)])
    rho = float(solution.upper) ** 2 / float((1.0 / solution.weights[used]).sum())
    assert semidefinite(bordered(small, d, rho * (1 + 1e-6)))
    assert not semidefinite(bordered(small, d, rho * (1 - 1e-6)))


def test_linear_map_is_its_l1_norm():
    direct = torch.tensor([[3.0, -4.0, 0.0]], dtype=torch.float64)
    system = BlockSystem(3, 1, (), {}, {}, {}, direct, ())
    solution = solve_linf(system, Compute(), 0)
    assert 7.0 <= float(solution.upper) <= 7.0 * (1 + 1e-4)
    assert float(solution.weights[2]) == 0.0


def test_single_hidden_neuron_is_the_l1_norm():
    first = torch.tensor([[3.0, -4.0, 5.0]], dtype=torch.float64)
    system = chain([first, torch.tensor([[2.0]], dtype=torch.float64)])
    assert 24.0 <= float(solve_linf(system, Compute(), 0).upper) <= 24.0 * (1 + 2e-4)


def test_unknown_row_is_refused():
    with pytest.raises(UsageError, match="no output 3"):
        solve_linf(scalar_net(1), Compute(), 3)
