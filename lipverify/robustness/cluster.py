"""Points handed to a Dask cluster (extra `cluster`): the same units of work as in one process, on the workers of a scheduler.

A worker that dies loses the point in progress; the scheduler gives it to another one. Records do not depend on who made them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lipverify.errors import UsageError
from lipverify.robustness.plan import Record
from lipverify.robustness.points import Work, answered

CONNECT_SECONDS = 30
"""How long to wait for the scheduler."""
RETRIES = 3
"""Of a point whose worker failed with an error of the machine."""


def answers_of_cluster(
    address: str, work: Work, x: Tensor, labels: list[int] | None, waiting: list[int]
) -> Iterator[Record]:
    """Records as workers finish them, in any order.

    Args:
        address: of a Dask scheduler, for example tcp://127.0.0.1:8786; its workers need this version of lipverify.

    Raises:
        UsageError: the extra `cluster` is not installed, nobody answers at the address, or the workers have another version.
    """
    try:
        from distributed import Client, as_completed
    except ImportError:
        raise UsageError("--scheduler needs Dask: pip install 'lipverify[cluster]'") from None
    try:
        client = Client(address, timeout=CONNECT_SECONDS)
    except (OSError, ValueError, TimeoutError) as error:
        raise UsageError(f"no Dask scheduler answers at {address}: {error}") from None
    with client:
        _require_same_version(client)
        shared = client.scatter(work, broadcast=True, hash=False)
        pending = [
            client.submit(
                _unit,
                shared,
                index,
                x[index].numpy(),
                None if labels is None else labels[index],
                pure=False,
                retries=RETRIES,
            )
            for index in waiting
        ]
        try:
            for future in as_completed(pending):
                record: Record = future.result()
                future.release()
                yield record
        except BaseException:
            client.cancel(pending, force=True)
            raise


def _unit(work: Work, index: int, x: np.ndarray[Any, Any], label: int | None) -> Record:
    return answered(work, index, torch.from_numpy(x), label)


def _version() -> str:
    from lipverify.version import __version__

    return f"{__version__}, torch {torch.__version__}"


def _require_same_version(client: Any) -> None:
    """Workers with another version could give other numbers."""
    here = _version()
    others = {str(found) for found in client.run(_version).values()} - {here}
    if others:
        raise UsageError(f"workers run {', '.join(sorted(others))}; here it is {here}")
