"""Imports point one way, and the light doors stay light."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "lipverify"
FACE = ("__init__", "__main__", "cli")
"""The doors of the package: they may open every room, and no room opens them."""
LEAVES = {"deadline", "memory"}
"""On the ground, for every room: they end work, and change no number."""
LAYERS: dict[str, str] = {
    "version": "",
    "errors": "",
    "deadline": "errors",
    "memory": "errors",
    "units": "errors version",
    "linalg": "errors",
    "loading": "errors",
    "checkers": "errors",
    "settings": "errors",
    "options": "errors loading",
    "zoo": "errors loading",
    "ir": "errors loading",
    "reporting": "errors loading ir",
    "documents": "ir version",
    "rules": "errors ir",
    "ops": "errors ir rules linalg loading",
    "testing": "errors ir rules ops",
    "interpreter": "errors ir rules ops",
    "frontends": "errors ir rules ops interpreter loading",
    "nn": "errors ir rules ops frontends",
    "passes": "errors ir rules ops interpreter loading",
    "combine": "errors ir rules ops interpreter loading",
    "propagation": "errors ir rules ops linalg",
    "execution": "errors ir rules ops checkers propagation",
    "certificates": "errors version ir rules ops linalg interpreter loading zoo checkers documents",
    "analyzers": "errors ir rules ops linalg interpreter loading propagation certificates",
    "falsify": "errors ir ops linalg interpreter propagation analyzers",
    "failures": "errors ir certificates analyzers",
    "results": "errors ir loading certificates analyzers documents reporting",
    "pipeline": "errors loading zoo ir ops frontends passes certificates propagation analyzers falsify failures results",
    "monotonicity": "errors ir ops interpreter propagation checkers certificates analyzers documents reporting",
    "robustness": "errors units loading ir ops linalg interpreter propagation certificates analyzers falsify failures "
    "documents reporting pipeline",
    "comparison": "errors units loading ir analyzers falsify failures documents reporting pipeline robustness",
    "questions": "errors options loading checkers ir ops linalg interpreter propagation combine certificates analyzers falsify "
    "documents reporting",
    "convexity": "errors ir rules ops interpreter propagation checkers certificates documents reporting monotonicity",
    "derived": "analyzers errors version loading checkers ir ops interpreter "
    "propagation combine certificates falsify results documents reporting pipeline",
    "taking": "errors settings loading ir pipeline comparison",
    "verbs": "errors settings loading checkers ir interpreter propagation execution certificates analyzers falsify pipeline "
    "results monotonicity robustness comparison convexity questions derived taking",
    "commands": "errors version settings options loading zoo checkers ir interpreter execution certificates analyzers falsify "
    "failures results documents reporting pipeline monotonicity robustness comparison convexity questions",
}
"""From the ground up: a room, and the rooms below it that it may import."""


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


def test_every_room_stands_on_rooms_below_it() -> None:
    rooms = {
        path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()
    }
    assert rooms - set(FACE) == set(LAYERS)
    page = (PACKAGE.parent / "docs" / "architecture.md").read_text(encoding="utf-8")
    assert not [name for name in LAYERS if f"`{name}/`" not in page and f"`{name}.py`" not in page]
    below: set[str] = set()
    for part, allowed in LAYERS.items():
        assert set(allowed.split()) <= below, part
        below.add(part)


def files_of(part: str) -> list[Path]:
    loose = PACKAGE / f"{part}.py"
    return [loose] if loose.exists() else sorted((PACKAGE / part).rglob("*.py"))


@pytest.mark.parametrize("part", LAYERS)
def test_imports_point_one_way(part: str) -> None:
    assert files_of(part)
    for path in files_of(part):
        beyond = imported(path) - set(LAYERS[part].split()) - LEAVES - {part}
        assert not beyond, f"{path.relative_to(PACKAGE)} imports {beyond}"


def private(path: Path) -> set[str]:
    """Names with an underscore in front that a file takes from another package: imported, or looked up in an imported module."""
    own, found, bound = path.relative_to(PACKAGE).parts[0], set(), set()
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("lipverify"):
            if (node.module or "").split(".")[1:2] == [own.removesuffix(".py")]:
                continue
            bound |= {alias.asname or alias.name for alias in node.names}
            names = [*(node.module or "").split("."), *(alias.name for alias in node.names)]
            found |= {name for name in names if name.startswith("_") and name != "__version__"}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in bound:
            found |= {node.attr} if re.match("_[^_]", node.attr) else set()
    return found


def test_nothing_private_crosses_packages() -> None:
    for path in PACKAGE.rglob("*.py"):
        assert not private(path), f"{path.relative_to(PACKAGE)} takes {private(path)}"


@pytest.mark.parametrize(
    "statement", ["import lipverify", "import lipverify.cli", "import lipverify.checkers"]
)
def test_the_light_doors_load_nothing_heavy(statement: str) -> None:
    heavy = "[m for m in ('torch', 'onnx', 'cvxpy', 'scipy', 'sklearn', 'jinja2') if m in sys.modules]"
    code = f"import sys; {statement}; print({heavy})"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=280, check=True
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
        assert under(modules(path), f"{checkers}.kernel", "lipverify.errors", "lipverify.deadline"), path.name
    for path in (PACKAGE / "checkers" / "reader").glob("*.py"):
        known = modules(path)
        allowed = [f"{checkers}.kernel.{part}" for part in ("program", "curves", "arithmetic", "account")]
        own = (f"{checkers}.reader", f"{checkers}.evaluation", "lipverify.errors")
        assert under(known, *own, *allowed), (path.name, known)


def test_only_the_reference_solver_imports_cvxpy() -> None:
    # Its name as a text, in lists of versions, imports nothing.
    statement = re.compile(r"^\s*(import|from)\s+cvxpy\b|import_module\(.cvxpy", re.MULTILINE)
    users = [p for p in PACKAGE.rglob("*.py") if statement.search(p.read_text(encoding="utf-8"))]
    assert {p.relative_to(PACKAGE).parts[:2] for p in users} == {("analyzers", "lipsdp")}


def test_nobody_uses_torchvision() -> None:
    assert not [p for p in PACKAGE.rglob("*.py") if "torchvision" in p.read_text(encoding="utf-8")]
