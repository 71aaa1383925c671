"""Randomised smoothing of any classifier: class chosen on one set of noise, probabilities bounded on another.

Every block of noise has its own seed, so that batch size and order change nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lipverify.errors import UsageError
from lipverify.linalg.rounding import gamma
from lipverify.robustness.smoothing.maps import entry_constant, simplex_map
from lipverify.robustness.smoothing.radius import lipschitz_radius
from lipverify.robustness.smoothing.settings import Smoothing
from lipverify.robustness.smoothing.statistics import bernstein_width, clopper_pearson_lower

Classifier = Callable[[Tensor], Tensor]
BLOCK = 500
"""Samples that share a seed."""


@dataclass(frozen=True)
class Smoothed:
    """The class of the smoothed classifier at one point and its radius; radius 0 is an abstention.

    Statement: with probability at least 1 - alpha over the noise drawn, no d with |d|_2 < radius changes the label of
        x -> argmax E map(f(x + N(0, sigma^2 I))).
    """

    label: int
    radius: float
    radius_without_constant: float
    lower: float
    """Lower bound of the label's probability."""
    rival: float
    """Upper bound of every other probability."""
    temperature: float
    constant: float | None
    statistics: dict[str, Any]


def smooth(
    classifier: Classifier,
    x: Tensor,
    settings: Smoothing,
    seed: int = 0,
    differences: Callable[[int], Tensor] | None = None,
) -> Smoothed:
    """The certified l2 radius of the smoothed classifier at one point.

    Source: Cohen et al. 2019, algorithm CERTIFY, for counts; for soft maps the empirical Bernstein bound of every class, and
        with `differences` the constant of the maps (Delattre et al. 2024). Class and temperature are chosen on samples that
        are not used again, so that no correction is due for the search; the bounds of one point hold together (alpha / 2 for
        the label, the rest shared by its rivals).
    Sound when: the noise is independent and Gaussian; the classifier is a function of its input alone.

    Args:
        classifier: [batch, *shape] -> logits [batch, classes]. x: [*shape].
        differences: label -> certified l2 constants of f_label - f_j for all rivals j, or None.

    Raises:
        UsageError: the classifier gives no rows of at least two outputs.
    """
    first = list(_logits(classifier, x, settings, settings.selection_samples, 2 * seed))
    selection = torch.cat(first)
    label, temperature = _choose(selection, settings, differences)
    count, hits = 0, 0
    total = torch.zeros(selection.shape[1], dtype=torch.float64)
    squares = total.clone()
    for logits in _logits(classifier, x, settings, settings.samples, 2 * seed + 1):
        values = simplex_map(settings.simplex_map, logits, temperature)
        count += len(values)
        hits += int((values[:, label] == 1.0).sum()) if settings.simplex_map == "hardmax" else 0
        total = total + values.sum(dim=0)
        squares = squares + (values * values).sum(dim=0)
    statistics: dict[str, Any] = {
        "samples": count,
        "selection_samples": len(selection),
        "alpha": settings.alpha,
        "confidence": 1.0 - settings.alpha,
        "sigma": settings.sigma,
        "bound": settings.bound,
        "map": settings.simplex_map,
        "temperature": temperature,
        "seed": seed,
        "generator": "torch.Generator, Mersenne twister 19937, on the CPU",
    }
    if settings.bound == "clopper-pearson":
        statistics["successes"] = hits
        lower = clopper_pearson_lower(hits, count, settings.alpha)
        rival = 1.0 - lower
    else:
        lower, rival = _soft_bounds(total, squares, count, label, settings)
    constant = None
    if differences is not None:
        constant = entry_constant(settings.simplex_map, temperature, differences(label))
    plain, radius = (_radius(lower, rival, settings.sigma, known) for known in (None, constant))
    statistics |= {"lower": lower, "rival": rival, "constant": constant, "radius_without_constant": plain}
    return Smoothed(label, radius, plain, lower, rival, temperature, constant, statistics)


def _radius(lower: float, rival: float, sigma: float, constant: float | None) -> float:
    """The larger of the radius against one half and the one against the rivals."""
    if not lower > rival:
        return 0.0
    against_rival = lipschitz_radius(lower, sigma, constant, rival)
    return max(against_rival, lipschitz_radius(lower, sigma, constant)) if lower > 0.5 else against_rival


def _soft_bounds(
    total: Tensor, squares: Tensor, count: int, label: int, settings: Smoothing
) -> tuple[float, float]:
    """Lower bound of the label's mean and upper bound of every rival's; all hold together with probability 1 - alpha."""
    mean = total / count
    # Sums of n numbers in [0, 1] and of the map itself: a generous multiple of gamma_n covers their rounding.
    slack = 16.0 * gamma(count + 64)
    variance = ((squares - count * mean * mean) / (count - 1)).clamp_min(0.0) + slack
    rivals = [j for j in range(len(mean)) if j != label]
    lower = float(mean[label]) - bernstein_width(float(variance[label]), count, settings.alpha / 2) - slack
    share = settings.alpha / (2 * len(rivals))
    uppers = [float(mean[j]) + bernstein_width(float(variance[j]), count, share) + slack for j in rivals]
    lower = min(max(lower, 0.0), 1.0 - 2.0**-40)
    return lower, min(max(uppers), 1.0 - lower)


def _choose(
    selection: Tensor, settings: Smoothing, differences: Callable[[int], Tensor] | None
) -> tuple[int, float]:
    """Class and temperature that look best on the selection samples; nothing here is a bound."""
    best: tuple[float, int, float] | None = None
    for temperature in settings.temperatures:
        mean = simplex_map(settings.simplex_map, selection, temperature).mean(dim=0)
        order = mean.argsort(descending=True)
        label, second = int(order[0]), float(mean[order[1]])
        constant = None
        if differences is not None:
            constant = entry_constant(settings.simplex_map, temperature, differences(label))
        first = min(float(mean[label]), 1.0 - 1e-6)
        guess = (
            lipschitz_radius(first, settings.sigma, constant, max(second, 1e-6)) if first > second else 0.0
        )
        if best is None or guess > best[0]:
            best = (guess, label, temperature)
    assert best is not None
    return best[1], best[2]


def _logits(
    classifier: Classifier, x: Tensor, settings: Smoothing, samples: int, seed: int
) -> Iterator[Tensor]:
    """Logits at noisy copies of x, block by block. A batch that does not fit into memory is halved."""
    batch = min(settings.batch, BLOCK)
    for block, start in enumerate(range(0, samples, BLOCK)):
        size = min(BLOCK, samples - start)
        generator = torch.Generator(device="cpu").manual_seed((seed * 1_000_003 + block) % (1 << 62))
        noise = torch.randn(BLOCK, *x.shape, generator=generator, dtype=torch.float64)[:size]
        noisy = (x.cpu().double() + settings.sigma * noise).to(x)
        done: list[Tensor] = []
        while sum(map(len, done)) < size:
            begin = sum(map(len, done))
            try:
                with torch.no_grad():
                    found = classifier(noisy[begin : begin + batch])
            except (MemoryError, torch.OutOfMemoryError):
                if batch == 1:
                    raise
                batch = (batch + 1) // 2
                continue
            if found.ndim != 2 or found.shape[1] < 2:
                raise UsageError(f"a classifier gives [batch, classes >= 2], not {list(found.shape)}")
            done.append(found.cpu())
        yield torch.cat(done)
