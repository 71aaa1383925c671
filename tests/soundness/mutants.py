"""Changes of certificates that a checker must refuse.

Every change is one an attacker could make: hashes that follow from the change are made again, unless the change is to a hash.
"""

from __future__ import annotations

import copy
import hashlib
import itertools
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
from lipverify.checkers import digest_of
from lipverify.checkers.claims import outward
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


def mutants(found: list[Subject], count: int, seed: int, only: str | None = None) -> Iterator[Mutant]:
    """`count` changed certificates, kinds in turn, or of one kind only; most are for some subjects, of which one is drawn."""
    r = np.random.default_rng(seed)
    kinds = itertools.cycle(_KINDS if only is None else [only])
    made = 0
    while made < count:
        kind = next(kinds)
        for which in r.permutation(len(found)):
            mutant = _changed(kind, found[which], r, found)
            if mutant is not None:
                made += 1
                yield mutant
                break
        else:
            assert only is None, f"no subject is for {only}"


def _changed(kind: str, subject: Subject, r: np.random.Generator, found: list[Subject]) -> Mutant | None:
    document = copy.deepcopy(subject.issued.document)
    arrays = (
        None if subject.issued.arrays is None else parse_safetensors(subject.issued.arrays, Path("arrays"))
    )
    if _KINDS[kind](document, arrays, r, found) is False:
        return None
    data = None if arrays is None else write_safetensors(arrays)
    return _finished(kind, subject, Issued(document, data), r)


def _finished(kind: str, subject: Subject, issued: Issued, r: np.random.Generator) -> Mutant | None:
    model = subject.model
    if kind in ("weights", "operators"):
        other = subject.path.with_name("changed.onnx")
        other.write_bytes(_changed_file(subject.path.read_bytes(), kind, r))
        model = checkers.read_model(other)
        issued.document["models"][0]["sha256"] = model.sha256
        reworded(issued.document)
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


def _of_kind(document: Document, *kinds: str) -> list[Document]:
    return [step for step in document["proof"]["steps"] if step["step"] in kinds]


def _limit(document: Document, arrays: Any, r: np.random.Generator, found: list[Subject]) -> bool:
    """A number of a proof that is smaller than what holds, and the claim with it."""
    steps = _of_kind(document, "gain", "product", "multipliers", "jacobian")
    # A part of a ball may have less than the largest of all parts needs.
    if not steps or _of_kind(document, "cover"):
        return False
    step = steps[r.integers(len(steps))]
    factor = 1 - 10 ** r.uniform(-4, -0.1)
    before = float.fromhex(step["limit"])
    if before == 0:
        return False
    step["limit"] = (before * factor).hex()
    if r.random() < 0.5:
        restated(document, factor)
    return True


def _steps(document: Document, arrays: Any, r: np.random.Generator, found: list[Subject]) -> bool:
    """Steps left out, doubled or exchanged; what is dropped makes numbers smaller: the claim follows."""
    steps = document["proof"]["steps"]
    i, j = int(r.integers(len(steps))), int(r.integers(len(steps)))
    match r.integers(4):
        case 0:
            del steps[i]
        case 1:
            products = _of_kind(document, "product")
            if not products or not products[0]["gains"]:
                return False
            products[0]["gains"] = products[0]["gains"][1:]
        case 2:
            if i == j:
                return False
            steps[i], steps[j] = steps[j], steps[i]
        case _:
            document["proof"]["claims"] = [i] * len(document["proof"]["claims"])
    restated(document, r.uniform(0.2, 0.99))
    return True


def _chain(document: Document, arrays: Any, r: np.random.Generator, found: list[Subject]) -> bool:
    """A gain of other steps, or by another grid."""
    gains = _of_kind(document, "gain")
    if not gains:
        return False
    step = gains[r.integers(len(gains))]
    if r.random() < 0.5:
        step["torus"] = [[int(r.integers(1, 5)), int(r.integers(0, 2))] for _ in range(2)]
    else:
        step["chain"] = [k + int(r.choice([-2, 2])) for k in step["chain"]]
    step["limit"] = (float.fromhex(step["limit"]) * 0.9).hex()
    restated(document, 0.9)
    return True


def _multipliers(document: Document, arrays: Any, r: np.random.Generator, found: list[Subject]) -> bool:
    steps = _of_kind(document, "multipliers")
    if not steps:
        return False
    step = steps[r.integers(len(steps))]
    layer = int(r.integers(len(step["blocks"])))
    values = arrays[step["blocks"][layer]]
    match r.integers(5):
        case 0:
            values *= float(r.choice([0.1, 0.4, 3.0, 10.0, -1.0, 0.0]))
        case 1:
            values[r.integers(len(values))] = float(r.choice([0.0, -1.0, np.nan, np.inf]))
        case 2:
            restated(document, 1 - 10 ** r.uniform(-2, -0.1))
            step["limit"] = (float.fromhex(step["limit"]) * 0.8).hex()
        case 3:
            arrays[step["blocks"][layer]] = values[:-1].clone()
        case _:
            blocks = step["blocks"]
            step["blocks"] = blocks[1:] if r.random() < 0.5 else [*blocks, blocks[0]]
    # Neurons whose slope is known have multipliers that do not count: a smaller claim has none in any case.
    restated(document, 0.97)
    for other in steps:
        other["limit"] = (float.fromhex(other["limit"]) * 0.97).hex()
    return True


def _slopes(document: Document, arrays: Any, r: np.random.Generator, found: list[Subject]) -> bool:
    """Slopes of smooth activations that do not hold what the checker finds, or none."""
    steps = [step for step in _of_kind(document, "multipliers") if step["wider"] is not None]
    if not steps:
        return False
    step = steps[r.integers(len(steps))]
    name = next(n for n in step["wider"] if n is not None)
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
            step["wider"] = [[], [name, name, name]][int(r.integers(2))]
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
            if r.random() < 0.5:
                for ball in document["regions"]:
                    ball["radius_hex"] = radius.hex()
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
            document["regions"] = document["regions"][1:]
    if claim["region"]["kind"] == "ball":
        region["centres"] = digest_of(arrays["centres"].numpy())
    reworded(document)
    return True


def _region(document: Document, arrays: Any, r: np.random.Generator, found: list[Subject]) -> bool:
    """Facts about another ball than the claim's."""
    balls, ranges = document["regions"], _of_kind(document, "ranges")
    if not balls:
        return False
    ball = balls[int(r.integers(len(balls)))]
    match r.integers(4):
        case 0:
            ball["radius_hex"] = (float.fromhex(ball["radius_hex"]) / 2).hex()
        case 1:
            ball["centre"] = int(r.choice([-1, 7, len(balls)]))
        case 2:
            ball["norm"] = "l2" if ball["norm"] == "linf" else "linf"
        case _:
            if len(balls) < 2 or not ranges:
                return False
            claims = document["proof"]["claims"]
            document["proof"]["claims"] = [*claims[1:], claims[0]]
            if len(set(claims)) == 1:
                return False
    return True


def _tree(document: Document, arrays: Any, r: np.random.Generator, found: list[Subject]) -> bool:
    """A part of a ball, or an output, that nothing is proved for; the claim is lowered by what that might save."""
    covers = _of_kind(document, "cover")
    if not covers:
        return False
    step = covers[int(r.integers(len(covers)))]
    match r.integers(5):
        case 0:
            step["above"] = step["below"]
        case 1:
            # A part that holds inputs, said to be empty by weights that show nothing.
            steps = document["proof"]["steps"]
            parts = [
                s for s in _of_kind(document, "jacobian", "multipliers") if steps[s["ranges"]]["conditions"]
            ]
            chosen = parts[int(r.integers(len(parts)))]
            count = len(steps[chosen["ranges"]]["conditions"])
            empty = {"step": "empty", "ranges": chosen["ranges"], "weights": [(0.0).hex()] * count}
            steps[steps.index(chosen)] = empty
        case 2:
            rows = _of_kind(document, "rows")
            if not rows:
                return False
            rows[0]["of"] = rows[0]["of"][1:]
        case 3:
            parts = [s for s in _of_kind(document, "ranges") if s["conditions"]]
            condition = parts[int(r.integers(len(parts)))]["conditions"][-1]
            condition[2] = (float.fromhex(condition[2]) + float(r.choice([-0.3, 0.3]))).hex()
        case _:
            parts = [s for s in _of_kind(document, "ranges") if s["conditions"]]
            condition = parts[int(r.integers(len(parts)))]["conditions"][-1]
            condition[3] = "below" if condition[3] == "above" else "above"
    return True


def _hash(document: Document, arrays: Any, r: np.random.Generator, found: list[Subject]) -> bool:
    def flipped(text: str) -> str:
        place = int(r.integers(len(text)))
        return text[:place] + ("0" if text[place] != "0" else "f") + text[place + 1 :]

    document["models"][0]["sha256"] = flipped(document["models"][0]["sha256"])
    reworded(document)
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
        document["models"][0],
        document["claim"],
        document["proof"],
    ]
    place = places[r.integers(len(places))]
    key = str(r.choice(list(place)))
    match r.integers(4):
        case 0:
            place["also"] = 1
        case 1:
            if key in ("sidecar",):  # not read, or written anew
                key = next(iter(place))
            del place[key]
        case 2:
            document["schema"] = str(r.choice(["lipverify.certificate/1", "lipverify.certificate/0", ""]))
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
    if other["models"][0]["sha256"] == document["models"][0]["sha256"]:
        return False
    changed = False
    for key in ("models", "proof") if r.random() < 0.3 else [str(r.choice(["models", "proof"]))]:
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
    "smaller limits": _limit,
    "steps": _steps,
    "chains": _chain,
    "multipliers": _multipliers,
    "slopes": _slopes,
    "balls": _ball,
    "regions": _region,
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
