"""Units of work in this process, in a pool of processes, or on a Dask cluster (extra `cluster`); results as they are ready.

A unit is a small piece whose result depends on its arguments alone, times aside: whoever computes it, and however often, it
is the same. So a process that dies takes one unit with it, and a worker that dies none.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, CancelledError, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch

from lipverify.errors import InternalError, LipverifyError, UsageError

DIED = "its process was ended by the system, perhaps for want of memory"
HUNG = "it did not end with its time, and its process was ended"
GRACE = 60.0
"""Seconds after its time when a unit counts as hung."""
STARTS = 2
"""How often a pool is started whose processes do not begin; what is asked of the last one counts as hung then."""
CONNECT_SECONDS = 30
"""How long to wait for a scheduler."""
PATIENCE = 300
"""How many seconds a run waits for a cluster without any worker."""
RETRIES = 3
"""Of a unit whose worker failed with an error of the machine."""
LOOK = 5.0
"""Seconds after which the workers of a cluster are counted again."""

Solve = Callable[..., Any]
"""solve(shared, *arguments, seconds): a function of a module, so that it can be sent elsewhere."""
Numbered = tuple[int, tuple[Any, ...]]


@dataclass(frozen=True)
class Lost:
    """In place of a result: why there is none."""

    reason: str


@dataclass
class Clock:
    """What is left of the time, shared out evenly over what is still to do."""

    deadline: float | None
    waiting: int

    def share(self, workers: int) -> float | None:
        """Seconds of the next unit; None without a limit."""
        if self.deadline is None:
            return None
        left = max(self.deadline - time.monotonic(), 0.0)
        return left * min(workers, self.waiting) / self.waiting


def results(
    solve: Solve,
    shared: object,
    units: Iterable[tuple[Any, ...]],
    count: int,
    *,
    jobs: int = 1,
    scheduler: str | None = None,
    deadline: float | None = None,
) -> Iterator[tuple[int, Any]]:
    """The place of each unit with its result, or `Lost`, in any order.

    Args:
        shared: what all units need; sent to every process once.
        units: the arguments of each, read when its turn comes.
        count: how many there are.
        jobs: processes. scheduler: address of a Dask scheduler, whose workers take the units instead.
        deadline: moment of `time.monotonic`; each unit gets an even part of what is left when it begins, 0 after it.

    Raises:
        UsageError: no Dask, nobody at the address, or workers with another version. LipverifyError: the cluster is gone.
        What `solve` raises.
    """
    numbered = enumerate(units)
    clock = Clock(deadline, count)
    if scheduler is not None and count:
        return _clustered(solve, shared, numbered, clock, scheduler)
    if jobs > 1 and count > 1:
        return _pooled(solve, shared, numbered, clock, min(jobs, count))
    return _alone(solve, shared, numbered, clock)


def _alone(
    solve: Solve, shared: object, units: Iterator[Numbered], clock: Clock
) -> Iterator[tuple[int, Any]]:
    for place, arguments in units:
        yield place, solve(shared, *arguments, clock.share(1))
        clock.waiting -= 1


# -- processes


def _pooled(
    solve: Solve, shared: object, units: Iterator[Numbered], clock: Clock, jobs: int
) -> Iterator[tuple[int, Any]]:
    suspects: list[Numbered] = []
    yield from _parallel(solve, shared, units, clock, jobs, suspects)
    # One at a time, so that the one that ends its process is told from those that only shared a pool with it.
    yield from _parallel(solve, shared, iter(suspects), clock, 1, [])


def _parallel(
    solve: Solve,
    shared: object,
    units: Iterator[Numbered],
    clock: Clock,
    jobs: int,
    suspects: list[Numbered],
) -> Iterator[tuple[int, Any]]:
    """Whoever is in a pool when one of its processes dies joins the suspects; who is there alone is lost."""
    running: dict[Future[Any], tuple[Numbered, float | None]] = {}
    pool: ProcessPoolExecutor | None = None
    try:
        while True:
            for unit in islice(units, jobs - len(running)):
                pool = pool or _pool(solve, shared, jobs, clock)
                share = clock.share(jobs)
                end = None if share is None else time.monotonic() + share + GRACE
                try:
                    future = pool.submit(_in_process, unit[1], share)
                except BrokenProcessPool:  # a process that was idle was ended
                    suspects.extend([*(each for each, _ in running.values()), unit])
                    running.clear()
                    _end(pool)
                    pool = None
                    continue
                running[future] = (unit, end)
            if not running:
                return
            assert pool is not None, "what runs has a pool"
            ends = [end for _, end in running.values() if end is not None]
            limit = max(min(ends) - time.monotonic(), 0.0) if ends else None
            ready, _ = wait(running, timeout=limit, return_when=FIRST_COMPLETED)
            hung = {
                f for f, (_, end) in running.items() if end is not None and time.monotonic() > end
            } - ready
            broken = bool(hung)
            for future in ready:
                if isinstance(future.exception(), BrokenProcessPool):
                    broken = True
                    continue
                (place, _), _ = running.pop(future)
                clock.waiting -= 1
                yield place, future.result()
            if not broken:
                continue
            for future in hung:
                (place, _), _ = running.pop(future)
                clock.waiting -= 1
                yield place, Lost(HUNG)
            left = [unit for unit, _ in running.values()]
            if len(left) == 1 and not hung:
                clock.waiting -= 1
                yield left[0][0], Lost(DIED)
            else:
                suspects.extend(left)
            running.clear()
            _end(pool)
            pool = None
    finally:
        if pool is not None:
            _end(pool)


def _pool(solve: Solve, shared: object, jobs: int, clock: Clock) -> ProcessPoolExecutor:
    # Spawned, not forked: threads and CUDA do not survive a fork.
    context = multiprocessing.get_context("spawn")
    given = (solve, shared, torch.get_num_threads() // jobs or 1)
    for more in reversed(range(STARTS)):
        pool = ProcessPoolExecutor(jobs, context, _begin, given)
        if clock.deadline is None or _begins(pool, jobs) or not more:
            break
        _end(pool)
    return pool


def _begins(pool: ProcessPoolExecutor, jobs: int) -> bool:
    """Processes take seconds to begin, which is no unit's time.

    What one does not take, another does: this is False where all are stopped, or one that holds the queue of the others.
    """
    try:
        return not wait([pool.submit(_begun) for _ in range(jobs)], timeout=GRACE).not_done
    except BrokenProcessPool:  # one has died already: its unit will say so
        return True


def _end(pool: ProcessPoolExecutor) -> None:
    for process in list((pool._processes or {}).values()):
        # Whatever it is doing, its result is not waited for. One that is stopped takes no other signal, and this program would
        # wait for it when it ends.
        process.kill()
    pool.shutdown(wait=False, cancel_futures=True)


_GIVEN: list[tuple[Solve, object]] = []
"""What a process was started with."""


def _begin(solve: Solve, shared: object, threads: int) -> None:
    torch.set_num_threads(threads)
    _GIVEN[:] = [(solve, shared)]


def _begun() -> bool:
    return bool(_GIVEN)


def _in_process(arguments: tuple[Any, ...], seconds: float | None) -> Any:
    if not _GIVEN:
        raise InternalError("a worker was asked before it was prepared")
    solve, shared = _GIVEN[0]
    return solve(shared, *arguments, seconds)


# -- a cluster


def _clustered(
    solve: Solve, shared: object, units: Iterator[Numbered], clock: Clock, address: str
) -> Iterator[tuple[int, Any]]:
    try:
        import distributed
    except ImportError:
        raise UsageError("--scheduler needs Dask: pip install 'lipverify[cluster]'") from None
    try:
        client = distributed.Client(address, timeout=CONNECT_SECONDS)
    except Exception as error:  # of Dask's own, some without words
        raise UsageError(f"no Dask scheduler answers at {address}: {failure(error)}") from None
    with client:
        try:
            yield from _on_workers(client, solve, shared, units, clock, address)
        except (CancelledError, distributed.CancelledError, OSError) as error:
            raise LipverifyError(
                f"the Dask scheduler at {address} is gone ({failure(error)}); what is done is kept where there is a folder: "
                "go on with --resume"
            ) from error


def failure(error: BaseException) -> str:
    """One line of an error of somebody else's program."""
    return (str(error) or type(error).__name__).splitlines()[0][:120]


def _on_workers(
    client: Any, solve: Solve, shared: object, units: Iterator[Numbered], clock: Clock, address: str
) -> Iterator[tuple[int, Any]]:
    from distributed import wait as wait_for

    _require_same_version(client)
    # A task like the others, not scattered data: what every worker that had it took along is computed again.
    common = client.submit(_same, shared, pure=False)
    pending: dict[Any, int] = {}
    workers, looked, idle_since = len(client.nthreads()), time.monotonic(), None
    try:
        while True:
            # With limited time nothing waits in a queue: a unit's time begins with it.
            room = max(workers, 1) * (4 if clock.deadline is None else 1) - len(pending)
            for place, arguments in islice(units, max(room, 0)):
                share = clock.share(max(workers, 1))
                future = client.submit(
                    _on_worker, solve, common, arguments, share, pure=False, retries=RETRIES
                )
                pending[future] = place
            if not pending:
                return
            try:
                ready = wait_for(list(pending), timeout=LOOK, return_when="FIRST_COMPLETED").done
            except TimeoutError:
                ready = set()
            for future in ready:
                place = pending.pop(future)
                clock.waiting -= 1
                yield place, _result(future)
            now = time.monotonic()
            if now - looked > LOOK or not ready:
                workers, looked = len(client.nthreads()), now
                idle_since = (idle_since or now) if workers == 0 else None
            if idle_since is not None and now - idle_since > PATIENCE:
                raise LipverifyError(
                    f"the Dask scheduler at {address} has had no worker for {PATIENCE} s; what is done is kept where there is a "
                    "folder: start workers and go on with --resume"
                )
            if clock.deadline is not None and now > clock.deadline + GRACE:
                client.cancel(list(pending), force=True)
                for place in [*pending.values(), *(place for place, _ in units)]:
                    yield place, Lost(HUNG)
                pending.clear()
    finally:
        if pending:
            client.cancel(list(pending), force=True)


def _result(future: Any) -> Any:
    from distributed import KilledWorker

    try:
        return future.result()
    except KilledWorker:
        return Lost(DIED)


def _same(shared: object) -> object:
    return shared


def _on_worker(solve: Solve, shared: object, arguments: tuple[Any, ...], seconds: float | None) -> Any:
    return solve(shared, *arguments, seconds)


def _version() -> str:
    from lipverify.version import __version__

    return f"{__version__}, torch {torch.__version__}"


def _require_same_version(client: Any) -> None:
    """Workers with another version could give other numbers."""
    here = _version()
    others = {str(found) for found in client.run(_version).values()} - {here}
    if others:
        raise UsageError(f"workers run {', '.join(sorted(others))}; here it is {here}")
