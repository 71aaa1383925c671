"""Imports point one way, and the light doors stay light."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "lipverify"
LAYERS = {
    "errors": set(),
    "linalg": {"errors"},
    "loading": {"errors"},
    "checkers": {"errors"},
    "ir": {"errors", "loading"},
    "rules": {"errors", "ir"},
    "ops": {"errors", "ir", "rules", "linalg", "loading"},
    "interpreter": {"errors", "ir", "rules", "ops"},
    "frontends": {"errors", "ir", "rules", "ops", "interpreter", "loading"},
    "passes": {"errors", "ir", "rules", "ops", "interpreter", "loading"},
    "propagation": {"errors", "ir", "rules", "ops", "linalg"},
    "analyzers": {
        "errors",
        "ir",
        "rules",
        "ops",
        "linalg",
        "interpreter",
        "loading",
        "propagation",
        "certificates",
    },
    "certificates": {
        "errors",
        "ir",
        "rules",
        "ops",
        "interpreter",
        "loading",
        "zoo",
        "checkers",
        "documents",
        "analyzers",
    },
    "combine": {"errors", "ir", "rules", "ops", "interpreter"},
    "questions": {
        *("errors", "ir", "ops", "linalg", "interpreter", "loading", "propagation", "combine", "analyzers"),
        *("falsify", "documents", "reporting", "options", "certificates", "checkers"),
    },
    "zoo": {"errors", "loading"},
    "reporting": {"errors", "loading", "ir"},
}


def imported(path: Path) -> set[str]:
    """The parts of lipverify that a file names in its imports, wherever they stand."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = (
                [node.module] if node.module != "lipverify" else [f"lipverify.{a.name}" for a in node.names]
            )
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        found |= {name.split(".")[1] for name in names if name.startswith("lipverify.")}
    return found


@pytest.mark.parametrize("part", sorted(LAYERS))
def test_imports_point_one_way(part: str) -> None:
    files = (
        [PACKAGE / f"{part}.py"]
        if (PACKAGE / f"{part}.py").exists()
        else sorted((PACKAGE / part).rglob("*.py"))
    )
    assert files
    for path in files:
        beyond = imported(path) - LAYERS[part] - {part, "__version__"}
        assert not beyond, f"{path.relative_to(PACKAGE)} imports {beyond}"


@pytest.mark.parametrize(
    "statement", ["import lipverify", "import lipverify.cli", "import lipverify.checkers"]
)
def test_the_light_doors_load_nothing_heavy(statement: str) -> None:
    heavy = "[m for m in ('torch', 'onnx', 'cvxpy', 'scipy', 'sklearn', 'jinja2') if m in sys.modules]"
    code = f"import sys; {statement}; print({heavy})"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == "[]"


def modules(path: Path) -> set[str]:
    """The modules of lipverify that a file imports."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("lipverify"):
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.startswith("lipverify")}
    return found


def under(names: set[str], *roots: str) -> bool:
    return all(any(name == root or name.startswith(f"{root}.") for root in roots) for name in names)


def test_the_kernel_stands_alone_and_the_reader_knows_no_proofs() -> None:
    checkers = "lipverify.checkers"
    for path in (PACKAGE / "checkers" / "kernel").glob("*.py"):
        assert under(modules(path), f"{checkers}.kernel", "lipverify.errors"), path.name
    for path in (PACKAGE / "checkers" / "reader").glob("*.py"):
        known = modules(path)
        allowed = [f"{checkers}.kernel.{part}" for part in ("program", "curves", "arithmetic")]
        own = (f"{checkers}.reader", f"{checkers}.evaluation", "lipverify.errors")
        assert under(known, *own, *allowed), (path.name, known)


def test_certificates_know_nothing_private_of_analyzers() -> None:
    for path in (PACKAGE / "certificates").glob("*.py"):
        known = {name for name in modules(path) if name.startswith("lipverify.analyzers")}
        assert under(known, "lipverify.analyzers.protocol"), path.name
        assert not [name for name in modules(path) if "._" in name.replace("__version__", "")]


def test_only_the_reference_solver_imports_cvxpy() -> None:
    # Its name as a text, in lists of versions, imports nothing.
    statement = re.compile(r"^\s*(import|from)\s+cvxpy\b|import_module\(.cvxpy", re.MULTILINE)
    users = [p for p in PACKAGE.rglob("*.py") if statement.search(p.read_text(encoding="utf-8"))]
    assert {p.relative_to(PACKAGE).parts[:2] for p in users} == {("analyzers", "lipsdp")}


def test_nobody_uses_torchvision() -> None:
    assert not [p for p in PACKAGE.rglob("*.py") if "torchvision" in p.read_text(encoding="utf-8")]
