"""The verb `prove`: bounds of a report that its budget left no time to prove, proved now."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lipverify.commands.shell import print_json
from lipverify.errors import BudgetEnded, InternalError, InvalidFile, Undecided, UsageError
from lipverify.loading.arguments import parse_duration
from lipverify.loading.names import display, display_path
from lipverify.options import Reading, option

if TYPE_CHECKING:
    from lipverify.ir.certificate import Certificate
    from lipverify.ir.graph import Graph

LARGEST = 1 << 28
"""Bytes of a document that is read again."""


@dataclass(frozen=True, kw_only=True)
class ProveOptions(Reading):
    """What `prove` takes; how the model is read as in the command that made the report."""

    folder: Annotated[str, option("the folder of a report: its --out", position=True, metavar="DIR")]
    model: Annotated[str | None, option("the model, where it lies elsewhere now")] = None
    budget: Annotated[float | None, option("time for everything, for example 90s or 10m", parse_duration)] = (
        None
    )
    began: float = field(default_factory=time.monotonic)


def prove(options: ProveOptions, as_json: bool) -> int:
    """Proves every bound of the report that waits for it, and writes the report again; 0 if none waits any more, else 4.

    4 too where nothing waits and some bound has no proof that more time would give.

    Raises:
        UsageError: no report of `audit`, or another model. InvalidFile: a damaged file.
    """
    from lipverify.reporting.places import RESULT

    folder = Path(options.folder)
    document = _document(folder / RESULT)
    if document.get("schema") != "lipverify.audit/1":
        raise UsageError(f"{display_path(folder)} holds no report of audit, whose bounds can be proved later")
    waiting = list(_waiting(folder, document))
    left = _left(document, [row["analyzer"] for row, _ in waiting])
    told = _write_proofs(folder, document, waiting, options) if waiting else {}
    if as_json:
        print_json(
            {"schema": "lipverify.prove/1", "folder": str(folder), "results": told, "unprovable": left}
        )
    else:
        if not waiting:
            typer.echo(f"no bound in {display_path(folder)} waits for a proof that the budget ended")
        for name, words in told.items():
            typer.echo(f"{name}: {words}")
        for name, words in left.items():
            typer.echo(f"{name}: has no proof, and none is kept to go on with: {words}")
    done = all(words == "checked" for words in told.values()) and bool(told or not left)
    return 0 if done else Undecided.exit_code


def _write_proofs(
    folder: Path,
    document: dict[str, Any],
    waiting: list[tuple[dict[str, Any], dict[str, Any]]],
    options: ProveOptions,
) -> dict[str, str]:
    """Proves what waits, and writes the report with it again; analyzer -> its rigour, or why it has no proof.

    Raises:
        UsageError: another model than that of the report. InvalidFile: damaged evidence.
    """
    from lipverify import pipeline
    from lipverify.commands.start import load
    from lipverify.reporting.html import render_audit
    from lipverify.reporting.places import REPORT, RESULT
    from lipverify.reporting.writing import OutputFolder, document_bytes

    graph = load(options, options.model or str(document["model"].get("path")))
    margin = waiting[0][1]["models"][0]["margin"]
    if margin is not None:
        graph = pipeline.margin(graph, *map(int, margin))
    if graph.digest != document["model"]["graph_digest"]:
        said = display(str(document.get("command")), 300)
        raise UsageError(f"this is another model or output than that of the report; read it as there: {said}")
    end = None if options.budget is None else options.began + options.budget
    files = _certificates(folder)
    told: dict[str, str] = {}
    for row, certificate in waiting:
        found = _proved(row, certificate, graph, document["query"], end)
        told[row["analyzer"]] = str(found.rigour) if found.issued is not None else found.unchecked
        if found.issued is not None:
            _update(row, found, document)
            name = row["certificate"].rpartition("/")[2]
            files |= {f"certificates/{file}": data for file, data in found.issued.files(name).items()}
    with OutputFolder(folder) as out:
        out.write({**files, REPORT: render_audit(document).encode("utf-8"), RESULT: document_bytes(document)})
    return told


def _document(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as stream:
            found = json.loads(stream.read(LARGEST))
    except OSError as error:
        raise UsageError(f"{display_path(path)} cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError):
        raise InvalidFile(f"{display_path(path)} is damaged") from None
    if not isinstance(found, dict):
        raise InvalidFile(f"{display_path(path)} is damaged")
    return found


def _left(document: dict[str, Any], waiting: list[str]) -> dict[str, str]:
    """The rows that are not proved and do not wait for it: analyzer -> why."""
    rows = (row for row in document.get("results", ()) if row.get("rigour") in ("real", "solver"))
    return {
        display(str(row.get("analyzer"))): display(
            str(row.get("unchecked") or "its analyzer writes no proof"), 600
        )
        for row in rows
        if row.get("analyzer") not in waiting
    }


def _waiting(folder: Path, document: dict[str, Any]) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """The rows that wait for a proof, with their certificates. Raises InvalidFile."""
    from lipverify.reporting.places import CERTIFICATE

    for row in document.get("results", ()):
        name = str(row.get("certificate"))
        if row.get("rigour") != "real" or not CERTIFICATE.fullmatch(name):
            continue
        certificate = _document(folder / name)
        proof = certificate.get("proof")
        if isinstance(proof, dict) and "kept" in proof:
            yield row, certificate


def _certificates(folder: Path) -> dict[str, bytes]:
    """Those that are there: what is written again replaces the whole folder's."""
    from lipverify.reporting.places import CERTIFICATE

    names = (f"certificates/{path.name}" for path in sorted((folder / "certificates").iterdir()))
    return {name: (folder / name).read_bytes() for name in names if CERTIFICATE.fullmatch(name)}


def _proved(
    row: dict[str, Any], written: dict[str, Any], graph: Graph, asked: dict[str, Any], end: float | None
) -> Certificate:
    """The bound again, `checked` where the checker proves it before `end`. Raises InvalidFile."""
    import torch

    from lipverify.analyzers import registry
    from lipverify.certificates import issue
    from lipverify.certificates.pending import UNPROVED, restored
    from lipverify.deadline import look, within
    from lipverify.ir.certificate import Certificate, Rigour

    # Loads the analyzer, with the kinds of its evidence.
    method = registry.resolve(str(row["analyzer"]))
    evidence, query = restored(written["proof"]["kept"])
    if any(asked.get(key) != value for key, value in query.to_json().items()):
        raise InvalidFile("the kept evidence is about another question than the report")
    try:
        upper = None if row.get("upper") is None else torch.tensor(row["upper"], dtype=torch.float64)
        bound = Certificate(
            upper=upper,
            log10_upper=row.get("log10_upper"),
            query=query,
            rigour=Rigour.REAL,
            evidence=evidence,
            made_by=str(row["made_by"]),
            graph_digest=graph.digest,
            assumptions=tuple(map(str, row["assumptions"])),
        )
        with within(end):
            look()
            found = issue(bound, graph, query, method, float(row["seconds"]))
    except BudgetEnded:
        return _unchecked(bound, UNPROVED)
    except (
        KeyError,
        TypeError,
        ValueError,
        AttributeError,
        IndexError,
        RuntimeError,
        InternalError,
    ) as error:
        raise InvalidFile(
            f"the evidence of {display(str(row.get('analyzer')))} is damaged ({type(error).__name__})"
        ) from None
    return found


def _unchecked(bound: Certificate, why: str) -> Certificate:

    return replace(bound, unchecked=why)


def _update(row: dict[str, Any], found: Certificate, document: dict[str, Any]) -> None:
    """The row of a bound that is proved now; where the checker's figure is a little above, that is the bound."""
    assert found.upper is not None
    row |= {"upper": found.upper.tolist(), "rigour": str(found.rigour)}
    row.pop("unchecked", None)
    if found.proved:
        row["checked"] = list(found.proved)
    if found.notes:
        row["notes"] = [*row.get("notes", ()), *found.notes]
    best = document.get("best")
    if best is not None and best.get("analyzer") == row["analyzer"]:
        best["upper"] = row["upper"]
