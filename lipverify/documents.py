"""The JSON documents of the command line: field names and meanings are fixed, others may be added."""

from __future__ import annotations

import platform
import re
from datetime import UTC, datetime
from typing import Any

import torch

from lipverify.ir.graph import Graph, Origin
from lipverify.ir.region import Query
from lipverify.version import __version__

NOT_COVERED = (
    "the execution in floating point: the bound is about the real-valued function of the stored weights",
    "preprocessing outside the model file",
    "correspondence of file and graph beyond the import check, which is a test and not a proof",
)


def model_document(graph: Graph) -> dict[str, Any]:
    """Who the model is: file, digest, shapes, operators, import check."""
    origin = graph.origin
    place, name = output_of(origin)
    found: dict[str, Any] = {
        "path": origin.path,
        "sha256": origin.sha256,
        "graph_digest": graph.digest,
        "format": origin.format,
        "input_shape": list(graph.input_shape),
        "output_shape": list(graph.output_shape),
        "parameters": graph.parameters(),
        "operators": graph.operators(),
        "notes": list(origin.notes),
        "trusted_code": list(origin.trusted_code),
        "output": {"index": place, "name": name},
    }
    if origin.margin is not None:
        found["margin"] = list(origin.margin)
    if origin.beside:
        found["beside"] = [{"name": name, "sha256": digest} for name, digest in origin.beside]
    if origin.reading is not None:
        found["reading"] = origin.reading.to_json()
    check = origin.import_check
    if check is not None:
        found["import_check"] = {
            "samples": check.samples,
            "max_abs_difference": check.max_abs_difference,
            "max_abs_output": check.max_abs_output,
            "reference": check.reference,
        }
    return found


def output_of(origin: Origin) -> tuple[int | None, str | None]:
    """Place and name of the output of the model that a graph computes, as far as they are known."""
    named, place = origin.outputs, origin.output
    if isinstance(place, str):
        return (named.index(place) if place in named else None), place
    return place, (named[place] if place < len(named) else None)


def query_document(query: Query, part: str | None) -> dict[str, Any]:
    """What was asked. part: of the model, where it is not about the first output."""
    about = {} if part is None else {"of": part}
    return {**query.to_json(), **about, "words": query.words(part)}


def nodes_document(graph: Graph) -> list[dict[str, Any]]:
    """The layer graph, in topological order."""
    return [
        {
            "name": node.name,
            "op": node.op.kind(),
            "inputs": list(node.inputs),
            "shape": list(node.shape),
            "parameters": node.op.parameters(),
        }
        for node in graph.nodes
    ]


def envelope(schema: str, command: str | None, seconds: float, **body: Any) -> dict[str, Any]:
    """A document: who made it, when and how, around what it says."""
    return {
        "schema": schema,
        "tool": {"name": "lipverify", "version": __version__},
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command,
        **body,
        "not_covered": list(NOT_COVERED),
        "environment": environment(),
        "seconds": seconds,
    }


def environment() -> dict[str, Any]:
    """Versions and settings that produced a number."""
    import numpy

    return {
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "threads": torch.get_num_threads(),
        "cuda": torch.cuda.get_device_name(0) if torch.cuda.is_available() else None,
    }


def slug(name: str) -> str:
    """An analyzer's name as a file name: letters, digits and dashes."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "analyzer"
