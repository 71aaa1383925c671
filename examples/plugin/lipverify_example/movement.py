"""A question of our own: how far can the output move when the input moves by a given distance?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any, ClassVar, Self

import torch
from torch import Tensor

from lipverify import pipeline
from lipverify.analyzers.protocol import Compute
from lipverify.errors import UsageError
from lipverify.ir.certificate import Rigour
from lipverify.ir.graph import Graph
from lipverify.ir.interval import Interval
from lipverify.loading.arguments import parse_radius
from lipverify.questions.formula import Formula, fact, number, of
from lipverify.questions.options import Options, option
from lipverify.questions.question import Found, Proved, Subject
from lipverify.reporting.sections import Section
from lipverify.results import Audit


@dataclass(frozen=True, kw_only=True)
class MovementOptions(Options):
    """How far the input moves."""

    by: Annotated[float, option("distance that the input moves, in l2", parse_radius, shown="1")] = 1.0


@dataclass(frozen=True)
class Movement:
    """The largest movement of the output, in l2, when the input moves by at most a distance in l2, from anywhere.

    Statement: |f(x) - f(y)|_2 <= upper for all x, y with |x - y|_2 <= by.
    Source: the definition of a Lipschitz constant.
    Sound when: the analyzers `product` and `lipsdp-fast` are; each constant is proved again by the checker.
    """

    name: ClassVar[str] = "movement"
    options: ClassVar[type[Any]] = MovementOptions
    f: Graph
    by: float = 1.0
    single: ClassVar[bool] = True

    @property
    def subjects(self) -> tuple[Subject, ...]:
        return (Subject("network", self.f),)

    @property
    def formula(self) -> Formula:
        return of("largest", of("product", fact("constant"), number(self.by)))

    def query(self) -> dict[str, Any]:
        return {"by": self.by, "words": f"how far can the output move when the input moves by {self.by:g}?"}

    def claim(self, upper: str) -> str:
        return f"the output moves by at most {upper} in l2 when the input moves by at most {self.by:g} in l2"

    @cached_property
    def audit(self) -> Audit:
        """The constants, certified: what this question needs is what `audit` gives."""
        return pipeline.audit(self.f, analyzers=["product", "lipsdp-fast"], budget=10.0)

    def facts(self, compute: Compute) -> Iterator[Found]:
        best = self.audit.best
        if best is None or not isinstance(best.upper, float):
            raise UsageError("no analyzer gives a constant that float64 can hold")
        ends = torch.tensor([[self.audit.lower.value], [best.upper]], dtype=torch.float64)
        yield Found({"constant": Interval(ends[:1], ends[1:])}, Rigour.REAL, best)

    def search(self, compute: Compute) -> Tensor | None:
        return None  # the fact's lower end stands on the witness of the audit, which is no single input

    def at(self, points: Tensor) -> Mapping[str, Interval]:
        raise NotImplementedError("there is no search")

    def findings(self, found: Found, compute: Compute) -> Mapping[str, Any]:
        return {"analyzer": found.more.analyzer, "steepest": self.audit.lower.value}

    def expects(self, fact: str | None) -> Mapping[str, Any]:
        """What the certificate of the constant has to say."""
        return {"norm_in": "l2", "norm_out": "l2"}

    def prove(self, upper: Tensor, found: Found, fields: Mapping[str, Any], compute: Compute) -> Proved:
        """The certificate of the constant: the shell evaluates the formula on what the checker proved."""
        certificate = found.more.certificate
        if certificate.rigour is not Rigour.CHECKED:
            return Proved(reason=certificate.unchecked)
        return Proved(constants={"constant": certificate.issued})

    @classmethod
    def asked(cls, options: MovementOptions, graphs: Sequence[Graph], x: Tensor | None) -> Iterator[Self]:
        for graph in graphs:
            yield cls(graph, options.by)

    @staticmethod
    def sections(document: Mapping[str, Any]) -> Sequence[Section]:
        return ()

    @staticmethod
    def gate(options: MovementOptions, document: Mapping[str, Any]) -> str | None:
        return None
