"""Settings of randomised smoothing."""

from __future__ import annotations

import math
from dataclasses import dataclass

from lipverify.errors import UsageError


@dataclass(frozen=True)
class Smoothing:
    """Randomised smoothing with Gaussian noise.

    sigma: standard deviation, in input units; samples, selection_samples: of estimation and of selection, drawn apart; alpha:
    probability, for one point, that its radius is too large; bound: `clopper-pearson` for the counts of the most probable
    class, or `bernstein` for soft outputs through a simplex map; temperatures: of the map, more than one are searched on the
    selection samples; simplex_map: `hardmax`, `softmax` or `sparsemax`.
    """

    sigma: float = 0.25
    samples: int = 10_000
    selection_samples: int = 100
    alpha: float = 1e-3
    bound: str = "clopper-pearson"
    simplex_map: str = "hardmax"
    temperatures: tuple[float, ...] = (1.0,)
    batch: int = 1000

    def __post_init__(self) -> None:
        if not (math.isfinite(self.sigma) and self.sigma > 0):
            raise UsageError(f"the noise needs a standard deviation > 0, not {self.sigma}")
        if not 0 < self.alpha < 0.5:
            raise UsageError(f"alpha lies between 0 and 1/2, not {self.alpha}")
        if self.samples < 2 or self.selection_samples < 1 or self.batch < 1:
            raise UsageError("smoothing needs at least 2 samples and 1 selection sample")
        if self.simplex_map not in {"hardmax", "softmax", "sparsemax"}:
            raise UsageError(
                f"unknown simplex map {self.simplex_map!r}; choose hardmax, softmax or sparsemax"
            )
        if self.bound not in {"clopper-pearson", "bernstein"}:
            raise UsageError(f"unknown bound {self.bound!r}; choose clopper-pearson or bernstein")
        if (self.bound == "clopper-pearson") != (self.simplex_map == "hardmax"):
            raise UsageError("clopper-pearson counts hard labels; soft maps need bernstein")
        if not self.temperatures or any(not (math.isfinite(t) and t > 0) for t in self.temperatures):
            raise UsageError("temperatures are positive numbers")


def parse_temperatures(text: str) -> tuple[float, ...]:
    """Positive numbers with commas between them.

    Raises:
        UsageError: anything else.
    """
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise UsageError(f"temperatures are numbers with commas between them, not {text[:40]!r}") from None
