"""Every exception of lipverify, each with the exit code the command line ends with.

A message is one sentence for the person who gave the input: what was asked, what was found, what to do next.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class LipverifyWarning(UserWarning):
    """Something the user should know that does not touch the validity of a bound."""


class LipverifyError(Exception):
    """Base of all errors that are not our own bugs."""

    exit_code = 1


class InternalError(LipverifyError):
    """A bug of ours that was caught before it became a number."""

    exit_code = 1


class UsageError(LipverifyError):
    """Arguments that make no sense, or an input file that is missing, damaged or invalid."""

    exit_code = 2


class InvalidFile(UsageError):
    """A model or data file that is missing, damaged or contradicts itself."""


class Refuted(LipverifyError):
    """A witness contradicts a claim."""

    exit_code = 3


class RefutedCertificate(Refuted):
    """The evidence of a certificate does not carry its claim."""


class NotCovered(RefutedCertificate):
    """The checker has no proof for this operator, size, file or kind of claim."""


class Undecided(LipverifyError):
    """Nothing could be decided within the budget."""

    exit_code = 4


class BudgetEnded(Undecided):
    """The time for this work was over before it was done; see `lipverify.deadline`."""


class UnsupportedModel(LipverifyError):
    """A model that no rule covers; names node, operator, shape and remedy."""

    exit_code = 5


class ExtractionMismatch(UnsupportedModel):
    """The imported graph does not compute what its source computes."""


class UnsafeInput(LipverifyError):
    """Reading this input would run foreign code or reach outside the model's folder."""

    exit_code = 6


class UnreadableCertificate(LipverifyError):
    """A certificate that cannot be parsed, or that speaks of another model."""

    exit_code = 7


class OtherModel(UnreadableCertificate):
    """A certificate that is well-formed and speaks of another model, or of this one read in another way."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`; did you mean "lipsdp"?` behind a word that is none of those known, where one is near; else nothing."""
    by_lower = {name.lower(): name for name in known}
    asked = word.lower()[:80]
    near = get_close_matches(asked, by_lower, 1, 0.6) or [
        name for name in by_lower if len(asked) > 2 and asked in name
    ]
    return f'; did you mean "{by_lower[near[0]]}"?' if near else ""
