"""The benchmark of LipSDP: its table, targets and plot say what was measured, and one small case runs."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(FOLDER))
    spec = importlib.util.spec_from_file_location("bench_lipsdp", FOLDER / "lipsdp.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "bench_lipsdp", module)
    spec.loader.exec_module(module)
    return module


def row(bench: ModuleType, upper: float, objective: float, seconds: float) -> dict[str, object]:
    ours = {"upper": upper, "seconds": 0.2, "cpu_seconds": 0.1}
    methods = {name: dict(ours) for name in ("lipsdp", "lipsdp-fast", "product")}
    peer = {"upper": objective, "objective": objective, "seconds": seconds, "cpu_seconds": seconds}
    methods |= {"clarabel": peer, "scs": {"failed": "not run at this size"}}
    return {"network": "he-20-30x4-10", "methods": methods, **bench.ratios(methods)}


@pytest.mark.parametrize(
    ("upper", "seconds", "kept"),
    [(10.0, 11.0, True), (10.0, 9.0, False), (10.02, 11.0, False), (10.009, 11.0, True)],
)
def test_targets_need_bound_and_time(bench: ModuleType, upper: float, seconds: float, kept: bool) -> None:
    (found,) = bench.targets([row(bench, upper, 10.0, seconds)])
    assert found["kept"] is kept


def test_a_peer_that_did_not_finish_keeps_no_target(bench: ModuleType) -> None:
    given = row(bench, 10.0, 10.0, 11.0)
    given["methods"]["clarabel"] = {"failed": "not finished after 900 s"}
    (found,) = bench.targets([given])
    assert found["kept"] is None
    assert "900" in found["why"]


def test_what_is_written_can_be_read(bench: ModuleType, tmp_path: Path) -> None:
    rows = [row(bench, 10.0, 10.0, 11.0)]
    result = {"hardware": bench.hardware(), "networks": rows, "targets": bench.targets(rows)}
    bench.write(result, tmp_path)
    assert json.loads((tmp_path / "result.json").read_text())["targets"][0]["kept"] is True
    assert "| he-20-30x4-10 | 1.000000 | 110 | 100 | yes |" in (tmp_path / "README.md").read_text()
    plot = (tmp_path / "plot.svg").read_text()
    assert plot.count("<title>") == 4


def test_networks_are_those_of_the_design(bench: ModuleType) -> None:
    weights = bench.he_weights("he-20-30x4-10")
    assert [w.shape for w in weights] == [(30, 20), (30, 30), (30, 30), (30, 30), (10, 30)]
    result = bench.run_method("lipsdp", bench.he_weights("he-10-10x2-5"))
    # The optimum of this network, measured with a cone solver.
    assert 6.74378 <= result["upper"] <= 6.74379 * 1.001
    assert len(result["times"]) == bench.REPEATS
