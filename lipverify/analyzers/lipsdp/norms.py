"""Bounds of one block system in the norms LipSDP can answer: which searches a pair of norms needs, and what they share."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import torch

from lipverify.analyzers.lipsdp.batched import solve_many
from lipverify.analyzers.lipsdp.bound import certified_functionals
from lipverify.analyzers.lipsdp.evidence import Proof
from lipverify.analyzers.lipsdp.linf import LinfSolution, WeightedSearch
from lipverify.analyzers.lipsdp.solver import Settings, Solution, fast, solve
from lipverify.analyzers.lipsdp.system import BlockSystem, Couplings, one_output
from lipverify.analyzers.protocol import Compute
from lipverify.errors import UnsupportedModel
from lipverify.ir.norm import Norm
from lipverify.linalg.rounding import Upper

# The search of all outputs together only ranks the single ones.
_JOINT_TOL = 1e-2
_CLOSED = Settings(max_iterations=0)

System = TypeVar("System", bound=Couplings)


@dataclass(frozen=True)
class Answer:
    """A bound of one system. `upper` is None above the largest float64; `log10_upper` always holds (-inf for zero)."""

    upper: float | None
    log10_upper: float
    proofs: tuple[Proof, ...]
    """One for all outputs together, or several that together cover every output."""
    trace: tuple[tuple[float, float], ...]
    notes: tuple[str, ...]
    interrupted: bool
    least_seconds: float = 0.0
    """Without a search it would have taken so long; 0 where that is not known."""


def refuse_norms(norm_in: Norm, norm_out: Norm, outputs: int) -> str | None:
    """Why a pair of norms has no LipSDP answer, or None."""
    if norm_in is Norm.L1:
        return "measures inputs in l2 or linf: weights of the inputs gain nothing in l1; ask product or local"
    if norm_out is Norm.L1 and outputs > 1:
        return f"measures {outputs} outputs in l2 or linf, not in l1; ask product, or choose a margin"
    return None


def answer(
    system: Couplings, norm_in: Norm, norm_out: Norm, compute: Compute, settings: Settings | None
) -> Answer:
    """A certified bound from inputs in `norm_in` to outputs in `norm_out`; without settings the closed form alone.

    Statement: |y(x) - y(x')|_out <= upper |x - x'|_in for all x, x' and all slopes in [0, 1].
    Source: `solver.solve` and `linf.solve_linf`. Of a single output every norm is its absolute value. In linf the largest
        output counts: all outputs get a bound from the multipliers of one search, and those that may be the largest a
        search of their own, in the order of these bounds, until the largest bound is one of those.
    Sound when: as `bound.certified_upper` and `bound.certified_weighted`.

    Raises:
        UnsupportedModel: norms without an answer (`refuse_norms`), or not enough memory.
    """
    reason = refuse_norms(norm_in, norm_out, system.outputs)
    if reason is not None:
        raise UnsupportedModel(reason)
    if norm_out is not Norm.L2 and system.outputs > 1:
        rows = _rows(system, norm_in, compute, settings)
        rows.improve(compute.one_of(system.outputs))
        return rows.answer()
    if norm_in is Norm.L2:
        return euclidean(fast(system, compute) if settings is None else solve(system, compute, settings))
    found = WeightedSearch(_weighable(system), settings or _CLOSED).solve(compute)
    return _answer((_proof(found, None),), found.upper, found.trace, found.interrupted)


def answers(
    systems: Sequence[Couplings], norm_in: Norm, norm_out: Norm, compute: Compute, settings: Settings | None
) -> list[Answer]:
    """`answer` for several systems in their order: from l2 to l2 with a search for small ones together.

    Statement, Source, Sound when, Raises: `answer`, for every system by itself.
    """
    plain = norm_in is Norm.L2 and all(norm_out is Norm.L2 or s.outputs == 1 for s in systems)
    if plain and settings is not None:
        return [euclidean(found) for found in solve_many(systems, compute, settings)]
    found: list[Answer] = []
    for count, system in enumerate(systems):
        stopped = any(a.interrupted for a in found)
        share = time.monotonic() if stopped else compute.share(len(systems) - count)
        found.append(answer(system, norm_in, norm_out, replace(compute, deadline=share), settings))
    return found


def each_output(
    system: Couplings, norm_in: Norm, compute: Compute, settings: Settings | None
) -> tuple[Proof, ...]:
    """A certified bound of every single output, with what they share computed once; the budget is shared too.

    Statement, Source, Sound when: `answer` for one output after another.

    Raises:
        UnsupportedModel: as `answer`.
    """
    reason = refuse_norms(norm_in, Norm.LINF, system.outputs)
    if reason is not None:
        raise UnsupportedModel(reason)
    rows = _rows(system, norm_in, compute, settings)
    rows.improve(compute.one_of(system.outputs), every=True)
    return rows.each()


def differences(system: System, pairs: Sequence[tuple[int, int]]) -> System:
    """The system whose outputs are y_a - y_b for the given pairs of outputs."""
    first, second = ([pair[side] for pair in pairs] for side in (0, 1))
    return replace(
        system,
        outputs=len(pairs),
        V={k: matrix[first] - matrix[second] for k, matrix in system.V.items()},
        V0=None if system.V0 is None else system.V0[first] - system.V0[second],
    )


def _rows(system: Couplings, norm_in: Norm, compute: Compute, settings: Settings | None) -> _Rows:
    return (_weighted_rows if norm_in is Norm.LINF else _euclidean_rows)(system, compute, settings)


def _weighable(system: Couplings) -> BlockSystem:
    if not isinstance(system, BlockSystem):
        raise UnsupportedModel(
            "the weights of l_inf inputs are not searched for with implicit layers; ask in l2"
        )
    return system


def euclidean(found: Solution) -> Answer:
    """What one l2 search found."""
    proved = Upper.of(found.upper) if found.upper is not None else Upper.zero()
    proof = Proof(proved, None, found.multipliers, found.exponents)
    notes = (found.message,) if found.message else ()
    return Answer(
        found.upper, found.log10_upper, (proof,), found.trace, notes, found.interrupted, found.least_seconds
    )


def _euclidean_rows(system: Couplings, compute: Compute, settings: Settings | None) -> _Rows:
    started = time.monotonic()
    if settings is None:
        joint = fast(system, compute)
    else:
        share = replace(compute, deadline=compute.share(2))
        joint = solve(system, share, replace(settings, tol=max(settings.tol, _JOINT_TOL)))
    each = _eye(system)
    shared = certified_functionals(system, joint.multipliers, joint.exponents, each)

    def refine(row: int, share: Compute) -> tuple[Proof, bool]:
        found = solve(one_output(system, row), share, settings)
        return Proof(_within(found), (row,), found.multipliers, found.exponents), found.interrupted

    common = Proof(_within(joint), None, joint.multipliers, joint.exponents)
    return _Rows(
        common, shared, system.outputs, joint.interrupted, started, None if settings is None else refine
    )


def _eye(system: Couplings) -> torch.Tensor:
    return torch.eye(system.outputs, dtype=torch.float64, device=system.device)


def _within(found: Solution) -> Upper:
    if found.upper is None:
        raise UnsupportedModel(f"the bound is about 10^{math.ceil(found.log10_upper)}, beyond float64")
    return Upper.of(found.upper)


def _weighted_rows(system: Couplings, compute: Compute, settings: Settings | None) -> _Rows:
    started = time.monotonic()
    chosen = settings or _CLOSED
    search = WeightedSearch(_weighable(system), chosen)
    joint = WeightedSearch(_weighable(system), replace(chosen, tol=max(chosen.tol, _JOINT_TOL))).solve(
        replace(compute, deadline=compute.share(2))
    )

    def refine(row: int, share: Compute) -> tuple[Proof, bool]:
        found = search.solve(share, row)
        return _proof(found, (row,)), found.interrupted

    return _Rows(
        _proof(joint, None),
        search.rows(joint),
        system.outputs,
        joint.interrupted,
        started,
        None if settings is None else refine,
    )


def _proof(found: LinfSolution, outputs: tuple[int, ...] | None) -> Proof:
    return Proof(
        found.upper, outputs, found.multipliers, found.exponents[1:], found.weights, found.exponents[0]
    )


class _Rows:
    """Bounds of single outputs, improved where the largest may be."""

    def __init__(
        self,
        common: Proof,
        shared: list[Upper] | None,
        count: int,
        interrupted: bool,
        started: float,
        refine: Callable[[int, Compute], tuple[Proof, bool]] | None,
    ) -> None:
        # The bound of all outputs in l2 holds for every one of them.
        self.bounds = [common.upper] * count if shared is None else [min(b, common.upper) for b in shared]
        self.common, self.interrupted, self.started, self.refine = common, interrupted, started, refine
        self.tried: set[int] = set()
        self.single: dict[int, Proof] = {}
        self.trace = [(time.monotonic() - started, Upper.largest(self.bounds))]

    def improve(self, compute: Compute, every: bool = False) -> None:
        """Searches for the largest output of its own, again and again until it stays the largest; for all with `every`."""
        while self.refine is not None and not self.interrupted and compute.remaining() > 0.0:
            waiting = [row for row in range(len(self.bounds)) if row not in self.tried and self.bounds[row]]
            if not waiting:
                break
            worst = max(waiting, key=self.bounds.__getitem__)
            settled = Upper.largest(self.bounds[row] for row in self.tried)
            if not every and self.bounds[worst] <= settled:
                break
            left = len(waiting) if every else sum(self.bounds[row] > settled for row in waiting)
            proof, self.interrupted = self.refine(worst, replace(compute, deadline=compute.share(left)))
            self.tried.add(worst)
            if proof.upper < self.bounds[worst]:
                self.bounds[worst], self.single[worst] = proof.upper, proof
            self.trace.append((time.monotonic() - self.started, Upper.largest(self.bounds)))

    def answer(self) -> Answer:
        """The bound of the largest output."""
        rest = [row for row in range(len(self.bounds)) if row not in self.single]
        proofs = list(self.single.values())
        if rest:
            upper = Upper.largest(self.bounds[row] for row in rest)
            proofs.append(replace(self.common, upper=upper, outputs=tuple(rest)))
        return _answer(tuple(proofs), Upper.largest(self.bounds), tuple(self.trace), self.interrupted)

    def each(self) -> tuple[Proof, ...]:
        """One proof for every output."""
        return tuple(
            self.single.get(row, replace(self.common, upper=bound, outputs=(row,)))
            for row, bound in enumerate(self.bounds)
        )


def _answer(
    proofs: tuple[Proof, ...], upper: Upper, trace: tuple[tuple[float, Upper], ...], interrupted: bool
) -> Answer:
    try:
        value = float(upper)
    except OverflowError:
        raise UnsupportedModel(f"the bound is about 10^{math.ceil(upper.log10())}, beyond float64") from None
    log10 = upper.log10() if upper else -math.inf
    notes = ("interrupted: the best bound so far",) if interrupted else ()
    history = tuple((t, float(bound)) for t, bound in trace if bound.log10() < 300) if upper else ()
    return Answer(value, log10, proofs, history, notes, interrupted)
