"""Ranges of all gradients refined by linear functionals, and bounds of the norms of Jacobian rows.

Only gradients that meet an unknown slope with an unknown sign need a functional of their own: elsewhere slope times gradient is
linear already. Norms are bounded twice, entry by entry and as one functional of all entries: the smaller bound counts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from lipverify.analyzers.local.coupled import CoupledWalk
from lipverify.analyzers.local.gradients import Gradients, gradient_of
from lipverify.analyzers.local.spread import input_ranges
from lipverify.analyzers.local.walk import Walk
from lipverify.ir.graph import Graph, Node
from lipverify.ir.interval import Interval
from lipverify.ir.norm import Norm
from lipverify.linalg.lengths import euclidean_norm, small
from lipverify.linalg.rounding import UNIT_ROUNDOFF, gamma
from lipverify.ops.planes import chord
from lipverify.propagation import never
from lipverify.propagation.knowledge import Knowledge, chunk_memory
from lipverify.propagation.precision import DOUBLE, Precision
from lipverify.rules import Relaxation

MANY = 1 << 16
"""Coefficients from which on centres are worked on one after another: copies of facts cost most."""
REFINE_WORK = 6e8
"""Numbers that the functionals of one node may take for each centre; beyond, only the entries that matter most get one."""
DEEP = 64
"""Layers whose slopes have planes, beyond which only the rows of the Jacobian are bounded with them: they are pushed back through
all layers in front, again for each layer (what that loses: 2 % for an RNN of 50 steps, a fourth for an LSTM of 8)."""
INPUT_WORK = 4e8
"""Coefficients of input gradients are bounded one by one if that takes at most about so many numbers per centre."""


@dataclass(frozen=True)
class Tier:
    """How gradients are bounded.

    refine: by functionals, else by intervals alone; recurjac: constants in place of chords; joint: norms also as one
    functional; middle: entries also around the middle of all slopes, one centre after another; sums: of every row only the
    sum of sizes is asked for; lines: around the slopes of smooth activations, for a second bound of every functional, `known`
    with them; deep: of so many layers of lines at most inner gradients are bounded with them too; expired: once it says yes,
    nothing is refined any more.
    """

    refine: bool = True
    recurjac: bool = False
    joint: bool = True
    middle: bool = True
    sums: bool = False
    lines: Mapping[str, Relaxation] = field(default_factory=dict)
    known: Knowledge | None = None
    deep: int = DEEP
    precision: Precision = DOUBLE
    """Of the coefficients of functionals; planes of smooth activations have float64 always."""
    expired: Callable[[], bool] = field(default=never, repr=False)

    def upper(self, found: Gradients, name: str, coefficients: Tensor, owner: Tensor) -> Tensor:
        """Upper bounds of functionals of one node's gradient; infinite where a number overflowed."""
        value = Walk(found, {name: coefficients}, owner, self.recurjac).upper()
        if self.lines:
            coupled = CoupledWalk(
                replace(found, precision=DOUBLE),
                {name: coefficients},
                owner,
                lines=dict(self.lines),
                known=self.known,
            ).upper()
            value = torch.fmin(value, coupled)
        return torch.where(value.isfinite(), value, torch.full_like(value, math.inf))


def jacobian_ranges(
    graph: Graph, factors: dict[str, tuple[Interval, ...]], seeds: Tensor, count: int, tier: Tier
) -> Gradients:
    """All gradients' ranges, the input's among them: those are the entries of the Jacobian."""
    found = Gradients(graph, seeds, factors, precision=tier.precision)
    for node in reversed(graph.nodes):
        gradient_of(found, node, count)
        if not tier.refine or tier.expired():
            continue
        if node.name in factors:
            inside = replace(tier, lines={}) if len(tier.lines) > tier.deep else tier
            refine(found, node, _meets_unknown_slope(found, node), inside)
        elif node.name == graph.input.name:
            single = _affordable(found)
            # Sums of sizes take entries of unknown sign one by one and the others as one functional: the middle adds nothing.
            if tier.middle and not (tier.sums and tier.joint and single):
                _around_middle(found, node, tier.expired)
            if single:
                refine(found, node, _sign_unknown(found, node), tier)
    return found


def _around_middle(found: Gradients, node: Node, expired: Callable[[], bool]) -> None:
    """Intersects the ranges of the Jacobian's entries with those around the middle of all slopes."""
    box = found.boxes[node.name]
    parts = [None if expired() else input_ranges(found, index) for index in range(len(box.lower))]
    ends = [
        (box.lower[i : i + 1], box.upper[i : i + 1])
        if part is None
        else (
            torch.maximum(box.lower[i : i + 1], part.lower),
            torch.minimum(box.upper[i : i + 1], part.upper),
        )
        for i, part in enumerate(parts)
    ]
    lower, upper = (torch.cat(end) for end in zip(*ends, strict=True))
    found.boxes[node.name] = Interval(lower, upper)


def _sign_unknown(found: Gradients, node: Node) -> Tensor:
    """[count, size]: entries whose gradient may have both signs for some output row."""
    box = found.boxes[node.name]
    return ((box.lower < 0) & (box.upper > 0)).any(1).flatten(1)


def _meets_unknown_slope(found: Gradients, node: Node) -> Tensor:
    free = torch.stack([(f.lower < f.upper).flatten(1) for f in found.factors[node.name]]).any(0)
    return _sign_unknown(found, node) & free


def _affordable(found: Gradients) -> bool:
    return found.graph.input.size * found.rows * sum(node.size for node in found.graph.nodes) <= INPUT_WORK


def refine(found: Gradients, node: Node, wanted: Tensor, tier: Tier) -> None:
    """Intersects the range of these entries [count, size] of a node's gradient with linear bounds from both sides."""
    rows = torch.nonzero(_most_telling(found, node, wanted))
    box = found.boxes[node.name]
    lower, upper = (
        end.flatten(2).movedim(1, 2).contiguous() for end in (box.lower, box.upper)
    )  # [count, size, rows]
    widest = max(n.size for n in found.graph.nodes)
    chunk = max(1, chunk_memory(lower.device) // (2 * 8 * 6 * widest * found.rows))
    for some in _blocks(rows, chunk, widest * found.rows):
        if tier.expired():
            break
        owner, entry = some.T
        one = torch.zeros(2 * len(owner), node.size, dtype=tier.precision.dtype, device=owner.device)
        place = torch.arange(len(owner), device=owner.device)
        one[2 * place, entry], one[2 * place + 1, entry] = 1.0, -1.0
        first = one.reshape(-1, 1, *node.shape)
        value = tier.upper(found, node.name, first, owner.repeat_interleave(2))
        upper[owner, entry] = torch.minimum(upper[owner, entry], value[0::2])
        lower[owner, entry] = torch.maximum(lower[owner, entry], -value[1::2])
    if tier.known is not None and tier.known.empty is not None:
        # Planes around values know of the part's conditions: where no input fulfils them, bounds may cross. Both old ends hold.
        apart = lower > upper
        before = (end.flatten(2).movedim(1, 2) for end in (box.lower, box.upper))
        lower, upper = (torch.where(apart, old, new) for old, new in zip(before, (lower, upper), strict=True))
    size = box.lower.shape
    found.boxes[node.name] = Interval(*(end.movedim(2, 1).reshape(size) for end in (lower, upper)))


def _most_telling(found: Gradients, node: Node, wanted: Tensor) -> Tensor:
    """As many of the wanted entries of every centre as the work allows: those whose unknown slope changes most."""
    later = sum(n.size for n in found.graph.nodes)
    limit = max(1, int(REFINE_WORK / (2 * found.rows * later)))
    if int(wanted.sum(1).max()) <= limit:
        return wanted
    spread = found.largest(node.name).sum(1).flatten(1)
    if node.name in found.factors:
        spread = spread * torch.stack(
            [(f.upper - f.lower).flatten(1) for f in found.factors[node.name]]
        ).amax(0)
    spread = torch.where(wanted, spread, torch.full_like(spread, -1.0))
    chosen = torch.zeros_like(wanted).scatter(1, spread.topk(limit, dim=1).indices, True)
    return chosen & wanted


def _blocks(rows: Tensor, chunk: int, width: int) -> Iterator[Tensor]:
    """Rows [n, 2], sorted by centre, a chunk at a time; one centre at a time where that is much work, to share its facts."""
    parts = [rows]
    if len(rows) * width > MANY:
        parts = list(rows.split(torch.unique_consecutive(rows[:, 0], return_counts=True)[1].tolist()))
    for part in parts:
        yield from part.split(chunk) if len(part) else ()


def row_norms(found: Gradients, dual: Norm, tier: Tier) -> Tensor:
    """Upper bounds of the `dual` norm of every Jacobian row over every ball: [count, rows].

    Statement: for J_j in [l_j, u_j], |J_j| <= kappa_j J_j + q_j (chord of the absolute value) and J_j^2 <= (l_j + u_j) J_j -
        l_j u_j (chord of the square); both right sides are functionals of all entries together.
    """
    box = found.boxes[found.graph.input.name]
    lower, upper = box.lower, box.upper
    largest = torch.maximum(lower.abs(), upper.abs()).flatten(2)
    if dual is Norm.LINF:
        return largest.amax(2)
    slack = 1.0 + 4.0 * gamma(largest.shape[2] + 8)
    if dual is Norm.L1:
        best = largest.sum(2) * slack
        if tier.joint:
            t, w = chord(lower, upper)
            # What is 0 is no part of the sum, whatever its functional says: entries that do not move.
            kappa = torch.where(largest.reshape(t.shape) == 0, torch.zeros_like(t), t - (1.0 - t))
            rest = (2.0 * w + 8.0 * UNIT_ROUNDOFF * largest.reshape(w.shape)).flatten(2).sum(2) * slack
            best = torch.minimum(best, _joint(found, kappa, tier) + rest)
        return _up(best)
    best = euclidean_norm(largest, dim=2) * slack
    if tier.joint:
        total = lower + upper
        # -l u, and what rounding l + u changes times the largest entry.
        rest = -lower * upper + 8.0 * UNIT_ROUNDOFF * (largest * largest).reshape(lower.shape)
        square = (
            _joint(found, total, tier)
            + rest.flatten(2).sum(2)
            + 4.0 * gamma(largest.shape[2] + 8) * (largest * largest).sum(2)
        )
        root = square.clamp(min=0.0).sqrt() * slack
        # Squares of tiny numbers underflow.
        best = torch.where(best < small(best), best, torch.minimum(best, root))
    return _up(best)


def _joint(found: Gradients, coefficients: Tensor, tier: Tier) -> Tensor:
    """Upper bound of <coefficients[b, k], J[b, k]>: [count, rows]."""
    owner = torch.arange(len(coefficients), device=coefficients.device)
    name = found.graph.input.name
    if tier.precision.double:
        return tier.upper(found, name, coefficients, owner)
    # The functional bounded is the rounded one; what is cut off counts entry by entry.
    taken = coefficients.to(tier.precision.dtype).double()
    rest = ((coefficients - taken).abs() * found.largest(name)).flatten(2).sum(2)
    return tier.upper(found, name, taken, owner) + 2.0 * rest


def _up(value: Tensor) -> Tensor:
    return torch.nextafter(value * (1.0 + 4.0 * UNIT_ROUNDOFF), torch.full_like(value, math.inf))


def of_rows(found: Gradients, rows: slice) -> Gradients:
    """The part of some output rows."""
    return replace(
        found,
        seeds=found.seeds[rows],
        boxes={name: Interval(b.lower[:, rows], b.upper[:, rows]) for name, b in found.boxes.items()},
        sizes={name: s[:, rows] for name, s in found.sizes.items()},
    )
