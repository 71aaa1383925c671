"""LipSDP on a block system, from the closed form to the optimum: what the analyzers call."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lipverify import memory
from lipverify.analyzers.lipsdp.bound import certified_upper, combination
from lipverify.analyzers.lipsdp.factor import Factor, Pencil, fill_pattern
from lipverify.analyzers.lipsdp.newton import Record, Tuning, search
from lipverify.analyzers.lipsdp.ordering import sparse_order
from lipverify.analyzers.lipsdp.reduction import Multipliers, Reduced, reduce
from lipverify.analyzers.lipsdp.start import SHARES, UNCERTIFIED, scalar_start
from lipverify.analyzers.lipsdp.system import Couplings
from lipverify.analyzers.protocol import Compute
from lipverify.deadline import within
from lipverify.errors import BudgetEnded, InternalError, Undecided, UnsupportedModel, UsageError
from lipverify.linalg.dense import operator_norm_upper
from lipverify.linalg.eigen import eigvalsh
from lipverify.linalg.rounding import Upper

# Shares of the closed-form multipliers that repair borderline ones, tried in this order.
_REPAIRS = (0.0, 1e-11, 1e-9, 1e-7, 1e-5, 1e-3, 1e-1, 1.0)
_DEEP = 24
_SEVERAL_STARTS = 3000
# Jamming is known from about ten blocks on; a small gap (of rho) rules it out.
_JAMMING, _OPEN = 8, 0.2
# From here on float32 halves the time of a step; steps below its tolerance need float64.
_SINGLE, _SINGLE_TOL, _LARGEST = 1000, 1e-3, 1e6


@dataclass(frozen=True)
class Settings:
    """How long and how hard to search; no setting touches the validity of a bound."""

    tol: float = 2e-5
    """Relative, on the square of the bound."""
    beta: float | None = None
    """Strength of the barrier; by default 0.3 up to 24 blocks, 2 for deeper systems."""
    shrink: float | None = None
    """Factor between stages; by default 0.3 up to 24 blocks, 0.5 for deeper systems."""
    probes: int | None = None
    """Random columns of the barrier; by default 0.6 of the widest block, at least 16."""
    hessian_probes: int = 16
    seed: int = 0
    max_iterations: int = 200
    restart: bool | None = None
    """Searches again with a stronger barrier; by default where the gap leaves room for a jammed search."""
    memory: int | None = None
    """Bytes the search may use; by default three quarters of what the device has."""


@dataclass(frozen=True)
class Solution:
    """Multipliers of the given system and the bound certified from them alone.

    `upper` is None when the bound is above the largest float64: `log10_upper` always holds (-inf for zero).
    """

    multipliers: Multipliers
    """D, one vector per block; 0 for neurons without influence. Each is to be multiplied by 4^exponent of its block."""
    exponents: tuple[int, ...]
    upper: float | None
    log10_upper: float
    trace: tuple[tuple[float, float], ...]
    """(seconds, bound): evaluated in float64 from the multipliers of that moment and raised by the relative excess of the
    certified value, which is the last entry. Moments whose bound is above the largest float64 are left out."""
    iterations: int
    gap: float | None
    """upper / (lower bound of the optimum of the program) - 1; None where none was computed."""
    message: str
    interrupted: bool = False
    least_seconds: float = 0.0
    """What start and certificate took: all of it without a search."""


def estimate(system: Couplings) -> tuple[int, float]:
    """Bytes that the search needs, and real multiplications of one Newton step; rough."""
    given = sum(m.numel() for m in (*system.U.values(), *system.C.values(), *system.V.values()))
    return estimate_of_shapes(system.sizes, fill_pattern(system), system.inputs, system.outputs, given)


def estimate_of_shapes(
    sizes: Sequence[int], later: Sequence[Sequence[int]], inputs: int, outputs: int, given: float
) -> tuple[int, float]:
    """`estimate` of blocks of these sizes, whose elimination touches `later` and whose couplings have `given` entries."""
    cells, work = 0.0, 0.0
    for size, touched in zip(sizes, later, strict=True):
        behind = sum(sizes[k] for k in touched)
        # The Gram or fill blocks, the Cholesky block and its solve, with one spare copy of the largest.
        cells += 2.0 * size * (size + behind)
        work += size**3 / 3 + size * behind * (size + behind)
    widest = max(sizes, default=0)
    rows = min(inputs, outputs) + default_probes(widest)
    cells += 2.0 * widest * widest + 8.0 * rows * sum(sizes) + given
    work += (22.0 * rows + 320.0) * (given + sum(float(size) * size for size in sizes))
    return int(8 * cells), 2.0 * work


def default_probes(widest: int) -> int:
    """Enough that no direction escapes the barrier; more than 128 gained nothing on the widest blocks measured."""
    return min(max(16, int(0.6 * widest)), 128)


def require_memory(system: Couplings, limit: int | None, device: torch.device) -> None:
    """Raises:
    UnsupportedModel: the search needs more memory than the limit, with both sizes.
    """
    needed, _ = estimate(system)
    available = available_memory(device) if limit is None else limit
    if needed > available:
        widest = max(range(len(system.sizes)), key=system.sizes.__getitem__)
        raise UnsupportedModel(
            f"LipSDP on {system.neurons} neurons (widest {system.sizes[widest]}, {system.names[widest]}) needs about "
            f"{needed / 1e9:.1f} GB but {available / 1e9:.1f} GB may be used; split the network or use a larger device"
        )


def available_memory(device: torch.device) -> int:
    """Three quarters of what is free on the device, in bytes."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free * 3 // 4
    return memory.free() * 3 // 4


def fast(
    system: Couplings, compute: Compute, memory: int | None = None, shares: tuple[float, ...] = SHARES
) -> Solution:
    """Closed-form multipliers D_j = share lmax(R_j) I, certified; the best share. `shares=(1.0,)` is ECLipsE-Fast itself.

    Statement, Source, Sound when: `bound.certified_upper`; the multipliers are those of `start.scalar_start`.

    Raises:
        UnsupportedModel: not enough memory.
        InternalError: the closed form could not be certified.
    """
    with torch.inference_mode():
        return Run(system, compute, memory, shares).finish(None)


def solve(system: Couplings, compute: Compute, settings: Settings | None = None) -> Solution:
    """Multipliers near the optimum of the program, at any moment the best so far.

    Statement, Source, Sound when: `bound.certified_upper`. The search (`newton.search`) starts from the closed form and
    stops at the tolerance, at the deadline of `compute`, or at an interrupt, which is recorded in the solution.

    Raises:
        UnsupportedModel: not enough memory.
        InternalError: not even the closed form could be certified.
    """
    chosen = settings or Settings()
    with torch.inference_mode():
        run = Run(system, compute, chosen.memory)
        return run.finish(chosen)


def seconds_for_proof(start: float, compute: Compute) -> float:
    """What a search leaves of its time: the proof takes up to three times as long as the start.

    Of a short time a quarter is searched in any case: a bound without search is worth little.
    """
    return min(3.0 * start, 0.75 * compute.remaining())


class Run:
    """One call of `solve` or `fast`: `begin`, perhaps `improve`, `certified`."""

    def __init__(
        self, system: Couplings, compute: Compute, memory: int | None, shares: tuple[float, ...] = SHARES
    ) -> None:
        self.system, self.compute, self.shares = system, compute, shares
        self.reduced: Reduced = reduce(system)
        require_memory(self.reduced.system, memory, system.device)
        if not all(bool(torch.isfinite(m).all()) for m in system.matrices):
            raise UsageError("a weight of the network is infinite or not a number: no bound exists")
        self.notes: list[str] = []
        self.interrupted = False

    def finish(self, settings: Settings | None) -> Solution:
        """All of it; without settings the closed form alone."""
        entered = time.monotonic()
        self.begin()
        ready = time.monotonic()
        if settings is not None:
            self.improve(settings)
        searched = time.monotonic()
        solution = self.certified()
        return replace(solution, least_seconds=ready - entered + time.monotonic() - searched)

    def begin(self, shares: bool = True) -> None:
        """The closed form, with its other shares too if asked; `start` stays None where no neuron has an influence."""
        self.record = record = Record(self.compute, 1.0)
        self.start: Factor | None = None
        if not self.reduced.system.sizes:
            return
        begun = time.monotonic()
        self.reduced, factor, y = scalar_start(self.reduced)
        record.report_scale = 2.0 ** min(self.reduced.output_exponent, 1000)
        record.reserve = seconds_for_proof(time.monotonic() - begun, self.compute)
        self.start, self.start_rho = factor, float(eigvalsh(y)[-1])
        record.offer(factor.d, self.start_rho, "lipsdp-fast")
        if shares:
            self._offer_closed_forms(factor, record)

    def improve(self, settings: Settings) -> None:
        """The search."""
        record = self.record
        if self.start is None or record.expired or not record.rho > 0.0:
            return
        try:
            self.topological = self.reduced.system
            self.start = self._ordered(self.start, record)
            if record.expired:
                return
            end = None if self.compute.deadline is None else self.compute.deadline - record.reserve
            with within(end):
                self._search(settings, self.start, record)
        except BudgetEnded:
            pass  # the record holds the best so far
        except KeyboardInterrupt:
            self.interrupt()

    def interrupt(self) -> None:
        """Says that the search was interrupted."""
        self.interrupted = True
        self.notes.append("interrupted: the best bound so far")

    def certified(self) -> Solution:
        """The smallest certified bound of what was found."""
        if self.start is None:
            return self._linear(self.record)
        return self._certify(self.start.d, self.record)

    def _offer_closed_forms(self, factor: Factor, record: Record) -> None:
        """The closed forms near the edge of the feasible set: kept when they are better, never the start of the search."""
        if sum(self.reduced.system.sizes) > _SEVERAL_STARTS:
            return  # each costs a factorisation
        for share in self.shares[1:]:
            with contextlib.suppress(InternalError):  # too close to the edge for float64
                found, other, y = scalar_start(self.reduced, share)
                same = (
                    found.exponents == self.reduced.exponents
                    and found.output_exponent == self.reduced.output_exponent
                )
                if same and other.d.shape == factor.d.shape:
                    record.offer(other.d, float(eigvalsh(y)[-1]), "lipsdp-fast")

    def _ordered(self, factor: Factor, record: Record) -> Factor:
        """Moves the neurons where another order makes factors sparse, of everything found so far too."""
        found = sparse_order(self.reduced.system)
        if found is None or self.reduced.weighted or record.d is None:
            return factor
        system, order = found
        self.topological = self.reduced.system
        self.reduced = replace(self.reduced, system=system, order=order, sizes=self.reduced.system.sizes)
        record.d = record.d[order]
        # Only its multipliers are needed from now on.
        return replace(factor, d=factor.d[order])

    def _search(self, settings: Settings, factor: Factor, record: Record) -> None:
        """In float32 first where matrices are large, then in float64; once more where the first search may have jammed."""
        plain = self.topological
        tuning = tuning_of(settings, plain)
        moderate = bool((factor.d.amax() < _LARGEST) & (factor.d.amin() > 1.0 / _LARGEST))
        if plain.neurons >= _SINGLE and len(plain.sizes) <= _DEEP and moderate:
            rough = Pencil(self.reduced.system, dtype=torch.float32)
            coarse = max(tuning.tol, _SINGLE_TOL)
            self._from(rough, factor.d, replace(tuning, tol=coarse), record)
            if record.expired or record.d is None:
                return
            exact = Pencil(self.reduced.system)
            best = exact.factor(record.d)
            if best is not None:
                record.restate(float(eigvalsh(best.output_form())[-1]))
            if coarse > tuning.tol and best is not None:
                self._from(exact, record.d, replace(tuning, first_smoothing=coarse), record)
        else:
            exact = factor.pencil if self.reduced.order is None else Pencil(self.reduced.system)
            self._from(exact, factor.d, tuning, record)
        doubtful = len(plain.sizes) >= _JAMMING and record.lower * (1.0 + _OPEN) < record.rho
        again = doubtful if settings.restart is None else settings.restart
        if record.expired or not again or record.d is None:
            return
        # A jammed search looks converged. Going back a little towards the closed form leaves the edge of the feasible set
        # (it is convex), and a stronger barrier takes another way from there.
        first = record.rho
        share = min(0.05, 0.2 * first / record.trace[0][1])
        (d,) = combination((record.d,), (factor.d,), share)
        stronger = replace(tuning, beta=4.0 * tuning.beta, seed=tuning.seed + 1, first_smoothing=0.05)
        coarse = max(tuning.tol, 1e-3)
        if not self._from(exact, d, replace(stronger, tol=coarse), record):
            return
        if record.rho < first * (1.0 - coarse) and coarse > tuning.tol:
            # The first search had jammed: this one goes on to the tolerance.
            self._from(exact, record.d, replace(stronger, first_smoothing=coarse), record)
        gain = math.sqrt(first / record.rho) - 1.0
        self.notes.append(
            f"a second search with barrier {stronger.beta:g} instead of {tuning.beta:g} lowered the bound by {gain:.1e}"
        )

    def _from(self, pencil: Pencil, d: Tensor, tuning: Tuning, record: Record) -> bool:
        """Whether d could be searched from."""
        factor = pencil.factor(d.to(pencil.dtype))
        if factor is None:
            return False
        y = factor.output_form().double()
        search(self.topological, factor, y, tuning, record, self.reduced.order)
        return True

    def _linear(self, record: Record) -> Solution:
        direct = self.system.V0
        upper = Upper.zero() if direct is None else operator_norm_upper(direct, "l2", "l2")
        zeros = tuple(
            torch.zeros(n, dtype=torch.float64, device=self.system.device) for n in self.system.sizes
        )
        return self._solution(
            zeros, (0,) * len(zeros), upper, record, "no neuron has an influence: the norm of the linear part"
        )

    def _certify(self, start: Tensor, record: Record) -> Solution:
        """The smallest certified bound: the best multipliers, repaired by a share of the closed form where borderline."""
        if record.d is None:
            raise InternalError("a search without multipliers")
        best: tuple[Upper, Multipliers, tuple[int, ...]] | None = None
        target = (
            record.rho * 4.0**self.reduced.output_exponent
            if abs(self.reduced.output_exponent) < 250
            else math.inf
        )
        goal = Upper.of(target).sqrt() * (1.0 + 1e-6) if target < math.inf else None
        for share in _REPAIRS:
            (d,) = combination((record.d,), (start,), share)
            multipliers, exponents = self.reduced.lift(d, record.rho * (1.0 + 1e-9))
            upper = certified_upper(self.system, multipliers, exponents)
            if upper is None:
                continue
            if best is None or upper < best[0]:
                best = (upper, multipliers, exponents)
            if goal is None or best[0] <= goal or share >= 1e-5:
                break
        if best is None:
            raise Undecided(UNCERTIFIED)
        upper, multipliers, exponents = best
        return self._solution(multipliers, exponents, upper, record, "; ".join(self.notes))

    def _solution(
        self, multipliers: Multipliers, exponents: tuple[int, ...], upper: Upper, record: Record, message: str
    ) -> Solution:
        seconds = time.monotonic() - record.started
        log10 = upper.log10() if upper else -math.inf
        gap = None
        shift = self.reduced.output_exponent * math.log10(2.0)
        logs = [(t, 0.5 * math.log10(rho) + shift) for t, rho in record.trace if rho > 0.0]
        excess = max(log10 - logs[-1][1], 0.0) if logs else 0.0
        trace = [(t, 10.0 ** (value + excess)) for t, value in logs if value < 300.0]
        if record.lower > 0.0 and upper:
            gap = 10.0 ** (log10 - shift - 0.5 * math.log10(record.lower)) - 1.0
        value: float | None = None
        with contextlib.suppress(OverflowError):
            value = float(upper)
            # Converting logarithms back rounds: the certified value is never above an earlier entry.
            trace = [(t, max(bound, value)) for t, bound in trace] + [(seconds, value)]
        return Solution(
            multipliers=multipliers,
            exponents=exponents,
            upper=value,
            log10_upper=log10,
            trace=tuple(trace),
            iterations=record.iterations,
            gap=gap,
            message=message,
            interrupted=self.interrupted,
        )


def tuning_of(settings: Settings, system: Couplings) -> Tuning:
    """The parameters of the search, with the defaults for this depth and width."""
    deep = len(system.sizes) > _DEEP
    return Tuning(
        tol=settings.tol,
        beta=settings.beta if settings.beta is not None else 2.0 if deep else 0.3,
        shrink=settings.shrink if settings.shrink is not None else 0.5 if deep else 0.3,
        probes=settings.probes if settings.probes is not None else default_probes(max(system.sizes)),
        hessian_probes=settings.hessian_probes,
        seed=settings.seed,
        max_iterations=settings.max_iterations,
    )
