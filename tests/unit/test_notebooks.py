"""The notebooks of the documentation are what their scripts make, and their claims still hold when they run again."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.tiers import long

DOCS = Path(__file__).resolve().parents[2] / "docs"
NAMES = ["audit_a_checkpoint", "compare_a_quantised_copy", "radii_of_a_classifier"]


@pytest.fixture(scope="module")
def make() -> ModuleType:
    spec = importlib.util.spec_from_file_location("notebooks", DOCS / "notebooks" / "make.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def stored(name: str) -> dict[str, Any]:
    return json.loads((DOCS / "notebooks" / f"{name}.ipynb").read_text(encoding="utf-8"))


def test_every_script_is_a_notebook_that_a_page_names(make: ModuleType) -> None:
    assert [path.stem for path in make.sources()] == NAMES
    page = (DOCS / "notebooks.md").read_text(encoding="utf-8")
    assert all(f"notebooks/{name}.ipynb" in page for name in NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_is_its_script_executed(name: str, make: ModuleType) -> None:
    text = (DOCS / "notebooks" / f"{name}.py").read_text(encoding="utf-8")
    notebook = stored(name)
    assert notebook["nbformat"] == 4
    written = [(cell["cell_type"], "".join(cell["source"])) for cell in notebook["cells"]]
    assert written == list(make.cells(text)), "run docs/notebooks/make.py again"
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    assert all(cell["outputs"] for cell in code if "print(" in "".join(cell["source"]))
    assert not any(output["output_type"] == "error" for cell in code for output in cell["outputs"])


@long("every notebook of the documentation is executed")
@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_runs_again(name: str, make: ModuleType) -> None:
    pytest.importorskip("sklearn")
    made, before = make.made(DOCS / "notebooks" / f"{name}.py"), stored(name)
    for cell, other in zip(made["cells"], before["cells"], strict=True):
        assert cell["source"] == other["source"]
        assert [each["output_type"] for each in cell.get("outputs", [])] == [
            each["output_type"] for each in other.get("outputs", [])
        ]
