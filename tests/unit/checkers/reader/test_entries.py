"""What a runtime computes at ordinary inputs is compared entry by entry in the type of the file; float64 overrules none of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from lipverify.checkers.kernel.program import Program
from lipverify.checkers.reader import agreement, model_of_bytes, runtimes
from lipverify.checkers.reader.agreement import agree
from lipverify.checkers.verdict import _compared
from lipverify.errors import NotCovered
from tests.onnx_models import model, node

SEEDS = (0, 1)


def program_of(data: bytes) -> Program:
    found = model_of_bytes("m.onnx", data)
    assert found.program is not None, found.reason
    return found.program


def chain(op: str, first: str, operands: str, last: str) -> list[Any]:
    """One operator after another, on `first` and each of these."""
    names = operands.split()
    made = [first, *(f"{last}{k}" for k in range(len(names) - 1)), last]
    return [node(op, [a, b], [c]) for a, b, c in zip(made, names, made[1:], strict=False)]


REST = [node("Sub", ["x", "u"], ["z"]), node("Mul", ["z", "k"], ["y"])]
ABSORBED = [node("Add", ["x", "c"], ["s"]), node("Sub", ["s", "c"], ["u"]), *REST]
T = {"t": 1e-30, "T": 1e30, "k": 1000.0}


def file(nodes: list[Any], size: int = 1, **stored: Any) -> bytes:
    held = {name: np.asarray(a, np.float32) for name, a in stored.items()}
    return bytes(model(nodes, [1, size], 17, held).SerializeToString())


FOLDED: dict[str, tuple[list[Any], dict[str, Any]]] = {
    "sums that cancel": (
        [*chain("Add", "a", "b", "s"), *chain("Sub", "s", "a b", "w"), node("Mul", ["x", "w"], ["y"])],
        {"a": 2.0**24, "b": 3.0},
    ),
    "a quotient by what cancels": (
        [*chain("Add", "a", "b", "s"), *chain("Sub", "s", "a", "d"), node("Div", ["b", "d"], ["w"]),
         node("Mul", ["x", "w"], ["y"])],
        {"a": 2.0**24, "b": 1.0000001},
    ),
    "products that underflow": ([*chain("Mul", "t", "t T T", "w"), node("Mul", ["x", "w"], ["u"]), *REST], T),
}  # fmt: skip


@pytest.mark.parametrize("name", FOLDED)
def test_numbers_of_stored_ones_that_their_type_does_not_hold(name: str) -> None:
    """Exact for the checker, another number in every runtime."""
    nodes, stored = FOLDED[name]
    found = model_of_bytes("m.onnx", file(nodes, **stored))
    assert found.program is None
    assert "a number computed from stored ones" in (found.reason or "")
    assert "that float32 does not hold" in (found.reason or "")


@pytest.mark.parametrize("seed", SEEDS)
def test_what_underflows_at_ordinary_inputs_is_another_function(seed: int) -> None:
    """1000 (x - x t t / t / t) is 0 of real numbers and 1000 x in every runtime."""
    data = file([*chain("Mul", "x", "t t T T", "u"), *REST], **T)
    with pytest.raises(NotCovered, match=r"onnxruntime .* computes another function than the checker read"):
        agree(data, program_of(data), seed)


@pytest.mark.parametrize("seed", SEEDS)
def test_what_float32_absorbs_is_refused_or_said(seed: int) -> None:
    """1000 (x - ((x + c) - c)), where float64 alone shows that it is 0."""
    for size in (2.0**20, 2.0**30):
        data = file(ABSORBED, c=size, k=1000.0)
        with pytest.raises(NotCovered, match=r"makes another function of it|sums inside hide"):
            agree(data, program_of(data), seed)
    data = file(
        [*ABSORBED[:-1], node("Mul", ["z", "k"], ["v"]), node("Add", ["x", "v"], ["y"])], c=2.0**18, k=1000.0
    )
    found = agree(data, program_of(data), seed)
    assert found.hides is not None
    assert found.executed is not None
    assert found.hides > 1.0 / 64.0
    assert 0 < found.executed < 0.25
    assert "a runtime was off by up to" in _compared(found)


def beside(factor: float, end: float, loud: float) -> bytes:
    """y = [x + factor r, x + relu(x + 3) / 16, loud^2 r], r = relu(x - end)."""
    nodes = [
        *chain("Sub", "x", "c", "v"), node("Relu", ["v"], ["r"]), *chain("Mul", "r", "k", "kr"), *chain("Add", "x", "kr", "e0"),
        *chain("Mul", "r", "big big", "e2"), *chain("Add", "x", "three", "w"), node("Relu", ["w"], ["t"]),
        *chain("Mul", "t", "tiny", "ts"), *chain("Add", "x", "ts", "e1"), node("Concat", ["e0", "e1", "e2"], ["y"], axis=1),
    ]  # fmt: skip
    return file(nodes, c=end, k=factor, big=loud, three=3.0, tiny=2.0**-4)


@pytest.mark.parametrize("end", [0.5, 50.0, 2.0**20])
def test_a_large_entry_takes_no_other_out(end: float) -> None:
    """The third entry leaves float32 wherever the first is read wrongly."""
    data = beside(1000.0, end, 2.0**126)
    read = program_of(beside(0.0, end, 2.0**126))
    for seed in SEEDS:
        with pytest.raises(NotCovered, match="another function than the checker read"):
            agree(data, read, seed)


def test_how_many_inputs_an_entry_has_no_number_at_is_said() -> None:
    """exp(exp(x)) beside x is infinite at large inputs, in float64 too."""
    nodes = [node("Exp", ["x"], ["e"]), node("Exp", ["e"], ["f"]), node("Concat", ["x", "f"], ["y"], axis=1)]
    data = file(nodes)
    found = [agree(data, program_of(data), seed) for seed in SEEDS]
    assert any(one.left for one in found)
    assert all(("at up to" in _compared(one)) == (one.left > 0) for one in found)
    # Of infinities alone nothing is read.
    data = file([node("Exp", ["x"], ["e"]), node("Mul", ["e", "k"], ["f"]), node("Exp", ["f"], ["y"])], k=1e6)
    with pytest.raises(NotCovered, match="too few finite numbers"):
        agree(data, program_of(data), 0)


def with_integers(factor: float) -> bytes:
    """x + factor relu(x - 2^20), and next to nothing of an integer product."""
    nodes = [
        *chain("Sub", "x", "c", "v"), node("Relu", ["v"], ["r"]), *chain("Mul", "r", "k", "kr"), *chain("Add", "x", "kr", "z"),
        node("QuantizeLinear", ["x", "tiny", "zero"], ["q"]), node("MatMulInteger", ["q", "ones"], ["qi"]),
        node("Cast", ["qi"], ["qf"], to=1), *chain("Mul", "qf", "tiny", "qm"), *chain("Add", "z", "qm", "y"),
    ]  # fmt: skip
    stored = {
        **{n: np.float32(a) for n, a in (("c", 2.0**20), ("k", factor), ("tiny", 2.0**-4))},
        "zero": np.int8(0), "ones": np.ones((1, 1), np.int8),
    }  # fmt: skip
    return bytes(model(nodes, [1, 1], 17, stored).SerializeToString())


def test_an_integer_product_takes_no_gate_out() -> None:
    """onnx's evaluator decides where integer kernels may cut products: at all inputs, and not at the ordinary ones alone."""
    data, read = with_integers(1000.0), program_of(with_integers(1.0))
    for seed in SEEDS:
        assert agree(with_integers(1.0), read, seed).gates
        with pytest.raises(NotCovered, match="another function than the checker read"):
            agree(data, read, seed)


def cancelling(factor: float, end: float, large: float) -> bytes:
    """x + relu(x - 3) / 16 + large r + factor r - large r, r = relu(x - end)."""
    nodes = [
        *chain("Sub", "x", "c", "v"), node("Relu", ["v"], ["r"]), *chain("Mul", "r", "k", "kr"), *chain("Mul", "r", "B", "br"),
        node("Add", ["br", "kr"], ["s"]), node("Sub", ["s", "br"], ["h"]), *chain("Sub", "x", "three", "w"),
        node("Relu", ["w"], ["t"]), *chain("Mul", "t", "tiny", "ts"), *chain("Add", "x", "ts", "z"), *chain("Add", "z", "h", "y"),
    ]  # fmt: skip
    return file(nodes, c=end, k=factor, B=large, three=3.0, tiny=2.0**-4)


@pytest.mark.parametrize("end", [50.0, 2.0**20])
def test_a_gate_that_is_hidden_wherever_it_opens_was_not_compared(end: float) -> None:
    """What cancels behind the gate hides what stands beside it, and another gate is compared as it should be."""
    for seed in SEEDS:
        found = agree(cancelling(1.0, end, 1.0), program_of(cancelling(1.0, end, 1.0)), seed)
        assert found.hidden == 0
        with pytest.raises(NotCovered, match=r"its activations turn were not compared|sums inside hide"):
            agree(cancelling(1000.0, end, 2.0**60), program_of(cancelling(1.0, end, 2.0**60)), seed)


@pytest.mark.parametrize("behind", [False, True])
def test_a_gate_was_compared_where_all_that_depends_on_it_is_seen(behind: bool) -> None:
    """Two outputs: x + relu(x - end), and 2 x, which x^16 hides where the gate is open; with the gate in it, or not."""
    squares = [node("Mul", [a, a], [b]) for a, b in ("ab", "bc", "cd", "de")]
    nodes = [
        *chain("Mul", "x", "k", "a"), *squares, *chain("Mul", "e", "B", "q"), *chain("Sub", "x", "end", "v"),
        node("Relu", ["v"], ["r"]), node("Add", ["x", "r"], ["y0"]), node("Add", ["q", "y0" if behind else "x"], ["s"]),
        node("Sub", ["s", "q"], ["h"]), node("Add", ["x", "h"], ["y1"]), node("Concat", ["y0", "y1"], ["y"], axis=1),
    ]  # fmt: skip
    data = file(nodes, k=2.0**-17, B=2.0**24, end=2.0**20)
    for seed in SEEDS:
        if behind:
            with pytest.raises(NotCovered, match="its activations turn were not compared"):
                agree(data, program_of(data), seed)
        else:
            assert agree(data, program_of(data), seed).hidden


def test_a_maximum_is_as_near_as_what_may_be_it() -> None:
    """Of 0 and tanh(x) - 5 it is 0, however tanh is rounded: it was hidden wherever nothing was told of it otherwise."""
    nodes = [
        node("Tanh", ["x"], ["t"]), *chain("Sub", "t", "five", "u"), node("Max", ["u", "zero"], ["m"]),
        node("Concat", ["x", "m"], ["y"], axis=1),
    ]  # fmt: skip
    data = file(nodes, five=5.0, zero=0.0)
    for seed in SEEDS:
        assert agree(data, program_of(data), seed).hidden == 0


def test_what_is_nothing_beside_other_outputs_may_be_rounded_away() -> None:
    """x and 1e-9 x, by sums that lose the second one in the type of the file; as 0.1 x beside x it is refused."""
    nodes = [
        *chain("Mul", "x", "k", "a"), *chain("Add", "a", "c", "s"), *chain("Sub", "s", "c", "u"),
        node("Concat", ["x", "u"], ["y"], axis=1),
    ]  # fmt: skip
    for seed in SEEDS:
        data = file(nodes, k=1e-9, c=100.0)
        assert agree(data, program_of(data), seed).executed is not None
        data = file(nodes, k=0.1, c=1e10)
        with pytest.raises(NotCovered, match="rounding in the type of the file makes another function"):
            agree(data, program_of(data), seed)


@pytest.mark.parametrize("op", ["RNN", "GRU", "LSTM"])
@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("length", [None, 3])
@pytest.mark.parametrize("layout", [0, 1])
def test_recurrent_layers_of_the_reference_are_those_of_onnxruntime(
    op: str, direction: str, length: int | None, layout: int
) -> None:
    """Its own take all steps, and no activations but the usual ones."""
    rng, ways = np.random.default_rng(2), 1 + (direction == "bidirectional")
    gates = {"RNN": 1, "GRU": 3, "LSTM": 4}[op]
    usual, laws = runtimes._RECURRENT[op], list(runtimes._LAWS)
    held = {
        name: (0.5 * rng.standard_normal(shape)).astype(np.float32)
        for name, shape in {
            "w": (ways, 4 * gates, 2),
            "r": (ways, 4 * gates, 4),
            "b": (ways, 8 * gates),
        }.items()
    }
    held |= {} if length is None else {"n": np.array([length], np.int32)}
    x = rng.standard_normal((5, 1, 2))
    for turn in range(3):
        settings = {"direction": direction, "hidden_size": 4}
        settings |= (
            {"activations": [laws[k] for k in rng.integers(4, size=len(usual) * ways)]} if turn else {}
        )

        def computed(make: str, batched: int, settings: dict[str, Any] = settings) -> list[Any]:
            layer = node(op, ["x", *held], ["y", "h"], **settings, layout=batched)
            given = np.swapaxes(x, 0, 1) if batched else x
            made = model([layer], list(given.shape), 17, held)
            made.graph.output.append(helper.make_tensor_value_info("h", 1, None))
            return list(runtimes.RUNTIMES[make](bytes(made.SerializeToString()), "x", ["y", "h"])[1](given))

        own, ends = computed("onnxruntime", 0)  # it has no layout 1
        if layout:
            own, ends = np.moveaxis(own, 2, 0), np.moveaxis(ends, 1, 0)
        for make in ("reference", "wide"):
            for found, right in zip(computed(make, layout), (own, ends), strict=True):
                np.testing.assert_allclose(found, right, atol=1e-5)


def test_a_second_opinion_that_does_not_come_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the type of the file settles everything, float64 at gates alone is missing; else the file is refused."""

    def asked(question: runtimes.Asked, seconds: float, memory: int) -> runtimes.Answer:
        if question.makes == ("wide",):
            raise runtimes.Broken("did not end in time")
        return runtimes.evaluated(question)

    monkeypatch.setattr(agreement, "evaluated_apart", asked)
    data = cancelling(1.0, 50.0, 1.0)
    found = agree(data, program_of(data), 0, apart=60.0)
    assert found.unanswered
    assert "float64 did not end in time" in _compared(found)
    assert not agree(data, program_of(data), 0).unanswered
    data = file(
        [*ABSORBED[:-1], node("Mul", ["z", "k"], ["v"]), node("Add", ["x", "v"], ["y"])], c=2.0**18, k=1000.0
    )
    with pytest.raises(NotCovered, match="did not end in time"):
        agree(data, program_of(data), 0, apart=60.0)


@pytest.mark.parametrize(
    "settings",
    [
        {"kernel_shape": [3, 2], "strides": [2, 1], "pads": [1, 0, 0, 1]},
        {"kernel_shape": [2, 2], "dilations": [2, 3]},
        {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1},
    ],
)
def test_maxima_of_the_reference_are_those_of_onnx(settings: dict[str, Any]) -> None:
    """Its own loops over all results take minutes where onnxruntime takes none."""
    data = bytes(model([node("MaxPool", ["x"], ["y"], **settings)], [1, 2, 8, 9], 13).SerializeToString())
    x = np.random.default_rng(0).standard_normal((1, 2, 8, 9))
    found = runtimes.RUNTIMES["reference"](data, "x", ["y"])[1](x)[0]
    np.testing.assert_array_equal(found, ReferenceEvaluator(data).run(["y"], {"x": x.astype(np.float32)})[0])


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_transposed_convolutions_of_the_reference_have_groups(groups: int) -> None:
    """Of several its own has the first group alone right."""
    rng = np.random.default_rng(1)
    held = {"w": rng.standard_normal((4, 3, 4, 4)).astype(np.float32), "b": rng.standard_normal(3 * groups)}
    held["b"] = held["b"].astype(np.float32)
    settings = {"strides": [2, 2], "pads": [1, 1, 1, 1], "group": groups}
    data = bytes(
        model(
            [node("ConvTranspose", ["x", "w", "b"], ["y"], **settings)], [1, 4, 5, 4], 17, held
        ).SerializeToString()
    )
    x = rng.standard_normal((1, 4, 5, 4))
    found = runtimes.RUNTIMES["reference"](data, "x", ["y"])[1](x)[0]
    weight, bias = (torch.from_numpy(held[k]) for k in "wb")
    right = torch.nn.functional.conv_transpose2d(
        torch.from_numpy(x).float(), weight, bias, 2, 1, groups=groups
    )
    np.testing.assert_allclose(found, right.numpy(), atol=1e-5)
    assert agree(data, program_of(data), 0).share < 1.0


def test_maxima_of_integers_are_those_of_onnx() -> None:
    nodes = [
        node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        node("MaxPool", ["q"], ["m"], kernel_shape=[2, 2], pads=[1, 1, 0, 0]),
        node("DequantizeLinear", ["m", "s", "z"], ["y"]),
    ]
    held = {"s": np.float32(0.05), "z": np.uint8(128)}
    data = bytes(model(nodes, [1, 2, 5, 6], 19, held).SerializeToString())
    x = np.random.default_rng(0).standard_normal((1, 2, 5, 6))
    found = runtimes.RUNTIMES["reference"](data, "x", ["y"])[1](x)[0]
    np.testing.assert_array_equal(found, ReferenceEvaluator(data).run(["y"], {"x": x.astype(np.float32)})[0])


def offset(size: float, kind: type = np.float32, tail: str = "", inner: float = 1.0) -> bytes:
    """tanh(inner x) + size, and what comes behind: size taken off again, or a cast to float64."""
    behind = {
        "sub": node("Sub", ["s", "c"], ["y"]), "cast": node("Cast", ["s"], ["y"], to=11), "": node("Identity", ["s"], ["y"])
    }[tail]  # fmt: skip
    nodes = [*chain("Mul", "x", "k", "a"), node("Tanh", ["a"], ["t"]), node("Add", ["t", "c"], ["s"]), behind]
    type_of = {name: 11 if kind is np.float64 or (name, tail) == ("y", "cast") else 1 for name in "xy"}
    x, y = (helper.make_tensor_value_info(name, type_of[name], [1, 2]) for name in "xy")
    stored = [numpy_helper.from_array(kind(value), name) for name, value in (("c", size), ("k", inner))]
    graph = helper.make_graph(nodes, "g", [x], [y], stored)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(made.SerializeToString())


@pytest.mark.parametrize("tail", ["", "sub", "cast"])
@pytest.mark.parametrize("kind", [np.float32, np.float64])
@pytest.mark.parametrize("size", [1e7, 1e9, 1e12, 1e15, 1e18, 1e25])
def test_what_no_type_shows_of_an_output_is_not_compared(size: float, kind: type, tail: str) -> None:
    """An output as good as constant in the type of the file was compared with nothing, and not a word said so."""
    if kind is np.float64 and tail == "cast":
        pytest.skip("float64 is no other type than float64")
    data, another = (offset(size, kind, tail, inner) for inner in (1.0, 1e-3))
    with pytest.raises(NotCovered, match=r"sums inside hide|another function"):
        agree(data, program_of(another), 0)
    if size > 1e14 or tail == "cast":
        with pytest.raises(NotCovered, match=r"sums inside hide"):
            agree(data, program_of(data), 0)


def test_what_the_type_does_not_show_is_said_where_float64_decides() -> None:
    found = agree(offset(1e9), program_of(offset(1e9)), 0)
    assert found.evaluator.startswith("onnx.reference")
    assert found.hides is not None
    assert found.hides > 1e3
    assert "where those change in it a runtime was off by up to 0 of it" in _compared(found)


CONSTANT: dict[str, tuple[list[Any], dict[str, Any]]] = {
    "an activation that is closed": (
        [*chain("Mul", "x", "W", "a"), *chain("Sub", "a", "b", "c"), node("Relu", ["c"], ["y"])],
        {"b": 1e9},
    ),
    "a sigmoid at its end": (
        [*chain("Mul", "x", "W", "a"), *chain("Add", "a", "b", "c"), node("Sigmoid", ["c"], ["y"])],
        {"b": 1e9},
    ),
    "a softmax that is one entry": (
        [*chain("Add", "x", "W b", "c"), node("Softmax", ["c"], ["p"], axis=1), *chain("Mul", "p", "k", "y")],
        {"b": np.array([1e18, -1e18]), "k": np.float32(3.0)},
    ),
    "what is nothing beside the others": ([node("Gemm", ["x", "V", "b"], ["y"])], {"b": np.array([0.3, 0.0])}),
    "a number taken off itself": ([*chain("Sub", "x", "x", "a"), *chain("Add", "a", "b", "y")], {"b": 3.0}),
}  # fmt: skip


@pytest.mark.parametrize("name", CONSTANT)
def test_outputs_that_are_constant_are_accepted(name: str) -> None:
    """Closed and saturated activations, channels without weight, and what cancels hide nothing."""
    nodes, stored = CONSTANT[name]
    used = {a for n in nodes for a in n.input}
    held = {"W": np.array([[1.0, -2.0]]), "V": np.array([[1e-38, 2.0], [1e-30, 1.0]]), **stored}
    data = file(nodes, 2, **{a: value for a, value in held.items() if a in used})
    for seed in SEEDS:
        assert agree(data, program_of(data), seed).hides is None
