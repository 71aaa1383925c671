"""Affine maps that stay within a known distance of an operator which mixes entries: products, softmax, normalisation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

Adjoint = Callable[..., tuple[Tensor, ...]]


@dataclass(frozen=True)
class Strip:
    """|z - L y - offset| <= half for all inputs of a ball, y the values of the node's inputs, z its own.

    Statement: holds in real arithmetic for the stored numbers; `back` and `absolute` compute sums of at most (size of the node)
        products a few deep, off by 4 gamma_(size + 16) of their absolute terms.
    offset, half [count, *shape]; facts [count, ...] of the balls, which both functions take behind their arguments.
    """

    offset: Tensor
    half: Tensor
    facts: tuple[Tensor, ...]
    back: Adjoint
    """(coefficients [rows, *shape], *facts of every row) -> L' of them, one tensor for each input."""
    absolute: Callable[..., Tensor]
    """(*sizes [count, *shape of an input], *facts) -> at least |L| of them, [count, *shape]."""

    def map(self, change: Callable[[Tensor], Tensor]) -> Strip:
        """The same of other balls; `change` is applied to tensors [count, ...]."""
        return replace(
            self,
            offset=change(self.offset),
            half=change(self.half),
            facts=tuple(change(fact) for fact in self.facts),
        )

    @classmethod
    def joined(cls, parts: list[Strip]) -> Strip:
        """Strips of one node around some balls and others."""
        facts = tuple(torch.cat(some) for some in zip(*(part.facts for part in parts), strict=True))
        offset, half = (torch.cat(some) for some in zip(*((p.offset, p.half) for p in parts), strict=True))
        return replace(parts[0], offset=offset, half=half, facts=facts)

    def width(self) -> float:
        """A measure of how loose it is."""
        return float(self.half.sum())
