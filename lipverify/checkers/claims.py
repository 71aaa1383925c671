"""A certificate against a model: read strictly, bound to the model by digests, proved again, stated in the checker's words."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import ROUND_CEILING, Context, Decimal
from pathlib import Path
from typing import Any

import numpy as np

from lipverify.checkers.arithmetic import Array, NotCovered, above, need, real
from lipverify.checkers.balls import Ball, Empty, Split, prove_empty, prove_local
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
from lipverify.checkers.gains import prove_product
from lipverify.checkers.multipliers import System, prove_lipsdp
from lipverify.checkers.operators import run
from lipverify.checkers.steps import Call, Map, Program
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


def outward(value: float) -> str:
    """Nine significant decimal digits, rounded up."""
    return str(Context(prec=9, rounding=ROUND_CEILING).create_decimal(Decimal(value)))


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
    _prove(proof, program, subject["output"], norms, values, beside, exact, balls)
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


def _prove(proof: Mapping[str, Any], program: Program, output: str, norms: tuple[str, str], values: list[float],
           beside: Mapping[str, Array], exact: bool, balls: list[Ball] | None) -> None:  # fmt: skip
    """RefutedCertificate unless the evidence proves the values: one for the whole space, or one for each ball."""
    step = ending(program, output)
    if balls is None:
        _prove_one(proof, program, step, norms, min(values), beside, exact, None)
        return
    need(proof.keys() == {"kind", "proofs", "of"} and proof["kind"] == "balls", "a proof for every ball")
    need(len(proof["of"]) == len(values) == len(balls), "numbers for other balls")
    need(
        all(type(k) is int and 0 <= k < len(proof["proofs"]) for k in proof["of"]),
        "a proof that is not there",
    )
    for k, inner in enumerate(proof["proofs"]):
        mine = [(v, b) for v, b, own in zip(values, balls, proof["of"], strict=True) if own == k]
        # A product holds for the whole space: the smallest of its claims is all of them.
        for upper, ball in (
            [min(mine, key=lambda pair: pair[0])] if mine and inner["kind"] == "product" else mine
        ):
            _prove_one(inner, program, step, norms, upper, beside, exact, ball)


def _prove_one(proof: Mapping[str, Any], program: Program, step: str, norms: tuple[str, str], upper: float,
               beside: Mapping[str, Array], exact: bool, ball: Ball | None, splits: tuple[Split, ...] = (),
               outputs: Sequence[int] | None = None) -> None:  # fmt: skip
    """RefutedCertificate unless the evidence proves `upper`, for a part of a ball and some outputs where these are given."""
    kind = proof["kind"]
    if kind == "product" and proof.keys() == {"kind", "stages"}:
        _enough(above(prove_product(program, step, norms, proof["stages"], exact)), upper)
        return
    system, known = System(program, step, ball, splits), proof.keys() - {"kind"}
    wanted = range(system.outputs) if outputs is None else outputs
    if kind == "local" and not known and ball is not None and not exact:
        _enough(prove_local(system, norms, wanted), upper)
    elif kind == "empty" and known == {"weights"}:
        if not prove_empty(system, [real(w) for w in proof["weights"]]):
            raise RefutedCertificate("a part of a ball that is not shown to be empty")
    elif kind == "tree" and known == {"groups"} and ball is not None and not exact:
        need(
            [r for g in proof["groups"] for r in range(*g["rows"])] == list(wanted), "trees of other outputs"
        )
        need(len(proof["groups"]) == 1 or norms[1] == "linf", "trees of single outputs")
        for group in proof["groups"]:
            _prove_part(group["root"], splits, lambda inner, parts, rows=range(*group["rows"]): _prove_one(
                inner, program, step, norms, upper, beside, exact, ball, parts, rows))  # fmt: skip
    elif kind == "lipsdp" and known == {"parts"}:
        rows = {part["row"] for part in proof["parts"]}
        need(rows == {None} or rows == set(wanted), "rows of the output")
        # One output by itself says nothing about l2; all of them in l2 are at least as large as in linf.
        if "l1" in norms or (None not in rows and norms[1] == "l2"):
            raise NotCovered(f"LipSDP from {norms[0]} to {norms[1]} is not covered by the checker")
        for part in proof["parts"]:
            need((part["weights"] is None) == (norms[0] == "l2"), "weights of the inputs")
            arrays = [beside[name].astype(np.float64) for name in part["blocks"]]
            weights = beside[part["weights"]].astype(np.float64) if norms[0] == "linf" else None
            prove_lipsdp(system, arrays, upper, exact, weights, part["row"])
    else:
        raise NotCovered(f"evidence of the kind {str(kind)[:40]!a} is not covered by the checker")


def _prove_part(node: Mapping[str, Any], splits: tuple[Split, ...], prove: Callable[..., None]) -> None:
    """Both sides of every split cover what was split, whatever it is; a side that holds no input needs no bound."""
    if node.keys() == {"split", "above", "below"}:
        layer, entry, at = node["split"]
        for side in ("above", "below"):
            _prove_part(node[side], (*splits, Split(layer, entry, real(at), side == "above")), prove)
        return
    try:
        prove(node, splits)
    except Empty:
        return


def _enough(found: float, upper: float) -> None:
    if not found <= upper:
        raise RefutedCertificate(f"its evidence proves {outward(found)}, not {outward(upper)}")


def ending(program: Program, output: str) -> str:
    """The step whose result is the output; one that puts places in order where they are not."""
    value, name = program.value(output), f"{output}/end"
    if np.array_equal(value.places.ravel(), np.arange(program.steps[value.sources[0]].size)):
        return value.sources[0]
    if name not in program.steps:
        index, size = np.arange(value.places.size)[None, :, None], value.places.size
        program.steps[name] = Map(value.sources, value.places.ravel(), size, np.ones((1, 1, 1)), index)
    return name


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
