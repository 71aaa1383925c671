"""A certificate against a model: read strictly, bound to the model by digests, proved again, stated in the checker's words."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from decimal import ROUND_CEILING, Context, Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from lipverify.checkers.arithmetic import Array, below
from lipverify.checkers.graph import FIELDS, Graph, Node, NotCovered, digest_of, need, node_of, real, setting
from lipverify.checkers.lipsdp import prove_lipsdp
from lipverify.checkers.product import prove_product
from lipverify.checkers.reading import (
    MAX_CERTIFICATE,
    MAX_MODEL,
    Model,
    parse_json,
    parse_safetensors,
    read_bytes,
    read_model,
)
from lipverify.errors import RefutedCertificate, UnreadableCertificate, UsageError

SCHEMA = "lipverify.certificate/1"
KEYS = {
    "": "schema subject graph tensors claim analyzer proof sidecar rigour import_check assumptions not_covered environment times",
    "subject": "name sha256 format graph_digest identity",
    "graph": "nodes output",
    "node": "name op inputs shape settings tensors",
    "tensor": "dtype shape source",
    "claim": "norm_in norm_out region upper upper_hex upper_decimal statement",
    "stage": "nodes by gain torus",
    "sidecar": "name sha256",
}
_NORMS = ("l1", "l2", "linf")


@dataclass(frozen=True)
class Verdict:
    """What was proved. upper: the claimed number, or one for each centre of a region."""

    upper: float | list[float]
    claim: str
    seconds: float
    binding: str
    """`file`: operators and weights were read from the file; `weights`: the architecture is the certificate's; `graph`."""

    def to_json(self) -> dict[str, Any]:
        return {"schema": "lipverify.verify/1", "valid": True, "upper": self.upper, "claim": self.claim,
                "binding": self.binding, "seconds": self.seconds}  # fmt: skip


def outward(value: float) -> str:
    """Nine significant decimal digits, rounded up."""
    return str(Context(prec=9, rounding=ROUND_CEILING).create_decimal(Decimal(value)))


def statement(norms: tuple[str, str], decimal: str, region: str) -> str:
    """The claim as a sentence; a certificate with another sentence is refused."""
    where = "for all inputs x, y" + ("" if region == "everywhere" else " of the region")
    return f"|f(x) - f(y)|_{norms[1]} <= {decimal} |x - y|_{norms[0]} {where}, f the real-valued function of the graph"


def verify_file(path: Path, model: Path | Model, exact: bool = False) -> Verdict:
    """Proves a certificate file again for a model file.

    Raises:
        RefutedCertificate: the evidence does not carry the claim. UnreadableCertificate: damaged, or for another model.
        UsageError: a file that is not there.
    """
    for needed in (path, model):
        if isinstance(needed, Path) and not needed.exists():
            raise UsageError(f"{str(needed)[:120]!a} does not exist")

    def known() -> Model:
        return model if isinstance(model, Model) else read_model(model)

    return check(lambda: read_bytes(path, MAX_CERTIFICATE), lambda name: read_bytes(path.parent / name, MAX_MODEL),
                 known, exact)  # fmt: skip


def check(certificate: Callable[[], bytes], sidecar: Callable[[str], bytes], model: Callable[[], Model],
          exact: bool = False) -> Verdict:  # fmt: skip
    """Fails closed: whatever goes wrong in here that is not a refusal makes the certificate unreadable."""
    started = time.monotonic()
    try:
        with np.errstate(all="ignore"):
            return _check(certificate(), sidecar, model, exact, started)
    except (RefutedCertificate, UnreadableCertificate):
        raise
    except Exception as error:
        raise UnreadableCertificate(f"the certificate cannot be followed ({type(error).__name__})") from error


def _table(value: Any, kind: str, optional: str = "") -> dict[str, Any]:
    """A JSON object with exactly these fields."""
    known = set(KEYS[kind].split())
    need(isinstance(value, dict), f"{kind or 'the certificate'} is not an object")
    need(value.keys() <= known, f"{kind or 'the certificate'} has unknown fields")
    need(known - set(optional.split()) <= value.keys(), f"{kind or 'the certificate'} lacks fields")
    return dict(value)


def _text(value: Any, limit: int = 200) -> str:
    need(isinstance(value, str) and len(value) <= limit, "a text that is none, or too long")
    return str(value)


def _check(
    data: bytes, sidecar: Callable[[str], bytes], read: Callable[[], Model], exact: bool, started: float
) -> Verdict:
    table = _table(parse_json(data), "")
    need(table["schema"] == SCHEMA, f"not a certificate of the form {SCHEMA}")
    need(table["rigour"] in ("checked", "real", "solver"), "an unknown rigour")
    if table["rigour"] != "checked":
        raise NotCovered(f"it says itself that the checker has not proved it (rigour {table['rigour']})")
    subject, claim = _table(table["subject"], "subject"), _table(table["claim"], "claim")
    for field in ("analyzer", "proof", "environment", "times"):
        need(isinstance(table[field], dict), f"{field} is not an object")
    norms = _text(claim["norm_in"]), _text(claim["norm_out"])
    need(set(norms) <= set(_NORMS), "an unknown norm")
    region = claim["region"]
    need(isinstance(region, dict) and region.get("kind") in ("everywhere", "ball"), "an unknown region")
    values = _upper(claim)
    beside: dict[str, Array] = {}
    if table["sidecar"] is not None:
        entry = _table(table["sidecar"], "sidecar")
        name = _text(entry["name"])
        need(name == Path(name).name and name.endswith(".safetensors"), "the name of the sidecar")
        content = sidecar(name)
        need(hashlib.sha256(content).hexdigest() == entry["sha256"], "the sidecar is damaged or another one")
        beside = parse_safetensors(content)
    model = read()
    need(subject["sha256"] == model.sha256, "it is for another model file")
    graph, foreign = _graph(table["graph"], table["tensors"], model, beside)
    identity = graph.identity(graph.output)
    if identity != subject["identity"]:
        raise RefutedCertificate("its graph is not the one it says it is about")
    if model.outputs is not None:
        if model.reason:
            raise NotCovered(f"the file's operators: {model.reason}")
        if identity not in model.outputs:
            raise RefutedCertificate("its graph is not that of the model file")
    decimal = max((outward(v) for v in values), key=Decimal)
    if claim["statement"] != statement(norms, decimal, region["kind"]):
        raise RefutedCertificate("its statement is not the one its numbers make")
    _prove(table["proof"], graph, norms, region["kind"], min(values), beside, exact)
    words = _words(claim["statement"], model, foreign, exact)
    return Verdict(claim["upper"], words, time.monotonic() - started, model.binding)


def _upper(claim: Mapping[str, Any]) -> list[float]:
    """The claimed numbers, written three times alike."""
    shown, exact, decimal = claim["upper"], claim["upper_hex"], claim["upper_decimal"]
    several = isinstance(shown, list)
    need(several == isinstance(exact, list) == isinstance(decimal, list), "numbers of different count")
    shown, exact, decimal = (v if several else [v] for v in (shown, exact, decimal))
    need(0 < len(shown) == len(exact) == len(decimal), "numbers of different count")
    values = [real(text) for text in exact]
    need(all(type(v) in (int, float) for v in shown), "a bound that is no number")
    need(all(math.isfinite(v) and v >= 0 for v in values), "a bound that is not a finite number >= 0")
    if any(float(a) != b or outward(b) != c for a, b, c in zip(shown, values, decimal, strict=True)):
        raise RefutedCertificate("its numbers contradict each other")
    return values


def _graph(document: Any, tensors: Any, model: Model, beside: Mapping[str, Array]) -> tuple[Graph, int]:
    """The graph of the certificate with the model's own tensors, and how many tensors the model file does not hold."""
    document, foreign = _table(document, "graph"), 0
    nodes: dict[str, Node] = {}
    need(isinstance(tensors, dict) and isinstance(document["nodes"], list), "the graph")
    known: dict[str, Array] = {}
    for digest, entry in tensors.items():
        entry = _table(entry, "tensor")
        need(entry["source"] in ("model", "sidecar"), "the source of a tensor")
        if digest in model.tensors:
            known[digest] = model.tensors[digest]
        else:
            need(
                entry["source"] == "sidecar" and f"tensor.{digest}" in beside,
                "a tensor that the model does not hold",
            )
            known[digest] = beside[f"tensor.{digest}"]
            need(digest_of(known[digest]) == digest, "a tensor with another digest")
            foreign += 1
        need(
            [known[digest].dtype.name, list(known[digest].shape)] == [entry["dtype"], entry["shape"]],
            "a tensor",
        )
    for entry in document["nodes"]:
        entry = _table(entry, "node")
        name, op, inputs = _text(entry["name"], 1 << 12), _text(entry["op"], 40), entry["inputs"]
        need(
            isinstance(inputs, list) and all(isinstance(i, str) and i in nodes for i in inputs),
            "inputs of a node",
        )
        need(
            name not in nodes and isinstance(entry["settings"], dict) and isinstance(entry["tensors"], dict),
            "a node",
        )
        fields = FIELDS.get(op, {})
        settings = {k: setting(fields.get(k, "?"), v) for k, v in entry["settings"].items()}
        need(all(isinstance(d, str) and d in known for d in entry["tensors"].values()), "an unknown tensor")
        own = {k: (known[d], d) for k, d in entry["tensors"].items()}
        nodes[name] = node_of(name, op, nodes, tuple(inputs), settings, own, setting("I", entry["shape"]))
    need(document["output"] in nodes, "the output of the graph")
    found = Graph(nodes, document["output"])
    need(sum(node.op == "Input" for node in nodes.values()) == 1, "a graph needs exactly one input")
    return found, foreign


def _prove(proof: Mapping[str, Any], graph: Graph, norms: tuple[str, str], region: str, upper: float,
           beside: Mapping[str, Array], exact: bool) -> None:  # fmt: skip
    """RefutedCertificate unless the evidence proves `upper` for the whole space."""
    kind = proof.get("kind")
    if kind == "product":
        need(proof.keys() == {"kind", "stages"} and isinstance(proof["stages"], list), "the proof")
        if norms[0] != norms[1]:
            raise NotCovered("different norms at input and output are not covered by the checker")
        stages = [_table(stage, "stage", "gain torus") for stage in proof["stages"]]
        found = prove_product(graph, norms[0], stages, exact)
        if found > Fraction(upper):
            raise RefutedCertificate(f"its evidence proves {outward(-below(-found))}, not {outward(upper)}")
    elif kind == "lipsdp":
        need(proof.keys() == {"kind", "blocks"}, "the proof")
        blocks = proof["blocks"]
        need(
            isinstance(blocks, list) and all(isinstance(b, str) and b in beside for b in blocks),
            "multipliers",
        )
        if norms != ("l2", "l2"):
            raise NotCovered("LipSDP is about l2")
        prove_lipsdp(graph, [beside[b].astype(np.float64) for b in blocks], upper, exact)
    else:
        need(isinstance(kind, str), "the proof")
        raise NotCovered(f"evidence of the kind {str(kind)[:40]!a} is not covered by the checker")


def _words(claim: str, model: Model, foreign: int, exact: bool) -> str:
    """The statement from what was proved."""
    name = f"{model.name[:80]!a}"
    about = {
        "file": f"whose operators and weights were read from {name}",
        "weights": f"whose architecture the certificate states and whose weights lie in {name}"
        + (f", except {foreign} tensors that the certificate brings along" if foreign else ""),
        "graph": "as it is in memory",
    }[model.binding]
    how = "exact integers" if exact else "float64 with every rounding accounted for"
    digest = f" (sha256 {model.sha256})" if model.sha256 else ""
    return f"{claim} {about}{digest}; proved in {how}; not covered: execution in floating point, preprocessing outside the graph"


__all__ = ["SCHEMA", "Node", "Verdict", "check", "outward", "statement", "verify_file"]
