"""LipSDP for inputs measured in l_inf: one weight per input joins the multipliers."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace
from fractions import Fraction

import torch
from torch import Tensor

from lipverify.analyzers.lipsdp.bound import certified_weighted, combination
from lipverify.analyzers.lipsdp.newton import Record, search
from lipverify.analyzers.lipsdp.reduction import Multipliers, Reduced, live_neurons, restricted
from lipverify.analyzers.lipsdp.solver import Settings, require_memory, tuning_of
from lipverify.analyzers.lipsdp.start import scalar_start
from lipverify.analyzers.lipsdp.system import BlockSystem
from lipverify.analyzers.protocol import Compute
from lipverify.errors import InternalError, UsageError
from lipverify.linalg.rounding import Upper

_REPAIRS = (0.0, 1e-11, 1e-9, 1e-7, 1e-5, 1e-3, 1e-1, 1.0)


@dataclass(frozen=True)
class LinfSolution:
    """Weights and multipliers with the bound certified from them alone."""

    weights: Tensor
    """[inputs]: the squares s^2 of the input scales, 0 for inputs without influence; times 4^exponents[0]."""
    multipliers: Multipliers
    """One vector per block, 0 for neurons without influence; times 4^exponents[k + 1]."""
    exponents: tuple[int, ...]
    upper: Upper
    iterations: int
    interrupted: bool = False


def solve_linf(
    system: BlockSystem, compute: Compute, row: int | None = None, settings: Settings | None = None
) -> LinfSolution:
    """A bound from l_inf inputs to one output (its absolute value), or to all outputs in l2 when `row` is None.

    Statement: |y_row(x) - y_row(x')| <= upper max_a |x_a - x'_a| for all x, x' and all slopes in [0, 1].
    Source: design of Fazlyab et al. 2019 with a diagonal input metric. If |J diag(s)|_2^2 <= rho for every admissible
        Jacobian, then |J dx|_2^2 <= rho sum_a dx_a^2 / s_a^2 <= rho (sum_a 1 / s_a^2) |dx|_inf^2. Both the squares s^2 and D
        are searched for: rho(s^2, D) sum_a 1 / s_a^2 is invariant under common scaling and log-convex in the weights'
        share. For one output its minimum over s at fixed J is (sum_a |J_a|)^2, the dual norm of the gradient, so that
        nothing is lost by the form of the weights. In terms of tau_a = rho / s_a^2 this is: minimise sum tau subject to
        diag(tau) >= Q_0, as the scalar-output l_inf program of Wang et al. (arXiv 2203.01212) after eliminating its slack.
    Sound when: `bound.certified_weighted`; the sum of 1 / s^2 is exact and rounded up.

    Raises:
        UsageError: no such row.
        UnsupportedModel: not enough memory.
    """
    chosen = settings or Settings()
    with torch.inference_mode():
        return _solve(_selected(system, row), compute, chosen)


def _selected(system: BlockSystem, row: int | None) -> BlockSystem:
    if row is None:
        return system
    if not 0 <= row < system.outputs:
        raise UsageError(f"there is no output {row}: the network has {system.outputs}")
    return BlockSystem(
        inputs=system.inputs,
        outputs=1,
        sizes=system.sizes,
        U=system.U,
        C=system.C,
        V={k: m[row : row + 1] for k, m in system.V.items()},
        V0=None if system.V0 is None else system.V0[row : row + 1],
        names=system.names,
    )


def _with_input_block(system: BlockSystem, used: Tensor) -> BlockSystem:
    """The used inputs as block 0, feeding the others through U and the output through V0."""
    values = {k + 1: m for k, m in system.V.items()}
    if system.V0 is not None:
        values[0] = system.V0[:, used]
    couplings = {(k + 1, j + 1): m for (k, j), m in system.C.items()}
    couplings |= {(k + 1, 0): m[:, used] for k, m in system.U.items()}
    return BlockSystem(
        inputs=0,
        outputs=system.outputs,
        sizes=(len(used), *system.sizes),
        U={},
        C=couplings,
        V=values,
        V0=None,
        names=("input", *system.names),
    )


def _used_inputs(system: BlockSystem) -> Tensor:
    matrices = [*system.U.values()] + ([] if system.V0 is None else [system.V0])
    if not matrices:
        return torch.zeros(0, dtype=torch.int64)
    touched = torch.stack([(m != 0).any(0) for m in matrices]).any(0)
    return touched.nonzero()[:, 0]


def _solve(system: BlockSystem, compute: Compute, settings: Settings) -> LinfSolution:
    live = live_neurons(system)
    small = restricted(system, live)
    used = _used_inputs(small)
    record, interrupted = Record(compute, 1.0), False
    if not len(used):
        zeros = tuple(torch.zeros(n, dtype=torch.float64) for n in (system.inputs, *system.sizes))
        return LinfSolution(zeros[0], zeros[1:], (0,) * len(zeros), Upper.zero(), 0)
    extended = _with_input_block(small, used)
    require_memory(extended, settings.memory, used.device)
    everything = tuple(torch.arange(n, device=used.device) for n in extended.sizes)
    begun = time.monotonic()
    reduced, factor, y = scalar_start(
        Reduced(extended, extended, everything, False, (0,) * len(extended.sizes), 0, weighted=True)
    )
    record.reserve = 2.0 * (time.monotonic() - begun)
    record.report_scale = 2.0 ** min(reduced.output_exponent, 1000)
    price = float((1.0 / factor.d[: len(used)]).sum())
    record.offer(factor.d, float(torch.linalg.eigvalsh(y)[-1]) * price, "lipsdp-fast")
    try:
        if not record.expired and record.rho > 0.0:
            # Small weights converge late: a tenth of the tolerance brings the bound within it.
            tuning = replace(tuning_of(settings, reduced.system), tol=0.1 * settings.tol)
            search(reduced.system, factor, y, tuning, record)
    except KeyboardInterrupt:
        interrupted = True
    upper, parts, exponents = _certify(reduced, factor.d, record)
    weights = torch.zeros(system.inputs, dtype=torch.float64, device=used.device)
    weights[used] = parts[0]
    # Neurons that `restricted` removed get 0 again.
    multipliers, powers = [], [exponents[0]]
    place = 1
    for chosen, size in zip(live, system.sizes, strict=True):
        whole = torch.zeros(size, dtype=torch.float64, device=used.device)
        if len(chosen):
            whole[chosen] = parts[place]
        powers.append(exponents[place] if len(chosen) else 0)
        place += bool(len(chosen))
        multipliers.append(whole)
    return LinfSolution(weights, tuple(multipliers), tuple(powers), upper, record.iterations, interrupted)


def _certify(reduced: Reduced, start: Tensor, record: Record) -> tuple[Upper, Multipliers, tuple[int, ...]]:
    if record.d is None or not math.isfinite(record.rho):
        raise InternalError("a search without multipliers")
    for share in _REPAIRS:
        (d,) = combination((record.d,), (start,), share)
        parts, exponents = reduced.lift(d, record.rho)
        proved = certified_weighted(reduced.original, parts, exponents)
        if proved is not None:
            return proved * _price(parts[0], exponents[0]).sqrt(), parts, exponents
    raise InternalError("no multipliers of the search could be certified")


def _price(weights: Tensor, exponent: int) -> Upper:
    """sum_a 1 / weight_a, rounded up."""
    total = Upper.zero()
    for weight in weights.tolist():
        total = total + Upper.of(1 / Fraction(weight))
    return total.scale(-2 * exponent)
