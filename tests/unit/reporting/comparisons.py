"""Comparison documents for the tests of reports, made of the audit documents beside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lipverify.comparison.results import Answered, summary_row
from tests.unit.reporting import documents

Document = dict[str, Any]


def comparison(audits: Mapping[str, Document], unreadable: Sequence[str] = (), **more: Any) -> Document:
    """A comparison of one question: the audits' rows, those an audit does not have refused."""
    names = list(dict.fromkeys(row["analyzer"] for a in audits.values() for row in a["results"]))
    first = next(iter(audits.values()))
    models: list[Document] = []
    answered = []
    for name, audit in audits.items():
        rows = {row["analyzer"]: row for row in audit["results"]}
        given = [rows.get(n, {"analyzer": n, "refused": "was not asked"}) for n in names]
        answered.append(Answered(tuple(given), audit["lower"]))
        entry = {"query": 0, "results": given, "lower": audit["lower"], "best": audit["best"]}
        models.append({"name": name, "model": audit["model"], "audits": [entry]})
    models += [{"name": name, "unreadable": "no such file", "exit_code": 2} for name in unreadable]
    return {
        "schema": "lipverify.compare/1",
        "tool": first["tool"],
        "created": first["created"],
        "command": "lipverify compare a.onnx b.onnx",
        "queries": [first["query"]],
        "analyzers": names,
        "models": models,
        "summary": [summary_row(0, name, answered) for name in names],
        "curves": [],
        "assumptions": [],
        "not_covered": list(documents.NOT_COVERED),
        "work": {"computed": 7, "cached": 2},
        "environment": {"python": "3.11"},
        "seconds": 12.5,
        **more,
    }


def curve(model: str, shares: Sequence[float], norm: str = "linf") -> Document:
    """One entry of `curves`."""
    radii = [0.1 * i for i in range(len(shares))]
    return {
        "model": model,
        "norm": norm,
        "method": "crown",
        "radii": radii,
        "certified_accuracy": list(shares),
        "clean_accuracy": shares[0],
    }


def two() -> Document:
    """Two models, one more that cannot be read, curves of both."""
    audits = {"net.onnx": documents.mlp(), "residual.onnx": documents.residual_cnn()}
    curves = [curve("net.onnx", [0.9, 0.5, 0.1]), curve("residual.onnx", [0.8, 0.8, 0.0])]
    return comparison(audits, ["missing.onnx"], curves=curves)


def many() -> Document:
    """Twelve models and eleven analyzers, bounds from 1 to beyond float64."""
    audits = {}
    for index in range(12):
        uppers = [1.5 + index * 0.4 * (1.3 + k) ** k for k in range(10)]
        rows = [documents.bound(f"analyzer-{k}", upper, 0.01 * 3**k) for k, upper in enumerate(uppers)]
        rows.append(documents.bound("huge", None, 2.0, log10_upper=4000.5))
        audits[f"a-model-with-a-rather-long-name-{index}.onnx"] = documents.document(
            documents.mlp()["model"]["nodes"], rows, 1.0 + index * 0.1
        )
    return comparison(audits)


def hostile() -> Document:
    """Names and reasons that are markup."""
    return comparison(
        {"<script>alert(1)</script>": documents.hostile(), "net": documents.hostile()}, ["<img src=x>"]
    )


DOCUMENTS = {
    "two": two(),
    "many": many(),
    "local": comparison({"a": documents.local(12), "b": documents.local(12)}),
    "hostile": hostile(),
    "alone": comparison({"net.onnx": documents.mlp()}),
    "refused": comparison({"net.onnx": documents.refused()}),
    "nothing": comparison({"net.onnx": documents.refused()}, ["a", "b"]),
}
