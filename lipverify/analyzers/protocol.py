"""What an analyzer is: a name, a reason to refuse, a bound."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import ClassVar, Protocol, runtime_checkable

import torch

from lipverify import deadline
from lipverify.errors import BudgetEnded
from lipverify.ir.certificate import Certificate, Evidence, Rigour
from lipverify.ir.graph import Graph
from lipverify.ir.region import Ball, Query
from lipverify.linalg.rounding import Upper

Report = Callable[[str, float | None], None]


def silent(stage: str, best: float | None) -> None:
    """A report that nobody reads."""


@dataclass(frozen=True)
class Compute:
    """Where and how long to compute; passed explicitly, never global."""

    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    seed: int = 0
    deadline: float | None = None
    """Moment (of `time.monotonic`) after which an anytime method returns its best."""
    report: Report = silent
    """Called with a stage name and, where there is one, the best bound so far: of all that was asked, never of a part of it."""

    def remaining(self) -> float:
        """Seconds left; infinite without a deadline."""
        return float("inf") if self.deadline is None else max(self.deadline - time.monotonic(), 0.0)

    def expired(self) -> bool:
        """Whether the deadline has passed."""
        return self.remaining() <= 0.0

    def share(self, parts: int) -> float | None:
        """The deadline of one of `parts` equal pieces of what is left."""
        return None if self.deadline is None else time.monotonic() + self.remaining() / parts

    def one_of(self, parts: int) -> Compute:
        """For one of several centres or outputs: beside others its bounds are none of what was asked, and are not reported."""
        return self if parts == 1 else replace(self, report=lambda stage, best: self.report(stage, None))


NOT_RUN = "not run: the budget ended before it had a bound; give a larger --budget"
"""Of a method that was cut, or not begun."""
INTERRUPTED = "interrupted: the best bound so far"
"""What evidence notes when somebody ended the search."""


@dataclass
class Interruption:
    """Whether the block of `keeping_best` was ended by Ctrl-C."""

    happened: bool = False

    @property
    def notes(self) -> tuple[str, ...]:
        """For the evidence of what was found until then."""
        return (INTERRUPTED,) if self.happened else ()


@contextmanager
def keeping_best(
    interruption: Interruption | None = None, until: float | None = None
) -> Iterator[Interruption]:
    """Ctrl-C, or the moment `until`, ends the block and no more: what the block had found so far is still there, and valid.

    What comes behind the block is not ended by `until`, only by an earlier end of a block around it (`deadline.within`).
    """
    state = Interruption() if interruption is None else interruption
    try:
        with deadline.within(until):
            yield state
    except KeyboardInterrupt:
        state.happened = True
    except BudgetEnded:
        if until is None:
            raise


@runtime_checkable
class Analyzer(Protocol):
    """A protocol, not a base class. Settings are fields of the analyzer; its `repr` names it with every setting.

    The docstring carries three lines that reports print: `Statement:`, `Source:` and `Sound when:`; `Proof:` names the function
    beside which the derivation stands, as file:function.
    """

    name: ClassVar[str]

    def reject(self, graph: Graph, query: Query) -> str | None:
        """Why this method cannot answer this query on this graph, naming the node; None if it can."""
        ...

    def bound(self, graph: Graph, query: Query, compute: Compute) -> Certificate:
        """A valid upper bound.

        Raises:
            UnsupportedModel: what `reject` would have said.
            Undecided: no bound within the budget.
        """
        ...


def refusal(method: Analyzer, graph: Graph, query: Query) -> str | None:
    """Why a method cannot answer, norms of tokens first: those of vectors are all that most know. None where it can."""
    if query.of_tokens and not getattr(method, "of_tokens", False):
        return f"{method.name} knows norms of whole inputs, not of their tokens: --analyzers tokens answers these"
    return method.reject(graph, query)


def certificate(
    method: Analyzer, graph: Graph, query: Query, found: Upper, evidence: Evidence
) -> Certificate:
    """The certificate of one number for the whole region, all its balls, with its logarithm where it exceeds float64."""
    log10_upper: float | None = None
    upper: torch.Tensor | None = None
    try:
        upper = torch.tensor(float(found), dtype=torch.float64)
        if isinstance(query.region, Ball):
            upper = upper.expand(len(query.region)).clone()
    except OverflowError:
        log10_upper = found.log10()
    return Certificate(
        upper=upper,
        log10_upper=log10_upper,
        query=query,
        rigour=Rigour.REAL,
        evidence=evidence,
        made_by=repr(method),
        graph_digest=graph.digest,
    )


def docstring_field(analyzer: object, label: str) -> str | None:
    """The paragraph of the analyzer's docstring that begins with `label:`, as one line."""
    lines = (type(analyzer).__doc__ or "").splitlines()
    collected: list[str] = []
    for line in lines:
        text = line.strip()
        if text.startswith(f"{label}:"):
            collected = [text.removeprefix(f"{label}:").strip()]
        elif collected:
            if not text or text.split(":")[0] in {"Statement", "Source", "Sound when", "Proof"}:
                break
            collected.append(text)
    return " ".join(collected) or None
