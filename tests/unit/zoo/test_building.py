"""Training again: what is intact stays, what is damaged comes back, a failure changes nothing."""

from __future__ import annotations

import hashlib
import os
import platform
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load

from lipverify import zoo
from lipverify.errors import InternalError, UsageError
from lipverify.zoo import building
from lipverify.zoo.card import read_card, with_measured
from tests.tiers import long

every_network = pytest.mark.parametrize("name", zoo.names())


@every_network
def test_a_rewritten_card_is_the_committed_card(name: str) -> None:
    folder = zoo.root() / name
    text = (folder / "card.toml").read_text(encoding="utf-8")
    measured = read_card(folder).measured
    assert with_measured(text, measured) == text
    assert with_measured(text.partition("\n[measured]")[0], measured) == text


def test_building_leaves_an_intact_network_alone(copy: Path) -> None:
    before = {path: os.stat(path).st_mtime_ns for path in copy.rglob("*")}
    lines: list[str] = []
    (card,) = zoo.build("digits-cnn", progress=lines.append)
    assert card == zoo.card("digits-cnn")
    assert lines == ["digits-cnn: up to date"]
    assert before == {path: os.stat(path).st_mtime_ns for path in copy.rglob("*")}


def test_a_failed_training_is_reported_and_changes_nothing(copy: Path) -> None:
    pytest.importorskip("sklearn", reason="scikit-learn brings the data")
    folder = copy / "wine-selu"
    (folder / "model.py").write_text("raise ValueError('no architecture today')")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(InternalError, match="training wine-selu failed: ValueError: no architecture today"):
        zoo.build("wine-selu", force=True)
    assert before == {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_zoo_that_cannot_be_written_keeps_what_it_had(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("sklearn", reason="scikit-learn brings the data")
    folder = copy / "wine-selu"
    monkeypatch.setattr(
        building, "retrain", lambda name, progress: (folder / "weights.safetensors").read_bytes()
    )

    def full(source: str, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(UsageError, match="No space left on device"):
        zoo.build("wine-selu", force=True)
    assert before == {path.name: path.read_bytes() for path in folder.iterdir()}


def test_without_scikit_learn_the_data_is_refused_with_the_line_that_installs_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "sklearn", None)
    for ask in (lambda: zoo.points("wine-selu"), lambda: zoo.retrain("wine-selu")):
        with pytest.raises(UsageError, match=r"pip install 'lipverify\[zoo\]'"):
            ask()


@long("trains a network; `make zoo` trains all")
def test_retraining_restores_a_damaged_network_up_to_last_bits(copy: Path) -> None:
    pytest.importorskip("sklearn", reason="scikit-learn brings the data")
    name, weights = "wine-selu", copy / "wine-selu" / "weights.safetensors"
    committed, text = weights.read_bytes(), (copy / name / "card.toml").read_text()
    weights.write_bytes(committed[:-1])
    lines: list[str] = []
    (card,) = zoo.build(name, progress=lines.append)
    rebuilt = weights.read_bytes()
    assert any("epoch 60/60" in line for line in lines)
    assert hashlib.sha256(rebuilt).hexdigest() == card.measured.sha256
    assert card.measured.torch == torch.__version__
    assert sorted(path.name for path in (copy / name).iterdir()) == [
        "card.toml",
        "model.py",
        "weights.safetensors",
    ]
    zoo.load_module(name)
    made_with = read_card(zoo.root() / name).measured.torch
    if rebuilt == committed:
        # Two processes, here and where the weights were made, gave the same bytes.
        assert (copy / name / "card.toml").read_text() == text or made_with != torch.__version__
        return
    assert zoo.retrain(name) == rebuilt
    if made_with != torch.__version__ or platform.machine() not in ("x86_64", "AMD64"):
        pytest.skip(
            f"weights were made with torch {made_with} on x86-64: deterministic here, other bytes there"
        )
    # Libraries still choose some kernels by the processor's maker: only last bits may differ there.
    made, stored = load(rebuilt), load(committed)
    assert made.keys() == stored.keys()
    for key, tensor in stored.items():
        assert float((made[key] - tensor).abs().max()) <= 2e-6 * float(tensor.abs().max())
