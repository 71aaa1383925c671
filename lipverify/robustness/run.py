"""Runs over points: one after another, or in a pool of processes; with a journal, the ones already done are not repeated."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lipverify.analyzers.protocol import Compute, Report, silent
from lipverify.errors import InternalError, UsageError
from lipverify.ir.graph import Graph
from lipverify.ir.norm import Norm
from lipverify.robustness.attack import Box
from lipverify.robustness.cluster import answers_of_cluster
from lipverify.robustness.constants import PairConstants
from lipverify.robustness.journal import Journal
from lipverify.robustness.pairs import classes
from lipverify.robustness.plan import Plan, Record
from lipverify.robustness.points import Work, answered, broken, prepare
from lipverify.robustness.proof import certified
from lipverify.robustness.results import Radii

Advance = Callable[[int, int], None]
DIED = "its process was ended by the system, perhaps for want of memory"
SHARED = 10
"""The part of a limited time that constants of the whole input space may take: one in so many."""


def radii(
    graph: Graph,
    x: Tensor,
    y: Tensor | None = None,
    norm: str | Norm = Norm.LINF,
    method: str = "auto",
    *,
    box: Box | None = None,
    budget: float | None = None,
    device: str | torch.device = "cpu",
    seed: int = 0,
    plan: Plan | None = None,
    jobs: int = 1,
    scheduler: str | None = None,
    journal: Journal | None = None,
    report: Report | None = None,
    advance: Advance | None = None,
    proofs: bool = True,
) -> Radii:
    """For every point the largest perturbation certified not to change its label, and an adversarial example above it.

    Statement: for a point with radius r > 0, every x' with |x' - x| < r (in the box) has the same largest output, which is the
        label's; for `smoothing` with the confidence stated, about the smoothed classifier.
    Source: `global`: Tsuzuku et al., NeurIPS 2018 (arXiv 1802.04034), with a constant for each logit difference; `crown`: Zhang
        et al., NeurIPS 2018; `local`: integral of the local constants of the differences over shells; `smoothing`: Cohen et
        al., ICML 2019 (arXiv 1902.02918), Delattre et al., ICLR 2024 (arXiv 2309.16883).
    Sound when: the constants and linear bounds used are; margins at the point are enclosed with every rounding.

    Args:
        x: [points, *input shape]; y: labels [points], by default the predicted ones.
        box: limits LO, HI of every input coordinate; perturbations stay inside.
        budget: seconds for everything, of which what all points share takes about a tenth and every point an even part of
            what is left when it begins; without it numbers do not depend on the machine's speed.
        plan: all settings at once, instead of norm, method, box, seed and budget.
        proofs: whether the independent checker proves the radii, after the searches; a certificate holds them (`Radii.issued`).
        jobs: processes; scheduler: address of a Dask scheduler whose workers take the points instead.

    Raises:
        UsageError: points of another shape, outside the box, or labels that are none. UnsupportedModel: no method covers
        the network. InternalError: every method broke before any point. What breaks at one point is its record
        (`Record.failed`), and no journal keeps it.
    """
    started = time.monotonic()
    if plan is None:
        plan = Plan(Norm.parse(norm), method, box, seed=seed)
    x = torch.as_tensor(x).detach().cpu().double()
    labels = None if y is None else [int(label) for label in torch.as_tensor(y).tolist()]
    _require(graph, x, labels, plan)
    report = report or silent
    deadline = None if budget is None else started + budget / SHARED
    compute = Compute(torch.device(device), seed, deadline, report)
    stored = None if journal is None or journal.shared is None else journal.shared.get("constants")
    constants = None if stored is None else PairConstants.from_json(stored)
    work = prepare(graph, plan, compute, constants)
    if journal is not None and journal.shared is None:
        journal.share({"constants": None if work.constants is None else work.constants.to_json()})
    done = {} if journal is None else {i: Record.from_json(r) for i, r in journal.records.items()}
    waiting = [index for index in range(len(x)) if index not in done]
    report("certifying points", None)
    if scheduler is None or not waiting:
        end = None if budget is None else started + budget
        answers = _answers(work, x, labels, waiting, jobs, end)
    else:
        if budget is not None:
            left = max(budget - (time.monotonic() - started), 0.0)
            work = replace(work, plan=replace(plan, seconds=left * max(jobs, 1) / len(waiting)))
        answers = answers_of_cluster(scheduler, work, x, labels, waiting)
    for record in answers:
        if journal is not None and not record.failed:
            journal.add(record.stored())
        done[record.index] = record
        if advance is not None:
            advance(len(done), len(x))
    records = tuple(done[index] for index in range(len(x)))
    issued = None
    if proofs:
        # A budget is that of the searches; proofs may take as long again.
        until = None if budget is None else started + 2.0 * budget
        found = certified(graph, plan, records, x, work.constants, report, until)
        records, issued = found.records, found.issued
    return Radii(
        graph,
        plan,
        records,
        time.monotonic() - started,
        work.constants,
        work.refused,
        inputs=x,
        issued=issued,
        failed_methods=work.failed,
    )


def _require(graph: Graph, x: Tensor, labels: list[int] | None, plan: Plan) -> None:
    count = classes(graph)
    if tuple(x.shape[1:]) != graph.input_shape or len(x) < 1:
        raise UsageError(
            f"the points have shape {list(x.shape)}; the model takes samples of {list(graph.input_shape)}"
        )
    if not bool(x.isfinite().all()):
        raise UsageError("a point is not finite")
    if labels is not None and (len(labels) != len(x) or not all(0 <= y < count for y in labels)):
        raise UsageError(f"labels are one number from 0 to {count - 1} for each of the {len(x)} points")
    if plan.box is not None:
        low, high = plan.box
        outside = ((x < low) | (x > high)).flatten(1).any(1)
        if not low < high or bool(outside.any()):
            index = int(outside.double().argmax())
            raise UsageError(f"point {index} lies outside the input box [{low:g}, {high:g}]")


def _answers(
    work: Work, x: Tensor, labels: list[int] | None, waiting: list[int], jobs: int, end: float | None
) -> Iterator[Record]:
    """Records as they are ready, in any order; `end`: the moment at which the last one should be."""

    def seconds(open_points: int, workers: int) -> float | None:
        return None if end is None else max(end - time.monotonic(), 0.0) * workers / open_points

    if jobs <= 1 or len(waiting) <= 1:
        for before, index in enumerate(waiting):
            limit = seconds(len(waiting) - before, 1)
            yield answered(work, index, x[index], None if labels is None else labels[index], limit)
        return
    upcoming, done = iter(waiting), 0
    running: dict[Future[Record], int] = {}
    pool = _pool(work, jobs, len(waiting))
    try:
        if end is not None:
            # Processes take seconds to begin, which is no point's time.
            wait([pool.submit(_begun) for _ in range(min(jobs, len(waiting)))])
        while True:
            # With limited time nothing waits in a queue: a point's time begins with it.
            while len(running) < (2 * jobs if end is None else jobs):
                if (place := next(upcoming, None)) is None:
                    break
                label = None if labels is None else labels[place]
                left = len(waiting) - done
                limit = seconds(left, min(jobs, left))
                running[pool.submit(_unit, place, x[place].numpy(), label, limit)] = place
            if not running:
                return
            ready, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in ready:
                done += 1
                place = running.pop(future)
                try:
                    yield future.result()
                except BrokenProcessPool:
                    # Whoever shared the pool with a process that died is lost with it; the others get a new one.
                    for other, lost in ((future, place), *running.items()):
                        if other.done() and other.exception() is None:
                            yield other.result()
                        else:
                            yield broken(work, lost, None if labels is None else labels[lost], DIED)
                    done += len(running)
                    running.clear()
                    pool.shutdown(wait=False, cancel_futures=True)
                    pool = _pool(work, jobs, len(waiting))
                    break
    finally:
        # After an error or an interrupt children may be in the middle of a long step.
        for process in list((pool._processes or {}).values()):
            if running:
                process.terminate()
        pool.shutdown(wait=not running, cancel_futures=True)


def _pool(work: Work, jobs: int, waiting: int) -> ProcessPoolExecutor:
    # Spawned, not forked: threads and CUDA do not survive a fork.
    context = multiprocessing.get_context("spawn")
    threads = torch.get_num_threads() // jobs or 1
    return ProcessPoolExecutor(min(jobs, waiting), context, _begin, (work, threads))


_WORK: list[Work] = []
"""What a worker process was started with."""


def _begin(work: Work, threads: int) -> None:
    torch.set_num_threads(threads)
    _WORK[:] = [work]


def _begun() -> bool:
    """Whether a worker is prepared."""
    return bool(_WORK)


def _unit(index: int, x: np.ndarray[Any, Any], label: int | None, seconds: float | None) -> Record:
    if not _WORK:
        raise InternalError("a worker was asked before it was prepared")
    return answered(_WORK[0], index, torch.from_numpy(x), label, seconds)
