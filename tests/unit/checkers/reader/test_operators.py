"""Operators as steps: what exporters take apart is found, what is not understood is refused, in files and in certificates."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

from lipverify.checkers.evaluation import evaluate, shown
from lipverify.checkers.kernel.program import Affine, Constant, Order, Product, Program, Scalar
from lipverify.checkers.reader import Model, architecture, model_of_bytes, tensors_read
from lipverify.checkers.reader.agreement import agree
from lipverify.checkers.reader.operators import OPERATORS, WORDS
from lipverify.errors import LipverifyError, NotCovered
from tests.onnx_models import ints, model, node, random


def read(source: Any) -> Model:
    return model_of_bytes("m.onnx", source.SerializeToString())


def program_of(nodes: list[Any], stored: Any = None, shape: Any = (1, 6), opset: int = 13) -> Program:
    """The program of a file, which agrees with a runtime."""
    found = read(model(nodes, shape, opset, stored))
    assert found.program is not None, found.reason
    assert found.data is not None
    agree(found.data, found.program)
    return found.program


def kinds(program: Program) -> list[str]:
    return [type(s).__name__ for s in program.steps[1:]]


def graph(*rows: str, **settings: Any) -> list[Any]:
    """Nodes from "Op inputs -> outputs"."""
    found = []
    for row in rows:
        op, *rest = row.split()
        at = rest.index("->")
        found.append(node(op, rest[:at], rest[at + 1 :], **settings.get(op, {})))
    return found


ERF = ("Div x r -> a", "Erf a -> e", "Add e one -> g")
GELU = {"r": np.float32(2**0.5), "one": np.float32(1), "half": np.float32(0.5)}


@pytest.mark.parametrize(
    "last", [("Mul x g -> h", "Mul h half -> y"), ("Mul x half -> h", "Mul h g -> y"), ("Mul g half -> k", "Mul x k -> y")]
)  # fmt: skip
def test_gelu_in_parts(last: tuple[str, ...]) -> None:
    program = program_of(graph(*ERF, *last), GELU)
    if "Mul g half -> k" in last:
        assert kinds(program)[-1] == "Product"  # a gate that is halved first is no gate that is known
        return
    (scalar,) = [s for s in program.steps if isinstance(s, Scalar)]
    assert scalar.law == "ErfGate"
    assert scalar.settings[0][1] == pytest.approx(0.5**0.5)
    assert not any(isinstance(s, Product) for s in program.steps)


@pytest.mark.parametrize("factor", [1.0, 1.702])
def test_silu_in_parts(factor: float) -> None:
    rows = ["Mul x b -> s", "Sigmoid s -> g"] if factor != 1 else ["Sigmoid x -> g"]
    program = program_of(graph(*rows, "Mul x g -> y"), {"b": np.float32(factor)} if factor != 1 else {})
    assert kinds(program) == ["Scalar"]
    assert isinstance(program.steps[1], Scalar)
    assert program.steps[1].law == "Silu"
    assert dict(program.steps[1].settings) == {"beta": float(np.float32(factor))}
    halves = program_of(graph("Split x -> a b", "Sigmoid b -> g", "Mul a g -> y", Split={"axis": 1}))
    assert kinds(halves) == ["Scalar", "Product"]


@pytest.mark.parametrize(
    "rows",
    [
        ("Max a b -> m", "Min a b -> n"),
        ("Min b a -> n", "Max a b -> m"),
        ("Sub a b -> d", "Relu d -> r", "Add r b -> m", "Sub a r -> n"),
        ("Sub a b -> d", "Relu d -> r", "Add b r -> m", "Min a b -> n"),
        ("Neg a -> p", "Neg b -> q", "Max p q -> k", "Neg k -> n", "Max a b -> m"),
        (
            "Unsqueeze a one -> p",
            "Unsqueeze b one -> q",
            "Concat p q -> k",
            "ReduceMax k -> m",
            "ReduceMin k -> n",
        ),
    ],
)
@pytest.mark.parametrize("order", ["m n", "n m"])
def test_sorts_in_parts(rows: tuple[str, ...], order: str) -> None:
    stored = {"w": random(6, 4), "one": ints(1)} if rows[0].startswith("Uns") else {"w": random(6, 4)}
    settings: dict[str, Any] = {name: {"axis": 1} for name in ("Split", "Concat")}
    settings |= {name: {"axes": [1], "keepdims": 0} for name in ("ReduceMax", "ReduceMin")}
    program = program_of(
        graph("Split x -> a b", *rows, f"Concat {order} -> c", "MatMul c w -> y", **settings), stored
    )
    assert kinds(program) == ["Order", "Affine"]
    assert isinstance(program.steps[1], Order)
    assert program.steps[1].whole


def test_pairs_that_share_an_entry_are_no_sort() -> None:
    rows = ("Slice x s e ax -> a", "Slice x t f ax -> b", "Max a b -> m", "Min a b -> n", "Concat m n -> y")
    stored = {"s": ints(0), "e": ints(5), "t": ints(1), "f": ints(6), "ax": ints(1)}
    program = program_of(graph(*rows, Concat={"axis": 1}), stored)
    assert not any(isinstance(s, Order) and s.whole for s in program.steps)


def test_a_sort_of_all_entries() -> None:
    nodes = [node("TopK", ["x", "k"], ["y", "i"], axis=-1)]
    program = program_of(nodes, {"k": ints(6)})
    assert kinds(program) == ["Order"]
    x = np.random.default_rng(0).standard_normal((3, 6))
    np.testing.assert_array_equal(shown(program.outputs[0].view, evaluate(program, x)), -np.sort(-x))


def test_stored_tensors_anywhere() -> None:
    for rows in (
        ("Max x c -> y",),
        ("Min c x -> y",),
        ("Concat c x -> y",),
        ("Sum x c x -> y",),
        ("Where q x c -> y",),
    ):
        stored: dict[str, Any] = {"c": random(1, 6)} | (
            {"q": np.arange(6)[None] % 2 == 0} if rows[0][:2] == "Wh" else {}
        )
        program = program_of(graph(*rows, Concat={"axis": 1}), stored)
        (constant,) = [s for s in program.steps if isinstance(s, Constant)]
        np.testing.assert_array_equal(constant.values, stored["c"][0].astype(np.float64))


def test_products_of_computed_values() -> None:
    attention = graph("MatMul x q -> a", "Transpose x -> t", "MatMul a t -> s", "Softmax s -> p", "MatMul p x -> y",
                      Transpose={"perm": [0, 2, 1]}, Softmax={"axis": -1})  # fmt: skip
    program = program_of(attention, {"q": random(4, 4)}, (1, 3, 4))
    assert kinds(program) == ["Affine", "Product", "Affine", "Softmax", "Product", "Affine"]
    assert kinds(program_of(graph("Mul x x -> y"))) == ["Product"]
    divided = read(model(graph("Exp x -> e", "Div x e -> y"), [1, 6], 13, {})).program
    assert divided is not None
    assert kinds(divided) == ["Scalar", "Scalar", "Product"]
    # Exponentials of all sizes hide in float32 what the two compute; float64 decides.
    assert kinds(program_of(graph("Exp x -> e", "Div x e -> y"))) == ["Scalar", "Scalar", "Product"]


def test_weights_that_are_computed_from_weights() -> None:
    """Exactly where that is exact; else with their roundings counted."""
    stored = {"v": random(6, 4), "g": random(1, 4, seed=2), "half": np.float32(0.5)}
    exact = program_of(graph("Mul v half -> w", "MatMul x w -> y"), stored)
    assert [s.rounded for s in exact.steps if isinstance(s, Affine)] == [0]
    rounded = program_of(graph("Div v g -> u", "Div u half -> w", "MatMul x w -> y"), stored)
    assert [s.rounded for s in rounded.steps if isinstance(s, Affine)] == [2]
    for name in ("inf", "nan"):
        large = {"a": np.float32(3e38), "b": np.float32(10.0), "zero": np.float32(0)}
        rows = ("Mul a b -> c",) if name == "inf" else ("Div zero zero -> c",)
        assert read(model(graph(*rows, "Add x c -> y"), [1, 6], 13, large)).program is None


# -- refusals


def relu(change: Callable[[Any], None], shape: Any = (1, 6)) -> Model:
    source = model([node("LeakyRelu", ["x"], ["y"], alpha=0.1)], shape, 13)
    change(source)
    return read(source)


def only(source: Any) -> Any:
    return source.graph.node[0]


def given(source: Any) -> Any:
    return source.graph.node[0].attribute


def type_of(value: Any) -> Any:
    return value.type.tensor_type


SETTING = helper.make_attribute
REFUSED: dict[str, tuple[Callable[[Any], Any], str]] = {
    "an unknown setting": (lambda m: given(m).append(SETTING("beta", 0.5)), "setting 'beta' of LeakyRelu is not covered"),
    "a setting twice": (lambda m: given(m).append(SETTING("alpha", 0.2)), "'alpha' of 'LeakyRelu' occurs twice"),
    "a setting of another type": (lambda m: setattr(given(m)[0], "type", 2), "values of another type"),
    "an integer for a number": (lambda m: given(m)[0].CopyFrom(SETTING("alpha", 1)), "has another type"),
    "a setting that is not finite": (lambda m: setattr(given(m)[0], "f", float("inf")), "is not finite"),
    "a reference to a function": (lambda m: setattr(given(m)[0], "ref_attr_name", "a"), "attributes of functions"),
    "an operand too many": (lambda m: only(m).input.append("x"), "operand [1] of LeakyRelu"),
    "an empty operand too many": (lambda m: only(m).input.append(""), "operand [] of LeakyRelu"),
    "no operand": (lambda m: only(m).input.pop(), "LeakyRelu lacks an operand"),
    "a result too many": (lambda m: only(m).output.append("z"), "more results"),
    "a foreign domain": (lambda m: setattr(only(m), "domain", "evil"), "domain 'evil'"),
    "one of several of a name": (lambda m: setattr(only(m), "overload", "b"), "without a name, or one of several"),
    "two writers": (lambda m: m.graph.node.append(only(m)), "'y' has two meanings"),
    "a name that nothing writes": (lambda m: only(m).input.__setitem__(0, "q"), "'q', which nothing writes"),
    "an output that nothing writes": (lambda m: setattr(m.graph.output[0], "name", "q"), "'q' is written by nothing"),
    "two outputs of one name": (lambda m: m.graph.output.append(m.graph.output[0]), "two of one name"),
    "two inputs": (lambda m: m.graph.input.add(name="z").type.CopyFrom(m.graph.input[0].type), "models with 2 inputs"),
    "an input of integers": (lambda m: setattr(type_of(m.graph.input[0]), "elem_type", 7), "no real numbers"),
    "an output of integers": (lambda m: setattr(type_of(m.graph.output[0]), "elem_type", 7), "than the file says"),
    "no shape": (lambda m: type_of(m.graph.input[0]).ClearField("shape"), "without a shape"),
    "an open size": (lambda m: setattr(type_of(m.graph.input[0]).shape.dim[1], "dim_param", "n"), "a fixed shape"),
    "two operator sets": (lambda m: m.opset_import.add(domain="ai.onnx", version=14), "two versions"),
    "no operator set": (lambda m: m.opset_import.pop(), "does not say which operator set"),
    "an old operator set": (lambda m: setattr(m.opset_import[0], "version", 5), "operator set 5"),
    "a new operator set": (lambda m: setattr(m.opset_import[0], "version", 99), "operator set 99"),
    "a new format": (lambda m: setattr(m, "ir_version", 99), "ONNX of version 99"),
    "functions": (lambda m: m.functions.add(name="F", domain="own"), "functions are not covered"),
    "training": (lambda m: m.training_info.add(), "training information is not covered"),
    "annotations": (lambda m: m.graph.quantization_annotation.add(tensor_name="x"), "quantisation annotations"),
    "a tensor without data": (lambda m: m.graph.initializer.add(name="w", data_type=1, dims=[2]), "without data"),
    "a tensor without a name": (lambda m: m.graph.initializer.add(data_type=1), "two meanings"),
    "a tensor that is the input": (lambda m: m.graph.initializer.add(name="x", data_type=1, dims=[0]), "with 0 inputs"),
    "a subgraph": (lambda m: given(m).add(name="b", type=5).g.SetInParent(), "a subgraph of 'LeakyRelu'"),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_files_that_are_refused(what: str) -> None:
    change, reason = REFUSED[what]
    found = relu(change)
    assert found.program is None
    assert reason in found.reason
    assert relu(lambda m: None).program is not None


def test_data_that_contradicts_itself() -> None:
    def changed(change: Callable[[Any], Any]) -> str:
        source = model([node("MatMul", ["x", "w"], ["y"])], [1, 6], 13, {"w": random(6, 2)})
        change(source.graph.initializer[0])
        return read(source).reason

    assert changed(lambda t: None) == ""
    assert "another type" in changed(lambda t: t.float_data.append(1.0))
    assert "another size" in changed(lambda t: setattr(t, "raw_data", t.raw_data[:-1]))
    assert "another size" in changed(lambda t: t.dims.append(2))
    assert "not finite" in changed(
        lambda t: setattr(t, "raw_data", np.full(12, np.nan, np.float32).tobytes())
    )
    assert "strings" in changed(lambda t: t.string_data.append(b"a"))
    assert "segments" in changed(lambda t: setattr(t.segment, "begin", 1))
    assert "element type 17" in changed(lambda t: setattr(t, "data_type", 17))  # eight bits
    assert "another size" in changed(lambda t: setattr(t, "data_type", 16))  # half as many bytes
    assert "different types" in changed(
        lambda t: (setattr(t, "data_type", 11), setattr(t, "raw_data", bytes(96)))
    )


def test_unused_tensors_are_named() -> None:
    found = read(model(graph("Relu x -> y"), [1, 6], 13, {"spare": random(2)}))
    assert found.unused == ("spare",)
    assert read(model(graph("Add x c -> y"), [1, 6], 13, {"c": random(6)})).unused == ()


# -- the words of certificates


def document(*nodes: Any, **change: Any) -> Any:
    rows = [
        {"op": op, "inputs": inputs.split(","), "output": out, "given": given}
        for op, inputs, out, given in nodes
    ]
    return {"input": "x", "shape": [1, 6], "nodes": rows, "outputs": ["y"]} | change


HALF, W, B = (0.5).hex(), random(6), random(6, seed=1)


def reflected(x: Any) -> Any:
    """Pairs x where w'x > 0, else x - 2 w w'x, w = (0.6, 0.8)."""
    pairs = x.reshape(-1, 3, 2)
    along = np.minimum(pairs @ [0.6, 0.8], 0)[..., None]
    return (pairs - 2 * along * [0.6, 0.8]).reshape(-1, 6)


def normalised(x: Any) -> Any:
    return (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 0.5) * W + B


WORD_CASES: dict[str, tuple[tuple[str, str, Any], dict[str, Any], Callable[[Any], Any]]] = {
    "linear": (("Gemm", "x,w,b", {"transB": 1}), {"w": random(4, 6), "b": random(4)}, lambda x: x @ random(4, 6).T + random(4)),
    "scale": (("Scale", "x,a,b", {}), {"a": W, "b": random(1)}, lambda x: x * W + random(1)),
    "sort": (("GroupSort", "x", {"axis": 1, "group": 3}), {}, lambda x: np.sort(x.reshape(-1, 2, 3)).reshape(-1, 6)),
    "reflection": (("Householder", "x,w", {"axis": 1}), {"w": np.array([[3.0, 4.0]] * 3)}, reflected),
    "repetition": (("Repeat", "x", {"factors": [1, 2]}), {}, lambda x: np.repeat(x, 2, 1)),
    "clip": (("Clip", "x", {"min": "-" + HALF}), {}, lambda x: np.maximum(x, -0.5)),
    "padding": (("Pad", "x", {"pads": [0, 1, 0, 0], "value": HALF}), {}, lambda x: np.insert(x, 0, 0.5, 1)),
    "slice": (("Slice", "x", {"axes": [1], "starts": [1], "ends": [6], "steps": [2]}), {}, lambda x: x[:, 1::2]),
    "maximum": (("Max", "x,c", {}), {"c": W[None]}, lambda x: np.maximum(x, W)),
    "normalisation": (("LayerNormalization", "x,w,b", {"axis": -1, "epsilon": HALF}), {"w": W, "b": B}, normalised),
    "implicit": (("Implicit", "x,w,u,b", {"activation": "Relu"}), {"w": np.eye(6) * 0.5, "u": np.eye(6), "b": np.ones(6)},
                 lambda x: np.maximum(2 * (x + 1), 0)),
}  # fmt: skip


@pytest.mark.parametrize("word", WORD_CASES)
def test_words(word: str) -> None:
    (op, inputs, settings), stored, function = WORD_CASES[word]
    stated = document((op, inputs, "y", settings))
    program = architecture(stated, stored)
    x = np.random.default_rng(1).standard_normal((4, 6))
    np.testing.assert_allclose(
        shown(program.outputs[0].view, evaluate(program, x)), function(x), rtol=1e-9, atol=1e-9
    )
    assert tensors_read(stated) == stored.keys()


@pytest.mark.parametrize(
    "stated",
    [
        document(("Relu", "x", "y", {"alpha": HALF})),
        document(("LeakyRelu", "x", "y", {"alpha": 1})),
        document(("LeakyRelu", "x", "y", {"alpha": "0xz"})),
        document(("LeakyRelu", "x", "y", {"alpha": "0x1p5000"})),
        document(("Relu", "x,x", "y", {})),
        document(("Relu", "z", "y", {})),
        document(("Relu", "x", "x", {})),
        document(("Nonsense", "x", "y", {})),
        document(("TopK", "x", "y", {"k": 6})),
        document(("Concat", "x", "y", {"axis": True})),
        document(("Concat", "x", "y", {"axis": [1]})),
        document(("GroupSort", "x", "y", {"axis": 1, "group": 4})),
        document(("GroupSort", "x", "y", {"axis": 1, "group": 3, "descending": 2})),
        document(("Relu", "x", "y", {}), outputs=["z"]),
        document(("Relu", "x", "y", {}), outputs=[]),
        document(("Relu", "x", "y", {}), outputs=["y", "y"]),
        document(("Relu", "x", "y", {}), shape=[2, 6]),
        document(("Relu", "x", "y", {}), shape=[1, -6]),
        document(("Relu", "x", "y", {}), shape=[1.0, 6]),
        document(("Relu", "x", "y", {}), input=""),
        document(("Relu", "x", "y", {}), more=1),
        document(("Relu", "x", "y", {})) | {"nodes": {}},
        [],
        None,
    ],
)
def test_architectures_that_are_refused(stated: Any) -> None:
    with pytest.raises(NotCovered):
        architecture(stated, {})


def test_names_of_an_architecture_have_one_meaning() -> None:
    for names in ({"x": random(6)}, {"": random(6)}, {"y": random(6)}):
        with pytest.raises(LipverifyError):
            architecture(document(("Relu", "x", "y", {})), names)


def test_every_word_is_an_operator_or_one_of_a_few() -> None:
    own = {
        "GroupSort",
        "Householder",
        "Implicit",
        "LogSigmoid",
        "MaskedSoftmax",
        "Repeat",
        "Scale",
        "Silu",
        "Tanhshrink",
    }
    assert WORDS.keys() - OPERATORS.keys() == own


@pytest.mark.parametrize(("value", "divisor"), [(17, 6), (-7, 6), (-8, -3), (7, -2)])
def test_remainders_of_stored_integers_are_those_of_a_runtime(value: int, divisor: int) -> None:
    """Exporters of attention compute the width of a head so."""
    stored = {"n": np.array([value], np.int64), "d": np.array([divisor], np.int64)}
    nodes = graph("Mod n d -> m", "Cast m -> f", "Mul x f -> y", Cast={"to": 1})
    program = program_of(nodes, stored, (1, 3))
    assert evaluate(program, np.ones((1, 3)))[-1].tolist() == [[float(value % divisor)] * 3]


@pytest.mark.parametrize(("kind", "number"), [("BFLOAT16", 1.001), ("INT4", 16.0), ("UINT4", 16.0)])
def test_stored_numbers_are_not_rounded_to_narrow_types(kind: str, number: float) -> None:
    """CastLike kept what the wider type of numpy holds: onnxruntime makes 1 of 1.001, and 0 of 16."""
    nodes = [
        node("CastLike", ["k", "b"], ["q"]),
        node("Cast", ["q"], ["e"], to=1),
        node("Mul", ["x", "e"], ["y"]),
    ]
    source = model(nodes, [1, 1], 21, {"k": np.array([number], np.float32)})
    source.graph.initializer.append(helper.make_tensor("b", getattr(TensorProto, kind), [1], [0]))
    assert "a conversion to a type that rounds" in (read(source).reason or "")
