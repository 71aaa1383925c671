"""Quantised ONNX models: every spelling computes what a runtime computes, and nothing about a constant is claimed of them."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import helper, numpy_helper

import lipverify as lv
from lipverify import ops
from lipverify.certificates import issuing
from lipverify.checkers.evaluation import evaluate
from lipverify.checkers.kernel.program import Program
from lipverify.combine import difference
from lipverify.errors import NotCovered, UnsupportedModel
from lipverify.frontends.onnx import extract_onnx
from tests.onnx_models import Array, agrees, by_onnxruntime, model, node, random

pytestmark = pytest.mark.usefixtures("asked_again")

S, Z = np.float32(0.05), np.uint8(113)


def integers(*shape: int, seed: int = 0, low: int = -127, kind: type = np.int8) -> Array:
    return np.random.default_rng([*shape, seed]).integers(low, 128, shape).astype(kind)


def quantised(name: str, x: str, scale: str = "s", zero: str = "z", **attributes: int) -> list:
    return [node("QuantizeLinear", [x, scale, zero], [f"{name}q"], **attributes)]


def qdq(name: str, x: str) -> list:
    return [*quantised(name, x), node("DequantizeLinear", [f"{name}q", "s", "z"], [name])]


def test_quantised_and_dequantised() -> None:
    source = model(qdq("y", "x"), ["n", 4], constants={"s": S, "z": Z})
    graph = agrees(source, reader=by_onnxruntime)
    assert graph.operators() == {"Scale": 2, "Clip": 1, "Quantize": 1}
    x = torch.tensor([[100.0, -100.0, 0.26, -0.02]])
    assert torch.allclose(lv.evaluate(graph, x), torch.tensor([[7.1, -5.65, 0.25, 0.0]]), atol=1e-6)


def test_a_layer_between_quantisers() -> None:
    weights = {
        "w": integers(3, 5),
        "ws": np.array([0.01, 0.02, 0.03], np.float32),
        "wz": np.zeros(3, np.int8),
    }
    nodes = [
        *qdq("a", "x"),
        node("DequantizeLinear", ["w", "ws", "wz"], ["v"], axis=0),
        node("Gemm", ["a", "v", "b"], ["c"], transB=1),
        node("Relu", ["c"], ["r"]),
        *qdq("y", "r"),
    ]
    source = model(nodes, ["n", 5], constants={"s": S, "z": Z, "b": random(3), **weights})
    agrees(source, reader=by_onnxruntime)


@pytest.mark.parametrize("zeros", ["none", "one", "each"])
def test_integer_products(zeros: str) -> None:
    inputs = ["xq", "w", *({"none": [], "one": ["z", "wz"], "each": ["z", "wz"]}[zeros])]
    wz = {"none": None, "one": np.uint8(7), "each": np.array([1, 2, 3], np.uint8)}[zeros]
    nodes = [
        *quantised("x", "x"),
        node("MatMulInteger", inputs, ["i"]),
        node("Cast", ["i"], ["f"], to=1),
        node("Mul", ["f", "m"], ["y"]),
    ]
    constants = {"s": S, "z": Z, "w": integers(5, 3, low=0, kind=np.uint8), "m": np.float32(0.002)}
    if wz is not None:
        constants["wz"] = wz
    agrees(model(nodes, ["n", 5], constants=constants), reader=by_onnxruntime)


def test_integer_convolutions_pad_with_the_zero_point() -> None:
    nodes = [
        *quantised("x", "x"),
        node("ConvInteger", ["xq", "w", "z", "wz"], ["i"], pads=[1, 1, 1, 1], strides=[2, 2]),
        node("Cast", ["i"], ["f"], to=1),
        node("Mul", ["f", "m"], ["y"]),
    ]
    constants = {
        "s": S,
        "z": Z,
        "w": integers(2, 3, 3, 3, low=0, kind=np.uint8),
        "wz": np.uint8(4),
        "m": np.float32(1e-3),
    }
    agrees(model(nodes, ["n", 3, 5, 6], constants=constants), reader=by_onnxruntime)


def test_convolutions_and_products_that_requantise() -> None:
    # Weights of 7 bits: with 8, onnxruntime's 16-bit sums overflow on processors without dot products of integers.
    nodes = [
        *quantised("x", "x"),
        node("QLinearConv", ["xq", "s", "z", "w", "ws", "wz", "os", "oz", "b"], ["c"]),
        node("Flatten", ["c"], ["d"]),
        node("QLinearMatMul", ["d", "os", "oz", "v", "vs", "vz", "ps", "pz"], ["e"]),
        node("DequantizeLinear", ["e", "ps", "pz"], ["y"]),
    ]
    constants = {
        "s": S,
        "z": Z,
        "w": integers(2, 1, 2, 2) // 2,
        "ws": np.array([0.01, 0.02], np.float32),
        "wz": np.int8(0),
        "os": np.float32(0.04),
        "oz": np.uint8(0),
        "b": np.array([300, -200], np.int32),
        "v": integers(8, 3) // 2,
        "vs": np.float32(0.01),
        "vz": np.int8(0),
        "ps": np.float32(0.1),
        "pz": np.uint8(128),
    }
    agrees(model(nodes, ["n", 1, 3, 3], constants=constants), reader=by_onnxruntime, tolerance=0.11)


def test_stored_weights_that_are_quantised_in_the_file() -> None:
    nodes = [
        node("QuantizeLinear", ["w", "s", "z"], ["q"]),
        node("DequantizeLinear", ["q", "s", "z"], ["v"]),
        node("MatMul", ["x", "v"], ["y"]),
    ]
    graph = agrees(
        model(nodes, ["n", 4], constants={"w": random(4, 3), "s": S, "z": Z}), reader=by_onnxruntime
    )
    assert graph.operators() == {"Linear": 1}
    assert lv.audit(graph, analyzers=["product"], budget=2).best is not None


def test_a_constant_is_refused_with_the_reason() -> None:
    graph = extract_onnx(model(qdq("y", "x"), ["n", 4], constants={"s": S, "z": Z}))
    result = lv.audit(graph, analyzers=["product", "lipsdp"], budget=2)
    assert result.best is None
    assert "jumps and has no Lipschitz constant" in (result.rows[0].refused or "")
    ball = lv.Ball(torch.zeros(1, 4), 0.1, "linf")
    assert lv.audit(graph, norm="linf", region=ball, analyzers=["local"], budget=2).best is None


@pytest.mark.parametrize(
    ("constants", "words"),
    [
        ({"s": np.array([0.1, 0.2], np.float32), "z": np.zeros(2, np.uint8)}, "2 scales"),
        ({"s": np.float32(-0.1), "z": Z}, "not positive"),
    ],
)
def test_what_is_not_covered(constants: dict[str, Array], words: str) -> None:
    with pytest.raises(lv.LipverifyError, match=words):
        extract_onnx(model(qdq("y", "x"), ["n", 2], constants=constants))


def pair(saturates: bool = False) -> tuple[lv.Graph, lv.Graph]:
    """A float network and its quantised copy."""
    w, v = random(6, 4), random(3, 6, seed=1)
    scale = np.float32(np.abs(w).max() / 127)
    float_nodes = [
        node("Gemm", ["x", "w"], ["a"], transB=1),
        node("Relu", ["a"], ["r"]),
        node("Gemm", ["r", "v"], ["y"], transB=1),
    ]
    f = extract_onnx(model(float_nodes, ["n", 4], constants={"w": w, "v": v}))
    nodes = [
        *qdq("b", "x"),
        node("DequantizeLinear", ["wq", "ws"], ["w"]),
        node("Gemm", ["b", "w"], ["a"], transB=1),
        node("Relu", ["a"], ["r"]),
        *qdq("h", "r"),
        node("Gemm", ["h", "v"], ["y"], transB=1),
    ]
    constants = {"s": np.float32(0.02), "z": Z, "wq": np.rint(w / scale).astype(np.int8), "ws": scale, "v": v}
    return f, extract_onnx(model(nodes, ["n", 4], constants=constants))


def test_a_quantised_copy_against_its_original() -> None:
    f, g = pair()
    found = difference(f, g)
    assert found.apart == ()
    rng = torch.Generator().manual_seed(0)
    for radius in (1e-6, 1e-2, 1.0):
        ball = lv.Ball(torch.randn(4, 4, generator=rng, dtype=torch.float64).clamp(-2, 2), radius, "linf")
        answer = lv.deviation(f, g, ball)
        x = ball.project(
            ball.center + radius * (2 * torch.rand(500, 4, 4, generator=rng, dtype=torch.float64) - 1)
        )
        gap = lv.evaluate(f.to(dtype=torch.float64), x.flatten(0, 1)) - lv.evaluate(
            g.to(dtype=torch.float64), x.flatten(0, 1)
        )
        assert bool((gap.abs().amax(1).reshape(500, 4).amax(0) <= answer.upper).all())
        assert bool((answer.lower <= answer.upper).all())
    small = lv.deviation(f, g, lv.InputBox((4,), -1.0, 1.0)).to_json()
    assert len(small["saturation"]) == 2
    wide = lv.deviation(f, g, lv.InputBox((4,), -30.0, 30.0))
    titles = [section.title for section in wide.question.sections(wide.to_json())]
    assert titles[0] == "Saturation"


def test_a_real_pair() -> None:
    folder = Path(__file__).resolve().parents[4] / "shared" / "checkpoints"
    if not folder.exists():
        pytest.skip("the checkpoints of others are not here")
    f, g = lv.load(folder / "cntk-mnist/mnist.onnx"), lv.load(folder / "mnist-int8/quantized_model.onnx")
    assert difference(f, g).apart == ()
    with np.load(folder / "inputs/mnist.npz") as stored:
        x = torch.tensor(stored["images"][:20]).double()
    gaps = [
        (lv.evaluate(f.to(dtype=torch.float64), x / top) - lv.evaluate(g.to(dtype=torch.float64), x / top))
        .abs()
        .max()
        for top in (255.0, 1.0)
    ]
    assert float(gaps[0]) < 2.0
    assert float(gaps[1]) > 1000.0
    box = lv.bounds(
        difference(f, g).graph, lv.Ball(x[:2] / 255, 1e-9, "linf", (0.0, 1.0)), method="interval"
    ).output
    assert float(box.upper.max()) < 2.0


def test_quantisers_that_do_not_reach_their_inputs_cost_accuracy() -> None:
    """Integers stand for -5.65 to 7.1 where images go to 255: .890 of them right, .995 from 0 to 1; by us and by onnxruntime."""
    folder = Path(__file__).resolve().parents[4] / "shared" / "checkpoints"
    if not folder.exists():
        pytest.skip("the checkpoints of others are not here")
    file = folder / "mnist-int8/quantized_model.onnx"
    stored = {t.name: numpy_helper.to_array(t) for t in onnx.load(file).graph.initializer}
    scale, zero = float(stored["Input3_scale"]), int(stored["Input3_zero_point"])
    assert (-scale * zero, scale * (255 - zero)) == pytest.approx((-5.65, 7.1), abs=1e-6)
    graph = lv.load(file)
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    with np.load(folder / "inputs/mnist.npz") as images:
        x, y = images["images"].astype(np.float32), images["labels"]
    for top, right in ((1.0, 0.890), (255.0, 0.995)):
        ours = lv.evaluate(graph, torch.from_numpy(x / np.float32(top))).argmax(1).numpy()
        name = session.get_inputs()[0].name
        theirs = [int(session.run(None, {name: image[None] / np.float32(top)})[0].argmax()) for image in x]
        assert (ours == y).mean() == pytest.approx(right, abs=1e-9)
        assert (np.array(theirs) == y).mean() == pytest.approx(right, abs=1e-9)


def test_random_quantised_pairs_stay_in_their_ranges() -> None:
    for seed in range(12):
        rng = np.random.default_rng(seed)
        f, g = pair()
        box = lv.InputBox((4,), *sorted(rng.uniform(-3, 3, 2).tolist()))
        found = lv.bounds(difference(f, g).graph, box).output
        x = torch.tensor(rng.uniform(float(box.box[0].min()), float(box.box[1].max()), (400, 4)))
        gap = lv.evaluate(f.to(dtype=torch.float64), x) - lv.evaluate(g.to(dtype=torch.float64), x)
        assert bool(((gap >= found.lower - 1e-9) & (gap <= found.upper + 1e-9)).all())


def test_rounding_planes_hold_at_ties() -> None:
    op = ops.Quantize(0.5, 3)
    x = torch.tensor([[0.25, 0.75, -0.25, 1.25]], dtype=torch.float64)
    from lipverify.ir.interval import Interval
    from lipverify.rules import interval

    box = interval(op, Interval(x, x))
    assert box.lower.tolist() == [[3.0, 4.0, 2.0, 5.0]]
    assert box.upper.tolist() == [[4.0, 5.0, 3.0, 6.0]]


def test_quantisers_of_other_types_are_refused() -> None:
    source = model([node("QuantizeLinear", ["x", "s"], ["q"], output_dtype=17), node("DequantizeLinear", ["q", "s"], ["y"])],
                   ["n", 2], 21, constants={"s": S})  # fmt: skip
    with pytest.raises(UnsupportedModel, match="quantises to"):
        extract_onnx(source)


@pytest.mark.parametrize("block", [True, False])
def test_weights_of_four_bits(block: bool) -> None:
    weight = np.random.default_rng(0).integers(-8, 8, (7, 3)).astype(np.int8)
    stored = helper.make_tensor("w", 22, [7, 3], weight.flatten().tolist())
    scale = numpy_helper.from_array(np.abs(random(2, 3) if block else random(3)), "s")
    settings = {"axis": 0, "block_size": 4} if block else {"axis": 1}
    nodes = [node("DequantizeLinear", ["w", "s"], ["v"], **settings), node("MatMul", ["x", "v"], ["y"])]
    source = model(nodes, ["n", 7], 21)
    source.graph.initializer.extend([stored, scale])
    graph = agrees(source, reader=by_onnxruntime)
    assert graph.operators() == {"Linear": 1}
    source.graph.initializer[0].int32_data[-1] += 16
    with pytest.raises(lv.InvalidFile, match="half a byte"):
        extract_onnx(source)


def test_arithmetic_of_integers_is_refused() -> None:
    nodes = [
        node("QuantizeLinear", ["x", "s"], ["q"]),
        node("Add", ["q", "z"], ["r"]),
        node("DequantizeLinear", ["r", "s"], ["y"]),
    ]
    with pytest.raises(UnsupportedModel, match="wrap around"):
        extract_onnx(model(nodes, ["n", 3], constants={"s": S, "z": Z}))


def test_a_copy_in_half_precision() -> None:
    w = random(3, 4)
    f = extract_onnx(model([node("Gemm", ["x", "w"], ["y"], transB=1)], ["n", 4], constants={"w": w}))
    half = model(
        [node("Gemm", ["x", "w"], ["y"], transB=1)], ["n", 4], constants={"w": w.astype(np.float16)}, kind=10
    )
    answer = lv.deviation(f, extract_onnx(half), lv.InputBox((4,), -1.0, 1.0))
    exact = np.abs(w.astype(np.float64) - w.astype(np.float16).astype(np.float64)).sum(1).max()
    # Certificates are issued with 1.5e-8 of room.
    assert exact <= answer.upper <= exact * (1 + 2e-8)


def test_ties_are_no_other_function(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Means of integers meet ties of a quantiser: some inputs are a step apart there, by the order of sums; others are not."""
    held: dict[str, Array] = {"s": np.float32(0.0371), "z": np.uint8(100)}
    ends = [node("QuantizeLinear", ["x", "s", "z"], ["q"]), node("DequantizeLinear", ["q", "s", "z"], ["d"])]
    mean = [node("AveragePool", ["d"], ["m"], kernel_shape=[2, 2], strides=[2, 2])]
    again = [node("QuantizeLinear", ["m", "s", "z"], ["r"]), node("DequantizeLinear", ["r", "s", "z"], ["y"])]

    def read(name: str, nodes: list[onnx.NodeProto]) -> lv.Graph:
        path = tmp_path / name
        path.write_bytes(model(nodes, [1, 2, 8, 8], 13, held).SerializeToString())
        return lv.load(path)

    plain = read("plain.onnx", [node("AveragePool", ["x"], ["y"], kernel_shape=[2, 2], strides=[2, 2])])
    rounded = read("rounded.onnx", [*ends, *mean, *again])
    for every, good in ((4, True), (1, False)):

        def apart(program: Program, x: Array, every: int = every) -> list[Array]:
            y = evaluate(program, x)[-1].copy()
            y[1::every, 0] += 0.0371
            return [y]

        monkeypatch.setattr(issuing, "evaluate", apart)
        with nullcontext() if good else pytest.raises(NotCovered, match="does not find this graph"):
            issuing.subject_of(rounded)
        with pytest.raises(NotCovered, match="does not find this graph"):
            issuing.subject_of(plain)
