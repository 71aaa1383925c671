"""Evidence of LipSDP bounds: multipliers, and what else a checker needs to rebuild the inequality from the graph."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from lipverify.certificates.pending import keepable
from lipverify.ir.certificate import Evidence
from lipverify.ir.norm import Norm
from lipverify.linalg.rounding import Upper

if TYPE_CHECKING:
    from lipverify.certificates import writing


@keepable
@dataclass(frozen=True)
class Multipliers:
    """Evidence of a LipSDP bound: for every centre (one for the whole space) the diagonal D of every block.

    A checker rebuilds A(D) and Y(D) of the block system from the graph and tests definiteness itself.
    """

    blocks: tuple[str, ...]
    diagonals: tuple[tuple[Tensor, ...], ...]
    exponents: tuple[tuple[int, ...], ...]
    """D of a block is its diagonal times 4^exponent."""
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return {
            "kind": "multipliers",
            "blocks": list(self.blocks),
            "centres": [
                {"exponents": list(powers), "diagonals": [d.tolist() for d in blocks]}
                for blocks, powers in zip(self.diagonals, self.exponents, strict=True)
            ],
            "notes": list(self.notes),
        }

    def proof(self, writer: writing.Writer, part: writing.Part) -> int:
        """The multipliers, held against the checker's own system."""
        from lipverify.analyzers.lipsdp.proof import prove_multipliers

        return prove_multipliers(self, writer, part)


@keepable
@dataclass(frozen=True)
class Proof:
    """One set of multipliers and what it proves: |y_i(x) - y_i(x')| <= upper |x - x'| for each listed output i.

    With g a unit vector of that output (any unit vector where `outputs` is None: then all outputs together, in l2) and W = I for
    l2 inputs, W = diag(weights) for l_inf inputs,

        | W^-1  U'              V0'g |
        | U     2D - DC' - CD  -DV'g | >= 0    and    upper^2 >= rho tr W^-1 (l_inf),  upper^2 >= rho (l2).
        | g'V0  -g'VD           rho  |

    Inputs of weight 0 and neurons of multiplier 0 have no influence: their rows and columns are left out. A proof of several
    outputs holds for each of them by itself, with one D.
    """

    upper: Upper
    outputs: tuple[int, ...] | None
    diagonals: tuple[Tensor, ...]
    """D of every block, times 4^exponent."""
    exponents: tuple[int, ...]
    weights: Tensor | None = None
    """[inputs], times 4^weights_exponent; None for l2 inputs."""
    weights_exponent: int = 0

    def to_json(self) -> dict[str, Any]:
        found: dict[str, Any] = {
            "upper": float(self.upper),
            "outputs": None if self.outputs is None else list(self.outputs),
            "exponents": list(self.exponents),
            "diagonals": [d.tolist() for d in self.diagonals],
        }
        if self.weights is not None:
            found |= {"weights": self.weights.tolist(), "weights_exponent": self.weights_exponent}
        return found


@keepable
@dataclass(frozen=True)
class Proofs:
    """Evidence of a bound in other norms than l2 to l2: for every centre proofs whose outputs together are all outputs."""

    norm_in: Norm
    blocks: tuple[str, ...]
    centres: tuple[tuple[Proof, ...], ...]
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return {
            "kind": "multipliers-by-output",
            "norm_in": str(self.norm_in),
            "blocks": list(self.blocks),
            "centres": [[proof.to_json() for proof in proofs] for proofs in self.centres],
            "notes": list(self.notes),
        }

    def proof(self, writer: writing.Writer, part: writing.Part) -> int:
        """Every set of multipliers, for the outputs it is for."""
        from lipverify.analyzers.lipsdp.proof import prove_outputs

        return prove_outputs(self, writer, part)


@keepable
@dataclass(frozen=True)
class Part:
    """A piece of a network between two values that every path crosses, and the bound of this piece alone."""

    first: str
    """The value it reads."""
    last: str
    """The value it gives."""
    log10_upper: float
    by: str
    """`lipsdp`, `product`, or `activation` for the single activation at a cut."""
    evidence: Evidence | None = None
    note: str = ""

    def to_json(self) -> dict[str, Any]:
        return {
            "first": self.first,
            "last": self.last,
            "log10_upper": self.log10_upper if self.log10_upper > float("-inf") else None,
            "by": self.by,
            "note": self.note,
            "evidence": None if self.evidence is None else self.evidence.to_json(),
        }


@keepable
@dataclass(frozen=True)
class Parts:
    """Evidence of a bound that is the product over pieces of the network, from the input to the output."""

    parts: tuple[Part, ...]
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return {
            "kind": "parts",
            "parts": [part.to_json() for part in self.parts],
            "notes": list(self.notes),
        }

    def proof(self, writer: writing.Writer, part: writing.Part) -> int:
        """Constants of the pieces, composed."""
        from lipverify.analyzers.lipsdp.proof import prove_pieces

        return prove_pieces(self, writer, part)
