"""A proof: steps read into typed values, then checked in order, each from earlier facts alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from typing import Any, get_type_hints

import numpy as np

from lipverify.checkers.kernel import account
from lipverify.checkers.kernel.arithmetic import Array, need
from lipverify.checkers.kernel.language import Scope, Subject
from lipverify.checkers.kernel.ranges import Empty
from lipverify.checkers.kernel.theorems import THEOREMS, Emptiness, Fact, Facts, Known, Theorem
from lipverify.checkers.kernel.theories import THEORIES, opened, theory_of

MAX_STEPS = 100_000
Rule = Callable[[Scope, Any], Any]


def theorem_of(kind: str) -> Theorem | None:
    """The theorem behind a kind of step; a theory is loaded when a step of it is first spoken of. None for no kind."""
    name = theory_of(kind)
    if name is not None:
        opened(name)
    return THEOREMS.get(kind)


@cache
def fields_of(kind: str) -> Mapping[str, Rule]:
    """The fields of a kind of step, in order, and the rule each is read by."""
    check = theorem_of(kind)
    need(check is not None, "a step of no known kind")
    hints = get_type_hints(check, include_extras=True)
    return {name: hint.__metadata__[0] for name, hint in hints.items() if hasattr(hint, "__metadata__")}


def every_kind() -> list[str]:
    """All kinds of steps, those of the theories behind those of the core."""
    beyond = [kind for kinds in THEORIES.values() for kind in kinds]
    return [kind for kind in THEOREMS if kind not in beyond] + beyond


@dataclass(frozen=True)
class Step:
    """A step as it was read: nothing in it is text or number of a file any more. uses: the facts that it names."""

    kind: str
    fields: Mapping[str, Any]
    uses: frozenset[int]


def parse_steps(document: Any, arrays: Mapping[str, Array], subject: Subject) -> list[Step]:
    """The steps of a proof.

    Args:
        document: a list of JSON objects. arrays: those of the sidecar, by name.

    Raises:
        UnreadableCertificate: a field that is not what its rule says, that is missing, or that nobody knows.
    """
    need(isinstance(document, list) and len(document) <= MAX_STEPS, "a list of proof steps")
    return [parse_step(entry, number, arrays, subject) for number, entry in enumerate(document)]


def parse_step(entry: Any, number: int, arrays: Mapping[str, Array], subject: Subject) -> Step:
    """One step; `number` is its place in the proof."""
    kind = str(entry.get("step")) if isinstance(entry, dict) else ""
    need(theorem_of(kind) is not None and entry["step"] == kind, f"step {number} is of no known kind")
    rules = fields_of(kind)
    need(entry.keys() == {"step", *rules}, f"the fields of step {number}")
    scope = Scope(subject, arrays, number)
    for name, rule in rules.items():
        scope.seen[name] = rule(scope, entry[name])
    return Step(kind, {name: scope.seen[name] for name in rules}, frozenset(scope.uses))


def added(facts: Facts, step: Step) -> Fact:
    """The fact that a step adds to earlier ones; raises as `prove`, and Empty."""
    check = theorem_of(step.kind)
    assert check is not None  # it was read
    return check(facts, **step.fields)


def rested_on(steps: Sequence[Step]) -> tuple[str, ...]:
    """The theories that a proof takes steps of, beyond the core."""
    return tuple(sorted({name for step in steps if (name := theory_of(step.kind)) is not None}))


def prove(steps: Sequence[Step], subject: Subject) -> list[Fact | None]:
    """The facts that the steps add; None for ranges, which hold matrices, after their last use.

    Raises:
        RefutedCertificate: a step that does not hold. NotCovered: one that there is no theorem for, or no room.
    """
    ends = {number: k for k, step in enumerate(steps) for number in step.uses}
    facts, kept = Facts(subject), dict[int, int]()
    for k, step in enumerate(steps):
        before = account.held()
        account.charge(0, account.STEP + 8 * subject.width)
        try:
            with np.errstate(all="ignore"):  # what is not finite is refused where it is used
                fact = added(facts, step)
        except Empty:  # ranges contradict each other, which those of an input would not
            fact = Emptiness(facts.get(step.fields["ranges"], Known).part, Fraction(0))
        facts.found.append(fact)
        kept[k] = before - account.held()
        for number in {k, *step.uses}:
            known = isinstance(facts.found[number], Known)
            if ends.get(number, -1) <= k or not known:
                account.returned(kept.pop(number, 0))
                facts.found[number] = None if known else facts.found[number]
    return facts.found
