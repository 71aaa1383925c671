"""How a file of points is to be read, and what the readers hand on."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lipverify.errors import UsageError

NO_LABELS = "none"
"""The word of --data-y that leaves labels out."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What the user says about a file of points.

    x: names of the array, or of the columns in order; y: of the label array or column, a position from 0 (from the end where
    negative), or `none`. scale, mean, std: x becomes (x * scale - mean) / std, the units of the model's input; mean and std hold
    one number, one for each channel or one for each entry. first_label: the label of output 0. limit: points that are kept.

    Raises:
        UsageError: a number that makes no sense.
    """

    x: tuple[str, ...] = ()
    y: str | None = None
    scale: float = 1.0
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    first_label: int = 0
    limit: int | None = None

    def __post_init__(self) -> None:
        if not (np.isfinite(self.scale) and self.scale != 0):
            raise UsageError(f"--scale takes a finite number other than 0, not {self.scale}")
        if not all(np.isfinite(m) for m in self.mean) or not all(s > 0 and np.isfinite(s) for s in self.std):
            raise UsageError("--mean takes finite numbers, --std numbers above 0")

    @property
    def rescaled(self) -> bool:
        """Whether x is not taken as it is."""
        return self.scale != 1.0 or bool(self.mean or self.std)

    def to_json(self) -> dict[str, Any]:
        """What was asked for, without what was left as it is; without the limit, which other fields of documents say."""
        blank = asdict(Settings())
        return {
            name: value for name, value in asdict(replace(self, limit=None)).items() if value != blank[name]
        }


@dataclass(frozen=True)
class Raw:
    """What a file holds, before it is known to fit a model.

    x [samples, ...]: numbers of any plain type; y [samples]: numbers, names of classes, or rows with a single 1; features: names
    of the columns of x; notes: what was decided while reading.
    """

    x: NDArray[np.generic]
    y: NDArray[np.generic] | None
    path: str
    sha256: str
    features: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()
    """Names of the classes in the order of their labels, where y holds positions in it."""
