"""A certificate against a model: read strictly, bound to the model by digests, proved again, stated in the checker's words."""

from __future__ import annotations

import hashlib
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

from lipverify.checkers.claims import About, Balls, Constant, Convex, Expectation, Radius, claim_of, outward
from lipverify.checkers.claims import Claim as OfOne
from lipverify.checkers.deviation import Box as Ends
from lipverify.checkers.deviation import Deviation, deviation_of, disappointed
from lipverify.checkers.inputs import reading_of
from lipverify.checkers.kernel import account, theorems
from lipverify.checkers.kernel.arithmetic import above
from lipverify.checkers.kernel.language import Rows, Subject
from lipverify.checkers.kernel.program import Array, Program, same
from lipverify.checkers.kernel.proof import parse_steps, prove, rested_on
from lipverify.checkers.kernel.ranges import Region
from lipverify.checkers.kernel.theorems import Fact
from lipverify.checkers.norms import Tokens
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
from lipverify.checkers.tables import fields, hexadecimal, integer, text
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
    "region": "kind norm radius_hex centre box",
    "proof": "steps claims",
    "sidecar": "name sha256",
}
MAX_REGIONS = 1 << 16
FAR = 2.0**100
"""Inputs beyond which no ball is looked at: far from the ends of float64."""


class Ball(NamedTuple):
    """A region of a certificate: around a row of the centres, cut by the box or not; `BOX`: the box itself."""

    norm: str
    radius: float
    centre: int
    box: bool


BOX = Ball("box", 0.0, 0, True)
Claim = OfOne | Deviation
ROLES = {1: ("model",), 2: ("original", "changed")}


@dataclass(frozen=True)
class Verdict:
    """What was proved, of which models, and what of each model's file took part."""

    claim: str
    fields: Mapping[str, Any]
    """Of the claim: `upper` or `radius`, norms and region."""
    models: Sequence[Mapping[str, Any]]
    """What is known of each, with its `binding`, its `weights`, and the `agreement` of an ONNX file with a runtime."""
    seconds: float
    sizes: Sequence[tuple[int, int]]
    """How many numbers each function reads and gives."""
    theories: tuple[str, ...] = ()
    """What the proof rests on beside the core of the kernel (docs/proof-format.md)."""

    @property
    def model(self) -> Mapping[str, Any]:
        """The one model, or the first."""
        return {k: v for k, v in self.models[0].items() if k not in ("binding", "weights", "agreement")}

    @property
    def binding(self) -> str:
        """How the first model is bound: by its file, its weights, or as a graph in memory."""
        return str(self.models[0]["binding"])

    @property
    def weights(self) -> Mapping[str, Any] | None:
        """What of the first model's file took part."""
        found: Mapping[str, Any] | None = self.models[0]["weights"]
        return found

    @property
    def upper(self) -> float | list[float]:
        """The claimed constant, or one for each ball."""
        found: float | list[float] = self.fields["upper"]
        return found

    def to_json(self) -> dict[str, Any]:
        """The document of `verify --json`."""
        models: dict[str, Any] = {"models": [dict(model) for model in self.models]}
        if len(self.models) == 1:
            models = {"model": dict(self.model), "binding": self.binding, "weights": self.weights,
                      "agreement": self.models[0]["agreement"]}  # fmt: skip
        return {"schema": "lipverify.verify/1", "valid": True, "claim": self.claim, **self.fields, **models,
                "theories": list(self.theories), "seconds": self.seconds}  # fmt: skip


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


def named_models(path: Path) -> list[str | None]:
    """The digests of the model files that a certificate names; none where nothing can be read."""
    try:
        return [about.sha256 for about in _envelope(read_bytes(path, MAX_CERTIFICATE)).abouts]
    except Exception:  # the check itself says why
        return []


def read_models(paths: Sequence[Path], seconds: float = math.inf) -> list[Model]:
    """Files that several certificates are about, each read within what one check may take.

    Raises:
        UnreadableCertificate: no regular file, or one that is too large.
    """
    last, found = time.process_time() + seconds, []
    for path in paths:
        with np.errstate(all="ignore"), account.spending(account.Account(lambda: time.process_time() > last)):
            found.append(read_model(path))
    return found


def check(certificate: Callable[[], bytes], sidecar: Callable[[str], bytes], model: Callable[[], Model | Sequence[Model]],
          exact: bool = False, expected: Expectation | None = None, seconds: float = math.inf,
          seed: int | None = None, apart: bool = False) -> Verdict:  # fmt: skip
    """`verify_file` on bytes: what these calls give is all that is read.

    apart: runtimes evaluate a stranger's file in a process of their own.
    Fails closed: whatever goes wrong in here that is not a refusal makes the certificate unreadable.
    """
    started, last = time.monotonic(), time.process_time() + seconds
    try:
        with np.errstate(all="ignore"), account.spending(account.Account(lambda: time.process_time() > last)):
            return _check(
                certificate(),
                sidecar,
                lambda: _several(model()),
                exact,
                expected or Expectation(),
                started,
                lambda model, program: agree(
                    model.data or b"",
                    program,
                    seed,
                    last - time.process_time() if apart else None,
                    model.reading,
                ),
            )
    except (RefutedCertificate, UnreadableCertificate, Undecided):
        raise
    except OSError as error:
        raise UnreadableCertificate(f"a file cannot be read ({error.strerror})") from error
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
        abouts, told[0], digests, [_region(r) for r in regions], table["claim"], table["proof"], sidecar
    )


def _about(table: Any, role: str) -> About:
    # Only files whose inputs have to be told have this field.
    told = isinstance(table, dict) and "reading" in table
    fields(table, FIELDS["model"] + " reading" * told)
    reading = reading_of(table["reading"]) if told else None
    output, margin = fields(table["output"], FIELDS["output"]), table["margin"]
    if margin is not None:
        if not isinstance(margin, list) or len(margin) != 2:
            raise UnreadableCertificate("a margin that is no pair")
        margin = integer(margin[0], 0, 1 << 30), integer(margin[1], 0, 1 << 30)
    sha256, digest = (None if table[key] is None else text(table[key]) for key in ("sha256", "graph_digest"))
    if table["role"] != role:
        raise UnreadableCertificate("the role of its model")
    place, name = integer(output["index"], 0, 1 << 20), text(output["name"], 4096)
    return About(sha256, digest, place, name, margin, reading)


def _region(table: Any) -> Ball:
    fields(table, FIELDS["region"])
    if table["kind"] == "box":
        if [table[k] for k in ("norm", "radius_hex", "centre", "box")] != [None, None, None, True]:
            raise UnreadableCertificate("a box that is told as a ball")
        return BOX
    radius = hexadecimal(table["radius_hex"])
    if table["kind"] != "ball" or table["norm"] not in ("l2", "linf") or type(table["box"]) is not bool:
        raise UnreadableCertificate("a region of an unknown kind")
    if not 0.0 <= radius < FAR:
        raise UnreadableCertificate("a radius that is none")
    return Ball(table["norm"], radius, integer(table["centre"], 0, MAX_REGIONS), table["box"])


def _check(data: bytes, sidecar: Callable[[str], bytes], read: Callable[[], list[Model]], exact: bool,
           expected: Expectation, started: float, agreed: Callable[[Model, Program], Agreement]) -> Verdict:  # fmt: skip
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
        raise OtherModel(
            "it is for these models in the other order" if turned else "it is for another model file"
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
        if (reason := expected.other_inputs(model.reading)) is not None:
            raise RefutedCertificate(f"it proves something else than expected: {reason}")
    read_in = [_program(found, k, model, beside) for k, model in enumerate(models)]
    ended = [_ending(about, model, p) for about, model, (p, _) in zip(abouts, models, read_in, strict=True)]
    claim = _claim(found.claim, abouts)
    shapes = [_shapes(about, p) for about, p in zip(abouts, ended, strict=True)]
    if any(of != shapes[0] for of in shapes):
        raise RefutedCertificate(
            "its models take or give numbers of different shapes, and it is about one shape"
        )
    if len(shapes[0][-1]) > 1 and _of_labels(claim):
        raise RefutedCertificate(
            f"labels of an output of shape {list(shapes[0][-1])}, which holds several: the largest entry of all is none"
        )
    program = ended[0] if len(ended) == 1 else ended[0].beside(ended[1])
    centres, box = _centres(claim, beside, program.steps[0].size)
    other = disappointed(expected, claim, abouts, box) if isinstance(claim, Deviation) else None
    widths = _widths(abouts[0], ended[0])
    reason = other if isinstance(claim, Deviation) else expected.disappointed(claim, abouts[0], box, widths)
    if reason is not None:
        raise RefutedCertificate(f"it proves something else than expected: {reason}")
    agreements = [agreed(model, whole)._asdict() if model.binding == "file" else None
                  for model, (whole, _) in zip(models, read_in, strict=True)]  # fmt: skip
    regions = [region_of(ball, centres, box) for ball in found.regions]
    facts, theories = _facts(found.proof, Subject(program, regions, exact), beside)
    if isinstance(claim, Deviation):
        claim.about(ended[0].steps[-1].size)
    alike = isinstance(claim, Deviation) and not facts and same(ended[0].steps, ended[1].steps)
    if not (alike and isinstance(claim, Deviation) and claim.holds_of_one()):
        _carried(claim, facts, found.regions, (len(program.steps) - 1, ended[0].steps[-1].size))
    weights = [used for _, used in read_in]
    each = zip(abouts, models, weights, agreements, strict=True)
    shown = [{**_shown(about, model, used), "agreement": agreed} for about, model, used, agreed in each]
    words = _words(claim.statement(*abouts), models, weights, exact, theories)
    sizes = tuple((p.steps[0].size, p.steps[-1].size) for p in ended)
    return Verdict(words, claim.to_json(), shown, time.monotonic() - started, sizes, theories)


def _claim(table: Any, abouts: Sequence[About]) -> Claim:
    of_two = isinstance(table, dict) and table.get("kind") == "deviation"
    if of_two != (len(abouts) == 2):
        raise UnreadableCertificate("a claim about another number of models")
    return deviation_of(table, abouts) if of_two else claim_of(table, abouts[0])


def _shown(about: About, model: Model, weights: Mapping[str, Any] | None) -> dict[str, Any]:
    # The digest of a graph is the certificate's word where there is a file: what is shown is known.
    digest = about.digest if model.binding == "graph" else None
    return {"name": model.name[:80], "sha256": model.sha256, "graph_digest": digest, "margin": about.margin,
            "output": {"index": about.output, "name": about.output_name}, "binding": model.binding,
            **({} if about.reading is None else {"reading": about.reading.to_json()}), "weights": weights}  # fmt: skip


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
        stored = None if model.binding == "graph" else {"stored": len(model.tensors), "unused": unused}
        return model.program, stored
    if stated is None:
        raise NotCovered("the file holds weights alone, and the certificate states no architecture")
    if not model.tensors:
        raise NotCovered(f"the model's file: {model.reason or 'it stores nothing'}")
    stored_here: dict[str, Array] = {}
    known: dict[str, tuple[Array, bool]] = {}
    own: set[str] = set()
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
        (own if known[tensors[name]][1] else brought).add(tensors[name])
    if not own:
        raise RefutedCertificate("nothing of the model's file takes part in what it is about")
    return program, {"stored": len(model.tensors), "used": len(own & model.tensors.keys()), "brought": len(brought),
                     "architecture": "stated by the certificate"}  # fmt: skip


def _widths(about: About, program: Program) -> tuple[int, int]:
    """Of the tokens of input and output: the last axes; a margin is one number."""
    last = () if about.margin is not None else program.outputs[about.output].shape
    return (program.shape or (1,))[-1], (last or (1,))[-1]


def _of_labels(claim: Claim) -> bool:
    """Whether a claim says which entry of an output is the largest."""
    if isinstance(claim, Deviation):
        return claim.differences is not None or any(label is not None for label in claim.labels or ())
    return isinstance(claim, Radius)


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


# -- regions


def _centres(claim: Claim, beside: Mapping[str, Array], size: int) -> tuple[Array, Box]:
    """Centres [count, inputs] and the box of the claim, as their digests say."""
    of = claim if isinstance(claim, Radius) else claim.region if isinstance(claim, Deviation) else claim.balls
    if of is None:
        return np.empty((0, size)), None
    box = None if of.box is None else _array(beside, "box", of.box, (2, size))
    if isinstance(of, Ends):
        assert box is not None
        if of.ends is not None and not bool((box == np.array(of.ends)[:, None]).all()):
            raise UnreadableCertificate("the ends of the box are other ones")
        if not bool((box[0] <= box[1]).all() and (np.abs(box) <= FAR).all()):
            raise UnreadableCertificate("a box without inputs, or near the ends of float64")
        return np.empty((0, size)), (box[0], box[1])
    count = len(claim.labels) if isinstance(claim, Radius) else of.count if isinstance(of, Balls) else 0
    centres = _array(beside, "centres", of.centres, (count, size))
    low, high = (np.full(size, -FAR), np.full(size, FAR)) if box is None else box
    if not bool(((low <= centres) & (centres <= high)).all()):
        raise UnreadableCertificate("a centre outside the box, or near the ends of float64")
    return centres, None if box is None else (box[0], box[1])


def _array(beside: Mapping[str, Array], name: str, digest: str, shape: tuple[int, ...]) -> Array:
    array = beside.get(name)
    if array is None or array.dtype != np.float64 or array.shape != shape or digest_of(array) != digest:
        raise UnreadableCertificate(f"the {name} are not there, or other ones")
    if not bool(np.isfinite(array).all()):
        raise UnreadableCertificate(f"the {name} are not finite")
    return array


Box = tuple[Array, Array] | None


def region_of(ball: Ball, centres: Array, box: Box) -> Region:
    """A ball with the smallest box around it, rounded outward and cut by the box; or the box, as a ball that holds it."""
    norm, radius, row, cut = ball
    if ball == BOX and box is not None:
        centre = np.clip(box[0] / 2 + box[1] / 2, *box)
        reach = np.maximum(box[1] - centre, centre - box[0]).max(initial=0.0)
        return Region(centre, float(np.nextafter(reach, np.inf)), "linf", *box)
    if row >= len(centres) or (cut and box is None):
        raise UnreadableCertificate("a region around a centre, or cut by a box, that is not there")
    centre = centres[row]
    account.charge(4 * centre.size)
    low, high = np.nextafter(centre - radius, -np.inf), np.nextafter(centre + radius, np.inf)
    if cut and box is not None:
        low, high = np.maximum(low, box[0]), np.minimum(high, box[1])
    return Region(centre, radius, norm, low, high)


# -- facts and claims


def _carried(claim: Claim, facts: Sequence[Fact], regions: Sequence[Ball], outputs: tuple[int, int]) -> None:
    """RefutedCertificate unless the facts are what is claimed. outputs: the last step, and how many numbers a model gives."""
    last, size = outputs
    if isinstance(claim, Deviation):
        values = claim.follows(facts, size)
        places = (k for k, count in enumerate(claim.counts(size)) for _ in range(count))
        for k, value in zip(places, values, strict=True):
            _holds_on(value.part, regions, claim.region, k)
    elif isinstance(claim, Constant):
        _count(facts, len(claim.upper))
        for k, (fact, upper) in enumerate(zip(facts, claim.upper, strict=True)):
            c = _of(fact, theorems.Constant, "no constant")
            whole = (c.start, c.end) == (0, last) and c.rows == Rows(0, size)
            _need(whole and c.norms == claim.norms, "no constant of the whole output in these norms")
            _holds_on(c.part, regions, claim.balls, k, claim.tokens)
            if not c.limit <= upper:
                raise RefutedCertificate(
                    f"its evidence proves {outward(above(c.limit))}, not {outward(upper)}"
                )
    elif isinstance(claim, Radius):
        if size < 2:
            raise RefutedCertificate("labels of a single number, which is always its own largest entry")
        _count(facts, len(claim.labels) * (size - 1))
        left = iter(facts)
        for k, (label, radius) in enumerate(zip(claim.labels, claim.radius, strict=True)):
            ball = Balls(claim.norm, radius, len(claim.labels), claim.centres, claim.box)
            _need(label < size, "no label")
            for rival in (j for j in range(size) if j != label):
                v = _of(next(left), theorems.AtLeast, "no value")
                _need(v.rows == Rows(label, label + 1, rival) and v.sign > 0, "no value of label less rival")
                _need(v.limit > 0, "a value that is not above 0")
                _holds_on(v.part, regions, ball, k)
    elif isinstance(claim, Convex):
        from lipverify.checkers.theories.signs import Bent

        _count(facts, len(claim.entries))
        for fact, stated in zip(facts, claim.entries, strict=True):
            bent = _of(fact, Bent, "no convexity")
            _need((bent.row, bent.sign) == stated, "about another entry")
    else:
        from lipverify.checkers.theories.signs import Monotone

        count = 1 if claim.balls is None else claim.balls.count
        _count(facts, count * len(claim.entries))
        for place, fact in enumerate(facts):
            k, entry = place // len(claim.entries), claim.entries[place % len(claim.entries)]
            m = _of(fact, Monotone, "no sign")
            _need((m.row, m.input, m.sign) == entry, "a sign of another derivative")
            _holds_on(m.part, regions, claim.balls, k)


Kind = TypeVar("Kind", bound=Fact)


def _of(fact: Fact, kind: type[Kind], missing: str) -> Kind:
    _need(isinstance(fact, kind), missing)
    assert isinstance(fact, kind)
    return fact


def _need(condition: bool, fact: str) -> None:
    if not condition:
        raise RefutedCertificate(f"a fact it names is {fact}")


def _count(facts: Sequence[Fact], wanted: int) -> None:
    if len(facts) != wanted:
        raise RefutedCertificate(f"it names {len(facts)} facts for {wanted} claims")


def _holds_on(part: theorems.Part, regions: Sequence[Ball], balls: Balls | Ends | None, centre: int,
              tokens: Tokens | None = None) -> None:  # fmt: skip
    """A fact about everything serves any region; one about a ball, or about tokens of some size, what lies in it."""
    _need(not part.conditions, "about a part of a region")
    if part.within is not None:
        known = part.within
        if (
            not isinstance(known, Tokens)
            or tokens is None
            or known[:2] != tokens[:2]
            or known.most < tokens.most
        ):
            raise RefutedCertificate("a fact it names is about other tokens")
    if part.region is None:
        return
    _need(balls is not None, "about a ball alone")
    assert balls is not None
    ball = regions[part.region]
    if isinstance(balls, Ends) or ball == BOX:
        # The whole box holds every ball that it cuts.
        _need(ball == BOX and balls.box is not None, "about another ball")
        return
    inside = ball.norm == balls.norm and ball.radius >= balls.radius and ball.centre == centre
    _need(inside and not (ball.box and balls.box is None), "about another ball")


# -- words


def _words(
    claim: str,
    models: Sequence[Model],
    weights: Sequence[Mapping[str, Any] | None],
    exact: bool,
    theories: Sequence[str],
) -> str:
    """The statement from what was proved; what of a file took no part stands first."""
    first, about = zip(
        *(_told(model, used) for model, used in zip(models, weights, strict=True)), strict=True
    )
    how = "float64 with every rounding accounted for"
    if exact:
        how = (
            f"exact integers where matrices are shown to be definite, sums and slopes of activations in {how}"
        )
    how += f", with theories beyond the core: {', '.join(theories)}" if theories else ""
    origin = about[0] if len(about) == 1 else f"the first {about[0]}, the second {about[1]}"
    rest = "not covered: execution in floating point, preprocessing outside the graph"
    return f"{''.join(first)}{claim}, {origin}; proved in {how}; {rest}"


def _told(model: Model, weights: Mapping[str, Any] | None) -> tuple[str, str]:
    """What of a model's file took no part, and where the model was read."""
    first, name = "", f"{model.name[:80]!a}"
    if weights is not None and model.binding == "file" and weights["unused"]:
        idle, stored = len(weights["unused"]), weights["stored"]
        first = f"not all of the file takes part: {idle} of {stored} stored tensors belong to no output that is read; "
    if weights is not None and model.binding == "weights":
        if weights["used"] < weights["stored"]:
            first = f"not all of the file takes part: {weights['used']} of {weights['stored']} stored tensors do; "
        if weights["brought"]:
            first += f"{weights['brought']} tensors are not the file's: the certificate brings them along; "
    alone = ", which takes any number of samples, for a batch of one: others it may compute in another way"
    about = {
        "file": f"whose operators and weights were read from {name}{alone if model.several else ''}",
        "weights": f"whose architecture the certificate states and whose weights lie in {name}",
        "graph": "as it is in memory",
    }[model.binding]
    return first, about
