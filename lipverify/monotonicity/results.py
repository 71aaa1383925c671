"""What was found about each feature: a verdict, the range of the slope, and pairs of inputs that contradict."""

from __future__ import annotations

import io
from collections import Counter
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, TextIO

import numpy as np
from torch import Tensor

from lipverify.certificates import Issued
from lipverify.documents import envelope, model_document
from lipverify.ir.certificate import Rigour
from lipverify.ir.graph import Graph
from lipverify.reporting.notebook import Result

CERTIFICATE = "monotone.json"
SHOWN = 64
"""Inputs up to this size are written out in the document; all are in the witness file."""


class Verdict(Enum):
    """What holds on the whole region; the value is the word of the documents."""

    INCREASING = "increasing"
    """The output never falls when the feature alone grows (proved)."""
    DECREASING = "decreasing"
    """The output never rises when the feature alone grows (proved)."""
    CONSTANT = "constant"
    """Both: the feature does not matter (proved)."""
    NEITHER = "neither"
    """Two pairs of inputs show that it rises here and falls there."""
    UNDECIDED = "undecided"
    """Not decided within the budget."""

    def __str__(self) -> str:
        return self.value


@dataclass(frozen=True)
class Pair:
    """Two inputs that differ in one feature alone, and the outputs there.

    low has the smaller value of the feature; output_low and output_high: ranges that hold the exact outputs, by interval
    arithmetic with outward rounding. They do not meet, so the direction of the change is certain.
    """

    feature: int
    low: Tensor
    high: Tensor
    output_low: tuple[float, float]
    output_high: tuple[float, float]

    @property
    def change(self) -> float:
        """Output at `high` minus output at `low`, from the nearer ends of the ranges."""
        if self.output_high[0] > self.output_low[1]:
            return self.output_high[0] - self.output_low[1]
        return self.output_high[1] - self.output_low[0]

    def to_json(self) -> dict[str, Any]:
        start, end = (float(x.flatten()[self.feature]) for x in (self.low, self.high))
        found: dict[str, Any] = {
            "from": start,
            "to": end,
            "output_from": list(self.output_low),
            "output_to": list(self.output_high),
            "change": self.change,
        }
        if self.low.numel() <= SHOWN:
            found["input_from"] = self.low.flatten().tolist()
        return found


@dataclass(frozen=True)
class Finding:
    """The answer for one feature over one region.

    slope: a range that holds every slope of the output in this feature; falls, rises: pairs that contradict increasing and
    decreasing; boxes: how many were looked at.
    """

    feature: int
    name: str | None
    region: int
    verdict: Verdict
    slope: tuple[float, float]
    boxes: int
    seconds: float
    falls: Pair | None = None
    rises: Pair | None = None
    checked: bool = False
    """Whether the independent checker has proved the verdict."""
    unchecked: str = ""
    """Why it has not, where it was asked."""

    def to_json(self) -> dict[str, Any]:
        return {
            "feature": self.feature,
            "name": self.name,
            "region": self.region,
            "verdict": str(self.verdict),
            "slope": list(self.slope),
            "boxes": self.boxes,
            "seconds": self.seconds,
            "rigour": "checked" if self.checked else "real",
            **({"unchecked": self.unchecked} if self.unchecked else {}),
            "falls": None if self.falls is None else self.falls.to_json(),
            "rises": None if self.rises is None else self.rises.to_json(),
        }


@dataclass(frozen=True)
class Monotonicity(Result):
    """All findings of one call."""

    graph: Graph
    region: dict[str, Any]
    output: int
    findings: tuple[Finding, ...]
    seconds: float
    seed: int
    rigour: Rigour = Rigour.REAL
    command: str | None = None
    issued: Issued | None = field(default=None, compare=False)
    """The certificate of the directions that the checker has proved."""

    def __repr__(self) -> str:
        counts = Counter(str(finding.verdict) for finding in self.findings)
        said = ", ".join(f"{count} {verdict}" for verdict, count in counts.items())
        return f"Monotonicity(output {self.output} in {len(self.findings)} features: {said}; {self.rigour})"

    def certificate_files(self) -> dict[str, bytes]:
        """The files of the certificate under their places in a folder."""
        if self.issued is None:
            return {}
        return {f"certificates/{name}": data for name, data in self.issued.files(CERTIFICATE).items()}

    @property
    def decided(self) -> bool:
        """Whether every feature got a verdict other than `undecided`."""
        return all(finding.verdict is not Verdict.UNDECIDED for finding in self.findings)

    def show(self, document: dict[str, Any], file: TextIO | None = None) -> None:
        """What a person at a terminal sees."""
        from lipverify.reporting.monotone import print_monotone

        print_monotone(document, file)

    def page(self, document: dict[str, Any]) -> str:
        """The self-contained page."""
        from lipverify.reporting.monotone import render_monotone

        return render_monotone(document)

    def to_json(self) -> dict[str, Any]:
        """The document of `audit --monotone --json`."""
        part = self.graph.origin.part
        return envelope(
            "lipverify.monotone/1",
            self.command,
            self.seconds,
            model=model_document(self.graph),
            query={"region": self.region, "output": self.output, **({"of": part} if part else {})},
            features=[finding.to_json() for finding in self.findings],
            rigour=str(self.rigour),
            certificate=None if self.issued is None else f"certificates/{CERTIFICATE}",
            witness="witness.npz",
            seed=self.seed,
        )

    def witness_file(self) -> bytes:
        """An .npz with the pairs: arrays `falls_F_R_low`, `falls_F_R_high`, ... for feature F and region R, float64."""
        arrays: dict[str, Any] = {"features": np.array([f.feature for f in self.findings])}
        for finding in self.findings:
            for word, pair in (("falls", finding.falls), ("rises", finding.rises)):
                if pair is not None:
                    name = f"{word}_{finding.feature}_{finding.region}"
                    arrays[f"{name}_low"], arrays[f"{name}_high"] = pair.low.numpy(), pair.high.numpy()
        buffer = io.BytesIO()
        np.savez(buffer, **arrays)
        return buffer.getvalue()
