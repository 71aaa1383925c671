"""What pipelines read: an audit as JUnit test cases, and as an in-toto statement about the model file."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from lipverify.errors import UsageError
from lipverify.loading.names import display
from lipverify.reporting.answers import Document

PREDICATE = "urn:lipverify:audit:1"
"""Type of the predicate of a statement: the query, the bounds with their rigour, and digests of the certificates."""


def junit(document: Document, limit: float | None = None) -> str:
    """One test case for each analyzer, skipped where it refused, an error where it broke; and one each for `--fail-above` and
    `--claimed`.

    Format: the JUnit XML that continuous integration services read. A bound beyond float64 exceeds every limit.
    """
    name = display(document["model"]["path"] or "model")
    suite = ElementTree.Element("testsuite", name=f"lipverify {name}", time=f"{document['seconds']:.3f}")
    for row in document["results"]:
        seconds = f"{row.get('seconds', 0.0):.3f}"
        case = _case(suite, name, f"{display(row['analyzer'])} gives a bound", seconds)
        if row.get("failed"):
            ElementTree.SubElement(case, "error", message=display(row["refused"], 400))
        elif "refused" in row:
            ElementTree.SubElement(case, "skipped", message=display(row["refused"], 400))
        else:
            ElementTree.SubElement(case, "system-out").text = _bound_words(row)
    if limit is not None:
        case = _case(suite, name, f"the best bound is at most {limit!r}", "0.000")
        found = worst(document["best"])
        if not found <= limit:
            text = "no bound" if document["best"] is None else _bound_words(document["best"])
            ElementTree.SubElement(case, "failure", message=f"{text}; the limit is {limit!r}")
    claimed = document.get("claimed")
    if claimed is not None:
        case = _case(suite, name, f"the constant is at most {claimed['constant']!r}, as claimed", "0.000")
        if claimed["verdict"] == "refuted":
            shown = document["lower"]["value"]
            steepest = max(v for v in shown if v is not None) if isinstance(shown, list) else shown
            said = f"a pair of inputs has a slope of at least {steepest!r}"
            ElementTree.SubElement(case, "failure", message=said)
        elif claimed["verdict"] != "proved":
            ElementTree.SubElement(case, "skipped", message="neither bounds nor witness settle it")
    for kind in ("testcase", "skipped", "failure"):
        suite.set(
            {"testcase": "tests", "failure": "failures"}.get(kind, kind),
            str(len(suite.findall(f".//{kind}"))),
        )
    suite.set("errors", str(len(suite.findall(".//error"))))
    return ElementTree.tostring(suite, encoding="unicode", xml_declaration=True) + "\n"


def _case(suite: ElementTree.Element, model: str, name: str, seconds: str) -> ElementTree.Element:
    return ElementTree.SubElement(suite, "testcase", classname=f"lipverify.{model}", name=name, time=seconds)


def _bound_words(row: Mapping[str, Any]) -> str:
    bound = f"upper {worst(row)!r}" if "upper" in row else f"upper 10^{row['log10_upper']!r}"
    return f"{display(row['analyzer'])}: {bound}"


def worst(best: Mapping[str, Any] | None) -> float:
    """The largest bound of a row over its centres; infinite where there is no number to compare with a limit."""
    upper = math.inf if best is None else best.get("upper", math.inf)
    return float(max(upper) if isinstance(upper, list) else upper)


def statement(document: Document, certificates: Mapping[str, Mapping[str, bytes]]) -> dict[str, Any]:
    """An in-toto statement (version 1) that attaches the audit to the sha256 of the model file and of the files beside it.

    Args:
        certificates: the files of every certificate by name, by analyzer; they are named by their digests.

    Raises:
        UsageError: the model was not read from a file, so there is no digest to speak of.
    """
    model = document["model"]
    if not model.get("sha256"):
        raise UsageError("a statement is about a model file; this model was not read from one")
    rows = []
    for row in document["results"]:
        kept = {
            key: row[key]
            for key in ("analyzer", "upper", "log10_upper", "rigour", "refused", "failed")
            if key in row
        }
        files = certificates.get(row["analyzer"], {})
        kept["certificates"] = [
            {"name": name, "digest": {"sha256": hashlib.sha256(data).hexdigest()}}
            for name, data in files.items()
        ]
        rows.append(kept)
    return {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [
            {"name": name, "digest": {"sha256": digest}}
            for name, digest in (
                (Path(model["path"]).name, model["sha256"]),
                *((file["name"], file["sha256"]) for file in model.get("beside", ())),
            )
        ],
        "predicateType": PREDICATE,
        "predicate": {
            "tool": document["tool"],
            "created": document["created"],
            "graph_digest": model["graph_digest"],
            "query": document["query"],
            "results": rows,
            "lower": document["lower"]["value"],
            "best": document["best"],
            "assumptions": document["assumptions"],
            "not_covered": document["not_covered"],
        },
    }


def as_json(document: Mapping[str, Any]) -> str:
    """A statement as text."""
    return json.dumps(document, indent=1, allow_nan=False) + "\n"
