"""The networks of the zoo are what their cards say."""

from __future__ import annotations

import hashlib
import math
import subprocess
import sys

import pytest
import torch
from torch import nn

import lipverify as lv
from lipverify import zoo
from lipverify.commands import claims
from lipverify.zoo import network
from tests.tiers import also

EXPECTED = {
    "cancer-gelu",
    "digits-aol",
    "digits-cnn",
    "digits-convex-rnn",
    "digits-deq",
    "digits-groupsort",
    "digits-gru",
    "digits-householder",
    "digits-icnn",
    "digits-int8",
    "digits-ldlt",
    "digits-lstm",
    "digits-maxmin-orthogonal",
    "digits-plain-cnn",
    "digits-pruned",
    "digits-relu-mlp",
    "digits-residual-mlp",
    "digits-resnet",
    "digits-rnn",
    "digits-sandwich",
    "digits-silu-mlp",
    "digits-sll",
    "digits-sll-broken",
    "digits-spectral",
    "digits-tanh-mlp",
    "digits-vit",
    "digits-weight-norm",
    "text-gpt",
    "text-transformer",
    "wine-selu",
}
every_network = pytest.mark.parametrize("name", zoo.names())


def jacobians(module: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """[batch, outputs, *inputs] in float64."""
    module = module.double()

    def one(point: torch.Tensor) -> torch.Tensor:
        return module(point[None])[0].flatten()

    if any(isinstance(layer, nn.RNNBase) for layer in module.modules()):  # torch has no batched rule for them
        return torch.stack([torch.autograd.functional.jacobian(one, point) for point in x.double()])
    return torch.func.vmap(torch.func.jacrev(one))(x.double())


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
    # Any useful bound is about a network that learned something; a letter of a text is not known for certain.
    assert card.measured.test_accuracy > (0.3 if card.training.data == "text" else 0.95)
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


@pytest.mark.parametrize(
    "name",
    [
        name if name in ("digits-deq", "digits-householder") else also(name, "loading exports them so")
        for name in zoo.names()
    ],
)
def test_networks_export_with_a_symbolic_batch(name: str) -> None:
    module, card = zoo.load_module(name)
    program = torch.export.export(
        module, (zoo.example_input(card),), dynamic_shapes=({0: torch.export.Dim("batch")},)
    )
    x = zoo.example_input(card, batch=7)
    # The same kernels on the same numbers; a folded parametrisation may round once more.
    torch.testing.assert_close(program.module()(x), module(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", [name for name in zoo.names() if zoo.card(name).convex])
def test_cards_that_say_convex_are_proved_by_the_checker(name: str) -> None:
    path = zoo.root() / name / "weights.safetensors"
    found = lv.convex(lv.load(f"zoo:{name}"))
    assert [str(each.verdict) for each in found.findings] == ["convex"] * 10
    assert found.issued is not None
    assert " convex " in lv.verify(found.issued, path).claim
    # One weight below 0 where only positive ones keep convexity, and it is gone.
    module, _ = zoo.load_module(name)
    with torch.no_grad():
        module.head.weight[3, 5] = -1e-3
    card = zoo.card(name)
    broken = lv.convex(lv.extract(module, torch.zeros(2, *card.input_shape)))
    assert [k for k, each in enumerate(broken.findings) if str(each.verdict) != "convex"] == [3]


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
    order = {"l1": 1, "l2": 2, "linf": float("inf"), "token-rms": 2, "token-l2": 2}[card.claim.norm]
    x = zoo.example_input(card, batch=20)
    if name == "digits-deq":
        # An implicit layer has no forward-mode rule; differences along random directions are slopes as well.
        y = x + 1e-2 * torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
        largest = float(((module(x) - module(y)).norm(dim=1) / (x - y).norm(dim=1)).max().detach())
    else:
        matrices = jacobians(module, x).detach().flatten(2)
        largest = float(torch.linalg.matrix_norm(matrices, ord=order).max())
        if card.claim.norm.startswith("token-"):
            # Along the steepest direction in l2, as a slope between norms of tokens.
            step = torch.linalg.svd(matrices, full_matrices=False).Vh[:, 0]
            mean = card.claim.norm == "token-rms"
            moved, steps = (
                x.norm(dim=-1) / (math.sqrt(x.shape[-1]) if mean else 1.0)
                for x in (
                    (matrices @ step.unsqueeze(-1)).squeeze(-1),
                    step.unflatten(1, card.input_shape),
                )
            )
            largest = float((moved / steps.amax(1)).max())
    # Normalisation is steep near constant tokens, far from images, and recurrent steps multiply: only those claims are far above
    # any slope met here.
    assert (
        name in ("digits-vit", "text-gpt", "digits-rnn", "digits-gru", "digits-lstm")
        or largest > 0.04 * card.claim.constant
    )
    assert (largest <= card.claim.constant) == card.claim.holds


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
