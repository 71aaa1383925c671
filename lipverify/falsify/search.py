"""The search for steep places: a pool of the best points, climbing from them, and ascent on the slopes of pairs.

The Jacobian of a piecewise linear network is constant between kinks, so its norm has no gradient to follow. The slope of a pair
at finite distance has: it sees over the kinks between its points. So rounds alternate: hill climbing around the best points,
with some that start afresh, and ascent of pairs, whose ends then are looked at themselves. Nothing here is trusted.

Legend: pool [kept, count, ...] for each of `count` centres (1 everywhere), batch [restarts, count, ...].
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from lipverify.analyzers.protocol import Compute
from lipverify.deadline import within
from lipverify.errors import BudgetEnded
from lipverify.falsify.cost import multiplications
from lipverify.falsify.steepness import ROWS, STEPS, lengths, maximiser, steepest, tiny
from lipverify.interpreter import evaluate
from lipverify.ir.graph import Graph
from lipverify.ir.norm import Norm
from lipverify.ir.op import Op
from lipverify.ir.region import Ball, Query, Region
from lipverify.memory import share
from lipverify.ops import MaxPool

KEPT, USED, LAST = 12, 6, 3
"""Points kept for each centre, how many of them rounds begin from, and how few are looked at in double precision at the end."""
SCOUTS = 24
"""Batches of new points that a climb may choose its beginning from."""
ASCENTS, PRODUCTS = 6, 8
"""Steps of a pair in one round, and passes of a step of the power method on a network of many outputs, whose Jacobian is seen by
its products."""
A_CALL, A_MULTIPLICATION, A_VALUE = 3e-5, 0.05e-9, 2e-9
"""What a call of an operator, a multiplication and a value cost on one core, in seconds; within a factor of three."""
PATIENCE = 12.0
"""A slower or busy machine may take this many times longer before its clock ends a search that has no deadline."""
GAIN, STILL, SHARE, VAIN = 1e-3, 20, 0.4, 4
"""A climb ends when this many of its rounds, and this share of them, have gained less than GAIN relatively; the search when so
many climbs in a row were no higher."""

MANY = 1 << 26
"""Parameters up to which the pairs at the end are looked at in double precision as well, with a second copy of the network. What
they are believed to show orders them only."""

Box = tuple[float | Tensor, float | Tensor]


@dataclass(frozen=True)
class Search:
    """Settings of the search. restarts: points followed at once for each centre; rounds: how often all of them move.

    seconds: what the search may cost. It is turned into restarts and rounds by a count of operations, so that a seed decides the
    result and no clock; only a deadline of the caller, or a machine several times slower than counted, ends it earlier. It ends
    by itself where rounds gain nothing any more.
    """

    restarts: int = 24
    rounds: int = 600
    seconds: float = 10.0
    values_per_chunk: int = 1 << 24
    """Numbers that one chunk of the batch may hold in all activations together; bounds the memory."""


@dataclass
class Pool:
    """The best points of each centre, steepest first: slopes [kept, count], points and directions [kept, count, *shape]."""

    slopes: Tensor
    points: Tensor
    directions: Tensor

    def joined(self, slopes: Tensor, points: Tensor, directions: Tensor) -> Pool:
        """With others of the same form, the best of all."""
        slopes = torch.cat([self.slopes, slopes])
        order = slopes.argsort(dim=0, descending=True, stable=True)[:KEPT]
        parts = []
        for mine, theirs in ((self.points, points), (self.directions, directions)):
            wide = order.reshape(*order.shape, *(1,) * (mine.ndim - 2))
            parts.append(torch.cat([mine, theirs]).gather(0, wide.expand(-1, *mine.shape[1:])))
        return Pool(slopes.gather(0, order), *parts)


class Climber:
    """One search. `run` gives its pool, and the steepest pairs at a distance."""

    def __init__(
        self,
        graph: Graph,
        query: Query,
        compute: Compute,
        search: Search,
        box: Box | None,
        hints: Tensor | None,
    ) -> None:
        # The search may be careless: single precision is twice as fast, where numbers of this size fit into it.
        single = _moderate(graph) and _coarse(query.region)
        self.dtype = torch.float32 if single else torch.float64
        self.given, self.graph = graph, graph.to(dtype=self.dtype, device=compute.device)
        self.compute, self.search, self.region = compute, search, query.region
        self.norms = query.norm_in, query.norm_out
        self.count = len(query.region) if isinstance(query.region, Ball) else 1
        self.shape = graph.input_shape
        self.generator = torch.Generator(device="cpu").manual_seed(compute.seed)
        self.hints = None if hints is None or not len(hints) else hints.to(compute.device, self.dtype)
        self.box: tuple[Tensor, Tensor] | None = None
        if box is not None:
            low, high = (torch.as_tensor(end, dtype=self.dtype, device=compute.device) for end in box)
            self.box = low.expand(self.shape), high.expand(self.shape)
        self.low, self.high = self._extent()
        self.restarts, self.rounds, self.chunk = self._effort()
        self.best_pairs: tuple[Tensor, Tensor, Tensor] | None = None

    def _extent(self) -> tuple[Tensor, Tensor]:
        """A box of the size of usual inputs: of the ball, the search box or the hints; else from 0 to 1."""
        if isinstance(self.region, Ball):
            center = self.region.center.to(self.compute.device, self.dtype)
            return center - self.region.radius, center + self.region.radius
        if self.box is not None:
            return self.box
        zero = torch.zeros(self.shape, dtype=self.dtype, device=self.compute.device)
        if self.hints is None:
            return zero, zero + 1.0
        low, high = self.hints.amin(0), self.hints.amax(0)
        spread = (high - low).amax().clamp_min(1e-6)
        middle = (low + high) / 2
        half = torch.maximum((high - low) / 2, 0.01 * spread)
        return middle - half, middle + half

    def _effort(self) -> tuple[int, int, int]:
        """Restarts, rounds, and how many rows are evaluated at once: counted, not timed."""
        outputs = min(self.graph.output.size, ROWS)
        values = sum(node.size * _window(node.op) for node in self.graph.nodes)
        one = A_MULTIPLICATION * multiplications(self.graph) + A_VALUE * values
        # A backward pass is two forward ones. Half of the rounds take pairs through six steps.
        whole = self.graph.output.size <= ROWS
        # Of the largest networks the first look is all that there is time for, and not even that one is long.
        self.steps = max(1, min(STEPS, int((self.search.seconds / one - 1) / PRODUCTS)))
        rows = 1 + 2 * outputs if whole else 1 + PRODUCTS * self.steps
        passes = rows + 0.5 * (6 * ASCENTS)
        calls = A_CALL * len(self.graph.nodes) * passes + 2e-3
        restarts = self.search.restarts
        if passes * one * restarts * self.count * 16 > self.search.seconds:
            # Large networks get fewer restarts, so that there is time for some rounds; the largest a single one.
            affordable = self.search.seconds / (passes * one * self.count)
            restarts = max(min(6, int(affordable / 2)), int(affordable / 16), 1)
        restarts = min(restarts, self.search.restarts)
        each = passes * one * restarts * self.count + calls
        # Where one point takes most of the time, looking at it is all: no rounds, and no second look in double precision.
        self.huge = 2.0 * passes * one > self.search.seconds
        rounds = min(self.search.rounds, max(0 if self.huge else 2, int(self.search.seconds / each)))
        held = values * 3 + outputs * math.prod(self.shape)
        look = rows * one * restarts * self.count + A_CALL * len(self.graph.nodes) * rows + 1e-3
        # Twice as long in double precision. Pairs are made of few points.
        again = 2.0 * rows * one * self.count
        self.last = max(LAST, min(KEPT, int(0.2 * self.search.seconds / again)))
        self.scouts = min(SCOUTS, int(0.03 * self.search.seconds / look))
        return restarts, rounds, max(1, min(self.search.values_per_chunk, share(1 << 30) // 32) // held)

    # -- the rounds

    def run(self) -> Pool:
        """The pool at the end; with a deadline, what had been found until then."""
        pool = self._climbed_pool()
        if self.dtype is torch.float64:
            return pool
        pool = Pool(*(part[: self.last] for part in (pool.slopes, pool.points, pool.directions)))
        exact = pool.points.double(), pool.directions.double()
        if self.given.parameters() > MANY or self.huge:
            return Pool(pool.slopes.double(), *exact)
        self.graph = self.given.to(dtype=torch.float64, device=self.compute.device)
        self.dtype = torch.float64
        try:
            with within(self.compute.deadline):
                return self.looked_at(None, exact)
        except BudgetEnded:
            return Pool(pool.slopes.double(), *exact)

    def _climbed_pool(self) -> Pool:
        remaining = self.compute.remaining()
        patience = PATIENCE if math.isinf(remaining) else 1.0
        end = time.monotonic() + min(patience * self.search.seconds, remaining)
        pool: Pool | None = None
        best: Pool | None = None
        try:
            with within(None if math.isinf(remaining) else end):
                pool = best = self.scouted(self.start(), end)
                history, vain = [pool.slopes[0]], 0
                for index in range(self.rounds):
                    if time.monotonic() > end:
                        break
                    if self.still(history):
                        # This climb has found its summit; another one begins elsewhere, until two in a row are no higher.
                        gained = bool((pool.slopes[0] > best.slopes[0] * (1 + GAIN)).any())
                        vain = 0 if gained or best is pool else vain + 1
                        best = (
                            pool if best is pool else best.joined(pool.slopes, pool.points, pool.directions)
                        )
                        if vain == VAIN:
                            break
                        pool = self.scouted((self.fresh(self.restarts), self.directions()), end)
                        history = [pool.slopes[0]]
                        continue
                    moved = self.climbed(pool) if index % 2 else self.ascended(pool)
                    pool = self.looked_at(pool, moved)
                    history.append(pool.slopes[0])
        except BudgetEnded:
            pass
        if pool is None or best is None:
            return self.glimpse()
        return best if best is pool else best.joined(pool.slopes, pool.points, pool.directions)

    def glimpse(self) -> Pool:
        """One point of each centre and one gradient there: what a network can be asked that takes the whole time for a round."""
        points = self.start()[0][:1]
        with torch.enable_grad():
            x = points[0].detach().requires_grad_(True)
            y = self.function(x)
            functional = maximiser(torch.ones_like(y), self.norms[1].dual)
            (gradient,) = torch.autograd.grad((y * functional).sum(), x, materialize_grads=True)
        rows = torch.nan_to_num(gradient.detach(), nan=0.0, posinf=0.0, neginf=0.0).flatten(1)
        slopes = lengths(rows, self.norms[0].dual)[None]
        return Pool(slopes, points, maximiser(rows, self.norms[0]).reshape(points.shape))

    def scouted(self, batch: tuple[Tensor, Tensor], end: float) -> Pool:
        """The pool that a climb begins with: on small networks the best of many points, so that narrow places are found."""
        pool = self.looked_at(None, batch)
        for _ in range(self.scouts):
            if time.monotonic() > end:
                break
            pool = self.looked_at(pool, (self.inside(self.fresh(self.restarts)), self.directions()))
        return pool

    def still(self, history: list[Tensor]) -> bool:
        """Whether the last rounds of a climb gained nothing worth while at any centre."""
        back = max(STILL, int(SHARE * len(history)))
        if len(history) <= back:
            return False
        return bool((history[-1] <= history[-1 - back] * (1 + GAIN)).all())

    def looked_at(self, pool: Pool | None, batch: tuple[Tensor, Tensor]) -> Pool:
        """The pool with new points; batch: points and directions to begin from."""
        points, directions = batch
        rows = [part.flatten(0, 1) for part in (points, directions)]
        parts = [
            steepest(self.function, x, v, self.norms, self.steps)
            for x, v in zip(*(row.split(self.chunk) for row in rows), strict=True)
        ]
        slopes, found = (torch.cat(column) for column in zip(*parts, strict=True))
        slopes, found = slopes.reshape(points.shape[:2]), found.reshape(points.shape)
        empty = Pool(slopes[:0], points[:0], found[:0]) if pool is None else pool
        return empty.joined(slopes, points, found)

    def function(self, x: Tensor) -> Tensor:
        """The outputs in one row."""
        return evaluate(self.graph, x).flatten(1)

    # -- where to look

    def start(self) -> tuple[Tensor, Tensor]:
        """Points of many sizes; the first ones are the centre of a ball, or the hints."""
        points = self.fresh(self.restarts)
        if isinstance(self.region, Ball):
            points[0] = self.region.center.to(points)
        elif self.hints is not None:
            known = self.hints[: max(1, self.restarts // 2)]
            points[: len(known), 0] = known
        return self.inside(points), self.directions()

    def directions(self) -> Tensor:
        """Random ones, for every restart and centre."""
        return self.unit(self.normal((self.restarts, self.count, *self.shape)))

    def fresh(self, count: int) -> Tensor:
        """New points: over the box and at its corners; where nothing limits them also far outside."""
        shape = (count, self.count, *self.shape)
        wide = self.high - self.low
        points = self.low + wide * self.uniform(0.0, 1.0, shape)
        if isinstance(self.region, Ball):
            corners = torch.where(self.uniform(0.0, 1.0, shape) < 0.5, self.low, self.high)
            points = torch.where(self.wide(self.chosen(count, 0.3)), corners, points)
            # Short of the rim as well.
            points = (self.low + self.high) / 2 + (points - (self.low + self.high) / 2) * self.wide(
                self.uniform(0.0, 1.0, shape[:2]) ** 0.25
            )
            return self.inside(points)
        if self.box is not None:
            corners = torch.where(self.uniform(0.0, 1.0, shape) < 0.5, self.low, self.high)
            return torch.where(self.wide(self.chosen(count, 0.3)), corners, points)
        sizes = self.wide(10.0 ** self.uniform(-1.5, 2.5, shape[:2]))
        far = (self.low + self.high) / 2 + wide * self.normal(shape) * sizes
        points = torch.where(self.wide(self.chosen(count, 0.7)), far, points)
        if self.hints is not None:
            which = torch.randint(len(self.hints), (count, 1), generator=self.generator).to(points.device)
            near = self.hints[which] + 0.1 * wide * self.normal(shape) * sizes
            points = torch.where(self.wide(self.chosen(count, 0.4)), near, points)
        return points

    def base(self, pool: Pool) -> tuple[Tensor, Tensor]:
        """Points of the pool and their directions, one for each restart."""
        used = torch.arange(self.restarts, device=pool.slopes.device) % min(USED, len(pool.slopes))
        return pool.points[used], pool.directions[used]

    def reach(self, points: Tensor) -> Tensor:
        """How far a move may go, [restarts, count, 1...]: across the box, or the size of a point that lies far outside."""
        across = torch.linalg.vector_norm((self.high - self.low).reshape(-1, math.prod(self.shape)), dim=1)
        size = across.expand(points.shape[:2])
        if not isinstance(self.region, Ball) and self.box is None:
            away = points - (self.low + self.high) / 2
            far = torch.linalg.vector_norm(away.flatten(2), dim=2)
            size = torch.where(self.chosen(len(points), 0.5), torch.maximum(size, far), size)
        return self.wide(size)

    def climbed(self, pool: Pool) -> tuple[Tensor, Tensor]:
        """Steps of many sizes from the best points, at random, along their steepest directions or between them; some afresh."""
        points, directions = self.base(pool)
        step = self.reach(points) * self.wide(10.0 ** self.uniform(-3.5, 0.0, points.shape[:2]))
        noise = self.unit(self.normal(points.shape))
        along = self.unit(directions) * self.wide(self.uniform(-1.0, 1.0, points.shape[:2]))
        moved = points + step * torch.where(self.wide(self.chosen(len(points), 0.5)), noise, along)
        others = points[torch.randperm(len(points), generator=self.generator).to(points.device)]
        between = points + (others - points) * self.wide(self.uniform(-0.5, 1.5, points.shape[:2]))
        moved = torch.where(self.wide(self.chosen(len(points), 0.15)), between, moved)
        new = max(1, self.restarts // 6) if self.restarts > 1 else 0
        moved[len(moved) - new :] = self.fresh(new)
        return self.inside(moved), directions

    def ascended(self, pool: Pool) -> tuple[Tensor, Tensor]:
        """Pairs around the best points, moved up the slope between their ends; then one place between the ends each."""
        points, directions = self.base(pool)
        size = self.reach(points)
        half = size * self.wide(10.0 ** self.uniform(-2.5, 0.0, points.shape[:2]))
        rate = size * self.wide(10.0 ** self.uniform(-2.0, -0.5, points.shape[:2]))
        for _ in range(ASCENTS):
            step = half * self.unit(directions)
            first, second = self.inside(points - step), self.inside(points + step)
            slopes, gradients = self.pair_slopes(first, second)
            self.remember(slopes, first, second)
            up, across = gradients[0] + gradients[1], gradients[1] - gradients[0]
            points = self.inside(points + rate * self.unit(up))
            # The power method at a distance: the direction in which the difference grows fastest.
            new = maximiser(across.flatten(2), self.norms[0]).reshape(points.shape)
            directions = self.unit(self.unit(directions) + self.unit(new))
        where = self.wide(self.uniform(-1.0, 1.0, points.shape[:2]))
        return self.inside(points + where * half * self.unit(directions)), directions

    def pair_slopes(self, first: Tensor, second: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Slopes [restarts, count] of pairs, and the gradients of |f(second) - f(first)| in both points."""
        p, q = self.norms
        slopes, gradients = [], []
        rows = [part.flatten(0, 1).split(self.chunk) for part in (first, second)]
        for a, b in zip(*rows, strict=True):
            with torch.enable_grad():
                ends = torch.stack([a, b]).detach().requires_grad_(True)
                out = self.function(ends.flatten(0, 1)).unflatten(0, (2, -1))
                change = out[1] - out[0]
                functional = maximiser(change.detach(), q.dual)
                total = (change * functional).sum()
                if total.requires_grad:
                    (gradient,) = torch.autograd.grad(total, ends, materialize_grads=True)
                else:
                    gradient = torch.zeros_like(ends)
            distance = lengths((b - a).flatten(1), p)
            slope = lengths(change.detach(), q) / distance.clamp_min(tiny(distance))
            # A difference that rounding could have made is no slope.
            least = 1e-7 if self.dtype is torch.float64 else 1e-4
            trusted = (distance > 0) & (lengths(change.detach(), q) > least * lengths(out[0].detach(), q))
            slopes.append(torch.where(trusted & slope.isfinite(), slope, 0.0))
            gradients.append(torch.nan_to_num(gradient, nan=0.0, posinf=0.0, neginf=0.0))
        joined = torch.cat(gradients, 1).reshape(2, *first.shape)
        return torch.cat(slopes).reshape(first.shape[:2]), (joined[0], joined[1])

    def remember(self, slopes: Tensor, first: Tensor, second: Tensor) -> None:
        """Keeps the steepest pair of each centre."""
        top = slopes.argmax(dim=0)
        column = torch.arange(self.count, device=slopes.device)
        found = slopes[top, column], first[top, column], second[top, column]
        if self.best_pairs is None:
            self.best_pairs = found
            return
        better = found[0] > self.best_pairs[0]
        wide = better.reshape(-1, *(1,) * len(self.shape))
        self.best_pairs = (
            torch.where(better, found[0], self.best_pairs[0]),
            torch.where(wide, found[1], self.best_pairs[1]),
            torch.where(wide, found[2], self.best_pairs[2]),
        )

    # -- small things

    def normal(self, shape: tuple[int, ...] | torch.Size) -> Tensor:
        return torch.randn(shape, generator=self.generator, dtype=self.dtype).to(self.compute.device)

    def uniform(self, low: float, high: float, shape: tuple[int, ...] | torch.Size) -> Tensor:
        noise = torch.rand(shape, generator=self.generator, dtype=self.dtype) * (high - low) + low
        return noise.to(self.compute.device)

    def chosen(self, count: int, share: float) -> Tensor:
        """A random choice among restarts and centres: [count, centres]."""
        return self.uniform(0.0, 1.0, (count, self.count)) < share

    def wide(self, flags: Tensor) -> Tensor:
        """[...] -> [..., 1, 1], to broadcast against points."""
        return flags.reshape(*flags.shape, *(1,) * len(self.shape))

    def unit(self, x: Tensor) -> Tensor:
        """Directions of euclidean length 1; 0 stays 0."""
        return x / self.wide(lengths(x.flatten(2), Norm.L2)).clamp_min(tiny(x))

    def inside(self, x: Tensor) -> Tensor:
        """Moved into the region (or the search box)."""
        if isinstance(self.region, Ball):
            return self.region.project(x)
        return x if self.box is None else torch.clamp(x, *(end.to(x) for end in self.box))


def _window(op: Op) -> int:
    """How many entries a maximum over windows copies for each result."""
    return math.prod(op.kernel) if isinstance(op, MaxPool) else 1


def _coarse(region: Region) -> bool:
    """Whether single precision tells the points of a ball apart."""
    if not isinstance(region, Ball):
        return True
    return region.radius > 1e-4 * max(float(region.center.abs().max()), 1e-6)


def _moderate(graph: Graph) -> bool:
    """Whether single precision holds the network's numbers and what it computes with them: all sizes between 1e-6 and 1e6."""
    for node in graph.nodes:
        for field in fields(node.op):
            value = getattr(node.op, field.name)
            if isinstance(value, Tensor) and value.is_floating_point() and value.numel():
                largest = float(value.abs().max())
                if not (largest == 0.0 or 1e-6 <= largest <= 1e6):
                    return False
    return True
