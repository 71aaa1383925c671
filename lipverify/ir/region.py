"""Where a bound holds, and the query an analyzer answers."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from lipverify.errors import UsageError
from lipverify.ir.interval import Interval
from lipverify.ir.norm import Norm
from lipverify.ir.shown import Shown
from lipverify.ir.taking import in_place, number, pair, shown


@dataclass(frozen=True)
class Everywhere(Shown):
    """The whole input space."""

    def to_json(self) -> dict[str, Any]:
        return {"kind": "everywhere"}

    def words(self) -> str:
        """The region in words, for reports."""
        return "for all pairs of inputs"


@dataclass(frozen=True)
class Bounded(Shown):
    """All inputs [..., width] whose tokens, the vectors along the last axis, have at most this norm: `token-rms` or `token-l2`.

    Raises:
        UsageError: another norm, or a bound that is negative or not finite.
    """

    most: float
    norm: Norm = Norm.TOKEN_RMS

    def __post_init__(self) -> None:
        object.__setattr__(self, "norm", Norm.parse(self.norm, tokens=True))
        object.__setattr__(self, "most", number(self.most, "the largest norm of a token"))
        if not self.norm.of_tokens:
            raise UsageError(f"the sizes of tokens are bounded in token-rms or token-l2, not in {self.norm}")
        if not 0 < self.most < 2.0**100:
            raise UsageError(f"the largest norm of a token is a positive finite number, not {self.most}")

    def project(self, x: Tensor) -> Tensor:
        """Points of the region near x [..., *input shape]: tokens that are too long are shortened."""
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        most = self.most * (math.sqrt(x.shape[-1]) if self.norm is Norm.TOKEN_RMS else 1.0)
        shortened: Tensor = x * (most / length.clamp_min(1e-300)).clamp(max=1.0)
        return shortened

    def to_json(self) -> dict[str, Any]:
        return {"kind": "bounded", "norm": str(self.norm), "most": self.most}

    def words(self) -> str:
        """The region in words, for reports."""
        return f"for all pairs of inputs whose tokens have a norm ({self.norm}) of at most {self.most:g}"


def misfit(center: Tensor, shape: tuple[int, ...]) -> str | None:
    """Why these centres [count, *shape] are none of a model that takes this shape, and what to give; None where they are."""
    found = tuple(center.shape[1:])
    if found == shape:
        return None
    said = f"the centres have shape {list(found)}; the model takes {list(shape)}"
    if tuple(center.shape) == shape:
        return f"{said}. The first axis counts the centres: give one as x[None], rows of a batch as x[0:1]"
    if math.prod(found) == math.prod(shape):
        return f"{said}. As many numbers, in another shape: x.reshape(-1, {', '.join(map(str, shape))})"
    return said


class Ball(Shown):
    """A ball around each centre, cut by the input box when there is one.

    center: [count, *input shape]; radius: one number > 0 or >= 0, in raw input units; norm `l2` or `linf`;
    box: optional (lo, hi), numbers or tensors that broadcast to a sample, or [count, *input shape]: one box for each centre.

    Raises:
        UsageError: a radius that is negative or not finite, a centre that is not finite or outside the box, an l1 ball.
    """

    def __init__(
        self,
        center: Any,
        radius: float,
        norm: str | float | Norm = Norm.LINF,
        box: tuple[Any, Any] | None = None,
    ) -> None:
        self.center = in_place(center, "the centres of a ball")
        self.radius = number(radius, "the radius of a ball")
        self.norm = Norm.parse(norm)
        self.box: tuple[Tensor, Tensor] | None = None
        if self.norm is Norm.L1:
            raise UsageError(
                'a ball is l2 or linf, an l1 ball is not offered; choose its norm by itself (--ball linf; Ball(norm="linf"))'
            )
        if not math.isfinite(self.radius) or self.radius < 0:
            raise UsageError(f"a radius is a finite number >= 0, not {radius}")
        if self.center.ndim < 1 or self.center.shape[0] < 1:
            raise UsageError("a ball needs at least one centre; the first axis of the centres counts them")
        # The ends are NaN where an entry is, and many centres need no second array.
        if self.center.numel() and not bool(torch.stack(self.center.aminmax()).isfinite().all()):
            raise UsageError("a centre of a ball is not finite")
        if box is not None:
            low, high = pair(box, "the input box", in_place)
            for end in (low, high):
                if not _spans(end.shape, self.center.shape):
                    raise UsageError(
                        f"an end of the input box has shape {list(end.shape)}, a centre {list(self.center.shape[1:])}"
                    )
            if bool(low.isnan().any() or high.isnan().any()):
                raise UsageError("the input box holds NaN")
            if not bool((low <= high).all()):
                raise UsageError("the input box has its ends in the wrong order")
            if not bool(((low <= self.center) & (self.center <= high)).all()):
                outside = (self.center < low) | (self.center > high)
                index = int(outside.flatten(1).any(1).nonzero()[0]) if self.center.ndim > 1 else 0
                value = float(self.center[outside][0])
                raise UsageError(
                    f"centre {index} lies outside the input box (an entry is {value:g}); give a box that holds every centre"
                )
            self.box = (low, high)
        self.own = self.box is not None and self.center.shape in (self.box[0].shape, self.box[1].shape)
        """Whether each centre has a box of its own; its ends then have the shape of the centres."""
        if self.own and self.box is not None:
            self.box = (self.box[0].expand(self.center.shape), self.box[1].expand(self.center.shape))

    def map(self, rows: Callable[[Tensor], Tensor]) -> Ball:
        """The balls of other rows: `rows` takes [count, *input shape] to the rows that are wanted."""
        box = (rows(self.box[0]), rows(self.box[1])) if self.own and self.box is not None else self.box
        return Ball(rows(self.center), self.radius, self.norm, box)

    def __getitem__(self, rows: slice | Tensor) -> Ball:
        """Some of the balls."""
        return self.map(lambda tensor: tensor[rows])

    def __repr__(self) -> str:
        cut = (
            "" if self.box is None else f", box {float(self.box[0].min()):g} to {float(self.box[1].max()):g}"
        )
        count = f"{len(self)} centres" if len(self) > 1 else "1 centre"
        return (
            f"Ball({count} of shape {list(self.center.shape[1:])}, radius {self.radius:g}, {self.norm}{cut})"
        )

    def __len__(self) -> int:
        return int(self.center.shape[0])

    def enclosure(self) -> Interval:
        """The smallest box that holds each ball, rounded outward: [count, *input shape]."""
        infinity = torch.full_like(self.center, math.inf)
        lower = torch.nextafter(self.center - self.radius, -infinity)
        upper = torch.nextafter(self.center + self.radius, infinity)
        if self.box is not None:
            lower, upper = torch.maximum(lower, self.box[0]), torch.minimum(upper, self.box[1])
        return Interval(lower, upper)

    def project(self, x: Tensor) -> Tensor:
        """Points of the region near x: [..., count, *input shape] -> same shape. Not the nearest point when a box cuts."""
        center = self.center.to(x)
        step = x - center
        if self.norm is Norm.LINF:
            step = step.clamp(-self.radius, self.radius)
        else:
            axes = tuple(range(x.ndim - center.ndim + 1, x.ndim))
            length = torch.linalg.vector_norm(step, dim=axes, keepdim=True)
            step = step * (self.radius / length.clamp_min(1e-300)).clamp(max=1.0)
        moved = center + step
        return moved if self.box is None else torch.clamp(moved, self.box[0].to(x), self.box[1].to(x))

    def to_json(self) -> dict[str, Any]:
        found: dict[str, Any] = {
            "kind": "ball",
            "norm": str(self.norm),
            "radius": self.radius,
            "count": len(self),
        }
        if self.box is not None:
            found["box"] = [float(self.box[0].min()), float(self.box[1].max())]
            if not self.own and any(bool((end != end.flatten()[0]).any()) for end in self.box):
                ends = (end.expand(self.center.shape[1:]).tolist() for end in self.box)
                found["lows"], found["highs"] = ends
        if self.own and self.box is not None:
            moving = (self.box[1] > self.box[0]).flatten(1).any(0)
            found["moving"] = [int(moving.sum()), moving.numel()]
        return found

    def cut_words(self) -> str:
        """What the box does, in words."""
        if self.box is None:
            return ""
        if not self.own:
            return ", cut by the input box"
        moving, entries = self.to_json()["moving"]
        return f", cut by a box of its own: {moving} of {entries} entries may change"

    def words(self) -> str:
        """The region in words, for reports."""
        cut = self.cut_words()
        return f"for all pairs of inputs inside the {self.norm} ball of radius {self.radius:g} around each centre{cut}"


def _spans(part: torch.Size, whole: torch.Size) -> bool:
    """Whether a tensor of one shape is repeated along axes of the other and adds none."""
    return len(part) <= len(whole) and all(
        a in (1, b) for a, b in zip(reversed(part), reversed(whole), strict=False)
    )


Region = Everywhere | Bounded | Ball


@dataclass(frozen=True)
class Query(Shown):
    """What is asked: sup |f(x) - f(y)|_out / |x - y|_in over pairs x != y of the region."""

    norm_in: Norm = Norm.L2
    norm_out: Norm = Norm.L2
    region: Region = field(default_factory=Everywhere)

    def __post_init__(self) -> None:
        object.__setattr__(self, "norm_in", Norm.parse(self.norm_in, tokens=True))
        object.__setattr__(self, "norm_out", Norm.parse(self.norm_out, tokens=True))
        if not isinstance(self.region, Everywhere | Bounded | Ball):
            raise UsageError(
                "region must be lv.Everywhere(), lv.Bounded(most) for tokens or lv.Ball(x, radius), not "
                f"{shown(self.region)}"
            )

    @property
    def of_tokens(self) -> bool:
        """Whether sizes of tokens are spoken of, in a norm or in the region: few methods know what that means."""
        return self.norm_in.of_tokens or self.norm_out.of_tokens or isinstance(self.region, Bounded)

    def without_tokens(self, input_shape: tuple[int, ...]) -> str | None:
        """Why a question about tokens says nothing of inputs of this shape; None where it does, or is not about tokens."""
        if not self.of_tokens or len(input_shape) >= 2:
            return None
        return f"an input of shape {list(input_shape)} has no tokens: give a model of [tokens, width], or ask in l1, l2 or linf"

    def __repr__(self) -> str:
        return f"Query({self.norm_in} to {self.norm_out}, {self.region!r})"

    def to_json(self) -> dict[str, Any]:
        return {"norm_in": str(self.norm_in), "norm_out": str(self.norm_out), "region": self.region.to_json()}

    def words(self, part: str | None = None) -> str:
        """The question as one sentence. part: of the model, as `Origin.part`."""
        change = "output change" if part is None else f"the change of {part}"
        return f"the largest ratio of {change} ({self.norm_out}) to input change ({self.norm_in}), {self.region.words()}"
