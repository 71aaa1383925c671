"""Exact rewritings of a block system before it is optimised: dead neurons, orientation, block scaling.

Only the search works on the rewritten system; `bound.certified_upper` goes back to the original one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lipverify.analyzers.lipsdp.system import BlockSystem

Multipliers = tuple[Tensor, ...]
"""One positive float64 vector per block: the diagonal of D."""


def transposed(system: BlockSystem) -> BlockSystem:
    """The system of the transposed Jacobian: blocks in opposite order, C -> C', U <-> V'; the entries are the same."""
    last = len(system.sizes) - 1
    return BlockSystem(
        inputs=system.outputs,
        outputs=system.inputs,
        sizes=system.sizes[::-1],
        U={last - k: m.T for k, m in system.V.items()},
        C={(last - j, last - k): m.T for (k, j), m in system.C.items()},
        V={last - k: m.T for k, m in system.U.items()},
        V0=None if system.V0 is None else system.V0.T,
        names=system.names[::-1],
    )


def live_neurons(system: BlockSystem) -> list[Tensor]:
    """Per block the indices of neurons that the input reaches and that reach the output.

    The others never matter: a neuron without input has w constant, one without output multiplies zero.
    """
    device = _device(system)
    driven: list[Tensor] = []
    for k, size in enumerate(system.sizes):
        reached = torch.zeros(size, dtype=torch.bool, device=device)
        if k in system.U:
            reached |= (system.U[k] != 0).any(1)
        for j in range(k):
            if (k, j) in system.C:
                reached |= ((system.C[k, j] != 0) & driven[j]).any(1)
        driven.append(reached)
    live: list[Tensor] = [torch.empty(0)] * len(system.sizes)
    for j in reversed(range(len(system.sizes))):
        seen = torch.zeros(system.sizes[j], dtype=torch.bool, device=device)
        if j in system.V:
            seen |= (system.V[j] != 0).any(0)
        for k in range(j + 1, len(system.sizes)):
            if (k, j) in system.C:
                seen |= ((system.C[k, j] != 0) & live[k][:, None]).any(0)
        live[j] = seen & driven[j]
    return [mask.nonzero()[:, 0] for mask in live]


def restricted(system: BlockSystem, live: Sequence[Tensor]) -> BlockSystem:
    """The system of the chosen neurons; blocks without any disappear."""
    if all(len(chosen) == size for chosen, size in zip(live, system.sizes, strict=True)):
        return system
    kept = [k for k, chosen in enumerate(live) if len(chosen)]
    place = {k: position for position, k in enumerate(kept)}
    return BlockSystem(
        inputs=system.inputs,
        outputs=system.outputs,
        sizes=tuple(len(live[k]) for k in kept),
        U={place[k]: m[live[k]] for k, m in system.U.items() if k in place},
        C={
            (place[k], place[j]): m[live[k]][:, live[j]]
            for (k, j), m in system.C.items()
            if k in place and j in place
        },
        V={place[k]: m[:, live[k]] for k, m in system.V.items() if k in place},
        V0=system.V0,
        names=tuple(system.names[k] for k in kept),
    )


def narrowed(system: BlockSystem) -> BlockSystem:
    """At most as many inputs as rows of (U, V0), at most as many outputs as columns of (V, V0): a rotation of each side.

    Rounded, hence for the search alone.
    """
    direct = [] if system.V0 is None else [system.V0]
    rows = sum(m.shape[0] for m in [*system.U.values(), *direct])
    if 0 < rows < system.inputs:
        stacked = torch.cat([*system.U.values(), *direct])
        # (U, V0) = R'Q' with orthonormal columns of Q, and J J' only sees R'R.
        factor = torch.linalg.qr(stacked.T, mode="r").R.T
        parts = factor.split([m.shape[0] for m in [*system.U.values(), *direct]])
        system = replace(
            system,
            inputs=factor.shape[1],
            U=dict(zip(system.U, parts, strict=False)),
            V0=parts[-1] if direct else None,
        )
        direct = [parts[-1]] if direct else []
    columns = sum(m.shape[1] for m in [*system.V.values(), *direct])
    if 0 < columns < system.outputs:
        return transposed(narrowed(transposed(system)))
    return system


def scaled(system: BlockSystem, exponents: Sequence[int], output_exponent: int) -> BlockSystem:
    """The same Jacobian divided by 2^output_exponent, with block k measured in units of 2^exponents[k].

    Multipliers D of the scaled system are D 4^exponents[k] of the original one.
    """
    if not any(exponents) and not output_exponent:
        return system
    return replace(
        system,
        U={k: times_power(m, -exponents[k]) for k, m in system.U.items()},
        C={(k, j): times_power(m, exponents[j] - exponents[k]) for (k, j), m in system.C.items()},
        V={k: times_power(m, exponents[k] - output_exponent) for k, m in system.V.items()},
        V0=None if system.V0 is None else times_power(system.V0, -output_exponent),
    )


def times_power(matrix: Tensor, exponent: int) -> Tensor:
    """matrix 2^exponent: exact unless an entry becomes subnormal, where the error is below 2^-1074."""
    while abs(exponent) > 1000:
        step = 1000 if exponent > 0 else -1000
        matrix, exponent = matrix * 2.0**step, exponent - step
    return matrix * 2.0**exponent if exponent else matrix


def _device(system: BlockSystem) -> torch.device:
    for matrix in (*system.U.values(), *system.V.values(), *system.C.values()):
        return matrix.device
    return torch.device("cpu") if system.V0 is None else system.V0.device


@dataclass(frozen=True)
class Reduced:
    """A system ready for the search, and the way back for its multipliers."""

    original: BlockSystem
    system: BlockSystem
    live: tuple[Tensor, ...]
    """Of the original system."""
    flipped: bool
    exponents: tuple[int, ...]
    """Of the blocks of `system`."""
    output_exponent: int
    weighted: bool = False
    """Block 0 is the input with its own weights (see `linf`)."""

    def lift(self, d: Tensor, bound: float) -> tuple[Multipliers, tuple[int, ...]]:
        """Multipliers of the original system, and an exponent e of each block: the multiplier is value 4^e.

        A transposed system proves |J|^2 <= rho with D exactly when the original does with rho / D (congruence with
        diag(1, sqrt(rho) / D, 1)). Neurons without influence get 0.

        Args:
            d: [neurons of `system`]; bound: a value of rho for `system`.
        """
        parts = list(d.split(self.system.sizes))
        powers = list(self.exponents)
        if self.flipped:
            parts = [bound / part for part in parts[::-1]]
            powers = [self.output_exponent - e for e in powers[::-1]]
        values, exponents = [], []
        for chosen, size in zip(self.live, self.original.sizes, strict=True):
            whole = torch.zeros(size, dtype=torch.float64, device=d.device)
            exponent = 0
            if len(chosen):
                part, exponent = parts.pop(0), powers.pop(0)
                # Plain numbers wherever they exist: exponents are for nets beyond float64.
                if abs(exponent) < 400:
                    part, exponent = times_power(part, 2 * exponent), 0
                whole[chosen] = part
            values.append(whole)
            exponents.append(exponent)
        return tuple(values), tuple(exponents)


def reduce(system: BlockSystem) -> Reduced:
    """Without dead neurons, on the side that leaves the smaller border; not yet scaled (see `start.rescale`)."""
    live = live_neurons(system)
    small = narrowed(restricted(system, live))
    flipped = small.outputs > small.inputs
    if flipped:
        small = transposed(small)
    return Reduced(system, small, tuple(live), flipped, (0,) * len(small.sizes), 0)
