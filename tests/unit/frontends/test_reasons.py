"""What a refusal says is true: what is said to jump does jump, and what it says to do instead is taken."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from onnx import TensorProto
from onnx.reference import ReferenceEvaluator
from torch import Tensor, nn
from torch.nn import functional as F

import lipverify as lv
from lipverify.errors import LipverifyError, UnsupportedModel
from lipverify.frontends.onnx import extract_onnx
from lipverify.frontends.onnx.translators import refused as onnx_refused
from lipverify.frontends.torch_export.translators import refused as torch_refused
from tests.onnx_models import model, node
from tests.tiers import long


class Module(nn.Module):
    """A function as a module; stored tensors in `t`."""

    def __init__(self, function: Callable[[Tensor, Tensor], Any], stored: Tensor | None = None) -> None:
        super().__init__()
        self.function = function
        self.register_buffer("t", torch.zeros(1) if stored is None else stored)

    def forward(self, x: Tensor) -> Any:
        return self.function(x, self.t)


# -- jumps

JUMPING: dict[str, Callable[[Tensor], Tensor]] = {
    "floor": torch.floor,
    "ceil": torch.ceil,
    "round": torch.round,
    "trunc": torch.trunc,
    "frac": torch.frac,
    "heaviside": lambda x: torch.heaviside(x, torch.zeros(()).to(x)),
    "floor_divide": lambda x: torch.floor_divide(x, 0.3),
    "remainder": lambda x: torch.remainder(x, 0.3),
    "fmod": lambda x: torch.fmod(x, 0.3),
    "argmax": lambda x: torch.stack([x, -x]).argmax(0),
    "argmin": lambda x: torch.stack([x, -x]).argmin(0),
    "argsort": lambda x: torch.stack([x, -x]).argsort(0)[0],
    "one_hot": lambda x: F.one_hot((x > 0).long(), 2)[..., 0],
    "bucketize": lambda x: torch.bucketize(x, torch.tensor([0.0, 0.5]).to(x)),
    "searchsorted": lambda x: torch.searchsorted(torch.tensor([0.0, 0.5]).to(x), x),
    "bitwise_and": lambda x: (x > 0) & (x > -0.5),
    "bitwise_or": lambda x: (x > 0) | (x > 0.5),
    "logical_and": lambda x: torch.logical_and(x, x > 0),
    "logical_or": lambda x: torch.logical_or(x > 0, x > 0.5),
    "nonzero": lambda x: torch.stack([(row[None] > 0).nonzero().numel() * torch.ones(()) for row in x]),
    "count_nonzero": lambda x: torch.stack([(row > 0).count_nonzero() for row in x]),
    "any": lambda x: torch.stack([(row > 0).any() for row in x]),
    "all": lambda x: torch.stack([(row > 0).all() for row in x]),
    "histc": lambda x: torch.stack([torch.histc(row[None], 4, -1, 1)[2] for row in x]),
    "quantize_per_tensor": lambda x: torch.quantize_per_tensor(x.float(), 0.3, 0, torch.qint8).dequantize(),
    "fake_quantize_per_tensor_affine": lambda x: torch.fake_quantize_per_tensor_affine(
        x.float(), 0.3, 0, -128, 127
    ),
    "masked_select": lambda x: torch.stack(
        [torch.ones(()) * len(row[None].masked_select(row[None] > 0)) for row in x]
    ),
}


def jump(function: Callable[[Tensor], Tensor]) -> float:
    """The largest step between neighbours on a line; it does not shrink with their distance where the function jumps."""
    steps = []
    for count in (2_001, 40_001):
        x = torch.linspace(-1.013, 1.017, count, dtype=torch.float64)
        if function in (JUMPING["histc"], JUMPING["nonzero"]):
            x = torch.linspace(-0.02, 0.02, 401, dtype=torch.float64)
        y = function(x).double()
        steps.append(float((y[1:] - y[:-1]).abs().max()))
    return min(steps)


def test_every_torch_operator_that_is_said_to_jump_jumps() -> None:
    assert {*torch_refused._JUMPING} == {*JUMPING}
    for name, function in JUMPING.items():
        assert jump(function) >= 0.1, name


INTEGERS = {"BitShift", "BitwiseAnd", "BitwiseOr", "BitwiseXor", "BitwiseNot"}
BOOLEANS = {"And", "Or", "Xor", "Not"}
OF_ONNX: dict[str, tuple[tuple[str, ...], dict[str, Any], dict[str, Any]]] = {
    "Mod": (("x", "c"), {"fmod": 1}, {"c": np.float32(0.3)}),
    **{
        name: (("x", "c"), {}, {"c": np.float32(0.1)})
        for name in ("Less", "LessOrEqual", "Greater", "GreaterOrEqual")
    },
    "Equal": (("r", "c"), {}, {"c": np.float32(0.0)}),
    "BitShift": (("i", "c"), {"direction": "LEFT"}, {"c": np.uint8(1)}),
    **{name: (("i", "c"), {}, {"c": np.uint8(7)}) for name in ("BitwiseAnd", "BitwiseOr", "BitwiseXor")},
    "BitwiseNot": (("i",), {}, {}),
    **{name: (("b", "c"), {}, {"c": np.bool_(name != "Or")}) for name in ("And", "Or", "Xor")},
    "Not": (("b",), {}, {}),
    "ArgMax": (("p",), {"axis": 1}, {}),
    "ArgMin": (("p",), {"axis": 1}, {}),
    "Hardmax": (("p",), {"axis": 1}, {}),
}


@pytest.mark.parametrize(
    "op", sorted(name for name, reason in onnx_refused._REASONS.items() if reason is onnx_refused._JUMPS)
)
def test_every_onnx_operator_that_is_said_to_jump_jumps(op: str) -> None:
    if op in ("OneHot", "NonZero", "Unique", "NonMaxSuppression"):
        pytest.skip(
            "counts or chooses entries: its result has another size, or another index, on either side of a threshold"
        )
    inputs, attributes, constants = OF_ONNX.get(op, (("x",), {}, {}))
    before = {
        "i": node("Cast", ["s"], ["i"], to=TensorProto.UINT8),
        "b": node("Greater", ["x", "zero"], ["b"]),
        "p": node("Concat", ["x", "n"], ["p"], axis=1),
        "r": node("Relu", ["x"], ["r"]),
    }
    nodes = [before[name] for name in inputs if name in before]
    if "i" in inputs:
        nodes.insert(0, node("Mul", ["x", "many"], ["s"]))
    if "p" in inputs:
        nodes.insert(0, node("Neg", ["x"], ["n"]))
    nodes += [node(op, list(inputs), ["z"], **attributes), node("Cast", ["z"], ["y"], to=TensorProto.FLOAT)]
    stored = {"zero": np.float32(0), "many": np.float32(20), **constants}
    source = model(nodes, ["n", 1], 18, stored)
    x = np.linspace(0.001 if "i" in inputs else -1.013, 1.017, 2_001, dtype=np.float32)[:, None]
    (y,) = ReferenceEvaluator(source).run(None, {"x": x})
    steps = np.abs(np.diff(np.asarray(y, np.float64), axis=0))
    assert steps.max() >= 0.1


# -- remedies

REMEDIED: list[tuple[str, nn.Module, str, str, nn.Module, tuple[int, ...]]] = [
    (
        "hardshrink",
        nn.Hardshrink(0.5),
        "jumps by 0.5 where its argument is 0.5",
        "use softshrink",
        nn.Softshrink(0.5),
        (6,),
    ),
    (
        "softplus",
        nn.Softplus(threshold=2),
        "Softplus with threshold 2 jumps",
        "use the default threshold 20",
        nn.Softplus(),
        (6,),
    ),
    (
        "threshold",
        nn.Threshold(0.5, 0.0),
        "jumps from 0.0 to 0.5",
        "",
        nn.Threshold(0.5, 0.5),
        (6,),
    ),
    (
        "adaptive pooling",
        nn.AdaptiveAvgPool1d(3),
        "has windows of unequal size",
        "choose an output size that divides the input size",
        nn.AdaptiveAvgPool1d(4),
        (2, 8),
    ),
    (
        "dropout",
        nn.Dropout(0.5).train(),
        "",
        "call module.eval() first",
        nn.Dropout(0.5).eval(),
        (6,),
    ),
    (
        "noise that stays in evaluation mode",
        Module(lambda x, t: torch.nn.functional.gumbel_softmax(x)),
        "draws random",
        "or store one draw of it as a buffer",
        Module(lambda x, t: torch.softmax(x + t, -1), torch.tensor([0.4, -0.1, 2.0, 0.3, 0.0, -0.7])),
        (6,),
    ),
    (
        "einsum",
        Module(lambda x, t: torch.einsum("bi,bi,bi->b", x, x, x)[:, None]),
        "einsum",
        "contract two tensors at a time",
        Module(lambda x, t: torch.einsum("bi,ij->bj", x, t), torch.eye(6)),
        (6,),
    ),
    (
        "vector norm",
        Module(lambda x, t: torch.linalg.vector_norm(x, 0.5, dim=1, keepdim=True)),
        "a vector norm of order 0.5 is not covered",
        "use a whole order from 1 on, or inf",
        Module(lambda x, t: torch.linalg.vector_norm(x, 3, dim=1, keepdim=True)),
        (6,),
    ),
    (
        "topk",
        Module(lambda x, t: torch.topk(x, 2, sorted=False).values),
        "promises no order of its results",
        "pass sorted=True",
        Module(lambda x, t: torch.topk(x, 2).values),
        (6,),
    ),
    (
        "positions of the largest",
        Module(lambda x, t: x.gather(1, x.argmax(1, keepdim=True))),
        "jumps",
        "",
        Module(lambda x, t: x.amax(1, keepdim=True)),
        (6,),
    ),
    (
        "rounded quotient",
        Module(lambda x, t: torch.div(x, 3.0, rounding_mode="floor")),
        "rounds its quotient (floor), so it is not continuous",
        "",
        Module(lambda x, t: torch.div(x, 3.0)),
        (6,),
    ),
    (
        "finite",
        Module(lambda x, t: x * torch.isnan(x)),
        "which real numbers always are",
        "leave it out of the model",
        Module(lambda x, t: x * 2),
        (6,),
    ),
    (
        "embedding",
        Module(lambda x, t: F.embedding(x.long(), t), torch.rand(9, 3)),
        "",
        "",
        Module(lambda x, t: x @ t, torch.rand(9, 3)),
        (9,),
    ),
    (
        "noise",
        Module(lambda x, t: x + torch.randn_like(x)),
        "random",
        "",
        Module(lambda x, t: x + t, torch.rand(6)),
        (6,),
    ),
]


@pytest.mark.parametrize(
    ("module", "reason", "remedy", "instead", "shape"),
    [case[1:] for case in REMEDIED],
    ids=[case[0] for case in REMEDIED],
)
def test_the_remedy_of_a_torch_refusal_works(
    module: nn.Module, reason: str, remedy: str, instead: nn.Module, shape: tuple[int, ...]
) -> None:
    example = torch.rand(2, *shape)
    with pytest.raises(UnsupportedModel) as refused:
        lv.extract(module if module.training and isinstance(module, nn.Dropout) else module.eval(), example)
    assert reason in str(refused.value)
    assert remedy in str(refused.value)
    assert lv.extract(instead.eval(), example).output.size > 0


GRID = [
    node("Conv", ["x", "w"], ["c"]),
    node("Transpose", ["c"], ["g"], perm=[0, 2, 3, 1]),
    node("GridSample", ["x", "g"], ["y"]),
]
POINTS = np.linspace(-0.9, 0.9, 2 * 4 * 4 * 2).reshape(1, 4, 8, 2).astype(np.float32)
OF_ONNX_REMEDIED: list[tuple[str, list[Any], dict[str, Any], str, list[Any], dict[str, Any], list[Any]]] = [
    (
        "ThresholdedRelu",
        [node("ThresholdedRelu", ["x"], ["y"], alpha=0.5)],
        {},
        "use Relu",
        [node("Relu", ["x"], ["y"])],
        {},
        ["n", 6],
    ),
    (
        "GridSample",
        [
            node("Conv", ["x", "w"], ["c"]),
            node("Transpose", ["c"], ["g"], perm=[0, 2, 3, 1]),
            node("GridSample", ["x", "g"], ["y"]),
        ],
        {"w": np.ones((2, 1, 1, 1), np.float32)},
        "use stored positions",
        [node("GridSample", ["x", "g"], ["y"])],
        {"g": POINTS},
        [1, 1, 4, 4],
    ),
    (
        "Pow",
        [node("Relu", ["x"], ["r"]), node("Pow", ["r", "x"], ["y"])],
        {},
        "only one of them may be computed",
        [node("Pow", ["x", "two"], ["y"])],
        {"two": np.float32(2)},
        ["n", 6],
    ),
    (
        "TopK",
        [node("TopK", ["x", "k"], ["y", "i"], sorted=0)],
        {"k": np.array([2])},
        "export with sorted = 1",
        [node("TopK", ["x", "k"], ["y", "i"], sorted=1)],
        {"k": np.array([2])},
        ["n", 6],
    ),
    (
        "Dropout",
        [node("Dropout", ["x", "ratio", "on"], ["y"])],
        {"ratio": np.float32(0.5), "on": np.bool_(True)},
        "export in evaluation mode",
        [node("Dropout", ["x", "ratio", "on"], ["y"])],
        {"ratio": np.float32(0.5), "on": np.bool_(False)},
        ["n", 6],
    ),
    (
        "IsNaN",
        [node("IsNaN", ["x"], ["b"]), node("Cast", ["b"], ["y"], to=TensorProto.FLOAT)],
        {},
        "leave it out of the exported model",
        [node("Relu", ["x"], ["y"])],
        {},
        ["n", 6],
    ),
    (
        "DynamicQuantizeLinear",
        [
            node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"]),
            node("DequantizeLinear", ["q", "s", "z"], ["y"]),
        ],
        {},
        "quantise with stored scales",
        [node("QuantizeLinear", ["x", "s", "z"], ["q"]), node("DequantizeLinear", ["q", "s", "z"], ["y"])],
        {"s": np.float32(0.1), "z": np.uint8(0)},
        ["n", 6],
    ),
    (
        "MaxPool",
        [
            node("MaxPool", ["x"], ["m", "i"], kernel_shape=[2, 2]),
            node("Cast", ["i"], ["y"], to=TensorProto.FLOAT),
        ],
        {},
        "export without return_indices",
        [node("MaxPool", ["x"], ["y"], kernel_shape=[2, 2])],
        {},
        ["n", 1, 4, 4],
    ),
]


@pytest.mark.parametrize(
    ("nodes", "constants", "remedy", "instead", "stored", "shape"),
    [case[1:] for case in OF_ONNX_REMEDIED],
    ids=[case[0] for case in OF_ONNX_REMEDIED],
)
def test_the_remedy_of_an_onnx_refusal_works(
    nodes: list[Any],
    constants: dict[str, Any],
    remedy: str,
    instead: list[Any],
    stored: dict[str, Any],
    shape: list[Any],
) -> None:
    with pytest.raises(UnsupportedModel) as refused:
        extract_onnx(model(nodes, shape, 17, constants))
    assert remedy in str(refused.value)
    assert extract_onnx(model(instead, shape, 17, stored)).output.size > 0


# -- analyzers: what another analyzer is said to answer, it answers


@pytest.fixture(scope="module")
def net() -> lv.Graph:
    torch.manual_seed(0)
    return lv.extract(nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)).eval(), torch.zeros(2, 4))


@pytest.mark.parametrize(
    ("asked", "norms", "reason", "instead"),
    [
        ("lipsdp-fast", ("l1", "l1"), "ask product", "product"),
        ("lipsdp-cvxpy", ("linf", "l2"), "ask lipsdp", "lipsdp"),
        ("lipsdp", ("l1", "l2"), "ask product or local", "product"),
    ],
)
def test_the_analyzer_that_is_named_answers(
    asked: str, norms: tuple[str, str], reason: str, instead: str, net: lv.Graph
) -> None:
    result = lv.audit(net, norm=norms[0], norm_out=norms[1], analyzers=[asked, instead])
    first, second = result.rows
    assert reason in str(first.refused)
    assert second.upper is not None


def test_what_needs_a_ball_answers_with_one(net: lv.Graph) -> None:
    x = torch.zeros(1, 4, dtype=torch.float64)
    for name in ("local", "local-sdp", "local-bab"):
        everywhere = lv.audit(net, analyzers=[name]).rows[0]
        assert "needs a ball: give --data and --radius" in str(everywhere.refused)
        around = lv.audit(net, region=lv.Ball(x, 0.1, "l2"), analyzers=[name]).rows[0]
        assert around.refused is None


def test_a_ball_or_eps_bounds_what_has_no_bound_everywhere() -> None:
    """`product` on a product of two computed tensors names both ways out; both are taken."""
    free = lv.extract(Module(lambda x, t: (x @ t) * x, torch.rand(4, 4)).eval(), torch.zeros(2, 4))
    row = lv.audit(free, analyzers=["product"]).rows[0]
    assert "give a region" in str(row.refused)
    ball = lv.Ball(torch.zeros(1, 4, dtype=torch.float64), 0.1, "l2")
    assert lv.audit(free, region=ball, analyzers=["local"]).rows[0].refused is None
    normalised = lv.extract(
        Module(
            lambda x, t: F.layer_norm(x, (4,), eps=1e-3) * F.layer_norm(x @ t, (4,), eps=1e-3),
            torch.rand(4, 4),
        ).eval(),
        torch.zeros(2, 4),
    )
    assert lv.audit(normalised, analyzers=["product"]).rows[0].refused is None


@pytest.mark.third_party
@long("six files of other people are read")
def test_the_sentences_about_networks_of_other_people(third_party: Path) -> None:
    """The table `reports/third_party/refusals.md` says what is said, and what it says to do works."""
    page = (Path(__file__).resolve().parents[3] / "reports" / "third_party" / "refusals.md").read_text(
        encoding="utf-8"
    )
    for place, sentence in (
        ("tiny-gpt2-msops/past.onnx", "the output depends on 8 inputs"),
        ("espcn-quant/quant_model.onnx", "operators of this domain are not covered"),
        ("ppo-cartpole-pickle/ppo_model_cartpole_stab.pt", "loading it would run foreign code"),
        (
            "silero-vad/silero_vad_16k_op15.onnx",
            'the output depends on 2 inputs ("input", "state"); choose one with --input NAME',
        ),
    ):
        with pytest.raises(LipverifyError) as refused:
            lv.load(third_party / place)
        assert sentence in str(refused.value)
        assert sentence in page
    voice = third_party / "silero-vad" / "silero_vad_16k_op15.onnx"
    graph = lv.load(voice, input="input", constants={"state": 0.0}, input_shape=[576])
    for loaded, sentence in (
        (graph, "the slope of x^2 grows without limit; ask over a ball, with an analyzer like local"),
        (
            lv.load(third_party / "mnist-int8" / "quantized_model.onnx"),
            "rounds to whole steps, so it jumps and has no Lipschitz constant",
        ),
        (lv.load(third_party / "converted" / "modadd-transformer.onnx"), "is not bounded over all inputs"),
    ):
        row = lv.audit(loaded, analyzers=["product"], budget=5).rows[0]
        assert sentence in str(row.refused)
        assert sentence in page
