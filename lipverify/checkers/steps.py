"""A model as steps of four kinds over flat vectors: maps, scalar functions, maxima and sorts, known gains.

Moving numbers (reshaping, slicing, padding, joining) is no step: a value is an array of places in the results of steps. One
sample is followed: the first axis has size 1. Constants matter over balls alone: differences do not see them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np

from lipverify.checkers.arithmetic import Array, NotCovered, need
from lipverify.checkers.functions import Curve

MAX_SIZE = 1 << 27


@dataclass(frozen=True)
class Step:
    """A vector of `size` numbers. sources: the steps it reads; view: [n], places in their joined results, -1 for zero."""

    sources: tuple[str, ...]
    view: Array
    size: int


@dataclass(frozen=True)
class Map(Step):
    """y[g, o, p] = sum_t kernel[g, o, t] x[index[g, p, t]] + offset, index -1 a zero; `rounded` roundings behind a kernel entry.

    lattice: for convolutions weight [g, o, i, *taps], image [channels, *axes], stride, dilation, padding, whether the map is the
    adjoint of that convolution. offset: [size].
    """

    kernel: Array
    index: Array
    rounded: int = 0
    lattice: tuple[Any, ...] | None = None
    offset: Array | None = None


@dataclass(frozen=True)
class Scalar(Step):
    """Scalar functions with difference quotients in [low, high], entry by entry; `law` names them, a curve says all of them."""

    low: Array
    high: Array
    law: str
    curve: Curve | None = None


@dataclass(frozen=True)
class Order(Step):
    """groups: [n, count] of places, -1 for none. The maximum of each, or (`whole`) each in ascending order."""

    groups: Array
    whole: bool


@dataclass(frozen=True)
class Reflect(Step):
    """Groups x [n, groups, size] of places, by vectors w [groups, size], |w|_inf about 1: x + 2 w relu(-w'x) / |w|^2."""

    groups: Array
    vectors: Array


@dataclass(frozen=True)
class Implicit(Step):
    """The z with z = phi(W z + U x + b), slopes of phi in [0, slope]; W: recurrent [n, n], U: inputs [n, m]."""

    recurrent: Array
    inputs: Array
    slope: float


@dataclass(frozen=True)
class Bounded(Step):
    """A function with known gains, by norm."""

    gains: Mapping[str, Fraction]


class Value(NamedTuple):
    sources: tuple[str, ...]
    places: Array


class Call(NamedTuple):
    """One operator of a model: names of values or stored arrays (empty: left out), its result, its settings."""

    op: str
    inputs: Sequence[str]
    output: str
    given: Mapping[str, Any]

    def integers(self, name: str, default: Sequence[int]) -> list[int]:
        return [int(v) for v in self.given.get(name, default)]


class Program:
    """Steps by name, in topological order, and what the names of the model mean."""

    def __init__(self, name: str, shape: Sequence[int], stored: dict[str, Array], version: int) -> None:
        # One sample: its first axis has size 1, or it is a vector without one.
        need(len(shape) > 0 and 1 in (shape[0], len(shape)) and min(shape) > 0, "the shape of the input")
        self.stored, self.version, self.input = stored, version, name
        self.steps: dict[str, Step] = {}
        self.values: dict[str, Value] = {}
        self.put(name, Step((), np.empty(0, dtype=np.int64), math.prod(shape)), shape)

    def put(self, name: str, step: Step, shape: Sequence[int]) -> Value:
        need(math.prod(shape) == step.size <= MAX_SIZE and name not in self.steps, "a result of another size")
        self.steps[name] = step
        self.values[name] = Value((name,), np.arange(step.size).reshape(shape))
        return self.values[name]

    def value(self, name: str) -> Value:
        if name not in self.values:
            raise NotCovered("a stored tensor where a computed one is expected")
        return self.values[name]

    def array(self, name: str) -> Array:
        """A stored tensor: float64 or int64, finite."""
        if name not in self.stored:
            raise NotCovered("a computed tensor where a stored one is expected")
        found = self.stored[name]
        need(found.dtype.kind in "fiub" and bool(np.isfinite(found).all()), "a tensor that is not finite")
        return found.astype(np.float64 if found.dtype.kind == "f" else np.int64)

    def listed(self, call: Call, place: int, name: str) -> list[int] | None:
        """Integers given as an input, or as an attribute in older operator sets."""
        if place < len(call.inputs) and call.inputs[place]:
            return [int(n) for n in self.array(call.inputs[place]).reshape(-1)]
        return call.integers(name, ()) if name in call.given else None

    def joined(self, names: Sequence[str]) -> tuple[tuple[str, ...], list[Array]]:
        """Places of several values in one list of sources."""
        values = [self.value(name) for name in names]
        sources = tuple(dict.fromkeys(s for v in values for s in v.sources))
        sizes = [self.steps[s].size for s in sources]
        starts = dict(zip(sources, np.cumsum([0, *sizes]).tolist(), strict=False))
        tables = [[np.arange(self.steps[s].size) + starts[s] for s in v.sources] for v in values]
        return sources, [
            np.append(np.concatenate(t), -1)[v.places] for t, v in zip(tables, values, strict=True)
        ]

    def map(self, name: str, x: Value, kernel: Array, index: Array, shape: Sequence[int], rounded: int = 0,
            lattice: tuple[Any, ...] | None = None, offset: Array | None = None) -> Value:  # fmt: skip
        need(kernel.shape[::2] == index.shape[::2] and kernel.size > 0, "a map of other sizes")
        size, known = kernel.shape[0] * kernel.shape[1] * index.shape[1], np.abs(kernel[kernel != 0])
        if not bool(((known >= 2.0**-500) & (known <= 2.0**500)).all()):
            raise NotCovered("numbers near the ends of float64 are not covered by the checker")
        offset = None if offset is None else np.broadcast_to(offset, shape).reshape(-1)
        step = Map(x.sources, x.places.ravel(), size, kernel, index, rounded, lattice, offset)
        return self.put(name, step, shape)

    def diagonal(
        self, name: str, x: Value, factor: Any, rounded: int = 0, offset: Array | None = None
    ) -> Value:
        shape = np.broadcast_shapes(x.places.shape, np.shape(factor), () if offset is None else offset.shape)
        kernel = np.broadcast_to(np.float64(factor), shape).reshape(-1, 1, 1)
        x = Value(x.sources, np.broadcast_to(x.places, shape))
        if bool((kernel == 1).all()) and (offset is None or not offset.any()):
            return self.values.setdefault(name, x)
        return self.map(
            name, x, kernel, np.arange(kernel.size).reshape(-1, 1, 1), shape, rounded, None, offset
        )
