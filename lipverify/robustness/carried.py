"""What carries a radius: for every rival the ball whose linear bound the margin begins with, and constants from there outward.

Kept while radii are searched, so that a certificate can be written from it (`robustness.proof`); nothing here is trusted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from lipverify.analyzers.lipsdp.neurons import Layer
from lipverify.robustness.branching import Forest, Hint

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class Outward:
    """One shell: from the radius before to `end` the margin falls with the constant of a ball, or (None) of the whole space."""

    end: float
    ball: float | None
    slope: float
    """The constant, as the search found it."""


@dataclass(frozen=True)
class Path:
    """The margin over one rival: its linear bound on the ball of radius `start` (0: the value at the point), then shells."""

    start: float
    shells: tuple[Outward, ...]


class Multipliers(NamedTuple):
    """Multipliers of every neuron of every layer, 0 where the slope is known, and the slopes that they were found for.

    weights [inputs]: of the inputs, for linf; None: ones.
    """

    diagonals: tuple[Array, ...]
    slopes: tuple[tuple[Array, Array], ...]
    weights: Array | None = None


@dataclass(frozen=True)
class Carried:
    """One path for every rival, in the order of `pairs.rivals`; multipliers of constants by ball and rival; trees by ball."""

    paths: tuple[Path, ...]
    multipliers: Mapping[tuple[float | None, int], Multipliers] = field(default_factory=dict)
    trees: Mapping[float, Forest] = field(default_factory=dict)
    """What shows margins to be positive on a ball, where ranges do not."""

    def to_json(self) -> dict[str, Any]:
        """Exact: Python writes float64 so that it reads back as itself."""
        paths = [[p.start, [[s.end, s.ball, s.slope] for s in p.shells]] for p in self.paths]
        different = list({id(m): m for m in self.multipliers.values()}.values())
        place = {id(m): k for k, m in enumerate(different)}
        of = [[ball, rival, place[id(m)]] for (ball, rival), m in self.multipliers.items()]
        written = [
            {
                "diagonals": [d.tolist() for d in m.diagonals],
                "slopes": [[e.tolist() for e in s] for s in m.slopes],
            }
            for m in different
        ]
        trees = [
            [radius, rival, [[list(path), _hint(hint)] for path, hint in tree.items()]]
            for radius, forest in self.trees.items()
            for rival, tree in forest.items()
        ]
        return {"paths": paths, "multipliers": written, "of": of, "trees": trees}

    @staticmethod
    def from_json(document: Mapping[str, Any]) -> Carried:
        """What `to_json` wrote."""
        paths = tuple(
            Path(start, tuple(Outward(end, ball, slope) for end, ball, slope in shells))
            for start, shells in document["paths"]
        )
        known = [
            Multipliers(
                tuple(np.array(d, dtype=np.float64) for d in m["diagonals"]),
                tuple(
                    (np.array(low, dtype=np.float64), np.array(high, dtype=np.float64))
                    for low, high in m["slopes"]
                ),
            )
            for m in document["multipliers"]
        ]
        trees: dict[float, Forest] = {}
        for radius, rival, leaves in document.get("trees", []):
            tree = {tuple((n, s) for n, s in path): _read_hint(hint) for path, hint in leaves}
            trees.setdefault(radius, {})[rival] = tree
        return Carried(paths, {(ball, rival): known[place] for ball, rival, place in document["of"]}, trees)


def _hint(hint: Hint | None) -> Any:
    if hint is None:
        return None
    return [hint.numbers.tolist(), hint.slopes.tolist(), hint.betas.tolist()]


def _read_hint(written: Any) -> Hint | None:
    if written is None:
        return None
    numbers, slopes, betas = written
    return Hint(
        torch.tensor(numbers, dtype=torch.int64),
        torch.tensor(slopes, dtype=torch.float32),
        torch.tensor(betas, dtype=torch.float64),
    )


def whole_layers(
    layers: Sequence[Layer], diagonals: Sequence[Tensor], exponents: Sequence[int]
) -> Multipliers:
    """Multipliers of the neurons with unknown slopes, times 4^exponent, as those of whole layers."""
    left, found, slopes = iter(zip(diagonals, exponents, strict=True)), [], []
    for layer in layers:
        whole = np.zeros(layer.size)
        if len(layer.free):
            diagonal, power = next(left)
            with np.errstate(over="ignore"):
                whole[layer.free.cpu().numpy()] = np.ldexp(
                    diagonal.detach().cpu().double().numpy(), 2 * power
                )
        found.append(whole)
        slopes.append((layer.low.cpu().numpy(), layer.high.cpu().numpy()))
    return Multipliers(tuple(found), tuple(slopes))
