"""Values of a graph as affine functions of the input and of blocks of neurons, and the neurons that activations add.

Constants do not matter for differences and are dropped.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from lipverify.errors import InternalError, UnsupportedModel

Box = tuple[Tensor, Tensor]
"""Lower and upper end of every entry of a signal."""

INPUT = -1
"""Key of the network's input among the sources of a signal; neuron blocks count from 0."""


@dataclass(frozen=True)
class Signal:
    """A value of the graph: sum over sources of matrix @ source, without the constant. box: its range, for local slopes.

    Raises:
        InternalError: a matrix or range for another number of entries.
    """

    parts: Mapping[int, Tensor]
    """source -> [size, source size]"""
    size: int
    box: Box | None = None

    def __post_init__(self) -> None:
        for matrix in self.parts.values():
            if matrix.ndim != 2 or len(matrix) != self.size:
                raise InternalError(
                    f"a signal of {self.size} entries has a matrix of shape {list(matrix.shape)}"
                )
        for end in self.box or ():
            if end.shape != (self.size,):
                raise InternalError(f"a signal of {self.size} entries has a range of shape {list(end.shape)}")

    def rows(self, index: Tensor) -> Signal:
        """Some entries, in this order."""
        box = None if self.box is None else (self.box[0][index], self.box[1][index])
        return Signal({key: matrix[index] for key, matrix in self.parts.items()}, len(index), box)

    def scaled(self, factor: Tensor) -> Signal:
        """Every entry times its own factor [size]; the range is dropped."""
        return Signal({key: matrix * factor[:, None] for key, matrix in self.parts.items()}, self.size)


def add(*signals: Signal) -> Signal:
    """Sum of signals of one size; the range is dropped."""
    parts: dict[int, Tensor] = {}
    if any(signal.size != signals[0].size for signal in signals):
        raise InternalError(f"signals of {[signal.size for signal in signals]} entries are added")
    for signal in signals:
        for key, matrix in signal.parts.items():
            parts[key] = parts[key] + matrix if key in parts else matrix
    return Signal(parts, signals[0].size)


def stacked(signals: list[Signal]) -> Signal:
    """Entries of several signals one after another."""
    keys = {key: s.parts[key] for s in signals for key in s.parts}
    parts = {
        key: torch.cat([s.parts.get(key, some.new_zeros(s.size, some.shape[1])) for s in signals])
        for key, some in keys.items()
    }
    boxes = [s.box for s in signals]
    box = None
    if all(found is not None for found in boxes):
        lows, highs = zip(*(found for found in boxes if found is not None), strict=True)
        box = torch.cat(lows), torch.cat(highs)
    return Signal(parts, sum(s.size for s in signals), box)


class Layer(NamedTuple):
    """A layer of scalar neurons: its size, which of them have an unknown slope, and the ranges of all slopes."""

    size: int
    free: Tensor
    low: Tensor
    high: Tensor


class Canonical:
    """A block system under construction."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.blocks: list[Signal] = []
        self.names: list[str] = []
        self.free: list[tuple[int, Tensor]] = []
        """For every layer of scalar neurons its size, and which of them became neurons of a block."""
        self.slopes: list[tuple[Tensor, Tensor]] = []
        """The ranges of slopes of every layer."""

    def eye(self, size: int) -> Tensor:
        return torch.eye(size, dtype=torch.float64, device=self.device)

    def neurons(self, v: Signal, name: str) -> Signal:
        """A new block w = phi(v) with slopes in [0, 1]; returns the signal w."""
        key = len(self.blocks)
        self.blocks.append(v)
        self.names.append(name)
        return Signal({key: self.eye(v.size)}, v.size)

    def product(self, p: Signal, q: Signal, name: str) -> Signal:
        """The entrywise product of two signals with ranges, two neurons an entry: p q - p' q' = q (p - p') + p' (q - q').

        Raises:
            UnsupportedModel: a factor has no bound.
        """
        assert p.box is not None
        assert q.box is not None
        low, high = (torch.cat([first, second]) for first, second in zip(q.box, p.box, strict=True))
        if not bool((low.isfinite() & high.isfinite()).all()):
            raise UnsupportedModel(f"the product {name} has a factor without a bound")
        both = self.sloped(stacked([p, q]), low, high, name)
        own = torch.arange(p.size, device=self.device)
        return add(both.rows(own), both.rows(own + p.size))

    def sloped(self, v: Signal, low: Tensor, high: Tensor, name: str) -> Signal:
        """phi(v) with slopes in [low, high], entry by entry: low v + (high - low) w; no neuron where both agree."""
        result = v.scaled(low)
        free = torch.nonzero(high > low).flatten()
        self.free.append((v.size, free))
        self.slopes.append((low, high))
        if len(free) == 0:
            return result
        w = self.neurons(v.rows(free), name)
        key, matrix = next(iter(w.parts.items()))
        spread = torch.zeros(v.size, len(free), dtype=torch.float64, device=self.device)
        spread[free] = matrix * (high - low)[free][:, None]
        return Signal({**result.parts, key: spread}, v.size)

    def relu_difference(self, p: Signal, q: Signal, name: str) -> Signal:
        """relu(p - q); where the ranges tell the order it is p - q or 0."""
        low, high = (
            torch.zeros(p.size, device=self.device).double(),
            torch.ones(p.size, device=self.device).double(),
        )
        if p.box is not None and q.box is not None:
            low = torch.where(p.box[0] >= q.box[1], 1.0, low)
            high = torch.where(p.box[1] <= q.box[0], 0.0, high)
            low = torch.minimum(low, high)
        minus = q.scaled(torch.full((q.size,), -1.0, dtype=torch.float64, device=self.device))
        return self.sloped(add(p, minus), low, high, name)

    def compare(self, p: Signal, q: Signal, name: str) -> tuple[Signal, Signal]:
        """(max, min) of two signals, one neuron an entry."""
        r = self.relu_difference(p, q, name)
        minus = r.scaled(torch.full((r.size,), -1.0, dtype=torch.float64, device=self.device))
        high, low = add(q, r), add(p, minus)
        if p.box is None or q.box is None:
            return high, low
        top = torch.maximum(p.box[0], q.box[0]), torch.maximum(p.box[1], q.box[1])
        bottom = torch.minimum(p.box[0], q.box[0]), torch.minimum(p.box[1], q.box[1])
        return replace(high, box=top), replace(low, box=bottom)
