"""Modules that are refused: the exit code and a sentence that says what to do."""

from __future__ import annotations

import logging

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lipverify.errors import ExtractionMismatch, InternalError, UnsupportedModel, UsageError
from lipverify.frontends import registry as tables
from lipverify.frontends.torch_export import extract, lower


class Function(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


EVAL = r"call module\.eval\(\) first"


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "layer",
    [
        nn.BatchNorm1d(4),
        nn.Dropout(0.5),
        nn.AlphaDropout(0.5),
        nn.RReLU(),
        nn.utils.parametrizations.spectral_norm(nn.Linear(4, 4)),
        torch.nn.utils.spectral_norm(nn.Linear(4, 4)),
    ],
    ids=["batch norm", "dropout", "alpha dropout", "rrelu", "spectral_norm", "spectral_norm, old"],
)
def test_training_mode_that_matters(layer):
    module = nn.Sequential(nn.Linear(4, 4), layer).train()
    with pytest.raises(UnsupportedModel, match=EVAL) as caught:
        extract(module, torch.zeros(2, 4))
    assert caught.value.exit_code == 5
    assert module.training
    assert extract(module.eval(), torch.zeros(2, 4)).output_shape == (4,)


def test_batch_statistics_in_evaluation_mode():
    module = nn.BatchNorm1d(4, track_running_stats=False).eval()
    with pytest.raises(UnsupportedModel, match=r"statistics of the batch.*keep running statistics"):
        extract(module, torch.zeros(2, 4))


def branch_on_data(x):
    return x if x.sum() > 0 else -x


def loop_on_data(x):
    for _ in range(int(x[0, 0])):
        x = x * 2
    return x


def branch_on_batch(x):
    return x if x.shape[0] > 4 else -x


def conditional(x):
    return torch.cond(torch.tensor(True), lambda y: y + 1, lambda y: y - 1, (x,))


REFUSED = {
    "branch on data": (branch_on_data, "branches on the values of its input"),
    "loop on data": (loop_on_data, "branches on the values of its input"),
    "branch on the batch size": (branch_on_batch, "treats batch sizes differently"),
    "fixed batch size": (lambda x: x.view(2, -1), "treats batch sizes differently"),
    "cond": (conditional, "not covered"),
    "complex": (lambda x: torch.fft.fft(x).real, "not covered|complex"),
    "sign": (lambda x: torch.sign(x), r'output "sign".* jumps'),
    "floor": (lambda x: x.floor() + x, "it jumps"),
    "round": (lambda x: x.round(), "it jumps"),
    "argmax": (lambda x: x.argmax(1), "it jumps"),
    "to integer": (lambda x: x.long() * 2, "converts to torch.int64"),
    "to half": (lambda x: x.half().float(), "rounds to torch.float16"),
    "hardshrink": (lambda x: F.hardshrink(x), "jumps"),
    "threshold with a jump": (lambda x: F.threshold(x, 0.5, 0.0), "jumps"),
    "softplus with a jump": (lambda x: F.softplus(x, threshold=2), "Softplus with threshold 2 jumps by 0.13"),
    "comparison as a number": (lambda x: (x > 0).float() + x, "comparison"),
    "gate": (lambda x: x * (x.flip(1) > 0), "uses a comparison"),
    "leaky with a jump": (lambda x: torch.where(x > 0, x, 0.1 * x + 1), "not seen to meet"),
    "step": (lambda x: torch.where(x > 0, 1.0, x), "not seen to meet"),
    "comparison of two": (lambda x: torch.where(x > x.flip(1), x, 2 * x), "comparison"),
    "positions of a maximum": (lambda x: x.max(1)[1] * 1.0, "positions of maxima"),
    "order of a sort": (lambda x: x.sort(1)[1].float(), "order of sorted entries"),
    "mean of the batch": (lambda x: x - x.mean(0), "batch axis"),
    "mean of everything": (lambda x: x - x.mean(), "batch axis"),
    "softmax over the batch": (lambda x: x.softmax(0), "batch axis"),
    "sort over the batch": (lambda x: x.sort(0)[0], "batch axis"),
    "first sample": (lambda x: x[0], "batch axis"),
    "first samples": (lambda x: x[:1], "samples of the batch"),
    "other samples": (lambda x: x[1:], "treats batch sizes differently"),
    "first sample overwritten": (lambda x: overwritten(x), "batch axis"),
    "flipped batch": (lambda x: x.flip(0), "batch axis"),
    "joined batch": (lambda x: torch.cat([x, x]), "batch axis"),
    "transposed into the batch": (lambda x: x[:, :2] @ x.t()[:2], "batch"),
    "gram of the batch": (lambda x: x @ x.t(), "batch"),
    "merged batch": (lambda x: x.reshape(-1), "batch axis"),
    "times the batch size": (lambda x: x * x.shape[0], "batch size"),
    "position in the batch": (lambda x: x + torch.arange(x.shape[0]).unsqueeze(1), "batch size"),
    "count of samples": (lambda x: x / torch.ones(x.shape[0], 1).sum(), "batch size"),
    "random numbers": (lambda x: x + torch.randn(4), "random"),
    "noise": (lambda x: x + torch.randn_like(x), "random"),
    "no input": (lambda x: torch.ones(x.shape[0], 3), "does not depend on the input"),
    "computed mask": (
        lambda x: F.scaled_dot_product_attention(
            *[x.unsqueeze(1)] * 3, attn_mask=x.reshape(-1, 1, 4)[:, :, :1]
        ),
        "attention with a computed mask",
    ),
    "remainder": (lambda x: x % 1.0, "it jumps"),
    "rounded quotient": (lambda x: torch.div(x, 2, rounding_mode="floor"), "not continuous"),
    "unknown operator": (
        lambda x: torch.special.bessel_j0(x),
        r"teach it to lipverify with @lower\.register",
    ),
    "uneven adaptive pooling": (
        lambda x: F.adaptive_avg_pool1d(x.unsqueeze(1), 3),
        "windows of unequal size",
    ),
    "divisor of its own": (
        lambda x: F.avg_pool2d(x.reshape(-1, 1, 2, 2), 2, divisor_override=3),
        "divisor of its own",
    ),
    "bicubic": (lambda x: F.interpolate(x.view(-1, 1, 2, 2), 7, mode="bicubic"), "not covered"),
    "sum over equal samples": (lambda x: x + torch.ones(x.shape[0], 1).cumsum(0), "batch size"),
}


def overwritten(x):
    x = x.clone()
    x[0] = 0.5 * x[0]
    return x


@pytest.mark.parametrize("name", REFUSED)
def test_refused_in_one_sentence(name):
    function, message = REFUSED[name]
    with pytest.raises(UnsupportedModel, match=message) as caught:
        extract(Function(function).eval(), torch.zeros(2, 4))
    assert caught.value.exit_code == 5
    assert not isinstance(caught.value, ExtractionMismatch)
    assert "\n" not in str(caught.value)


def test_jumping_shrinkage_is_refused_whatever_stands_beside_it():
    for beside in (nn.Identity(), nn.BatchNorm1d(4), nn.Dropout()):
        with pytest.raises(UnsupportedModel, match=r"hardshrink .*jumps by 0\.5"):
            extract(nn.Sequential(nn.Linear(4, 4), nn.Hardshrink(), beside).eval(), torch.zeros(2, 4))


def test_refusal_names_the_layer_and_the_line():
    module = nn.Sequential(nn.Linear(4, 4), nn.Sequential(Function(lambda x: x.relu().floor())))
    with pytest.raises(
        UnsupportedModel, match=r'floor "1\.0\.floor" \[1, 4\].*line \d+ of test_torch_refusals\.py'
    ):
        extract(module.eval(), torch.zeros(2, 4))


@pytest.mark.parametrize(
    ("example", "message"),
    [
        (torch.zeros(1, 4), "at least 2 samples"),
        (torch.zeros(0, 4), "at least 2 samples"),
        (torch.zeros(()), "at least 2 samples"),
        (torch.zeros(2, 4, dtype=torch.int64), "floating-point input"),
        ([[0.0] * 4] * 2, "not list"),
    ],
    ids=["one sample", "no sample", "no axis", "integers", "a list"],
)
def test_examples_that_make_no_sense(example, message):
    with pytest.raises(UsageError, match=message) as caught:
        extract(nn.Linear(4, 3), example)
    assert caught.value.exit_code == 2


def test_what_is_no_module():
    with pytest.raises(UsageError, match=r"torch\.nn\.Module"):
        extract(torch.relu, torch.zeros(2, 4))


class Counting(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        return x * self.calls


def test_module_with_a_memory():
    with pytest.raises(UnsupportedModel, match=r"updates its buffers \(calls\)"):
        extract(Counting().eval(), torch.zeros(2, 4))


class Moody(nn.Module):
    """Behaves differently while it is exported."""

    def forward(self, x):
        return x if torch.compiler.is_compiling() else 1.01 * x


def test_module_that_pretends():
    with pytest.raises(ExtractionMismatch, match="differs"):
        extract(Moody(), torch.zeros(2, 4))
    assert extract(Moody(), torch.zeros(2, 4), check=False).origin.import_check is None


class Squeezing(nn.Module):
    """Loses the batch axis for a batch of one."""

    def forward(self, x):
        return x.squeeze()


def test_module_that_treats_one_sample_differently():
    with pytest.raises(ExtractionMismatch):
        extract(Squeezing(), torch.zeros(2, 4))


def test_registry_refuses_a_second_translator():
    with pytest.raises(InternalError, match="two translators"):
        lower.register("aten.relu")(lambda b, x: x)


def test_foreign_operator_is_learned(monkeypatch):
    from lipverify import ops

    monkeypatch.setattr(lower, "translators", dict(lower.translators))

    @lower.register("aten.special_bessel_j0")
    def _pretend(b, x):
        return b.elementwise(ops.Tanh(), x)

    graph = extract(Function(torch.special.bessel_j0), torch.zeros(2, 4), check=False)
    assert graph.operators() == {"Tanh": 1}
    with pytest.raises(ExtractionMismatch):
        extract(Function(torch.special.bessel_j0), torch.zeros(2, 4))


class Announced:
    """An entry point of another package."""

    value = "other_package.operators"

    def __init__(self, load):
        self.load = load


def test_operators_of_other_packages_are_loaded_once(monkeypatch):
    calls = []
    monkeypatch.setattr(tables, "entry_points", lambda group: [Announced(lambda: calls.append(group))])
    table = tables.Lowering()
    table.load_entry_points()
    table.load_entry_points()
    assert calls == ["lipverify.operators"]


def test_operators_that_cannot_be_loaded_are_named(monkeypatch):
    def broken():
        raise ImportError("no such thing")

    monkeypatch.setattr(tables, "entry_points", lambda group: [Announced(broken)])
    with pytest.raises(UsageError, match=r"other_package\.operators.*no such thing"):
        tables.Lowering().load_entry_points()


def test_extraction_is_silent_and_leaves_logging_as_it_was(capfd):
    level = logging.getLogger("torch").level
    with pytest.raises(UnsupportedModel):
        extract(Function(branch_on_data), torch.zeros(2, 4))
    assert logging.getLogger("torch").level == level
    shown = capfd.readouterr()
    assert shown.out == ""
    assert shown.err == ""
