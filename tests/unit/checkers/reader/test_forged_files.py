"""Model files that a runtime and a careless reader take for two models: every one of them is refused, with a reason."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from lipverify.checkers.reader import Model, read_model
from tests.onnx_models import ints, model, node

EYE = np.eye(3, dtype=np.float32)
SMALL, LARGE = EYE * np.float32(0.001), EYE * np.float32(100)


def read(source: Any, folder: Path) -> Model:
    path = folder / "model.onnx"
    path.write_bytes(source if isinstance(source, bytes) else source.SerializeToString())
    return read_model(path)


def refused(source: Any, folder: Path, reason: str) -> None:
    found = read(source, folder)
    assert found.program is None
    assert found.binding == "file"
    assert reason in found.reason


def product(**constants: Any) -> Any:
    return model([node("MatMul", ["x", "W"], ["y"])], [1, 3], 13, constants)


def test_an_initialiser_and_a_constant_of_one_name(tmp_path: Path) -> None:
    source = product(W=SMALL)
    source.graph.node.append(helper.make_node("Constant", [], ["W"], value=numpy_helper.from_array(LARGE)))
    refused(source, tmp_path, "'W' has two meanings")


def test_a_sparse_and_a_dense_initialiser_of_one_name(tmp_path: Path) -> None:
    source = product(W=SMALL)
    sparse = source.graph.sparse_initializer.add()
    sparse.values.CopyFrom(numpy_helper.from_array(np.full(3, 100, np.float32), "W"))
    sparse.indices.CopyFrom(numpy_helper.from_array(np.array([0, 4, 8]), "W_i"))
    sparse.dims.extend([3, 3])
    refused(source, tmp_path, "sparse initialisers are not covered")


def external() -> Any:
    tensor = TensorProto(
        name="W", data_type=TensorProto.FLOAT, dims=[3, 3], data_location=TensorProto.EXTERNAL
    )
    for key, text in (("location", "w.bin"), ("offset", "0"), ("length", "36")):
        tensor.external_data.add(key=key, value=text)
    return tensor


@pytest.mark.parametrize("place", ["constant", "body", "constant without a path"])
def test_external_data_of_operators_is_not_read(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "w.bin").write_bytes(SMALL.tobytes())
    monkeypatch.chdir(tmp_path)
    source, tensor = product(), external()
    if place.endswith("path"):
        del tensor.external_data[:]
    if place == "body":
        inner = helper.make_graph([], "inner", [], [helper.make_tensor_value_info("W", 1, [3, 3])], [tensor])
        source.graph.node.insert(
            0, helper.make_node("If", ["yes"], ["W"], then_branch=inner, else_branch=inner)
        )
        source.graph.initializer.append(numpy_helper.from_array(np.array(True), "yes"))
    else:
        source.graph.node.insert(0, helper.make_node("Constant", [], ["W"], value=tensor))
    refused(source, tmp_path, "external data is not covered by the checker")


def test_integers_are_no_real_numbers(tmp_path: Path) -> None:
    thousands = {"d": np.full(3, 1000, np.int64)}
    source = model([node("Div", ["x", "d"], ["y"])], [1, 3], 13, thousands, kind=TensorProto.INT64)
    refused(source, tmp_path, "inputs that are no real numbers")
    refused(model([node("Div", ["x", "d"], ["y"])], [1, 3], 13, thousands), tmp_path, "different types")


def test_names_of_the_file_never_meet_those_of_the_checker(tmp_path: Path) -> None:
    weights = {
        "W": np.diag([100, 1, 1]).astype(np.float32),
        "s": np.full(3, 0.001, np.float32),
        "i": ints(2, 1, 0),
    }
    nodes = [
        node("MatMul", ["x", "W"], ["a"]), node("Mul", ["x", "s"], ["y/end"]), node("Gather", ["a", "i"], ["y"], axis=1),
    ]  # fmt: skip
    program = read(model(nodes, [1, 3], 13, weights, ("y", "y/end")), tmp_path).program
    assert program is not None
    assert [o.name for o in program.outputs] == ["y", "y/end"]
    assert program.outputs[0].view.sources != program.outputs[1].view.sources
    assert list(program.outputs[0].view.places) == [2, 1, 0]


def test_a_padding_with_a_number_reads_that_number(tmp_path: Path) -> None:
    nodes = [node("Pad", ["x", "p", "v"], ["y"])]
    stored = {"p": ints(0, 1, 0, 1), "v": np.float32(10)}
    program = read(model(nodes, [1, 2], 13, stored), tmp_path).program
    assert program is not None
    (output,) = program.outputs
    kinds = [type(program.steps[s]).__name__ for s in output.view.sources]
    assert kinds == ["Input", "Constant"]
    assert list(output.view.places) == [2, 0, 1, 2]
    nought = read(model(nodes, [1, 2], 13, stored | {"v": np.float32(0)}), tmp_path).program
    assert nought is not None
    assert list(nought.outputs[0].view.places) == [-1, 0, 1, -1]


@pytest.mark.parametrize("before", [b"PK", b"PK\x03\x04", b"\x80\x02", b"\x80\x04", b"\x00", b"{"])
def test_bytes_before_a_model(before: bytes, tmp_path: Path) -> None:
    found = read(before + product(W=LARGE).SerializeToString(), tmp_path)
    assert found.program is None
    assert not found.tensors
    assert found.reason


@pytest.mark.parametrize("after", [b"\x00", b"PK\x05\x06" + bytes(18), b"\x52\x00", b"\x08\x08", b"\x0b\x0c"])
def test_bytes_behind_a_model(after: bytes, tmp_path: Path) -> None:
    source = product(W=LARGE).SerializeToString()
    assert read(source, tmp_path).program is not None
    assert read(source + after, tmp_path).program is None
