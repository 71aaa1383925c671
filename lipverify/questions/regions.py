"""The region of a question: a box of inputs, or balls around points."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lipverify.errors import UsageError
from lipverify.ir.graph import Graph
from lipverify.ir.norm import Norm
from lipverify.ir.region import Ball
from lipverify.ir.taking import in_place, shown, whole
from lipverify.loading.arguments import Entries


class InputBox(Ball):
    """All inputs with low <= x <= high, as one linf ball that the box cuts.

    low, high: numbers or tensors that broadcast to a sample; shape: of a sample.

    Raises:
        UsageError: ends that are not finite or in the wrong order.
    """

    def __init__(self, shape: Sequence[int], low: Any, high: Any) -> None:
        if isinstance(shape, str | bytes) or not isinstance(shape, Sequence):
            raise UsageError(f"the shape of a sample must be sizes like (3, 32, 32), not {shown(shape)}")
        shape = tuple(whole(size, "a size of a sample") for size in shape)
        ends = [in_place(end, "an end of the box") for end in (low, high)]
        try:
            ends = [end.expand(1, *shape) for end in ends]
        except RuntimeError:
            raise UsageError(
                f"the ends of the box have shapes {[list(end.shape) for end in ends]}, a sample {list(shape)}"
            ) from None
        if not all(bool(end.isfinite().all()) for end in ends) or not bool((ends[0] <= ends[1]).all()):
            raise UsageError("a box of inputs needs finite ends, the lower one first: --box LO,HI")
        middle = torch.minimum(torch.maximum(ends[0] / 2 + ends[1] / 2, ends[0]), ends[1])
        reach = torch.maximum(ends[1] - middle, middle - ends[0])
        reach = reach.max() if middle.numel() else reach.sum()
        super().__init__(middle, math.nextafter(float(reach), math.inf), Norm.LINF, (ends[0][0], ends[1][0]))

    def to_json(self) -> dict[str, Any]:
        assert self.box is not None
        low, high = (end.expand(self.center.shape[1:]) for end in self.box)
        found: dict[str, Any] = {"kind": "box", "low": float(low.min()), "high": float(high.max())}
        if bool((low != low.flatten()[0]).any()) or bool((high != high.flatten()[0]).any()):
            found |= {"lows": low.tolist(), "highs": high.tolist()}
        return found

    def demand(self, x: Tensor) -> None:
        """What is proved for the box says something about the points x [n, *input shape] only where they lie in it.

        Raises:
            UsageError: points of another shape, without a batch, or one that is not in the box.
        """
        assert self.box is not None
        shape = self.center.shape[1:]
        if x.shape[1:] != shape or not x.ndim:
            raise UsageError(f"the points have the shape {list(x.shape)}; a batch of {list(shape)} is needed")
        low, high = (end.expand(shape) for end in self.box)
        x = x.to(low.device)
        inside = (x >= low) & (x <= high)  # false for NaN
        if not bool(inside.all()):
            index = int((~inside).flatten(1).any(1).nonzero()[0])
            entry = int((~inside[index]).flatten().nonzero()[0])
            value, ends = (
                float(x[index].flatten()[entry]),
                [float(end.flatten()[entry]) for end in (low, high)],
            )
            raise UsageError(
                f"point {index} lies outside the box (entry {entry} is {value:g}, the box has {ends[0]:g} to {ends[1]:g}), "
                "where nothing is proved; give a box that holds every point, or balls around them "
                "(--radius, lv.Ball)"
            )

    def __repr__(self) -> str:
        found = self.to_json()
        own = ", ends of their own for every entry" if "lows" in found else ""
        return f"InputBox({found['low']:g} to {found['high']:g}, shape {list(self.center.shape[1:])}{own})"

    def words(self) -> str:
        found = self.to_json()
        return f"for all inputs in the box from {found['low']:g} to {found['high']:g}" + (
            ", of its own for every entry" if "lows" in found else ""
        )


def asked_region(
    graph: Graph,
    x: Tensor | None,
    radius: float | Entries | None,
    ball: str,
    box: tuple[float, float] | tuple[Tensor, Tensor] | Entries | None,
) -> Ball:
    """The region of a command line: balls around the points where there is a radius, else the box.

    Raises:
        UsageError: neither, or a point outside the box.
    """
    assert not isinstance(radius, Entries), "resolved by `limits`"
    assert not isinstance(box, Entries), "resolved by `limits`"
    if radius is not None:
        if x is None:
            raise UsageError("--radius needs --data: the balls are around the points of a file")
        return Ball(x, radius, Norm.parse(ball), box)
    if box is None:
        raise UsageError(
            "give a region: --box LO,HI for all inputs, or --data with --radius for balls around points"
        )
    region = InputBox(graph.input_shape, *box)
    if x is not None:
        region.demand(x)
    return region


def region_words(region: Ball) -> str:
    """Where, in words, of single inputs (not of pairs)."""
    if isinstance(region, InputBox):
        return region.words()
    cut = region.cut_words()
    points = "the point" if len(region) == 1 else f"each of {len(region)} points"
    return f"for all inputs inside the {region.norm} ball of radius {region.radius:g} around {points}{cut}"
