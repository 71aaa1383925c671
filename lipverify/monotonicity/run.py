"""`monotone`: from features and a region to verdicts."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from lipverify.analyzers.protocol import Compute, Report, silent
from lipverify.certificates.pending import ENDED
from lipverify.deadline import within
from lipverify.errors import BudgetEnded, Undecided, UsageError
from lipverify.ir.certificate import Rigour
from lipverify.ir.graph import Graph
from lipverify.ir.interval import Interval
from lipverify.ir.norm import Norm
from lipverify.ir.region import Ball, misfit
from lipverify.monotonicity.branching import Branching, Proof, Settings
from lipverify.monotonicity.pairs import PairSearch
from lipverify.monotonicity.proof import SIGNS, certified
from lipverify.monotonicity.results import Finding, Monotonicity, Pair, Verdict
from lipverify.monotonicity.slopes import PartialDerivatives, Partials
from lipverify.propagation import refuse_without_intervals

SEARCHED = 0.7
"""Part of the budget for verdicts; what is left then is for their proof."""
OWED = 2.0
"""Seconds that the first ranges may take beyond it: without them there is no answer."""
Region = Ball | Interval | tuple[Any, Any]


def monotone(
    graph: Graph,
    region: Region,
    features: Sequence[int | str] | int | str | None = None,
    *,
    output: int | None = None,
    names: Sequence[str] | None = None,
    budget: float | None = None,
    device: str | torch.device = "cpu",
    seed: int = 0,
    settings: Settings | None = None,
    report: Report | None = None,
) -> Monotonicity:
    """Proves for each feature that one output never falls (or never rises) when the feature alone grows, or shows neither.

    Statement: increasing means f(x) <= f(x') for all x, x' of the region that differ only in the feature, with x' the larger;
        decreasing likewise; neither comes with one pair for each direction.
    Source: the sign of all Clarke partial derivatives (mean value theorem, Lebourg 1975), bounded as `local`; branch and bound
        over the box.
    Sound when: as `local`. Pairs are separated by interval arithmetic.

    Args:
        region: a box (low, high), each a number or a tensor that broadcasts to a sample, or a linf `Ball` (each centre is a
            region of its own).
        features: positions in the flattened input, or names; None for all.
        output: position in the flattened output; not needed when there is only one.
        names: of the features, in the order of the flattened input.
        budget: seconds for everything.

    Raises:
        UsageError: no such feature or output, a region that is no box. Undecided: the budget ended before anything was known of
        the whole region. UnsupportedModel: an operator without a range of
        derivatives; the node is named.
    """
    started = time.monotonic()
    settings = settings or Settings()
    where = torch.device(device)
    boxes = _boxes(graph, region)
    entry = _entry(graph, output)
    wanted = _features(graph, features, names)
    refuse_without_intervals(graph)
    partials = PartialDerivatives(graph, entry, where)
    exact = graph.to(dtype=torch.float64, device=where)
    boxes = Interval(boxes.lower.to(where), boxes.upper.to(where))
    end = None if budget is None else started + budget
    whole = Compute(where, seed, None if budget is None else started + SEARCHED * budget, report or silent)
    try:
        with within(None if whole.deadline is None else max(whole.deadline, time.monotonic()) + OWED):
            roots = partials.over(boxes, wanted)
    except BudgetEnded:
        raise Undecided(
            "not run: the budget ended before any range of a slope was known; give a larger --budget"
        ) from None
    findings = []
    for index in range(len(boxes.lower)):
        pairs = PairSearch(exact, entry, boxes.lower[index], boxes.upper[index])
        points = _samples(pairs, settings.samples, seed + index)
        slopes = pairs.gradients(points)
        for place, feature in enumerate(wanted):
            left = len(wanted) * (len(boxes.lower) - index) - place
            compute = replace(whole, deadline=whole.share(left))
            name = None if names is None else names[feature]
            question = _Question(partials, pairs, feature, settings, compute, points, slopes[:, feature])
            findings.append(question.answer(roots, place, index, name))
    words = _words(region, boxes)
    ball = region if isinstance(region, Ball) else None
    try:
        with within(end):
            told, issued = certified(graph, ball, boxes, entry, findings, report or silent)
    except BudgetEnded:
        told = tuple(replace(f, unchecked=ENDED if f.verdict in SIGNS else "") for f in findings)
        issued = None
    directed = [f for f in told if f.verdict in SIGNS]
    rigour = Rigour.CHECKED if directed and all(f.checked for f in directed) else Rigour.REAL
    return Monotonicity(graph, words, entry, told, time.monotonic() - started, seed, rigour, issued=issued)


class _Question:
    """One feature over one box."""

    def __init__(
        self,
        partials: PartialDerivatives,
        pairs: PairSearch,
        feature: int,
        settings: Settings,
        compute: Compute,
        points: Tensor,
        slopes: Tensor,
    ) -> None:
        self.partials, self.pairs, self.feature = partials, pairs, feature
        self.settings, self.compute, self.points, self.slopes = settings, compute, points, slopes
        self.boxes = 1

    def answer(self, roots: Partials, place: int, index: int, name: str | None) -> Finding:
        started = time.monotonic()
        least = {1: float(roots.lower[index, place]), -1: -float(roots.upper[index, place])}
        against: dict[int, Pair | None] = {1: None, -1: None}
        for sign in (1, -1):
            if least[sign] < 0 and not self.compute.expired():
                against[sign] = self.pairs.contradiction(self.points, self.slopes, self.feature, sign)
        # The likelier direction first; the other one is then contradicted by a pair, or open only where nothing moves.
        first = 1 if float(self.slopes.sum()) >= 0 else -1
        for sign in (first, -first):
            if least[sign] >= 0 or against[sign] is not None or self.compute.expired():
                continue
            proof = self._prove(sign)
            least[sign], against[sign] = max(least[sign], proof.least), proof.pair
        slope = least[1], -least[-1]
        verdict = _verdict(least, against)
        seconds = time.monotonic() - started
        return Finding(
            self.feature, name, index, verdict, slope, self.boxes, seconds, against[1], against[-1]
        )

    def _prove(self, sign: int) -> Proof:
        search = Branching(self.partials, self.pairs, self.feature, sign, self.settings, self.compute)
        proof = search.run()
        self.boxes += proof.boxes
        return proof


def _verdict(least: dict[int, float], against: dict[int, Pair | None]) -> Verdict:
    rises, falls = least[1] >= 0, least[-1] >= 0
    if rises or falls:
        if rises and falls:
            return Verdict.CONSTANT
        return Verdict.INCREASING if rises else Verdict.DECREASING
    return Verdict.UNDECIDED if None in against.values() else Verdict.NEITHER


def _samples(pairs: PairSearch, count: int, seed: int) -> Tensor:
    """The centre, and points evenly at random in the box."""
    generator = torch.Generator().manual_seed(seed)
    shape = (count, *pairs.lower.shape)
    share = torch.rand(shape, generator=generator, dtype=torch.float64).to(pairs.lower.device)
    share[0] = 0.5
    x = pairs.lower + share * (pairs.upper - pairs.lower)
    return torch.minimum(torch.maximum(x, pairs.lower), pairs.upper)


def _boxes(graph: Graph, region: Region) -> Interval:
    """One box for each region: [count, *input shape]."""
    if isinstance(region, Ball):
        if region.norm is not Norm.LINF:
            raise UsageError("monotonicity is proved on boxes: give a box, or balls of norm linf")
        found = region.enclosure()
        if (why := misfit(found.lower, graph.input_shape)) is not None:
            raise UsageError(why)
        return found
    low, high = (region.lower, region.upper) if isinstance(region, Interval) else region
    ends = []
    for end in (low, high):
        value = torch.as_tensor(end, dtype=torch.float64)
        try:
            ends.append(value.expand(1, *graph.input_shape).contiguous())
        except RuntimeError:
            raise UsageError(
                f"an end of the box has shape {list(value.shape)}; the model takes {list(graph.input_shape)}"
            ) from None
        if not bool(ends[-1].isfinite().all()):
            raise UsageError("an end of the box is not finite")
    if not bool((ends[0] <= ends[1]).all()):
        raise UsageError("the box has its ends in the wrong order")
    return Interval(ends[0], ends[1])


def _entry(graph: Graph, output: int | None) -> int:
    size = graph.output.size
    if output is None:
        if size != 1:
            raise UsageError(
                f"the model has {size} outputs: say which one (--of 0; output=0), or give a margin of two of them (--margin 1,0)"
            )
        return 0
    if not 0 <= output < size:
        raise UsageError(f"there is no output {output}; the model has {size}")
    return output


def _features(
    graph: Graph, features: Sequence[int | str] | int | str | None, names: Sequence[str] | None
) -> list[int]:
    size = graph.input.size
    if names is not None and (len(names) != size or len(set(names)) != size):
        raise UsageError(f"the model has {size} inputs; give as many different names, not {len(names)}")
    if features is None:
        return list(range(size))
    found: list[int] = []
    for feature in [features] if isinstance(features, int | str) else features:
        if isinstance(feature, str) and names is not None and feature in names:
            found.append(list(names).index(feature))
            continue
        if isinstance(feature, str) and not (feature.isascii() and feature.isdigit()):
            known = "give their names" if names is None else f"they are {', '.join(names[:8])}"
            raise UsageError(f"there is no feature {feature!r}; {known}, or a position from 0 to {size - 1}")
        if not 0 <= int(feature) < size:
            raise UsageError(f"there is no feature {feature}; the model has {size} inputs")
        found.append(int(feature))
    if not found:
        raise UsageError(f"name at least one feature, by a position from 0 to {size - 1} or by its name")
    return list(dict.fromkeys(found))


def _words(region: Region, boxes: Interval) -> dict[str, Any]:
    if isinstance(region, Ball):
        return region.to_json()
    return {
        "kind": "box",
        "low": boxes.lower[0].flatten().tolist(),
        "high": boxes.upper[0].flatten().tolist(),
    }
