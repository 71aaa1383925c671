"""Documents of what follows from certified constants: read, typed, proved again.

A derivation names its rule (`closed_forms`) and the numbers that go in. A number is stated (an assumption, repeated in the
sentence), the constant of a certificate, which is proved again here, or a number of that certificate's network (`quantities`),
which is computed anew.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from lipverify.checkers.closed_forms import RULES, bound
from lipverify.checkers.envelope import check, read_models
from lipverify.checkers.kernel import account
from lipverify.checkers.kernel.arithmetic import need
from lipverify.checkers.quantities import POINTS, QUANTITIES, Quantity, Samples, carries
from lipverify.checkers.reader import (
    MAX_CERTIFICATE,
    MAX_MODEL,
    Model,
    digest_of,
    parse_json,
    parse_safetensors,
    read_bytes,
    runtimes,
)
from lipverify.checkers.tables import fields, hexadecimal, integer, text
from lipverify.checkers.verdict import Verdict
from lipverify.errors import (
    BudgetEnded,
    NotCovered,
    OtherModel,
    RefutedCertificate,
    Undecided,
    UnreadableCertificate,
)

SCHEMA = "lipverify.derivation/1"
LONGEST = 4096
"""Of a list of numbers."""
WIDEST = 16
"""Rows and columns of a matrix: elimination in integers takes seconds at most."""
MOST = 1 << 16
"""Of a count."""
CERTIFICATES = 64
"""That one derivation may name, each with time and memory of its own."""
FAR = 2**100
"""Numbers other than 0 are at most that large, and not nearer to 0 than its inverse, so that rationals stay short."""
NEAR = ("loop-near", "loop-remainder", "loop-sector-network")
"""Rules whose constant has to hold near 0 alone."""
Numbers = Mapping[str, Any]
Place = tuple[str, int | None]
File = tuple[str, str]


@dataclass(frozen=True)
class Proved:
    """What was proved of a derivation. stated: constants and numbers of networks, or lists of them, of which not all were proved.

    certificates: what each says.
    """

    claim: str
    rule: str
    side: str
    value: float
    stated: tuple[str, ...]
    certificates: Sequence[Mapping[str, Any]]
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """The document of `verify --json`."""
        return {"schema": "lipverify.verify/1", "valid": True, "claim": self.claim, "kind": "derivation", "rule": self.rule,
                self.side: self.value, "stated": list(self.stated), "certificates": list(self.certificates),
                "seconds": self.seconds}  # fmt: skip


@dataclass(frozen=True)
class Derivation:
    """A rule with its numbers, read and typed; places are (name, row of a list).

    certificates: of which constant, place -> (file, digest). computed: which numbers are those of the network of a certificate,
    place -> file and digest of the points, or None.
    """

    rule: str
    numbers: Numbers
    certificates: Mapping[Place, File]
    computed: Mapping[Place, File | None]

    def value(self) -> Fraction:
        """The value the rule gives for these numbers.

        Raises:
            UnreadableCertificate: the numbers do not meet the rule's conditions.
        """
        return RULES[self.rule].value(**self.numbers)

    def statement(self, value: float, points: str | None = None) -> str:
        """What is proved, as a sentence. points: the digest of the file of points that numbers are computed at."""
        shown = {name: _shown(found) for name, found in self.numbers.items()}
        said = RULES[self.rule].statement.format(value=repr(value), **shown)
        return said if points is None else f"{said}, for the points in the file with sha256 {points}"

    def points(self) -> str | None:
        """The digest of the file of points that numbers are computed at; None where there is none.

        Raises:
            UnreadableCertificate: numbers of different points, or one of points and one that is stated: they belong together.
        """
        files = {file for file in self.computed.values() if file is not None}
        need(len(files) <= 1, "numbers at different points")
        sampled = {name for name, q in QUANTITIES.get(self.rule, {}).items() if q.sampled}
        told = {name for name, _ in self.computed} & sampled
        need(told in (set(), sampled), "numbers at points beside numbers that are stated")
        return next(iter(files))[1] if files else None


def parse(document: Any) -> tuple[Derivation, float]:
    """A derivation and the value it claims.

    Raises:
        UnreadableCertificate: other fields, types or sizes than the rule's.
    """
    table = fields(document, "schema rule numbers value value_hex statement tool created environment")
    need(table["schema"] == SCHEMA, f"not a {SCHEMA}")
    need(text(table["rule"]) in RULES, "no rule of this name")
    rule = RULES[table["rule"]]
    given = fields(table["numbers"], " ".join(rule.takes))
    reading = _Reading(QUANTITIES.get(table["rule"], {}), {}, {})
    numbers = {name: reading.typed(given[name], kind, name) for name, kind in rule.takes.items()}
    found = Derivation(table["rule"], numbers, reading.certificates, reading.computed)
    return found, hexadecimal(table["value_hex"])


@dataclass(frozen=True)
class _Reading:
    """What the numbers of a document turn out to be: see `Derivation`."""

    quantities: Mapping[str, Quantity]
    certificates: dict[Place, File]
    computed: dict[Place, File | None]

    def typed(self, found: Any, kind: str, name: str) -> Any:
        if kind == "count":
            return integer(found, 0, MOST)
        if kind == "constant":
            return self._constant(found, (name, None))
        if kind in ("number", "size", "assumed", "matrix"):
            found = self._number(found, (name, None))
        if kind == "number":
            return _rational(found)
        if kind in ("size", "assumed"):
            return _size(found)
        need(isinstance(found, list) and 0 < len(found) <= LONGEST, f"{name} is no list")
        if kind == "constants":
            return [self._constant(one, (name, place)) for place, one in enumerate(found)]
        if kind == "matrix":
            need(len(found) <= WIDEST and all(isinstance(row, list) and 0 < len(row) <= WIDEST for row in found)
                 and len({len(row) for row in found}) == 1, f"{name} is no matrix")  # fmt: skip
            return [[_rational(x) for x in row] for row in found]
        rows = [self._number(one, (name, place)) for place, one in enumerate(found)]
        return [_rational(x) if kind == "numbers" else _size(x) for x in rows]

    def _number(self, found: Any, where: Place) -> Any:
        if not isinstance(found, dict):
            return found
        need(where[0] in self.quantities, f"{where[0]} is no number of a network")
        table = fields(found, "computed samples")
        need(
            (table["samples"] is not None) == self.quantities[where[0]].sampled,
            "points that are missing, or not asked for",
        )
        self.computed[where] = None
        if table["samples"] is not None:
            samples = fields(table["samples"], "name sha256")
            self.computed[where] = _beside(samples["name"]), text(samples["sha256"], 64)
        return table["computed"]

    def _constant(self, found: Any, where: Place) -> Fraction:
        if isinstance(found, dict):
            table = fields(found, "upper_hex certificate sha256")
            self.certificates[where] = _beside(table["certificate"]), text(table["sha256"], 64)
            found = table["upper_hex"]
        return _size(found)


def _beside(name: Any) -> str:
    """The name of a file in the same folder."""
    found = text(name)
    need("/" not in found and "\\" not in found and found not in (".", ".."), "a file that lies elsewhere")
    return found


def _size(found: Any) -> Fraction:
    value = _rational(found)
    need(value >= 0, "a negative size")
    return value


def _rational(found: Any) -> Fraction:
    value = Fraction(hexadecimal(found))
    need(value == 0 or 1 <= abs(value) * FAR <= FAR * FAR, "a number near the ends of float64")
    return value


def verify_derivation(
    path: Path,
    models: Sequence[Path | Model],
    at_most: float | None = None,
    exact: bool = False,
    seconds: float = math.inf,
    seed: int | None = None,
    roles: Mapping[str, Path | Model] | None = None,
) -> Proved:
    """Proves a derivation again, with every certificate that it names, once each, for these model files.

    Args:
        at_most: the largest value to accept. exact, seconds, seed: as in `verify_file`; seconds of all certificates together.
        roles: name of a constant, or name.place of one in a list -> the model file that it has to be of. The rule cannot know
        which function is which: certificates exchanged between two of one size make another true statement.

    Raises:
        RefutedCertificate: a certificate or the rule does not carry the value, or it is above `at_most`. UnreadableCertificate:
        damaged, or a certificate of another model. Undecided: a certificate says itself that it is not proved.
    """
    try:
        return _verified(path, models, at_most, exact, runtimes.spent() + seconds, seed, roles or {})
    except (RefutedCertificate, UnreadableCertificate, Undecided):
        raise
    except OSError as error:
        missing = Path(str(error.filename)).name[:80]
        raise UnreadableCertificate(
            f"it rests on {missing!a}, which cannot be read ({error.strerror})"
        ) from error
    except Exception as error:
        raise UnreadableCertificate(f"the derivation cannot be followed ({type(error).__name__})") from error


def _verified(
    path: Path,
    models: Sequence[Path | Model],
    at_most: float | None,
    exact: bool,
    last: float,
    seed: int | None,
    roles: Mapping[str, Path | Model],
) -> Proved:
    started = time.monotonic()
    document = parse_json(read_bytes(path, MAX_CERTIFICATE))
    derivation, claimed = parse(document)
    if type(document["value"]) is not float or document["value"] != claimed:
        raise RefutedCertificate("its numbers contradict each other")
    said = derivation.statement(claimed, derivation.points())
    if document["statement"] != said:
        raise RefutedCertificate("its statement is not the one its numbers make")
    rule = RULES[derivation.rule]
    known = _read(models, last)
    expected = dict(zip(roles, _read(list(roles.values()), last), strict=True))
    known += expected.values()
    need(len(set(derivation.certificates.values())) <= CERTIFICATES, "too many certificates")
    proved: dict[File, Verdict] = {}
    uses, functions = [], []
    for (name, place), named in derivation.certificates.items():
        number = derivation.numbers[name] if place is None else derivation.numbers[name][place]
        if named not in proved:
            left = last - runtimes.spent()
            if left <= 0:
                raise BudgetEnded("the time for checking is over")
            proved[named] = _certified(path.parent / named[0], named[1], known, exact, left, seed)
        verdict = proved[named]
        _fits(derivation, verdict, named[0])
        upper = verdict.upper
        if (max(upper) if isinstance(upper, list) else upper) > number:
            raise RefutedCertificate(f"{named[0]} proves {upper}, more than {name} says")
        uses.append(
            {
                "number": name,
                "place": place,
                "certificate": named[0],
                "claim": verdict.claim,
                "model": verdict.model,
            }
        )
        functions += [f"; {_called(name, place)}: {verdict.model['name']!a}, {verdict.functions[0]}"]
    _cast(derivation.numbers, uses, expected)
    _joined(
        derivation.numbers,
        {where: proved[named].sizes[0] for where, named in derivation.certificates.items()},
    )
    if exact and derivation.computed:
        raise NotCovered("exact checking covers no numbers of networks beside their constants")
    for where in derivation.computed:
        _recomputed(derivation, where, proved, path.parent, last)
    with account.spending(account.Account(lambda: runtimes.spent() > last)):
        value = derivation.value()
    if value > Fraction(claimed) if rule.side == "upper" else value < Fraction(claimed):
        raise RefutedCertificate(f"the rule gives {bound(derivation.rule, value)!r}, not {claimed!r}")
    if at_most is not None and (rule.side != "upper" or not claimed <= at_most):
        raise RefutedCertificate(f"the derivation proves {claimed!r}, not at most {at_most!r}")
    return Proved(
        said + "".join(functions),
        derivation.rule,
        rule.side,
        claimed,
        _stated(derivation),
        uses,
        time.monotonic() - started,
    )


def _read(models: Sequence[Path | Model], last: float) -> list[Model]:
    """Each read within what one check may take, and all of them before `last`."""
    found = []
    for model in models:
        left = last - runtimes.spent()
        found += [model] if isinstance(model, Model) else read_models([model], left)
    return found


def _cast(numbers: Numbers, uses: Sequence[Mapping[str, Any]], roles: Mapping[str, Model]) -> None:
    """That constants are of the files their user expects.

    Raises:
        RefutedCertificate: one is of another file, or of none.
    """
    for role, model in roles.items():
        name = role.partition(".")[0]
        cast = [use for use in uses if role in (use["number"], _called(use["number"], use["place"]))]
        count = len(numbers[name]) if role == name and isinstance(numbers.get(name), list) else 1
        if len(cast) < count:
            known = ", ".join(_called(use["number"], use["place"]) for use in uses) or "none"
            raise RefutedCertificate(
                f"it proves something else than expected: {role} is not the constant of a file; those are: {known}"
            )
        files = [{"name": name[:80], "sha256": sha256} for name, sha256 in model.beside]
        for use in cast:
            if (use["model"]["sha256"], use["model"].get("beside", [])) != (model.sha256, files):
                raise RefutedCertificate(
                    f"it proves something else than expected: {_called(use['number'], use['place'])} is the constant of "
                    f"{use['model']['name']!a}, not of {model.name[:80]!a}"
                )


def _called(name: str, place: int | None) -> str:
    return name if place is None else f"{name}.{place}"


def _stated(derivation: Derivation) -> tuple[str, ...]:
    """Constants and numbers of networks that are not, or not all, proved."""
    quantities = QUANTITIES.get(derivation.rule, {})
    found = []
    for name, kind in RULES[derivation.rule].takes.items():
        if kind not in ("constant", "constants", "assumed") and name not in quantities:
            continue
        known = derivation.computed if name in quantities else derivation.certificates
        many = kind in ("constants", "sizes")
        places: list[int | None] = list(range(len(derivation.numbers[name]))) if many else [None]
        if any((name, place) not in known for place in places):
            found.append(name)
    return tuple(found)


def _recomputed(
    derivation: Derivation, where: Place, proved: Mapping[File, Verdict], folder: Path, last: float
) -> None:
    """That a number is one of the network of a certificate."""
    name, place = where
    quantity = QUANTITIES[derivation.rule][name]
    need((quantity.of, place) in derivation.certificates, f"{name} is of a network without a certificate")
    (program,) = proved[derivation.certificates[quantity.of, place]].programs
    written = derivation.numbers[name] if place is None else derivation.numbers[name][place]
    spent = account.Account(lambda: runtimes.spent() > last)
    spent.read(sum(step.size for step in program.steps))
    with np.errstate(all="ignore"), account.spending(spent):
        samples = None
        if (file := derivation.computed[where]) is not None:
            samples = _samples(folder / file[0], file[1], program.steps[0].size)
        found = quantity.value(program, derivation.numbers, samples)
    if not carries(quantity, found, written):
        raise RefutedCertificate(f"{name} of the network is not shown to be what is written")


def _samples(path: Path, digest: str, size: int) -> Samples:
    """Two sets of points [count, size]."""
    data = read_bytes(path, MAX_CERTIFICATE)
    account.read(len(data))
    need(hashlib.sha256(data).hexdigest() == digest, f"{path.name} is another file than the derivation names")
    arrays = parse_safetensors(data)
    need(arrays.keys() == {"first", "second"}, "other points than two sets")
    for array in arrays.values():
        need(array.dtype == np.float64 and array.ndim == 2 and array.shape[1] == size and 0 < len(array) <= POINTS
             and bool((np.abs(array) <= float(FAR)).all()), "points of another kind or size than the network's")  # fmt: skip
    return arrays["first"], arrays["second"]


def _certified(
    path: Path, digest: str, models: Sequence[Model], exact: bool, seconds: float, seed: int | None
) -> Verdict:
    """The verdict on a certificate for one of the models: the one it names."""
    data = read_bytes(path, MAX_CERTIFICATE)
    need(hashlib.sha256(data).hexdigest() == digest, f"{path.name} is another file than the derivation names")
    refusal = UnreadableCertificate(f"{path.name} is about a model that was not given")
    for model in models:
        try:
            return check(lambda: data, lambda name: read_bytes(path.parent / name, MAX_MODEL), partial(list, [model]),
                         exact, None, seconds, seed, apart=True)  # fmt: skip
        except OtherModel:
            refusal = OtherModel(
                f"{path.name} is about {_model_of(data)}, which is none of the files that were given"
            )
        except UnreadableCertificate as error:
            refusal = error
    raise refusal


def _model_of(certificate: bytes) -> str:
    """The name and the digest that a certificate gives its model: its author's words, of what to look for."""
    models = parse_json(certificate)["models"]
    return f"{str(models[0]['name'])[:80]!a} with sha256 {str(models[0]['sha256'])[:64]}"


def _fits(derivation: Derivation, verdict: Verdict, file: str) -> None:
    """Constants are in l2, of whole outputs, and hold everywhere; near 0, on one uncut ball around 0 that holds the box."""
    found = verdict.fields
    need("upper" in found and len(verdict.models) == 1, f"{file} is about no constant")
    need(verdict.model["margin"] is None, f"{file} is about a difference of two outputs")
    need((found["norm_in"], found["norm_out"]) == ("l2", "l2"), f"{file} is not in l2")
    if derivation.rule.startswith("loop"):
        sizes = len(derivation.numbers["dynamics"]), len(derivation.numbers["control"][0])
        need(verdict.sizes == (sizes,), f"{file} is about a function of other sizes than the loop's policy")
    fits_region(derivation.rule, derivation.numbers, found["region"], file)


_ENDS: Mapping[str, tuple[str | None, str | None]] = {
    "inputs": ("input", "state"),
    "states": ("state", "state"),
    "old": ("point", "score"),
    "new": ("point", "score"),
    "heads": ("sample", None),
    "tails": (None, "logits"),
    "loss": ("logits", None),
}
"""Constant -> the spaces its function goes between, None: one of its own."""


def _joined(numbers: Numbers, sizes: Mapping[Place, tuple[int, int]]) -> None:
    """That functions whose constants one rule takes can be what it says of each: certificates exchanged between two are not.

    sizes: (inputs, outputs) of each function that has a certificate.
    """
    spaces: dict[str, int] = {}
    for (name, place), found in sizes.items():
        ends = _ENDS.get(name, (None, None))
        if place is not None and name in ("shifted", "couplings"):
            # Functions of one player give its gradient, whatever they take, which may be the variables of all.
            ends = None, f"player {place if name == 'shifted' else place // len(numbers['shifted'])}"
        for end, size in zip(ends, found, strict=True):
            need(
                end is None or spaces.setdefault(end, size) == size,
                f"the function of {name} does not fit the others: its sizes are {found}",
            )


def fits_region(rule: str, numbers: Numbers, region: Mapping[str, Any], name: str) -> None:
    """That a constant holds where a rule needs it: everywhere, or near 0 on one uncut ball around 0 that holds the loop's box.

    Args:
        numbers: of a loop `dynamics` [n, n] and, near 0, `radius`; of others none is read. region: as a claim writes it.
        name: of what the constant is from.

    Raises:
        UnreadableCertificate: it does not.
    """
    if region["kind"] == "everywhere":
        return
    need(rule in NEAR, f"{name} does not hold everywhere")
    size, radius = len(numbers["dynamics"]), Fraction(numbers["radius"])
    need(region["kind"] == "ball" and region["count"] == 1 and region["box"] is None
         and region["centres"] == digest_of(np.zeros((1, size))), f"{name} is not about a ball around 0")  # fmt: skip
    reach = Fraction(region["radius"])
    wide = (
        reach >= radius
        if region["norm"] == "linf"
        else region["norm"] == "l2" and reach**2 >= size * radius**2
    )
    need(wide, f"the ball of {name} does not hold the box")


def _shown(found: Any) -> str:
    """A number as it stands in a sentence: exactly, as float64 writes it."""
    if isinstance(found, list):
        return f"[{', '.join(_shown(one) for one in found)}]"
    return str(found) if isinstance(found, int) else repr(float(found))
