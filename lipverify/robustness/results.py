"""What a run over points found: radii, curves, and the documents made of them."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import fmean, median
from typing import Any, TextIO

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lipverify.certificates import Issued
from lipverify.documents import envelope, model_document
from lipverify.errors import InternalError, Refuted
from lipverify.ir.graph import Graph
from lipverify.ir.norm import Norm
from lipverify.ir.shown import at_least
from lipverify.reporting.notebook import Result
from lipverify.reporting.places import ADVERSARIAL, CERTIFICATES
from lipverify.robustness.constants import PairConstants
from lipverify.robustness.curve import PUBLISHED, Curve, attacked_at, certified_at, curve
from lipverify.robustness.plan import Plan, Record

CERTIFICATE = "radii.json"


@dataclass(frozen=True)
class Radii(Result):
    """One record for each point, in the order of the data."""

    graph: Graph
    plan: Plan
    records: tuple[Record, ...]
    seconds: float
    constants: PairConstants | None = None
    refused: Mapping[str, str] = field(default_factory=dict)
    inputs: Tensor | None = None
    """The points [points, *input shape], for pictures."""
    command: str | None = None
    failed_methods: tuple[str, ...] = ()
    """Of the refused methods those that broke."""
    issued: Issued | None = field(default=None, compare=False)
    """The certificate of the points of which the checker has proved the radius, or a smaller one (`Record.proved`)."""

    def __repr__(self) -> str:
        kept = sum(record.radius > 0 for record in self.records)
        return (
            f"Radii({len(self.records)} points, {kept} of them certified: radii {at_least(self.radius)}, "
            f"{self.plan.norm}, {self.plan.method}, {self.rigour})"
        )

    def exit_code(self) -> int:
        """3 if an adversarial example lay inside a certified radius, 1 if something broke, else 0."""
        if any(record.refuted for record in self.records):
            return Refuted.exit_code
        broke = self.failed_methods or any(record.failed for record in self.records)
        return InternalError.exit_code if broke else 0

    @property
    def rigour(self) -> str:
        """`checked` where the checker has proved every radius above 0."""
        return (
            "checked"
            if self.issued is not None and all(r.checked for r in self.records if r.radius > 0)
            else "real"
        )

    def certificate_files(self) -> dict[str, bytes]:
        """The files of the certificate under their places in a folder."""
        if self.issued is None:
            return {}
        return {f"{CERTIFICATES}/{name}": data for name, data in self.issued.files(CERTIFICATE).items()}

    @property
    def examples(self) -> dict[int, NDArray[np.float64]]:
        """Adversarial examples [*input shape] by point."""
        return {r.index: r.example for r in self.records if r.example is not None}

    def example_files(self) -> dict[str, bytes]:
        """The adversarial examples under their place in a folder: index, label, other [k]; x, adversarial [k, *input shape]."""
        found = self.examples
        if not found or self.inputs is None:
            return {}
        records = {record.index: record for record in self.records}
        index = sorted(found)
        buffer = io.BytesIO()
        np.savez(
            buffer,
            index=np.array(index),
            x=self.inputs.double().cpu().numpy()[index],
            adversarial=np.stack([found[i] for i in index]),
            label=np.array([records[i].predicted for i in index]),
            other=np.array([records[i].attack_label for i in index]),
        )
        return {ADVERSARIAL: buffer.getvalue()}

    def _column(self, name: str) -> list[Any]:
        return [getattr(record, name) for record in self.records]

    @property
    def radius(self) -> Tensor:
        """Certified radii [points], float64; 0 where misclassified or undecided."""
        return torch.tensor(self._column("radius"), dtype=torch.float64, device="cpu")

    @property
    def label(self) -> Tensor:
        """Labels given, or predicted where none were [points]."""
        return torch.tensor(self._column("label"), device="cpu")

    @property
    def predicted(self) -> Tensor:
        """Predicted classes [points]."""
        return torch.tensor(self._column("predicted"), device="cpu")

    @property
    def method(self) -> tuple[str, ...]:
        """The method each radius is due to."""
        return tuple(self._column("method"))

    @property
    def attack_radius(self) -> Tensor:
        """Sizes of adversarial examples [points], NaN where none was found."""
        found = [float("nan") if r is None else r for r in self._column("attack_radius")]
        return torch.tensor(found, dtype=torch.float64, device="cpu")

    @property
    def clean_accuracy(self) -> float:
        """Share of points whose prediction is the label."""
        return fmean(float(r.label == r.predicted) for r in self.records)

    def curve(self) -> Curve:
        """Certified and attacked accuracy over radii."""
        return curve(self.records)

    def certified_accuracy(self, radius: float) -> float:
        """Share of points certified at this radius."""
        return certified_at(self.records, radius)

    def robust_accuracy(self) -> dict[str, dict[str, float]]:
        """Certified and attacked accuracy at the l2 radii that the literature prints; empty in linf."""
        if self.plan.norm is not Norm.L2:
            return {}
        return {
            name: {
                "radius": radius,
                "certified": certified_at(self.records, radius),
                "attacked": attacked_at(self.records, radius),
            }
            for name, radius in PUBLISHED.items()
        }

    def comparison(self) -> list[dict[str, Any]]:
        """Each single method over the points classified correctly: mean, median, how often nothing else is larger.

        Over the points that it was run on alone: where the budget left no time for a method it says nothing.
        """
        correct = [r for r in self.records if r.label == r.predicted and r.by_method]
        names = list(dict.fromkeys(name for r in correct for name in r.by_method))
        rows = []
        for name in names:
            ran = [r for r in correct if name in r.by_method]
            values = [r.by_method[name] for r in ran]
            best = [v >= max(r.by_method.values()) and v > 0 for v, r in zip(values, ran, strict=True)]
            rows.append(
                {
                    "method": name,
                    "mean_radius": fmean(values),
                    "median_radius": median(values),
                    "largest_on": sum(best),
                    "points": len(values),
                    **({"not_run": len(correct) - len(ran)} if len(ran) < len(correct) else {}),
                }
            )
        return rows

    def show(self, document: dict[str, Any], file: TextIO | None = None) -> None:
        """What a person at a terminal sees."""
        from lipverify.reporting.radii import print_radii

        print_radii(document, file)

    def page(self, document: dict[str, Any]) -> str:
        """The self-contained page."""
        from lipverify.reporting.radii import render_radii

        pictures = None if self.inputs is None else self.inputs.cpu().numpy()
        return render_radii(document, pictures, self.examples)

    def to_json(self) -> dict[str, Any]:
        """The document of `radius --json`."""
        return envelope(
            "lipverify.radius/1",
            self.command,
            self.seconds,
            model=model_document(self.graph),
            norm=str(self.plan.norm),
            method=self.plan.method,
            box=None if self.plan.box is None else list(self.plan.box),
            claim=self.claim(),
            points=[self._point(record) for record in self.records],
            curve=self.curve().to_json(),
            **({"adversarial": ADVERSARIAL} if self.examples else {}),
            clean_accuracy=self.clean_accuracy,
            robust_accuracy=self.robust_accuracy(),
            comparison=self.comparison(),
            rigour=self.rigour,
            refused=dict(self.refused),
            **({"failed": list(self.failed_methods)} if self.failed_methods else {}),
            settings=self.plan.to_json(),
            constants=None if self.constants is None else self.constants.to_json(),
            assumptions=self.assumptions(),
        )

    def _point(self, record: Record) -> dict[str, Any]:
        certificate = f"{CERTIFICATES}/{CERTIFICATE}" if record.checked or record.proved else None
        return {
            **record.to_json(),
            "rigour": "checked" if record.checked else "real",
            "certificate": certificate,
        }

    def claim(self) -> str:
        """What a radius says, in one sentence."""
        inside = (
            ""
            if self.plan.box is None
            else f" that stays in the input box [{self.plan.box[0]:g}, {self.plan.box[1]:g}]"
        )
        if self.plan.method == "smoothing":
            s = self.plan.smoothing
            return (
                f"for each point, with probability at least {1 - s.alpha:g} over the noise drawn, no perturbation of "
                f"{self.plan.norm} size below its radius changes the label of the smoothed classifier (sigma {s.sigma:g})"
            )
        return f"no perturbation of {self.plan.norm} size below a point's radius{inside} changes its label"

    def assumptions(self) -> list[str]:
        """What the radii rest on beyond their rigour."""
        if self.plan.method == "lirpa":
            return ["auto_LiRPA is right, and its rounding in single precision does not matter"]
        if self.plan.method != "smoothing":
            return []
        return [
            "the pseudo-random noise behaves as independent Gaussian noise; it is generated in finite precision",
            "the confidence holds for each point on its own, not for all points at once",
        ]
