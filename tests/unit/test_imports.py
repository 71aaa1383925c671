"""Imports point one way, and the light doors stay light."""

from __future__ import annotations

import ast
import functools
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
    "analyzers": "errors ir rules ops linalg interpreter loading passes propagation certificates",
    "falsify": "errors ir rules ops linalg interpreter propagation analyzers",
    "failures": "errors ir certificates analyzers",
    "results": "errors ir loading certificates analyzers documents reporting",
    "joining": "ir certificates analyzers results",
    "pipeline": "errors units loading zoo ir ops frontends passes certificates propagation analyzers falsify failures results "
    "joining",
    "monotonicity": "errors ir ops interpreter propagation checkers certificates analyzers documents reporting",
    "robustness": "errors units loading ir ops linalg interpreter propagation certificates analyzers falsify failures "
    "documents reporting pipeline",
    "comparison": "errors version units loading ir analyzers falsify failures documents reporting pipeline robustness",
    "questions": "errors options loading checkers ir ops linalg interpreter propagation combine certificates analyzers falsify "
    "documents reporting units",
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


def imported(tree: ast.AST) -> set[str]:
    """The parts of lipverify that a file names in its imports, wherever they stand; the package itself as `lipverify`, an
    import relative to the file, which is not our way, as it stands there."""
    found = set()
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            names = [module] if module != "lipverify" else [f"lipverify.{a.name}" for a in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.Call) and _called(node.func).endswith(("import_module", "__import__")):
            # The name may be computed, of texts that stand in the file: each of them counts.
            texts = [
                n.value for n in ast.walk(tree) if isinstance(n, ast.Constant) and isinstance(n.value, str)
            ]
            names = [text for text in texts if re.fullmatch(r"lipverify\.\w[\w.:]*", text)]
        for name in names:
            if name.startswith("."):
                found.add(name)
            elif name.split(".")[0] == "lipverify":
                found.add(name.split(".")[1] if "." in name else name)
    return found


def _called(function: ast.expr) -> str:
    """The last name of what is called."""
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")


@functools.cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def test_every_room_stands_on_rooms_below_it() -> None:
    rooms = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or any(path.rglob("*.py"))}
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
        beyond = imported(parsed(path)) - set(LAYERS[part].split()) - LEAVES - {part}
        assert not beyond, f"{path.relative_to(PACKAGE)} imports {beyond}"


def private(tree: ast.AST, own: str) -> set[str]:
    """Names with an underscore in front that a file of the room `own` takes from another: imported, or looked up in what it
    imports, however deep."""
    found, bound = set(), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("lipverify"):
            if (node.module or "").split(".")[1:2] == [own]:
                continue
            bound |= {alias.asname or alias.name for alias in node.names}
            names = [*(node.module or "").split("."), *(alias.name for alias in node.names)]
            found |= {name for name in names if re.match("_[^_]", name)}
        elif isinstance(node, ast.Import):
            for alias in node.names:
                parts = alias.name.split(".")
                if parts[0] == "lipverify" and parts[1:2] != [own]:
                    bound.add(alias.asname or "lipverify")
                    found |= {part for part in parts if re.match("_[^_]", part)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and re.match("_[^_]", node.attr) and _root(node.value) in bound:
            found.add(node.attr)
        if isinstance(node, ast.Call) and _called(node.func) == "getattr" and len(node.args) > 1:
            of, name = node.args[0], node.args[1]
            hidden = isinstance(name, ast.Constant) and re.match("_[^_]", str(name.value))
            if hidden and _root(of) in bound:
                found.add(str(name.value))
    return found


def _root(node: ast.expr) -> str | None:
    """The name that an expression begins with, where it is a name or one looked up in another: no call between."""
    while isinstance(node, ast.Attribute):
        node = node.value
    return node.id if isinstance(node, ast.Name) else None


def test_nothing_private_crosses_packages() -> None:
    for path in PACKAGE.rglob("*.py"):
        room = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        assert not private(parsed(path), room), (
            f"{path.relative_to(PACKAGE)} takes {private(parsed(path), room)}"
        )


@pytest.mark.parametrize(
    "source",
    [
        "from lipverify.cli import main",
        "def f():\n    import lipverify.cli",
        "import lipverify",
        "import lipverify as lv",
        "from lipverify import audit",
        "from ..commands import shell",
        "from . import somewhere",
        "import importlib\nimportlib.import_module('lipverify.commands.shell')",
        "from importlib import import_module\nPLACES = {'a': 'lipverify.commands.shell:Verb'}\nimport_module(PLACES[name])",
    ],
)
def test_every_way_to_import_is_seen(source: str) -> None:
    assert imported(ast.parse(source)) - set(LAYERS["ir"].split()) - LEAVES - {"ir"}


@pytest.mark.parametrize(
    "source",
    [
        "from lipverify.ops.scalar import _hidden",
        "from lipverify.ops import _hidden as shown",
        "from lipverify.ops._hidden import shown",
        "from lipverify import ops\nops._hidden()",
        "from lipverify import ops\nops.scalar._hidden()",
        "import lipverify.ops.scalar\nlipverify.ops.scalar._hidden",
        "import lipverify.ops.scalar as s\ns._hidden",
        "import lipverify.ops._hidden",
        "from lipverify import ops\ngetattr(ops, '_hidden')",
    ],
)
def test_every_way_to_take_a_private_name_is_seen(source: str) -> None:
    assert private(ast.parse(source), "ir")
    assert not private(ast.parse(source.replace("_hidden", "shown")), "ir")


def circles(needs: dict[str, set[str]]) -> list[str]:
    """Files that import each other while they are loaded: what is left when files that need nothing left are taken away."""
    left = dict(needs)
    while ready := {name for name, others in left.items() if not others & set(left) - {name}}:
        left = {name: others for name, others in left.items() if name not in ready}
    return sorted(left)


def needed(path: Path, known: set[str]) -> set[str]:
    """The files of lipverify that a file imports while it is loaded: not in functions, and not for types alone."""
    found, open_ = set(), list(parsed(path).body)
    while open_:
        node = open_.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            open_ += node.orelse
            continue
        if isinstance(node, ast.ImportFrom) and node.module:
            below = {f"{node.module}.{alias.name}" for alias in node.names} & known
            found |= below or {node.module}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        open_ += [
            child for child in ast.iter_child_nodes(node) if isinstance(child, ast.stmt | ast.excepthandler)
        ]
    return found & known


def test_no_circle_of_files() -> None:
    files = {
        ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__"): path
        for path in PACKAGE.rglob("*.py")
    }
    assert not circles({name: needed(path, set(files)) for name, path in files.items()})
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}, "e": set()}) == ["a", "b", "c", "d"]


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
    for node in ast.walk(parsed(path)):
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
