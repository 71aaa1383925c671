"""Changes of certificates that a checker must refuse.

Every change is one an attacker could make: hashes that follow from the change are made again, unless the change is to a hash.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from lipverify import checkers
from lipverify.certificates import Issued
from lipverify.checkers.arithmetic import outward
from lipverify.checkers.files import digest_of
from lipverify.errors import RefutedCertificate, UnreadableCertificate
from lipverify.loading.safetensors import parse_safetensors, write_safetensors
from tests.soundness.certified import Document, Subject, restated, reworded


@dataclass(frozen=True)
class Mutant:
    """What was changed, and the bytes of the result."""

    kind: str
    subject: Subject
    certificate: bytes
    arrays: bytes | None
    model: checkers.Model

    def accepted(self) -> bool:
        """Whether the checker says yes; any other exception than a refusal is a failure of the checker."""
        try:
            checkers.check(lambda: self.certificate, lambda name: self.arrays or b"", lambda: self.model)
        except (RefutedCertificate, UnreadableCertificate):
            return False
        return True


def mutants(found: list[Subject], count: int, seed: int) -> Iterator[Mutant]:
    """`count` changed certificates, kinds in turn."""
    r = np.random.default_rng(seed)
    kinds = list(_KINDS)
    made = 0
    turn = 0
    while made < count:
        # Most kinds of changes are for some subjects only; a few tries each.
        kind, subject = kinds[turn // 4 % len(kinds)], found[int(r.integers(len(found)))]
        turn += 1
        document = copy.deepcopy(subject.issued.document)
        arrays = (
            None
            if subject.issued.arrays is None
            else parse_safetensors(subject.issued.arrays, Path("arrays"))
        )
        changed = _KINDS[kind](document, arrays, r, found)
        if changed is False:
            continue
        data = None if arrays is None else write_safetensors(arrays)
        mutant = _finished(kind, subject, Issued(document, data), r)
        if mutant is not None:
            made, turn = made + 1, -(-turn // 4) * 4
            yield mutant


def _finished(kind: str, subject: Subject, issued: Issued, r: np.random.Generator) -> Mutant | None:
    model = subject.model
    if kind in ("weights", "operators"):
        other = subject.path.with_name("changed.onnx")
        other.write_bytes(_changed_file(subject.path.read_bytes(), kind, r))
        model = checkers.read_model(other)
        issued.document["subject"]["sha256"] = model.sha256
    files = issued.files("certificate.json")
    certificate, arrays = files["certificate.json"], files.get("certificate.safetensors")
    if kind == "cut the file":
        certificate = certificate[: int(r.integers(len(certificate) - 1))]
    elif kind == "cut the arrays" and arrays is not None:
        arrays = arrays[: int(r.integers(len(arrays)))]
    elif kind == "flip a bit of the arrays" and arrays is not None:
        place = int(r.integers(len(arrays)))
        arrays = arrays[:place] + bytes([arrays[place] ^ (1 << int(r.integers(8)))]) + arrays[place + 1 :]
    elif kind in ("cut the arrays", "flip a bit of the arrays"):
        return None
    return Mutant(kind, subject, certificate, arrays, model)


def _lower_claim(document: Document, arrays: Any, r: np.random.Generator, found: list[Subject]) -> None:
    several = document["claim"]["upper"]
    place = int(r.integers(len(several))) if isinstance(several, list) and r.random() < 0.5 else None
    restated(document, 1 - 10 ** r.uniform(-4, -0.1), place)


def _one_number(document: Document, arrays: Any, r: np.random.Generator, found: list[Subject]) -> None:
    field = r.choice(["upper", "upper_hex", "upper_decimal"])
    claim = document["claim"]
    several = isinstance(claim["upper"], list)
    before = float(claim["upper"][0] if several else claim["upper"])
    other = before * (1 + 10 ** r.uniform(-6, 2) * r.choice([-0.9, 1]))
    changed = {"upper": other, "upper_hex": other.hex(), "upper_decimal": outward(other)}[str(field)]
    claim[field] = [changed, *claim[field][1:]] if several else changed


def _stronger_text(document: Document, arrays: Any, r: np.random.Generator, found: list[Subject]) -> None:
    text = document["claim"]["statement"]
    decimals = document["claim"]["upper_decimal"]
    number = max(decimals, key=float) if isinstance(decimals, list) else decimals
    options = [
        text.replace(number, outward(float(number) * r.uniform(0.1, 0.99))),
        f"{text} and for every network",
        text.upper(),
        "",
    ]
    document["claim"]["statement"] = options[r.integers(len(options))]


def _gain(document: Document, arrays: Any, r: np.random.Generator, found: list[Subject]) -> bool:
    stages = [s for s in document["proof"].get("stages", []) if "gain" in s]
    if not stages:
        return False
    stage = stages[r.integers(len(stages))]
    factor = 1 - 10 ** r.uniform(-4, -0.1)
    stage["gain"] = (float.fromhex(stage["gain"]) * factor).hex()
    if r.random() < 0.5:
        restated(document, factor)
    return True


def _stage(document: Document, arrays: Any, r: np.random.Generator, found: list[Subject]) -> bool:
    stages = document["proof"].get("stages")
    if not stages:
        return False
    i, j = int(r.integers(len(stages))), int(r.integers(len(stages)))
    match r.integers(4):
        case 0:
            del stages[i]
        case 1:
            stages.insert(j, copy.deepcopy(stages[i]))
        case 2:
            if stages[i] == stages[j] or "gain" not in stages[i]:
                return False
            stages[i] = {"steps": stages[i]["steps"], "by": "rule"}
        case _:
            stages[i]["steps"] = stages[i]["steps"] + stages[j]["steps"]
    # What is dropped makes the product smaller: the claim follows.
    restated(document, r.uniform(0.2, 0.99))
    return True


def _torus(document: Document, arrays: Any, r: np.random.Generator, found: list[Subject]) -> bool:
    stages = [s for s in document["proof"].get("stages", []) if "gain" in s]
    if not stages:
        return False
    stage = stages[r.integers(len(stages))]
    stage["by"] = str(r.choice(["torus", "dense", "rule", "trust"]))
    stage["torus"] = [[int(r.integers(1, 5)), int(r.integers(0, 3))] for _ in range(2)]
    stage["gain"] = (float.fromhex(stage["gain"]) * 0.9).hex()
    restated(document, 0.9)
    return True


def _multipliers(document: Document, arrays: Any, r: np.random.Generator, found: list[Subject]) -> bool:
    names = [n for n in arrays or {} if n.startswith("multipliers")]
    if not names:
        return False
    values = arrays[names[r.integers(len(names))]]
    match r.integers(5):
        case 0:
            values *= float(r.choice([0.1, 0.4, 3.0, 10.0, -1.0, 0.0]))
        case 1:
            values[r.integers(len(values))] = float(r.choice([0.0, -1.0, np.nan, np.inf, 1e-30]))
        case 2:
            order = r.permutation(len(values))
            values[:] = values[order.copy()] * 0.8
        case 3:
            name = names[r.integers(len(names))]
            arrays[name] = arrays[name][:-1].clone()
        case _:
            proofs = document["proof"].get("proofs", [document["proof"]])
            part = next(p for p in proofs if "parts" in p)["parts"][0]
            blocks = part["blocks"]
            part["blocks"] = blocks[1:] if r.random() < 0.5 else [*blocks, blocks[0]]
    return True


def _slopes(document: Document, arrays: Any, r: np.random.Generator, found: list[Subject]) -> bool:
    """Slopes of smooth activations that do not hold what the checker finds, or none."""
    names = [n for n in arrays or {} if n.startswith("slopes")]
    if not names:
        return False
    name = names[r.integers(len(names))]
    values, entry = arrays[name], int(r.integers(arrays[name].shape[1]))
    match r.integers(4):
        case 0:
            share = float(r.choice([0.5, 1.0, 0.01]))
            values[:, entry] = (1 - share) * values[:, entry] + share * values[:, entry].mean()
        case 1:
            values[int(r.integers(2)), entry] = float(r.choice([np.nan, np.inf, -np.inf]))
        case 2:
            arrays[name] = values[:, :-1].clone()
        case _:
            part = next(p for p in document["proof"]["proofs"] if "slopes" in p)
            part["slopes"] = [[], [name, name]][int(r.integers(2))]
    return True


def _ball(document: Document, arrays: Any, r: np.random.Generator, found: list[Subject]) -> bool:
    """Another region, with everything else as it must be: larger or other balls, fewer of them, no box."""
    claim = document["claim"]
    region = claim["region"]
    if region["kind"] != "ball":
        return False
    match r.integers(8):
        case 0 | 5 | 6 | 7:
            radius = region["radius"] * float(r.choice([4.0, 1e3]))
            region |= {"radius": radius, "radius_hex": radius.hex()}
        case 1:
            # With its digest this is another certificate, which may be as true.
            arrays["centres"] = arrays["centres"] * float(r.choice([0.5, 1.5, 1e200]))
            return True
        case 2:
            arrays["centres"] = arrays["centres"][1:]
            region["count"] -= 1
        case 3:
            claim["region"] = {"kind": "everywhere"}
        case _:
            document["proof"]["of"] = [*document["proof"]["of"][int(r.integers(1, 9)) :], 0]
            document["proof"]["proofs"] = document["proof"]["proofs"][:1]
            restated(document, 0.9)
    if claim["region"]["kind"] == "ball":
        region["centres"] = digest_of(arrays["centres"].numpy())
    reworded(claim)
    return True


def _proof_of_a_ball(document: Document, arrays: Any, r: np.random.Generator, found: list[Subject]) -> bool:
    proof = document["proof"]
    if proof["kind"] != "balls":
        return False
    match r.integers(4):
        case 0:
            document["proof"] = proof["proofs"][0]
        case 1:
            proof["of"][0] = int(r.choice([-1, 7]))
        case 2:
            proof["of"] = proof["of"][1:]
        case _:
            proof["proofs"] = [{"kind": "local", "slopes": "known"}] * len(proof["proofs"])
    return True


def _tree(document: Document, arrays: Any, r: np.random.Generator, found: list[Subject]) -> bool:
    """A part of a ball, or an output, that nothing is proved for; the claim is lowered by what that might save."""
    trees = [p for p in document["proof"].get("proofs", []) if p["kind"] == "tree"]
    if not trees:
        return False
    group = trees[int(r.integers(len(trees)))]["groups"][int(r.integers(4))]
    node: Document = {"split": [], "above": group["root"], "below": {}}
    side = "above"
    while r.random() < 0.7 and "split" in node[side]:
        node, side = node[side], str(r.choice(["above", "below"]))
    holder, key = (node, side) if node["below"] else (group, "root")
    match r.integers(4):
        case 0 if "split" in holder[key]:
            holder[key] = holder[key][str(r.choice(["above", "below"]))]
            restated(document, 0.6)
        case 1:
            # Weights of zero show nothing.
            holder[key] = {"kind": "empty", "weights": [(0.0).hex()] * int(r.integers(4))}
        case 2:
            known = group["rows"]
            group["rows"] = [[0, 0], [0, 3], [3, 4], [1, 0]][int(r.integers(4))]
            return bool(group["rows"] != known)
        case _:
            restated(document, 1 - 10 ** r.uniform(-1.5, -0.1))
    return True


def _hash(document: Document, arrays: Any, r: np.random.Generator, found: list[Subject]) -> bool:
    def flipped(text: str) -> str:
        place = int(r.integers(len(text)))
        return text[:place] + ("0" if text[place] != "0" else "f") + text[place + 1 :]

    document["subject"]["sha256"] = flipped(document["subject"]["sha256"])
    return True


def _changed_file(data: bytes, kind: str, r: np.random.Generator) -> bytes:
    """Another network, for which the certificate's numbers are too small: larger weights, or steeper operators."""
    model = onnx.load_from_string(data)
    if kind == "weights":
        weights = [t for t in model.graph.initializer if t.name[0] in "wkg"]
        tensor = weights[r.integers(len(weights))]
        array = numpy_helper.to_array(tensor) * np.float32(r.choice([1.01, 1.5, -2.0, 10.0]))
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    else:
        nodes = [
            n
            for n in model.graph.node
            if n.op_type in ("Relu", "Tanh", "LeakyRelu", "Softplus", "AveragePool")
        ]
        node = nodes[r.integers(len(nodes))]
        pool = node.op_type == "AveragePool"
        node.op_type = "MaxPool" if pool else "Erf"
        if not pool:
            del node.attribute[:]
    return model.SerializeToString()


def _fields(document: Document, arrays: Any, r: np.random.Generator, found: list[Subject]) -> None:
    places = [
        document,
        document["subject"],
        document["claim"],
        document["proof"],
    ]
    place = places[r.integers(len(places))]
    key = str(r.choice(list(place)))
    match r.integers(4):
        case 0:
            place["also"] = 1
        case 1:
            if key in ("name", "format", "graph_digest", "sidecar"):  # not read, or written anew
                key = next(iter(place))
            del place[key]
        case 2:
            document["schema"] = str(r.choice(["lipverify.certificate/2", "lipverify.certificate/0", ""]))
        case _:
            known = document["claim"]["norm_out"]
            document["claim"]["norm_out"] = str(
                r.choice([n for n in ("l1", "l2", "linf", "l3") if n != known])
            )


def _number(document: Document, arrays: Any, r: np.random.Generator, found: list[Subject]) -> None:
    bad = ["nan", "inf", "-0x1p+3", "1/0", "1e999999999", "9" * 100000, "0x1p+99999999", None, -3, [], "7"]
    document["claim"]["upper_hex"] = bad[r.integers(len(bad))]


def _other_model(document: Document, arrays: Any, r: np.random.Generator, found: list[Subject]) -> bool:
    other = found[int(r.integers(len(found)))].issued.document
    if other["subject"]["sha256"] == document["subject"]["sha256"]:
        return False
    changed = False
    for key in ("subject", "proof") if r.random() < 0.3 else [str(r.choice(["subject", "proof"]))]:
        changed = changed or document[key] != other[key]
        document[key] = copy.deepcopy(other[key])
    # Proofs by ranges alone say the same for every model: the certificate is what it was.
    return changed


def _as_it_is(document: Document, arrays: Any, r: np.random.Generator, found: list[Subject]) -> None:
    """Changed later, as bytes."""


_KINDS: dict[str, Callable[..., Any]] = {
    "lower claim": _lower_claim,
    "one number": _one_number,
    "stronger text": _stronger_text,
    "smaller gain": _gain,
    "stages": _stage,
    "another proof": _torus,
    "multipliers": _multipliers,
    "slopes": _slopes,
    "balls": _ball,
    "proof of a ball": _proof_of_a_ball,
    "trees": _tree,
    "hashes": _hash,
    "weights": lambda *_: None,
    "operators": lambda *_: None,
    "fields": _fields,
    "numbers": _number,
    "another model": _other_model,
    "cut the file": _as_it_is,
    "cut the arrays": _as_it_is,
    "flip a bit of the arrays": _as_it_is,
}


def digest(data: bytes) -> str:
    """For messages."""
    return hashlib.sha256(data).hexdigest()[:12]


def describe(mutant: Mutant) -> str:
    """Which mutant it is, and its document where that can be read."""
    try:
        claim = json.loads(mutant.certificate)["claim"]
    except ValueError:
        claim = "not JSON"
    return f"{mutant.kind} of {mutant.subject.name} ({digest(mutant.certificate)}): {claim}"
