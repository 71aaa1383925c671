"""What a comparison found: rows of every model and question, and the document made of them."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any, TextIO

import numpy as np

from lipverify.analyzers.auto import Choice
from lipverify.documents import envelope, model_document, nodes_document, query_document
from lipverify.errors import Refuted, Undecided, UnsupportedModel, UsageError, did_you_mean
from lipverify.ir.graph import Graph
from lipverify.ir.region import Query
from lipverify.loading.names import display
from lipverify.reporting.notebook import Result

SCHEMA = "lipverify.compare/1"
WITNESSES = "witnesses.npz"
_LARGEST_LOG = 300.0


@dataclass(frozen=True)
class Unreadable:
    """Why a model is missing, and the exit code that an audit of it would end with."""

    reason: str
    exit_code: int


@dataclass(frozen=True)
class Answered:
    """One model and one question: a row for every analyzer, and the lower bound where there is one."""

    rows: tuple[dict[str, Any], ...]
    lower: dict[str, Any] | None
    files: Mapping[str, bytes] = field(default_factory=dict)
    witness: bytes | None = None
    undecided: bool = False
    failed: bool = False
    refuted: bool = False

    def best(self) -> dict[str, Any] | None:
        """The row with the smallest bound (for balls: smallest on average); None if every one refused."""
        return min((row for row in self.rows if "refused" not in row), key=mean_log, default=None)


@dataclass(frozen=True)
class Comparison(Result):
    """All answers. models: by the name they are shown under; answers: by name, one for each query."""

    models: Mapping[str, Graph | Unreadable]
    queries: tuple[Query, ...]
    analyzers: tuple[str, ...]
    answers: Mapping[str, tuple[Answered, ...]]
    seconds: float
    computed: int
    cached: int
    curves: tuple[dict[str, Any], ...] = ()
    command: str | None = None
    choice: Choice | None = None
    """What `auto` chose, where it was asked."""
    deviations: Mapping[str, Any] | None = None
    """How far the other models deviate from the first one, where that was asked."""
    proofs: Mapping[str, bytes] = field(default_factory=dict)
    """Certificates of deviations, by their place in the folder."""

    def __repr__(self) -> str:
        names = ", ".join(display(name, 40) for name in list(self.models)[:5])
        more = ", ..." if len(self.models) > 5 else ""
        return (
            f"Comparison({len(self.models)} models: {names}{more}; {len(self.queries)} questions; "
            f"analyzers {', '.join(display(name, 40) for name in self.analyzers[:8])})"
        )

    def upper(self, model: str, analyzer: str, query: int = 0) -> float | list[float] | None:
        """One bound; None where it was refused or exceeds float64. Raises UsageError: there is no such row."""
        for what, asked, known in (("model", model, self.answers), ("analyzer", analyzer, self.analyzers)):
            if asked not in known:
                near = did_you_mean(str(asked), known) or f"; there are {', '.join(known)}"
                raise UsageError(f"the comparison has no {what} {display(str(asked), 60)!r}{near}")
        if query not in range(len(self.queries)):
            raise UsageError(
                f"the comparison has {len(self.queries)} questions, counted from 0; there is no {query}"
            )
        rows = self.answers[model][query].rows
        found: float | list[float] | None = next(r for r in rows if r["analyzer"] == analyzer).get("upper")
        return found

    def exit_code(self) -> int:
        """3 if a witness contradicts a bound, 1 if something broke, 0 if some bound was given; otherwise why there is none."""
        everything = [answer for answers in self.answers.values() for answer in answers]
        if any(answer.refuted for answer in everything):
            return Refuted.exit_code
        if any(answer.failed for answer in everything):
            return 1
        if any(answer.best() is not None for answer in everything):
            return 0
        if any(answer.undecided for answer in everything):
            return Undecided.exit_code
        codes = {model.exit_code for model in self.models.values() if isinstance(model, Unreadable)}
        return codes.pop() if len(codes) == 1 and not everything else UnsupportedModel.exit_code

    def _part(self) -> str | None:
        """What of the models was asked about, where that is the same for all and not their first output."""
        parts = {model.origin.part for model in self.models.values() if isinstance(model, Graph)}
        return parts.pop() if len(parts) == 1 else None

    def show(self, document: dict[str, Any], file: TextIO | None = None) -> None:
        """What a person at a terminal sees."""
        from lipverify.reporting.comparison import print_comparison

        print_comparison(document, file)

    def page(self, document: dict[str, Any]) -> str:
        """The self-contained page."""
        from lipverify.reporting.comparison import render_comparison

        return render_comparison(document)

    def to_json(self) -> dict[str, Any]:
        """The document of `compare --json`."""
        rows = [row for answers in self.answers.values() for answer in answers for row in answer.rows]
        return envelope(
            SCHEMA,
            self.command,
            self.seconds,
            queries=[query_document(query, self._part()) for query in self.queries],
            analyzers=list(self.analyzers),
            **({} if self.choice is None else {"choice": self.choice.to_json()}),
            models=[self._model(name) for name in self.models],
            summary=[
                summary_row(index, name, [answers[index] for answers in self.answers.values()])
                for index in range(len(self.queries))
                for name in self.analyzers
            ],
            curves=list(self.curves),
            **({} if self.deviations is None else {"deviations": dict(self.deviations)}),
            assumptions=sorted({text for row in rows for text in row.get("assumptions", ())}),
            work={"computed": self.computed, "cached": self.cached},
        )

    def _model(self, name: str) -> dict[str, Any]:
        model = self.models[name]
        if isinstance(model, Unreadable):
            return {"name": name, "unreadable": model.reason, "exit_code": model.exit_code}
        document = {**model_document(model), "nodes": nodes_document(model)}
        return {
            "name": name,
            "model": document,
            "audits": [
                _audit(index, name, answer) for index, answer in enumerate(self.answers.get(name, ()))
            ],
        }

    def certificate_files(self) -> dict[str, bytes]:
        """Every certificate under its place in the folder."""
        return dict(self.proofs) | {
            f"certificates/{name}": data
            for answers in self.answers.values()
            for answer in answers
            for name, data in answer.files.items()
        }

    def witness_file(self) -> bytes:
        """All pairs that show a lower bound, as float64 arrays named `<model>/<query>/<array>`, models counted from 0."""
        arrays: dict[str, Any] = {}
        for place, name in enumerate(self.models):
            for index, answer in enumerate(self.answers.get(name, ())):
                if answer.witness is not None:
                    with np.load(io.BytesIO(answer.witness), allow_pickle=False) as stored:
                        arrays |= {f"{place}/{index}/{key}": stored[key] for key in stored.files}
        buffer = io.BytesIO()
        np.savez(buffer, **arrays)
        return buffer.getvalue()


def _audit(index: int, name: str, answer: Answered) -> dict[str, Any]:
    best = answer.best()
    found: dict[str, Any] = {"query": index, "results": list(answer.rows), "lower": answer.lower}
    keys = ("analyzer", "upper", "log10_upper")
    found["best"] = None if best is None else {key: best[key] for key in keys if key in best}
    return found


def summary_row(index: int, analyzer: str, answered: Sequence[Answered]) -> dict[str, Any]:
    """One analyzer over all models of one question: how often it answered and was best, its median ratio and time."""
    rows = [(a, next(row for row in a.rows if row["analyzer"] == analyzer)) for a in answered]
    given = [(a, row) for a, row in rows if "refused" not in row]
    found: dict[str, Any] = {
        "query": index,
        "analyzer": analyzer,
        "asked": len(rows),
        "answered": len(given),
        "best_on": sum(row == a.best() for a, row in given),
    }
    ratios = [ratio for a, row in given if (ratio := log_ratio(row, a.lower)) is not None]
    if ratios:
        middle = median(ratios)
        key, value = (
            ("log10_median_ratio", middle) if middle > _LARGEST_LOG else ("median_ratio", 10.0**middle)
        )
        found[key] = value
    if given:
        found["median_seconds"] = median(row["seconds"] for _, row in given)
    return found


def logs(row: Mapping[str, Any]) -> list[float]:
    """Decimal logarithms of the bounds of a row; minus infinity for a bound of zero. For ordering and drawing only."""
    if "log10_upper" in row:
        return listed(row["log10_upper"])
    return [math.log10(upper) if upper else -math.inf for upper in listed(row["upper"])]


def mean_log(row: Mapping[str, Any]) -> float:
    """Orders rows of one question."""
    values = logs(row)
    return sum(values) / len(values)


def log_ratio(row: Mapping[str, Any], lower: Mapping[str, Any] | None) -> float | None:
    """log10 of upper over lower, the median over the centres; None where no centre has both above zero."""
    if lower is None:
        return None
    pairs = zip(logs(row), listed(lower["value"]), strict=False)
    known = [upper - math.log10(low) for upper, low in pairs if low > 0 and upper > -math.inf]
    return median(known) if known else None


def listed(value: Any) -> list[float]:
    """The numbers of a bound or of a lower bound: one, or one for each centre."""
    return list(value) if isinstance(value, list | tuple) else [value]
