"""Lower bounds: a search for two inputs whose outputs differ as much as possible, relative to their distance.

The search is not trusted: it may be as clever or as careless as it likes. What is reported is the slope of a stored pair of
points as `propagation.points` proves it, every rounding accounted for.

Legend: J the Jacobian at a point, v an input direction, u an output functional, p and q the exponents of the input and output
norm, p* and q* their duals.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from lipverify.analyzers.protocol import Compute
from lipverify.errors import UnsupportedModel
from lipverify.interpreter import evaluate
from lipverify.ir.certificate import Witness
from lipverify.ir.graph import Graph
from lipverify.ir.norm import Norm
from lipverify.ir.region import Ball, Query
from lipverify.linalg.lengths import at_most, length_above
from lipverify.ops import Conv, ConvTranspose, Linear
from lipverify.propagation.points import derivatives_below, slopes_below

MULTIPLICATIONS_A_SECOND = 1e9
EVALUATIONS_A_ROUND = 40
MIN_ROUNDS = 20
SECONDS_A_ROUND, A_MULTIPLICATION, A_VALUE = 2.5e-3, 1.7e-9, 2e-7
"""What a round costs on one core, fitted over networks of 1e3 to 1e8 multiplications a sample; within a factor of two there."""
PATIENCE = 12.0
"""A slower or busy machine may take this many times longer before its clock ends a search that has no deadline."""

Box = tuple[float | Tensor, float | Tensor]
Pair = tuple[Tensor, Tensor, Tensor]
"""Slopes [count] and the two points [count, *shape] of each."""


@dataclass(frozen=True)
class Search:
    """Settings of the search. restarts: points followed at once for each centre; rounds: moves tried for each of them.

    seconds: what the search may cost. It is turned into restarts and rounds by a count of operations, so that a seed decides the
    result and no clock; only a deadline of the caller, or a machine several times slower than counted, ends it earlier.
    """

    restarts: int = 48
    rounds: int = 600
    power_steps: int = 6
    seconds: float = 10.0
    values_per_chunk: int = 1 << 25
    """Numbers that one chunk of the batch may hold in all activations together; bounds the memory."""


def falsify(
    graph: Graph,
    query: Query,
    compute: Compute,
    search: Search | None = None,
    *,
    box: Box | None = None,
    hints: Tensor | None = None,
) -> Witness:
    """The steepest pair of points found, for every centre of the query's region (one for `Everywhere`).

    Statement: value <= L for the Lipschitz constant L over the region of the real-valued function that the graph and its stored
    weights define. It is the slope of the stored pair, rounded down from an enclosure of both outputs; both points lie in the
    region. A ball of radius 0 has no pairs: there the witness is a direction, and the value at most the norm of every limit of
    Jacobians at the centre. Where no rule encloses an operator, nothing is shown: the value is 0 and `note` says why.

    Args:
        box: search only here when the region is `Everywhere`, (low, high) broadcasting to a sample.
        hints: [n, *input shape] points of the data, good places to start.
    """
    search = search or Search()
    if isinstance(query.region, Ball) and query.region.radius == 0.0:
        search = Search(8, 1, 30, search.seconds, search.values_per_chunk)
        return _Climber(graph, query, compute, search, box, hints).at_centre()
    return _Climber(graph, query, compute, search, box, hints).run()


class _Climber:
    """State of one search: points x [restarts, count, *shape], directions v of the same shape, slopes [restarts, count]."""

    def __init__(
        self,
        graph: Graph,
        query: Query,
        compute: Compute,
        search: Search,
        box: Box | None,
        hints: Tensor | None,
    ) -> None:
        self.graph = graph.to(dtype=torch.float64, device=compute.device)
        self.query, self.compute, self.search = query, compute, search
        self.region = query.region
        self.count = len(query.region) if isinstance(query.region, Ball) else 1
        self.shape = graph.input_shape
        self.box: tuple[Tensor, Tensor] | None = None
        if box is not None:
            low, high = (torch.as_tensor(end, dtype=torch.float64, device=compute.device) for end in box)
            self.box = low, high
        self.hints = None if hints is None else hints.to(compute.device, torch.float64)
        self.generator = torch.Generator(device="cpu").manual_seed(compute.seed)
        per_sample = sum(node.size for node in graph.nodes)
        self.chunk = max(1, search.values_per_chunk // max(per_sample, 1))
        # Large networks get fewer restarts, so that there is time for some rounds; counted, not timed: a seed decides the result.
        affordable = int(search.seconds / (MIN_ROUNDS * EVALUATIONS_A_ROUND * seconds_of(graph) * self.count))
        self.restarts = min(search.restarts, max(1, (self.chunk * 4) // self.count), max(1, affordable))
        followed = self.restarts * self.count
        cost = SECONDS_A_ROUND + followed * (A_MULTIPLICATION * multiplications(graph) + A_VALUE * per_sample)
        self.rounds = min(search.rounds, max(1, int(search.seconds / cost)))
        self.norms = query.norm_in, query.norm_out
        self.kept: dict[int, Pair] = {}

    def function(self, x: Tensor) -> Tensor:
        return evaluate(self.graph, x).flatten(1)

    def run(self) -> Witness:
        remaining = self.compute.remaining()
        patience = PATIENCE if math.isinf(remaining) else 1.0
        end = time.monotonic() + min(patience * self.search.seconds, remaining)
        self.compute.report("lower bound", None)
        x = self.start()
        v = self.normal(x.shape)
        slope, v, gradient = self.ascend(x, v)
        best = self.measure(x, v)
        for index in range(self.rounds):
            if time.monotonic() > end:
                break
            proposal = self.inside(self.move(x, v, gradient, index))
            new_slope, new_v, new_gradient = self.ascend(proposal, v)
            better = new_slope > slope
            x, v, gradient = (
                torch.where(self.wide(better), new, old)
                for new, old in ((proposal, x), (new_v, v), (new_gradient, gradient))
            )
            slope = torch.where(better, new_slope, slope)
            if bool((better & (new_slope > best[0])).any()):
                best = self.better(best, self.measure(x, v))
        return self.shown()

    def shown(self) -> Witness:
        """The steepest of the kept pairs by what is proved of it, tried in the order of what the search believed."""
        kept = list(self.kept.values())
        believed = torch.stack([pair[0] for pair in kept])
        order = believed.argsort(dim=0, descending=True)
        value = torch.zeros(self.count, dtype=torch.float64)
        points, partner = (torch.zeros(self.count, *self.shape, dtype=torch.float64) for _ in range(2))
        notes: list[str] = []
        column = torch.arange(self.count)
        for rank in range(len(order)):
            place = order[rank].cpu()
            x, y = (torch.stack([pair[side] for pair in kept]).cpu()[place, column] for side in (1, 2))
            x, y = self.strictly_inside(x), self.strictly_inside(y)
            # A pair is worth a proof only where it may show more than what is proved already.
            open_ = (believed.cpu()[place, column] > value * (1 + 1e-6)) & (x != y).flatten(1).any(1)
            proved = torch.zeros_like(value)
            if bool(open_.any()):
                proved[open_] = self.proved(slopes_below, x[open_], y[open_], notes)
            better = proved > value
            value = torch.where(better, proved, value)
            wide = better.reshape(-1, *(1,) * len(self.shape))
            fresh = (value == 0).reshape(wide.shape) & (rank == 0)
            points = torch.where(wide | fresh, x, points)
            partner = torch.where(wide, y, torch.where(fresh, x, partner))
        note = notes[0] if notes and not bool((value > 0).any()) else ""
        self.compute.report("lower bound", float(value.max()))
        return Witness(value=value, points=points, partner=partner, method="gradient-ascent", note=note)

    def proved(self, below: Callable[..., Tensor], first: Tensor, second: Tensor, notes: list[str]) -> Tensor:
        """Proved slopes [n]; 0 with a note where nothing is shown."""
        try:
            return below(self.graph, first, second, *self.norms)
        except UnsupportedModel as error:
            if len(first) == 1:
                notes.append(f"no pair of inputs could be enclosed: {error}")
                return torch.zeros(1, dtype=torch.float64)
            # One point outside the domain of an operator takes no other with it.
            pairs = zip(first.split(1), second.split(1), strict=True)
            return torch.cat([self.proved(below, *pair, notes) for pair in pairs])

    def strictly_inside(self, x: Tensor) -> Tensor:
        """Points proved to lie in the region; the centre where that fails. x [count, *shape]."""
        if not isinstance(self.region, Ball):
            return x
        center = self.region.center
        x = self.region.project(center + (self.region.project(x) - center) * (1.0 - 2.0**-40))
        step = (x - center).flatten(1)
        # The centre lies in the box, which was checked when the ball was made.
        held = at_most(length_above(step, self.region.norm.value), self.region.radius)
        if self.region.box is not None:
            low, high = self.region.box
            held &= ((low <= x) & (x <= high)).flatten(1).all(1)
        return torch.where(held.reshape(-1, *(1,) * len(self.shape)), x, center)

    def at_centre(self) -> Witness:
        """The norm of the Jacobian at every centre, from below: the best of several starts of the power method."""
        assert isinstance(self.region, Ball)
        center = self.region.center.to(self.compute.device)
        x = center.expand(self.restarts, *center.shape)
        slope, direction, _ = self.ascend(x, self.normal(x.shape))
        top = torch.nan_to_num(slope, nan=0.0).argmax(dim=0)
        chosen = direction[top, torch.arange(self.count, device=x.device)].cpu()
        notes: list[str] = []
        chosen = torch.nan_to_num(chosen)
        value = self.proved(derivatives_below, center.cpu(), chosen, notes)
        note = notes[0] if notes and not bool((value > 0).any()) else ""
        return Witness(value=value, points=center.cpu(), direction=chosen, method="gradient-norm", note=note)

    # -- where to look

    def normal(self, shape: tuple[int, ...] | torch.Size) -> Tensor:
        noise = torch.randn(shape, generator=self.generator, dtype=torch.float64)
        return noise.to(self.compute.device)

    def uniform(self, low: float, high: float, shape: tuple[int, ...]) -> Tensor:
        noise = torch.rand(shape, generator=self.generator, dtype=torch.float64) * (high - low) + low
        return noise.to(self.compute.device)

    def wide(self, flags: Tensor) -> Tensor:
        """[...] -> [..., 1, 1], to broadcast against points."""
        return flags.reshape(*flags.shape, *(1,) * len(self.shape))

    def start(self) -> Tensor:
        """Starting points of many sizes; the first one is the centre of a ball, or the hints."""
        shape = (self.restarts, self.count, *self.shape)
        if isinstance(self.region, Ball):
            spread = self.normal(shape) * self.wide(self.uniform(0.0, 1.0, shape[:2])) * self.region.radius
            spread[0] = 0.0
            return self.region.project(self.region.center.to(spread) + spread)
        if self.box is not None:
            x = self.box[0] + (self.box[1] - self.box[0]) * self.uniform(0.0, 1.0, shape)
        else:
            x = self.normal(shape) * self.wide(10.0 ** self.uniform(-1.5, 2.5, shape[:2]))
        if self.hints is not None and len(self.hints):
            known = self.hints[: max(1, self.restarts // 2)]
            x[: len(known), 0] = known
        return self.inside(x)

    def inside(self, x: Tensor) -> Tensor:
        """Moved into the region (or the search box)."""
        if isinstance(self.region, Ball):
            return self.region.project(x)
        return x if self.box is None else torch.clamp(x, self.box[0].to(x), self.box[1].to(x))

    def move(self, x: Tensor, v: Tensor, gradient: Tensor, index: int) -> Tensor:
        """A proposal for every point: noise, a step along its steepest direction or gradient, or a mixture with another point."""
        size = self.reach(x)
        step = size * self.wide(10.0 ** self.uniform(-3.0, 0.3, x.shape[:2]))
        kind = index % 4
        if kind == 0:
            return x + step * self.unit(self.normal(x.shape))
        if kind == 1:
            return x + step * self.unit(v) * torch.sign(self.wide(self.uniform(-1.0, 1.0, x.shape[:2])))
        if kind == 2:
            return x + step * self.unit(gradient)
        other = x[torch.randperm(x.shape[0], generator=self.generator).to(x.device)]
        return x + (other - x) * self.wide(self.uniform(-0.5, 1.5, x.shape[:2]))

    def reach(self, x: Tensor) -> Tensor:
        """How far a move may go: the radius of a ball, the diagonal of a box, or the size of the point itself."""
        if isinstance(self.region, Ball):
            return torch.full_like(self.wide(x.new_empty(x.shape[:2])), self.region.radius)
        return self.length(x).clamp_min(1e-3)

    def length(self, x: Tensor) -> Tensor:
        return self.wide(torch.linalg.vector_norm(x.flatten(2), dim=2))

    def unit(self, x: Tensor) -> Tensor:
        return x / self.length(x).clamp_min(1e-300)

    # -- how steep it is

    def ascend(self, x: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Norm of the Jacobian at every point (from below), its input direction, and the gradient of the norm."""
        rows, directions = x.flatten(0, 1), v.flatten(0, 1)
        parts = [
            self._ascend(rows[i : i + self.chunk], directions[i : i + self.chunk])
            for i in range(0, len(rows), self.chunk)
        ]
        slope, direction, gradient = (torch.cat(column) for column in zip(*parts, strict=True))
        return slope.reshape(x.shape[:2]), direction.reshape(x.shape), gradient.reshape(x.shape)

    def _ascend(self, x: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Power method for the p -> q norm (Boyd 1974; Higham 2002, section 15.2), one Jacobian for each row of x."""
        p, q = self.norms
        x = x.detach().requires_grad_(True)
        y = self.function(x)
        probe = torch.zeros_like(y, requires_grad=True)
        # The vector-Jacobian product is linear in its probe: its own derivative along v is the Jacobian-vector product.
        (pulled,) = torch.autograd.grad(y, x, probe, create_graph=True, materialize_grads=True)
        slope = torch.zeros(len(x), dtype=x.dtype, device=x.device)
        for _ in range(self.search.power_steps):
            pushed = self._push(pulled, probe, _maximiser(v.flatten(1), p).reshape(v.shape))
            functional = _maximiser(pushed, q.dual)
            (v,) = torch.autograd.grad(y, x, functional, retain_graph=True, materialize_grads=True)
            slope = _lengths(v.flatten(1), p.dual)
        direction = _maximiser(v.flatten(1), p).reshape(v.shape)
        return slope.detach(), direction.detach(), self._gradient(x, y, functional, direction)

    def _push(self, pulled: Tensor, probe: Tensor, v: Tensor) -> Tensor:
        if not pulled.requires_grad:
            return torch.zeros_like(probe)
        (pushed,) = torch.autograd.grad(pulled, probe, v, retain_graph=True, materialize_grads=True)
        return pushed.detach()

    def _gradient(self, x: Tensor, y: Tensor, functional: Tensor, direction: Tensor) -> Tensor:
        """Gradient over x of u'J(x)v for fixed u, v: where a smooth network gets steeper. Zero for piecewise linear ones."""
        (pulled,) = torch.autograd.grad(y, x, functional, create_graph=True, materialize_grads=True)
        if not pulled.requires_grad:
            return torch.zeros_like(x)
        (gradient,) = torch.autograd.grad((pulled * direction).sum(), x, materialize_grads=True)
        return gradient.detach()

    def measure(self, x: Tensor, v: Tensor) -> Pair:
        """The steepest pair (x, x + h v) of each centre, inside the region, over several lengths h."""
        best = None
        fx = self.batched(x)
        size = self.region.radius if isinstance(self.region, Ball) else self.length(x).clamp_min(1e-2)
        for exponent in (-5, -4, -3, -2, -1):
            step = 10.0**exponent * size * self.unit(v)
            y = self.inside(x + step)
            y = torch.where(self.wide((y == x).flatten(2).all(2)), self.inside(x - step), y)
            slope = self.slopes(x, fx, y)
            top = slope.argmax(dim=0)
            column = torch.arange(self.count, device=x.device)
            found = slope[top, column], x[top, column], y[top, column]
            self.kept[exponent] = self.better(self.kept[exponent], found) if exponent in self.kept else found
            best = found if best is None else self.better(best, found)
        assert best is not None
        return best

    def better(self, a: Pair, b: Pair) -> Pair:
        take = b[0] > a[0]
        wide = self.wide(take)
        return torch.where(take, b[0], a[0]), torch.where(wide, b[1], a[1]), torch.where(wide, b[2], a[2])

    def slopes(self, x: Tensor, fx: Tensor, y: Tensor) -> Tensor:
        """Slope of every pair as float64 sees it; 0 where the difference of the outputs could be mostly rounding."""
        p, q = self.norms
        fy = self.batched(y)
        change, size = _lengths(fy - fx, q), _lengths(fx, q)
        distance = _lengths((y - x).flatten(2), p)
        trusted = (distance > 0) & (change > 1e-5 * size) & torch.isfinite(change)
        return torch.where(trusted, change / distance.clamp_min(math.ulp(0.0)), 0.0)

    def batched(self, x: Tensor) -> Tensor:
        rows = x.flatten(0, 1)
        with torch.no_grad():
            parts = [self.function(rows[i : i + self.chunk]) for i in range(0, len(rows), self.chunk)]
        return torch.cat(parts).reshape(*x.shape[:2], -1)


def seconds_of(graph: Graph) -> float:
    """A rough count of one evaluation of one sample in float64, in seconds of one core."""
    return multiplications(graph) / MULTIPLICATIONS_A_SECOND


def multiplications(graph: Graph) -> float:
    """Of one evaluation of one sample, one for every value besides; rough."""
    work = 0.0
    for node in graph.nodes:
        match node.op:
            case Conv(weight=weight):
                work += node.size * weight[0].numel()
            case ConvTranspose(weight=weight):
                work += graph[node.inputs[0]].size * weight[0].numel()
            case Linear(weight=weight):
                work += node.size * weight.shape[1]
            case _:
                work += node.size
    return work


def _lengths(rows: Tensor, norm: Norm) -> Tensor:
    """Norms along the last axis; squares of tiny and of huge entries are not lost."""
    size = rows.abs().amax(-1, keepdim=True).clamp_min(math.ulp(0.0))
    found: Tensor = torch.linalg.vector_norm(rows / size, ord=norm.order, dim=-1) * size[..., 0]
    return found


def _maximiser(z: Tensor, norm: Norm) -> Tensor:
    """The vector of unit norm whose inner product with z is largest. z [batch, n]."""
    if norm is Norm.L2:
        z = z / z.abs().amax(1, keepdim=True).clamp_min(math.ulp(0.0))
        length: Tensor = torch.linalg.vector_norm(z, dim=1, keepdim=True)
        return z / length.clamp_min(math.ulp(0.0))
    if norm is Norm.LINF:
        return torch.where(z >= 0, 1.0, -1.0).to(z)
    top = z.abs().argmax(dim=1, keepdim=True)
    return torch.zeros_like(z).scatter(1, top, torch.where(z.gather(1, top) >= 0, 1.0, -1.0).to(z))
