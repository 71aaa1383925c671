"""Which specifications mean a zoo network, and what may not be executed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lipverify import zoo
from lipverify.errors import UnsafeInput, UsageError


def test_both_spellings_resolve(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    own = zoo.root() / "digits-cnn"
    assert zoo.resolve("zoo:digits-cnn") == own
    assert zoo.resolve(own) == own
    link = tmp_path / "shortcut"
    link.symlink_to(own)
    assert zoo.resolve(link) == own
    monkeypatch.chdir(zoo.root().parent)
    assert zoo.resolve(f"{zoo.root().name}/digits-cnn/") == own
    monkeypatch.chdir(tmp_path)
    assert zoo.resolve("models_zoo/digits-cnn") == own


@pytest.mark.parametrize("spec", ["net.onnx", "models_zoo", "models_zoo/no-such-net", ".", "", "a\0b", "cnn"])
def test_other_specifications_are_not_of_the_zoo(
    spec: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert zoo.resolve(spec) is None


@pytest.mark.parametrize("name", ["", "no-such-net", "../models_zoo/digits-cnn", "digits-cnn/", "\x1b[31m"])
def test_unknown_names_are_refused_with_the_known_ones(name: str) -> None:
    for ask in (lambda: zoo.resolve(f"zoo:{name}"), lambda: zoo.card(name), lambda: zoo.load_module(name)):
        with pytest.raises(UsageError, match="digits-cnn") as refusal:
            ask()
        assert str(refusal.value).isprintable()


@pytest.mark.parametrize("inside", ["digits-cnn", "mine"])
def test_a_folder_elsewhere_is_refused_and_not_run(
    inside: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "models_zoo" / inside
    shutil.copytree(zoo.root() / "digits-cnn", folder)
    (folder / "model.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    monkeypatch.chdir(tmp_path)
    for spec in (folder, f"models_zoo/{inside}", f"models_zoo/../models_zoo/{inside}/"):
        with pytest.raises(UnsafeInput, match=r"--arch.*--trust-code") as refusal:
            zoo.resolve(spec)
        assert refusal.value.exit_code == 6
        assert ("zoo:digits-cnn" in str(refusal.value)) == (inside == "digits-cnn")
    assert not (tmp_path / "ran").exists()


def test_a_folder_of_the_zoo_that_links_elsewhere_is_refused(copy: Path, tmp_path: Path) -> None:
    shutil.move(copy / "digits-cnn", tmp_path / "elsewhere")
    (copy / "digits-cnn").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UnsafeInput):
        zoo.resolve(copy / "digits-cnn")


def test_an_installed_package_uses_the_zoo_inside_it(tmp_path: Path) -> None:
    checkout = Path(zoo.__file__).parents[2]
    shutil.copytree(
        checkout / "lipverify", tmp_path / "lipverify", ignore=shutil.ignore_patterns("__pycache__")
    )
    program = "from lipverify import zoo; print(zoo.root(), *zoo.names(), sep='\\n')"
    ask = [sys.executable, "-P", "-c", program]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    without = subprocess.run(ask, env=environment, capture_output=True, text=True, check=False)
    assert "UsageError" in without.stderr
    shutil.copytree(zoo.root(), tmp_path / "lipverify" / "_models_zoo")
    lines = subprocess.run(ask, env=environment, capture_output=True, text=True, check=True).stdout.split()
    assert lines == [str((tmp_path / "lipverify" / "_models_zoo").resolve()), *zoo.names()]
