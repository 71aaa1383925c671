"""Why a network may get every label wrong: other numbers for the classes, other units, another order of the axes."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from lipverify.loading.data.fitting import Points

ENOUGH = 10
"""Points that must all be wrong before that is a sign of another reading and not of hard points."""
SAMPLE = 256
_RIGHT = 0.5
"""Share of labels that another reading must get right to be suggested."""

Predict = Callable[[NDArray[np.float64]], NDArray[np.int64]]


def all_wrong(x: NDArray[np.float64], y: NDArray[np.int64], predict: Predict) -> bool:
    """Whether there are labels enough to say, and every one is wrong; ends at the first that is right, some points at once."""
    parts = (slice(k, k + SAMPLE) for k in range(0, len(y), SAMPLE))
    return len(y) >= ENOUGH and not any(bool((predict(x[part]) == y[part]).any()) for part in parts)


def label_hint(points: Points, predict: Predict) -> str | None:
    """A sentence where every label is wrong, None where some are right or there are too few to say.

    predict: x [samples, ...] -> the output that is largest [samples].
    """
    if points.y is None or not all_wrong(points.x, points.y, predict):
        return None
    x, y = points.x, points.y
    found = predict(x)
    best = max(_others(points, x, y, found, predict), key=lambda other: other[0], default=(0.0, ""))
    said = f"all {len(y)} labels are wrong, which says more about how the data is read than about the network"
    if best[0] >= _RIGHT:
        return f"{said}; {best[1]}, {best[0]:.0%} of them are right"
    return (
        f"{said}; are they in the order of the outputs (--first-label), and the points in its units (--scale, --mean, --std)? "
        "--data-y none leaves labels out"
    )


def _others(
    points: Points, x: NDArray[np.float64], y: NDArray[np.int64], found: NDArray[np.int64], predict: Predict
) -> Iterator[tuple[float, str]]:
    """Other readings: the share of labels that are right with each, and how it is asked for."""
    first = points.asked.first_label
    for shift in (1, -1):
        yield _share(found == y - shift), f"with --first-label {first + shift}"
    if found.max(initial=0) <= 1:
        yield _share(found == 1 - y), "with the two classes exchanged (change the labels)"
    size = float(np.abs(x).max())
    for factor, words in ((1 / 255, "1/255"), (255.0, "255"), (1 / 16, "1/16"), (16.0, "16")):
        if not points.asked.rescaled and 0.2 < size * factor < 300:
            yield _share(predict(x * factor) == y), f"with --scale {words}"
    if not points.asked.rescaled and size > 0:
        spread = x.std(0)
        standard = (x - x.mean(0)) / np.where(spread > 0, spread, 1.0)
        yield (
            _share(predict(standard) == y),
            "with every entry standardised (give --mean and --std of the training data)",
        )
    if x.ndim == 4 and x.shape[1] == 3:
        yield (
            _share(predict(np.ascontiguousarray(x[:, ::-1])) == y),
            "with the colours in reverse order (BGR, change the file)",
        )
    if x.ndim == 4 and x.shape[2] == x.shape[3]:
        turned = np.ascontiguousarray(x.swapaxes(2, 3))
        yield _share(predict(turned) == y), "with height and width exchanged (change the file)"


def _share(right: NDArray[np.bool_]) -> float:
    return float(right.mean())
