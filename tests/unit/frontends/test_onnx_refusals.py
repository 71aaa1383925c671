"""What the ONNX front end refuses: each refusal names the node, its operator and what to do."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

from lipverify.errors import InvalidFile, LipverifyError, UnsupportedModel
from lipverify.frontends.onnx import extract_onnx
from tests.onnx_models import ints, model, node, random

pytestmark = pytest.mark.usefixtures("asked_again")
MASK = {"c": np.array([True, False, True, False, True, True])}


def refused(
    op: str, reason: str, *, shape: Any = ("N", 6), constants: Any = None, opset: int = 13, inputs: Any = None,
    outputs: Any = ("y",), error: type[LipverifyError] = UnsupportedModel, **attributes: Any,
) -> None:  # fmt: skip
    constants = constants or {}
    names = inputs or ("x", *constants)
    with pytest.raises(error, match=reason) as caught:
        extract_onnx(model([node(op, names, outputs, **attributes)], shape, opset, constants, outputs))
    message = str(caught.value)
    assert f'{op} "{outputs[0]}_node"' in message
    assert "\n" not in message


@pytest.mark.parametrize("op", ["Floor", "Ceil", "Round", "NonZero", "Hardmax", "ArgMax", "ArgMin"])
def test_jumps(op: str) -> None:
    refused(op, "not continuous and has no Lipschitz constant")


@pytest.mark.parametrize("op", ["Less", "Greater", "Equal", "LessOrEqual", "GreaterOrEqual"])
def test_comparisons_of_computed_numbers(op: str) -> None:
    refused(op, "not continuous", constants={"c": random(6)})


def test_choices_by_computed_numbers() -> None:
    nodes = [node("Greater", ["x", "many"], ["c"]), node("Where", ["c", "x", "many"], ["y"])]
    with pytest.raises(UnsupportedModel, match='Greater "c_node"'):
        extract_onnx(model(nodes, ["N", 6], 13, {"many": np.arange(6, dtype=np.float32)}))


def test_a_sign_names_who_uses_it() -> None:
    with pytest.raises(UnsupportedModel, match=r'Add "y_node".*jumps'):
        extract_onnx(model([node("Sign", ["x"], ["s"]), node("Add", ["s", "x"], ["y"])], ["N", 6]))
    with pytest.raises(UnsupportedModel, match=r'"y".*jumps'):
        extract_onnx(model([node("Sign", ["x"], ["y"])], ["N", 6]))


def test_steps_that_depend_on_the_input() -> None:
    refused("DynamicQuantizeLinear", "chooses its step.*stored scales", outputs=("y", "s", "z"))


@pytest.mark.parametrize("op", ["RandomNormalLike", "RandomUniformLike", "Bernoulli"])
def test_random_operators(op: str) -> None:
    refused(op, "is random; export in evaluation mode", opset=15)


def test_random_constants_are_no_constants() -> None:
    nodes = [node("RandomNormal", [], ["r"], shape=[6]), node("Add", ["x", "r"], ["y"])]
    with pytest.raises(UnsupportedModel, match=r'RandomNormal "r_node".*is random'):
        extract_onnx(model(nodes, ["N", 6]))


@pytest.mark.parametrize(
    "to", [TensorProto.INT64, TensorProto.BOOL, TensorProto.FLOAT16, TensorProto.BFLOAT16]
)
def test_conversions_that_round(to: int) -> None:
    refused("Cast", "rounds computed numbers|jumps or leaves the real numbers", to=to)


def test_positions_of_maxima() -> None:
    refused("MaxPool", "positions of maxima", shape=("N", 2, 6, 6), outputs=("y", "i"), kernel_shape=[2, 2])
    refused("TopK", "positions of the largest", constants={"k": ints(3)}, outputs=("y", "i"))
    with pytest.raises(UnsupportedModel, match="no particular order"):
        extract_onnx(model([node("TopK", ["x", "k"], ["y", ""], sorted=0)], ["N", 6], 13, {"k": ints(3)}))


def test_indices_that_are_computed() -> None:
    nodes = [node("TopK", ["x", "k"], ["v", "i"]), node("GatherElements", ["x", "i"], ["y"])]
    with pytest.raises(UnsupportedModel, match=r'TopK "v_node".*positions'):
        extract_onnx(model(nodes, ["N", 6], 13, {"k": ints(3)}))


def test_training_mode() -> None:
    parameters = {"s": random(4), "b": random(4), "m": random(4), "v": np.abs(random(4))}
    refused("BatchNormalization", "statistics of the batch; export in evaluation mode", shape=("N", 4, 5), opset=15,
            constants=parameters, outputs=("y", "rm", "rv"), training_mode=1)  # fmt: skip
    refused("BatchNormalization", "statistics of the batch", shape=("N", 4, 5), opset=9, constants=parameters,
            outputs=("y", "m2", "v2", "sm", "sv"))  # fmt: skip
    refused("Dropout", "at random", constants={"r": np.float32(0.5), "t": np.bool_(True)})


@pytest.mark.parametrize("op", ["LSTM", "GRU", "RNN"])
def test_recurrent_layers(op: str) -> None:
    gates = {"LSTM": 4, "GRU": 3, "RNN": 1}[op]
    constants = {"w": random(1, 2 * gates, 6), "r": random(1, 2 * gates, 2)}
    unknown = ["ScaledTanh"] * (2 if op == "GRU" else 3 if op == "LSTM" else 1)
    refused(
        op,
        "activation 'ScaledTanh' is not covered",
        shape=(3, 1, 6),
        constants=constants,
        activations=unknown,
    )
    refused(op, "written out for 2000 steps", shape=(2000, 1, 6), constants=constants)
    lengths = {**constants, "n": np.array([2, 3], np.int32)}
    refused(op, "unequal lengths", shape=(3, 2, 6), constants=lengths, inputs=("x", "w", "r", "", "n"))


@pytest.mark.parametrize(
    ("op", "attributes", "reason"),
    [
        ("ThresholdedRelu", {"alpha": 0.5}, "jumps by 0.5"),
        ("Shrink", {"bias": 0.0, "lambd": 0.5}, "jumps at its threshold"),
        ("Celu", {"alpha": -1.0}, "not positive"),
    ],
)  # fmt: skip
def test_operators_without_a_rule(op: str, attributes: Any, reason: str) -> None:
    refused(op, reason, **attributes)


def test_unknown_operators_say_how_to_teach_them() -> None:
    refused(
        "Det",
        'not covered; replace it, or teach it to lipverify with @lower.register\\("Det"\\)',
        shape=(1, 3, 3),
    )


def test_foreign_domains_and_a_foreign_relu() -> None:
    ways = {
        ("com.microsoft", "Inverse"): "export with standard ONNX operators alone",
        ("evil", "Relu"): "export with standard ONNX operators alone",
        ("evil", "QGemm"): "export with standard ONNX operators alone",
        ("com.microsoft", "QLinearWhere"): "quantise in onnxruntime's format QDQ",
        ("com.microsoft", "QLinearReduceMean"): "quantise in onnxruntime's format QDQ",
    }
    for (domain, op), way in ways.items():
        source = model(
            [helper.make_node(op, ["x"], ["y"], domain=domain, name="n")], ["N", 6],
            opset_imports=[helper.make_opsetid("", 13), helper.make_opsetid(domain, 1)],
        )  # fmt: skip
        with pytest.raises(
            UnsupportedModel, match=f'{domain}::{op} "n": operators of this domain are not covered; {way}'
        ):
            extract_onnx(source)


@pytest.mark.parametrize("opset", [29, 999])
def test_operator_sets_outside_the_range(opset: int) -> None:
    source = model([node("Relu", ["x"], ["y"])], ["N", 6], opset_imports=[helper.make_opsetid("", opset)])
    with pytest.raises(UnsupportedModel, match=f"version {opset} .* export with such an opset_version"):
        extract_onnx(source)


def test_operator_sets_that_contradict_each_other() -> None:
    both = [helper.make_opsetid("", 13), helper.make_opsetid("ai.onnx", 17)]
    with pytest.raises(InvalidFile, match="two versions"):
        extract_onnx(model([node("Relu", ["x"], ["y"])], ["N", 6], opset_imports=both))
    source = model([node("Relu", ["x"], ["y"])], ["N", 6])
    del source.opset_import[:]
    with pytest.raises(InvalidFile, match="does not say which version"):
        extract_onnx(source)


def test_several_inputs_are_named() -> None:
    source = model([node("Add", ["x", "state"], ["y"])], ["N", 6])
    source.graph.input.append(helper.make_tensor_value_info("state", TensorProto.FLOAT, [1, 6]))
    with pytest.raises(UnsupportedModel, match='2 inputs \\("x", "state"\\)'):
        extract_onnx(source)


def test_inputs_that_are_no_real_numbers() -> None:
    source = model(
        [node("Gather", ["w", "x"], ["y"])], [1, 4], 13, {"w": random(9, 3)}, kind=TensorProto.INT64
    )
    with pytest.raises(UnsupportedModel, match=r'input "x" is of ONNX element type 7.*behind the embedding'):
        extract_onnx(source)


def test_a_graph_without_input() -> None:
    source = model([node("Relu", ["c"], ["y"])], [1, 4], 13, {"c": random(3)})
    del source.graph.input[:]
    with pytest.raises(UnsupportedModel, match="no input"):
        extract_onnx(source)


def test_branches_on_computed_numbers() -> None:
    result = helper.make_tensor_value_info("t", TensorProto.FLOAT, None)
    branch = helper.make_graph([node("Relu", ["x"], ["t"])], "b", [], [result])
    other = helper.make_graph([node("Tanh", ["x"], ["t"])], "b", [], [result])
    nodes = [
        node("ReduceSum", ["x"], ["s"], keepdims=0), node("Cast", ["s"], ["c"], to=TensorProto.BOOL),
        node("If", ["c"], ["y"], then_branch=branch, else_branch=other),
    ]  # fmt: skip
    with pytest.raises(UnsupportedModel, match='Cast "c_node"'):
        extract_onnx(model(nodes, [1, 6], 13))


def test_resizing_that_readers_disagree_about() -> None:
    scales = {"r": np.zeros(0, np.float32), "s": np.array([1, 1, 1.9, 1.9], np.float32)}
    settings = {"coordinate_transformation_mode": "align_corners"}
    for mode in ("nearest", "linear", "cubic"):
        refused("Resize", "readers disagree", shape=(1, 2, 4, 4), constants=scales, mode=mode, **settings)


@pytest.mark.parametrize(
    ("op", "inputs", "constants", "reason"),
    [
        (
            "ScatterElements",
            ("z", "i", "x"),
            {"z": random(1, 9), "i": np.array([[0, 0, 1, 2, 3, 4]])},
            "writes one entry twice",
        ),
        ("GatherElements", ("x", "i"), {"i": np.array([[9]])}, "indices outside"),
        ("ScatterND", ("z", "i", "x"), {"z": random(9), "i": np.array([[0]])}, "for updates"),
    ],
)
def test_positions_that_make_no_sense(op: str, inputs: Any, constants: Any, reason: str) -> None:
    settings = {"axis": 1} if op != "ScatterND" else {}
    refused(op, reason, shape=(1, 6), constants=constants, inputs=inputs, error=InvalidFile, **settings)


def test_matrices_that_would_be_too_large() -> None:
    grid = np.zeros((1, 2, 2, 2), np.float32)
    refused(
        "GridSample",
        "matrix for 10000 numbers is too large",
        shape=(1, 1, 100, 100),
        constants={"g": grid},
        opset=16,
    )
    refused("CumSum", "axis of size 5000", shape=(1, 5000), constants={"a": np.int64(1)})


@pytest.mark.parametrize(
    ("op", "shape", "constants", "attributes", "opset"),
    [
        ("Conv", ("N", 4, 6, 6), {"w": random(5, 3, 3, 3)}, {}, 13),
        ("Conv", ("N", 4, 6, 6), {"w": random(5, 4, 3, 3)}, {"kernel_shape": [2, 2]}, 13),
        ("Conv", ("N", 4, 6, 6), {"w": random(5, 4, 3, 3)}, {"group": 3}, 13),
        ("Conv", ("N", 4, 6, 6), {"w": random(5, 4, 3, 3), "b": random(4)}, {}, 13),
        ("Conv", ("N", 4, 6, 6), {"w": random(5, 4, 3, 3)}, {"strides": [0, 1]}, 13),
        ("Conv", ("N", 4, 6, 6), {"w": random(5, 4, 3, 3)}, {"pads": [1, 1]}, 13),
        ("Conv", ("N", 4, 6, 6), {"w": random(5, 4, 3, 3)}, {"pads": [-1, 0, 0, 0]}, 13),
        ("Conv", ("N", 4, 6, 6), {"w": random(5, 4, 3, 3)}, {"auto_pad": "VALID", "pads": [1, 1, 1, 1]}, 13),
        ("Gemm", ("N", 6), {"w": random(5, 3)}, {}, 13),
        ("MatMul", ("N", 6), {"w": random(5, 3)}, {}, 13),
        ("Add", ("N", 6), {"c": random(5)}, {}, 13),
        ("Reshape", ("N", 6), {"s": ints(-1, 4)}, {}, 13),
        ("Reshape", ("N", 6), {"s": ints(-1, -1)}, {}, 13),
        ("Transpose", ("N", 6), {}, {"perm": [0, 0]}, 13),
        ("Softmax", ("N", 6), {}, {"axis": 2}, 13),
        ("Concat", ("N", 6), {"c": random(3, 1, 1)}, {"axis": 0}, 13),
        ("Squeeze", ("N", 6), {"a": ints(1)}, {}, 13),
        ("Unsqueeze", ("N", 6), {"a": ints(1, 1)}, {}, 13),
        ("Split", ("N", 7), {}, {"axis": 1}, 13),
        ("Gather", ("N", 6), {"i": ints(6)}, {"axis": 1}, 13),
        ("Slice", ("N", 6), {"s": ints(0), "e": ints(3), "a": ints(1), "t": ints(0)}, {}, 13),
        ("Div", ("N", 6), {"c": np.zeros(6, np.float32)}, {}, 13),
        ("BatchNormalization", ("N", 4, 5),
         {"s": random(4), "b": random(4), "m": random(4), "v": -np.ones(4, np.float32)}, {}, 13),
        ("BatchNormalization", ("N", 4, 5),
         {"s": random(3), "b": random(3), "m": random(3), "v": np.ones(3, np.float32)}, {}, 13),
        ("Squeeze", ("N", 1, 6), {}, {"axes": [1]}, 13),
        ("Relu", ("N", 6), {"c": random(6)}, {}, 13),
        ("Relu", ("N", 6), {}, {"alpha": 0.5}, 13),
        ("Flatten", ("N", 6), {}, {"axis": 1.0}, 13),
        ("DepthToSpace", ("N", 6, 2, 2), {}, {"blocksize": 4}, 13),
    ],
)  # fmt: skip
def test_nodes_that_contradict_their_definition(
    op: str, shape: Any, constants: Any, attributes: Any, opset: int
) -> None:
    outputs = ("y", "z") if op == "Split" else ("y",)
    refused(
        op,
        op,
        shape=shape,
        constants=constants,
        opset=opset,
        outputs=outputs,
        error=InvalidFile,
        **attributes,
    )


@pytest.mark.parametrize("op", ["Mish", "HardSwish", "LayerNormalization", "Gelu", "Nonsense"])
def test_operators_their_operator_set_does_not_have(op: str) -> None:
    refused(op, "version 13|operator set 13", constants={"s": random(6)} if op.startswith("Layer") else {})


def test_stored_infinities_do_not_enter_the_computation() -> None:
    nodes = [node("Div", ["one", "zero"], ["inf"]), node("Add", ["x", "inf"], ["y"])]
    with pytest.raises(InvalidFile, match=r'Add "y_node".*infinity or NaN \(tensor "inf", index \[\]\)'):
        extract_onnx(model(nodes, ["N", 6], 13, {"one": np.float32(1), "zero": np.float32(0)}))
    branch = {"inf": np.float32(1e38), "ten": np.float32(10)}
    nodes = [node("Mul", ["inf", "ten"], ["big"]), node("Where", ["c", "x", "big"], ["y"])]
    with pytest.raises(InvalidFile, match=r'Where "y_node".*infinity'):
        extract_onnx(model(nodes, ["N", 6], 13, {**MASK, **branch}))


def test_names_from_the_file_are_escaped() -> None:
    bad = node("Floor", ["x"], ["y"])
    bad.name = "\x1b[31m<script>\n" + "a" * 500
    with pytest.raises(UnsupportedModel) as caught:
        extract_onnx(model([bad], ["N", 6]))
    assert "\x1b" not in str(caught.value)
    assert len(str(caught.value)) < 300


def test_attributes_that_refer_to_a_function_outside_one() -> None:
    bad = node("LeakyRelu", ["x"], ["y"], alpha=0.1)
    bad.attribute[0].ref_attr_name = "alpha"
    with pytest.raises(LipverifyError):
        extract_onnx(model([bad], ["N", 6]))


def test_a_stored_string() -> None:
    nodes = [node("Constant", [], ["c"], value_string="text"), node("Add", ["x", "c"], ["y"])]
    with pytest.raises(UnsupportedModel, match="no tensor of real numbers"):
        extract_onnx(model(nodes, ["N", 6], 13))


def test_sequences() -> None:
    nodes = [node("SplitToSequence", ["x"], ["s"], axis=1), node("SequenceAt", ["s", "i"], ["y"])]
    with pytest.raises(UnsupportedModel, match=r'SplitToSequence "s_node".*sequences'):
        extract_onnx(model(nodes, ["N", 6], 13, {"i": np.int64(0)}))


def test_loops() -> None:
    result = helper.make_tensor_value_info
    body = helper.make_graph(
        [node("Identity", ["go"], ["on"]), node("Relu", ["a"], ["b"])], "body",
        [result("i", TensorProto.INT64, []), result("go", TensorProto.BOOL, []), result("a", TensorProto.FLOAT, None)],
        [result("on", TensorProto.BOOL, []), result("b", TensorProto.FLOAT, None)],
    )  # fmt: skip
    stored = {"n": np.int64(2**62), "t": np.bool_(True)}
    with pytest.raises(UnsupportedModel, match=r'Loop "y_node".*runs more than 4096 times'):
        extract_onnx(model([node("Loop", ["n", "t", "x"], ["y"], body=body)], ["N", 6], 13, stored))


@pytest.mark.parametrize("place", [0, 1])
def test_a_single_number_is_no_matrix(place: int) -> None:
    inputs = ["x", "w"] if place else ["w", "x"]
    file = model([node("MatMul", inputs, ["y"])], ["N", 3], constants={"w": np.array(2.0, np.float32)})
    with pytest.raises(InvalidFile, match='MatMul "y_node": a matrix product with a single number'):
        extract_onnx(file)


WIDE: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    *((op, {}, {"kernel_shape": [3, 5], "strides": [1, 3], "ceil_mode": ceil})
      for op in ("AveragePool", "MaxPool", "LpPool") for ceil in (0, 1)),
    *((op, {}, {"kernel_shape": [3, 3], "dilations": [1, 2], "strides": [1, 3]})
      for op in ("AveragePool", "MaxPool", "LpPool")),
    ("Conv", {"w": random(1, 1, 3, 5)}, {}), ("Conv", {"w": random(1, 1, 3, 3)}, {"dilations": [1, 2]}),
]  # fmt: skip


@pytest.mark.parametrize(("op", "constants", "settings"), WIDE)
def test_windows_larger_than_images(op: str, constants: Any, settings: Any) -> None:
    refused(op, "a window of 5 entries over an axis of 4", shape=(1, 1, 7, 4), opset=19, constants=constants,
            error=InvalidFile, **settings)  # fmt: skip


def test_transposed_convolutions_that_cut_more_than_there_is() -> None:
    weight = {"w": random(1, 1, 3, 3)}
    refused(
        "ConvTranspose", "cuts", shape=(1, 1, 2, 2), constants=weight, error=InvalidFile, pads=[3, 3, 3, 3]
    )
    refused(
        "ConvTranspose", "cuts", shape=(1, 1, 2, 2), constants=weight, error=InvalidFile, output_shape=[-1, 4]
    )
