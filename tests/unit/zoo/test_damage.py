"""Damaged zoos: changed weights, other architectures, wrong cards."""

from __future__ import annotations

from pathlib import Path

import pytest

from lipverify import zoo
from lipverify.errors import InvalidFile


def test_changed_weights_are_refused_before_they_are_read(copy: Path) -> None:
    path = copy / "digits-relu-mlp" / "weights.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(InvalidFile, match=r"sha256.*zoo build digits-relu-mlp --force"):
        zoo.load_module("digits-relu-mlp")
    # Even what is no safetensors file at all gets no further than the hash.
    path.write_bytes(b"\x80\x04pickle")
    with pytest.raises(InvalidFile, match="sha256"):
        zoo.load_module("digits-relu-mlp")
    path.unlink()
    with pytest.raises(InvalidFile, match="no such file"):
        zoo.load_module("digits-relu-mlp")


@pytest.mark.parametrize(
    ("layers", "tensor"),
    [
        ("nn.Linear(13, 3)", "1.weight"),
        ("nn.Linear(13, 32), nn.SELU(), nn.Linear(32, 16), nn.SELU(), nn.Linear(16, 4)", "5.weight"),
        ("nn.Linear(13, 32), nn.SELU(), nn.Linear(32, 16), nn.SELU(), nn.Linear(16, 3).double()", "5.bias"),
    ],
    ids=["missing", "shape", "dtype"],
)
def test_weights_must_fit_the_architecture_exactly(copy: Path, layers: str, tensor: str) -> None:
    path = copy / "wine-selu" / "model.py"
    head, _, _ = path.read_text().partition("def build")
    path.write_text(f"{head}def build():\n    return nn.Sequential(Standardise(13), {layers})\n")
    with pytest.raises(InvalidFile, match=rf"do not fit model\.py: .*{tensor}"):
        zoo.load_module("wine-selu")


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ('norm = "l2"', 'norm = "l3"', "claim.norm"),
        ("constant = 1.0", "constant = -1.0", "claim.constant"),
        ("constant = 1.0", "constant = inf", "claim.constant"),
        ("constant = 1.0", "constant = 1", "claim.constant must be float"),
        ("constant = 1.0", "", "claim.constant is missing"),
        ("holds = true", "holds = 1", "claim.holds must be bool"),
        ('analyzer = "product"', "", "claim.analyzer is missing"),
        ("input_shape = [64]", "input_shape = [0]", "shapes"),
        ("input_shape = [64]", "input_shape = []", "input_shape"),
        ("input_shape = [64]", 'input_shape = ["64"]', "input_shape must be int"),
        ("upper = [1.0]", "upper = [0.0]", "input_box.lower"),
        ("upper = [1.0]", "upper = [1.0, 1.0]", "input_box"),
        ('sha256 = "', 'sha256 = "x', "measured.sha256"),
        ("seed = 2", "seed = true", "training.seed must be int"),
        ("epochs = 40", "epochs = 0", "epochs"),
        ("test_accuracy = 0", "test_accuracy = 2", "accuracies"),
        ("[training]", "[trainings]", "is missing|is unknown"),
        ('name = "digits', 'name = "figures', "name must be"),
        ("[claim]", "surprise", "readable card"),
    ],
)
def test_a_wrong_card_is_refused_by_field(copy: Path, old: str, new: str, problem: str) -> None:
    path = copy / "digits-maxmin-orthogonal" / "card.toml"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(InvalidFile, match=problem):
        zoo.card("digits-maxmin-orthogonal")
