"""What a question is, and what its answer holds."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol, Self, TextIO

import numpy as np
import torch
from torch import Tensor

from lipverify.analyzers.protocol import Compute, docstring_field
from lipverify.certificates import Issued
from lipverify.documents import envelope, model_document
from lipverify.errors import UsageError
from lipverify.ir.certificate import Rigour, Witness
from lipverify.ir.graph import Graph
from lipverify.ir.interval import Interval
from lipverify.ir.shown import at_least, at_most
from lipverify.questions.formula import Formula
from lipverify.reporting.notebook import Result
from lipverify.reporting.places import WITNESS
from lipverify.reporting.sections import Section

UNCHECKED = "the checker has no proof of this kind of question: only the code that computed the bound accounts for rounding"

NOT_CARRIED = "the certificate is about fewer regions, or about larger bounds"


@dataclass(frozen=True)
class Subject:
    """One of the networks a question is about, with its part in it: `original`, `changed`, ..."""

    role: str
    graph: Graph


@dataclass(frozen=True)
class Found:
    """Facts that the formula needs, proved: name -> range [count, entries]. more: what the question itself wants to keep.

    rigour: `real` at most, since only the checker makes anything `checked`; an estimate is no fact.
    """

    facts: Mapping[str, Interval]
    rigour: Rigour = Rigour.REAL
    more: Any = None

    def __post_init__(self) -> None:
        if self.rigour not in (Rigour.REAL, Rigour.SOLVER):
            raise UsageError(
                f"facts of a question are real or solver, not {self.rigour}: `checked` comes of `prove`, estimates are no facts"
            )


@dataclass(frozen=True)
class Proved:
    """What the independent checker proved again. reason: why there is no certificate, or not of all.

    issued: a certificate of the question's own claim, about its networks in their order: the claim's kind is the question's name.
    constants: fact -> certificate of a Lipschitz constant of one of the networks that the fact is not above, everywhere or over
    the question's own `region`; the shell evaluates the formula on the constants that the checker proved. Exactly one of the two
    makes an answer `checked` (`questions.carrying`).
    upper [count]: bounds that they carry; the shell writes it, whatever a question says.
    fields: of the document, beside those of the question. points: inputs that were come by on the way, as those of `search`.
    """

    issued: Issued | None = None
    upper: Tensor | None = None
    reason: str | None = None
    fields: Mapping[str, Any] = field(default_factory=dict)
    points: Tensor | None = None
    constants: Mapping[str, Issued] = field(default_factory=dict)


class Question(Protocol):
    """What is asked of one network or several. The docstring has `Statement:`, `Source:` and `Sound when:`, as analyzers have.

    A question whose claim, or whose facts, the checker can prove also has `prove(upper, found, fields, compute) -> Proved`, and
    `expects(fact) -> {"norm_in": .., "norm_out": ..}`: what the certificate of a fact, or of its own claim (None), has to say
    beside kind, networks and region; `output` (0) and `margin` (none) too, where they are others.
    One that is long in making what everything else rests on has `prepare() -> None`: the share of the search would cut it, and
    it would be made twice.

    single: whether there is one region, whose bound is a number; else the bounds are a list, one for each region.
    """

    name: ClassVar[str]
    options: ClassVar[type[Any]]
    """The options of the command line: a subclass of `questions.options.Options`."""

    @property
    def subjects(self) -> tuple[Subject, ...]: ...

    @property
    def single(self) -> bool: ...

    @property
    def formula(self) -> Formula:
        """The answer as a closed form over facts."""
        ...

    def query(self) -> dict[str, Any]:
        """What is asked, for documents; `words`: as a sentence."""
        ...

    def claim(self, upper: str) -> str:
        """The sentence that is certified, with the number written in it."""
        ...

    def facts(self, compute: Compute) -> Iterator[Found]:
        """The facts, again and again: each time all of them. Each holds; the shell keeps the intersection.

        Raises:
            UnsupportedModel: an operator without a rule.
        """
        ...

    def search(self, compute: Compute) -> Tensor | None:
        """Inputs at which the value is large, [count, *input shape]; not trusted. None where there is nothing to search."""
        ...

    def at(self, points: Tensor) -> Mapping[str, Interval]:
        """The facts at single inputs, every rounding accounted for: what makes a point a witness."""
        ...

    def findings(self, found: Found, compute: Compute) -> Mapping[str, Any]:
        """Fields of the question's own in the document; arrays (tensors) go to the witness file."""
        ...

    @classmethod
    def asked(cls, options: Any, graphs: Sequence[Graph], points: Any) -> Iterator[Self]:
        """The questions of a command line, one for each answer."""
        ...

    @staticmethod
    def sections(document: Mapping[str, Any]) -> Sequence[Section]:
        """Tables and pictures of the question's own on the page."""
        ...

    @staticmethod
    def gate(options: Any, document: Mapping[str, Any]) -> str | None:
        """Why a gate of the question's own fails; None where it does not."""
        ...


@dataclass(frozen=True)
class Answer(Result):
    """A bound, what it claims, and what was found below it. upper: a number, or [count] for several regions."""

    question: Question
    upper: float | Tensor
    lower: float | Tensor | None
    witness: Witness | None
    found: Found
    fields: Mapping[str, Any]
    seconds: float
    trace: tuple[tuple[float, float], ...] = ()
    interrupted: bool = False
    command: str | None = None
    arrays: Mapping[str, Tensor] = field(default_factory=dict)
    proved: Proved | None = None
    checked: bool = False
    """Whether the bound is what the checker proved."""

    def __repr__(self) -> str:
        return f"Answer({self.question.name}: {at_most(self.upper)}, {at_least(self.lower)}, {self.rigour})"

    @property
    def rigour(self) -> Rigour:
        """The least of the facts, or `checked`."""
        return Rigour.CHECKED if self.checked else self.found.rigour

    @property
    def unchecked(self) -> str | None:
        """Why the answer is not `checked`; None where it is."""
        if self.checked:
            return None
        return UNCHECKED if self.proved is None else self.proved.reason or NOT_CARRIED

    @property
    def issued(self) -> Issued | None:
        """The certificate of the claim, where the checker has proved one."""
        return None if self.proved is None else self.proved.issued

    def certificates(self, stem: str | None = None) -> dict[str, Issued]:
        """File name -> certificate: of the claim `<stem>.json`, of a constant that it rests on `<stem>-<fact>.json`."""
        if self.proved is None:
            return {}
        stem = self.question.name if stem is None else stem
        found = {f"{stem}-{name}.json": issued for name, issued in self.proved.constants.items()}
        return found if self.issued is None else {f"{stem}.json": self.issued} | found

    @property
    def largest(self) -> float:
        """The bound, for several regions the largest."""
        return float(self.upper.max()) if isinstance(self.upper, Tensor) else self.upper

    @property
    def shown(self) -> float:
        """The lower bound, for several regions the largest; 0 without a witness."""
        if self.lower is None:
            return 0.0
        return float(self.lower.max()) if isinstance(self.lower, Tensor) else self.lower

    def show(self, document: dict[str, Any], file: TextIO | None = None) -> None:
        """What a person at a terminal sees."""
        from lipverify.reporting.answer import print_answers

        print_answers([document], [self.question.sections(document)], file)

    def page(self, document: dict[str, Any]) -> str:
        """The self-contained page."""
        from lipverify.reporting.answer import render_answers

        return render_answers([document], [self.question.sections(document)])

    def to_json(self, witness: str = WITNESS, certificate: str | None = None) -> dict[str, Any]:
        """The document of `--json`. witness: the name of the file with the points; certificate: of that of the proof, `.json`."""
        from lipverify.reporting.format import Magnitude, upper_text

        question = self.question
        lower = None
        if self.witness is not None:
            lower = {"value": _plain(self.lower), "method": self.witness.method, "witness": witness}
        return envelope(
            "lipverify.answer/1",
            self.command,
            self.seconds,
            question=question.name,
            models=[{**model_document(s.graph), "role": s.role} for s in question.subjects],
            query=question.query(),
            claim=question.claim(upper_text(Magnitude(self.largest))),
            upper=_plain(self.upper),
            lower=lower,
            rigour=str(self.rigour),
            formula=str(question.formula),
            needs=[self._need(name, certificate) for name in question.formula.facts()],
            certificate=None if self.issued is None else certificate,
            proved=[issued.document["claim"]["statement"] for issued in self.certificates().values()],
            unchecked=self.unchecked,
            **dict(self.fields),
            trace=[list(moment) for moment in self.trace],
            interrupted=self.interrupted,
            statement=docstring_field(question, "Statement"),
            source=docstring_field(question, "Source"),
            sound_when=docstring_field(question, "Sound when"),
        )

    def _need(self, name: str, certificate: str | None) -> dict[str, Any]:
        box = self.found.facts[name]
        own = self.proved is not None and name in self.proved.constants
        file = f"{certificate.removesuffix('.json')}-{name}.json" if own and certificate is not None else None
        if self.question.single:
            ends: dict[str, Any] = {"lower": box.lower[0].tolist(), "upper": box.upper[0].tolist()}
        else:
            size = torch.maximum(box.upper, -box.lower).flatten(1).amax(1)
            ends = {"upper": size.tolist(), "entries": int(box.lower[0].numel())}
        return {
            "name": name,
            **ends,
            "rigour": str(self.rigour if own else self.found.rigour),
            "certificate": file,
        }

    def witness_file(self) -> bytes:
        """An .npz with `points` and their `value`, and the question's own arrays; numbers as float64."""
        arrays: dict[str, Any] = {name: np.asarray(tensor) for name, tensor in self.arrays.items()}
        if self.witness is not None:
            arrays |= {"points": self.witness.points.numpy(), "value": self.witness.value.numpy()}
        buffer = io.BytesIO()
        np.savez(buffer, **arrays)
        return buffer.getvalue()


def _plain(value: float | Tensor | None) -> Any:
    return value.tolist() if isinstance(value, Tensor) else value
