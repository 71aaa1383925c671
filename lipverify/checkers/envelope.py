"""A certificate against a model: read strictly, bound to the model by digests, proved again, stated in the checker's words."""

from __future__ import annotations

import hashlib
import math
import os
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lipverify.checkers.carrying import carried
from lipverify.checkers.claims import About, Expectation, Radius, claim_of
from lipverify.checkers.deviation import AnyClaim, Deviation, deviation_of, disappointed
from lipverify.checkers.inputs import reading_of
from lipverify.checkers.kernel import account
from lipverify.checkers.kernel.language import Subject
from lipverify.checkers.kernel.program import Array, Program, same
from lipverify.checkers.kernel.proof import parse_steps, prove, rested_on
from lipverify.checkers.kernel.theorems import Fact
from lipverify.checkers.reader import (
    MAX_CERTIFICATE,
    MAX_MODEL,
    Model,
    architecture,
    digest_of,
    parse_json,
    parse_safetensors,
    read_bytes,
    read_model,
    tensors_read,
)
from lipverify.checkers.reader.agreement import Agreement, agree
from lipverify.checkers.reader.onnx import input_of
from lipverify.checkers.reader.openings import Around
from lipverify.checkers.reader.runtimes import spent
from lipverify.checkers.regions import MAX_REGIONS, REGION, Ball, centres_of, region_in, region_of
from lipverify.checkers.tables import fields, integer, text
from lipverify.checkers.verdict import Verdict, shown_of, words
from lipverify.errors import (
    NotCovered,
    OtherModel,
    RefutedCertificate,
    Undecided,
    UnreadableCertificate,
    UsageError,
)

SCHEMA = "lipverify.certificate/2"
FORGEABLE = "lipverify.certificate/1"
FIELDS = {
    "": "schema models architecture tensors regions claim proof sidecar rigour analyzer import_check assumptions not_covered "
    "environment times",
    "model": "name sha256 format role graph_digest output margin",
    "output": "index name",
    "region": REGION,
    "proof": "steps claims",
    "sidecar": "name sha256",
}
MAX_FILES = 1000
"""Beside one model."""
ROLES = {1: ("model",), 2: ("original", "changed")}


def verify_file(path: Path, model: Path | Model | Sequence[Path | Model], exact: bool = False,
                expected: Expectation | None = None, seconds: float = math.inf, seed: int | None = None) -> Verdict:  # fmt: skip
    """Proves a certificate file again for a model file.

    Args:
        model: of a claim about two models the original, then the changed one. exact: integers alone. expected: what the claim
            has to be. seconds: of this process, after which it is given up. seed: of the inputs on which file and program are
            compared; None: one that nobody knows before.

    Raises:
        RefutedCertificate: the evidence does not carry the claim, or it is another claim than expected. Undecided: it says itself
        that it is not proved. UnreadableCertificate: damaged, or for another model. UsageError: a file that is not there.
    """
    models = [model] if isinstance(model, Path | Model) else list(model)
    for wanted in (path, *models):
        if isinstance(wanted, Path) and not os.path.exists(wanted):  # False for a name too long to exist, too
            raise UsageError(f"{str(wanted)[:120]!a} does not exist")
    return check(lambda: read_bytes(path, MAX_CERTIFICATE), lambda name: read_bytes(path.parent / name, MAX_MODEL),
                 lambda: [m if isinstance(m, Model) else read_model(m) for m in models],
                 exact, expected, seconds, seed, apart=True)  # fmt: skip


def named_models(path: Path) -> list[tuple[str | None, tuple[tuple[str, str], ...]]]:
    """Of the model files that a certificate names the digests, and the files beside them; none where nothing can be read."""
    try:
        return [(about.sha256, about.beside) for about in _envelope(read_bytes(path, MAX_CERTIFICATE)).abouts]
    except Exception:  # the check itself says why
        return []


def read_models(paths: Sequence[Path], seconds: float = math.inf) -> list[Model]:
    """Files that several certificates are about, each read within what one check may take.

    Raises:
        UnreadableCertificate: no regular file, or one that is too large.
    """
    last, found = spent() + seconds, []
    for path in paths:
        with np.errstate(all="ignore"), account.spending(account.Account(lambda: spent() > last)):
            found.append(read_model(path))
    return found


def check(certificate: Callable[[], bytes], sidecar: Callable[[str], bytes], model: Callable[[], Model | Sequence[Model]],
          exact: bool = False, expected: Expectation | None = None, seconds: float = math.inf,
          seed: int | None = None, apart: bool = False) -> Verdict:  # fmt: skip
    """`verify_file` on bytes: what these calls give is all that is read.

    apart: runtimes evaluate a stranger's file in a process of their own.
    Fails closed: whatever goes wrong in here that is not a refusal makes the certificate unreadable.
    """
    started, last = time.monotonic(), spent() + seconds
    try:
        with np.errstate(all="ignore"), account.spending(account.Account(lambda: spent() > last)):
            return _check(
                certificate(),
                sidecar,
                lambda: _several(model()),
                exact,
                expected or Expectation(),
                started,
                lambda model, program, regions: agree(
                    model.data or b"",
                    program,
                    seed,
                    last - spent() if apart else None,
                    model.reading,
                    regions,
                ),
            )
    except (RefutedCertificate, UnreadableCertificate, Undecided):
        raise
    except OSError as error:
        named = "" if error.filename is None else f": {Path(str(error.filename)).name[:80]!a}"
        raise UnreadableCertificate(f"a file cannot be read ({error.strerror}){named}") from error
    except Exception as error:
        raise UnreadableCertificate(f"the certificate cannot be followed ({type(error).__name__})") from error


def _several(models: Model | Sequence[Model]) -> list[Model]:
    return [models] if isinstance(models, Model) else list(models)


@dataclass(frozen=True)
class _Envelope:
    """The fields of a certificate that the checker reads; the first three for each of its models."""

    abouts: Sequence[About]
    architectures: Sequence[Any]
    tensors: Sequence[Mapping[str, str]]
    regions: Sequence[Ball]
    claim: Any
    proof: Any
    sidecar: tuple[str, str] | None


def _envelope(data: bytes) -> _Envelope:
    table = parse_json(data)
    if isinstance(table, dict) and table.get("schema") == FORGEABLE:
        raise UnreadableCertificate(
            f"certificates of the form {FORGEABLE} could be forged and are not accepted: issue it again"
        )
    if not isinstance(table, dict) or table.get("schema") != SCHEMA:
        raise UnreadableCertificate(f"not a certificate of the form {SCHEMA}")
    fields(table, FIELDS[""])
    if table["rigour"] != "checked":
        if table["rigour"] not in ("real", "solver"):
            raise UnreadableCertificate("an unknown rigour")
        raise Undecided(
            f"it says itself that the checker has not proved it (rigour {table['rigour']}): nothing to prove here"
        )
    regions, models = table["regions"], table["models"]
    if not isinstance(models, list) or len(models) not in ROLES:
        raise UnreadableCertificate("a claim about no model, or about more than two")
    told = [table["architecture"], table["tensors"]]
    if len(models) == 1:
        told = [[value] for value in told]
    if not all(isinstance(value, list) and len(value) == len(models) for value in told):
        raise UnreadableCertificate("architectures or tensors of other models")
    if (
        not isinstance(regions, list)
        or len(regions) > MAX_REGIONS
        or not all(isinstance(t, dict) for t in told[1])
    ):
        raise UnreadableCertificate("its regions or tensors")
    sidecar = None
    if table["sidecar"] is not None:
        entry = fields(table["sidecar"], FIELDS["sidecar"])
        name = text(entry["name"], 255)
        if name != Path(name).name or not name.endswith(".safetensors"):
            raise UnreadableCertificate("the sidecar's name")
        sidecar = name, text(entry["sha256"])
    digests = [{text(name, 4096): text(digest) for name, digest in tensors.items()} for tensors in told[1]]
    abouts = [_about(model, role) for model, role in zip(models, ROLES[len(models)], strict=True)]
    return _Envelope(
        abouts, told[0], digests, [region_in(r) for r in regions], table["claim"], table["proof"], sidecar
    )


def _about(table: Any, role: str) -> About:
    # Only files whose inputs have to be told, and files with others beside them, have these fields.
    told, beside = (isinstance(table, dict) and name in table for name in ("reading", "beside"))
    fields(table, FIELDS["model"] + " reading" * told + " beside" * beside)
    reading = reading_of(table["reading"]) if told else None
    files = _files(table["beside"]) if beside else ()
    output, margin = fields(table["output"], FIELDS["output"]), table["margin"]
    if margin is not None:
        if not isinstance(margin, list) or len(margin) != 2:
            raise UnreadableCertificate("a margin that is no pair")
        margin = integer(margin[0], 0, 1 << 30), integer(margin[1], 0, 1 << 30)
    sha256, digest = (None if table[key] is None else text(table[key]) for key in ("sha256", "graph_digest"))
    if table["role"] != role:
        raise UnreadableCertificate("the role of its model")
    place, name = integer(output["index"], 0, 1 << 20), text(output["name"], 4096)
    return About(sha256, digest, place, name, margin, reading, files)


def _files(table: Any) -> tuple[tuple[str, str], ...]:
    if not isinstance(table, list) or not 0 < len(table) <= MAX_FILES:
        raise UnreadableCertificate("files beside its model")
    entries = [fields(entry, FIELDS["sidecar"]) for entry in table]
    return tuple((text(entry["name"], 4096), text(entry["sha256"])) for entry in entries)


class _Bound(NamedTuple):
    """A certificate and the models it names. read_in: what each computes, and what of its file takes part; ended: the programs
    that end with what the claim is about."""

    found: _Envelope
    beside: Mapping[str, Array]
    models: list[Model]
    read_in: list[tuple[Program, dict[str, Any] | None]]
    ended: list[Program]


def _bound(
    data: bytes, sidecar: Callable[[str], bytes], read: Callable[[], list[Model]], expected: Expectation
) -> _Bound:
    account.read(len(data), letters=True)
    found = _envelope(data)
    beside: Mapping[str, Array] = {}
    if found.sidecar is not None:
        content = sidecar(found.sidecar[0])
        account.read(len(content))
        if hashlib.sha256(content).hexdigest() != found.sidecar[1]:
            raise UnreadableCertificate("the sidecar is damaged or another one")
        beside = parse_safetensors(content)
    models, abouts = read(), found.abouts
    for model in models:
        account.read(model.size)
    if len(models) != len(abouts):
        raise UnreadableCertificate(
            f"it is about {len(abouts)} model{'s' * (len(abouts) > 1)}, not {len(models)}: give each of them once"
        )
    if [about.sha256 for about in abouts] != [model.sha256 for model in models]:
        turned = [about.sha256 for about in reversed(abouts)] == [model.sha256 for model in models]
        if turned:
            raise OtherModel("it is for these models in the other order")
        asked, given = (" and ".join(str(one.sha256) for one in ones) for ones in (abouts, models))
        raise OtherModel(f"it is for another model file: one with sha256 {asked}, not {given}")
    for about, model in zip(abouts, models, strict=True):
        if about.beside != model.beside:
            why = f": {model.reason}" if model.reason else ""
            raise OtherModel(
                f"what lies beside the model file and holds tensors of it is something else{why}"
            )
    for about, model, digest in zip(abouts, models, expected.digests or [None] * len(models), strict=True):
        for known in (model.digest, digest):
            if known is not None and about.digest != known:
                raise OtherModel("it is for another graph")
    for about, wanted in zip(abouts, expected.readings or [about.reading for about in abouts], strict=True):
        if about.reading != wanted:
            raise OtherModel("it is about other inputs of the file")
    models = [model.read_as(about.reading and about.reading.known(beside, digest_of))
              for about, model in zip(abouts, models, strict=True)]  # fmt: skip
    for model in models:
        whole = model.binding == "file" and model.program is not None and model.reading is None
        named = expected.varying is not None and whole and model.data is not None
        alone = input_of(model.data or b"")[0] if named else None
        if (reason := expected.other_inputs(model.reading, alone)) is not None:
            raise RefutedCertificate(f"it proves something else than expected: {reason}")
    read_in = [_program(found, k, model, beside) for k, model in enumerate(models)]
    ended = [_ending(about, model, p) for about, model, (p, _) in zip(abouts, models, read_in, strict=True)]
    return _Bound(found, beside, models, read_in, ended)


def programs_of(
    certificate: bytes, sidecar: Callable[[str], bytes], models: Sequence[Model]
) -> list[Program]:
    """What a certificate is about, for the models that it names; nothing is proved.

    Raises:
        UnreadableCertificate, OtherModel, NotCovered, Undecided: as `check`.
    """
    return _bound(certificate, sidecar, partial(list, models), Expectation()).ended


def _check(data: bytes, sidecar: Callable[[str], bytes], read: Callable[[], list[Model]], exact: bool,
           expected: Expectation, started: float,
           agreed: Callable[[Model, Program, Sequence[Around]], Agreement]) -> Verdict:  # fmt: skip
    found, beside, models, read_in, ended = _bound(data, sidecar, read, expected)
    abouts = found.abouts
    claim = _claim(found.claim, abouts)
    shapes = [_shapes(about, p) for about, p in zip(abouts, ended, strict=True)]
    if any(of != shapes[0] for of in shapes):
        raise RefutedCertificate(
            "its models take or give numbers of different shapes, and it is about one shape"
        )
    if any(_orders(about) != _orders(abouts[0]) for about in abouts):
        raise RefutedCertificate(
            "its models take their inputs in another order or by other names, and it is about the same input for both"
        )
    if len(shapes[0][-1]) > 1 and _of_labels(claim):
        raise RefutedCertificate(
            f"labels of an output of shape {list(shapes[0][-1])}, which holds several: the largest entry of all is none"
        )
    program = ended[0] if len(ended) == 1 else ended[0].beside(ended[1])
    centres, box = centres_of(claim, beside, program.steps[0].size)
    if isinstance(claim, Deviation):
        reason = disappointed(expected, claim, abouts)
    else:
        reason = expected.disappointed(claim, abouts[0], _widths(abouts[0], ended[0]))
    reason = expected.other_box(centres, box) if reason is None else reason
    if reason is not None:
        raise RefutedCertificate(f"it proves something else than expected: {reason}")
    regions = [region_of(ball, centres, box) for ball in found.regions]
    looked = [Around(region.centre, region.low, region.high) for region in regions]
    agreements = [agreed(model, whole, looked) if model.binding == "file" else None
                  for model, (whole, _) in zip(models, read_in, strict=True)]  # fmt: skip
    facts, theories = _facts(found.proof, Subject(program, regions, exact), beside)
    if isinstance(claim, Deviation):
        claim.about(ended[0].steps[-1].size)
    alike = isinstance(claim, Deviation) and not facts and same(ended[0].steps, ended[1].steps)
    if not (alike and isinstance(claim, Deviation) and claim.holds_of_one()):
        carried(claim, facts, found.regions, (len(program.steps) - 1, ended[0].steps[-1].size))
    weights = [used for _, used in read_in]
    each = zip(abouts, models, weights, agreements, strict=True)
    shown = [{**shown_of(about, model, used), "agreement": None if one is None else one._asdict()}
             for about, model, used, one in each]  # fmt: skip
    statement = claim.statement(*abouts)
    said = words(statement, models, weights, agreements, exact, theories)
    sizes = tuple((p.steps[0].size, p.steps[-1].size) for p in ended)
    return Verdict(
        said,
        {**_told(claim, box), "statement": statement},
        shown,
        time.monotonic() - started,
        sizes,
        theories,
        tuple(ended),
        tuple(about.function() for about in abouts),
    )


def _told(claim: AnyClaim, box: tuple[Array, Array] | None) -> dict[str, Any]:
    """The fields of a claim, and of a box that cuts its region its outermost ends, and whether all entries have them."""
    found = claim.to_json()
    if box is not None and isinstance(found.get("region"), dict):
        uniform = all(bool((end == end[0]).all()) for end in box)
        ends = [float(box[0].min()), float(box[1].max())]
        found["region"] = {**found["region"], "ends": ends, "uniform": uniform}
    return found


def _claim(table: Any, abouts: Sequence[About]) -> AnyClaim:
    of_two = isinstance(table, dict) and table.get("kind") == "deviation"
    if of_two != (len(abouts) == 2):
        raise UnreadableCertificate("a claim about another number of models")
    return deviation_of(table, abouts) if of_two else claim_of(table, abouts[0])


def _facts(proof: Any, subject: Subject, beside: Mapping[str, Array]) -> tuple[list[Fact], tuple[str, ...]]:
    """The facts that a proof names as what is claimed, and the theories that it rests on beyond the core."""
    fields(proof, FIELDS["proof"])
    steps, named = parse_steps(proof["steps"], beside, subject), proof["claims"]
    if not isinstance(named, list):
        raise UnreadableCertificate("the facts that are claimed")
    places = [integer(number, 0, len(steps) - 1) for number in named]
    facts = prove(steps, subject)
    found = [facts[k] for k in places]
    return [fact for fact in found if fact is not None], rested_on(steps)


# -- the program


def _program(
    found: _Envelope, place: int, model: Model, beside: Mapping[str, Array]
) -> tuple[Program, dict[str, Any] | None]:
    """What the model at this place computes, and of weights what of their file takes part."""
    stated, tensors = found.architectures[place], found.tensors[place]
    if model.binding != "weights":
        if stated is not None or tensors:
            raise UnreadableCertificate("an architecture beside the model's own")
        if model.program is None:
            raise NotCovered(f"the model's file: {model.reason}")
        unused = list(model.unused)
        stored = None if model.binding == "graph" else {"stored": model.stored, "unused": unused}
        return model.program, stored
    if stated is None:
        raise NotCovered("the file holds weights alone, and the certificate states no architecture")
    if not model.tensors:
        raise NotCovered(f"the model's file: {model.reason or 'it stores nothing'}")
    stored_here: dict[str, Array] = {}
    known: dict[str, tuple[Array, bool]] = {}
    own: Counter[str] = Counter()
    brought: set[str] = set()
    for name, digest in tensors.items():
        if digest not in known:
            array = model.tensors.get(digest, beside.get(f"tensor.{digest}"))
            if array is None or digest_of(array) != digest:
                raise UnreadableCertificate("a tensor that is not there, or another one")
            known[digest] = array, model.holds(array)
        stored_here[name] = known[digest][0]
    program = architecture(stated, stored_here)
    for name in tensors_read(stated):
        digest = tensors[name]
        if not known[digest][1]:
            brought.add(digest)
        elif own[digest] < model.copies[digest]:
            own[digest] += 1
    if not own:
        raise RefutedCertificate("nothing of the model's file takes part in what it is about")
    return program, {"stored": model.stored, "used": own.total(), "brought": len(brought),
                     "architecture": "stated by the certificate"}  # fmt: skip


def _widths(about: About, program: Program) -> tuple[int, int]:
    """Of the tokens of input and output: the last axes; a margin is one number."""
    last = () if about.margin is not None else program.outputs[about.output].shape
    return (program.shape or (1,))[-1], (last or (1,))[-1]


def _of_labels(claim: AnyClaim) -> bool:
    """Whether a claim says which entry of an output is the largest."""
    if isinstance(claim, Deviation):
        return claim.differences is not None or any(label is not None for label in claim.labels or ())
    return isinstance(claim, Radius)


def _orders(about: About) -> tuple[str, ...]:
    """Names of the inputs in the order in which they are one vector; none where there is one input alone."""
    names = () if about.reading is None else tuple(name for name, _ in about.reading.inputs)
    return names if len(names) > 1 else ()


def _shapes(about: About, program: Program) -> list[tuple[int, ...]]:
    """Of one sample: of the input, or of each where there are several; of the output without axes of size 1."""
    shapes = [program.shape] if about.reading is None else [shape for _, shape in about.reading.inputs]
    given = [shape[1:] if len(shape) > 1 and shape[0] == 1 else shape for shape in shapes]
    output = () if about.margin is not None else program.outputs[about.output].shape
    return [*given, tuple(n for n in output if n != 1)]


def _ending(about: About, model: Model, program: Program) -> Program:
    """The program that ends with what the claim is about."""
    if about.output in model.refused:
        raise NotCovered(f"output {about.output}: {model.refused[about.output]}")
    ended = program.ending(about.output, about.margin)
    if program.outputs[about.output].name != about.output_name:
        raise UnreadableCertificate("the output has another name in the model")
    return ended
