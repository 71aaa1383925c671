"""The model zoo: cards, weights, figures, and what may not be executed."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load
from torch import nn

from lipverify import claims, zoo
from lipverify.errors import InternalError, InvalidFile, UnsafeInput, UsageError
from lipverify.zoo import building, location, network
from lipverify.zoo.card import read_card, with_measured
from tests.command import lipverify

EXPECTED = {
    "cancer-gelu",
    "digits-aol",
    "digits-cnn",
    "digits-deq",
    "digits-groupsort",
    "digits-householder",
    "digits-int8",
    "digits-ldlt",
    "digits-maxmin-orthogonal",
    "digits-plain-cnn",
    "digits-pruned",
    "digits-relu-mlp",
    "digits-residual-mlp",
    "digits-resnet",
    "digits-sandwich",
    "digits-silu-mlp",
    "digits-sll",
    "digits-sll-broken",
    "digits-spectral",
    "digits-tanh-mlp",
    "digits-weight-norm",
    "wine-selu",
}
BY_CONSTRUCTION = (
    "digits-aol",
    "digits-householder",
    "digits-ldlt",
    "digits-maxmin-orthogonal",
    "digits-sandwich",
    "digits-sll",
)
every_network = pytest.mark.parametrize("name", zoo.names())


@pytest.fixture
def copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A zoo of our own that a test may damage."""
    folder = tmp_path / "models_zoo"
    shutil.copytree(zoo.root(), folder)
    for module in (location, building, network):
        monkeypatch.setattr(module, "root", folder.resolve)
    return folder


def jacobians(module: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """[batch, outputs, inputs] in float64."""
    module = module.double()
    return torch.func.vmap(torch.func.jacrev(lambda point: module(point[None])[0].flatten()))(x.double())


def test_the_zoo_has_its_networks() -> None:
    assert set(zoo.names()) == EXPECTED


def test_importing_the_zoo_and_reading_cards_stays_light() -> None:
    program = (
        "import sys; from lipverify import zoo; [zoo.card(name) for name in zoo.names()];"
        "sys.exit(any(heavy in sys.modules for heavy in ('torch', 'sklearn', 'onnx')))"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


@every_network
def test_card_speaks_of_the_stored_network(name: str) -> None:
    module, card = zoo.load_module(name)
    content = (zoo.root() / name / "weights.safetensors").read_bytes()
    assert card.name == name
    assert hashlib.sha256(content).hexdigest() == card.measured.sha256
    assert sum(parameter.numel() for parameter in module.parameters()) == card.measured.parameters
    assert not module.training
    x = zoo.example_input(card)
    assert tuple(module(x).shape) == (2, *card.output_shape)
    assert torch.equal(x, zoo.example_input(card))
    # More bytes than a clone should carry would mean that something else was stored.
    assert len(content) < 120_000


@every_network
def test_accuracy_of_the_card_is_that_of_the_stored_weights(name: str) -> None:
    pytest.importorskip("sklearn", reason="scikit-learn brings the data")
    module, card = zoo.load_module(name)
    x, y = zoo.test_data(name)
    assert len(y) == card.measured.test_samples
    assert zoo.accuracy(module, x, y) == card.measured.test_accuracy
    # Any useful bound is about a network that learned something.
    assert card.measured.test_accuracy > 0.95
    data = network.load_data(card.training.data, card.input_shape)
    assert len(data.y_train) == card.measured.train_samples
    assert zoo.accuracy(module, data.x_train, data.y_train) == card.measured.train_accuracy


@every_network
def test_data_lies_in_the_input_box_and_points_are_classified_correctly(name: str) -> None:
    pytest.importorskip("sklearn", reason="scikit-learn brings the data")
    module, card = zoo.load_module(name)
    lower, upper = (torch.tensor(side) for side in (card.input_box.lower, card.input_box.upper))
    x, _ = zoo.test_data(name)
    assert (x.flatten(1) >= lower).all()
    assert (x.flatten(1) <= upper).all()
    example = zoo.example_input(card, batch=64).flatten(1)
    assert (example >= lower).all()
    assert (example <= upper).all()
    points, labels = zoo.points(name, count=5)
    assert points.shape == (5, *card.input_shape)
    assert torch.equal(module(points).argmax(dim=1), labels)


@every_network
def test_networks_export_with_a_symbolic_batch(name: str) -> None:
    module, card = zoo.load_module(name)
    program = torch.export.export(
        module, (zoo.example_input(card),), dynamic_shapes=({0: torch.export.Dim("batch")},)
    )
    x = zoo.example_input(card, batch=7)
    # The same kernels on the same numbers; a folded parametrisation may round once more.
    torch.testing.assert_close(program.module()(x), module(x), rtol=1e-5, atol=1e-5)


def test_loading_leaves_the_random_numbers_of_the_caller_alone() -> None:
    before = torch.get_rng_state()
    zoo.load_module("digits-spectral")
    assert torch.equal(before, torch.get_rng_state())


def test_the_orthogonal_network_attains_its_claim() -> None:
    module, card = zoo.load_module("digits-maxmin-orthogonal")
    assert card.claim is not None
    assert (card.claim.constant, card.claim.norm) == (1.0, "l2")
    product = 1.0
    for weight in (layer.weight.double() for layer in module if isinstance(layer, nn.Linear)):
        largest = float(torch.linalg.svdvals(weight.detach())[0])
        # The margin is 10^4 times the error of a float64 singular value of this size.
        assert largest < 1 - 1e-8
        product *= largest
    assert product > 1 - 1e-6
    x = torch.rand((50, 64), generator=torch.Generator().manual_seed(3))
    norms = torch.linalg.matrix_norm(jacobians(module, x), ord=2)
    assert (norms <= product).all()
    assert (norms >= 1 - 1e-6).all()


@every_network
def test_no_honest_claim_lies_below_a_sampled_slope(name: str) -> None:
    module, card = zoo.load_module(name)
    assert card.claim is not None
    order = {"l1": 1, "l2": 2, "linf": float("inf")}[card.claim.norm]
    x = zoo.example_input(card, batch=20)
    if name == "digits-deq":
        # An implicit layer has no forward-mode rule; differences along random directions are slopes as well.
        y = x + 1e-2 * torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
        largest = float(((module(x) - module(y)).norm(dim=1) / (x - y).norm(dim=1)).max().detach())
    else:
        matrices = jacobians(module, x).detach().flatten(2)
        largest = float(torch.linalg.matrix_norm(matrices, ord=order).max())
    assert largest > 0.04 * card.claim.constant
    assert (largest <= card.claim.constant) == card.claim.holds


@pytest.mark.parametrize("name", BY_CONSTRUCTION)
def test_constants_by_construction_are_confirmed_by_the_audit_alone(name: str) -> None:
    found = claims.check(name)
    assert found.claim.constant == 1.0
    assert found.verdict == "confirmed"
    uppers = {row.analyzer: row.upper for row in found.audit.rows}
    # Gains multiply where every layer is an isometry; elsewhere only LipSDP sees the construction.
    assert (uppers["product"] <= 1) == (found.claim.analyzer == "product")
    assert uppers[found.claim.analyzer] <= 1


def test_the_broken_copy_is_exposed_by_a_witness_that_anyone_can_evaluate() -> None:
    found = claims.check("digits-sll-broken")
    assert found.verdict == "refuted"
    assert found.as_expected
    witness = found.audit.lower.witness
    module, card = zoo.load_module("digits-sll-broken")
    assert card.claim is not None
    assert witness.partner is not None
    x, y = witness.points.double(), witness.partner.double()
    module = module.double()
    with torch.no_grad():
        slope = float((module(x) - module(y)).norm() / (x - y).norm())
    assert slope > 3 * card.claim.constant


@pytest.mark.parametrize(("constant", "verdict"), [(60.0, "confirmed"), (30.0, "refuted"), (42.0, "open")])
def test_a_claim_is_confirmed_refuted_or_left_open(
    constant: float, verdict: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    card = zoo.card("digits-relu-mlp")
    assert card.claim is not None
    changed = replace(card, claim=replace(card.claim, constant=constant))
    monkeypatch.setattr(claims.zoo, "card", lambda name: changed)
    assert claims.check("digits-relu-mlp").verdict == verdict


def test_an_unclaimed_constant_cannot_be_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    card = replace(zoo.card("wine-selu"), claim=None)
    monkeypatch.setattr(claims.zoo, "card", lambda name: card)
    with pytest.raises(UsageError, match="claims no constant"):
        claims.check("wine-selu")


@pytest.mark.parametrize(("name", "code"), [("digits-aol", 0), ("digits-sll-broken", 3), ("absent", 2)])
def test_zoo_check_ends_with_the_exit_code_of_a_gate(name: str, code: int) -> None:
    done = lipverify("zoo", "check", name, "--json")
    assert done.returncode == code
    if code == 2:
        return
    (row,) = json.loads(done.stdout)["networks"]
    assert row["name"] == name
    assert row["verdict"] == ("confirmed" if code == 0 else "refuted")


def test_pruned_and_rounded_copies_have_what_their_cards_say() -> None:
    original, _ = zoo.load_module("digits-relu-mlp")
    pruned, _ = zoo.load_module("digits-pruned")
    rounded, _ = zoo.load_module("digits-int8")
    for whole, sparse, coarse in zip(original, pruned, rounded, strict=True):
        if not isinstance(whole, nn.Linear):
            continue
        kept = sparse.weight != 0
        assert torch.equal(sparse.weight[kept], whole.weight[kept])
        assert len(whole.weight) == 10 or float(kept.double().mean()) < 0.34
        step = whole.weight.abs().amax(dim=1, keepdim=True) / 127
        levels = coarse.weight / step
        assert float((levels - levels.round()).abs().max()) < 1e-4
        assert float((coarse.weight - whole.weight).abs().max()) <= float(step.max()) * 0.51


def test_the_spectral_network_keeps_its_parametrisation() -> None:
    module, card = zoo.load_module("digits-spectral")
    assert card.claim is not None
    linear = [layer for layer in module if isinstance(layer, nn.Linear)]
    assert all(torch.nn.utils.parametrize.is_parametrized(layer, "weight") for layer in linear)
    norms = [float(torch.linalg.svdvals(layer.weight.detach().double())[0]) for layer in linear]
    # A power iteration estimates from below: the effective norms are close to 1 and some exceed it.
    assert all(abs(norm - 1) < 1e-2 for norm in norms)
    assert max(norms) > 1
    assert claims.check("digits-spectral").verdict == "confirmed"


# -- which specifications mean a zoo network -----------------------------------------------------------------


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


# -- damaged zoos --------------------------------------------------------------------------------------------


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


# -- retraining ----------------------------------------------------------------------------------------------


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
    assert zoo.retrain(name) == rebuilt
    made_with = read_card(zoo.root() / name).measured.torch
    if made_with != torch.__version__ or platform.machine() not in ("x86_64", "AMD64"):
        pytest.skip(
            f"weights were made with torch {made_with} on x86-64: deterministic here, other bytes there"
        )
    if rebuilt == committed:
        assert (copy / name / "card.toml").read_text() == text
        return
    # Libraries still choose some kernels by the processor's maker: only last bits may differ there.
    made, stored = load(rebuilt), load(committed)
    assert made.keys() == stored.keys()
    for key, tensor in stored.items():
        assert float((made[key] - tensor).abs().max()) <= 2e-6 * float(tensor.abs().max())
