"""What follows from certified constants, with its numbers and sentence, a page, and a file that the checker re-proves."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

from lipverify.certificates import Issued, bound_model, model_path
from lipverify.certificates.format import balls_of
from lipverify.checkers import closed_forms, derivations
from lipverify.checkers.closed_forms import RULES
from lipverify.checkers.derivations import Proved
from lipverify.checkers.quantities import QUANTITIES
from lipverify.derived.computed import Networks
from lipverify.documents import environment
from lipverify.errors import UnreadableCertificate, UsageError
from lipverify.ir.certificate import Certificate, Rigour
from lipverify.ir.graph import Graph
from lipverify.ir.norm import Norm
from lipverify.loading.putting import put
from lipverify.results import Audit
from lipverify.version import __version__

Known = float | Audit | Certificate
"""A constant: a number somebody states, or what an audit or a certificate proves (in l2)."""
TOOL = {"name": "lipverify", "version": __version__}


@dataclass(frozen=True)
class Derived:
    """A number that a rule of docs/derived.md gives. Exactly one of `upper` and `lower` is there, by the rule.

    rigour: the least of the certificates that went in, and `real` where a number of a network has no certificate that carries it;
    `checked` means that `verify` proves the whole of it again, up to the numbers that were stated.
    """

    rule: str
    numbers: Mapping[str, Any]
    """As in the document: a constant with a certificate is its number."""
    value: float
    rigour: Rigour
    statement: str
    certificates: Mapping[str, Certificate] = field(repr=False)
    """Of a constant, by its name; of one in a list by name and place: `tails-2`."""
    graphs: Mapping[str, Graph] = field(default_factory=dict, repr=False)
    """The networks that certificates from audits are about."""
    details: Mapping[str, Any] = field(default_factory=dict)
    """What the function found besides, for people."""
    computed: tuple[str, ...] = ()
    """Numbers of certified networks, named as certificates are."""
    samples: bytes | None = field(default=None, repr=False)
    """The points that those are about, as a safetensors file."""

    @property
    def upper(self) -> float:
        """The value, where it is never below what the statement speaks of.

        Raises:
            UsageError: it is a lower bound.
        """
        return self._on("upper")

    @property
    def lower(self) -> float:
        """The value, where it is never above what the statement speaks of.

        Raises:
            UsageError: it is an upper bound.
        """
        return self._on("lower")

    def _on(self, side: str) -> float:
        if RULES[self.rule].side != side:
            raise UsageError(f"{self.rule} gives the other side: a bound from {RULES[self.rule].side!r}")
        return self.value

    def __repr__(self) -> str:
        side = RULES[self.rule].side
        return f"Derived({self.rule}: {side} {self.value!r}, {self.rigour})"

    def to_json(self) -> dict[str, Any]:
        """The document `lipverify.derivation/1`, with certificates named as `save` names them beside `derivation.json`."""
        return json.loads(self.files("derivation.json")["derivation.json"])  # type: ignore[no-any-return]

    def files(self, name: str) -> dict[str, bytes]:
        """File contents by name; certificates lie beside the document."""
        stem, files, numbers = name.removesuffix(".json"), {}, dict(self.numbers)
        for label, certificate in self.certificates.items():
            if certificate.issued is None:
                continue
            file = f"{stem}-{label}.json"
            written = certificate.issued.files(file)
            files.update(written)
            told = {"certificate": file, "sha256": hashlib.sha256(written[file]).hexdigest()}
            _told(numbers, label, "upper_hex", told)
        samples = None
        if self.samples is not None:
            file = f"{stem}-samples.safetensors"
            files[file] = self.samples
            samples = {"name": file, "sha256": hashlib.sha256(self.samples).hexdigest()}
        for label in self.computed:
            _told(numbers, label, "computed", {"samples": samples})
        document = {
            "schema": derivations.SCHEMA,
            "rule": self.rule,
            "numbers": numbers,
            "value": self.value,
            "value_hex": self.value.hex(),
            "statement": self.statement,
            "tool": TOOL,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "environment": environment(),
        }
        return {**files, name: (json.dumps(document, indent=1, allow_nan=False) + "\n").encode()}

    def save(self, path: str | Path) -> None:
        """Writes the document, and beside it the certificates it rests on. Raises UsageError: the path cannot be written."""
        path = Path(path)
        name = path.name if path.name.endswith(".json") else f"{path.name}.json"
        for file, data in self.files(name).items():
            put(path.with_name(file), data)

    def to_html(self, path: str | Path | None = None) -> str:
        """The self-contained page; also written to `path` when given. Raises UsageError: it cannot be written."""
        from lipverify.reporting.derived import render_derived

        claims = {
            label: c.issued.document["claim"]["statement"]
            for label, c in self.certificates.items()
            if isinstance(c.issued, Issued)
        }
        text = render_derived(self.to_json(), RULES[self.rule].side, str(self.rigour), claims)
        if path is not None:
            put(path, text)
        return text

    def _repr_html_(self) -> str:
        from lipverify.reporting.notebook import framed

        return framed(self.to_html())


def _told(numbers: dict[str, Any], label: str, name: str, told: Mapping[str, Any]) -> None:
    """Writes where the number under a label is from, beside it."""
    where, _, place = label.partition("-")
    if place:
        numbers[where] = list(numbers[where])
        numbers[where][int(place)] = {name: numbers[where][int(place)], **told}
    else:
        numbers[where] = {name: numbers[where], **told}


def derive(rule: str, details: Mapping[str, Any] | None = None, **given: Any) -> Derived:
    """The value of a rule for these numbers, as the checker computes it.

    Args:
        given: counts as int, numbers as float (or Fraction that is a float64), constants as `Known`, lists and matrices of them;
            numbers of networks as `OfNetwork`.

    Raises:
        UsageError: a number that the rule does not take; what is missing is named. A constant that holds in balls only, or
        that is of another network.
    """
    numbers: dict[str, Any] = {}
    certificates: dict[str, Certificate] = {}
    graphs: dict[str, Graph] = {}
    networks = QUANTITIES.get(rule, {})
    for name, kind in RULES[rule].takes.items():
        if name not in networks:
            numbers[name] = _written(given[name], kind, name, certificates, graphs)
    found = Networks(rule, given, certificates, graphs)
    for name in networks:
        number_of = partial(found.number, name)
        value = given[name]
        many = RULES[rule].takes[name] == "sizes"
        given[name] = (
            [number_of(one, place) for place, one in enumerate(value)] if many else number_of(value, None)
        )
        numbers[name] = _written(given[name], RULES[rule].takes[name], name, certificates, graphs)
    return _evaluated(rule, numbers, certificates, graphs, details or {}, found)


def _evaluated(
    rule: str,
    numbers: dict[str, Any],
    certificates: dict[str, Certificate],
    graphs: dict[str, Graph],
    details: Mapping[str, Any],
    networks: Networks,
) -> Derived:
    document = {"schema": derivations.SCHEMA, "rule": rule, "numbers": numbers, "value": 0.0, "value_hex": (0.0).hex(),
                "statement": "", "tool": TOOL, "created": "", "environment": {}}  # fmt: skip
    try:
        found, _ = derivations.parse(document)
        exact: Fraction = found.value()
    except UnreadableCertificate as error:
        raise UsageError(f"{rule}: {error}") from None
    for label, certificate in certificates.items():
        needs_region(rule, found.numbers, certificate, label)
    value = closed_forms.bound(rule, exact) + 0.0  # never -0.0
    rigour = min((c.rigour for c in certificates.values()), default=Rigour.CHECKED)
    rigour = min(rigour, Rigour.REAL) if networks.otherwise else rigour
    points = None if networks.samples is None else hashlib.sha256(networks.samples).hexdigest()
    return Derived(rule, numbers, value, rigour, found.statement(value, points), certificates, graphs, details,
                   tuple(networks.computed), networks.samples)  # fmt: skip


def _written(
    found: Any, kind: str, name: str, certificates: dict[str, Certificate], graphs: dict[str, Graph]
) -> Any:
    if kind == "count":
        if isinstance(found, bool) or not isinstance(found, int):
            raise UsageError(f"{name} is a whole number, not {found!r}")
        return found
    if kind in ("number", "size", "assumed"):
        return _hex(found, name)
    if kind == "constant":
        return _constant(found, name, certificates, graphs)
    if kind == "constants":
        return [_constant(one, f"{name}-{place}", certificates, graphs) for place, one in enumerate(found)]
    if kind == "matrix":
        return [[_hex(x, name) for x in row] for row in _listed(found)]
    return [_hex(x, name) for x in _listed(found)]


def _listed(found: Any) -> list[Any]:
    return found.tolist() if hasattr(found, "tolist") else list(found)


def _hex(found: Any, name: str) -> str:
    try:
        if isinstance(found, str | bytes | bool):
            raise TypeError
        value = float(found)
    except (TypeError, ValueError):
        raise UsageError(f"{name} is a number, not {found!r}") from None
    if value != value or value in (float("inf"), -float("inf")):
        raise UsageError(f"{name} is not finite")
    return (value + 0.0).hex()  # never -0.0


def certificate_of(found: Audit | Certificate, label: str = "the constant") -> Certificate:
    """The best certificate of an audit, or the certificate itself: one number, in l2, of the whole output.

    Raises:
        UsageError: there is none, or it is in other norms, or about a difference of two outputs.
    """
    if isinstance(found, Audit):
        if found.best is None or found.best.certificate is None:
            reasons = "; ".join(f"{row.analyzer}: {row.refused}" for row in found.rows if row.refused)
            raise UsageError(f"{label}: the audit has no bound ({reasons})")
        margin, found = found.graph.origin.margin, found.best.certificate
    else:
        margin = found.issued.document["models"][0]["margin"] if isinstance(found.issued, Issued) else None
    if margin is not None:
        raise UsageError(
            f"{label} is about output {margin[0]} minus output {margin[1]}: audit the whole output, or state it as a number"
        )
    if found.upper is None or found.upper.numel() != 1:
        raise UsageError(f"{label} takes one number: this certificate has several, or one beyond float64")
    norms = found.query.norm_in, found.query.norm_out
    if norms != (Norm.L2, Norm.L2):
        raise UsageError(f"{label} is a constant in l2; this certificate is in {norms[0]}, {norms[1]}")
    return found


def needs_region(rule: str, numbers: Mapping[str, Any], found: Certificate, label: str) -> None:
    """That a constant holds where the rule needs it, as the checker asks of its certificate (`derivations.fits_region`).

    Raises:
        UsageError: it does not.
    """
    region = found.query.region
    balls = balls_of(region)
    words = region.to_json() if balls is None else balls.to_json()
    try:
        derivations.fits_region(rule, numbers, words, f"{label}, a constant {region.words()},")
    except UnreadableCertificate as error:
        remedy = "audit without a region"
        if rule in derivations.NEAR:
            remedy += f", or in a linf ball around 0 of radius {float(numbers['radius'])!r}"
        raise UsageError(f"{rule}: {error}; {remedy}") from None


def number(found: Known) -> float:
    """The constant as a number.

    Raises:
        UsageError: as `certificate_of`.
    """
    if isinstance(found, Audit | Certificate):
        upper = certificate_of(found).upper
        assert upper is not None
        return float(upper.item())
    return float.fromhex(_hex(found, "a constant"))


def _constant(found: Any, label: str, certificates: dict[str, Certificate], graphs: dict[str, Graph]) -> str:
    """The number; the certificate it is from, and of an audit the network, are kept under the label."""
    if isinstance(found, Audit):
        graphs[label] = found.graph
    if isinstance(found, Audit | Certificate):
        certificates[label] = certificate_of(found, label)
        return number(found).hex()
    return _hex(found, label)


def verify_derived(found: Derived | str | Path, models: Sequence[Graph | str | Path] = ()) -> Proved:
    """Proves a derivation again with every certificate that it names, by the checker alone.

    Args:
        found: a file, or what a function of `lipverify.derived` gave. models: the networks that the certificates are about; of a
            `Derived` the audited ones are known.

    Raises:
        RefutedCertificate, UnreadableCertificate, Undecided: as `lipverify.verify`.
    """
    given = [*models, *(found.graphs.values() if isinstance(found, Derived) else ())]
    bound = [bound_model(model) if isinstance(model, Graph) else model_path(str(model)) for model in given]
    if not isinstance(found, Derived):
        return derivations.verify_derivation(Path(found), bound)
    with tempfile.TemporaryDirectory() as folder:
        found.save(Path(folder) / "derivation.json")
        return derivations.verify_derivation(Path(folder) / "derivation.json", bound)
