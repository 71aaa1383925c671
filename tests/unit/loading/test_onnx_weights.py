"""Large tensors of an ONNX file lie beside its message: there once, and the same network in every respect."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

import lipverify as lv
from lipverify.errors import InvalidFile
from lipverify.frontends.onnx import lowering
from lipverify.loading import onnx_weights, read_onnx
from tests.onnx_models import model, node


@pytest.fixture(params=[False, True], ids=["inside", "external"])
def file(request: pytest.FixtureRequest, tmp_path: Path, rng: np.random.Generator) -> Path:
    """An input with a stored default, a convolution, a product whose matrix is transposed, half-precision and whole numbers."""
    stored: dict[str, Any] = {
        "k": rng.standard_normal((3, 2, 3, 3)),
        "w": rng.standard_normal((48, 5)),
        "h": rng.standard_normal((5, 4)).astype(np.float16),
        "q": rng.integers(-9, 9, (4, 4)).astype(np.int8),
        "s": np.float32(0.1),
        "d": rng.standard_normal((1, 5)),
    }
    nodes = [
        node("Conv", ["x", "k"], ["a"]),
        node("Relu", ["a"], ["b"]),
        node("Flatten", ["b"], ["c"]),
        node("MatMul", ["c", "w"], ["e"]),
        node("Add", ["e", "d"], ["f"]),
        node("Cast", ["h"], ["g"], to=onnx.TensorProto.FLOAT),
        node("MatMul", ["f", "g"], ["i"]),
        node("DequantizeLinear", ["q", "s"], ["p"]),
        node("MatMul", ["i", "p"], ["y"]),
    ]
    made = model(nodes, ["n", 2, 6, 6], constants=stored)
    made.graph.input.append(onnx.helper.make_tensor_value_info("d", onnx.TensorProto.FLOAT, [1, 5]))
    path = tmp_path / "net.onnx"
    onnx.save(made, path, save_as_external_data=request.param, location="net.data", size_threshold=0)
    return path


@pytest.fixture
def every_tensor_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_weights, "LARGE", 1)
    monkeypatch.setattr(lowering, "LARGE", 1)


def test_what_is_held_is_the_file(file: Path, every_tensor_is_large: None) -> None:
    whole, apart = read_onnx(file), read_onnx(file, hold=True)
    assert whole.sha256 == apart.sha256
    assert whole.external_files == apart.external_files
    assert not whole.held
    assert set(apart.held) == {"k", "w", "h", "q", "s", "d"}
    assert not any(tensor.raw_data or tensor.external_data for tensor in apart.model.graph.initializer)
    assert onnx_weights.completed(apart.model, apart.held) == whole.model
    for tensor in whole.model.graph.initializer:
        assert np.array_equal(apart.held[tensor.name], onnx.numpy_helper.to_array(tensor))


@pytest.mark.parametrize("options", [{}, {"constants": {"d": 0.25}}], ids=["default", "fixed"])
def test_the_graph_is_the_same(options: dict[str, Any], file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = lv.load(file, input="x", **options)
    monkeypatch.setattr(onnx_weights, "LARGE", 1)
    monkeypatch.setattr(lowering, "LARGE", 1)
    held = lv.load(file, input="x", **options)
    assert held.digest == plain.digest
    assert held.origin.sha256 == plain.origin.sha256
    assert held.origin.import_check == plain.origin.import_check


@pytest.mark.usefixtures("every_tensor_is_large")
def test_parameters_are_the_arrays_that_were_read(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No copy of a kernel, and the reader that the import is compared with has none of its own."""
    import lipverify.frontends.onnx.extract as extract
    import lipverify.frontends.onnx.references as references

    read: list[Any] = []
    monkeypatch.setattr(extract, "read_onnx", lambda *a, **k: read.append(read_onnx(*a, **k)) or read[-1])
    asked: list[Any] = []
    asking = references._asking
    monkeypatch.setattr(references, "_asking", lambda *a: asked.append(asking(*a)) or asked[-1])
    graph = lv.load(file, input="x")
    (kernel,) = (n.op.weight for n in graph.nodes if n.op.kind() == "Conv")
    assert kernel.data_ptr() == read[0].held["k"].ctypes.data
    pytest.importorskip("onnxruntime")
    assert asked
    assert not asked[0].graph.initializer


@pytest.mark.usefixtures("every_tensor_is_large")
def test_a_changed_weight_is_seen_by_the_check(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reader of the original has the held numbers under their own names: an import that mixes them up is found."""
    import lipverify.frontends.onnx.walk as walk

    missing = walk._Initialisers.__missing__

    def wrong(self: Any, name: str) -> Any:
        found = missing(self, name)
        return found[::-1].copy() if name == "k" else found

    monkeypatch.setattr(walk._Initialisers, "__missing__", wrong)
    with pytest.raises(lv.ExtractionMismatch):
        lv.load(file, input="x")


@pytest.mark.usefixtures("every_tensor_is_large")
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.ClearField("dims"), "needs 4 bytes"),
        (lambda t: t.dims.append(2), "the file has"),
        (lambda t: t.float_data.append(1.0), "fields that do not belong"),
        (lambda t: setattr(t, "raw_data", b"\0\0\xc0\x7f" * (len(t.raw_data) // 4)), "holds NaN"),
    ],
    ids=["no shape", "another shape", "two data fields", "nan"],
)
def test_tensors_that_contradict_themselves_are_refused(
    change: Any, words: str, tmp_path: Path, rng: np.random.Generator
) -> None:
    made = model([node("MatMul", ["x", "w"], ["y"])], ["n", 4], constants={"w": rng.standard_normal((4, 3))})
    change(made.graph.initializer[0])
    path = tmp_path / "net.onnx"
    path.write_bytes(made.SerializeToString())
    with pytest.raises(InvalidFile, match=words):
        read_onnx(path, hold=True)


def test_what_is_evaluated_in_another_type_is_converted_node_by_node(rng: np.random.Generator) -> None:
    from lipverify.interpreter import evaluate, evaluate_converted

    torch.manual_seed(0)
    graph = lv.extract(torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.Tanh()).eval(), torch.zeros(2, 4))
    x = torch.from_numpy(rng.standard_normal((3, 4)))
    assert torch.equal(evaluate_converted(graph, x), evaluate(graph.to(dtype=torch.float64), x))
