"""Points, chunks of them, comparisons and pairs of networks on a Dask cluster on loopback, whose workers are killed."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lipverify import ops
from lipverify.comparison import compare
from lipverify.errors import UsageError
from lipverify.falsify import Search
from lipverify.ir.certificate import Rigour
from lipverify.ir.norm import Norm
from lipverify.ir.region import Ball
from lipverify.pipeline import audit
from lipverify.questions.deviation import deviation
from lipverify.robustness import Plan, radii
from lipverify.robustness.journal import Journal
from tests.networks import chain, tensor
from tests.processes import server
from tests.unit.robustness.test_long_runs import same_without_times

dask = pytest.importorskip("dask")
distributed = pytest.importorskip("distributed")


@pytest.fixture(autouse=True)
def _processor_clock() -> None:
    """The loops of Dask need the clock on the wall."""


def test_a_worker_that_is_killed_changes_nothing(
    tmp_path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = [tensor(rng, 24, 6), tensor(rng, 16, 24), tensor(rng, 4, 16)]
    graph = chain(weights, ops.ReLU())
    other = chain([weight.float().half().double() for weight in weights], ops.ReLU())
    x = torch.tensor(rng.random((6, 6)))
    plan = Plan(Norm.LINF, "crown", looks=4)
    whole = radii(graph, x, plan=plan)
    killed: list[int] = []
    balls: dict[str, Any] = {
        "region": Ball(x, 0.02, Norm.L2),
        "analyzers": ["product", "local"],
        "search": Search(rounds=3),
    }
    settings = {"n_workers": 2, "threads_per_worker": 1, "processes": True, "host": "127.0.0.1"}
    server()
    config = {"distributed.worker.multiprocessing-method": "forkserver"}
    with dask.config.set(config), distributed.LocalCluster(dashboard_address=None, **settings) as cluster:
        with distributed.Client(cluster) as client:
            victim = next(iter(client.run(os.getpid).values()))

        def advance(done: int, total: int) -> None:
            if done == 2 and not killed:
                os.kill(victim, signal.SIGKILL)
                killed.append(done)

        with Journal(tmp_path / "journal", {"graph": graph.digest}) as journal:
            found = radii(
                graph, x, plan=plan, scheduler=cluster.scheduler_address, journal=journal, advance=advance
            )

        def killing(what: str) -> Callable[[str, float | None], None]:
            """Kills one of two workers when the first of six chunks is there."""
            with distributed.Client(cluster) as client:
                client.wait_for_workers(2)
                another = next(iter(client.run(os.getpid).values()))

            def stage(name: str, best: float | None) -> None:
                if name == f"{what}: 1 of 6 chunks":
                    os.kill(another, signal.SIGKILL)
                    killed.append(len(killed))

            return stage

        address = cluster.scheduler_address
        monkeypatch.setattr("lipverify.pipeline.AT_ONCE", 1)
        audited = audit(graph, **balls, scheduler=address, report=killing("points"))
        compared = compare({"net": graph}, analyzers=["product"], scheduler=address)
        monkeypatch.setattr("lipverify.questions.sharing.AT_ONCE", 1)
        deviated = deviation(graph, other, balls["region"], scheduler=address, report=killing("regions"))
    assert killed == [2, 1, 2]
    there = deviation(graph, other, balls["region"])
    assert deviated.rigour is there.rigour is Rigour.CHECKED
    assert torch.as_tensor(deviated.upper) == pytest.approx(torch.as_tensor(there.upper), rel=1e-6)
    for row, known in zip(audited.rows, audit(graph, **balls).rows, strict=True):
        assert row.upper == pytest.approx(known.upper, rel=1e-6)
        assert row.certificate is not None
        assert row.certificate.rigour is Rigour.CHECKED
    here = compare({"net": graph}, analyzers=["product"])
    assert compared.upper("net", "product") == here.upper("net", "product")
    assert same_without_times(found.to_json(), whole.to_json())
    with Journal(tmp_path / "journal", {"graph": graph.digest}, resume=True) as journal:
        assert sorted(journal.records) == list(range(6))


def test_nobody_at_the_address_is_said(monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator) -> None:
    monkeypatch.setattr("lipverify.units.CONNECT_SECONDS", 1)
    graph = chain([tensor(rng, 3, 2)])
    with pytest.raises(UsageError, match="no Dask scheduler answers"):
        radii(graph, torch.ones(1, 2), scheduler="tcp://127.0.0.1:9")
