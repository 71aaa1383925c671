"""Bounds with what they claim, how far to trust them, and the evidence to re-check them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from lipverify.errors import UsageError
from lipverify.ir.region import Query
from lipverify.ir.shown import Shown, at_least, at_most
from lipverify.loading.names import display


class Rigour(IntEnum):
    """How far to trust a number. Combining results takes the minimum."""

    ESTIMATE = 0
    """A sample or somebody's word; never an upper bound."""
    SOLVER = 1
    """A solver's status."""
    REAL = 2
    """Valid in real arithmetic; not every rounding is accounted for."""
    CHECKED = 3
    """Evidence re-verified by the independent checker with rounding accounted for. Only a checker issues this."""

    def __str__(self) -> str:
        return self.name.lower()


class Evidence(Protocol):
    """What a checker needs to prove the bound again; plain data that writes its own proof.

    `proof(writer, part)` writes steps of docs/proof-format.md with a `lipverify.certificates.Writer` and gives the number of the
    fact that is the bound, for one centre or the whole space. Evidence without a proof leaves the method out: its bound stays
    `real`, and says so.
    """

    def to_json(self) -> dict[str, Any]: ...


@dataclass(frozen=True)
class Step:
    """One stage of a bound, for the per-layer waterfall: a node or a fused run of nodes."""

    nodes: tuple[str, ...]
    gain: float | None
    """Certified gain of this stage alone; None where the stage has no factor of its own (a merge)."""
    log10_reach: float
    """log10 of the certified constant from the input up to and including this stage; -inf for zero."""
    note: str = ""


@dataclass(frozen=True)
class Gains:
    """Evidence of a product bound: the stages in topological order."""

    steps: tuple[Step, ...]

    def to_json(self) -> dict[str, Any]:
        rows = [
            {
                "nodes": list(s.nodes),
                "gain": s.gain,
                "log10_reach": s.log10_reach if s.log10_reach > float("-inf") else None,
                "note": s.note,
            }
            for s in self.steps
        ]
        return {"kind": "gains", "steps": rows}

    def proof(self, writer: Any, part: Any) -> int:
        """The product again: the checker proves gains of its own, along the steps that it reads in the model."""
        found: int = writer.product(part)
        return found


class Written(Protocol):
    """A certificate as files."""

    def save(self, path: str | Path) -> None: ...

    def files(self, name: str) -> dict[str, bytes]: ...


@dataclass(frozen=True, kw_only=True)
class Certificate(Shown):
    """An upper bound. `upper` is float64: a scalar for `Everywhere`, [count] for balls.

    A bound too large for float64 has `upper` None and `log10_upper` set; never infinity.
    """

    upper: Tensor | None
    query: Query
    rigour: Rigour
    evidence: Evidence
    made_by: str
    graph_digest: str
    log10_upper: float | None = None
    assumptions: tuple[str, ...] = ()
    trace: tuple[tuple[float, float], ...] = field(default=())
    """(seconds, bound) pairs of an anytime analyzer; each was a valid bound at its moment."""
    issued: Written | None = field(default=None, compare=False)
    """The certificate in its written form; only where the checker has proved it."""
    unchecked: str = ""
    """Why the checker has no proof, where it was asked."""
    proved: tuple[bool, ...] = ()
    """For balls, of which centres the checker has proved the bound; the rigour is `checked` where it is all of them."""
    interrupted: bool = False
    """Whether somebody stopped the search; the bound is the best until then, and as valid."""
    notes: tuple[str, ...] = ()
    """What happened to the bound after the analyzer gave it."""

    def __repr__(self) -> str:
        bound = at_most(self.upper) if self.log10_upper is None else f"log10 {at_most(self.log10_upper)}"
        return f"Certificate({bound}, {self.rigour}, by {display(self.made_by, 80)}, {self.query!r})"

    def save(self, path: str | Path) -> None:
        """Writes the certificate as JSON, large arrays beside it.

        Raises:
            UsageError: the checker has no proof of this bound, so that there is nothing to hand on.
        """
        if self.issued is None:
            raise UsageError(
                f"this bound has no certificate that can be checked: {self.unchecked or 'not audited yet'}"
            )
        self.issued.save(path)

    def __post_init__(self) -> None:
        if (self.upper is None) == (self.log10_upper is None):
            raise ValueError("a certificate has either upper or log10_upper")
        if self.upper is not None and not bool((self.upper >= 0).all() and self.upper.isfinite().all()):
            raise ValueError("an upper bound is finite and not negative")


@dataclass(frozen=True)
class Witness(Shown):
    """A lower bound with what shows it; its own type, so that nobody can pass it where an upper bound belongs.

    value: [count] (1 for `Everywhere`), a lower bound of the slope of the stored pair, or of the derivative along the stored
    direction, with every rounding accounted for; points: [count, *input shape]; partner: the other point of each pair, or None
    where the witness is a derivative, with `direction` the input direction; note: why nothing is shown, where nothing is;
    let_go: gives the memory of points that are kept in a file back until they are looked at again.
    """

    value: Tensor
    points: Tensor
    method: str
    partner: Tensor | None = None
    direction: Tensor | None = None
    note: str = ""
    let_go: Callable[[], object] | None = field(default=None, compare=False)

    def arrays(self) -> dict[str, Any]:
        """Its numbers as they are stored, by name: points as float64, so that the slope is found again exactly."""
        found = {"value": self.value, "points": self.points}
        found |= {} if self.partner is None else {"partner": self.partner}
        found |= {} if self.direction is None else {"direction": self.direction}
        return {name: tensor.detach().cpu().numpy() for name, tensor in found.items()}

    def __repr__(self) -> str:
        shape = list(self.points.shape[1:])
        return f"Witness({at_least(self.value)}, points of shape {shape}, by {display(self.method, 40)})"
