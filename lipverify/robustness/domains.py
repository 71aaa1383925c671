"""Parts of a ball, each for one output: which ReLU arguments have which sign there, and linear bounds searched for all at once.

Legend: row: one part and one output; z = s |z| where a sign s is given; relu(z) >= a z for every a in [0, 1] where none is;
beta >= 0; neurons are numbered through all ReLU nodes, and only those without a known sign (`Neurons.open`) are searched.
Source: Wang et al., NeurIPS 2021 (arXiv 2103.06624), beta-CROWN: on a part s_i z_i >= 0, so that sum_i beta_i s_i z_i may be
added to an upper bound.
Sound when: as `propagation.bounds`. Search is not trusted: without rounding it only says which rows may be closed; what it says
is evaluated again with every rounding (`Rows.closed`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor

from lipverify import ops
from lipverify.ir.graph import Node
from lipverify.ir.op import Constant, Input
from lipverify.propagation.functionals import Functionals
from lipverify.propagation.knowledge import Knowledge, is_affine
from lipverify.propagation.searched import repeated, rough_upper, unstable

RATE, BETA_RATE, FADE = 0.2, 0.1, 0.92
"""Steps of Adam for slopes and for betas, and their factor after each step."""


@dataclass
class _Rough(Functionals):
    """The same functionals without accounts of rounding, a multiple of z added before every ReLU, and the costs of planes."""

    extra: dict[str, Tensor] = field(default_factory=dict)
    costs: dict[str, Tensor] | None = None

    def _rows(self, facts: Tensor) -> Tensor:
        return facts

    def _dot_sizes(self, a: Tensor, node: Node) -> Tensor:
        return self.error

    def _charge(self, error: Tensor) -> None:
        return

    def _relax(self, node: Node, a: Tensor) -> None:
        _relaxed(self, node, a, super()._relax)


@dataclass
class _Proved(Functionals):
    """With every rounding."""

    extra: dict[str, Tensor] = field(default_factory=dict)
    costs: dict[str, Tensor] | None = None

    def _rows(self, facts: Tensor) -> Tensor:
        # Every row has its own part, in order.
        return facts

    def _relax(self, node: Node, a: Tensor) -> None:
        _relaxed(self, node, a, super()._relax)


def _relaxed(walk: _Rough | _Proved, node: Node, a: Tensor, plain: Callable[[Node, Tensor], None]) -> None:
    plain(node, a)
    if node.name in walk.extra:
        walk._add(node.inputs[0], walk.extra[node.name])
        if walk.costs is not None:
            planes, box = walk.known.planes(node), walk.known.ranges[node.inputs[0]]
            slope = planes.lower.slopes[0]
            below = torch.maximum(-slope * box.lower, (1.0 - slope) * box.upper).clamp(min=0)
            cost = a.clamp(min=0) * planes.upper.offset + 0.5 * (-a).clamp(min=0) * below
            walk.costs[node.name] = cost.detach()


@dataclass(frozen=True)
class Neurons:
    """The ReLU arguments of a graph over one ball. open [U]: numbers of those that may have both signs there."""

    known: Knowledge
    open: Tensor
    spans: dict[str, tuple[int, int, Tensor]]
    """ReLU node with open neurons -> their columns, from and to, and their places in the node."""

    @staticmethod
    def of(known: Knowledge) -> Neurons:
        """All neurons that may have both signs."""
        start, column = 0, 0
        found: list[Tensor] = []
        spans: dict[str, tuple[int, int, Tensor]] = {}
        for node in known.graph.nodes:
            if not isinstance(node.op, ops.ReLU):
                continue
            places = unstable(known, node)[0].flatten().nonzero().flatten()
            if len(places):
                spans[node.name] = column, column + len(places), places
                found.append(start + places)
                column += len(places)
            start += node.size
        device = known.box.lower.device
        return Neurons(
            known, torch.cat(found) if found else torch.zeros(0, dtype=torch.int64, device=device), spans
        )

    @cached_property
    def column(self) -> dict[int, int]:
        """Number of an open neuron -> its column."""
        return {number: place for place, number in enumerate(self.open.tolist())}

    def places(self, numbers: Tensor) -> tuple[Tensor, Tensor]:
        """Which of these numbers [n] are those of open neurons, and the columns of these."""
        here = torch.searchsorted(self.open, numbers).clamp(max=max(len(self.open) - 1, 0))
        there = (self.open[here] == numbers).nonzero().flatten() if len(self.open) else here[:0]
        return there, here[there]

    def spread(self, name: str, values: Tensor) -> Tensor:
        """Columns [rows, U] as values of all neurons of a node, 0 elsewhere: [rows, *shape]."""
        first, last, places = self.spans[name]
        node = self.known.graph[name]
        zeros = values.new_zeros(len(values), node.size)
        return zeros.index_copy(1, places, values[:, first:last]).reshape(-1, *node.shape)

    def gathered(self, costs: dict[str, Tensor], rows: int) -> Tensor:
        """The values of open neurons: node -> [rows, *shape] as [rows, U]."""
        found = self.known.box.lower.new_zeros(rows, len(self.open))
        for name, values in costs.items():
            first, last, places = self.spans[name]
            found[:, first:last] = values.flatten(1)[:, places]
        return found

    def slopes(self) -> Tensor:
        """The lower slopes that a single pass takes: [U]."""
        found = [
            self.known.planes(self.known.graph[name])
            .lower.slopes[0]
            .expand(1, *self.known.graph[name].shape)
            .flatten()[p]
            for name, (_, _, p) in self.spans.items()
        ]
        return torch.cat(found).clamp(0.0, 1.0) if found else self.known.box.lower.new_zeros(0)


@dataclass
class Rows:
    """output [n]; signs [n, U] in -1, 0, 1; slopes, betas [n, U]; upper [n]: bounds of minus the output as the search sees them.

    scores [n, U]: what the planes of open neurons cost.
    """

    output: Tensor
    signs: Tensor
    slopes: Tensor
    betas: Tensor
    upper: Tensor
    scores: Tensor

    def __len__(self) -> int:
        return len(self.output)

    def take(self, which: Tensor) -> Rows:
        """Some rows, by their numbers or by a mask."""
        return Rows(*(value[which] for value in vars(self).values()))

    @staticmethod
    def joined(first: Rows, second: Rows) -> Rows:
        """Rows of both."""
        pairs = zip(vars(first).values(), vars(second).values(), strict=True)
        return Rows(*(torch.cat(pair) for pair in pairs))


@dataclass(frozen=True)
class Search:
    """Searches over one ball.

    Ranges are those of the whole ball: new ones for every part took three times as long as they saved, on networks of 50 and of
    3,000 neurons. A leaf stands on one pass of one row, then, which is what makes its proof small.
    """

    neurons: Neurons

    @property
    def known(self) -> Knowledge:
        """The facts over the whole ball."""
        return self.neurons.known

    def shared(self, rows: int) -> Knowledge:
        """The facts over the whole ball for so many rows; planes are computed once."""
        for node in self.known.graph.nodes:
            if (
                not isinstance(node.op, Input | Constant)
                and not is_affine(node)
                and node.name not in self.known.strips
            ):
                self.known.planes(node)
        return replace(
            repeated(self.known, rows), _planes=dict(self.known._planes), _shifts=self.known._shifts
        )

    def walked(
        self, known: Knowledge, rows: Rows, proved: bool, costs: dict[str, Tensor] | None = None
    ) -> _Rough | _Proved:
        """Minus the output of every row as a functional of the input."""
        fresh = replace(known, _planes=dict(known._planes), _sizes={})
        extra = {}
        for name in self.neurons.spans:
            node = known.graph[name]
            plain, free = known.planes(node), unstable(known, node)
            sign = self.neurons.spread(name, rows.signs)
            decided = sign != 0
            slope = torch.where(free, self.neurons.spread(name, rows.slopes), plain.lower.slopes[0])
            low = torch.where(decided, (sign > 0).to(slope), slope)
            high = torch.where(decided, (sign > 0).to(slope), plain.upper.slopes[0])
            zero = torch.zeros_like(low)
            fresh._planes[name] = replace(
                plain,
                lower=replace(
                    plain.lower, slopes=(low,), offset=torch.where(free | decided, zero, plain.lower.offset)
                ),
                upper=replace(
                    plain.upper, slopes=(high,), offset=torch.where(decided, zero, plain.upper.offset)
                ),
            )
            extra[name] = sign * self.neurons.spread(name, rows.betas)
        node = known.graph.output
        n = len(rows)
        start = torch.zeros(n, node.size, dtype=torch.float64, device=rows.upper.device)
        start[torch.arange(n, device=start.device), rows.output] = -1.0
        kind = _Proved if proved else _Rough
        walk = kind.start(
            fresh, {node.name: start.reshape(n, *node.shape)}, torch.arange(n, device=start.device)
        )
        assert isinstance(walk, _Rough | _Proved)
        walk.extra, walk.costs = extra, costs
        for step in reversed(known.graph.nodes):
            if not isinstance(step.op, Input):
                walk.step(step)
        return walk

    def closed(self, known: Knowledge, rows: Rows) -> Tensor:
        """Rows whose output is shown to be positive on their part, with every rounding: [n]."""
        with torch.no_grad():
            return self.walked(known, rows, proved=True).upper() < 0

    def searched(self, rows: Rows, steps: int, expired: Callable[[], bool]) -> tuple[Rows, Tensor]:
        """The rows with the best slopes and betas found, and which of them are closed [n]."""
        done = torch.zeros(len(rows), dtype=torch.bool, device=rows.upper.device)
        best = Rows(
            rows.output,
            rows.signs,
            rows.slopes.clone(),
            rows.betas.clone(),
            rows.upper.clone(),
            rows.scores.clone(),
        )
        at, known, now = torch.arange(len(rows), device=done.device), self.shared(len(rows)), rows
        moments = [torch.zeros_like(now.slopes) for _ in range(4)]
        for step in range(steps):
            now.slopes.requires_grad_(True)
            now.betas.requires_grad_(True)
            costs: dict[str, Tensor] = {}
            with torch.enable_grad():
                upper = rough_upper(self.walked(known, now, proved=False, costs=costs))
                last = step == steps - 1 or expired()
                gradients = None
                if not last and upper.requires_grad:
                    gradients = torch.autograd.grad(
                        upper.sum(), (now.slopes, now.betas), materialize_grads=True
                    )
            now.slopes, now.betas, upper = now.slopes.detach(), now.betas.detach(), upper.detach()
            better = upper < best.upper[at]
            if step == 0:
                # What the parents had found says nothing of planes that have changed since.
                better |= True
            best.upper[at] = torch.where(better, upper, best.upper[at])
            place = at[better]
            best.slopes[place], best.betas[place] = now.slopes[better], now.betas[better]
            best.scores[place] = self.neurons.gathered(costs, len(at))[better]
            hopeful = (upper < 0).nonzero().flatten()
            stay = torch.ones(len(at), dtype=torch.bool, device=at.device)
            if len(hopeful):
                some = hopeful if len(hopeful) < len(at) else None
                facts = known if some is None else self.shared(len(hopeful))
                shown = self.closed(facts, now if some is None else now.take(hopeful))
                done[at[hopeful[shown]]] = True
                stay[hopeful[shown]] = False
            if gradients is None:
                break
            self._moved(now, gradients, moments, step)
            if not bool(stay.all()):
                keep = stay.nonzero().flatten()
                if not len(keep):
                    break
                at, known, now = at[keep], self.shared(len(keep)), now.take(keep)
                moments = [m[keep] for m in moments]
        return best, done

    def _moved(self, now: Rows, gradients: tuple[Tensor, ...], moments: list[Tensor], step: int) -> None:
        """One step of Adam, in place."""
        for value, gradient, first, second, rate in (
            (now.slopes, gradients[0], moments[0], moments[1], RATE),
            (now.betas, gradients[1], moments[2], moments[3], BETA_RATE),
        ):
            gradient = gradient.nan_to_num(0.0, 0.0, 0.0)
            first.mul_(0.9).add_(gradient, alpha=0.1)
            second.mul_(0.99).addcmul_(gradient, gradient, value=0.01)
            move = (first / (1 - 0.9 ** (step + 1))) / ((second / (1 - 0.99 ** (step + 1))).sqrt() + 1e-12)
            value.sub_(move, alpha=rate * FADE**step)
        now.slopes.clamp_(0.0, 1.0)
        now.betas.clamp_(min=0.0)

    def lower(self, rows: Rows) -> Tensor:
        """Lower bounds of the outputs of the rows, with every rounding: [n]."""
        with torch.no_grad():
            return -self.walked(self.shared(len(rows)), rows, proved=True).upper()

    def once(self, rows: Rows) -> Tensor:
        """The bounds of the rows as they are, without a search: [n]."""
        with torch.no_grad():
            return rough_upper(self.walked(self.shared(len(rows)), rows, proved=False))
