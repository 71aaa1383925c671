"""tanh and the logistic function in integers, against mpmath in many more digits."""

from __future__ import annotations

from collections.abc import Callable

import mpmath
import numpy as np
import pytest

from lipverify.linalg import saturating


def _logistic(x: mpmath.mpf) -> mpmath.mpf:
    return 1 / (1 + mpmath.exp(-x))


@pytest.mark.parametrize(
    ("function", "truth"),
    [(saturating.tanh, mpmath.tanh), (saturating.logistic, _logistic)],
    ids=["tanh", "logistic"],
)
@pytest.mark.parametrize("places", [20, 80, 240, 480])
def test_within_the_error_claimed(
    function: Callable[[int, int], int],
    truth: Callable[[mpmath.mpf], mpmath.mpf],
    places: int,
    rng: np.random.Generator,
) -> None:
    with mpmath.workprec(4 * places + 900):
        for scale in (1e-12, 1e-3, 0.3, 3.0, 30.0, 300.0):
            for share in (0.0, -1.0, 1.0, *rng.uniform(-1, 1, 20)):
                x = int(mpmath.floor(mpmath.mpf(scale * share) * 2**places))
                off = abs(function(x, places) - truth(mpmath.mpf(x) / 2**places) * 2**places)
                assert off <= saturating.ERROR


def test_next_to_the_limits() -> None:
    """Where the series ends and the limit begins."""
    places = 60
    with mpmath.workprec(1000):
        for x in range(20 << places, 45 << places, 1 << (places - 2)):
            for sign in (-1, 1):
                v = sign * x
                assert (
                    abs(saturating.tanh(v, places) - mpmath.tanh(mpmath.mpf(v) / 2**places) * 2**places)
                    <= saturating.ERROR
                )
                assert (
                    abs(saturating.logistic(v, places) - _logistic(mpmath.mpf(v) / 2**places) * 2**places)
                    <= saturating.ERROR
                )


def test_more_places_than_the_proof_covers_are_refused() -> None:
    with pytest.raises(ValueError, match="places"):
        saturating.tanh(1, 1000)
