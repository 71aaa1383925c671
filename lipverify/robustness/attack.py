"""Adversarial examples: the upper side of a radius. The search is not trusted; what it reports is proved.

Legend: x the point, y its predicted class, d a perturbation of size r in the norm asked for, m_j = f_y - f_j.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lipverify.analyzers.protocol import Compute
from lipverify.interpreter import evaluate
from lipverify.ir.graph import Graph
from lipverify.ir.norm import Norm
from lipverify.linalg.lengths import length_above
from lipverify.robustness.arithmetic import length_up
from lipverify.robustness.pairs import differences, enclosed

Box = tuple[float, float]
PATIENCE, MOMENTUM = 4, 0.75
"""Steps without gain before a restart goes back and halves its length; how much of the way before it keeps."""


@dataclass(frozen=True)
class Attack:
    """Settings of the search.

    restarts: perturbations followed at once; steps: gradient steps at one radius; halvings: how often the gap between a
    radius without and one with a found example is halved; doublings: how far beyond the first guess to look.
    """

    restarts: int = 18
    steps: int = 30
    halvings: int = 7
    doublings: int = 12


@dataclass(frozen=True)
class Example:
    """An input with another label. size: its distance from the point, rounded up."""

    point: Tensor
    size: float
    label: int


def farthest(x: Tensor, box: Box, norm: Norm) -> float:
    """No input of the box is farther from x [*input shape] than this; rounded up."""
    reach = torch.maximum(x.double() - box[0], box[1] - x.double()).flatten()
    mantissa, exponent = length_above(reach[None], norm.value)
    return math.nextafter(float(torch.ldexp(mantissa, exponent)), math.inf)


def attack(
    graph: Graph, x: Tensor, label: int, norm: Norm, box: Box | None, settings: Attack, compute: Compute
) -> Example | None:
    """The nearest adversarial example that projected gradient descent finds.

    Statement: the label of `point` differs from `label` in real arithmetic (its margin is negative with every rounding accounted
        for), it lies in the box, and |point - x| <= size.
    Source: Madry et al., ICLR 2018 (arXiv 1706.06083), with restarts from the gradients of the centre and from noise, several
        losses, momentum (Dong et al., CVPR 2018) and steps that shorten (Croce, Hein, ICML 2020), inside a bisection.

    Args:
        x: one sample [*input shape]; label: its predicted class.
    """
    return _Search(graph, x, label, norm, box, settings, compute).run()


class _Search:
    def __init__(
        self,
        graph: Graph,
        x: Tensor,
        label: int,
        norm: Norm,
        box: Box | None,
        settings: Attack,
        compute: Compute,
    ) -> None:
        exact = differences(graph, label).to(dtype=torch.float64, device=compute.device)
        self.exact, self.label, self.norm, self.box = exact, label, norm, box
        # The search may be careless: single precision is twice as fast.
        self.rough = exact.to(dtype=torch.float32)
        self.x = x.to(compute.device, torch.float64)
        self.center = self.x.float()
        self.settings, self.compute = settings, compute
        self.generator = torch.Generator(device="cpu").manual_seed(compute.seed)
        self.best: Example | None = None
        self.batch = settings.restarts
        self.depth = 0.0
        """How far below 0 a margin has to be for its sign to be shown: what rounding has hidden so far."""

    def run(self) -> Example | None:
        low, high = 0.0, self.first_guess()
        farthest = self.farthest()
        for _ in range(self.settings.doublings):
            if self.compute.remaining() <= 0 or self.at(min(high, farthest)) or high >= farthest:
                break
            low, high = high, 2.0 * high
        if self.best is None:
            return None
        for _ in range(self.settings.halvings):
            high = self.best.size
            if self.compute.remaining() <= 0 or high - low <= 1e-3 * high:
                break
            middle = 0.5 * (low + high)
            if not self.at(middle):
                low = middle
        return self.best

    def first_guess(self) -> float:
        """Where the margins would vanish if the network were affine: twice the smallest m_j / |grad m_j|."""
        x = self.center[None].requires_grad_(True)
        margins = evaluate(self.rough, x)[0]
        smallest = math.inf
        chosen = margins.detach().argsort()[:10].tolist()
        for j in chosen:
            (gradient,) = torch.autograd.grad(margins[j], x, retain_graph=True, materialize_grads=True)
            steepness = float(torch.linalg.vector_norm(gradient.flatten(), ord=self.norm.dual.order))
            if steepness > 0:
                smallest = min(smallest, float(margins[j].detach()) / steepness)
        scale = max(float(self.center.abs().max()), 1e-3)
        return 2.0 * max(smallest, 1e-6 * scale) if math.isfinite(smallest) else scale

    def farthest(self) -> float:
        """No input of the box is farther away."""
        return math.inf if self.box is None else farthest(self.x.detach().cpu(), self.box, self.norm)

    def at(self, radius: float) -> bool:
        """Whether an example was found within the radius; remembers it where it is the nearest so far."""
        while True:
            try:
                return self.descend(radius)
            except (MemoryError, torch.OutOfMemoryError):
                if self.batch == 1:
                    raise
                self.batch = (self.batch + 1) // 2

    def descend(self, radius: float) -> bool:
        count = self.settings.restarts
        margins = evaluate(self.rough, self.center[None])[0].detach()
        order = margins.argsort()
        # One rival each, nearest first; what they follow: their margin, or all margins softly, or the smallest at each step.
        targets = order[torch.arange(count, device=order.device) % len(order)]
        softness = self.softness(margins)
        d = self.start(count, radius, targets)
        steps = self.settings.steps
        best, before = torch.full((count,), torch.inf, device=d.device), torch.zeros_like(d)
        size = torch.full((count,), 0.5 * radius, device=d.device)
        kept, slow = d, torch.zeros(count, dtype=torch.int64, device=d.device)
        for index in range(steps + 1):
            gradient, value, followed = self.slope(d, targets, softness)
            hits = (value < 0).nonzero().flatten()
            if len(hits) and any(self.offer(d[hit]) for hit in hits[:3]):
                return True
            if index == steps or self.compute.remaining() <= 0:
                break
            better = followed < best
            wide = better.reshape(-1, *(1,) * self.x.ndim)
            kept, best = torch.where(wide, d, kept), torch.where(better, followed, best)
            slow = torch.where(better, 0, slow + 1)
            # A step that gained nothing for a while goes on from the best point with half the length.
            back = slow >= PATIENCE
            size, slow = torch.where(back, 0.5 * size, size), torch.where(back, 0, slow)
            d = torch.where(back.reshape(-1, *(1,) * self.x.ndim), kept, d)
            # Scaled by its l1 norm, so that no single gradient outweighs those before.
            length = gradient.abs().flatten(1).sum(1).clamp_min(1e-30)
            before = MOMENTUM * before + gradient / length.reshape(-1, *(1,) * self.x.ndim)
            way = size.reshape(-1, *(1,) * self.x.ndim) * self.direction(before)
            d = self.project(d - way, radius)
        return False

    def softness(self, margins: Tensor) -> float:
        """The scale of margins below which several count at once."""
        return max(0.1 * float(margins.abs().median()), 1e-12)

    def start(self, count: int, radius: float, targets: Tensor) -> Tensor:
        """The centre for the first, its gradient for the next ones, then the best example so far, and noise."""
        noise = torch.rand(count, *self.x.shape, generator=self.generator) * 2.0 - 1.0
        noise = noise.to(self.center)
        if self.norm is Norm.L2:
            length = torch.linalg.vector_norm(noise.flatten(1), dim=1).clamp_min(1e-30)
            noise = noise / length.clamp_min(1.0).reshape(-1, *(1,) * self.x.ndim)
        straight = min(count, max(1, count // 2))
        gradient = self.slope(torch.zeros_like(noise[:straight]), targets[:straight], 1.0)[0]
        noise[:straight] = -self.direction(gradient)
        noise[0] = 0.0
        if self.best is not None and count > straight:
            last = (self.best.point.to(self.x) - self.x).to(noise) / max(self.best.size, 1e-30)
            noise[straight] = last
        return self.project(noise * radius, radius)

    def slope(self, d: Tensor, targets: Tensor, softness: float) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of what is followed, the smallest margin, and what is followed, of every restart.

        Followed: by the first restart the smallest margin; by every third after it all margins, -s log sum exp(-m / s), which is
        cross-entropy for margins; by the others the margin over their target.
        """
        gradients, values, losses = [], [], []
        for begin in range(0, len(d), self.batch):
            piece = d[begin : begin + self.batch].detach().requires_grad_(True)
            margins = evaluate(self.rough, self.center + piece)
            followed = margins.gather(1, targets[begin : begin + self.batch, None])[:, 0]
            smallest = margins.min(dim=1).values
            soft = -softness * torch.logsumexp(-margins / softness, dim=1)
            number = torch.arange(begin, begin + len(piece), device=d.device)
            followed = torch.where(number % 3 == 2, soft, torch.where(number == 0, smallest, followed))
            (gradient,) = torch.autograd.grad(followed.sum(), piece, materialize_grads=True)
            gradients.append(gradient)
            values.append(smallest.detach())
            losses.append(followed.detach())
        return torch.cat(gradients), torch.cat(values), torch.cat(losses)

    def direction(self, gradient: Tensor) -> Tensor:
        if self.norm is Norm.LINF:
            return gradient.sign()
        length = torch.linalg.vector_norm(gradient.flatten(1), dim=1).clamp_min(1e-30)
        unit: Tensor = gradient / length.reshape(-1, *(1,) * self.x.ndim)
        return unit

    def project(self, d: Tensor, radius: float) -> Tensor:
        if self.norm is Norm.LINF:
            d = d.clamp(-radius, radius)
        if self.box is not None:
            d = (self.center + d).clamp(*self.box) - self.center
        if self.norm is Norm.L2:
            # Scaling towards the centre keeps the point in the box.
            length = torch.linalg.vector_norm(d.flatten(1), dim=1).clamp_min(1e-30)
            d = d * (radius / length).clamp(max=1.0).reshape(-1, *(1,) * self.x.ndim)
        return d

    def offer(self, d: Tensor) -> bool:
        """Shortens the perturbation while it still fools the network, and keeps it where that is shown."""
        step = d.double()
        while self.fools(point := self.inside(self.x + step)):
            low, high = 0.0, 1.0
            for _ in range(12):
                middle = 0.5 * (low + high)
                shorter = self.inside(self.x + middle * step)
                if self.fools(shorter):
                    high, point = middle, shorter
                else:
                    low = middle
            margins = enclosed(self.exact, point)
            worst = int(margins.upper.argmin())
            if float(margins.upper[worst]) < 0.0:
                size = length_up(point, self.x, self.norm)
                if self.best is None or size < self.best.size:
                    rival = worst if worst < self.label else worst + 1
                    self.best = Example(point.cpu(), size, rival)
                return True
            # Enclosures of deep networks are wide, and each takes as long as many steps: none is asked for in vain twice.
            hidden = float(margins.upper[worst]) - self.lowest(point)
            if not math.isfinite(hidden):
                return False
            self.depth = 2.0 * max(self.depth, hidden)
        return False

    def inside(self, point: Tensor) -> Tensor:
        return point if self.box is None else point.clamp(*self.box)

    def fools(self, point: Tensor) -> bool:
        return self.lowest(point) < -self.depth

    def lowest(self, point: Tensor) -> float:
        """The smallest margin in float64."""
        with torch.no_grad():
            return float(evaluate(self.exact, point[None])[0].min())
