"""LipSDP on many block systems: small ones are searched together, the others one after another."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch

from lipverify.analyzers.lipsdp.padding import Stack
from lipverify.analyzers.lipsdp.solver import (
    Run,
    Settings,
    Solution,
    available_memory,
    default_probes,
    seconds_for_proof,
    solve,
    tuning_of,
)
from lipverify.analyzers.lipsdp.stacked import Found, improve
from lipverify.analyzers.lipsdp.start import SHARES
from lipverify.analyzers.lipsdp.system import BlockSystem, Couplings
from lipverify.analyzers.protocol import Compute

# Beyond, arithmetic takes the time and not the calls around it (measured on a processor: 1.1 times faster with 160 neurons,
# slower from 200); deeper systems may jam, which only the single search notices.
_NEURONS, _BLOCKS = 128, 7
# Padding may at most double the entries of the matrices.
_WASTE = 2.0
# Matrices of a group stay in the cache of a processor; a device for many threads takes what its memory holds.
_ENTRIES = 1 << 18


def pays(system: Couplings) -> bool:
    """Whether a system is small and shallow enough to be searched together with others."""
    return (
        isinstance(system, BlockSystem)
        and max(system.neurons, min(system.inputs, system.outputs)) <= _NEURONS
        and len(system.sizes) <= _BLOCKS
    )


def solve_many(
    systems: Sequence[Couplings], compute: Compute, settings: Settings | None = None
) -> list[Solution]:
    """`solver.solve` for each of them, in their order; what is left of the budget is shared evenly.

    Statement, Source, Sound when: `bound.certified_upper`, of every system by itself with its own multipliers. Small systems
        take their steps together (`stacked.improve`), padded with neurons that nothing reaches; one whose search did not come
        to its tolerance is searched again alone.

    Raises:
        UnsupportedModel, InternalError, UsageError: as `solve`, for any of them.
    """
    chosen = settings or Settings()
    solutions: list[Solution | None] = [None] * len(systems)
    small = [k for k, system in enumerate(systems) if pays(system)] if chosen.restart is not True else []
    small = small if len(small) > 1 else []
    stopped = False
    if small:
        deadline = deadline_of(compute, len(small), len(systems))
        members = [systems[k] for k in small]
        with torch.inference_mode():
            found = _Together(members, replace(compute, deadline=deadline), chosen).solutions()
        for k, solution in zip(small, found, strict=True):
            solutions[k] = solution
            stopped = stopped or solution.interrupted
    for k, system in enumerate(systems):
        if solutions[k] is None:
            left = sum(solution is None for solution in solutions)
            share = time.monotonic() if stopped else compute.share(left)
            solution = solve(system, replace(compute, deadline=share), chosen)
            solutions[k], stopped = solution, stopped or solution.interrupted
    return [solution for solution in solutions if solution is not None]


def deadline_of(compute: Compute, part: int, whole: int) -> float | None:
    """The deadline of `part` of `whole` equal pieces of what is left."""
    return None if compute.deadline is None else time.monotonic() + compute.remaining() * part / whole


class _Together:
    """One call of `solve_many` for its small systems."""

    def __init__(self, systems: Sequence[Couplings], compute: Compute, settings: Settings) -> None:
        self.compute, self.settings = compute, settings
        self.runs = [Run(system, compute, settings.memory) for system in systems]
        begun = time.monotonic()
        for run in self.runs:
            run.begin(shares=False)
        # As in a single run, for all proofs together.
        self.reserve = seconds_for_proof(time.monotonic() - begun, compute)

    @property
    def expired(self) -> bool:
        return self.compute.remaining() <= self.reserve

    def _stopped(self) -> bool:
        return self.expired or any(run.interrupted for run in self.runs)

    def solutions(self) -> list[Solution]:
        waiting = [run for run in self.runs if run.start is not None and run.record.rho > 0.0]
        unfinished: list[Run] = []
        for group in _groups(waiting, self.settings):
            unfinished += self._search(group)
        for count, run in enumerate(unfinished):
            if self._stopped():
                break
            share = (self.compute.remaining() - self.reserve) / (len(unfinished) - count)
            deadline = None if self.compute.deadline is None else time.monotonic() + share
            run.record.compute, run.record.reserve = replace(self.compute, deadline=deadline), 0.0
            run.improve(self.settings)
        return [run.certified() for run in self.runs]

    def _search(self, runs: list[Run]) -> list[Run]:
        """Those of them whose search did not come to its tolerance."""
        starts = [start for start in (run.start for run in runs) if start is not None]
        stack = Stack.of(starts, [run.start_rho for run in runs])
        found = Found.start(stack)
        widest = max((run.reduced.system for run in runs), key=lambda system: max(system.sizes))
        stages = [("lipsdp-fast", *stack.closed_form(share)) for share in SHARES[1:]]
        try:
            improve(stack, found, tuning_of(self.settings, widest), self._stopped)
        except KeyboardInterrupt:
            for run in runs:
                run.interrupt()
        stages.append(("lipsdp together", found.d, found.rho))
        for row, (run, start) in enumerate(zip(runs, starts, strict=True)):
            run.record.iterations += found.iterations
            for stage, d, rho in stages:
                scaled = stack.without_padding(row, d, start.pencil.sizes)
                run.record.offer(start.d * scaled, float(rho[row]) * run.start_rho, stage)
        finished: list[bool] = found.converged.tolist()
        return [run for run, done in zip(runs, finished, strict=True) if not done and not run.interrupted]


def _groups(runs: list[Run], settings: Settings) -> Iterator[list[Run]]:
    """Systems of equal outputs and similar size, as many as fit."""

    def outputs(run: Run) -> int:
        return run.reduced.system.outputs

    def neurons(run: Run) -> int:
        return run.reduced.system.neurons

    ordered = sorted(runs, key=lambda run: (outputs(run), neurons(run)))
    for _, alike in itertools.groupby(ordered, key=outputs):
        group: list[Run] = []
        padded: list[int] = []
        entries = 0
        for run in alike:
            sizes = run.reduced.system.sizes
            wider = [max(pair) for pair in itertools.zip_longest(padded, sizes, fillvalue=0)]
            count, size = len(group) + 1, sum(wider) ** 2
            own = neurons(run) ** 2
            if group and (count * size > _WASTE * (entries + own) or count > _most(run, settings)):
                yield group
                group, wider, entries = [], list(sizes), 0
            group.append(run)
            padded, entries = wider, entries + own
        if group:
            yield group


def _most(run: Run, settings: Settings) -> int:
    """How many systems of this size one search holds."""
    system = run.reduced.system
    if system.device.type != "cuda":
        return max(_ENTRIES // system.neurons**2, 8)
    limit = available_memory(system.device) if settings.memory is None else settings.memory
    rows = system.outputs + default_probes(max(system.sizes))
    # About a dozen matrices and two dozen rectangles live at once.
    return max(limit // (8 * (16 * system.neurons**2 + 24 * rows * system.neurons)), 1)
