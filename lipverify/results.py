"""What an audit found: rows of bounds, a lower bound, and the documents made of them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, TextIO

from torch import Tensor

from lipverify.analyzers.auto import Choice
from lipverify.analyzers.protocol import Analyzer, docstring_field
from lipverify.documents import envelope, model_document, nodes_document, query_document, slug
from lipverify.errors import InternalError, Undecided, UnsupportedModel
from lipverify.ir.certificate import Certificate, Gains, Witness
from lipverify.ir.graph import Graph
from lipverify.ir.region import Query
from lipverify.ir.shown import Shown, at_least, at_most
from lipverify.loading.names import display
from lipverify.reporting.notebook import Result


@dataclass(frozen=True)
class Row(Shown):
    """One analyzer's answer: a certificate, or the reason why there is none."""

    method: Analyzer
    seconds: float
    certificate: Certificate | None = None
    refused: str | None = None
    undecided: bool = False
    stopped: bool = False
    """Whether an interrupt is why there is no bound."""
    failed: bool = False
    """Whether there is no bound because something broke: a bug, not a property of the model."""
    refuted: bool = False
    """Whether a witness contradicted the bound, which is withdrawn."""
    hurried: bool = False
    """Whether all the time that it was given was used."""

    cut: bool = False
    """Whether the budget ended before there was a bound, or before the method was begun: it was not run."""

    def __repr__(self) -> str:
        if self.certificate is None:
            return f"Row({self.analyzer}: no bound: {display(self.refused or '', 200)})"
        size = self.certificate.log10_upper if self.certificate.upper is None else self.certificate.upper
        bound = f"{'log10 ' if self.certificate.upper is None else ''}{at_most(size)}"
        return f"Row({self.analyzer}: {bound}, {self.certificate.rigour})"

    @property
    def interrupted(self) -> bool:
        """Whether somebody stopped this analyzer; its bound, where it has one, is the best until then."""
        return self.stopped or (self.certificate is not None and self.certificate.interrupted)

    @property
    def analyzer(self) -> str:
        """The analyzer's name."""
        return self.method.name

    @property
    def upper(self) -> float | Tensor | None:
        """A number for the whole input space, [count] for balls; None where refused or beyond float64."""
        if self.certificate is None or self.certificate.upper is None:
            return None
        return self.certificate.upper.item() if self.certificate.upper.ndim == 0 else self.certificate.upper

    def to_json(self) -> dict[str, Any]:
        """One row of `results`."""
        if self.certificate is None:
            flags = {"failed": self.failed, "refuted": self.refuted, "not_run": self.cut}
            return {
                "analyzer": self.analyzer,
                "refused": self.refused,
                **{name: True for name, set_ in flags.items() if set_},
            }
        certificate = self.certificate
        found: dict[str, Any] = {
            "analyzer": self.analyzer,
            **self.bound_document(),
            "rigour": str(certificate.rigour),
            "seconds": self.seconds,
            "certificate": f"certificates/{slug(self.analyzer)}.json",
            "statement": docstring_field(self.method, "Statement"),
            "source": docstring_field(self.method, "Source"),
            "sound_when": docstring_field(self.method, "Sound when"),
            "made_by": certificate.made_by,
            "assumptions": list(certificate.assumptions),
        }
        if certificate.unchecked:
            found["unchecked"] = certificate.unchecked
        if certificate.proved:
            found["checked"] = list(certificate.proved)
        if certificate.interrupted:
            found["interrupted"] = True
        notes = [*getattr(certificate.evidence, "notes", ()), *certificate.notes]
        if notes:
            found["notes"] = notes
        if certificate.trace:
            found["trace"] = [list(pair) for pair in certificate.trace]
        if isinstance(certificate.evidence, Gains):
            found["steps"] = certificate.evidence.to_json()["steps"]
        return found

    def bound_document(self) -> dict[str, Any]:
        """`upper`, or `log10_upper` where the bound exceeds float64."""
        assert self.certificate is not None
        if self.certificate.upper is None:
            return {"log10_upper": self.certificate.log10_upper}
        return {"upper": self.certificate.upper.tolist()}


@dataclass(frozen=True)
class Lower(Shown):
    """The lower bound: a number, or [count] for balls, with its witness."""

    value: float | Tensor
    witness: Witness
    failed: bool = False
    """Whether the search broke; its value is then 0, and the witness notes why."""
    cut: bool = False
    """Whether the budget ended before anything was shown; its value is then 0, and the witness notes it."""
    missing: Tensor | None = None
    """Of many balls, [count] those for which it ended before: their values are 0, and no part of the document."""

    def __repr__(self) -> str:
        return f"Lower({at_least(self.value)})"

    def found(self) -> float | list[float | None] | None:
        """The value as it is written: None where nothing was run."""
        if self.cut:
            return None
        if not isinstance(self.value, Tensor):
            return self.value
        missing = [False] * len(self.value) if self.missing is None else self.missing.tolist()
        return [None if gone else v for v, gone in zip(self.value.tolist(), missing, strict=True)]


@dataclass(frozen=True)
class Audit(Result):
    """All answers to one query on one graph."""

    graph: Graph
    query: Query
    rows: tuple[Row, ...]
    lower: Lower
    seconds: float
    command: str | None = None
    choice: Choice | None = None
    """What `auto` chose, where it was asked."""

    def __repr__(self) -> str:
        best = "no bound" if self.best is None else repr(self.best)
        return f"Audit({self.graph!r}: {best}, {at_least(self.lower.value)})"

    @property
    def upper(self) -> float | Tensor:
        """The best bound: a number for the whole input space, [count] for balls.

        Raises:
            UnsupportedModel, Undecided, InternalError: no analyzer gave a bound, or it exceeds float64; the message says why.
        """
        best = self.best
        if best is None:
            reasons = "; ".join(f"{row.analyzer}: {row.refused}" for row in self.rows)
            said = f"no analyzer gave a bound ({reasons})"
            if self.failed or self.refuted:
                raise InternalError(said)
            if any(row.undecided or row.stopped for row in self.rows):
                raise Undecided(said)
            raise UnsupportedModel(said)
        if best.upper is None:
            assert best.certificate is not None
            raise UnsupportedModel(
                f"the bound of {best.analyzer} exceeds float64, log10 {at_most(best.certificate.log10_upper)}; "
                "its logarithm is best.certificate.log10_upper"
            )
        return best.upper

    @property
    def certificates(self) -> dict[str, Certificate]:
        """The upper bounds that were given, by analyzer."""
        return {row.analyzer: row.certificate for row in self.rows if row.certificate is not None}

    @property
    def interrupted(self) -> bool:
        """Whether somebody stopped one of the analyzers; what was found until then is kept."""
        return any(row.interrupted for row in self.rows)

    @property
    def failed(self) -> bool:
        """Whether something broke; the rows say what, and the others hold."""
        return self.lower.failed or any(row.failed for row in self.rows)

    @property
    def refuted(self) -> bool:
        """Whether a witness contradicted a bound."""
        return any(row.refuted for row in self.rows)

    @property
    def best(self) -> Row | None:
        """The analyzer with the smallest bound (for balls: smallest on average); None if every one refused."""
        answered = [row for row in self.rows if row.certificate is not None]
        return min(answered, key=tightness, default=None)

    def show(self, document: dict[str, Any], file: TextIO | None = None) -> None:
        """What a person at a terminal sees."""
        from lipverify.reporting.terminal import print_audit

        print_audit(document, file)

    def page(self, document: dict[str, Any]) -> str:
        """The self-contained page."""
        from lipverify.reporting.html import render_audit

        return render_audit(document, self.lower.witness)

    def to_json(self) -> dict[str, Any]:
        """The document of `audit --json`."""
        best = self.best
        return envelope(
            "lipverify.audit/1",
            self.command,
            self.seconds,
            model={**model_document(self.graph), "nodes": nodes_document(self.graph)},
            query=query_document(self.query, self.graph.origin.part),
            **(
                {}
                if self.choice is None
                else {"choice": self.choice.to_json(self._hurried(), self.best is not None)}
            ),
            results=[row.to_json() for row in self.rows],
            lower={
                # What was not run is no 0.
                "value": self.lower.found(),
                "method": self.lower.witness.method,
                "witness": None if self.lower.cut else "witness.npz",
                **({"note": self.lower.witness.note} if self.lower.witness.note else {}),
                **({"failed": True} if self.lower.failed else {}),
                **({"not_run": True} if self.lower.cut else {}),
            },
            best=None if best is None else {"analyzer": best.analyzer, **best.bound_document()},
            assumptions=sorted({text for c in self.certificates.values() for text in c.assumptions}),
        )

    def _hurried(self) -> list[str]:
        return [row.analyzer for row in self.rows if row.hurried]

    def certificate_files(self) -> dict[str, dict[str, bytes]]:
        """The files of every certificate by name, by analyzer."""
        from lipverify.certificates import unproved

        found = {}
        for row in self.rows:
            if row.certificate is not None:
                issued = row.certificate.issued or unproved(
                    row.certificate, self.graph, self.query, row.method
                )
                found[row.analyzer] = issued.files(f"{slug(row.analyzer)}.json")
        return found


def tightness(row: Row) -> tuple[float, int]:
    """For ordering rows only: log10 of the bound, averaged; of bounds that agree to nine digits the one better proved."""
    certificate = row.certificate
    assert certificate is not None
    size = certificate.log10_upper if certificate.upper is None else float(certificate.upper.log10().mean())
    assert size is not None
    return (size if math.isinf(size) else round(size, 9)), -certificate.rigour
