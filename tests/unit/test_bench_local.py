"""The benchmark of local bounds and the table around real images: rows, promises and pages from what was measured."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]


def module(name: str, path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(path.parent))
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, loaded)
    spec.loader.exec_module(loaded)
    return loaded


def row(**uppers: float) -> dict[str, object]:
    methods = {
        name.replace("_", "-"): {"upper": u, "seconds": 1.0, "cpu_seconds": 1.0} for name, u in uppers.items()
    }
    return {
        "network": "relu-64x2", "radius": "0.1", "lower": 109.0, "load": 0.0, "methods": methods, "bound_ratio": {},
    }  # fmt: skip


def test_promises(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = module("bench_local", ROOT / "benchmarks" / "local.py", monkeypatch)
    (only,) = bench.promises([row(local=147.9, local_sdp=130.0, local_bab=116.0)])
    assert only["kept"] == {"local": True, "best": True, "faster": None}
    slow = row(local=148.1, local_sdp=123.0, lirpa=147.9)
    (only,) = bench.promises([slow])
    assert only["kept"] == {"local": False, "best": False, "faster": False}
    slow["methods"]["lirpa"]["cpu_seconds"] = 11.0  # type: ignore[index]
    (only,) = bench.promises([slow])
    assert only["kept"]["faster"]


def test_the_committed_pages_are_those_of_the_results(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = module("bench_local", ROOT / "benchmarks" / "local.py", monkeypatch)
    folder = ROOT / "reports" / "bench-local"
    result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    assert (folder / "README.md").read_text(encoding="utf-8") == bench.readme(result)
    assert result["promises"] == bench.promises(result["rows"])
    for found in result["rows"]:
        for name, method in found["methods"].items():
            assert method["upper"] >= found["lower"], name


def test_the_table_around_images(monkeypatch: pytest.MonkeyPatch) -> None:
    around = module("around_points", ROOT / "reports" / "third_party" / "around_points.py", monkeypatch)
    results = json.loads((ROOT / "reports" / "third_party" / "result.json").read_text(encoding="utf-8"))
    text = around.tables(results)
    assert text in (ROOT / "reports" / "third_party" / "README.md").read_text(encoding="utf-8")
    shown = 0
    for section in ("local", "balls"):
        for name, found in results[section].items():
            assert f"| {name} |" in text
            if "upper" in found:
                shown += 1
                assert all(u >= v for u, v in zip(found["upper"], found["lower"], strict=True))
    assert shown >= 3
