"""What a verification says: its sentence, and the document of `verify --json`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lipverify.checkers.claims import About
from lipverify.checkers.kernel.program import Program
from lipverify.checkers.reader import Model
from lipverify.checkers.reader.agreement import Agreement
from lipverify.checkers.reader.entries import CLEAR


@dataclass(frozen=True)
class Verdict:
    """What was proved, of which models, and what of each model's file took part."""

    claim: str
    fields: Mapping[str, Any]
    """Of the claim: `upper` or `radius`, norms and region, and its statement alone."""
    models: Sequence[Mapping[str, Any]]
    """What is known of each, with its `binding`, its `weights`, and the `agreement` of an ONNX file with a runtime."""
    seconds: float
    sizes: Sequence[tuple[int, int]]
    """How many numbers each function reads and gives."""
    theories: tuple[str, ...] = ()
    """What the proof rests on beside the core of the kernel (docs/proof-format.md)."""
    programs: tuple[Program, ...] = field(default=(), repr=False, compare=False)
    """What the claim is about, of each model, as it was read."""
    functions: tuple[str, ...] = ()
    """The same in words."""

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


def shown_of(about: About, model: Model, weights: Mapping[str, Any] | None) -> dict[str, Any]:
    # The digest of a graph is the certificate's word where there is a file: what is shown is known.
    digest = about.digest if model.binding == "graph" else None
    files = [{"name": name[:80], "sha256": sha256} for name, sha256 in model.beside]
    beside = {"beside": files} if files else {}
    return {"name": model.name[:80], "sha256": model.sha256, "graph_digest": digest, "margin": about.margin,
            "output": {"index": about.output, "name": about.output_name}, "binding": model.binding,
            **({} if about.reading is None else {"reading": about.reading.to_json()}), **beside, "weights": weights}  # fmt: skip


def words(
    claim: str,
    models: Sequence[Model],
    weights: Sequence[Mapping[str, Any] | None],
    agreements: Sequence[Agreement | None],
    exact: bool,
    theories: Sequence[str],
) -> str:
    """The statement from what was proved; what of a file took no part stands first.

    agreements: of each model's file with a runtime, None where it is no ONNX file.
    """
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
    origin += "".join(
        dict.fromkeys(_compared(agreement) for agreement in agreements if agreement is not None)
    )
    rest = "not covered: execution in floating point, preprocessing outside the graph"
    return f"{''.join(first)}{claim}, {origin}; proved in {how}; {rest}"


def _compared(agreement: Agreement) -> str:
    """What the comparison of a file with a runtime has not seen."""
    said = []
    if agreement.within > CLEAR:
        said.append(f"to within a factor of {1 + agreement.within:.2g} of how much its outputs change")
    if agreement.gates == 0:
        said.append("at ordinary inputs and none where its activations turn")
    if agreement.left:
        said.append(
            f"where its outputs are finite, as they are not at up to {agreement.left} ordinary inputs"
        )
    if agreement.hidden:
        said.append(f"but for outputs that sums inside hide at {agreement.hidden} other inputs")
    if agreement.unanswered:
        said.append("in the type of the file alone, since float64 did not end in time")
    compared = f"; its reading was compared with {agreement.evaluator} {' and '.join(said)}" if said else ""
    if agreement.executed is None or agreement.hides is None:
        return compared
    return (
        f"{compared}; in the type of the file sums inside hide up to {agreement.hides:.2g} of how much its outputs change, and "
        f"where those change in it a runtime was off by up to {agreement.executed:.2g} of it"
    )


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
