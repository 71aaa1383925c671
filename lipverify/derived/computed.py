"""Numbers of certified networks in a derivation: by the checker where there is a certificate, by this library where not."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lipverify.certificates import bound_model
from lipverify.checkers import derivations
from lipverify.checkers.envelope import programs_of
from lipverify.checkers.kernel.arithmetic import above
from lipverify.checkers.kernel.program import Program
from lipverify.checkers.quantities import QUANTITIES
from lipverify.errors import NotCovered, OtherModel, Undecided, UnreadableCertificate, UsageError
from lipverify.ir.certificate import Certificate, Rigour
from lipverify.ir.graph import Graph
from lipverify.loading.safetensors import write_safetensors

Samples = tuple[Tensor, Tensor]
"""Two sets of points, [count, *input shape] each."""


@dataclass(frozen=True)
class OfNetwork:
    """A number of a certified network, which the checker computes (`checkers.quantities`).

    otherwise: the same by this library's own ranges, for networks without a certificate that is proved; nobody checks that.
    samples: the points that it is about. graph: the network, where the certificate has to be about this one.
    """

    otherwise: Callable[[], Any]
    samples: Samples | None = None
    graph: Graph | None = None


class Networks:
    """Numbers of networks, one after the other. computed: labels of those the checker computed; otherwise: whether others are
    there; samples: points, as they are written."""

    def __init__(
        self,
        rule: str,
        given: Mapping[str, Any],
        certificates: Mapping[str, Certificate],
        graphs: Mapping[str, Graph],
    ) -> None:
        self.rule, self.certificates, self.graphs = rule, certificates, graphs
        self.computed: list[str] = []
        self.otherwise = False
        self.samples: bytes | None = None
        self._numbers = {k: Fraction(v) for k, v in given.items() if type(v) is float and math.isfinite(v)}
        self._programs: dict[str, Program | None] = {}

    def number(self, name: str, found: Any, place: int | None) -> Any:
        if not isinstance(found, OfNetwork):
            return found
        quantity = QUANTITIES[self.rule][name]
        end = "" if place is None else f"-{place}"
        program = self._program(quantity.of + end, found.graph)
        points = None if found.samples is None else (_flat(found.samples[0]), _flat(found.samples[1]))
        if points is not None and self.otherwise:
            program = None  # numbers of the same points go together
        try:
            value = None if program is None else quantity.value(program, self._numbers, points)
        except (NotCovered, UnreadableCertificate):
            value = None
        if value is not None:
            self.computed.append(name + end)
            if points is not None:
                first, second = (torch.from_numpy(one) for one in points)
                self.samples = write_safetensors({"first": first, "second": second})
            return rounded(value, quantity.side)
        self.otherwise = True
        if points is not None:
            self.computed, self.samples = [], None
        return found.otherwise()

    def _program(self, label: str, graph: Graph | None) -> Program | None:
        if label not in self._programs:
            certificate, graph = self.certificates.get(label), graph or self.graphs.get(label)
            self._programs[label] = None
            if certificate is None or graph is None:
                return None
            try:
                self._programs[label] = program_of(certificate, graph)
            except OtherModel:
                raise UsageError(f"{label} is of another network than the one given beside it") from None
        return self._programs[label]


def program_of(certificate: Certificate, graph: Graph) -> Program | None:
    """What a certificate is about, as the checker reads it; None where it is not proved.

    Raises:
        OtherModel: it is not about this network.
    """
    if certificate.rigour is not Rigour.CHECKED or certificate.issued is None:
        return None
    files = certificate.issued.files("certificate.json")
    try:
        return programs_of(files["certificate.json"], files.__getitem__, [bound_model(graph)])[0]
    except OtherModel:
        raise
    except (NotCovered, UnreadableCertificate, Undecided):
        return None


def _flat(points: Tensor) -> NDArray[np.float64]:
    """[count, inputs]"""
    return np.ascontiguousarray(points.detach().to("cpu", torch.float64).flatten(1).numpy())


def rounded(value: Any, side: str) -> Any:
    """As float64 that a document can hold, on the side where the rule stays true."""
    if not isinstance(value, Fraction):
        return [[rounded(x, side) for x in row] for row in value]
    least = Fraction(1, derivations.FAR)
    if side == "lower":
        return -rounded(-value, "upper")
    if abs(value) < least and value != 0:
        value = least if value > 0 else Fraction(0)
    return above(value)
