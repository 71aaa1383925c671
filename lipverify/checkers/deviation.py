"""What a certificate about two models claims: how far they differ on a region, and where both have the same largest entry."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from lipverify.checkers.claims import (
    MOST,
    About,
    Balls,
    Claim,
    Expectation,
    entries_of,
    norm_of,
    numbers,
    outward,
    region_of_claim,
)
from lipverify.checkers.kernel.arithmetic import above, root_above
from lipverify.checkers.kernel.language import Rows
from lipverify.checkers.kernel.theorems import AtLeast, Fact
from lipverify.checkers.tables import fields, hexadecimal, integer, text
from lipverify.errors import RefutedCertificate, UnreadableCertificate

NORMS = {
    "linf": "|f(x) - g(x)|_linf",
    "l2": "|f(x) - g(x)|_l2",
    "pairs": "every |(f(x) - g(x))_i - (f(x) - g(x))_j|",
}
MOST_ENTRIES = 1 << 10
"""Entries of an output of which all differences are told."""


@dataclass(frozen=True)
class Box:
    """All inputs between two ends, [2, inputs] in the sidecar; ends: one pair for all inputs, where they are alike."""

    box: str
    ends: tuple[float, float] | None

    count = 1

    def words(self) -> str:
        ends = "" if self.ends is None else f" from {self.ends[0]!r} to {self.ends[1]!r}"
        return f"of the box{ends} with digest {self.box}"

    def to_json(self) -> dict[str, Any]:
        low, high = self.ends or (None, None)
        return {"kind": "box", "box": self.box, "low": low, "high": high}


@dataclass(frozen=True)
class Deviation:
    """`norm` of f(x) - g(x) is at most `upper` on the region, or one number for each ball; x are the same numbers for both.

    differences: null, or for every i, j of one region what (f - g)_i - (f - g)_j is at most: an input whose entry i leads by more
    in f leads in g as well. labels: null, or for each ball the largest entry of f and of g everywhere in it, null where none is
    claimed.
    """

    norm: str
    region: Balls | Box
    upper: tuple[float, ...]
    differences: tuple[tuple[float, ...], ...] | None = None
    labels: tuple[int | None, ...] | None = None

    kind = "deviation"

    @property
    def box(self) -> str | None:
        """The digest of the input box, where one cuts the region."""
        return self.region.box

    def statement(self, first: About, second: About) -> str:
        """The claim as a sentence; of several numbers the largest."""
        said = f"{NORMS[self.norm]} <= {outward(max(self.upper))} for all inputs x {self.region.words()}, the same for both"
        if self.differences is not None:
            said += "; an entry of f that leads another by more than `differences` says leads in g as well"
        if self.labels is not None:
            kept = sum(label is not None for label in self.labels)
            said += f"; in {kept} of {len(self.labels)} balls f and g have one and the same largest entry everywhere"
        return f"{said}; {first.words()}; {second.words('g')}"

    def to_json(self) -> dict[str, Any]:
        """Fields of a verdict."""
        upper = self.upper[0] if isinstance(self.region, Box) else list(self.upper)
        table = None if self.differences is None else [list(row) for row in self.differences]
        return {"upper": upper, "norm_out": self.norm, "region": self.region.to_json(), "differences": table,
                "labels": None if self.labels is None else list(self.labels)}  # fmt: skip

    def counts(self, size: int) -> list[int]:
        """For every region how many facts are claimed."""
        common = {"linf": 2, "l2": 2 * size, "pairs": 0}[self.norm] + self._pairs(size)
        labels = self.labels or (None,) * self.region.count
        return [common + (0 if label is None else 2 * (size - 1)) for label in labels]

    def _pairs(self, size: int) -> int:
        """How many of them are about the difference of two entries."""
        return size * (size - 1) if self.norm == "pairs" or self.differences is not None else 0

    def rows(self, size: int, k: int) -> Iterator[tuple[Rows, int]]:
        """For region k the rows and signs of the facts that are claimed of the step that gives f, g and f - g, one by one."""
        d = 2 * size
        if self.norm == "linf":
            yield from ((Rows(d, 3 * size), s) for s in (1, -1))
        if self.norm == "l2":
            yield from ((Rows(d + i, d + i + 1), s) for i in range(size) for s in (1, -1))
        if self._pairs(size):
            yield from (
                (Rows(d + i, d + i + 1, d + j), -1) for i in range(size) for j in range(size) if i != j
            )
        label = None if self.labels is None else self.labels[k]
        if label is None:
            return
        for start in (0, size):
            yield from (
                (Rows(start + label, start + label + 1, start + j), 1) for j in range(size) if j != label
            )

    def about(self, size: int) -> None:
        """RefutedCertificate where labels or differences are those of more or fewer outputs, or of a single number."""
        known = [] if self.labels is None else [label for label in self.labels if label is not None]
        if size < 2 and (known or self.differences or self.norm == "pairs"):
            raise RefutedCertificate("labels or differences of a single number, of which everything is true")
        if not all(label < size for label in known) or (self.differences and len(self.differences) != size):
            raise RefutedCertificate("labels or differences of other outputs")

    def holds_of_one(self) -> bool:
        """Whether the claim holds of a model beside itself, whatever it computes: no number is negative, no label is claimed."""
        table = [v for row in self.differences or () for v in row]
        return all(v >= 0 for v in table) and all(label is None for label in self.labels or ())

    def follows(self, facts: Sequence[Fact], size: int) -> list[AtLeast]:
        """The facts, if they carry the claim; which regions they are about is looked at elsewhere.

        Raises:
            RefutedCertificate: they do not.
        """
        wanted = sum(self.counts(size))
        if len(facts) != wanted:
            raise RefutedCertificate(f"it names {len(facts)} facts for {wanted} claims")
        left = iter(facts)
        found = []
        for k in range(self.region.count):
            limits: list[Fraction] = []
            for rows, sign in self.rows(size, k):
                fact = next(left)
                if not isinstance(fact, AtLeast) or not _holds(fact, rows, sign):
                    raise RefutedCertificate("a fact it names is no value of these entries")
                found.append(fact)
                limits.append(fact.limit)
            self._carried(k, limits, size)
        return found

    def _carried(self, k: int, limits: list[Fraction], size: int) -> None:
        """RefutedCertificate unless these limits, in the order of `rows`, are what is claimed of region k."""
        entries = {"linf": 2, "l2": 2 * size, "pairs": 0}[self.norm]
        count = self._pairs(size)
        own, pairs, rest = limits[:entries], [-v for v in limits[entries:][:count]], limits[entries + count :]
        if self.norm == "pairs":
            proved = max(pairs)
        elif self.norm == "linf":
            proved = max(-v for v in own)
        else:
            # f - g is at least low, and at most -high.
            sizes = [max(-low, -high, Fraction(0)) for low, high in zip(own[::2], own[1::2], strict=True)]
            proved = root_above(sum((s * s for s in sizes), Fraction(0)))
        if not proved <= Fraction(self.upper[k]):
            raise RefutedCertificate(
                f"its evidence proves {outward(above(proved))}, not {outward(self.upper[k])}"
            )
        if self.differences is not None:
            told = [self.differences[i][j] for i in range(size) for j in range(size) if i != j]
            if not all(v <= Fraction(t) for v, t in zip(pairs, told, strict=True)):
                raise RefutedCertificate("its evidence does not prove its table of differences")
        if not all(v > 0 for v in rest):
            raise RefutedCertificate("a fact it names is a value that is not above 0")


AnyClaim = Claim | Deviation
"""What a certificate may claim, of one model or of two."""


def _holds(fact: AtLeast, rows: Rows, sign: int) -> bool:
    """Whether a fact is about at least these rows."""
    if fact.sign != sign or fact.rows.minus != rows.minus:
        return False
    return fact.rows.low <= rows.low and rows.high <= fact.rows.high


def deviation_of(table: Mapping[str, Any], abouts: Sequence[About]) -> Deviation:
    """The claim of a certificate about two models.

    Raises:
        UnreadableCertificate: not of the known form. RefutedCertificate: its numbers or its sentence contradict each other.
    """
    fields(table, "kind norm_out region upper upper_hex upper_decimal differences labels statement")
    region = _region(table["region"])
    written = [table[k] for k in ("upper", "upper_hex", "upper_decimal")]
    if isinstance(region, Box):
        written = [[n] for n in written]
    upper = numbers(written, outward, region.count)
    differences = None if table["differences"] is None else _table(table["differences"], region)
    labels = None if table["labels"] is None else _labels(table["labels"], region.count)
    found = Deviation(norm_of(table["norm_out"], tuple(NORMS)), region, upper, differences, labels)
    if table["statement"] != found.statement(*abouts):
        raise RefutedCertificate("its statement is not the one its numbers make")
    return found


def _region(table: Any) -> Balls | Box:
    if isinstance(table, dict) and table.get("kind") == "box":
        fields(table, "kind box low high")
        low, high = table["low"], table["high"]
        if (low is None) != (high is None) or not (low is None or type(low) is type(high) is float):
            raise UnreadableCertificate("the ends of a box")
        return Box(text(table["box"]), None if low is None else (low, high))
    found = region_of_claim(table)
    if found is None:
        raise UnreadableCertificate("a deviation on no region")
    return found


def _table(value: Any, region: Balls | Box) -> tuple[tuple[float, ...], ...]:
    """Numbers in hexadecimal, as many rows as columns, 0 in the diagonal."""
    rows = value if isinstance(value, list) and 0 < len(value) <= MOST_ENTRIES else []
    if (
        not rows
        or region.count != 1
        or any(not isinstance(row, list) or len(row) != len(rows) for row in rows)
    ):
        raise UnreadableCertificate("a table of differences that is none")
    found = tuple(tuple(hexadecimal(v) for v in row) for row in rows)
    if any(found[i][i] != 0 for i in range(len(found))):
        raise UnreadableCertificate("a table of differences that is none")
    return found


def _labels(value: Any, count: int) -> tuple[int | None, ...]:
    if not isinstance(value, list) or len(value) != count:
        raise UnreadableCertificate("labels of other regions")
    return tuple(None if label is None else integer(label, 0, MOST) for label in value)


def disappointed(expected: Expectation, claim: Deviation, abouts: Sequence[About]) -> str | None:
    """How the claim differs from what is expected; None if it does not. box: (low, high) of every input, [inputs] each."""
    for about in abouts:
        if expected.output is not None and about.output != expected.output:
            return f"it is about output {about.output}, not {expected.output}"
        if about.margin != expected.margin and (expected.margin is not None or expected.output is not None):
            return f"it is about {entries_of(about.margin)}, not {entries_of(expected.margin)}"
    if expected.norm_out is not None and claim.norm != expected.norm_out:
        return f"it measures outputs in {claim.norm}, not in {expected.norm_out}"
    balls = claim.region if isinstance(claim.region, Balls) else None
    if expected.everywhere:
        return f"it is about {'a box' if balls is None else f'{balls.norm} balls'}, not about all inputs"
    if expected.norm_in is not None and (balls is None or balls.norm != expected.norm_in):
        return f"it is about {'a box' if balls is None else f'{balls.norm} balls'}, not about {expected.norm_in} balls"
    if expected.radius is not None and balls is None:
        return f"it is about a box, not about balls of radius {expected.radius!r}"
    if expected.radius is not None and balls is not None and balls.radius != expected.radius:
        return f"its balls have the radius {balls.radius!r}, not {expected.radius!r}"
    if expected.at_most is not None and not max(claim.upper) <= expected.at_most:
        return f"it proves {outward(max(claim.upper))}, not at most {expected.at_most!r}"
    return None
