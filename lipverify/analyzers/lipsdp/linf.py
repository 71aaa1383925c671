"""LipSDP for inputs measured in l_inf: one weight per input joins the multipliers."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace
from fractions import Fraction

import torch
from torch import Tensor

from lipverify.analyzers.lipsdp.bound import (
    certified_weighted,
    certified_weighted_functionals,
    combination,
)
from lipverify.analyzers.lipsdp.factor import Factor, Pencil
from lipverify.analyzers.lipsdp.newton import Record, search
from lipverify.analyzers.lipsdp.reduction import Multipliers, Reduced, live_neurons, restricted
from lipverify.analyzers.lipsdp.solver import Settings, require_memory, tuning_of
from lipverify.analyzers.lipsdp.start import UNCERTIFIED, scalar_start
from lipverify.analyzers.lipsdp.system import BlockSystem, one_output
from lipverify.analyzers.protocol import Compute, keeping_best
from lipverify.errors import InternalError, Undecided, UsageError
from lipverify.linalg.eigen import eigvalsh
from lipverify.linalg.rounding import Upper

_REPAIRS = (0.0, 1e-11, 1e-9, 1e-7, 1e-5, 1e-3, 1e-1, 1.0)
# A neighbour's multipliers lie near the edge of the feasible set, which is the same for every output: a little of the closed
# form leads back inside. They are nearly right, so that the first stages of the smoothing are left out.
_INWARD, _WARM_SMOOTHING = 0.05, 0.1


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
    trace: tuple[tuple[float, Upper], ...] = ()
    """(seconds, bound), evaluated in float64 and raised by the relative excess of the certified value, its last entry."""


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
    if row is not None and not 0 <= row < system.outputs:
        raise UsageError(f"there is no output {row}: the network has {system.outputs}")
    chosen = system if row is None else one_output(system, row)
    return WeightedSearch(chosen, settings).solve(compute)


class WeightedSearch:
    """The searches of one system with weighted inputs: all outputs together, and single ones from each other's multipliers."""

    def __init__(self, system: BlockSystem, settings: Settings | None = None) -> None:
        self.original, self.settings = system, settings or Settings()
        self.live = live_neurons(system)
        small = restricted(system, self.live)
        self.used = _used_inputs(small)
        if not len(self.used):
            return
        self.extended = _with_input_block(small, self.used)
        require_memory(self.extended, self.settings.memory, self.used.device)
        everything = tuple(torch.arange(n, device=self.used.device) for n in self.extended.sizes)
        begun = time.monotonic()
        given = Reduced(
            self.extended, self.extended, everything, False, (0,) * len(everything), 0, weighted=True
        )
        with torch.inference_mode():
            self.reduced, self.factor, self.y = scalar_start(given)
        self.reserve = 2.0 * (time.monotonic() - begun)
        self._latest: Tensor | None = None

    def solve(self, compute: Compute, row: int | None = None) -> LinfSolution:
        """The bound of all outputs in l2, or of one, beginning at the multipliers of the search before."""
        with torch.inference_mode():
            return self._solve(compute, row)

    def _solve(self, compute: Compute, row: int | None) -> LinfSolution:
        record = Record(compute, 1.0)
        if not len(self.used):
            sizes = (self.original.inputs, *self.original.sizes)
            zeros = tuple(torch.zeros(n, dtype=torch.float64) for n in sizes)
            return LinfSolution(zeros[0], zeros[1:], (0,) * len(zeros), Upper.zero(), 0)
        reduced, factor, y = self.reduced, self.factor, self.y
        if row is not None:
            reduced = replace(
                reduced, original=one_output(reduced.original, row), system=one_output(reduced.system, row)
            )
            # A(D) does not know the outputs: only the border is another one.
            factor = Factor(Pencil(reduced.system, True), factor.d, factor.chol, factor.cross)
            y = factor.output_form()
        record.reserve = self.reserve
        record.report_scale = 2.0 ** min(reduced.output_exponent, 1000)
        self._offer(record, factor, y, "lipsdp-fast")
        with keeping_best() as interruption:
            if self.settings.max_iterations and not record.expired and record.rho > 0.0:
                self._search(reduced, factor, y, record)
        upper, parts, exponents = _certify(reduced, factor.d, record)
        self._latest = record.d
        return self._solution(upper, parts, exponents, record, interruption.happened)

    def _search(self, reduced: Reduced, factor: Factor, y: Tensor, record: Record) -> None:
        # Small weights converge late: a tenth of the tolerance brings the bound within it.
        tuning = replace(tuning_of(self.settings, reduced.system), tol=0.1 * self.settings.tol)
        if self._latest is not None:
            (d,) = combination((self._latest,), (factor.d,), _INWARD)
            nearby = factor.pencil.factor(d)
            if nearby is not None:
                factor, y = nearby, nearby.output_form()
                self._offer(record, factor, y, "lipsdp from a neighbour")
                tuning = replace(tuning, first_smoothing=_WARM_SMOOTHING)
        search(reduced.system, factor, y, tuning, record)

    def _offer(self, record: Record, factor: Factor, y: Tensor, stage: str) -> None:
        price = float((1.0 / factor.d[: len(self.used)]).sum())
        record.offer(factor.d, float(eigvalsh(y)[-1]) * price, stage)

    def rows(self, found: LinfSolution) -> list[Upper] | None:
        """A certified bound of every output alone, from the multipliers of one solution; None where nothing is proved."""
        count = self.original.outputs
        if not len(self.used):
            return [Upper.zero()] * count
        parts = [found.weights[self.used]]
        powers = [found.exponents[0]]
        for chosen, values, power in zip(self.live, found.multipliers, found.exponents[1:], strict=True):
            if len(chosen):
                parts.append(values[chosen])
                powers.append(power)
        each = torch.eye(count, dtype=torch.float64, device=self.used.device)
        with torch.inference_mode():
            proved = certified_weighted_functionals(self.extended, parts, powers, each)
        price = _price(parts[0], powers[0]).sqrt()
        return None if proved is None else [bound * price for bound in proved]

    def _solution(
        self,
        upper: Upper,
        parts: Multipliers,
        exponents: tuple[int, ...],
        record: Record,
        interrupted: bool,
    ) -> LinfSolution:
        """The parts at their places among all inputs and neurons; those that were left out get 0."""
        weights = torch.zeros(self.original.inputs, dtype=torch.float64, device=self.used.device)
        weights[self.used] = parts[0]
        multipliers, powers = [], [exponents[0]]
        place = 1
        for chosen, size in zip(self.live, self.original.sizes, strict=True):
            whole = torch.zeros(size, dtype=torch.float64, device=self.used.device)
            if len(chosen):
                whole[chosen] = parts[place]
            powers.append(exponents[place] if len(chosen) else 0)
            place += bool(len(chosen))
            multipliers.append(whole)
        # Relative to the last entry the trace needs no scale; float64 values are raised to the certified one.
        trace = [
            (t, upper * max(math.sqrt(rho / record.rho), 1.0)) for t, rho in record.trace if record.rho > 0.0
        ]
        trace.append((time.monotonic() - record.started, upper))
        return LinfSolution(
            weights, tuple(multipliers), tuple(powers), upper, record.iterations, interrupted, tuple(trace)
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


def _certify(reduced: Reduced, start: Tensor, record: Record) -> tuple[Upper, Multipliers, tuple[int, ...]]:
    if record.d is None or not math.isfinite(record.rho):
        raise InternalError("a search without multipliers")
    for share in _REPAIRS:
        (d,) = combination((record.d,), (start,), share)
        parts, exponents = reduced.lift(d, record.rho)
        proved = certified_weighted(reduced.original, parts, exponents)
        if proved is not None:
            return proved * _price(parts[0], exponents[0]).sqrt(), parts, exponents
    raise Undecided(UNCERTIFIED)


def _price(weights: Tensor, exponent: int) -> Upper:
    """sum_a 1 / weight_a, rounded up."""
    total = Upper.zero()
    for weight in weights.tolist():
        total = total + Upper.of(1 / Fraction(weight))
    return total.scale(-2 * exponent)
