"""Certificates of radii: for every point and rival a value above 0 on the ball, proved by the independent checker.

A margin is the linear bound on a ball, or such a bound on a smaller one less constants times the widths of shells outward
(`robustness.shells`). What the search found is a hint; the checker's own numbers decide, and the radius ends where they do.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from fractions import Fraction

import numpy as np
import torch
from torch import Tensor

from lipverify.analyzers.protocol import Report
from lipverify.certificates.format import Author, Issued, radius_claim
from lipverify.certificates.issuing import Subject, subject_of, written
from lipverify.certificates.writing import NOTHING, Condition, Flat, Layer, Part, Writer
from lipverify.deadline import look, within
from lipverify.errors import BudgetEnded, LipverifyError, NotCovered, RefutedCertificate
from lipverify.ir.graph import Graph
from lipverify.ir.norm import Norm
from lipverify.ir.region import Ball
from lipverify.robustness.branching import Tree
from lipverify.robustness.carried import Array, Carried, Multipliers, Outward, Path
from lipverify.robustness.constants import PairConstants
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
SMALLER = (0.9, 0.75, 0.5, 0.25, 0.1)
"""Parts of a radius without a proof at which lines are tried, beside what `crown` found: the first they reach is printed."""
WHOLE = 0.8
"""The part of the time of proofs that those of the radii themselves may take."""


UNPROVED = "the budget ended before the checker had proved it; give a larger --budget"


_Proved = tuple[float, list[int]]
"""A radius and the facts that prove it, one for every rival."""


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
    half = None if deadline is None else time.monotonic() + 0.6 * max(deadline - time.monotonic(), 0.0)
    try:
        with within(half):
            look()
            subject = subject_of(graph)
    except BudgetEnded:
        return Certified(tuple(replace(r, unchecked=UNPROVED) if r.radius > 0 else r for r in records), None)
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
    proving = _Proving(writer, plan, graph.output.size, constants)
    proved: dict[int, _Proved] = {}
    reasons: dict[int, str] = {}
    # What is proved is proved once more from its bytes, for which as much is left.
    now = time.monotonic()
    ends = (half if half is None else now + WHOLE * max(half - now, 0.0), half)
    for prove, end in zip((proving.point, proving.smaller), ends, strict=True):
        for record in waiting:
            if record.index in proved:
                continue
            report(f"proof of point {record.index}", None)
            try:
                with within(end), writer.attempt():
                    look()
                    proved[record.index] = prove(record, rows[record.index])
            except BudgetEnded:
                reasons.setdefault(record.index, UNPROVED)
            except LipverifyError as error:  # one point's failure never loses the others
                reasons.setdefault(record.index, str(error))
    issued = None
    if proved:
        try:
            issued = _written(writer, proved, waiting, rows, centres, graph, subject, plan)
            with within(deadline):
                issued.check(subject.model)
        except BudgetEnded:
            issued, reasons, proved = None, dict.fromkeys(rows, UNPROVED), {}
        except LipverifyError as error:
            issued, reasons, proved = None, dict.fromkeys(rows, str(error)), {}
    return Certified(tuple(_told(r, proved.get(r.index), reasons.get(r.index)) for r in records), issued)


def _told(record: Record, proved: _Proved | None, reason: str | None) -> Record:
    if proved is not None and reason is not None:
        return replace(record, proved=proved[0], unchecked=reason)
    if proved is not None:
        radius = min(record.radius, proved[0])
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
    facts = [fact for r in there for fact in proved[r.index][1]]
    radius = tuple(proved[r.index][0] for r in there)
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

    def point(self, record: Record, row: int) -> _Proved:
        """A radius that is proved, and a value above 0 for every rival on its ball.

        Raises:
            RefutedCertificate: none within a twentieth of that of the search.
        """
        reasons = []
        for less in LESS:
            radius = record.radius * (1.0 - less)
            try:
                with self.writer.attempt():
                    return self._within(record, row, radius)
            except RefutedCertificate as error:
                reasons.append(str(error))
        raise NotCovered(f"{reasons[0]}, and as little on balls up to {LESS[-1]:.1%} smaller")

    def smaller(self, record: Record, row: int) -> _Proved:
        """A radius below that of the search which lines on the whole ball reach.

        Raises:
            NotCovered: none of those that are tried.
        """
        crown = record.by_method.get("crown", 0.0) * (1.0 - LESS[2])
        tried = {radius for part in SMALLER if (radius := record.radius * part) < crown or not crown}
        tried |= {crown} if 0.0 < crown < record.radius * (1.0 - MOST) else set()
        for radius in sorted(tried, reverse=True):
            with suppress(RefutedCertificate), self.writer.attempt():
                return self._within(replace(record, radius=radius, carried=None), row, radius, parts=False)
        raise NotCovered("nor at a tenth of it")

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
        if not reached >= record.radius * (1.0 - MOST):
            shown = f"the checker alone proves a radius of {max(reached, 0.0):.6g}, the search {record.radius:.6g}"
            raise NotCovered(shown)
        return reached, [self._fact(margin, record.label, row, reached) for margin in margins]

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
        if low <= 0 and not parts:
            raise RefutedCertificate("lines over the whole ball do not reach it")
        if low > 0 or not PARTED & set(self.plan.parts):
            return value, low
        if tree is not None:
            with suppress(RefutedCertificate):
                return self.writer.value_in_tree(part, (label, rival), self._leaves(part, tree)), NOTHING
        size = sum(self.writer.layers(part)) * self.writer.program.steps[0].size
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
