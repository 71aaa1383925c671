"""Documentation that cannot go stale unseen: its code runs, its tables are current, its links lead somewhere."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from typer.main import get_command

from lipverify.cli import app
from tests.processes import run

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.glob("*.md"))]
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)#\s]+)(#[^)]*)?\)")
FENCED = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
COMMAND = re.compile(r"^\$ (?:\.venv/bin/)?lipverify (\w+)", re.MULTILINE)


def blocks(page: Path) -> list[str]:
    return BLOCK.findall(page.read_text(encoding="utf-8"))


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page)], ids=lambda page: page.name)
def test_the_code_of_a_page_runs(page: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2)).eval()
    torch.onnx.export(module, (torch.zeros(2, 4),), tmp_path / "net.onnx", dynamo=False, verbose=False)
    text = "\n".join(blocks(page))
    (tmp_path / "page.py").write_text(text, encoding="utf-8")
    if "register" in text:  # for good: in a process of its own
        done = run(tmp_path / "page.py", folder=tmp_path, timeout=250)
        assert done.returncode == 0, done.stderr[-3000:]
        return
    with (
        contextlib.chdir(tmp_path),
        contextlib.redirect_stdout(io.StringIO()),
        torch.random.fork_rng(devices=[]),
    ):
        runpy.run_path("page.py", run_name="__main__")


def test_the_pages_that_teach_have_code() -> None:
    for name in ("adding-an-operator.md", "adding-an-analyzer.md", "reading-a-bound.md"):
        assert any("assert" in block or "check_operator" in block for block in blocks(DOCS / name)), name


@pytest.mark.parametrize("script", ["generate.py", "picture.py"])
def test_generated_tables_and_the_picture_are_current(script: str) -> None:
    done = run(DOCS / script, "--check", timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files(page: Path) -> None:
    for target, _ in LINK.findall(page.read_text(encoding="utf-8")):
        if not target.startswith(("http://", "https://")):
            assert (page.parent / target).exists(), target


def test_every_page_is_in_the_menu() -> None:
    menu = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    for page in DOCS.rglob("*.md"):
        assert page.relative_to(DOCS).as_posix() in menu, page.name


def test_commands_that_are_shown_exist() -> None:
    from lipverify.cli import app, zoo_app
    from lipverify.commands.questions import verbs

    known = {c.name or c.callback.__name__ for c in app.registered_commands if c.callback is not None}
    known |= set(verbs())
    assert zoo_app.registered_commands
    for page in PAGES:
        for name in COMMAND.findall(page.read_text(encoding="utf-8")):
            assert name in known | {"zoo"}, (page.name, name)


def test_options_and_analyzers_that_are_shown_exist() -> None:
    """Of whole commands and of single options, in blocks and in lines."""
    from typer.main import get_command

    from lipverify.analyzers import registry
    from lipverify.cli import app
    from lipverify.commands.questions import Later, verbs

    command = get_command(app)
    commands = dict(command.commands)  # type: ignore[attr-defined]
    commands |= {verb: Later(verb).built() for verb in verbs()}
    known = {n: {o for p in c.params for o in (*p.opts, *p.secondary_opts)} for n, c in commands.items()}
    shown = 0
    for page in [*PAGES, ROOT / "CONTRIBUTING.md"]:
        text = page.read_text(encoding="utf-8")
        lines = re.findall(r"^\$ .*", text, re.MULTILINE) + re.findall(r"`([^`]+)`", FENCED.sub("", text))
        for line in (found.replace("\n", " ") for found in lines):
            verb = re.search(r"(?<!\S)(audit|radius|compare|verify|inspect|doctor|deviate) ", line)
            allowed = known[verb[1]] if verb else set().union(*known.values())
            allowed |= {"--help", "--debug", "--check", "--shape"}
            if verb or line.startswith("--"):
                for option in re.findall(r"(?<!\S)(--[a-z][a-z-]*)", line):
                    shown += 1
                    assert option in allowed, (page.name, line)
            for names in re.findall(r"--analyzers ([a-z][a-z:,-]+)", line):
                assert set(names.split(",")) <= {*registry.names(), "frobenius"}, (page.name, line)
    assert shown > 40


@pytest.mark.skipif(importlib.util.find_spec("mkdocs") is None, reason="the extra `docs` is not installed")
def test_the_site_builds_and_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    pages = list(tmp_path.rglob("*.html"))
    assert len(pages) >= len(PAGES)
    for page in pages:
        assert not re.search(
            r"(?:src=|<link[^>]* href=)\"(?:https?:)?//", page.read_text(encoding="utf-8")
        ), page


def test_what_is_left_to_the_second_tier_is_listed() -> None:
    tests = ROOT / "tests"
    uses = re.compile(r"^from tests\.tiers import", re.MULTILINE)
    files = [path for path in tests.rglob("test_*.py") if uses.search(path.read_text(encoding="utf-8"))]
    listed = re.findall(r"^\| `([^`]+)` \|", (DOCS / "testing.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(listed) == sorted(path.relative_to(tests).as_posix() for path in files)


def test_every_analyzer_names_the_function_with_its_proof() -> None:
    from lipverify.analyzers import registry
    from lipverify.analyzers.protocol import docstring_field

    for name in registry.BUILT_IN:
        file, _, function = (docstring_field(registry.resolve(name), "Proof") or "").partition(":")
        assert re.search(rf"^def {function}\(", (ROOT / file).read_text(encoding="utf-8"), re.MULTILINE), name


def test_commands_of_the_readme_write_beside_what_comes_with_a_clone() -> None:
    """A folder that the repository has is no folder of theirs: `--out` refuses it."""
    named = re.findall(r"--out (reports/\S+)", (ROOT / "README.md").read_text(encoding="utf-8"))
    assert len(named) > 4
    assert not [
        name for name in named if (ROOT / name / "README.md").exists() or (ROOT / name / "build.py").exists()
    ]


def test_the_readme_names_what_verify_takes() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    part = text.split("| option of `verify` |")[1].split("\n\n")[0]
    command = get_command(app).commands["verify"]  # type: ignore[attr-defined]
    taken = {option for p in command.params for option in p.opts if option.startswith("--")}
    assert set(re.findall(r"--[a-z][a-z-]*", part)) == taken - {"--model", "--json", "--help"}
