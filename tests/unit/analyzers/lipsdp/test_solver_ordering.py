"""A convolutional system in another order: the same system, sparse factors, the same certified bound."""

import math

import pytest
import torch

from lipverify.analyzers.lipsdp import bound, ordering, solver
from lipverify.analyzers.lipsdp.bound import certified_upper
from lipverify.analyzers.lipsdp.factor import Pencil, fill_pattern
from lipverify.analyzers.lipsdp.ordering import elimination_work, sparse_order
from lipverify.analyzers.lipsdp.solver import Settings, fast, solve
from lipverify.analyzers.lipsdp.system import BlockSystem
from lipverify.analyzers.protocol import Compute
from tests.unit.analyzers.lipsdp.systems import bordered, dense, random_system, semidefinite


def convolutional(length=60, channels=8, seed=0, skip=True):
    """Two one-dimensional convolutions of width 3 (with a shortcut around the second) and a dense layer of ten."""
    generator = torch.Generator().manual_seed(seed)

    def convolution(before, after):
        matrix = torch.zeros(length, after, length, before, dtype=torch.float64)
        for i in range(length):
            for k in range(max(i - 1, 0), min(i + 2, length)):
                entries = torch.randn(after, before, generator=generator, dtype=torch.float64)
                matrix[i, :, k] = entries * math.sqrt(2 / (3 * before))
        return matrix.reshape(length * after, length * before)

    size = length * channels
    head = torch.randn(10, size, generator=generator, dtype=torch.float64) / math.sqrt(size)
    last = torch.randn(3, 10, generator=generator, dtype=torch.float64)
    couplings = {(1, 0): convolution(channels, channels), (2, 1): head}
    if skip:
        couplings[2, 0] = head.flip(1)
    return BlockSystem(
        length * 2,
        3,
        (size, size, 10),
        {0: convolution(2, channels)},
        couplings,
        {2: last},
        None,
        ("a", "b", "c"),
    )


def test_a_permutation_of_the_same_matrices():
    system = convolutional()
    found = sparse_order(system)
    assert found is not None
    ordered, order = found
    assert sorted(order.tolist()) == list(range(system.neurons))
    c, u, v, direct = dense(system)
    c2, u2, v2, direct2 = dense(ordered)
    assert torch.equal(c[order][:, order], c2)
    assert torch.equal(u[order], u2)
    assert torch.equal(v[:, order], v2)
    assert torch.equal(direct, direct2)
    assert elimination_work(ordered) < 0.3 * elimination_work(system)
    # Levels only meet the next level and the dense layer.
    assert all(len(touched) <= 2 for touched in fill_pattern(ordered))


def test_factor_and_products_agree_with_dense_matrices():
    system = convolutional()
    ordered, order = sparse_order(system)
    d = fast(system, Compute()).multipliers
    d = torch.cat(d)[order]
    pencil = Pencil(ordered)
    factor = pencil.factor(d)
    c, u, v, direct = dense(ordered)
    a = 2 * torch.diag(d) - d[:, None] * c.T - c * d - u @ u.T
    b = d[:, None] * v.T + u @ direct.T
    expected = direct @ direct.T + b.T @ torch.linalg.solve(a, b)
    torch.testing.assert_close(factor.output_form(), expected, rtol=1e-9, atol=0)
    rows = torch.randn(4, system.neurons, dtype=torch.float64)
    torch.testing.assert_close(factor.solve(rows), torch.linalg.solve(a, rows.T).T, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(pencil.times_c(rows), rows @ c)
    torch.testing.assert_close(pencil.times_c_transposed(rows), rows @ c.T)


def test_disconnected_parts_are_all_kept():
    parts = [convolutional(length=40, seed=s, skip=False) for s in range(2)]
    sizes = parts[0].sizes
    joined = BlockSystem(
        parts[0].inputs * 2,
        3,
        tuple(2 * n for n in sizes[:2]),
        {0: torch.block_diag(*(p.U[0] for p in parts))},
        {(1, 0): torch.block_diag(*(p.C[1, 0] for p in parts))},
        {1: torch.cat([p.V[2] @ p.C[2, 1] for p in parts], 1)},
        None,
        ("a", "b"),
    )
    ordered, order = sparse_order(joined)
    assert sorted(order.tolist()) == list(range(joined.neurons))
    assert not any(k == 0 and j == ordered.sizes[-1] for k, j in ordered.C)


@pytest.fixture(scope="module")
def expected():
    """What is found in the order in which the neurons come."""
    with pytest.MonkeyPatch.context() as plain:
        for module in (solver, bound):
            plain.setattr(module, "sparse_order", lambda _: None)
        return solve(convolutional(), Compute(), Settings(tol=1e-3))


@pytest.mark.parametrize("single", [False, True])
def test_search_and_proof_give_the_same_bound_in_both_orders(monkeypatch, single, expected):
    system = convolutional()
    settings = Settings(tol=1e-3)
    monkeypatch.setattr(solver, "_SINGLE", 0 if single else 10**9)
    found = solve(system, Compute(), settings)
    assert found.upper == pytest.approx(expected.upper, rel=1e-3)
    # Trajectories are projected in another way, and at other iterates; below the optimum they stay.
    assert 0.0 <= found.gap < 0.5
    assert found.upper / (1 + found.gap) <= expected.upper
    d = torch.cat(found.multipliers)
    assert semidefinite(bordered(system, d, found.upper**2 * (1 + 1e-9)))
    assert not semidefinite(bordered(system, d, found.upper**2 * (1 - 1e-5)))


def test_the_proof_refuses_the_same_multipliers_in_both_orders(monkeypatch):
    system = convolutional()
    d = solve(system, Compute(), Settings(tol=1e-3)).multipliers
    values = [float(certified_upper(system, d))]
    low = [0.3 * part for part in d]
    assert certified_upper(system, low) is None
    monkeypatch.setattr(bound, "sparse_order", lambda _: None)
    values.append(float(certified_upper(system, d)))
    assert values[0] == pytest.approx(values[1], rel=1e-9)
    assert certified_upper(system, low) is None


@pytest.mark.parametrize("seed", range(10))
def test_any_order_of_any_system(monkeypatch, seed):
    """Small random systems, with levels of any size: sums, skips and dead neurons included."""
    monkeypatch.setattr(ordering, "_SMALLEST", 0)
    monkeypatch.setattr(ordering, "_LEAST_BLOCK", 1)
    monkeypatch.setattr(ordering, "_GAIN", math.inf)
    system = random_system(seed)
    found = sparse_order(system)
    if found is None:
        return
    ordered, order = found
    c, u, v, _ = dense(system)
    c2, u2, v2, _ = dense(ordered)
    assert torch.equal(c[order][:, order], c2)
    assert torch.equal(u[order], u2)
    assert torch.equal(v[:, order], v2)
