"""Confidence bounds and radii of smoothing: published numbers, and coverage in simulated experiments."""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import pytest
import torch
from torch import Tensor

from lipverify.errors import UsageError
from lipverify.robustness import Smoothing
from lipverify.robustness.smoothing.maps import entry_constant, simplex_map, sparsemax
from lipverify.robustness.smoothing.radius import (
    cohen_radius,
    lipschitz_radius,
    ramp,
    ramp_distance,
    smoothed_constant,
)
from lipverify.robustness.smoothing.sampling import _soft_bounds, smooth
from lipverify.robustness.smoothing.statistics import (
    bernstein_width,
    clopper_pearson_lower,
    clopper_pearson_upper,
)
from tests.tiers import tier


@pytest.mark.parametrize(
    ("k", "n", "alpha", "exact"),
    [
        (1000, 1000, 1e-3, 0.99311604842093377),
        (100000, 100000, 1e-3, 0.99993092483300939),
        (990, 1000, 1e-3, 0.97603618715531137),
        (0, 1000, 1e-3, 0.0),
        (60000, 100000, 1e-3, 0.595201),
        (90000, 100000, 1e-3, 0.897037),
    ],
)
def test_clopper_pearson_is_tight_and_never_above(k: int, n: int, alpha: float, exact: float) -> None:
    found = clopper_pearson_lower(k, n, alpha)
    assert found == pytest.approx(exact, abs=1e-6 if exact < 0.9 else 5e-7, rel=0)
    if exact > 0.9 and k != 90000:
        assert exact * (1 - 1e-11) <= found <= exact * (1 + 1e-15)
    assert clopper_pearson_upper(n - k, n, alpha) >= 1 - found


@pytest.mark.parametrize("k", [1, 3, 17, 49])
def test_clopper_pearson_solves_the_binomial_tail(k: int) -> None:
    n, alpha = 50, 0.05
    p = clopper_pearson_lower(k, n, alpha)
    tail = math.fsum(math.comb(n, i) * p**i * (1 - p) ** (n - i) for i in range(k, n + 1))
    assert alpha * (1 - 1e-9) <= tail <= alpha * (1 + 1e-9)


@pytest.mark.parametrize(("variance", "width"), [(0.01, 0.001410), (0.001, 0.000567)])
def test_empirical_bernstein(variance: float, width: float) -> None:
    assert bernstein_width(variance, 100_000, 1e-3) == pytest.approx(width, abs=5e-7)


@pytest.mark.parametrize(
    ("p", "constant", "radius"),
    [
        (0.99, None, 1.163174),
        (0.99, 1.0, 1.331211),
        (0.99, 0.5, 1.680118),
        (0.99, 4.0, 1.175168),
        (0.9, None, 0.640776),
        (0.9, 0.5, 0.998936),
        (0.999, 1.0, 1.750278),
    ],
)
def test_radii_of_the_literature(p: float, constant: float | None, radius: float) -> None:
    assert lipschitz_radius(p, 0.5, constant) == pytest.approx(radius, abs=1e-6)


def test_cohen_radius_of_a_thousandth() -> None:
    p = clopper_pearson_lower(100_000, 100_000, 1e-3)
    assert cohen_radius(p, 0.5) == pytest.approx(1.9057282816949759, abs=1e-9)
    assert cohen_radius(p, 0.5) <= 1.9057282816949759
    assert cohen_radius(0.4, 0.5) == 0.0
    assert cohen_radius(0.4, 1.0, 0.2) == pytest.approx(0.29413, abs=1e-5)


@pytest.mark.parametrize("constant", [0.05, 0.5, 3.0, 1e3, 1e9])
def test_the_constant_never_costs_and_disappears_when_large(constant: float) -> None:
    for p in (0.5001, 0.7, 0.99, 0.9999):
        found = lipschitz_radius(p, 0.25, constant)
        assert found >= cohen_radius(p, 0.25)
        if constant >= 1e9:
            assert found == pytest.approx(cohen_radius(p, 0.25), rel=1e-6)
        distance = ramp_distance(p, 0.25, constant)
        assert ramp(distance, 0.25, constant) == pytest.approx(p, abs=1e-12)


def test_the_ramp_is_the_expectation_of_a_clipped_line() -> None:
    from scipy.integrate import quad

    sigma, constant, m = 0.5, 1.3, 0.4

    def density(t: float) -> float:
        value = min(max(0.5 + constant * (m + sigma * t), 0.0), 1.0)
        return value * math.exp(-t * t / 2) / math.sqrt(2 * math.pi)

    kinks = [(-0.5 / constant - m) / sigma, (0.5 / constant - m) / sigma]
    assert ramp(m, sigma, constant) == pytest.approx(quad(density, -9, 9, points=kinks)[0], abs=1e-9)


def test_smoothed_constant() -> None:
    assert smoothed_constant(math.inf, 0.5) == pytest.approx(1 / (0.5 * math.sqrt(2 * math.pi)), rel=1e-9)
    # The ramp attains it: its slope in the middle.
    h = 1e-4
    slope = (ramp(h, 0.5, 1.0) - ramp(-h, 0.5, 1.0)) / (2 * h)
    assert smoothed_constant(1.0, 0.5) == pytest.approx(slope, abs=1e-7)


def test_simplex_maps(rng: np.random.Generator) -> None:
    z = torch.tensor(rng.standard_normal((200, 5)) * 2)
    for name in ("hardmax", "softmax", "sparsemax"):
        values = simplex_map(name, z, 1.5)
        assert torch.allclose(values.sum(1), torch.ones(200).double())
        assert bool((values >= 0).all())
    assert torch.allclose(
        sparsemax(torch.tensor([[0.3, 0.2, 0.5]]).double()), torch.tensor([[0.3, 0.2, 0.5]]).double()
    )
    assert float(simplex_map("softmax", torch.tensor([[float("nan"), 1.0]]), 1.0).sum()) == 0.0


@pytest.mark.parametrize("name", ["softmax", "sparsemax"])
def test_entry_constants_bound_every_slope(name: str, rng: np.random.Generator) -> None:
    """Linear logits z = W x: the constants of the differences are the norms of the differences of rows."""
    for temperature in (0.3, 1.0, 4.0):
        weight = torch.tensor(rng.standard_normal((4, 3)))
        differences = torch.stack([(weight[0] - weight[j]).norm() for j in (1, 2, 3)])
        bound = entry_constant(name, temperature, differences)
        assert bound is not None
        a = torch.tensor(rng.standard_normal((4000, 3))) * 10.0 ** rng.uniform(-1, 0.5)
        b = a + torch.tensor(rng.standard_normal((4000, 3))) * 1e-3
        change = simplex_map(name, a @ weight.T, temperature) - simplex_map(name, b @ weight.T, temperature)
        steepest = float((change[:, 0].abs() / (a - b).norm(dim=1)).max())
        assert steepest <= bound
        assert steepest > 0.05 * bound


def _two_classes(x: Tensor) -> Tensor:
    return torch.stack([x[:, 0], -x[:, 0]], dim=1)


@cache
def _exact_probability(x: float, sigma: float, name: str, temperature: float) -> float:
    nodes, weights = np.polynomial.hermite_e.hermegauss(160)
    z = torch.tensor(x + sigma * nodes)[:, None]
    values = simplex_map(name, _two_classes(z), temperature)[:, 0].numpy()
    return float((weights * values).sum() / math.sqrt(2 * math.pi))


def _true_radius(x: float, sigma: float) -> float:
    """The smoothed classifier is symmetric: its boundary is at 0, whatever the map."""
    return abs(x)


@pytest.mark.parametrize(
    "settings",
    [
        Smoothing(0.5, 60, 20, 0.05),
        Smoothing(0.5, 60, 20, 0.05, "bernstein", "softmax", (0.5, 2.0, 8.0, 30.0)),
        Smoothing(0.5, 60, 20, 0.05, "bernstein", "sparsemax", (0.5, 4.0)),
    ],
    ids=["counts", "softmax-search", "sparsemax-search"],
)
def test_miscoverage_is_at_most_alpha(settings: Smoothing) -> None:
    """Radii beyond the true one may occur with probability alpha at most; three standard errors are allowed."""
    experiments, wrong, x = tier(200, 10_000), 0, 0.12
    point = torch.tensor([x]).double()
    for seed in range(experiments):
        found = smooth(_two_classes, point, settings, seed, lambda label: torch.tensor([2.0]).double())
        if found.label != 0:
            wrong += found.radius > 0
        else:
            wrong += found.radius > _true_radius(x, settings.sigma)
    allowed = settings.alpha + 3 * math.sqrt(settings.alpha * (1 - settings.alpha) / experiments)
    assert wrong / experiments <= allowed


EXPERIMENTS, SAMPLES, SELECTED, ALPHA = 10_000, 60, 20, 0.05
ALLOWED = ALPHA + 3 * math.sqrt(ALPHA * (1 - ALPHA) / EXPERIMENTS)


def test_counts_miss_with_probability_alpha_at_most_in_ten_thousand_experiments() -> None:
    """All experiments at once; the array of bounds is the one that `clopper_pearson_lower` gives number by number."""
    from scipy.special import betaincinv

    k = np.arange(1, SAMPLES)
    table = np.concatenate(
        [[0.0], betaincinv(k, SAMPLES - k + 1, ALPHA), [math.exp(math.log(ALPHA) / SAMPLES)]]
    )
    ours = [clopper_pearson_lower(int(k), SAMPLES, ALPHA) for k in range(SAMPLES + 1)]
    assert ours == pytest.approx(table, rel=1e-9)
    rng, worst = np.random.default_rng(0), 0.0
    for p in (0.3, 0.5, 0.6, 0.9, 0.97, 0.999):
        hits = rng.binomial(SAMPLES, p, EXPERIMENTS)
        worst = max(worst, float((np.asarray(ours)[hits] > p).mean()))
        assert worst <= ALLOWED
    assert worst > ALPHA / 5  # the bound is not simply far below


@pytest.mark.parametrize("name", ["softmax", "sparsemax"])
@pytest.mark.parametrize("x", [0.02, 0.12, 0.4])
def test_soft_bounds_with_a_search_over_maps_hold_in_ten_thousand_experiments(name: str, x: float) -> None:
    """Label and temperature are the most flattering ones on the selection samples; the bounds come from other samples."""
    rng, sigma, temperatures = np.random.default_rng(1), 0.5, (0.5, 2.0, 8.0, 30.0)

    def values(samples: int, temperature: float, noise: np.ndarray) -> np.ndarray:  # type: ignore[type-arg]
        logits = _two_classes(torch.tensor(x + sigma * noise).reshape(-1, 1))
        return simplex_map(name, logits, temperature)[:, 0].numpy().reshape(EXPERIMENTS, samples)

    first, second = (rng.standard_normal((EXPERIMENTS, size)) for size in (SELECTED, SAMPLES))
    means = np.stack([values(SELECTED, t, first).mean(1) for t in temperatures])
    chosen = np.abs(means - 0.5).argmax(0)
    rows = np.arange(EXPERIMENTS)
    label = (means[chosen, rows] < 0.5).astype(int)
    scores = np.stack([values(SAMPLES, t, second) for t in temperatures])[chosen, rows]
    exact = np.array([_exact_probability(x, sigma, name, t) for t in temperatures])[chosen]
    scores = np.where(label[:, None] == 0, scores, 1.0 - scores)
    exact = np.where(label == 0, exact, 1.0 - exact)
    mean, variance = scores.mean(1), scores.var(1, ddof=1)
    log = math.log(4.0 / ALPHA)  # half of alpha for the label, half for its one rival
    width = np.sqrt(2.0 * variance * log / SAMPLES) + 7.0 * log / (3.0 * (SAMPLES - 1))
    lower = np.clip(mean - width, 0.0, 1.0 - 2.0**-40)
    rival = np.minimum(1.0 - mean + width, 1.0 - lower)
    missed = (lower > exact) | (rival < 1.0 - exact)
    assert float(missed.mean()) <= ALLOWED
    # The arrays are what the package computes.
    settings = Smoothing(sigma, SAMPLES, SELECTED, ALPHA, "bernstein", name, temperatures)
    for row in range(40):
        both = torch.tensor(np.stack([scores[row], 1.0 - scores[row]], axis=1))
        found = _soft_bounds(both.sum(0), (both * both).sum(0), SAMPLES, 0, settings)
        assert found == pytest.approx((lower[row], rival[row]), abs=1e-9)


def test_a_bound_without_correction_would_be_caught() -> None:
    """The same experiments refute the sample mean in the place of a bound."""
    wrong = 0
    generator = np.random.default_rng(0)
    for _ in range(300):
        hits = int(generator.binomial(60, 0.6))
        wrong += hits / 60 > 0.6
    assert wrong / 300 > 0.05 + 3 * math.sqrt(0.05 * 0.95 / 300)


def test_results_do_not_depend_on_the_batch() -> None:
    point = torch.tensor([0.3]).double()
    reference = smooth(_two_classes, point, Smoothing(0.5, 1300, 100, 0.01, batch=1000), 5)
    for batch in (1, 7, 250):
        assert smooth(_two_classes, point, Smoothing(0.5, 1300, 100, 0.01, batch=batch), 5) == reference

    calls = []

    def short_of_memory(x: Tensor) -> Tensor:
        calls.append(len(x))
        if len(x) > 90:
            raise MemoryError
        return _two_classes(x)

    assert smooth(short_of_memory, point, Smoothing(0.5, 1300, 100, 0.01), 5) == reference
    assert max(calls) > 90
    assert calls[-1] <= 90


@pytest.mark.parametrize(
    "changes",
    [
        {"sigma": 0.0},
        {"sigma": math.nan},
        {"alpha": 0.0},
        {"samples": 1},
        {"bound": "bernstein"},
        {"simplex_map": "softmax"},
        {"temperatures": ()},
        {"simplex_map": "sorted"},
    ],
)
def test_settings_that_make_no_sense(changes: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        Smoothing(**changes)  # type: ignore[arg-type]
