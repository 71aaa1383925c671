"""A certificate against a model: read strictly, bound to the model by digests, proved again, stated in the checker's words."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np

from lipverify.checkers.arithmetic import Array, NotCovered, need, outward, real
from lipverify.checkers.balls import Ball
from lipverify.checkers.files import (
    MAX_CERTIFICATE,
    MAX_MODEL,
    Model,
    digest_of,
    parse_json,
    parse_safetensors,
    read_bytes,
    read_model,
)
from lipverify.checkers.operators import run
from lipverify.checkers.proofs import prove
from lipverify.checkers.steps import Call, Program
from lipverify.errors import RefutedCertificate, UnreadableCertificate, UsageError

SCHEMA = "lipverify.certificate/1"
KEYS = {
    "": "schema subject graph tensors claim analyzer proof sidecar rigour import_check assumptions not_covered environment times",
    "subject": "name sha256 format graph_digest output",
    "graph": "input shape nodes",
    "node": "op inputs output given",
    "claim": "norm_in norm_out region upper upper_hex upper_decimal statement",
    "everywhere": "kind",
    "ball": "kind norm radius radius_hex count centres box",
    "sidecar": "name sha256",
}


@dataclass(frozen=True)
class Verdict:
    """What was proved. upper: the claimed number, or one for each centre of a region."""

    upper: float | list[float]
    claim: str
    seconds: float
    binding: str

    def to_json(self) -> dict[str, Any]:
        return {"schema": "lipverify.verify/1", "valid": True, "upper": self.upper, "claim": self.claim,
                "binding": self.binding, "seconds": self.seconds}  # fmt: skip


def statement(norms: tuple[str, str], decimal: str, region: Mapping[str, Any]) -> str:
    """The claim as a sentence; a certificate with another sentence is refused."""
    where = "for all inputs x, y"
    if region["kind"] == "ball":
        cut = "" if region["box"] is None else f", cut by the box with digest {region['box']}"
        where += f" of one {region['norm']} ball of radius {region['radius']!r} around any of the {region['count']} centres with"
        where += f" digest {region['centres']}{cut}"
    return f"|f(x) - f(y)|_{norms[1]} <= {decimal} |x - y|_{norms[0]} {where}, f the real-valued function of the graph"


def verify_file(path: Path, model: Path | Model, exact: bool = False) -> Verdict:
    """Proves a certificate file again for a model file.

    Raises:
        RefutedCertificate: the evidence does not carry the claim. UnreadableCertificate: damaged, or for another model.
        UsageError: a file that is not there.
    """
    for wanted in (path, model):
        if isinstance(wanted, Path) and not wanted.exists():
            raise UsageError(f"{str(wanted)[:120]!a} does not exist")
    return check(lambda: read_bytes(path, MAX_CERTIFICATE), lambda name: read_bytes(path.parent / name, MAX_MODEL),
                 lambda: model if isinstance(model, Model) else read_model(model), exact)  # fmt: skip


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


def _table(value: Any, kind: str) -> dict[str, Any]:
    """A JSON object with exactly these fields."""
    need(
        isinstance(value, dict) and value.keys() == set(KEYS[kind].split()),
        f"the fields of {kind or 'the certificate'}",
    )
    return dict(value)


def _check(
    data: bytes, sidecar: Callable[[str], bytes], read: Callable[[], Model], exact: bool, started: float
) -> Verdict:
    table = parse_json(data)
    need(isinstance(table, dict) and table.get("schema") == SCHEMA, f"not a certificate of the form {SCHEMA}")
    table = _table(table, "")
    need(table["rigour"] in ("checked", "real", "solver"), "an unknown rigour")
    if table["rigour"] != "checked":
        raise NotCovered(f"it says itself that the checker has not proved it (rigour {table['rigour']})")
    subject, claim, proof = (
        _table(table["subject"], "subject"),
        _table(table["claim"], "claim"),
        table["proof"],
    )
    need(all(isinstance(table[k], dict) for k in ("analyzer", "proof", "environment", "times")), "the fields")
    norms, region = (claim["norm_in"], claim["norm_out"]), claim["region"]
    need(
        set(norms) <= {"l1", "l2", "linf"} and region["kind"] in ("everywhere", "ball"), "a norm or a region"
    )
    region = _table(region, region["kind"])
    values, beside = _upper(claim), {}
    if table["sidecar"] is not None:
        entry = _table(table["sidecar"], "sidecar")
        need(
            entry["name"] == Path(entry["name"]).name and entry["name"].endswith(".safetensors"),
            "the sidecar's name",
        )
        content = sidecar(entry["name"])
        need(hashlib.sha256(content).hexdigest() == entry["sha256"], "the sidecar is damaged or another one")
        beside = parse_safetensors(content)
    model = read()
    need(subject["sha256"] == model.sha256, "it is for another model file")
    need(model.digest is None or subject["graph_digest"] == model.digest, "it is for another graph")
    program, foreign = model.program, 0
    need(
        model.binding == "weights" or (table["graph"] is None and table["tensors"] == {}),
        "a graph beside the model's own",
    )
    if model.binding == "weights":
        program, foreign = _stated(table["graph"], table["tensors"], model, beside)
    if program is None:
        raise NotCovered(f"the file's operators: {model.reason}")
    need(subject["output"] in (model.outputs or program.values), "an unknown output")
    decimal = max((outward(v) for v in values), key=Decimal)
    if claim["statement"] != statement(norms, decimal, region):
        raise RefutedCertificate("its statement is not the one its numbers make")
    balls = (
        None if region["kind"] == "everywhere" else _balls(region, beside, program.steps[program.input].size)
    )
    prove(proof, program, subject["output"], norms, values, beside, exact, balls)
    words = _words(claim["statement"], model, foreign, exact)
    return Verdict(claim["upper"], words, time.monotonic() - started, model.binding)


def _upper(claim: Mapping[str, Any]) -> list[float]:
    """The claimed numbers, written three times alike."""
    written = [claim[key] for key in ("upper", "upper_hex", "upper_decimal")]
    several = [isinstance(numbers, list) for numbers in written]
    need(len(set(several)) == 1, "numbers of different count")
    shown, exact, decimal = written if several[0] else ([numbers] for numbers in written)
    values = [real(text) for text in exact]
    need(0 < len(shown) == len(exact) == len(decimal), "numbers of different count")
    need(all(type(v) in (int, float) for v in shown), "a bound that is no number")
    need(all(math.isfinite(v) and v >= 0 for v in values), "a bound that is not a finite number >= 0")
    if any(float(a) != b or outward(b) != c for a, b, c in zip(shown, values, decimal, strict=True)):
        raise RefutedCertificate("its numbers contradict each other")
    return values


def _stated(graph: Any, tensors: Any, model: Model, beside: Mapping[str, Array]) -> tuple[Program, int]:
    """The graph of the certificate with the model's own tensors, and how many tensors the model file does not hold."""
    graph, stored, foreign = _table(graph, "graph"), {}, 0
    for name, digest in tensors.items():
        array = model.tensors[digest] if digest in model.tensors else beside[f"tensor.{digest}"]
        need(digest_of(array) == digest, "a tensor with another digest")
        stored[name], foreign = array, foreign + (digest not in model.tensors)
    program = Program(graph["input"], graph["shape"], stored, 17)
    for entry in graph["nodes"]:
        node = _table(entry, "node")
        need(all(isinstance(name, str) for name in (node["op"], node["output"], *node["inputs"])), "a node")
        given = {
            k: real(v) if isinstance(v, str) and v.lstrip("-")[:2] == "0x" else v
            for k, v in node["given"].items()
        }
        run(program, Call(node["op"], node["inputs"], node["output"], given))
    return program, foreign


def _balls(region: Mapping[str, Any], beside: Mapping[str, Array], size: int) -> list[Ball]:
    """The balls of the claim, around the centres in the sidecar."""
    centres, radius, box = beside["centres"].astype(np.float64), real(region["radius_hex"]), region["box"]
    need(
        digest_of(centres) == region["centres"] and centres.shape == (region["count"], size) and size,
        "the centres",
    )
    need(region["norm"] in ("l2", "linf") and 0 <= radius < 2.0**100 and radius == region["radius"], "a ball")
    need(type(region["radius"]) is float and type(region["count"]) is int, "a ball")
    cut = beside["box"].astype(np.float64) if box is not None else np.array([[-(2.0**100)], [2.0**100]])
    need(box is None or (digest_of(cut) == box and cut.shape == (2, size)), "the box")
    need(
        ((cut[0] <= centres) & (centres <= cut[1])).all(),
        "a centre outside the box, or near the ends of float64",
    )
    low, high = np.nextafter(centres - radius, -np.inf), np.nextafter(centres + radius, np.inf)
    return [Ball(c, radius, region["norm"], np.maximum(a, cut[0]), np.minimum(b, cut[1]))
            for c, a, b in zip(centres, low, high, strict=True)]  # fmt: skip


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
