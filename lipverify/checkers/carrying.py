"""Whether the facts of a proof are what a certificate claims."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from lipverify.checkers.claims import Balls, Constant, Convex, Radius, outward
from lipverify.checkers.deviation import AnyClaim, Deviation
from lipverify.checkers.deviation import Box as Ends
from lipverify.checkers.kernel import theorems
from lipverify.checkers.kernel.arithmetic import above
from lipverify.checkers.kernel.language import Rows
from lipverify.checkers.kernel.theorems import Fact
from lipverify.checkers.norms import Tokens
from lipverify.checkers.regions import BOX, Ball
from lipverify.errors import RefutedCertificate

Kind = TypeVar("Kind", bound=Fact)


def carried(
    claim: AnyClaim, facts: Sequence[Fact], regions: Sequence[Ball], outputs: tuple[int, int]
) -> None:
    """RefutedCertificate unless the facts are what is claimed. outputs: the last step, and how many numbers a model gives."""
    last, size = outputs
    if isinstance(claim, Deviation):
        values = claim.follows(facts, size)
        places = (k for k, count in enumerate(claim.counts(size)) for _ in range(count))
        for k, value in zip(places, values, strict=True):
            _holds_on(value.part, regions, claim.region, k)
    elif isinstance(claim, Constant):
        _count(facts, len(claim.upper))
        for k, (fact, upper) in enumerate(zip(facts, claim.upper, strict=True)):
            c = _of(fact, theorems.Constant, "no constant")
            whole = (c.start, c.end) == (0, last) and c.rows == Rows(0, size)
            _need(whole and c.norms == claim.norms, "no constant of the whole output in these norms")
            _holds_on(c.part, regions, claim.balls, k, claim.tokens)
            if not c.limit <= upper:
                raise RefutedCertificate(
                    f"its evidence proves {outward(above(c.limit))}, not {outward(upper)}"
                )
    elif isinstance(claim, Radius):
        if size < 2:
            raise RefutedCertificate("labels of a single number, which is always its own largest entry")
        _count(facts, len(claim.labels) * (size - 1))
        left = iter(facts)
        for k, (label, radius) in enumerate(zip(claim.labels, claim.radius, strict=True)):
            ball = Balls(claim.norm, radius, len(claim.labels), claim.centres, claim.box)
            _need(label < size, "no label")
            for rival in (j for j in range(size) if j != label):
                v = _of(next(left), theorems.AtLeast, "no value")
                _need(v.rows == Rows(label, label + 1, rival) and v.sign > 0, "no value of label less rival")
                _need(v.limit > 0, "a value that is not above 0")
                _holds_on(v.part, regions, ball, k)
    elif isinstance(claim, Convex):
        from lipverify.checkers.theories.signs import Bent

        _count(facts, len(claim.entries))
        for fact, stated in zip(facts, claim.entries, strict=True):
            bent = _of(fact, Bent, "no convexity")
            _need((bent.row, bent.sign) == stated, "about another entry")
    else:
        from lipverify.checkers.theories.signs import Monotone

        count = 1 if claim.balls is None else claim.balls.count
        _count(facts, count * len(claim.entries))
        for place, fact in enumerate(facts):
            k, entry = place // len(claim.entries), claim.entries[place % len(claim.entries)]
            m = _of(fact, Monotone, "no sign")
            _need((m.row, m.input, m.sign) == entry, "a sign of another derivative")
            _holds_on(m.part, regions, claim.balls, k)


def _of(fact: Fact, kind: type[Kind], missing: str) -> Kind:
    _need(isinstance(fact, kind), missing)
    assert isinstance(fact, kind)
    return fact


def _need(condition: bool, fact: str) -> None:
    if not condition:
        raise RefutedCertificate(f"a fact it names is {fact}")


def _count(facts: Sequence[Fact], wanted: int) -> None:
    if len(facts) != wanted:
        raise RefutedCertificate(f"it names {len(facts)} facts for {wanted} claims")


def _holds_on(part: theorems.Part, regions: Sequence[Ball], balls: Balls | Ends | None, centre: int,
              tokens: Tokens | None = None) -> None:  # fmt: skip
    """A fact about everything serves any region; one about a ball, or about tokens of some size, what lies in it."""
    _need(not part.conditions, "about a part of a region")
    if part.within is not None:
        known = part.within
        if (
            not isinstance(known, Tokens)
            or tokens is None
            or known[:2] != tokens[:2]
            or known.most < tokens.most
        ):
            raise RefutedCertificate("a fact it names is about other tokens")
    if part.region is None:
        return
    _need(balls is not None, "about a ball alone")
    assert balls is not None
    ball = regions[part.region]
    if isinstance(balls, Ends) or ball == BOX:
        # The whole box holds every ball that it cuts.
        _need(ball == BOX and balls.box is not None, "about another ball")
        return
    inside = ball.norm == balls.norm and ball.radius >= balls.radius and ball.centre == centre
    _need(inside and not (ball.box and balls.box is None), "about another ball")
