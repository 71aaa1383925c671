"""How a graph reads the inputs of a model file that has several, or that leaves sizes open."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from numpy.typing import NDArray

from lipverify.ir.op import Shape


@dataclass(frozen=True)
class Reading:
    """inputs: names and sizes, in the file's own axes, of those that vary; several are one vector, one after the other.

    fixed: stored tensors that take the place of the others. steps: of the sequence, where the user gave them.
    """

    inputs: tuple[tuple[str, Shape], ...]
    fixed: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    steps: int | None = None

    def to_json(self) -> dict[str, Any]:
        """For documents: of what is fixed the sizes, and the number where it is one for all entries."""
        return {
            "inputs": [{"name": name, "shape": list(shape)} for name, shape in self.inputs],
            "fixed": [
                {"name": name, "shape": list(array.shape), "value": _one(array)}
                for name, array in self.fixed.items()
            ],
            "steps": self.steps,
        }


def _one(array: NDArray[Any]) -> float | None:
    """The number that every entry is; None where they differ, or there is none."""
    alike = array.size > 0 and bool((array == array.flat[0]).all())
    return float(array.flat[0]) if alike else None
