"""The one form every network takes before LipSDP: linear maps and scalar neurons with slopes in [0, 1]."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor

from lipverify.errors import InternalError


@dataclass(frozen=True)
class Couplings:
    """Neurons in blocks, in any order; a block may feed itself.

    v_k = U_k x + sum_j C_kj w_j + const,   w_k = phi_k(v_k) with slopes in [0, 1],   y = V0 x + sum_k V_k w_k + const.

    Hence the Jacobian is V0 + V Delta (I - C Delta)^-1 U with a diagonal 0 <= Delta <= I. All tensors float64 on one device;
    an absent entry is zero. Activations with slopes in [a, b] are written a v + (b - a) w beforehand.
    """

    inputs: int
    outputs: int
    sizes: tuple[int, ...]
    """Neurons of each block."""
    U: dict[int, Tensor]
    """k -> [sizes[k], inputs]"""
    C: dict[tuple[int, int], Tensor]
    """(k, j) -> [sizes[k], sizes[j]]: how w_j enters v_k."""
    V: dict[int, Tensor]
    """k -> [outputs, sizes[k]]"""
    V0: Tensor | None
    """[outputs, inputs]"""
    names: tuple[str, ...]
    """For each block the graph node its neurons come from."""

    def __post_init__(self) -> None:
        count = len(self.sizes)
        shapes = [(m, (self.sizes[k], self.inputs)) for k, m in self.U.items()]
        shapes += [(m, (self.sizes[k], self.sizes[j])) for (k, j), m in self.C.items()]
        shapes += [(m, (self.outputs, self.sizes[k])) for k, m in self.V.items()]
        shapes += [] if self.V0 is None else [(self.V0, (self.outputs, self.inputs))]
        if any(tuple(matrix.shape) != wanted for matrix, wanted in shapes) or len(self.names) != count:
            raise InternalError("a block system whose matrices do not fit its sizes")

    @property
    def neurons(self) -> int:
        """All neurons together: the number of multipliers."""
        return sum(self.sizes)

    @property
    def matrices(self) -> tuple[Tensor, ...]:
        """All that are given."""
        given = (*self.U.values(), *self.C.values(), *self.V.values(), self.V0)
        return tuple(matrix for matrix in given if matrix is not None)

    @property
    def device(self) -> torch.device:
        """Where the matrices are."""
        return next((matrix.device for matrix in self.matrices), torch.device("cpu"))


System = TypeVar("System", bound=Couplings)


@dataclass(frozen=True)
class BlockSystem(Couplings):
    """Neurons in topological blocks: C_kj only for j < k, as in every network without implicit layers."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if any(j >= k for k, j in self.C):
            raise InternalError("a block system that is not in topological order")


def one_output(system: System, row: int) -> System:
    """The system of one of its outputs."""
    return replace(
        system,
        outputs=1,
        V={k: matrix[row : row + 1] for k, matrix in system.V.items()},
        V0=None if system.V0 is None else system.V0[row : row + 1],
    )


@dataclass(frozen=True)
class LoopedSystem:
    """A block system whose blocks may feed themselves, as those of implicit layers do: v_k = .. + loops[k] w_k.

    A type of its own, because most of what takes block systems needs blocks that depend on earlier ones only.
    """

    causal: BlockSystem
    loops: dict[int, Tensor]
    """k -> [sizes[k], sizes[k]]"""

    def __post_init__(self) -> None:
        sizes = self.causal.sizes
        if any(k >= len(sizes) or tuple(m.shape) != (sizes[k], sizes[k]) for k, m in self.loops.items()):
            raise InternalError("a loop that does not fit its block")

    @property
    def couplings(self) -> Couplings:
        """The loops as diagonal blocks of C."""
        plain = self.causal
        if not self.loops:
            return plain
        together = plain.C | {(k, k): m for k, m in self.loops.items()}
        return Couplings(
            plain.inputs, plain.outputs, plain.sizes, plain.U, together, plain.V, plain.V0, plain.names
        )
