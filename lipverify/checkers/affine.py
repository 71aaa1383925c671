"""Values of a graph as affine functions of the input and of neurons, with a bound on every entry's error."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from lipverify.checkers.arithmetic import Array, gamma
from lipverify.checkers.graph import LINEAR, MOVES, Graph, Node, NotCovered, roundings

INPUT = -1
MAX_ENTRIES = 1 << 28
_CHUNK = 1 << 22


@dataclass(frozen=True)
class Signal:
    """Sum over sources of matrix @ source; the exact entries differ by at most gamma(count) times the sizes.

    parts, sizes: source -> [size, source size]. plain: every row copies one entry or none, so that products with it are exact.
    """

    parts: Mapping[int, Array]
    sizes: Mapping[int, Array]
    count: int = 0
    plain: bool = False
    power: int = 0
    """Every product behind an entry is zero or at least 2^power: nothing underflows unseen."""

    @classmethod
    def identity(cls, key: int, size: int) -> Signal:
        if size * size > MAX_ENTRIES:
            raise NotCovered(f"matrices of {size} columns are too large for the checker")
        eye = np.eye(size)
        return cls({key: eye}, {key: eye}, 0, True)

    def errors(self, key: int) -> Array:
        """Entrywise bounds of what rounding did to one part."""
        return self.sizes[key] * (2.0 * gamma(self.count)) if self.count else np.zeros_like(self.sizes[key])

    def rows(self, index: Array) -> Signal:
        return replace(
            self,
            parts={k: m[index] for k, m in self.parts.items()},
            sizes={k: m[index] for k, m in self.sizes.items()},
        )

    def scaled(self, factor: Array) -> Signal:
        """Every entry times its own factor."""
        known, size = set(np.unique(factor).tolist()), np.abs(factor)
        return Signal(
            {k: m * factor[:, None] for k, m in self.parts.items()},
            {k: m * size[:, None] for k, m in self.sizes.items()},
            self.count + (0 if self.plain or known <= {0.0, 1.0, -1.0} else 1),
            self.plain and known <= {0.0, 1.0},
            lowered(self.power, factor),
        )


def lowered(power: int, factor: Array) -> int:
    """The power of products with these factors; NotCovered where they might leave the range of normal numbers."""
    exponents = np.frexp(factor[factor != 0])[1]
    power += min(0, int(exponents.min(initial=0)) - 1)
    if power < -900 or exponents.max(initial=0) > 900:
        raise NotCovered("numbers near the ends of float64 are not covered by the checker")
    return power


def add(first: Signal, second: Signal, sign: float = 1.0) -> Signal:
    """first + sign * second; one more rounding where both know a source."""

    def merged(a: Mapping[int, Array], b: Mapping[int, Array], sign: float) -> dict[int, Array]:
        found = dict(a)
        for key, m in b.items():
            found[key] = found[key] + sign * m if key in found else sign * m
        return found

    rounds = any(
        np.any((first.sizes[k] != 0) & (m != 0)) for k, m in second.sizes.items() if k in first.sizes
    )
    return Signal(
        merged(first.parts, second.parts, sign),
        merged(first.sizes, second.sizes, 1.0),
        max(first.count, second.count) + int(rounds),
        power=min(first.power, second.power),
    )


def apply(graph: Graph, node: Node, inputs: list[Signal]) -> Signal:
    """The linear part of one node."""
    if node.op in ("Add", "Sub"):
        return add(inputs[0], inputs[1], 1.0 if node.op == "Add" else -1.0)
    shapes = graph.sources(node)
    keys = sorted({key for signal in inputs for key in signal.parts})

    def image(which: str, size: bool, key: int) -> Array:
        found = [getattr(signal, which).get(key) for signal in inputs]
        width = next(m.shape[1] for m in found if m is not None)
        if width * max(node.size, *(math.prod(s) for s in shapes)) > MAX_ENTRIES:
            raise NotCovered("a matrix of the network is too large for the checker")
        columns = [
            np.zeros((width, *s)) if m is None else m.T.reshape(width, *s)
            for m, s in zip(found, shapes, strict=True)
        ]
        step = max(1, _CHUNK // max(1, node.size))
        done = [
            LINEAR[node.op](node, size, *(c[i : i + step] for c in columns)) for i in range(0, width, step)
        ]
        return np.concatenate(done).reshape(width, -1).T

    plain = all(signal.plain for signal in inputs)
    moves = node.op in MOVES
    exact = moves or (plain and node.op in ("Linear", "Conv", "Scale"))
    parts = {key: image("parts", False, key) for key in keys}
    known = exact and not any(signal.count for signal in inputs)
    sizes = (
        {key: np.abs(m) for key, m in parts.items()}
        if known
        else {key: image("sizes", True, key) for key in keys}
    )
    count = max(signal.count for signal in inputs) + (0 if exact else roundings(node, shapes))
    power = min(signal.power for signal in inputs)
    for tensor in node.tensors.values():
        power = lowered(power, tensor) if tensor.dtype.kind == "f" else power
    return Signal(parts, sizes, count, plain and moves, power)
