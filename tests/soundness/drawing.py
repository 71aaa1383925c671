"""One model drawn at random: an operator set, random numbers, and stored operands in order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tests.onnx_models import model, node
from tests.soundness.readers import Random

Drawn = Any
"""A model."""
Step = tuple[str, Sequence[str], Sequence[str], dict[str, Any]]
"""An operator, what it reads, what it writes, its settings."""


class Draw:
    """One operator on x, of this operator set. Stored operands are named in order."""

    def __init__(self, seed: int) -> None:
        self.rng, self.numbers = Random(seed), np.random.default_rng(seed)
        self.opset, self.stored = self.rng.randint(7, 24), dict[str, Any]()

    def some(self, low: int, high: int, count: int) -> list[int]:
        return [self.rng.randint(low, high) for _ in range(count)]

    def shape(self, low: int = 1, high: int = 4) -> list[int]:
        return [1, *self.some(low, high, self.rng.randint(1, 3))]

    def axis(self, rank: int) -> int:
        return self.rng.randrange(-rank if self.opset >= 11 else 0, rank)

    def real(self, *shape: int) -> Any:
        return self.numbers.standard_normal(shape).astype(np.float32)

    def store(self, array: Any) -> str:
        name = f"c{len(self.stored)}"
        self.stored[name] = array
        return name

    def made(
        self, op: str, shape: list[int], operands: tuple[str, ...] = (), outputs: int = 1, **settings: Any
    ) -> Drawn:
        """The operator on x and these operands. None among the settings: left out."""
        names = ["y"] if outputs == 1 else [f"y{k}" for k in range(outputs)]
        return self.chain([(op, ["x", *operands], names, settings)], shape, names)

    def chain(self, steps: Sequence[Step], shape: list[int], outputs: Sequence[str] = ("y",)) -> Drawn:
        """Several operators, one after the other. None among the settings: left out."""
        nodes = [
            node(op, reads, writes, **{name: value for name, value in settings.items() if value is not None})
            for op, reads, writes, settings in steps
        ]
        return model(nodes, shape, self.opset, self.stored, outputs)
