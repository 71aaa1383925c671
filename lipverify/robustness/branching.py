"""Branch and bound on the signs of ReLU arguments: a margin over a ball from the margins over its parts.

Legend: a leaf fixes s_i = +1 (z_i >= 0) or -1 (z_i <= 0) for some neurons; beta_i >= 0. Leaves of one tree cover the ball.
Source: Bunel et al., JMLR 21 (2020), branch and bound; Wang et al., NeurIPS 2021 (arXiv 2103.06624), beta-CROWN: on a leaf
s_i z_i >= 0, so that sum_i beta_i s_i z_i may be added to an upper bound.
Sound when: as `propagation.bounds`; which neurons are split, and all slopes and betas, may be chosen freely.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from lipverify import ops
from lipverify.analyzers.protocol import Compute
from lipverify.ir.graph import Node
from lipverify.ir.op import Input
from lipverify.propagation import Bounds
from lipverify.propagation.functionals import Functionals
from lipverify.propagation.knowledge import Knowledge
from lipverify.propagation.searched import repeated, rough_upper, unstable

STEPS = 12
RATE = 0.2
FADE = 0.9
CHILDREN = 64
"""Leaves worked on at once."""


@dataclass
class _Walk(Functionals):
    """Adds beta s z on the way, and notes where relaxations cost most."""

    extra: dict[str, Tensor] = field(default_factory=dict)
    scores: dict[str, Tensor] = field(default_factory=dict)

    def _relax(self, node: Node, a: Tensor) -> None:
        super()._relax(node, a)
        if node.name not in self.extra:
            return
        self._add(node.inputs[0], self.extra[node.name])
        planes = self.known.planes(node)
        with torch.no_grad():
            slope, box = planes.lower.slopes[0], self.known.ranges[node.inputs[0]]
            below = torch.maximum(-slope * box.lower, (1.0 - slope) * box.upper)
            cost = a.clamp(min=0) * planes.upper.offset + 0.5 * (-a).clamp(min=0) * below.clamp(min=0)
            self.scores[node.name] = cost


@dataclass
class _Leaves:
    """bounds [leaves]: upper bounds of minus the margin; signs, slopes, betas: node -> [leaves, *shape]."""

    bounds: Tensor
    signs: dict[str, Tensor]
    slopes: dict[str, Tensor]
    betas: dict[str, Tensor]
    scores: dict[str, Tensor]

    def take(self, rows: Tensor) -> _Leaves:
        parts = (
            {k: v[rows] for k, v in d.items()} for d in (self.signs, self.slopes, self.betas, self.scores)
        )
        return _Leaves(self.bounds[rows], *parts)

    @staticmethod
    def joined(first: _Leaves, second: _Leaves) -> _Leaves:
        pairs = (
            (first.signs, second.signs),
            (first.slopes, second.slopes),
            (first.betas, second.betas),
            (first.scores, second.scores),
        )
        parts = ({k: torch.cat([a[k], b[k]]) for k in a} for a, b in pairs)
        return _Leaves(torch.cat([first.bounds, second.bounds]), *parts)


def branched_margin(
    ranges: Bounds, output: int, slopes: dict[str, Tensor], leaves: int, compute: Compute
) -> float:
    """A lower bound of one output over the one ball of `ranges`, from at most about `leaves` parts of it.

    Stops when the output is shown to be positive, or at the deadline; the minimum over all leaves is valid at any moment.

    Args:
        slopes: where the search for lower planes starts, ReLU node -> [*shape].
    """
    known = ranges.known
    masks = {n.name: unstable(known, n)[0] for n in known.graph.nodes if isinstance(n.op, ops.ReLU)}
    masks = {name: mask for name, mask in masks.items() if bool(mask.any())}
    if not masks:
        return float(ranges.output.lower.flatten()[output])
    signs = {
        name: torch.zeros(1, *m.shape, dtype=torch.float64, device=m.device) for name, m in masks.items()
    }
    root = _Leaves(
        torch.full((1,), torch.inf, dtype=torch.float64, device=next(iter(masks.values())).device),
        signs,
        {
            name: slopes[name][None].clone() if name in slopes else torch.zeros_like(signs[name])
            for name in masks
        },
        {name: torch.zeros_like(s) for name, s in signs.items()},
        {},
    )
    tree = _bounded(known, output, masks, root, compute)
    closed, count = float("-inf"), 1
    while count < leaves and compute.remaining() > 0:
        done = tree.bounds < 0
        if bool(done.any()):
            closed = max(closed, float(tree.bounds[done].max()))
            if bool(done.all()):
                return -closed
            tree = tree.take((~done).nonzero().flatten())
        worst = tree.bounds.argsort(descending=True)
        some, rest = tree.take(worst[: CHILDREN // 2]), tree.take(worst[CHILDREN // 2 :])
        children = _split(some, masks)
        if children is None:
            break
        found = _bounded(known, output, masks, children, compute)
        tree = _Leaves.joined(rest, found)
        count += len(found.bounds)
    return -max(closed, float(tree.bounds.max()))


def _split(parents: _Leaves, masks: dict[str, Tensor]) -> _Leaves | None:
    """Both signs of the costliest neuron of every leaf; None where a leaf has no neuron left."""
    names = list(masks)
    flat = []
    for name in names:
        free = masks[name] & (parents.signs[name] == 0)
        flat.append(parents.scores[name].masked_fill(~free, -1.0).flatten(1))
    score = torch.cat(flat, dim=1)
    best, place = score.max(dim=1)
    if not bool((best >= 0).all()):
        return None
    rows = torch.arange(len(parents.bounds), device=score.device).repeat(2)
    children = parents.take(rows)
    sign = torch.ones(len(rows), dtype=torch.float64, device=score.device)
    sign[len(rows) // 2 :] = -1.0
    start = 0
    chosen = place.repeat(2)
    for name, part in zip(names, flat, strict=True):
        width = part.shape[1]
        mine = (chosen >= start) & (chosen < start + width)
        index = mine.nonzero().flatten()
        view = children.signs[name].flatten(1)
        view[index, chosen[index] - start] = sign[index]
        children.signs[name] = view.reshape(children.signs[name].shape)
        start += width
    return children


def _bounded(
    known: Knowledge, output: int, masks: dict[str, Tensor], leaves: _Leaves, compute: Compute
) -> _Leaves:
    """The leaves with their bounds, never above those of their parents."""
    count = len(leaves.bounds)
    wide = repeated(known, count)
    slopes = {k: v.clone().requires_grad_(True) for k, v in leaves.slopes.items()}
    betas = {k: v.clone().requires_grad_(True) for k, v in leaves.betas.items()}
    adam = torch.optim.Adam([*slopes.values(), *betas.values()], lr=RATE)
    best, scores = leaves.bounds, leaves.scores
    with torch.enable_grad():
        for step in range(STEPS):
            walk = _walk(wide, output, masks, leaves.signs, slopes, betas)
            with torch.no_grad():
                upper = walk.upper()
                best = torch.where(upper < best, upper, best)
            scores = {name: walk.scores.get(name, torch.zeros_like(leaves.signs[name])) for name in masks}
            if step == STEPS - 1 or bool((best < 0).all()) or compute.remaining() <= 0:
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
                for values in slopes.values():
                    values.nan_to_num_(0.0).clamp_(0.0, 1.0)
                for values in betas.values():
                    values.nan_to_num_(0.0).clamp_(min=0.0)
    settled = [{k: v.detach() for k, v in values.items()} for values in (slopes, betas)]
    return _Leaves(best, leaves.signs, settled[0], settled[1], scores)


def _walk(
    known: Knowledge,
    output: int,
    masks: dict[str, Tensor],
    signs: dict[str, Tensor],
    slopes: dict[str, Tensor],
    betas: dict[str, Tensor],
) -> _Walk:
    """Minus one output on every leaf as a functional of the input."""
    fresh = replace(known, _planes=dict(known._planes), _sizes={})
    extra = {}
    for name, mask in masks.items():
        plain, sign = known.planes(known.graph[name]), signs[name]
        fixed = (sign > 0).double()
        low = torch.where(mask, slopes[name], plain.lower.slopes[0])
        low = torch.where(sign != 0, fixed, low)
        high = torch.where(sign != 0, fixed, plain.upper.slopes[0])
        zero = torch.zeros_like(low)
        lower = replace(plain.lower, slopes=(low,), offset=torch.where(mask, zero, plain.lower.offset))
        upper = replace(plain.upper, slopes=(high,), offset=torch.where(sign != 0, zero, plain.upper.offset))
        fresh._planes[name] = replace(plain, lower=lower, upper=upper)
        extra[name] = sign * betas[name]
    node = known.graph.output
    count = known.count
    start = torch.zeros(count, node.size, dtype=torch.float64, device=known.box.lower.device)
    start[:, output] = -1.0
    walk = _Walk.start(
        fresh, {node.name: start.reshape(count, *node.shape)}, torch.arange(count, device=start.device)
    )
    assert isinstance(walk, _Walk)
    walk.extra = extra
    for step in reversed(known.graph.nodes):
        if not isinstance(step.op, Input):
            walk.step(step)
    return walk
