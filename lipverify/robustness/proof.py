"""Certificates of radii: for every point and rival a value above 0 on the ball, proved by the independent checker.

A margin is the linear bound on a ball, or such a bound on a smaller one less constants times the widths of shells outward
(`robustness.shells`). What the search found is a hint; the checker's own numbers decide, and the radius ends where they do.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lipverify.analyzers.protocol import Report
from lipverify.certificates.format import Author, Issued, radius_claim
from lipverify.certificates.issuing import Subject, subject_of, written
from lipverify.certificates.pending import ENDED
from lipverify.certificates.writing import NOTHING, Condition, Flat, Layer, Part, Writer
from lipverify.deadline import look, within
from lipverify.errors import BudgetEnded, LipverifyError, NotCovered, RefutedCertificate
from lipverify.ir.graph import Graph
from lipverify.ir.norm import Norm
from lipverify.ir.region import Ball
from lipverify.robustness.branching import Tree
from lipverify.robustness.carried import Array, Carried, Multipliers, Outward, Path
from lipverify.robustness.constants import PairConstants
from lipverify.robustness.ends import End
from lipverify.robustness.pairs import rivals
from lipverify.robustness.plan import Plan, Record

LESS = (0.0, 1e-6, 1e-3, 1e-2, 4.5e-2)
"""How much smaller balls are tried where linear bounds alone have to hold, relatively."""
PARTED = {"alpha-crown", "branching"}
"""Methods whose margins lines alone need not reach."""
PARTS, WORK = 256, 1 << 21
"""Parts of a ball for one rival, and how many numbers all their lines together hold, about."""
MOST = 0.05
"""What the checker's radius may be below that of the search, relatively; beyond it the point stays `real` and says both."""
LEAST = 0.1
"""Where lines know no number of the whole radius they are asked for this part of it, and for no other if they know none there."""
CLOSE, NEAR, HALVINGS = 0.03, 0.03, 3
"""A search ends where a radius without a proof is so little above one that has, relatively, or where its end is foreseen so
near; over parts after so many steps."""
HOPELESS = 8
"""Margins are lost like this power of the radius at most: what is lost beyond all of it is not made good by `LESS`."""
WHOLE = 0.8
"""The part of the time of proofs that those of the radii themselves may take."""


class _Proved(NamedTuple):
    """A radius and the facts that prove it, one for every rival; whole: it is the search's, up to `MOST`."""

    radius: float
    facts: list[int]
    whole: bool


@dataclass(frozen=True)
class Certified:
    """The records, `checked` where the checker has proved their radius, and the certificate of all these points."""

    records: tuple[Record, ...]
    issued: Issued | None


def certified(
    graph: Graph,
    plan: Plan,
    records: Sequence[Record],
    x: Tensor,
    constants: PairConstants | None,
    report: Report,
    deadline: float | None = None,
) -> Certified:
    """One certificate for every point of which the checker proves a radius; what is less than the search found says why.

    Statement: of every point in the certificate, no input within its radius (in the box) has another largest output.
    Source: `robustness.shells`, step by step in the checker's language.

    Args:
        deadline: moment at which proofs end.
    """
    waiting = [r for r in records if r.radius > 0]
    if plan.method == "smoothing" or not waiting:
        return Certified(tuple(records), None)
    try:
        with within(_share(deadline, 0.0)):
            look()
            subject = subject_of(graph)
    except BudgetEnded:
        return Certified(tuple(replace(r, unchecked=ENDED) if r.radius > 0 else r for r in records), None)
    except (LipverifyError, OSError) as error:
        return Certified(
            tuple(replace(r, unchecked=str(error)) if r.radius > 0 else r for r in records), None
        )
    rows = {record.index: row for row, record in enumerate(waiting)}
    centres = torch.stack([x[r.index] for r in waiting]).double()
    box = None
    if plan.box is not None:
        low, high = (np.full(graph.input.size, end, dtype=np.float64) for end in plan.box)
        box = low, high
    writer = Writer(graph, subject.program, centres.flatten(1).numpy(), box)
    rounds = _Rounds(_Proving(writer, plan, graph.output.size, constants), rows, waiting, waiting)
    issued, cost = None, 0.0
    held: dict[int, _Proved] = {}
    while rounds.more(_share(deadline, cost), report):
        # What is proved is proved once more from its bytes, for which as much is left; what that leaves is for the others.
        before = time.monotonic()
        try:
            made = _written(writer, rounds.proved, waiting, rows, centres, graph, subject, plan)
            with within(deadline):
                made.check(subject.model)
        except LipverifyError as error:
            reason = ENDED if isinstance(error, BudgetEnded) else str(error)
            lost = {k for k, found in rounds.proved.items() if held.get(k) is not found}
            rounds.reasons |= {k: rounds.reasons.get(k, reason) for k in lost}
            break
        issued, held, cost = made, dict(rounds.proved), time.monotonic() - before
    reasons = rounds.reasons
    return Certified(tuple(_told(r, held.get(r.index), reasons.get(r.index)) for r in records), issued)


def _share(deadline: float | None, cost: float) -> float | None:
    """The end of a round of proofs: what checking took last stays free twice, and of the rest as much as checking may take."""
    now = time.monotonic()
    return None if deadline is None else now + 0.6 * max(deadline - now - 2.0 * cost, 0.0)


@dataclass
class _Rounds:
    """What is proved, and of what is not why; `whole`, `parts`: the points whose radius, or a smaller one, is still to prove."""

    proving: _Proving
    rows: dict[int, int]
    whole: Sequence[Record]
    parts: Sequence[Record]
    proved: dict[int, _Proved] = field(default_factory=dict)
    reasons: dict[int, str] = field(default_factory=dict)

    def more(self, end: float | None, report: Report) -> bool:
        """A round of proofs; whether anything is proved that was not. Radii as a whole come first."""
        before = dict(self.proved)
        now = time.monotonic()
        self.whole = self._each(
            self.whole, end if end is None else now + WHOLE * max(end - now, 0.0), self._point, report
        )
        there = [r for r in self.parts if not (r.index in self.proved and self.proved[r.index].whole)]
        self.parts = self._each(there, end, self._smaller, report)
        return self.proved != before

    def _each(
        self,
        records: Sequence[Record],
        end: float | None,
        prove: Callable[[Record], _Proved],
        report: Report,
    ) -> list[Record]:
        """Those that the end of the round left."""
        left = []
        for record in records:
            report(f"proof of point {record.index}", None)
            try:
                with within(end), self.proving.writer.attempt():
                    look()
                    found, known = prove(record), self.proved.get(record.index)
                    if found.whole:
                        self.reasons.pop(record.index, None)
                    if found.whole or known is None or found.radius > known.radius:
                        self.proved[record.index] = found
            except BudgetEnded:
                left.append(record)
                self.reasons.setdefault(record.index, ENDED)
            except LipverifyError as error:  # one point's failure never loses the others
                if self.reasons.get(record.index, ENDED) == ENDED:
                    self.reasons[record.index] = str(error)
        return left

    def _point(self, record: Record) -> _Proved:
        found = self.proving.point(record, self.rows[record.index])
        if not found.whole:
            shown = f"the checker alone proves a radius of {found.radius:.6g}, the search {record.radius:.6g}"
            self.reasons[record.index] = shown
        return found

    def _smaller(self, record: Record) -> _Proved:
        return self.proving.smaller(record, self.rows[record.index], self.proved.get(record.index))


def _told(record: Record, proved: _Proved | None, reason: str | None) -> Record:
    if proved is not None and not proved.whole:
        return replace(record, proved=proved.radius, unchecked=reason or ENDED)
    if proved is not None:
        radius = min(record.radius, proved.radius)
        note = record.note
        if radius < record.radius * (1 - 1e-6):
            note = f"the radius is what the checker proves; the search found {record.radius:.6g}"
        return replace(record, radius=radius, checked=True, note=note)
    return record if reason is None else replace(record, unchecked=reason)


def _written(
    writer: Writer,
    proved: dict[int, _Proved],
    waiting: Sequence[Record],
    rows: dict[int, int],
    centres: Tensor,
    graph: Graph,
    subject: Subject,
    plan: Plan,
) -> Issued:
    there = [r for r in waiting if r.index in proved]
    keep = [rows[r.index] for r in there]
    # Only the points that are proved are in the certificate.
    region = Ball(centres[keep], 0.0, plan.norm, plan.box)
    facts = [fact for r in there for fact in proved[r.index].facts]
    radius = tuple(proved[r.index].radius for r in there)
    claim = radius_claim(region, tuple(r.label for r in there), radius)
    author = Author(
        f"radius: {plan.method}",
        repr(plan),
        sum(r.seconds for r in there),
        more={"points": [r.index for r in there]},
    )
    places = {row: place for place, row in enumerate(keep)}
    return written(writer, facts, claim, graph, subject, author, region, places)


@dataclass(frozen=True)
class _Proving:
    writer: Writer
    plan: Plan
    classes: int
    constants: PairConstants | None
    values: dict[tuple[int, float], float] = field(default_factory=dict)
    """By row and radius the least margin that lines show, where they know a number."""

    def point(self, record: Record, row: int) -> _Proved:
        """The search's radius, up to a twentieth; else the largest that its path reaches in the checker's numbers.

        Raises:
            NotCovered: none.
        """
        best: _Proved | None = None
        reasons: list[str] = []
        # Where nothing is proved of the smallest ball nothing is of those between: the rest is asked only where it helps.
        for less in (LESS[0], LESS[-1], *LESS[1:-1]):
            if best is None and reasons and (len(reasons) > 1 or self._hopeless(record, row)):
                break
            try:
                with self.writer.attempt():
                    found = self._within(record, row, record.radius * (1.0 - less))
            except RefutedCertificate as error:
                reasons.append(str(error))
                continue
            best = found if best is None or found.radius > best.radius else best
            if found.whole and less != LESS[-1]:
                break
        if best is None:
            raise NotCovered(f"{reasons[0]}, and as little on balls up to {LESS[-1]:.1%} smaller")
        return best

    def _hopeless(self, record: Record, row: int) -> bool:
        """Whether lines alone have to do it, and are far from it at the search's radius or know no number there."""
        paths = () if record.carried is None else record.carried.paths
        if PARTED & set(self.plan.parts) or any(path.shells for path in paths):
            return False
        value = self.values.get((row, record.radius), -math.inf)
        return (1.0 - value / record.margin) * (1.0 - LESS[-1]) ** HOPELESS > 1.0

    def smaller(self, record: Record, row: int, known: _Proved | None = None) -> _Proved:
        """The largest radius found between what is known and the search's that lines reach, on the whole ball or on parts.

        What each step has proved is kept, also where the time ends.

        Raises:
            NotCovered: none of those that are tried.
        """
        end = End(record.margin, 0.0 if known is None else known.radius, record.radius, CLOSE, NEAR)
        end.told(record.radius, min(self.values.get((row, record.radius), -math.inf), 0.0))
        others = (found * (1.0 - LESS[2]) for found in record.by_method.values())
        tried = [r for r in others if end.low < r < record.radius * (1.0 - LESS[2])]
        least, best = LEAST * record.radius, known
        unseen = not end.lost and best is None
        radius = max(tried, default=None) or (least if unseen else end.following())
        try:
            while radius is not None:
                found = self._lines(record, row, radius, parts=False)
                value = self.values.get((row, radius), -math.inf)
                end.told(radius, value if (found is not None) == (value > 0) else -math.inf)
                best = found or best
                if best is None and radius <= least:
                    break
                unseen = not end.lost and best is None
                radius = least if unseen else end.following()
        except BudgetEnded:
            if best is None:
                raise
        if best is None:
            raise NotCovered("nor at a tenth of it")
        return self._halved(record, row, best) if PARTED & set(self.plan.parts) else best

    def _halved(self, record: Record, row: int, best: _Proved) -> _Proved:
        """What a few halvings between a proof and the search's radius reach by lines over parts of the ball."""
        above = record.radius
        with suppress(BudgetEnded):
            for _ in range(HALVINGS):
                if above <= best.radius * (1.0 + CLOSE):
                    break
                middle = 0.5 * (best.radius + above)
                found = self._lines(record, row, middle, parts=True)
                best, above = (best, middle) if found is None else (found, above)
        return best

    def _lines(self, record: Record, row: int, radius: float, parts: bool) -> _Proved | None:
        """What lines prove at a radius, or nothing."""
        with suppress(RefutedCertificate), self.writer.attempt():
            found = self._within(replace(record, radius=radius, carried=None), row, radius, parts=parts)
            return found._replace(whole=False)
        return None

    def _within(self, record: Record, row: int, radius: float, parts: bool = True) -> _Proved:
        others = [j for j in range(self.classes) if j != record.label]
        carried = record.carried or Carried((Path(radius, ()),) * len(others))
        margins = []
        for k, rival in enumerate(others):
            margin = self._margin(record.label, rival, k, row, radius, carried, parts)
            if margin.reach < radius * (1.0 - 1e-6) and carried.paths[k].shells:
                # The shells begin with a smaller margin than in the search: lines on the whole ball, or its parts, may do.
                with suppress(RefutedCertificate):
                    value, low = self._value(record.label, rival, radius, row)
                    margin = _Margin(rival, value, low, radius, (), radius) if low > 0 else margin
            margins.append(margin)
        reached = min(margin.reach for margin in margins)
        if not reached > 0:
            raise NotCovered(
                f"at the search's radius of {record.radius:.6g} the checker alone proves nothing"
            )
        facts = [self._fact(margin, record.label, row, reached) for margin in margins]
        return _Proved(reached, facts, reached >= record.radius * (1.0 - MOST))

    def _margin(
        self, label: int, rival: int, place: int, row: int, radius: float, carried: Carried, parts: bool
    ) -> _Margin:
        """A path in the checker's own numbers, and how far it reaches."""
        path = carried.paths[place]
        start = radius if not path.shells else path.start
        tree = carried.trees.get(path.start, {}).get(place)
        value, low = self._value(label, rival, start, row, tree, parts)
        shells: list[tuple[float, int, Fraction]] = []
        left, before = Fraction(low), start
        for shell in path.shells:
            end = min(shell.end, radius)
            if not left > 0 or end <= before:
                break
            fact = self._constant(label, rival, place, row, shell, carried)
            slope = self.writer.exact_limit(fact)
            reach = float("inf") if slope == 0 else before + float(left / slope)
            if reach <= end:
                # Just inside of where the margin is used up.
                end = min(end, before + float(left / slope) * (1.0 - 1e-9))
            left -= slope * (Fraction(end) - Fraction(before))
            shells.append((end, fact, slope))
            before = end
            if reach <= end:
                break
        return _Margin(rival, value, low, start, tuple(shells), before if left > 0 and low > 0 else 0.0)

    def _value(
        self, label: int, rival: int, radius: float, row: int, tree: Tree | None = None, parts: bool = True
    ) -> tuple[int, float]:
        """A margin by lines over a ball; over parts of it, where they were searched for or split in the search too."""
        part = self._part(radius, row)
        value, low = self.writer.value(part, (label, rival))
        self.values[row, radius] = min(low, self.values.get((row, radius), math.inf))
        if low > 0 or not parts or not PARTED & set(self.plan.parts):
            return value, low
        if tree is not None:
            with suppress(RefutedCertificate):
                return self.writer.value_in_tree(part, (label, rival), self._leaves(part, tree)), NOTHING
        size = sum(self.writer.layers(part)) * self.writer.program.steps[0].size
        if not size:
            raise RefutedCertificate("without a neuron parts of the ball prove no more than the whole")
        return self.writer.value_in_parts(part, (label, rival), max(8, min(PARTS, WORK // size)))

    def _leaves(self, part: Part, tree: Tree) -> dict[tuple[Condition, ...], Flat]:
        """The tree in the checker's words, whose layers read the arguments of all ReLUs one after another.

        Raises:
            NotCovered: there are other layers as well.
        """
        sizes = self.writer.layers(part)
        ends = np.cumsum(sizes)

        another = "the checker arranges the layers of this network in another way"

        def condition(number: int, side: int) -> Condition:
            if not number < ends[-1]:
                raise NotCovered(another)
            layer = int(np.searchsorted(ends, number, side="right"))
            return Condition(layer, number - int(ends[layer]) + sizes[layer], 0.0, side > 0)

        found: dict[tuple[Condition, ...], Flat] = {}
        for path, hint in tree.items():
            conditions = tuple(condition(number, side) for number, side in path)
            weights = [0.0] * len(path)
            slopes: list[Array | None] = [None] * len(sizes)
            if hint is not None:
                numbers = hint.numbers.numpy()
                betas = dict(zip(numbers.tolist(), hint.betas.tolist(), strict=True))
                weights = [betas.get(number, 0.0) for number, _ in path]
                whole = np.zeros(int(ends[-1]))
                if not (numbers < len(whole)).all():
                    raise NotCovered(another)
                whole[numbers] = hint.slopes.double().numpy()
                slopes = list(np.split(whole, ends[:-1]))
            found[conditions] = weights, slopes
        return found

    def _fact(self, margin: _Margin, label: int, row: int, radius: float) -> int:
        shells = [(min(end, radius), fact) for end, fact, _ in margin.shells]
        # Another rival may end the walk inside of the ball that this one's value is about.
        inside, before = [], margin.start
        for end, fact in shells:
            if end <= before:
                break
            inside.append((end, fact))
            before = end
        return self.writer.walk(margin.value, [(fact, self._region(end, row)) for end, fact in inside])

    def _constant(
        self, label: int, rival: int, place: int, row: int, shell: Outward, carried: Carried
    ) -> int:
        if shell.ball is None:
            return self._everywhere(label, rival)
        part = replace(self._part(shell.ball, row), upper=shell.slope)
        known = carried.multipliers.get((shell.ball, place))
        key = "constant", part.region, label, rival
        if known is None:
            return self.writer.once(key, lambda: self.writer.jacobian(part, difference=(label, rival)))
        return self.writer.once(key, lambda: self._multipliers(part, known, label, rival))

    def _everywhere(self, label: int, rival: int) -> int:
        """The constant of a difference over the whole space."""
        part = self.writer.part(None, (str(self.plan.norm), "l2"), math.inf)
        a, b = sorted((label, rival))
        constants = self.constants
        if constants is not None:
            part = replace(part, upper=float(constants.upper[a, b]))
            known = constants.multipliers.get((a, b))
            if known is not None:
                return self.writer.once(
                    ("constant", None, label, rival), lambda: self._multipliers(part, known, label, rival)
                )
        return self.writer.once(
            ("constant", None, label, rival), lambda: self.writer.difference(part, label, rival)
        )

    def _multipliers(self, part: Part, known: Multipliers, label: int, rival: int) -> int:
        layers = [Layer(len(low), np.arange(len(low)), low, high) for low, high in known.slopes]
        weights = None
        if self.plan.norm is not Norm.L2:
            ones = np.ones(self.writer.program.steps[0].size)
            weights = ones if known.weights is None else known.weights
        return self.writer.multipliers(
            part, known.diagonals, row=label, minus=rival, weights=weights, layers=lambda: layers
        )

    def _part(self, radius: float, row: int) -> Part:
        return self.writer.part(self._region(radius, row), (str(self.plan.norm), "l2"), math.inf, row)

    def _region(self, radius: float, row: int) -> int:
        return self.writer.region(str(self.plan.norm), radius, row, self.plan.box is not None)


@dataclass(frozen=True)
class _Margin:
    """value: the fact it begins with, `low` at least, on the ball of `start`; shells: (end, constant, its number); reach: where
    it is used up."""

    rival: int
    value: int
    low: float
    start: float
    shells: tuple[tuple[float, int, Fraction], ...]
    reach: float


__all__ = ["Certified", "certified", "rivals"]
