"""If, Loop and Scan of files: what the checker writes out is what onnxruntime computes, and what has two meanings is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper, numpy_helper

import lipverify as lv
from lipverify.checkers.evaluation import evaluate, shown
from lipverify.checkers.reader import model_of_bytes
from lipverify.checkers.reader.agreement import agree
from lipverify.frontends.onnx import extract_onnx
from tests.control_flow_files import BOOL, FLOAT, INPUTS, INT, STEPS, N, files, info, loop


@pytest.mark.parametrize(
    "model",
    files(),
    ids=["scan", "backward", "last axis", "loop", "ends early", "no count", "then", "else"],
)
def test_bodies_are_written_out_as_a_runtime_runs_them(model: onnx.ModelProto) -> None:
    data = model.SerializeToString()
    runtime = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    read = model_of_bytes("m.onnx", data)
    assert read.program is not None, read.reason
    x = np.random.default_rng(2).standard_normal((5, STEPS, 1, INPUTS)).astype(np.float32)
    (output,) = read.program.outputs
    found = shown(output.view, evaluate(read.program, x.reshape(5, -1).astype(np.float64)))
    wanted = np.stack([runtime.run(None, {"x": one})[0].ravel() for one in x])
    np.testing.assert_allclose(found.reshape(5, -1), wanted, rtol=1e-5, atol=1e-6)


def test_bounds_of_a_loop_are_proved(tmp_path: Any) -> None:
    onnx.save(loop(), tmp_path / "loop.onnx")
    audit = lv.audit(lv.load(tmp_path / "loop.onnx"), analyzers=["product"])
    assert audit.best is not None
    assert audit.best.certificate is not None
    assert str(audit.best.certificate.rigour) == "checked"
    assert lv.verify(audit.best.certificate, model=str(tmp_path / "loop.onnx")).upper >= audit.lower.value


def test_a_square_of_what_cancels_is_rounding() -> None:
    """At inputs where a gate opens the sum below a square is rounding in float32, and so is the square, a product of two."""
    data = loop().SerializeToString()
    read = model_of_bytes("m.onnx", data)
    assert read.program is not None, read.reason
    assert agree(data, read.program, seed=6).share <= 1.0


def body_of(model: onnx.ModelProto) -> Any:
    return next(a.g for a in model.graph.node[0].attribute if a.HasField("g"))


def computed(model: onnx.ModelProto) -> None:
    """The loop goes on while a computed number is positive."""
    body = body_of(model)
    body.node[-1].CopyFrom(N("Greater", ["score", "zero"], ["on"]))
    body.node.insert(len(body.node) - 1, N("ReduceSum", ["after"], ["score"], keepdims=0))
    model.graph.initializer.append(numpy_helper.from_array(np.float32(0), "zero"))


def nested(model: onnx.ModelProto) -> None:
    inner = helper.make_graph([N("Tanh", ["after"], ["deep"])], "b", [], [info("deep", FLOAT, None)])
    body_of(model).node.append(N("If", ["going"], ["d"], then_branch=inner, else_branch=inner))


def loop_of(model: onnx.ModelProto) -> Any:
    return model.graph.node[0]


WIDER = N("Concat", ["total", "total"], ["after"], axis=1)
REFUSED: dict[str, tuple[Callable[[onnx.ModelProto], Any], str]] = {
    "a course that is computed": (computed, "a condition that is computed"),
    "a body in a body": (nested, "subgraphs in subgraphs"),
    "a name of the graph around it": (lambda m: body_of(m).node.append(N("Tanh", ["h"], ["u"])), "'u' has two meanings"),
    "a name twice": (lambda m: body_of(m).node.append(N("Tanh", ["h"], ["own"])), "in a subgraph has two meanings"),
    "a name that nothing writes": (lambda m: body_of(m).node.append(N("Tanh", ["q"], ["r"])), "'q', which nothing writes"),
    "an input of another size": (lambda m: size_of(body_of(m).input[2], 5), "of another size"),
    "an input of another type": (lambda m: setattr(body_of(m).input[2].type.tensor_type, "elem_type", 11), "of another type"),
    "an input too few": (lambda m: body_of(m).input.pop(), "which nothing writes"),
    "a result too few": (lambda m: body_of(m).output.pop(), "more results than its body has"),
    "a setting that nobody reads": (lambda m: loop_of(m).attribute.append(helper.make_attribute("more", 1)), "setting 'more'"),
    "a body of another operator": (lambda m: setattr(m.graph.node[0], "op_type", "Tanh"), "a subgraph of 'Tanh'"),
    "a body that says it is a number": (lambda m: setattr(m.graph.node[0].attribute[0], "type", 2), "values of another type"),
    "too many rounds": (lambda m: replaced(m, "count", np.int64(5000)), "more than 1024 rounds"),
    "a count of another type": (lambda m: replaced(m, "count", np.float32(3)), "count that is no integer"),
    "a state of another size": (lambda m: body_of(m).node[4].CopyFrom(WIDER), "changes its type or size"),
}  # fmt: skip


def size_of(value: Any, size: int) -> None:
    value.type.tensor_type.shape.dim[1].dim_value = size


def replaced(model: onnx.ModelProto, name: str, array: Any) -> None:
    (tensor,) = (t for t in model.graph.initializer if t.name == name)
    tensor.CopyFrom(numpy_helper.from_array(np.asarray(array), name))


@pytest.mark.parametrize("what", REFUSED)
def test_what_has_another_meaning_is_refused(what: str) -> None:
    change, reason = REFUSED[what]
    model = loop()
    if what == "a state of another size":
        del body_of(model).input[2].type.tensor_type.shape.dim[:]
        body_of(model).input[2].type.tensor_type.ClearField("shape")
    change(model)
    read = model_of_bytes("m.onnx", model.SerializeToString())
    assert read.program is None
    assert reason in read.reason
    assert model_of_bytes("m.onnx", loop().SerializeToString()).program is not None


def unconditional(rounds: int, conditions: list[bool]) -> onnx.ModelProto:
    """Twice x in every round, for so many rounds; no condition goes in, and these come out."""
    nodes = [N("Gather", ["on", "i"], ["go"], axis=0), N("Add", ["a", "a"], ["b"])]
    inputs = [info("i", INT, []), info("going", BOOL, []), info("a", FLOAT, [1, 1])]
    stored = [numpy_helper.from_array(np.array(conditions), "on")]
    body = helper.make_graph(nodes, "b", inputs, [info("go", BOOL, []), info("b", FLOAT, [1, 1])], stored)
    graph = helper.make_graph(
        [N("Loop", ["count", "", "x"], ["y"], body=body)], "g", [info("x", FLOAT, [1, 1])],
        [info("y", FLOAT, [1, 1])], [numpy_helper.from_array(np.array(rounds), "count")],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_a_loop_without_a_condition_goes_on() -> None:
    """ONNX's text ignores a condition where none goes in, runtimes end: only what the last round says is alike for all."""
    data = unconditional(3, [True, True, False]).SerializeToString()
    read = model_of_bytes("m.onnx", data)
    assert read.program is not None, read.reason
    runtime = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    assert (
        runtime.run(None, {"x": np.ones((1, 1), np.float32)})[0]
        == evaluate(read.program, np.ones((1, 1)))[-1]
        == 8
    )
    early = unconditional(3, [True, False, True])
    assert "without a condition" in (model_of_bytes("m.onnx", early.SerializeToString()).reason or "")
    with pytest.raises(lv.UnsupportedModel, match="readers disagree whether it does"):
        extract_onnx(early)
