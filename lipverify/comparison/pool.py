"""Tasks in a pool of processes, as answers are ready. A process that dies takes one row with it, not the run."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass

import torch

from lipverify.comparison.task import Solved, Task, failed, solve

Numbered = tuple[int, Task, str]
"""Its place in the run, the task, and the name of its certificate."""

SPENT = "the budget was spent before this was begun; give more time with --budget"
DIED = "its process was ended by the system, perhaps for want of memory"


@dataclass(frozen=True)
class Clock:
    """What is left of the run's time, shared out evenly over what is still to do."""

    deadline: float | None
    jobs: int

    def share(self, waiting: int) -> float | None:
        """Seconds for the next of `waiting` tasks; None without a limit."""
        if self.deadline is None:
            return None
        left = max(self.deadline - time.monotonic(), 0.0)
        return left * min(self.jobs, waiting) / waiting

    def spent(self) -> bool:
        """Whether there is no time left to begin anything."""
        return self.deadline is not None and time.monotonic() >= self.deadline


def answers(tasks: Sequence[Numbered], clock: Clock) -> Iterator[tuple[int, Solved]]:
    """Every task's answer, in any order."""
    if clock.jobs <= 1 or len(tasks) <= 1:
        for done, (place, task, name) in enumerate(tasks):
            yield place, _late(task) if clock.spent() else solve(task, clock.share(len(tasks) - done), name)
        return
    orphans: list[Numbered] = []
    yield from _parallel(list(tasks), clock, orphans)
    for numbered in orphans:
        # Alone, so that the one that kills its process is told from those that only shared the pool with it.
        yield numbered[0], _alone(numbered, clock, len(orphans))


def _parallel(tasks: list[Numbered], clock: Clock, orphans: list[Numbered]) -> Iterator[tuple[int, Solved]]:
    upcoming = iter(tasks)
    waiting = len(tasks)
    running: dict[Future[Solved], Numbered] = {}
    pool = _pool(min(clock.jobs, len(tasks)), clock.jobs)
    try:
        while True:
            while len(running) < clock.jobs and (numbered := next(upcoming, None)) is not None:
                if clock.spent():
                    yield numbered[0], _late(numbered[1])
                else:
                    share = clock.share(waiting)
                    running[pool.submit(solve, numbered[1], share, numbered[2])] = numbered
                waiting -= 1
            if not running:
                return
            ready, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in ready:
                numbered = running.pop(future)
                try:
                    yield numbered[0], future.result()
                except BrokenProcessPool:
                    orphans.extend([numbered, *running.values()])
                    running.clear()
                    pool.shutdown(wait=False, cancel_futures=True)
                    pool = _pool(min(clock.jobs, len(tasks)), clock.jobs)
                    break
    finally:
        # After an interrupt the children may be in the middle of a long step.
        for process in list((pool._processes or {}).values()):
            if running:
                process.terminate()
        pool.shutdown(wait=not running, cancel_futures=True)


def _alone(numbered: Numbered, clock: Clock, waiting: int) -> Solved:
    if clock.spent():
        return _late(numbered[1])
    with _pool(1, clock.jobs) as pool:
        try:
            return pool.submit(solve, numbered[1], clock.share(waiting), numbered[2]).result()
        except BrokenProcessPool:
            return failed(numbered[1], DIED)


def _late(task: Task) -> Solved:
    name = "lower bound" if task.method is None else task.method.name
    return Solved("undecided", {"analyzer": name, "refused": SPENT})


def _pool(size: int, jobs: int) -> ProcessPoolExecutor:
    # Spawned, not forked: threads and CUDA do not survive a fork.
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(size, context, _begin, (torch.get_num_threads() // jobs or 1,))


def _begin(threads: int) -> None:
    torch.set_num_threads(threads)
