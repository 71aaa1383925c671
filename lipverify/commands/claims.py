"""Claims of the model zoo put to the test: a certified bound confirms one, a witness refutes it, nothing else decides."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from lipverify import pipeline, zoo
from lipverify.errors import UsageError
from lipverify.falsify import Search
from lipverify.ir.region import Bounded, Everywhere
from lipverify.results import Audit

# Rounds instead of seconds: the same pair of points on a fast and on a slow machine.
SEARCH = Search(restarts=16, rounds=150, seconds=1e6)

CONFIRMED, REFUTED, OPEN = "confirmed", "refuted", "open"


@dataclass(frozen=True)
class Verdict:
    """What an audit says about the constant that a card claims."""

    claim: zoo.Claim
    audit: Audit

    @property
    def verdict(self) -> str:
        """`confirmed`: some certified bound is at most the constant. `refuted`: a witness is steeper. Else `open`.

        No tolerance: a constant that is exceeded by one rounding is exceeded.
        """
        if float(self.audit.lower.value) > self.claim.constant:
            return REFUTED
        uppers = [row.upper for row in self.audit.rows if isinstance(row.upper, float)]
        return CONFIRMED if min(uppers, default=math.inf) <= self.claim.constant else OPEN

    @property
    def as_expected(self) -> bool:
        """Whether the verdict is the one that the card says it should be."""
        return self.verdict == (CONFIRMED if self.claim.holds else REFUTED)

    def to_json(self, name: str) -> dict[str, Any]:
        """One network of `zoo check --json`."""
        best = self.audit.best
        return {
            "name": name,
            "claim": self.claim.constant,
            "norm": self.claim.norm,
            "holds": self.claim.holds,
            "verdict": self.verdict,
            "lower": self.audit.lower.value,
            "best": None if best is None else {"analyzer": best.analyzer, **best.bound_document()},
            "results": [
                {
                    key: row[key]
                    for key in ("analyzer", "upper", "log10_upper", "rigour", "unchecked", "refused")
                    if key in row
                }
                for row in (row.to_json() for row in self.audit.rows)
            ],
        }


def check(name: str) -> Verdict:
    """Audits the zoo network `name` in the norm of its claim, by the product and by the analyzer its card names.

    Raises:
        UsageError: no such network, or its card claims nothing.
    """
    claim = zoo.card(name).claim
    if claim is None:
        raise UsageError(f"the card of zoo:{name} claims no constant")
    analyzers = list(dict.fromkeys(("product", claim.analyzer)))
    graph = pipeline.load(f"zoo:{name}")
    region = Everywhere() if claim.within is None else Bounded(claim.within)
    found = pipeline.audit(graph, norm=claim.norm, region=region, analyzers=analyzers, search=SEARCH)
    return Verdict(claim, found)
