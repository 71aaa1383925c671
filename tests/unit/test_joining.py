"""Audits whose points are shared out: chunks are joined in their order, proved as one, and what a chunk lacks is said.

The units run in this process here; `robustness/test_cluster.py` has a cluster, whose workers are killed.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import lipverify as lv
from lipverify import memory, ops, pipeline, units
from lipverify.certificates import recording
from lipverify.certificates.pending import kept, restored
from lipverify.checkers.regions import region_of
from lipverify.errors import UsageError
from lipverify.falsify import Search, falsify
from lipverify.interpreter import evaluate
from lipverify.ir.certificate import Witness
from lipverify.joining import Chunks
from lipverify.reporting import answers, writing
from lipverify.reporting.places import WITNESS
from lipverify.reporting.writing import OutputFolder
from lipverify.units import Lost
from tests import processes
from tests.networks import chain, tensor

NAMES = ["product", "local", "local-sdp"]
SEARCH = Search(rounds=3)


@pytest.fixture
def graph(rng: np.random.Generator) -> lv.Graph:
    return chain([tensor(rng, 6, 4), tensor(rng, 5, 6), tensor(rng, 3, 5)], ops.Tanh())


@pytest.fixture
def region(rng: np.random.Generator) -> lv.Ball:
    return lv.Ball(tensor(rng, 7, 4), 0.1, "l2", (-9.0, 9.0))


@pytest.fixture
def lost(monkeypatch: pytest.MonkeyPatch) -> dict[int, Any]:
    """Units run here, three points each, the last first; those in this table come back as it says."""
    instead: dict[int, Any] = {}

    def here(*given: Any, scheduler: str, **options: Any) -> Iterator[tuple[int, Any]]:
        found = dict(units.results(*given, **options)) | instead
        return iter(sorted(found.items(), reverse=True))

    monkeypatch.setattr(pipeline, "results", here)
    monkeypatch.setattr(pipeline, "AT_ONCE", 3)
    return instead


def shared_out(graph: lv.Graph, region: lv.Ball, **options: Any) -> lv.Audit:
    return lv.audit(graph, region=region, search=SEARCH, scheduler="tcp://here", **options)


def test_chunks_are_the_whole(graph: lv.Graph, region: lv.Ball, lost: dict[int, Any]) -> None:
    whole = lv.audit(graph, region=region, analyzers=NAMES, search=SEARCH)
    found = shared_out(graph, region, analyzers=NAMES)
    assert [row.analyzer for row in found.rows] == NAMES
    for row, known in zip(found.rows, whole.rows, strict=True):
        assert row.upper == pytest.approx(known.upper, rel=1e-6)
        assert row.certificate is not None
        assert str(row.certificate.rigour) == "checked", row.certificate.unchecked
        verdict = lv.verify(row.certificate, graph)
        assert verdict.fields["region"]["count"] == len(region)
    assert found.lower.witness.points.shape == region.center.shape
    lower = torch.as_tensor(found.lower.value)
    assert bool((lower > 0).all())
    assert bool((lower <= torch.as_tensor(found.upper)).all())
    assert found.to_json()["results"][1]["upper"] == torch.as_tensor(found.rows[1].upper).tolist()


def test_evidence_of_chunks_is_kept_and_proved_later(
    graph: lv.Graph, region: lv.Ball, lost: dict[int, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = shared_out(graph, region, analyzers=["local"])
    [row] = found.rows
    assert row.certificate is not None
    evidence = row.certificate.evidence
    assert isinstance(evidence, Chunks)
    assert evidence.counts == (3, 3, 1)
    again, query = restored(kept(evidence, found.query))
    assert again.to_json() == evidence.to_json()
    assert torch.equal(query.region.center, region.center)
    with pytest.raises(IndexError):
        evidence.proof(None, _place(7))


def _place(centre: int) -> Any:
    from lipverify.certificates.recording import Part

    return Part(centre, 0, 1.0, ("l2", "l2"), 0, 1, (0, 1))


def test_a_chunk_that_is_lost_leaves_no_number(
    graph: lv.Graph, region: lv.Ball, lost: dict[int, Any]
) -> None:
    lost[1] = Lost("its process was ended")
    found = shared_out(graph, region, analyzers=NAMES)
    product, local, sdp = found.rows
    assert product.certificate is not None
    for row in (local, sdp):
        assert row.certificate is None
        assert row.failed
        assert row.refused == "points 3 to 5: its process was ended"
    assert pipeline.exit_code(found) == 1
    assert isinstance(found.lower.value, torch.Tensor)
    assert (found.lower.value == 0).tolist() == [False] * 3 + [True] * 3 + [False]
    assert found.lower.witness.note == "points 3 to 5: its process was ended"


def test_without_time_chunks_are_not_run_and_the_product_is_there(
    graph: lv.Graph, region: lv.Ball, lost: dict[int, Any]
) -> None:
    found = shared_out(graph, region, analyzers=["local"], budget=1e-9)
    local, product = found.rows
    assert local.cut
    assert str(local.refused).startswith("not run: the budget ended")
    assert product.analyzer == "product"
    assert product.upper is not None
    assert found.lower.cut
    assert found.to_json()["lower"]["value"] is None


def test_only_points_can_be_shared_out(graph: lv.Graph) -> None:
    with pytest.raises(UsageError, match="--scheduler shares out points"):
        lv.audit(graph, scheduler="tcp://127.0.0.1:9")


def test_lower_bounds_of_many_balls_are_searched_for_some_at_a_time(
    graph: lv.Graph, region: lv.Ball, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts: list[int] = []

    def counted(graph: lv.Graph, query: lv.Query, *given: Any, **more: Any) -> Any:
        assert isinstance(query.region, lv.Ball)
        counts.append(len(query.region))
        return falsify(graph, query, *given, **more)

    monkeypatch.setattr(pipeline, "falsify", counted)
    monkeypatch.setattr(pipeline, "together", lambda _: 3)
    found = lv.audit(graph, region=region, analyzers="product", search=SEARCH)
    assert counts == [3, 3, 1]
    witness = found.lower.witness
    assert found.lower.missing is not None
    assert not found.lower.missing.any()
    assert witness.partner is not None
    assert not witness.note
    for ends in (witness.points, witness.partner):
        assert ends.shape == region.center.shape
        assert bool(((ends - region.center).norm(dim=1) <= region.radius).all())
    value = torch.as_tensor(found.lower.value)
    outs = [evaluate(graph.to(dtype=torch.float64), ends) for ends in (witness.points, witness.partner)]
    slopes = (outs[1] - outs[0]).norm(dim=1) / (witness.partner - witness.points).norm(dim=1)
    assert bool((value > 0).all())
    assert torch.allclose(value, slopes, rtol=1e-6)


def test_what_the_budget_cut_of_many_balls_is_no_number(
    graph: lv.Graph, region: lv.Ball, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cut(*given: Any, **more: Any) -> Iterator[tuple[int, Any]]:
        for place, arguments in enumerate(given[2]):
            yield place, given[0](given[1], *arguments, None if place == 0 else 0.0)

    monkeypatch.setattr(pipeline, "results", cut)
    monkeypatch.setattr(pipeline, "together", lambda _: 3)
    found = lv.audit(graph, region=region, analyzers="product", search=SEARCH)
    document = found.to_json()
    assert document["lower"]["value"][3:] == [None] * 4
    assert min(document["lower"]["value"][:3]) > 0
    assert document["lower"]["note"].startswith("points 3 to 6: not run")
    assert len(answers.read(document).lowers) == 7
    assert "not run" in found.page(document)


def test_without_time_the_first_balls_have_a_lower_bound(
    graph: lv.Graph, region: lv.Ball, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "together", lambda _: 3)
    found = lv.audit(graph, region=region, analyzers="product", budget=1e-9)
    value = found.to_json()["lower"]["value"]
    assert min(value[:3]) > 0
    assert value[3:] == [None] * 4


def test_regions_of_many_balls_are_not_all_made(
    graph: lv.Graph, region: lv.Ball, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Any] = []

    def counted(*given: Any) -> Any:
        made.append(given)
        return region_of(*given)

    monkeypatch.setattr(recording, "region_of", counted)
    found = lv.audit(graph, region=region, analyzers="product", search=SEARCH)
    assert found.best is not None
    assert found.best.certificate is not None
    assert found.best.certificate.rigour is lv.Rigour.CHECKED
    assert not made


def apart(graph: lv.Graph, query: lv.Query, *given: Any, **more: Any) -> Witness:
    """What a search might find: where many pairs lie is no matter of theirs."""
    assert isinstance(query.region, lv.Ball)
    center = query.region.center
    return Witness(center.flatten(1).sum(1).abs() * 1e-9, center, "gradient-ascent", partner=center + 0.01)


def test_pairs_of_many_balls_are_the_same_in_a_file(
    graph: lv.Graph, region: lv.Ball, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(pipeline, "together", lambda _: 3)
    monkeypatch.setattr(pipeline, "falsify", apart)
    audits = []
    for size in (memory._ASIDE, 0):
        monkeypatch.setattr(memory, "_ASIDE", size)
        audits.append(lv.audit(graph, region=region, analyzers=["product"], search=SEARCH))
    in_memory, in_file = (audit.lower.witness for audit in audits)
    assert in_memory.let_go is None
    assert in_file.let_go is not None
    for name, array in in_memory.arrays().items():
        assert np.array_equal(array, in_file.arrays()[name])
    for place, audit in enumerate(audits):
        with OutputFolder(tmp_path / str(place)) as folder:
            folder.write({WITNESS: writing.audit_files(audit, audit.to_json())[WITNESS]})
    assert (tmp_path / "0" / WITNESS).read_bytes() == (tmp_path / "1" / WITNESS).read_bytes()


def test_a_disk_without_room_for_pairs_changes_nothing(
    graph: lv.Graph, region: lv.Ball, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*given: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(pipeline, "together", lambda _: 3)
    monkeypatch.setattr(pipeline, "falsify", apart)
    monkeypatch.setattr(memory, "_ASIDE", 0)
    monkeypatch.setattr(os, "posix_fallocate", full)
    found = lv.audit(graph, region=region, analyzers=["product"], search=SEARCH).lower.witness
    assert found.let_go is None
    assert bool((found.value > 0).all())


COPIES = """
import sys, tempfile
from pathlib import Path
import torch
import lipverify as lv
from lipverify import memory, ops, pipeline
from lipverify.reporting import writing
from tests import processes
from tests.networks import chain

def status(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))

def centres(graph, query, *given, **more):
    ends = query.region.center
    return Witness(torch.zeros(len(ends), dtype=torch.float64), ends, "gradient-ascent", partner=ends.clone())

def peak(count):
    centers = torch.rand(count, WIDTH, dtype=torch.float64)
    before = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    audit = lv.audit(wide, region=lv.Ball(centers, 0.1), analyzers=["product"])
    with tempfile.TemporaryDirectory() as place, writing.OutputFolder(Path(place) / "out") as folder:
        folder.write(writing.audit_files(audit, audit.to_json()))
    return status("VmHWM") - before

WIDTH = 1 << 13
wide = chain([torch.ones(4, WIDTH), torch.ones(2, 4)], ops.ReLU())
# Searches hold the same whatever the number of balls; what is above 32 MiB goes back to the system when it is freed.
memory._ASIDE, pipeline.together, pipeline.falsify = 0, lambda graph: 50, centres
peak(10)
print((peak(900) - peak(600)) / (300 * 8 * WIDTH))
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="asks Linux for the peak")
def test_a_ball_costs_its_centre_and_its_certificate() -> None:
    """From points to a written folder, in copies of a centre, of which one is made on the way: tensors are none of Python's
    memory, so the system is asked for its peak, of a process that keeps nothing freed. Pairs in memory are two copies more."""
    done = processes.run("-c", COPIES, folder=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr
    assert 1.0 < float(done.stdout) < 3.5
