"""The benchmark of LipSDP: its table, targets and plot say what was measured, and one small case runs."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

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


def test_an_interrupted_run_goes_on_and_single_rows_are_measured_again(
    bench: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    calls: list[str] = []

    def run_case(case: Any, folder: Path) -> dict[str, object]:
        if case.name == "he-64-50x50-10" and len(calls) < 20 and not calls.count("stop"):
            calls.append("stop")
            raise KeyboardInterrupt
        calls.append(case.name)
        return {**row(bench, 10.0, 10.0, 11.0), "network": case.name}

    def run_network(network: Any) -> dict[str, object]:
        calls.append(network.name)
        return {
            "network": network.name,
            "target": network.target,
            "failed": "its file is not beside this repository",
        }

    monkeypatch.setattr(bench, "run_case", run_case)
    monkeypatch.setattr(bench, "run_network", run_network)
    with pytest.raises(KeyboardInterrupt):
        bench.measure_all(tmp_path, False, set())
    assert not (tmp_path / "result.json").exists()
    first = [name for name in calls if name != "stop"]
    result = bench.measure_all(tmp_path, False, set())
    assert [r["network"] for r in result["networks"]] == [case.name for case in bench.FULL]
    assert [r["network"] for r in result["convolutional"]] == [network.name for network in bench.NETWORKS]
    assert all(calls.count(name) == 1 for name in first)
    assert not (tmp_path / ".unfinished.json").exists()
    calls.clear()
    again = bench.measure_all(tmp_path, False, {"kw-mnist-cnn", "digits-50x2"})
    assert sorted(calls) == ["digits-50x2", "kw-mnist-cnn"]
    assert len(again["networks"]) == len(bench.FULL)
    with pytest.raises(SystemExit, match="no such row"):
        bench.measure_all(tmp_path, False, {"he-1-1x1-1"})


def test_rows_of_convolutional_networks(bench: ModuleType) -> None:
    import lipsdp_report

    found = {"neurons": 4804, "product": 446.1, "eclipse_fast": 205.7, "lipsdp": 54.32, "gap": 0.014}
    found |= {"seconds_to_target": 21.0, "seconds": 60.0, "kept": True}
    lines = lipsdp_report.convolutional([{"network": "kw-mnist-cnn", "target": 55.0, **found}])
    assert lines[-1] == "| kw-mnist-cnn | 4804 | 446.1 | 205.7 | 54.32 | 0.014 | 21 | 60 | 55 | yes |"
