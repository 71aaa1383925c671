"""Dense operator norms: always above the truth, sharp where exact, and nothing else passes for a bound."""

import itertools
import math

import pytest
import torch

from lipverify.errors import UsageError
from lipverify.linalg import dense
from lipverify.linalg.dense import (
    NORMS,
    gram_norm,
    interpolation_bound,
    operator_norm,
    operator_norm_upper,
    quadratic_bound,
    threshold_bound,
)

# LAPACK's own backward error: a reference value may lie this far (relative) above the truth.
REFERENCE = 1e-13


def gaussian(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def singular(a):
    return torch.linalg.svdvals(a)[..., 0]


def vector_norm(x, norm):
    return torch.linalg.vector_norm(x, {"l1": 1, "l2": 2, "linf": math.inf}[norm], dim=0)


@pytest.mark.parametrize(
    "shape", [(1, 7), (7, 1), (5, 5), (3, 40), (40, 3), (64, 64), (4, 6, 5), (2, 3, 5, 8)]
)
@pytest.mark.parametrize("is_complex", [False, True])
def test_l2_encloses_the_singular_value(shape, is_complex):
    a = torch.complex(gaussian(*shape), gaussian(*shape, seed=1)) if is_complex else gaussian(*shape)
    bound, reference = operator_norm(a, "l2", "l2"), singular(a)
    assert bound.shape == shape[:-2]
    assert bool((bound >= reference * (1 - REFERENCE)).all())
    assert bool((bound <= reference * (1 + 1e-11)).all())
    assert bool((gram_norm(a, 8) >= reference * (1 - REFERENCE)).all())
    assert bool((interpolation_bound(a) >= bound * (1 - 1e-11)).all())


def test_inflation_at_512():
    for a in (
        gaussian(512, 512),
        torch.linalg.qr(gaussian(512, 512))[0],
        gaussian(512, 1) @ gaussian(1, 512),
    ):
        reference = singular(a).item()
        bound = operator_norm(a, "l2", "l2").item()
        assert reference * (1 - REFERENCE) <= bound <= reference * (1 + 1e-9)


@pytest.mark.parametrize(("norm_in", "norm_out"), list(itertools.product(NORMS, NORMS)))
@pytest.mark.parametrize("shape", [(6, 5), (3, 30), (30, 3), (30, 30)])
def test_no_vector_is_stretched_more(norm_in, norm_out, shape):
    a = gaussian(*shape)
    bound = operator_norm(a, norm_in, norm_out).item()
    x = torch.cat([gaussian(shape[1], 4000, seed=2), gaussian(shape[1], 4000, seed=3).sign()], dim=1)
    x = torch.cat([x, torch.eye(shape[1], dtype=torch.float64), a.T], dim=1)
    ratio = (vector_norm(a @ x, norm_out) / vector_norm(x, norm_in)).max().item()
    assert ratio <= bound * (1 + 1e-14)
    assert bound == pytest.approx(
        operator_norm(a.T, *(dual(n) for n in (norm_out, norm_in))).item(), rel=1e-12
    )


def dual(norm):
    return {"l1": "linf", "l2": "l2", "linf": "l1"}[norm]


@pytest.mark.parametrize("norms", [("linf", "l1"), ("linf", "l2"), ("l2", "l1")])
def test_enumerated_pairs_are_exact(norms):
    a = gaussian(5, 6)
    side = a if norms[0] == "linf" else a.T
    signs = torch.tensor(list(itertools.product([-1.0, 1.0], repeat=side.shape[1])), dtype=torch.float64).T
    exact = vector_norm(side @ signs, norms[1] if norms[0] == "linf" else "l2").max().item()
    assert exact * (1 - REFERENCE) <= operator_norm(a, *norms).item() <= exact * (1 + 1e-12)


@pytest.mark.parametrize(("norm_in", "norm_out"), list(itertools.product(NORMS, NORMS)))
@pytest.mark.parametrize("exponent", [-1010, -996, 0, 996, 1000])
def test_scaling_by_a_power_of_two_is_exact(norm_in, norm_out, exponent):
    a = gaussian(6, 4).div(64)
    factor = 2.0**exponent
    expected = operator_norm(a, norm_in, norm_out).item() * factor
    found = operator_norm(a * factor, norm_in, norm_out).item()
    assert expected * (1 - 1e-12) <= found <= expected * (1 + 1e-12)


def test_denormal_entries_are_not_lost():
    tiny = torch.tensor([[5e-324, 5e-324], [0.0, 5e-324]], dtype=torch.float64)
    assert operator_norm(tiny, "l2", "l2").item() >= 1.618 * 5e-324
    mixed = torch.tensor([[1e300, 0.0], [0.0, 1e-300]], dtype=torch.float64)
    assert operator_norm(mixed, "l2", "l2").item() == 1e300


def test_overflow_is_an_error_or_a_logarithm():
    huge = torch.full((20, 20), 1e308, dtype=torch.float64)
    with pytest.raises(OverflowError):
        operator_norm(huge, "l2", "l2")
    assert 309.3010299956 < operator_norm_upper(huge, "l2", "l2").log10() < 309.3010299957


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (0, 0), (2, 0, 3), (4, 3), (2, 3, 3)])
@pytest.mark.parametrize(("norm_in", "norm_out"), list(itertools.product(NORMS, NORMS)))
def test_empty_and_zero_are_exactly_zero(shape, norm_in, norm_out):
    zero = torch.zeros(shape, dtype=torch.float64)
    assert operator_norm(zero, norm_in, norm_out).tolist() == torch.zeros(shape[:-2]).tolist()
    assert gram_norm(zero).tolist() == torch.zeros(shape[:-2]).tolist()


def test_zero_blocks_beside_others():
    batch = torch.stack([torch.zeros(3, 3), torch.eye(3), torch.ones(3, 3)]).double()
    assert operator_norm(batch, "l2", "l2").tolist() == pytest.approx([0.0, 1.0, 3.0], rel=1e-12)
    assert operator_norm(batch, "l2", "l2")[0].item() == 0.0


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("function", [gram_norm, interpolation_bound, lambda a: operator_norm(a, "l1", "l2")])
def test_non_finite_entries_are_refused(bad, function):
    a = torch.ones(3, 4, dtype=torch.float64)
    a[1, 2] = bad
    with pytest.raises(UsageError, match=r"non-finite entry at \[1, 2\]"):
        function(a)


def test_other_refusals():
    with pytest.raises(UsageError, match="unknown norm 'l3'"):
        operator_norm(torch.ones(2, 2), "l3", "l2")
    with pytest.raises(UsageError, match="needs a matrix"):
        operator_norm(torch.ones(3), "l2", "l2")
    with pytest.raises(UsageError, match="floating point"):
        operator_norm(torch.ones(3, 3, dtype=torch.int64), "l2", "l2")


def test_lower_precision_is_converted_exactly():
    a = gaussian(5, 5).to(torch.float32)
    assert operator_norm(a, "l2", "l2").item() == operator_norm(a.double(), "l2", "l2").item()


def test_thresholds_are_proved_only_above_the_norm():
    a = gaussian(40, 12, 9)
    a = torch.complex(a, gaussian(40, 12, 9, seed=5))
    reference = singular(a)
    bound, proved = threshold_bound(a, reference * (1 + 1e-9))
    assert bool(proved.all())
    assert bool((bound >= reference * (1 - REFERENCE)).all())
    assert bool((bound <= reference * (1 + 2e-9)).all())
    below, claimed = threshold_bound(a, reference * (1 - 1e-9))
    # A factor of an indefinite matrix does not exist; were one found, the residual would keep the bound sound.
    assert bool((below[claimed] >= reference[claimed] * (1 - REFERENCE)).all())
    assert not bool(claimed.any())


def test_power_iteration_would_be_caught():
    """The planted wrong rule: |W x| / |x| after power steps lies below the norm, on Gaussian and flat spectra."""
    orthogonal = torch.linalg.qr(gaussian(200, 200))[0]
    flat = orthogonal @ torch.diag(torch.linspace(0.99, 1.0, 200, dtype=torch.float64))
    for a, steps in ((gaussian(200, 200), 10), (flat, 100)):
        x = gaussian(200, 1, seed=9)
        for _ in range(steps):
            x = a.T @ (a @ x)
            x = x / x.norm()
        estimate = (a @ x).norm().item()
        assert estimate < singular(a).item() * (1 - 1e-4)
        assert operator_norm(a, "l2", "l2").item() >= singular(a).item() * (1 - REFERENCE)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_device_of_the_input_is_kept():
    a = gaussian(3, 40, 30)
    found = operator_norm(a.cuda(), "l2", "l2")
    assert found.is_cuda
    assert bool((found.cpu() >= singular(a) * (1 - REFERENCE)).all())
    assert bool((found.cpu() <= singular(a) * (1 + 1e-10)).all())


def test_a_threshold_of_a_quadratic_form_is_proved_above_its_largest_value_only() -> None:
    generator = torch.Generator().manual_seed(3)
    a = torch.randn(3, 40, 12, generator=generator, dtype=torch.float64)
    gram = a.mT @ a
    top = torch.linalg.eigvalsh(gram)[..., -1]
    bound, proved = quadratic_bound(gram, top * (1 + 1e-9))
    assert bool(proved.all())
    assert bool((bound >= top).all())
    assert bool((bound <= top * (1 + 2e-9)).all())
    # What is not symmetric counts by its symmetric half.
    turn = torch.randn(12, 12, generator=generator, dtype=torch.float64)
    bound, proved = quadratic_bound(gram + 1e-3 * (turn - turn.mT), top * (1 + 1e-9))
    assert bool((bound[proved] >= top[proved] * (1 + 1e-9)).all())
    below, claimed = quadratic_bound(gram, top * (1 - 1e-6))
    assert bool((below[claimed] >= top[claimed]).all())
    assert not bool(claimed.any())


def test_equal_matrices_are_bounded_once_and_what_is_kept_is_nobodys_to_change(monkeypatch):
    calls = []
    anew = dense._bound_anew
    monkeypatch.setattr(dense, "_bound_anew", lambda *asked: calls.append(1) or anew(*asked))
    a = gaussian(7, 9, seed=11)
    first = operator_norm(a, "l2", "l2")
    right = first.clone()
    first += 1.0
    assert torch.equal(operator_norm(a.clone(), "l2", "l2"), right)
    assert torch.equal(operator_norm(8.0 * a, "l2", "l2"), 8.0 * right)
    assert len(calls) == 1
    other = a.clone()
    other[3, 4] = torch.nextafter(other[3, 4], torch.tensor(9.0, dtype=torch.float64))
    for matrix, norms in ((other, ("l2", "l2")), (a.reshape(9, 7), ("l2", "l2")), (a, ("l2", "linf")),
                          (torch.complex(a, 0.0 * a), ("l2", "l2"))):  # fmt: skip
        operator_norm(matrix, *norms)
    assert len(calls) == 5
    monkeypatch.setattr(dense, "_KEPT_AT_MOST", 3)
    for seed in range(5):
        operator_norm(gaussian(3, 3, seed=seed), "l1", "l1")
    assert len(dense._KEPT) == 3
