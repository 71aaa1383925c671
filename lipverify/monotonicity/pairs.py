"""Pairs of inputs that differ in one feature and contradict a direction.

The search is not trusted: a pair counts when what is proved of its two outputs separates them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lipverify.interpreter import evaluate
from lipverify.ir.graph import Graph
from lipverify.monotonicity.results import Pair
from lipverify.propagation.points import values

LINES = 8
"""Points through which the feature's line is searched."""
HALVINGS = 24


class PairSearch:
    """Looks for pairs inside one box [*input shape] for one output entry of a float64 graph."""

    def __init__(self, graph: Graph, entry: int, lower: Tensor, upper: Tensor) -> None:
        self.graph, self.entry, self.lower, self.upper = graph, entry, lower, upper

    def outputs(self, x: Tensor) -> Tensor:
        """The output entry at points [n, *shape]: [n]."""
        return evaluate(self.graph, x).flatten(1)[:, self.entry]

    def gradients(self, x: Tensor) -> Tensor:
        """Gradients at points [n, *shape], flat: [n, inputs]."""
        x = x.detach().requires_grad_(True)
        with torch.enable_grad():
            total = self.outputs(x).sum()
            if not total.requires_grad:
                return torch.zeros_like(x).flatten(1)
            (found,) = torch.autograd.grad(total, x, materialize_grads=True)
        return found.flatten(1)

    def contradiction(self, points: Tensor, slopes: Tensor, feature: int, sign: int) -> Pair | None:
        """A pair whose output moves against `sign` when the feature grows, from the points of the most opposed slope.

        points [n, *shape] in the box; slopes [n] in the feature there; sign +1 (increasing is contradicted) or -1.
        """
        opposed = sign * slopes
        order = torch.argsort(opposed)[:LINES]
        order = order[opposed[order] < 0]
        best: tuple[float, Tensor, Tensor] | None = None
        for index in order.tolist():
            line = self._line(points[index], feature)
            values = sign * self.outputs(line)
            # The largest fall from any point to a later one.
            peak, where = torch.cummax(values, 0)
            drop = peak - values
            end = int(drop.argmax())
            if float(drop[end]) > 0 and (best is None or float(drop[end]) > best[0]):
                best = float(drop[end]), line[int(where[end])], line[end]
        return None if best is None else self.proved(feature, best[1], best[2], sign)

    def _line(self, x: Tensor, feature: int) -> Tensor:
        """Inputs along the feature, in ascending order: an even grid, and steps from x that halve."""
        low, high = (float(end.flatten()[feature]) for end in (self.lower, self.upper))
        here = float(x.flatten()[feature])
        steps = (high - low) * 0.5 ** torch.arange(HALVINGS, dtype=torch.float64, device=x.device)
        places = torch.cat([here + steps, here - steps, x.new_tensor([here, low, high])])
        places = torch.cat([places, torch.linspace(low, high, 33, dtype=torch.float64, device=x.device)])
        places = places.clamp(low, high).unique(sorted=True)
        line = x.flatten().repeat(len(places), 1)
        line[:, feature] = places
        return line.reshape(len(places), *x.shape)

    def proved(self, feature: int, low: Tensor, high: Tensor, sign: int) -> Pair | None:
        """The pair with ranges of its outputs; None where rounding could have made the difference."""
        box = values(self.graph, torch.stack([low, high]))
        lower, upper = (end.flatten(1)[:, self.entry].tolist() for end in (box.lower, box.upper))
        certain = upper[1] < lower[0] if sign > 0 else lower[1] > upper[0]
        if not certain:
            return None
        return Pair(feature, low.cpu(), high.cpu(), (lower[0], upper[0]), (lower[1], upper[1]))
