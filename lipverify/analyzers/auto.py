"""The word `auto`: which analyzers about a minute buys, cheapest first, and what more time would buy."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lipverify.analyzers import registry
from lipverify.analyzers.protocol import Analyzer, refusal
from lipverify.errors import LipverifyError, UsageError
from lipverify.ir.graph import Graph
from lipverify.ir.region import Ball, Query
from lipverify.ops import Mul

AUTO = "auto"
MINUTE = 60.0
"""Seconds for all analyzers together where no budget is given."""
EVERYWHERE = ("product", "lipsdp-fast", "lipsdp")
AROUND = ("product", "local", "local-sdp")
"""What is asked over the whole space and around points, cheapest first: time that one leaves is for those behind it."""
TOKENS = ("tokens",)
"""What is asked about norms of tokens."""
BRANCHING = "local-bab"
GATED = "where gates multiply it is hardly ever below local, and needs minutes more (--analyzers local-sdp)"
"""Why `auto` leaves `local-sdp` to whoever asks for it: of 36 pairs on recurrent networks at most .4 % below, in three."""

Given = str | Analyzer | Sequence[str | Analyzer]


@dataclass(frozen=True)
class Choice:
    """What `auto` asks, what it leaves out and why. seconds: for everything together."""

    asked: tuple[str, ...]
    left_out: Mapping[str, str]
    seconds: float
    branching: bool
    """Whether branching over parts of the balls, which takes any time it is given, could answer too."""

    def words(self) -> str:
        """What was asked, as a sentence."""
        time = "about a minute" if self.seconds == MINUTE else f"about {self.seconds:.0f} s"
        if self.seconds < 1:
            time = "less than a second"
        said = f"auto asked {_listed(self.asked)}, cheapest first, within {time} for all"
        without = "; ".join(f"{name}: {reason}" for name, reason in self.left_out.items())
        return said + (f"; not asked: {without}" if without else "")

    def more(self, hurried: Sequence[str], bounded: bool = True) -> str:
        """What more time would buy. hurried: the analyzers that used all the time they had. bounded: whether one had a bound."""
        longer = f"--budget {10 if self.seconds <= MINUTE else int(self.seconds / 6) + 1}m"
        said = []
        if hurried:
            ended = (
                "its search, which its time ended"
                if len(hurried) == 1
                else "their searches, which their time ended"
            )
            said.append(f"{_listed(hurried)} could go on with {ended} ({longer})")
        if self.branching:
            said.append(
                f"{BRANCHING} splits the balls for as long as it is given (--analyzers {BRANCHING} {longer})"
            )
        if not said:
            if not bounded:
                return "no analyzer was short of time: more of it would give no bound"
            return "every search for an upper bound ended by itself: more time would not lower it"
        return "more time would buy: " + "; ".join(said)

    def to_json(self, hurried: Sequence[str] | None = None, bounded: bool = True) -> dict[str, Any]:
        """The field `choice` of documents; hurried, bounded: as for `more`, None where nobody knows."""
        return {
            "analyzers": list(self.asked),
            "left_out": dict(self.left_out),
            "seconds": self.seconds,
            "words": self.words(),
            **({} if hurried is None else {"more": self.more(hurried, bounded)}),
        }


def listed(given: Given) -> tuple[str | Analyzer, ...]:
    """Names and analyzers one by one: a name, names with commas, an analyzer, or a sequence of these.

    Raises:
        UsageError: nothing is given, something that is neither, or a name that no analyzer has.
    """
    found: list[str | Analyzer] = []
    several = [given] if isinstance(given, str | Analyzer) else given
    if not isinstance(several, Sequence) or isinstance(several, bytes):
        raise UsageError(
            f'analyzers are names ("product,lipsdp"), objects or a list of these, not {type(given).__name__}'
        )
    for one in several:
        if isinstance(one, str):
            found.extend(name.strip() for name in one.split(",") if name.strip())
        else:
            found.append(one)
    if not found:
        raise UsageError("give at least one analyzer")
    for one in found:
        if one != AUTO:
            registry.resolve(one)
    return tuple(found)


def chosen(
    given: Given, asked: Iterable[tuple[Graph, Query]], budget: float | None
) -> tuple[list[Analyzer], Choice | None]:
    """The analyzers that are meant, and what `auto` chose where that word is among them.

    Args:
        asked: every graph and query that is asked about: an analyzer is left out where it refuses all of them.
        budget: seconds for everything; None for about a minute for each.

    Raises:
        UsageError: as `listed`.
    """
    names = listed(given)
    if AUTO not in names:
        return [registry.resolve(name) for name in names], None
    questions = list(asked)
    choice = _choice(questions, MINUTE * max(len(questions), 1) if budget is None else budget)
    methods: dict[str, Analyzer] = {}
    for one in names:
        for method in map(registry.resolve, choice.asked if one == AUTO else (one,)):
            methods.setdefault(method.name, method)
    return list(methods.values()), choice


def _choice(questions: Sequence[tuple[Graph, Query]], seconds: float) -> Choice:
    balls = [isinstance(query.region, Ball) for _, query in questions]
    candidates = dict.fromkeys(
        TOKENS
        if any(query.of_tokens for _, query in questions)
        else (*(() if balls and all(balls) else EVERYWHERE), *(AROUND if any(balls) else ()))
    )
    reasons = {name: _reason(name, questions) for name in candidates}
    if reasons.get("local", GATED) is None and all(graph.has(Mul) for graph, _ in questions):
        reasons["local-sdp"] = reasons["local-sdp"] or GATED
    asked = tuple(name for name, reason in reasons.items() if reason is None)
    branching = any(balls) and _reason(BRANCHING, questions) is None
    if not asked:  # then each says itself why not
        return Choice(tuple(candidates), {}, seconds, branching)
    return Choice(
        asked, {n: reason for n, reason in reasons.items() if reason is not None}, seconds, branching
    )


def _reason(name: str, questions: Sequence[tuple[Graph, Query]]) -> str | None:
    """Why an analyzer answers none of the questions; None where it may answer one, or breaks and has to say so itself."""
    method = registry.resolve(name)
    reasons = []
    for graph, query in questions:
        try:
            reasons.append(refusal(method, graph, query))
        except LipverifyError as error:
            reasons.append(str(error))
        except Exception:
            return None
    return None if not reasons or None in reasons else reasons[0]


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
