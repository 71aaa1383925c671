"""Closed forms over proved facts, as data: what an answer is made of, so that somebody else can evaluate it again.

A fact is a range [count, entries]: for each of `count` regions (or points) an interval for every entry. A formula is evaluated
with outward rounding, so that its value lies in the result whatever the facts are within their ranges.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from lipverify.errors import InternalError, UsageError
from lipverify.ir.interval import Interval
from lipverify.ops.enclosure import Enclosure

Facts = Mapping[str, Interval]


@dataclass(frozen=True)
class Formula:
    """kind: a key of `KINDS`, or `fact` (with its name) or `number` (with its value). of: what it is made of."""

    kind: str
    of: tuple[Formula, ...] = ()
    name: str = ""
    value: float = 0.0

    def evaluate(self, facts: Facts) -> Enclosure:
        """The range of the value: [count] where the entries are reduced, else [count, entries].

        Raises:
            InternalError: a fact that is not there.
        """
        if self.kind == "number":
            return Enclosure.of(self.value)
        if self.kind == "fact":
            if self.name not in facts:
                raise InternalError(f"the formula needs the fact {self.name!r}, which was not given")
            return Enclosure.of(facts[self.name])
        return KINDS[self.kind].value(*(part.evaluate(facts) for part in self.of))

    def facts(self) -> tuple[str, ...]:
        """Names of the facts it needs, in order."""
        found = [self.name] if self.kind == "fact" else [name for part in self.of for name in part.facts()]
        return tuple(dict.fromkeys(found))

    def __str__(self) -> str:
        if self.kind == "number":
            return repr(self.value)
        if self.kind == "fact":
            return self.name
        return KINDS[self.kind].words.format(*self.of)

    def to_json(self) -> Any:
        """Nested lists: [kind, part, ...]; a fact is its name, a number itself."""
        if self.kind == "fact":
            return self.name
        return self.value if self.kind == "number" else [self.kind, *(part.to_json() for part in self.of)]

    @classmethod
    def from_json(cls, found: Any) -> Formula:
        """The formula that `to_json` wrote.

        Raises:
            UsageError: it is none.
        """
        if isinstance(found, str):
            return fact(found)
        if isinstance(found, float):
            return cls("number", value=found)
        if (
            isinstance(found, list)
            and found
            and found[0] in KINDS
            and len(found) - 1 == KINDS[found[0]].parts
        ):
            return cls(found[0], tuple(cls.from_json(part) for part in found[1:]))
        raise UsageError(f"{found!r} is no formula")


@dataclass(frozen=True)
class Kind:
    """An operation. words: how it is written; parts: how many operands it has."""

    value: Callable[..., Enclosure]
    words: str
    parts: int = 1


def _largest(x: Enclosure) -> Enclosure:
    return Enclosure(x.lower.flatten(1).amax(1), x.upper.flatten(1).amax(1))


def _length(x: Enclosure) -> Enclosure:
    flat = Enclosure(x.lower.flatten(1), x.upper.flatten(1))
    return flat.square().sum((1,), keepdim=False).sqrt()


def _smaller(x: Enclosure, y: Enclosure) -> Enclosure:
    return Enclosure(torch.minimum(x.lower, y.lower), torch.minimum(x.upper, y.upper))


def _larger(x: Enclosure, y: Enclosure) -> Enclosure:
    return Enclosure(torch.maximum(x.lower, y.lower), torch.maximum(x.upper, y.upper))


KINDS: dict[str, Kind] = {
    "absolute": Kind(lambda x: x.abs(), "|{}|"),
    "largest": Kind(_largest, "largest entry of {}"),
    "length": Kind(_length, "length of {}"),
    "sum": Kind(lambda x, y: x + y, "({} + {})", 2),
    "difference": Kind(lambda x, y: x - y, "({} - {})", 2),
    "product": Kind(lambda x, y: x * y, "{} * {}", 2),
    "quotient": Kind(lambda x, y: x / y, "{} / {}", 2),
    "root": Kind(lambda x: x.sqrt(), "sqrt {}"),
    "exponential": Kind(lambda x: x.exp(), "exp {}"),
    "smaller": Kind(_smaller, "min({}, {})", 2),
    "larger": Kind(_larger, "max({}, {})", 2),
}


def fact(name: str) -> Formula:
    """A fact by its name."""
    return Formula("fact", name=name)


def number(value: float) -> Formula:
    """A number, exactly as it is stored."""
    return Formula("number", value=float(value))


def of(kind: str, *parts: Formula) -> Formula:
    """An operation of `KINDS` on formulas."""
    if kind not in KINDS or len(parts) != KINDS[kind].parts:
        raise InternalError(f"{kind!r} is no operation on {len(parts)} formulas")
    return Formula(kind, parts)
