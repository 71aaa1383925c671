"""From what the search believes to what is proved: pairs that lie in the region, their slopes enclosed, the steepest of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from lipverify.analyzers.protocol import Compute
from lipverify.deadline import left, within
from lipverify.errors import BudgetEnded, InternalError, UnsupportedModel
from lipverify.falsify import tokens
from lipverify.falsify.balls import slopes_by_gains
from lipverify.falsify.cost import seconds_of
from lipverify.falsify.search import MANY, Box, Climber, Pool, Search
from lipverify.ir.certificate import Witness
from lipverify.ir.graph import Graph
from lipverify.ir.norm import Norm
from lipverify.ir.region import Ball, Bounded, Query
from lipverify.linalg.lengths import at_most, length_above
from lipverify.propagation.points import derivatives_below, slopes_below, slopes_roughly_below

DISTANCES = (1e-6, 1e-4, 1e-2)
"""Of a pair around a point, relative to the size of the region or of the point: near ones show the norm of the Jacobian, farther
ones are there for networks of which nothing is known at small distances."""
POINTS = 3
"""Of the pool, of which pairs are made."""
WORTH = 1e-4
"""The part of what is proved that another pair may add at least, as believed, where it is looked at."""
IN_VAIN = 3
"""Exact proofs that show nothing after which, where there is a deadline, no more are tried: the best point at every distance."""
ROUGH = 3
"""Pairs far apart that intervals are tried on in a network of many parameters."""
LOST, FARTHEST, TRIES, SOME = 0.01, 1e3, 6, 5.0
"""Of what is believed, the part that a proof by gains may lose; how many times farther apart a pair is moved at once; and how
many are tried at most, and for how many seconds of evaluations, as counted."""
EXACT = 20
"""Evaluations, as counted, that a proof in fixed point takes at least (30 and 42 on two networks): with less time it
is not begun."""
Candidates = list[tuple[Tensor, Tensor, Tensor]]
"""Believed slopes [count] and the two points [count, *shape] of each."""


def falsify(
    graph: Graph,
    query: Query,
    compute: Compute,
    search: Search | None = None,
    *,
    box: Box | None = None,
    hints: Tensor | None = None,
    gains: Mapping[str, float] | None = None,
) -> Witness:
    """The steepest pair of points found, for every centre of the query's region (one for `Everywhere`).

    Statement: value <= L for the Lipschitz constant L over the region of the real-valued function that the graph and its stored
    weights define. It is the slope of the stored pair, rounded down from an enclosure of both outputs; both points lie in the
    region. A ball of radius 0 has no pairs: there the witness is a direction, and the value at most the norm of every limit of
    Jacobians at the centre. Where no rule encloses an operator, nothing is shown: the value is 0 and `note` says why.

    Args:
        box: search only here when the region is `Everywhere`, (low, high) broadcasting to a sample.
        hints: [n, *input shape] points of the data, good places to start.
        gains: of layers (`balls.layer_gains`), for networks so large that a proof in fixed point takes too long.
    """
    compute.report("lower bound", None)
    if query.of_tokens:
        started = replace(compute, deadline=compute.share(3))
        witness = _shown(graph, query, tokens.candidates(graph, query, started, hints), compute.deadline)
        compute.report("lower bound", float(witness.value.max()))
        return witness
    # The proof of what is found takes as long again, and more on large networks.
    climber = Climber(
        graph, query, replace(compute, deadline=compute.share(3)), search or Search(), box, hints
    )
    region = query.region
    if isinstance(region, Ball) and region.radius == 0.0:
        witness = _at_centres(graph, query, climber, region)
    else:
        pool = climber.run()
        witness = _shown(graph, query, _candidates(climber, pool), compute.deadline, gains)
    compute.report("lower bound", float(witness.value.max()))
    return witness


def _candidates(climber: Climber, pool: Pool) -> Candidates:
    """Pairs around the best points along their steepest directions, and the steepest pair that was met at a distance."""
    found: Candidates = [] if climber.best_pairs is None else [climber.best_pairs]
    for place in range(min(POINTS, len(pool.slopes))):
        x, v = pool.points[place], climber.unit(pool.directions[place : place + 1])[0]
        size = climber.reach(pool.points[place : place + 1])[0]
        for distance in DISTANCES:
            step = distance * size * v
            found.append(
                (
                    pool.slopes[place] * (1.0 - distance * 1e-3),
                    climber.inside(x - step),
                    climber.inside(x + step),
                )
            )
    return found


def _shown(
    graph: Graph,
    query: Query,
    candidates: Candidates,
    deadline: float | None,
    gains: Mapping[str, float] | None = None,
) -> Witness:
    """The steepest candidate by what is proved of it, tried in the order of what is believed.

    Args:
        deadline: where there is one, a pair far apart is proved first, in the time of a few evaluations; what is proved
            exactly after that ends at the deadline.
        gains: where there are any, the steepest pair is proved by them first; that is the end where anything is shown.
    """
    believed, first, second = (torch.stack(column).cpu() for column in zip(*candidates, strict=True))
    order = believed.argsort(dim=0, descending=True, stable=True)
    count, shape = believed.shape[1], first.shape[2:]
    column = torch.arange(count)
    value = torch.zeros(count, dtype=torch.float64)
    points, partner = first[order[0], column], first[order[0], column]
    notes: list[str] = []
    tries: list[tuple[Tensor, Callable[..., Tensor]]] = [(place, slopes_below) for place in order]
    # The exact proof takes six times the network in float64: in a large one it is for pairs of which intervals show nothing.
    many = graph.parameters() > MANY
    apart = (first - second).flatten(2).abs().amax(2).sum(1)
    if gains is None and (many or deadline is not None):
        far = apart.argsort(descending=True, stable=True)
        tries = [*((place, slopes_roughly_below) for place in far[: ROUGH if many else 1]), *tries]
    if gains is not None:
        value, points, partner = _stretched(
            graph, query, gains, believed[order[0], column], points, second[order[0], column], deadline
        )
        if bool((value > 0).all()):
            tries = []
    vain = 0
    for place, below in tries:
        if deadline is not None and vain >= IN_VAIN and not bool((value > 0).any()):
            break
        if many and below is slopes_below and bool((value > 0).all()):
            break
        x, y = (_held(query, ends[place, column]) for ends in (first, second))
        # A pair is worth a proof only where it may show more than what is proved already: in smooth networks nine in ten might
        # show a hundred-thousandth, and each takes as long as the first.
        open_ = (believed[place, column] > value * (1 + WORTH)) & (x != y).flatten(1).any(1)
        if not bool(open_.any()):
            continue
        proved = torch.zeros_like(value)
        try:
            why = notes if below is slopes_below else []
            if below is slopes_below and EXACT * seconds_of(graph) > left():
                raise BudgetEnded("the budget ended")
            vain += below is slopes_below
            with within(deadline if bool((value > 0).all()) else None):
                proved[open_] = _proved(graph, query, below, x[open_], y[open_], why)
        except BudgetEnded:
            if not bool((value > 0).any()):
                raise
            break
        better = (proved > value).reshape(-1, *(1,) * len(shape))
        value = torch.maximum(value, proved)
        points, partner = torch.where(better, x, points), torch.where(better, y, partner)
    none = (value == 0).reshape(-1, *(1,) * len(shape))
    points = torch.where(none, _held(query, points), points)
    partner = torch.where(none, points, partner)
    note = notes[0] if notes and not bool((value > 0).any()) else ""
    return Witness(value=value, points=points, partner=partner, method="gradient-ascent", note=note)


def _stretched(
    graph: Graph,
    query: Query,
    gains: Mapping[str, float],
    believed: Tensor,
    x: Tensor,
    y: Tensor,
    deadline: float | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """What gains prove of a pair [1, *shape] that is moved apart until their radii no longer count, and its ends.

    With a deadline the first pair is far apart, since near ones show nothing more often, and it ends what comes after a proof.

    Radii hardly change with the distance, so that what was lost at one says which one is far enough; farther ones lose by kinks.
    """
    middle, half, factor = (x + y) / 2, (y - x) / 2, 1.0 if deadline is None else FARTHEST
    best = torch.zeros_like(believed), _held(query, x), _held(query, x)
    for _ in range(max(2, min(TRIES, int(SOME / seconds_of(graph))))):
        ends = _held(query, middle - factor * half), _held(query, middle + factor * half)
        shown = bool((best[0] > 0).all())
        try:
            with within(deadline if shown else None):
                proved = _proved(graph, query, partial(_by_gains, gains), *ends, [])
        except BudgetEnded:
            if not shown:
                raise
            break
        if shown and not bool((proved > best[0] * (1.0 + 1e-3)).all()):
            break
        best = best if bool((proved == 0).any()) else (proved, *ends)
        lost = 1.0 - float((proved / believed).min())
        if lost <= LOST:
            break
        factor *= FARTHEST if lost >= 1.0 else min(max(lost / LOST, 2.0), FARTHEST)
    return best


def _by_gains(gains: Mapping[str, float], graph: Graph, x: Tensor, y: Tensor, *norms: Norm) -> Tensor:
    """`slopes_by_gains`, as functions that prove slopes are called; the gains are those of l2."""
    if norms != (Norm.L2, Norm.L2):
        raise InternalError("gains of layers in l2 prove no slopes in other norms")
    return slopes_by_gains(graph, x, y, gains)


def _at_centres(graph: Graph, query: Query, climber: Climber, region: Ball) -> Witness:
    """The norm of the Jacobian at every centre, from below: the best of several starts."""
    center = region.center.to(climber.compute.device)
    starts = center.expand(climber.restarts, *center.shape)
    pool = climber.looked_at(None, (starts, climber.unit(climber.normal(starts.shape))))
    notes: list[str] = []
    direction = pool.directions[0].cpu()
    value = _proved(graph, query, derivatives_below, region.center, direction, notes)
    note = notes[0] if notes and not bool((value > 0).any()) else ""
    return Witness(value=value, points=region.center, direction=direction, method="gradient-norm", note=note)


def _proved(
    graph: Graph,
    query: Query,
    below: Callable[..., Tensor],
    first: Tensor,
    second: Tensor,
    notes: list[str],
) -> Tensor:
    """Proved slopes [n]; 0 with a note where nothing is shown."""
    try:
        return below(graph, first, second, query.norm_in, query.norm_out)
    except UnsupportedModel as error:
        if len(first) == 1:
            notes.append(f"no pair of inputs could be enclosed: {error}")
            return torch.zeros(1, dtype=torch.float64)
        # One point outside the domain of an operator takes no other with it.
        pairs = zip(first.split(1), second.split(1), strict=True)
        return torch.cat([_proved(graph, query, below, *pair, notes) for pair in pairs])


def _held(query: Query, x: Tensor) -> Tensor:
    """Points proved to lie in the region; the centre where that fails. x [count, *shape]."""
    region = query.region
    if isinstance(region, Bounded):
        x = region.project(x) * (1.0 - 2.0**-40)
        held = at_most(length_above(x.flatten(1), region.norm.word(tuple(x.shape))), region.most)
        return torch.where(held.reshape(-1, *(1,) * (x.ndim - 1)), x, torch.zeros_like(x))
    if not isinstance(region, Ball):
        return x
    center = region.center
    x = region.project(center + (region.project(x) - center) * (1.0 - 2.0**-40))
    step = (x - center).flatten(1)
    # The centre lies in the box, which was checked when the ball was made.
    held = at_most(length_above(step, region.norm.value), region.radius)
    if region.box is not None:
        low, high = region.box
        held &= ((low <= x) & (x <= high)).flatten(1).all(1)
    return torch.where(held.reshape(-1, *(1,) * (x.ndim - 1)), x, center)
