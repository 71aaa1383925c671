"""Exact rewritings of a block system before it is optimised: dead neurons, orientation, block scaling.

Only the search works on the rewritten system; `bound.certified_upper` goes back to the original one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lipverify.analyzers.lipsdp.system import Couplings, System

Multipliers = tuple[Tensor, ...]
"""One positive float64 vector per block: the diagonal of D."""


def transposed(system: System) -> System:
    """The system of the transposed Jacobian: blocks in opposite order, C -> C', U <-> V'; the entries are the same."""
    last = len(system.sizes) - 1
    return replace(
        system,
        inputs=system.outputs,
        outputs=system.inputs,
        sizes=system.sizes[::-1],
        U={last - k: m.T for k, m in system.V.items()},
        C={(last - j, last - k): m.T for (k, j), m in system.C.items()},
        V={last - k: m.T for k, m in system.U.items()},
        V0=None if system.V0 is None else system.V0.T,
        names=system.names[::-1],
    )


def live_neurons(system: Couplings) -> list[Tensor]:
    """Per block the indices of neurons that the input reaches and that reach the output.

    The others never matter: a neuron without input has w constant, one without output multiplies zero.
    """
    none = [torch.zeros(size, dtype=torch.bool, device=system.device) for size in system.sizes]
    touched = {key: m != 0 for key, m in system.C.items()}
    driven = [(system.U[k] != 0).any(1) if k in system.U else mask for k, mask in enumerate(none)]
    seen = [(system.V[k] != 0).any(0) if k in system.V else mask for k, mask in enumerate(none)]
    # Blocks in topological order need one pass; loops are followed until nothing changes.
    repeat = any(j >= k for k, j in system.C)
    while True:
        before = sum(int(mask.sum()) for mask in (*driven, *seen))
        for k, j in sorted(touched):
            driven[k] = driven[k] | (touched[k, j] & driven[j]).any(1)
        for k, j in sorted(touched, key=lambda key: (-key[1], -key[0])):
            seen[j] = seen[j] | (touched[k, j] & seen[k][:, None]).any(0)
        if not repeat or sum(int(mask.sum()) for mask in (*driven, *seen)) == before:
            break
    return [(a & b).nonzero()[:, 0] for a, b in zip(driven, seen, strict=True)]


def restricted(system: System, live: Sequence[Tensor]) -> System:
    """The system of the chosen neurons; blocks without any disappear."""
    if all(len(chosen) == size for chosen, size in zip(live, system.sizes, strict=True)):
        return system
    kept = [k for k, chosen in enumerate(live) if len(chosen)]
    place = {k: position for position, k in enumerate(kept)}
    return replace(
        system,
        sizes=tuple(len(live[k]) for k in kept),
        U={place[k]: m[live[k]] for k, m in system.U.items() if k in place},
        C={
            (place[k], place[j]): m[live[k]][:, live[j]]
            for (k, j), m in system.C.items()
            if k in place and j in place
        },
        V={place[k]: m[:, live[k]] for k, m in system.V.items() if k in place},
        names=tuple(system.names[k] for k in kept),
    )


def narrowed(system: System) -> System:
    """At most as many outputs as columns of (V, V0): a rotation of the output side. Rounded, hence for the search alone."""
    direct = [] if system.V0 is None else [system.V0]
    matrices = [*system.V.values(), *direct]
    widths = [m.shape[1] for m in matrices]
    if not 0 < sum(widths) < system.outputs:
        return system
    # (V, V0) = Q R with orthonormal columns of Q, and J'J only sees R'R.
    parts = torch.linalg.qr(torch.cat(matrices, 1), mode="r").R.split(widths, dim=1)
    return replace(
        system,
        outputs=parts[0].shape[0],
        V=dict(zip(system.V, parts, strict=False)),
        V0=parts[-1] if direct else None,
    )


def _side(full: int, matrices: Iterable[Tensor | None], axis: int) -> int:
    """The dimension of one side after `narrowed`."""
    return min(full, sum(m.shape[axis] for m in matrices if m is not None) or full)


def scaled(system: System, exponents: Sequence[int], output_exponent: int) -> System:
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


@dataclass(frozen=True)
class Reduced:
    """A system ready for the search, and the way back for its multipliers."""

    original: Couplings
    system: Couplings
    live: tuple[Tensor, ...]
    """Of the original system."""
    flipped: bool
    exponents: tuple[int, ...]
    """Of the blocks of `system`."""
    output_exponent: int
    weighted: bool = False
    """Block 0 is the input with its own weights (see `linf`)."""
    order: Tensor | None = None
    """Where every neuron of `system` stood before `ordering` moved it."""
    sizes: tuple[int, ...] | None = None
    """The blocks before `ordering`."""

    def lift(self, d: Tensor, bound: float) -> tuple[Multipliers, tuple[int, ...]]:
        """Multipliers of the original system, and an exponent e of each block: the multiplier is value 4^e.

        A transposed system proves |J|^2 <= rho with D exactly when the original does with rho / D (congruence with
        diag(1, sqrt(rho) / D, 1)). Neurons without influence get 0.

        Args:
            d: [neurons of `system`]; bound: a value of rho for `system`.
        """
        if self.order is not None:
            d = torch.empty_like(d).index_copy_(0, self.order, d)
        parts = list(d.split(self.sizes or self.system.sizes))
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


def reduce(system: Couplings) -> Reduced:
    """Without dead neurons, on the side that leaves the smaller border; not yet scaled (see `start.rescale`)."""
    live = live_neurons(system)
    small = restricted(system, live)
    inputs = _side(small.inputs, (*small.U.values(), small.V0), 0)
    flipped = _side(small.outputs, (*small.V.values(), small.V0), 1) > inputs
    # The input side is not rotated: that would cost its sparsity.
    small = narrowed(transposed(small) if flipped else small)
    return Reduced(system, small, tuple(live), flipped, (0,) * len(small.sizes), 0)
