"""Linear bounds of the logit differences with searched lower planes of ReLU: one set of slopes for each difference.

Legend: relu(z) >= a z for every a in [0, 1]; z in [l, u] with l < 0 < u.
Source: Xu et al., ICLR 2021 (arXiv 2011.13824), alpha-CROWN, with the planes of the last backward pass optimised and the ranges
of the neurons kept.
Sound when: as `propagation.bounds`; the search may end anywhere, each value is evaluated again with every rounding.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from lipverify import ops
from lipverify.analyzers.protocol import Compute
from lipverify.ir.op import Input
from lipverify.propagation import Bounds
from lipverify.propagation.functionals import Functionals
from lipverify.propagation.knowledge import Knowledge
from lipverify.propagation.searched import repeated, rough_upper, unstable, with_lower_slopes

RATE = 0.25
FADE = 0.93
"""Step of Adam, and its factor after each step."""


@dataclass
class Slopes:
    """Lower slopes of all unstable ReLUs, [rows, *shape] each; kept from one ball to the next, where they start."""

    steps: int = 20
    values: dict[str, Tensor] = field(default_factory=dict)

    def margins(self, ranges: Bounds, compute: Compute) -> Tensor:
        """Lower bounds of all outputs over the one ball of `ranges`, never below those of the ranges: [outputs].

        Stops as soon as all are positive, or at the deadline.
        """
        best = ranges.output.lower.flatten().clone()
        known = ranges.known
        rows = len(best)
        masks = {
            node.name: unstable(known, node) for node in known.graph.nodes if isinstance(node.op, ops.ReLU)
        }
        if not any(bool(mask.any()) for mask in masks.values()):
            return best
        wide = repeated(known, rows)
        for name in masks:
            if name not in self.values:
                start = known.planes(known.graph[name]).lower.slopes[0].clamp(0.0, 1.0)
                self.values[name] = start.expand(rows, *start.shape[1:]).clone()
        parameters = [self.values[name].requires_grad_(True) for name in masks]
        adam = torch.optim.Adam(parameters, lr=RATE)
        with torch.enable_grad():
            for step in range(self.steps):
                walk = self._walk(wide, masks)
                with torch.no_grad():
                    found = -walk.upper()
                    best = torch.where(found > best, found, best)
                if bool((best > 0).all()) or step == self.steps - 1 or compute.remaining() <= 0:
                    break
                objective = rough_upper(walk).sum()
                if not objective.requires_grad:
                    break
                adam.zero_grad()
                objective.backward()
                adam.step()
                for group in adam.param_groups:
                    group["lr"] *= FADE
                with torch.no_grad():
                    for values in parameters:
                        values.nan_to_num_(0.0).clamp_(0.0, 1.0)
        for name in masks:
            self.values[name] = self.values[name].detach()
        return best

    def _walk(self, known: Knowledge, masks: dict[str, Tensor]) -> Functionals:
        """Minus each output as a functional of the input."""
        fresh = with_lower_slopes(known, {name: self.values[name] for name in masks})
        output = known.graph.output
        rows = output.size
        start = -torch.eye(rows, dtype=torch.float64, device=known.box.lower.device).reshape(
            rows, *output.shape
        )
        walk = Functionals.start(fresh, {output.name: start}, torch.arange(rows, device=start.device))
        for node in reversed(known.graph.nodes):
            if not isinstance(node.op, Input):
                walk.step(node)
        return walk
