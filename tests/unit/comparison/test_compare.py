"""Comparisons: the same bounds as single audits, cached, in parallel, and with the wrong ones thrown out."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch
from torch import nn

import lipverify as lv
import lipverify.units
from lipverify.analyzers.product import Product
from lipverify.analyzers.protocol import Compute
from lipverify.comparison import Cache, Unreadable, compare, task
from lipverify.comparison.cache import key_of
from lipverify.comparison.task import Task
from lipverify.errors import Refuted, Undecided, UsageError
from lipverify.ir.certificate import Certificate
from lipverify.ir.graph import Graph
from lipverify.ir.region import Query
from tests.processes import server


@pytest.fixture(autouse=True)
def _short_searches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(task, "LOWER_SECONDS", 0.3)


def small(seed: int, width: int = 6) -> Graph:
    torch.manual_seed(seed)
    module = nn.Sequential(nn.Linear(3, width), nn.ReLU(), nn.Linear(width, 2)).eval()
    return lv.extract(module, torch.zeros(2, 3))


@pytest.fixture(scope="module")
def models() -> dict[str, Graph]:
    return {"a": small(0), "b": small(1)}


@dataclass(frozen=True)
class TooSmall(Product):
    """A wrong analyzer.

    Statement: half of a bound.
    """

    name: ClassVar[str] = "too-small"

    def bound(self, graph: Graph, query: Query, compute: Compute) -> Certificate:
        certificate = super().bound(graph, query, compute)
        assert certificate.upper is not None
        return replace(certificate, upper=certificate.upper * 1e-3)


@dataclass(frozen=True)
class Crashes(Product):
    """An analyzer that ends its process, or raises. Statement: none."""

    name: ClassVar[str] = "crashes"
    hard: bool = False

    def bound(self, graph: Graph, query: Query, compute: Compute) -> Certificate:
        if self.hard:
            os._exit(9)
        raise RuntimeError("nothing works")


@dataclass(frozen=True)
class NeverInTime(Product):
    """An analyzer without an answer. Statement: none."""

    name: ClassVar[str] = "never"

    def bound(self, graph: Graph, query: Query, compute: Compute) -> Certificate:
        raise Undecided("no time")


def test_rows_are_those_of_single_audits(models: dict[str, Graph]) -> None:
    found = compare(models, analyzers=["product", "lipsdp-fast", "local"], norm=["l2", "linf"], budget=20)
    document = found.to_json()
    assert [q["norm_in"] for q in document["queries"]] == ["l2", "linf"]
    alone = lv.audit(models["a"], norm="linf", analyzers=["product"])
    assert found.upper("a", "product", 1) == alone.best.upper
    for model in document["models"]:
        for audit in model["audits"]:
            assert [row["analyzer"] for row in audit["results"]] == ["product", "lipsdp-fast", "local"]
            assert "refused" in audit["results"][2]
            assert audit["lower"]["value"] <= audit["best"]["upper"]
    assert found.exit_code() == 0
    assert "<html" in found.to_html()
    json.dumps(document, allow_nan=False)


def test_a_second_run_computes_nothing_and_says_the_same(models: dict[str, Graph], tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache")
    first = compare(models, analyzers=["product", "local"], cache=cache)
    again = compare(models, analyzers=["product", "local"], cache=cache)
    assert (first.computed, first.cached) == (6, 0)
    assert (again.computed, again.cached) == (0, 6)
    assert again.to_json()["models"] == first.to_json()["models"]
    assert again.certificate_files() == first.certificate_files()
    # What decides the answer decides the entry.
    assert compare(models, analyzers=["product"], cache=cache, seed=1).cached == 0
    assert compare(models, analyzers=["product"], cache=cache, norm="l1").cached == 0
    assert compare({"c": small(2)}, analyzers=["product"], cache=cache).cached == 0
    assert compare({"renamed": models["a"]}, analyzers=["product"], cache=cache).cached == 2


@pytest.mark.parametrize("damage", [b"", b"{}", b"flipped", b"truncated"])
def test_a_damaged_entry_is_computed_again(models: dict[str, Graph], tmp_path: Path, damage: bytes) -> None:
    cache = Cache(tmp_path)
    only = {"a": models["a"]}
    before = compare(only, analyzers=["product"], cache=cache)
    for path in tmp_path.iterdir():
        data = bytearray(path.read_bytes())
        if damage == b"flipped":
            data[len(data) // 2] ^= 1
        path.write_bytes(data[:-9] if damage == b"truncated" else data if damage == b"flipped" else damage)
    again = compare(only, analyzers=["product"], cache=cache)
    assert (again.computed, again.cached) == (2, 0)
    assert again.upper("a", "product") == before.upper("a", "product")
    assert compare(only, analyzers=["product"], cache=cache).cached == 2


def test_an_entry_under_another_name_is_not_taken(models: dict[str, Graph], tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    compare(models, analyzers=["product"], cache=cache)
    a, b = (key_of(Task(m, Query(), Product()).identity()) for m in models.values())
    os.replace(tmp_path / f"{a}.json", tmp_path / f"{b}.json")
    assert (
        compare({"b": models["b"]}, analyzers=["product"], cache=cache).cached == 1
    )  # the lower bound alone


def test_what_did_not_end_well_is_not_kept(models: dict[str, Graph], tmp_path: Path) -> None:
    cache, only = Cache(tmp_path), {"a": models["a"]}
    for method, code in ((NeverInTime(), 4), (Crashes(), 1)):
        found = compare(only, analyzers=[method], cache=cache)
        assert "refused" in found.answers["a"][0].rows[0]
        assert found.exit_code() == code
        assert compare(only, analyzers=[method], cache=cache).computed == 1


def test_a_bound_below_a_witness_is_never_reported(models: dict[str, Graph]) -> None:
    found = compare({"a": models["a"]}, analyzers=[TooSmall(), "product"])
    wrong, right = found.answers["a"][0].rows
    assert "upper" not in wrong
    assert "refuted: the witness has slope" in wrong["refused"]
    assert right["upper"] > 0
    assert found.exit_code() == Refuted.exit_code
    assert found.to_json()["models"][0]["audits"][0]["best"]["analyzer"] == "product"


def test_a_model_that_cannot_be_read_is_a_row(models: dict[str, Graph]) -> None:
    missing = Unreadable("net.onnx: no such file", 2)
    found = compare({"a": models["a"], "net.onnx": missing}, analyzers=["product"])
    assert found.to_json()["models"][1] == {"name": "net.onnx", "unreadable": missing.reason, "exit_code": 2}
    assert found.exit_code() == 0
    assert compare({"net.onnx": missing}, analyzers=["product"]).exit_code() == 2


def test_centres_of_another_shape_are_a_reason(models: dict[str, Graph]) -> None:
    torch.manual_seed(0)
    other = lv.extract(nn.Sequential(nn.Linear(5, 2)).eval(), torch.zeros(2, 5))
    ball = lv.Ball(torch.zeros(2, 3), 0.1, "l2")
    found = compare({**models, "other": other}, analyzers=["product", "local"], region=ball)
    assert len(found.upper("a", "local") or []) == 2
    assert all("the centres have shape [3]" in row["refused"] for row in found.answers["other"][0].rows)
    found.to_html()


def test_processes_give_the_same_and_a_dead_one_costs_one_row(
    models: dict[str, Graph], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Units travel as they do to spawned processes; those of tests/unit/robustness are spawned.
    monkeypatch.setattr(
        lipverify.units, "multiprocessing", SimpleNamespace(get_context=lambda method: server())
    )
    steps: list[tuple[int, int]] = []
    methods = ["product", Crashes(hard=True), "lipsdp-fast"]
    models = {"a": models["a"]}
    found = compare(models, analyzers=methods, jobs=2, advance=lambda *step: steps.append(step))
    alone = compare(models, analyzers=["product", "lipsdp-fast"])
    for name in models:
        assert found.upper(name, "product") == alone.upper(name, "product")
        assert found.upper(name, "lipsdp-fast") == alone.upper(name, "lipsdp-fast")
        assert "ended by the system" in found.answers[name][0].rows[1]["refused"]
    assert steps[-1] == (4, 4)
    assert found.exit_code() == 1


def test_a_spent_budget_is_said(models: dict[str, Graph]) -> None:
    found = compare(models, analyzers=["product"], budget=1e-9)
    assert found.exit_code() == 4
    assert "budget was spent" in found.answers["a"][0].rows[0]["refused"]
    found.to_html()


def test_nothing_to_compare_is_refused(models: dict[str, Graph]) -> None:
    for arguments in ({"analyzers": []}, {"analyzers": ["product", "product"]}, {"norm": []}, {"norm": "l3"}):
        with pytest.raises(UsageError):
            compare(models, **arguments)
    with pytest.raises(UsageError):
        compare({}, analyzers=["product"])
