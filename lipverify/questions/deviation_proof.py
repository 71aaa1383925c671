"""Certificates of deviations: the independent checker bounds the difference of both models again, from their own files.

Which layers are paired, and which network's values the other's are written by, is a hint: the checker's own numbers decide.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from lipverify.analyzers.protocol import Compute
from lipverify.certificates.format import (
    Author,
    Issued,
    ball_document,
    balls_of,
    claim_document,
    document_of_two,
    region_arrays,
)
from lipverify.certificates.issuing import MOST, Subject, subject_of
from lipverify.certificates.writing import Condition, Part, Writer
from lipverify.checkers import Deviation, digest_of
from lipverify.checkers.claims import Balls
from lipverify.checkers.deviation import Box
from lipverify.checkers.kernel.arithmetic import above, root_above
from lipverify.checkers.kernel.language import Rows
from lipverify.checkers.kernel.program import same
from lipverify.checkers.regions import BOX
from lipverify.combine import Difference, difference
from lipverify.combine.survivors import Kept
from lipverify.errors import BudgetEnded, LipverifyError, NotCovered
from lipverify.ir.certificate import Rigour
from lipverify.ir.graph import Graph
from lipverify.ir.interval import Interval
from lipverify.ir.op import Shape
from lipverify.ir.region import Ball
from lipverify.loading.safetensors import write_safetensors
from lipverify.propagation import bounds
from lipverify.questions.pairing import counterparts, some_of_them, weight
from lipverify.questions.regions import InputBox
from lipverify.questions.splitting import Splitting, Tree, divisible, remembered

MOST_NUMBERS = 5 << 22
"""In the lines of two networks whose deviation is proved; a convolutional network of MNIST has 17 million, and takes 30 seconds
for each region with its check. At 28 million writing takes 77 s, and reading more memory than a check may take."""
MOST_OF_ALL = 1 << 27
"""In the lines of all regions that are proved without a budget."""
PARTS, MORE, ALONE = 512, 4096, 8
"""Parts of one region in a proof; and where there are at most `ALONE` regions, of one that is further than `FAR` times from the
largest value seen."""
NEAR, FAR, GAIN = 1.25, 1.9, 0.05
"""A region is not cut further when its bound is so near to the largest value seen, or when twice as many parts gain no more than
this."""
BATCH = 128
"""Parts that are cut at once: one takes as long as thirty. Of those that were not among the worst the proof takes none."""
TOO_FEW = 16
"""Where the checker has not the time for so many parts, none are looked for: the first ranges take as long as a few."""
SPENT = 0.9
"""The part of the time of a region that is planned for."""


@dataclass(frozen=True)
class Asked:
    """What is to be proved. wanted [count]: the bounds that were found; labels: of balls that are said to keep one, else None;
    differences: whether those of two outputs are wanted too; parts: into how many one region may be cut; kept: of a copy with
    fewer channels, as `combine.survivors.Grown`; carried: the difference, where it is known already."""

    f: Graph
    g: Graph
    region: Ball
    norm_out: str
    wanted: Sequence[float]
    differences: bool = False
    labels: Sequence[int | None] | None = None
    parts: int | None = None
    kept: Sequence[tuple[Shape, Kept]] = ()
    carried: Difference | None = None


@dataclass(frozen=True)
class Certified:
    """The certificate with what it proves, one number for each region; or why there is none.

    far: region -> the input [inputs] of the largest difference that was seen on the way; not trusted.
    """

    issued: Issued | None
    upper: tuple[float, ...] = ()
    differences: tuple[tuple[float, ...], ...] | None = None
    labels: tuple[int | None, ...] | None = None
    reason: str | None = None
    far: Mapping[int, np.ndarray[Any, Any]] = field(default_factory=dict)


def certified(asked: Asked, compute: Compute) -> Certified:
    """The certificate of a deviation; with a deadline it is about the balls that fit in.

    Statement: `checkers.deviation.Deviation`, about the files of both models.
    Source: `checkers.theories.carried`; lines pushed back to the input as in `lipverify.bounds`.
    """
    started = time.monotonic()
    if asked.region.own:
        return Certified(None, reason="each centre has a box of its own; the checker knows one box for all")
    try:
        subjects = subject_of(asked.f), subject_of(asked.g)
        program = subjects[0].program.beside(subjects[1].program)
        centres = np.empty((0, asked.f.input.size))
        arrays = {name: array.numpy() for name, array in region_arrays(asked.region).items()}
        if not isinstance(asked.region, InputBox):
            centres = arrays["centres"]
        box = (arrays["box"][0], arrays["box"][1]) if "box" in arrays else None
        alike = same(subjects[0].program.steps, subjects[1].program.steps)
        writer = Writer(asked.f, program, centres, box)
        proving = _Proving(asked, writer, subjects, compute)
        if (numbers := proving.numbers()) > MOST_NUMBERS:
            raise NotCovered(
                f"lines of {numbers:,} numbers; for more than {MOST_NUMBERS:,} a check takes minutes, and more memory than it may"
            )
        claim, facts = proving.nothing() if alike else proving.claim()
        author = Author("deviation", f"norm_out={asked.norm_out}", time.monotonic() - started)
        issued = _written(asked, proving.region, subjects, writer, claim, facts, author)
        issued.check([s.model for s in subjects])
    except BudgetEnded:
        raise
    except OSError as error:
        return Certified(None, reason=f"a model file cannot be read again ({error.strerror})")
    except LipverifyError as error:
        return Certified(None, reason=str(error))
    return Certified(issued, claim.upper, claim.differences, claim.labels, _less(claim, asked), proving.far)


def _less(claim: Deviation, asked: Asked) -> str | None:
    """What the certificate says less than was found."""
    if len(claim.upper) < len(asked.wanted):
        proved = f"{len(claim.upper)} of {len(asked.wanted)} regions"
        return f"the certificate is about the first {proved}; a longer --budget proves more"
    worst = max(zip(claim.upper, asked.wanted, strict=True), key=lambda pair: pair[0] / max(pair[1], 1e-300))
    return f"the checker alone proves {worst[0]:.6g}, the bound is {worst[1]:.6g}"


def _written(
    asked: Asked,
    region: Ball,
    subjects: tuple[Subject, Subject],
    writer: Writer,
    claim: Deviation,
    facts: Sequence[int],
    author: Author,
) -> Issued:
    proof, arrays, balls = writer.finished(facts)
    abouts = [s.about for s in subjects]
    document = document_of_two((asked.f, asked.g), abouts, claim_document(claim, *abouts), author)
    document |= {
        "rigour": str(Rigour.CHECKED),
        "proof": proof,
        "regions": [ball_document(*ball) for ball in balls],
        "architecture": [None if s.described is None else s.described.document for s in subjects],
        "tensors": [{} if s.described is None else s.described.tensors for s in subjects],
    }
    beside = {name: torch.from_numpy(np.array(array)) for name, array in arrays.items()}
    for more in (region_arrays(region), *(s.arrays() for s in subjects)):
        beside |= more
    if isinstance(asked.region, InputBox):
        del beside["centres"]
    return Issued(document, write_safetensors(beside) if beside else None)


@dataclass(frozen=True)
class _Region:
    upper: float
    facts: list[int]
    differences: tuple[tuple[float, ...], ...] | None
    label: int | None


def _size(box: Interval) -> torch.Tensor:
    """The largest absolute value in ranges [n, entries]: [n]."""
    return torch.maximum(box.upper, -box.lower).amax(1)


@dataclass(frozen=True)
class _Leaf:
    """A part with the facts of both signs of all entries, and the bound that they are."""

    part: Part
    facts: list[int]
    bound: float


class _Proving:
    """Facts for one region after another."""

    def __init__(
        self, asked: Asked, writer: Writer, subjects: tuple[Subject, Subject], compute: Compute
    ) -> None:
        self.asked, self.writer, self.compute, self.region = asked, writer, compute, asked.region
        self.size = subjects[0].program.steps[-1].size
        self.far: dict[int, np.ndarray[Any, Any]] = {}
        elements = writer.subject.elements
        count = sum(k <= elements.place[len(subjects[0].program.steps) - 1] for k in elements.layers)
        sizes = [weight(s.program) for s in subjects]
        # A change passes through the weights of the network that is written by the other: the smaller ones.
        self.pairs: dict[int, tuple[int, Sequence[int] | None]] = {
            (second if sizes[1] <= sizes[0] else first): (first if sizes[1] <= sizes[0] else second, None)
            for first, second in counterparts(elements, count)
        }
        if asked.kept:
            self.pairs = some_of_them(elements, count, asked.kept)

    def numbers(self) -> int:
        """About how many numbers the lines of one layer over the one before are, in all."""
        elements = self.writer.subject.elements
        sizes = [elements.size(k) for k in range(-1, len(elements.layers))]
        return sum(a * b for a, b in pairwise(sizes))

    def claim(self) -> tuple[Deviation, list[int]]:
        """The claim of what is proved, and its facts; `region` is cut to the balls it is about."""
        found: list[_Region] = []
        longest = 0.0
        for k in range(len(self.region)):
            over = self.compute.deadline is None and (k + 1) * self.numbers() > MOST_OF_ALL
            # One that is begun too late leaves no time to read what is written, and all of it would be lost.
            if found and (over or self.compute.remaining() <= longest):
                self.region = Ball(
                    self.region.center[:k], self.region.radius, self.region.norm, self.region.box
                )
                break
            self.compute.report(f"proof of region {k}", None)
            before = time.monotonic()
            found.append(self._proved(k))
            longest = max(longest, time.monotonic() - before)
        labels = None if self.asked.labels is None else tuple(one.label for one in found)
        upper, facts = tuple(one.upper for one in found), [fact for one in found for fact in one.facts]
        return Deviation(self.asked.norm_out, self._described(), upper, found[0].differences, labels), facts

    def nothing(self) -> tuple[Deviation, list[int]]:
        """Of one model beside itself: no difference, and no fact that is needed."""
        count = len(self.region)
        table = ((0.0,) * self.size,) * self.size if self.asked.differences else None
        return Deviation(self.asked.norm_out, self._described(), (0.0,) * count, table, None), []

    def _proved(self, k: int) -> _Region:
        """Region k: its bound, differences of entries, its label; with the facts in the order of `Deviation.rows`."""
        asked, ball = self.asked, self.region
        cut = BOX if isinstance(ball, InputBox) else (str(ball.norm), ball.radius, k, ball.box is not None)
        part = Part(
            k, self.writer.region(*cut), 0.0, ("linf", "linf"), 0, self.writer.last, (0, 3 * self.size)
        )
        before = time.monotonic()
        whole = self.writer.carried(part, self.pairs)
        bound, facts = self._bound(whole)
        if asked.norm_out == "linf" and divisible(ball) and not self._difference.zero:
            bound, facts = self._split(k, _Leaf(part, facts, bound), max(time.monotonic() - before, 1e-6))
        table = None
        if asked.norm_out == "pairs" or asked.differences:
            table, own = self._table(whole)
            facts += own
            bound = max(v for row in table for v in row) if asked.norm_out == "pairs" else bound
        label = None if asked.labels is None else asked.labels[k]
        if label is not None:
            label, own = self._label(whole, label)
            facts += own
        return _Region(bound, facts, table if asked.differences else None, label)

    def _described(self) -> Balls | Box:
        if not isinstance(self.asked.region, InputBox):
            found = balls_of(self.region)
            assert found is not None
            return found
        ends = region_arrays(self.region)["box"].numpy()
        alike = all(bool((end == end[0]).all()) for end in ends)
        return Box(digest_of(ends), (float(ends[0][0]), float(ends[1][0])) if alike else None)

    def _bound(self, whole: int) -> tuple[float, list[int]]:
        """What the entries of f - g are at most in size, and the facts of it."""
        n, facts, sizes = self.size, [], []
        if self.asked.norm_out == "linf":
            for sign in (1, -1):
                number, low = self.writer.at_least(whole, Rows(2 * n, 3 * n), sign)
                facts.append(number)
                sizes.append(-low)
            return max(*sizes, 0.0), facts
        squares = Fraction(0)
        for i in range(n if self.asked.norm_out == "l2" else 0):
            ends = [self.writer.at_least(whole, Rows(2 * n + i, 2 * n + i + 1), sign) for sign in (1, -1)]
            facts += [number for number, _ in ends]
            squares += Fraction(max(0.0, *(-low for _, low in ends))) ** 2
        return above(root_above(squares)), facts

    @cached_property
    def _difference(self) -> Difference:
        return self.asked.carried or difference(self.asked.f, self.asked.g)

    @cached_property
    def _entries(self) -> Graph:
        """The entries of f - g."""
        rows = torch.eye(self.size, dtype=torch.float64)
        return self._difference.functionals(rows, rows[:0]).select(0).to(dtype=torch.float64).pruned()

    def _split(self, k: int, whole: _Leaf, cost: float) -> tuple[float, list[int]]:
        """The same, from parts of region k that are cut by `Tree`; the checker's bounds may be the better ones.

        cost: seconds that the checker takes for one part; no more parts are used than fit into the time of the region.
        """
        began, ends = time.monotonic(), self.compute.deadline is not None
        share = SPENT * self.compute.remaining() / (len(self.region) - k)
        if share < TOO_FEW * cost:
            return whole.bound, whole.facts

        def affordable() -> float:
            """Parts that there is still time for."""
            left = began + share - time.monotonic()
            return left / cost if ends else np.inf

        tree = self._grown(k, self.asked.wanted[k] * (1.0 + MOST / 2), affordable)
        if float(tree.seen[0]) > 0.0:
            self.far[k] = tree.far[0].flatten().numpy()
        leaves = tree.leaves(0, max(int(min(affordable(), len(tree))), 1))

        def covered(number: int, part: Part) -> tuple[float, list[int]]:
            if number in leaves:
                if number == 0:
                    return whole.bound, whole.facts
                return self._bound(self.writer.carried(part, self.pairs))
            axis, at, *halves = tree.cuts[number]
            above, below = (
                covered(half, part.within(Condition(-1, axis, at, upper)))
                for half, upper in zip(halves, (True, False), strict=True)
            )
            both = zip(above[1], below[1], strict=True)
            return max(above[0], below[0]), [self.writer.add("cover", above=a, below=b) for a, b in both]

        found = covered(0, whole.part)
        return found if found[0] < whole.bound else (whole.bound, whole.facts)

    def _grown(self, k: int, wanted: float, affordable: Callable[[], float]) -> Tree:
        """Parts of region k, until their bound is what was found and near the largest value seen at an input, or time is over;
        below what was found as long as twice as many parts are worth it."""
        graph, region, search = self._entries, self.region[k : k + 1], self.compute
        box = bounds(graph, region, device=search.device).output
        first = Interval(box.lower.cpu().flatten(1), box.upper.cpu().flatten(1))
        most = PARTS, MORE if len(self.region) <= ALONE else PARTS
        if self.asked.parts is not None:
            most = self.asked.parts, self.asked.parts
        near = NEAR if search.deadline is None else Splitting.near
        kept = remembered(graph, Splitting.remembered // max(most))
        tree = Tree(
            graph, region, first, _size, search, moving=self.asked.f.to(dtype=torch.float64), kept=kept
        )
        stage, before = 4, np.inf
        while len(tree) < affordable():
            bound, seen = tree.worst(), float(tree.seen[0])
            if len(tree) >= most[bound > FAR * seen]:
                break
            if bound <= wanted and (
                bound <= near * seen or (len(tree) >= stage and bound > (1.0 - GAIN) * before)
            ):
                break
            if len(tree) >= stage:
                stage, before = 2 * len(tree), bound
            if not tree.grow(near, min(BATCH, most[bound > FAR * seen] - len(tree))):
                break
        return tree

    def _table(self, whole: int) -> tuple[tuple[tuple[float, ...], ...], list[int]]:
        """What (f - g)_i - (f - g)_j is at most, for all i and j."""
        n, facts = self.size, []
        table = [[0.0] * n for _ in range(n)]
        for i, j in ((i, j) for i in range(n) for j in range(n) if i != j):
            number, low = self.writer.at_least(whole, Rows(2 * n + i, 2 * n + i + 1, 2 * n + j), -1)
            table[i][j] = 0.0 - low
            facts.append(number)
        return tuple(tuple(row) for row in table), facts

    def _label(self, whole: int, label: int) -> tuple[int | None, list[int]]:
        """The label, if it is the largest entry of both networks everywhere, with the facts of that."""
        facts = []
        for start in (0, self.size):
            for j in (j for j in range(self.size) if j != label):
                number, low = self.writer.at_least(
                    whole, Rows(start + label, start + label + 1, start + j), 1
                )
                if not low > 0:
                    return None, []
                facts.append(number)
        return label, facts
