"""ONNX files built by an attacker, or damaged: external data, graphs that explode, tensors that contradict
themselves. onnx.checker accepts many of them."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from lipverify.errors import InvalidFile, LipverifyError
from lipverify.frontends.onnx import extract_onnx
from lipverify.loading import read_onnx
from tests.clocks import within

pytestmark = pytest.mark.usefixtures("asked_again")
SECRET = b"the-secret-of-somebody-else-" * 4


def refused(code: int, path: Path, seconds: float = 2.0) -> str:
    with within(seconds), pytest.raises(LipverifyError) as caught:
        read_onnx(path)
    message = str(caught.value)
    assert caught.value.exit_code == code, message
    assert len(message) <= 200, message
    assert "\n" not in message
    assert "secret-of" not in message
    return message


def value(name: str) -> Any:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 2])


def model_of(nodes: list[Any], initializers: list[Any] | None = None, **fields: Any) -> Any:
    outputs = fields.pop("outputs", ["y"])
    inputs = fields.pop("inputs", ["x"])
    named = [value(name) for name in inputs], [value(name) for name in outputs]
    return helper.make_model(helper.make_graph(nodes, "g", *named, initializers or []), **fields)


def weight(array: Any = None, name: str = "w") -> Any:
    return numpy_helper.from_array(np.ones((2, 2), np.float32) if array is None else np.asarray(array), name)


def linear(tensor: Any) -> Any:
    return model_of([helper.make_node("MatMul", ["x", "w"], ["y"], name="fc")], [tensor])


def save(folder: Path, model: Any) -> Path:
    path = folder / "model.onnx"
    path.write_bytes(model if isinstance(model, bytes) else model.SerializeToString())
    return path


# Row 13: external data.


def external(location: str, **numbers: Any) -> Any:
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[2, 2])
    tensor.data_location = TensorProto.EXTERNAL
    for key, text in {"location": location, **numbers}.items():
        tensor.external_data.add(key=key, value=str(text))
    return linear(tensor)


def test_external_data_beside_the_model(tmp_path: Path) -> None:
    data = np.arange(8, dtype="<f4")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "w.bin").write_bytes(data.tobytes())
    file = read_onnx(save(tmp_path, external("sub/w.bin", offset=8, length=16)))
    tensor = file.model.graph.initializer[0]
    assert np.array_equal(numpy_helper.to_array(tensor), data[2:6].reshape(2, 2))
    assert not tensor.external_data
    assert tensor.data_location == TensorProto.DEFAULT
    assert [name for name, _ in file.external_files] == ["sub/w.bin"]
    # Nothing downstream needs the folder any more.
    onnx.checker.check_model(file.model)


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    path = tmp_path / "secret.bin"
    path.write_bytes(SECRET)
    (tmp_path / "model").mkdir()
    return path


@pytest.mark.parametrize(
    "location",
    [
        "../secret.bin",
        "a/../../secret.bin",
        "./../secret.bin",
        "..",
        "",
        ".",
        "w.bin\0",
        "C:\\secret",
        "a\\..\\b",
    ],
)
def test_external_data_outside(location: str, victim: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(victim.parent / "model", external(location))
    monkeypatch.setattr(os, "read", spy(os.read))
    refused(6, path)


def spy(read: Callable[..., bytes]) -> Callable[..., bytes]:
    def checked(*arguments: Any) -> bytes:
        data = read(*arguments)
        assert b"secret-of" not in data, "the target was read"
        return data

    return checked


def test_external_data_by_links_and_devices(victim: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = victim.parent / "model"
    monkeypatch.setattr(os, "read", spy(os.read))
    refused(6, save(folder, external(str(victim))))
    refused(6, save(folder, external("/dev/zero")))
    (folder / "link.bin").symlink_to(victim)
    assert "symbolic link" in refused(6, save(folder, external("link.bin")))
    os.link(victim, folder / "hard.bin")
    assert "hard link" in refused(6, save(folder, external("hard.bin")))
    (folder / "sub").symlink_to(victim.parent)
    assert "symbolic link" in refused(6, save(folder, external("sub/secret.bin")))
    os.mkfifo(folder / "fifo")
    assert "not a regular file" in refused(6, save(folder, external("fifo")))
    (folder / "dir").mkdir()
    refused(6, save(folder, external("dir")))


def test_external_data_past_the_end(tmp_path: Path) -> None:
    (tmp_path / "w.bin").write_bytes(bytes(20))
    for numbers in ({"offset": 8}, {"offset": 21}, {"offset": 10**17}):
        assert "past the end" in refused(6, save(tmp_path, external("w.bin", **numbers)))
    for numbers in (
        {"offset": -4},
        {"offset": "1e3"},
        {"offset": "9" * 30},
        {"length": "x"},
        {"offset": "٣"},
    ):
        refused(6, save(tmp_path, external("w.bin", **numbers)))
    assert "needs 16 bytes" in refused(2, save(tmp_path, external("w.bin", length=12)))
    assert "no such file" in refused(2, save(tmp_path, external("absent.bin")))
    twice = external("w.bin")
    twice.graph.initializer[0].external_data.add(key="location", value="other.bin")
    refused(6, save(tmp_path, twice))


def test_external_data_of_attributes_and_functions(victim: Path) -> None:
    evil = external("../secret.bin").graph.initializer[0]
    constant = helper.make_node("Constant", [], ["w"], value=evil)
    use = helper.make_node("MatMul", ["x", "w"], ["y"])
    folder = victim.parent / "model"
    refused(6, save(folder, model_of([constant, use])))
    branch = helper.make_graph([helper.make_node("Constant", [], ["b"], value=evil)], "t", [], [value("b")])
    nested = helper.make_node("If", ["x"], ["y"], then_branch=branch)
    refused(6, save(folder, model_of([nested])))
    function = helper.make_function("own", "F", ["x"], ["y"], [constant, use], [])
    call = helper.make_node("F", ["x"], ["y"], domain="own")
    refused(6, save(folder, model_of([call], functions=[function])))


def test_many_claims_on_one_external_file(tmp_path: Path) -> None:
    with open(tmp_path / "w.bin", "wb") as file:
        file.truncate(1 << 28)
    tensors = []
    for position in range(64):
        tensor = external("w.bin").graph.initializer[0]
        tensor.name, tensor.dims[:] = f"w{position}", [1 << 26]
        tensors.append(tensor)
    identity = helper.make_node("Identity", ["x"], ["y"])
    assert "2 GiB" in refused(5, save(tmp_path, model_of([identity], tensors)))


# Row 14: graphs that explode or contradict themselves.


def nested_if(depth: int, twice: bool = False) -> bytes:
    """An If in an If in an If: written by hand, since the library cannot build deep ones."""

    def field(number: int, data: bytes) -> bytes:
        size, head = len(data), b""
        while size > 127:
            head, size = head + bytes([size & 127 | 128]), size >> 7
        return bytes([number << 3 | 2]) + head + bytes([size]) + data

    graph = field(1, field(1, b"x") + field(2, b"y") + field(4, b"Identity")) + field(12, field(1, b"y"))
    for _ in range(depth):
        branch = field(5, field(1, b"then_branch") + field(6, graph) + bytes([20 << 3 & 255, 1, 5]))
        if twice:
            branch += field(5, field(1, b"else_branch") + field(6, graph) + bytes([20 << 3 & 255, 1, 5]))
        graph = field(1, field(1, b"x") + field(2, b"y") + field(4, b"If") + branch) + field(
            12, field(1, b"y")
        )
    return b"\x08\x08" + field(7, graph + field(11, field(1, b"x")))


@pytest.mark.parametrize("depth", [9, 30, 1000, 10_000])
def test_nested_subgraphs(depth: int, tmp_path: Path) -> None:
    assert "nested" in refused(5, save(tmp_path, nested_if(depth)))


def test_wide_nested_subgraphs(tmp_path: Path) -> None:
    refused(5, save(tmp_path, nested_if(16, twice=True)))


def test_too_many_nodes(tmp_path: Path) -> None:
    nodes = [helper.make_node("Relu", [f"v{i}"], [f"v{i + 1}"]) for i in range(100_000)]
    path = save(tmp_path, model_of(nodes, inputs=["v0"], outputs=["v100000"]))
    assert "50000 nodes" in refused(5, path)
    empty = b"\x0a\x00" * 5_000_000
    bomb = b"\x08\x08\x3a" + struct.pack("<BBBB", 0x80, 0xAD, 0xE2, 0x04) + empty
    assert "50000 nodes" in refused(5, save(tmp_path, bomb))


def test_functions_that_call_themselves(tmp_path: Path) -> None:
    def function(name: str, *callees: str) -> Any:
        nodes = [
            helper.make_node(callee, ["x" if i == 0 else f"t{i - 1}"], [f"t{i}"], domain="own")
            for i, callee in enumerate(callees)
        ]
        return helper.make_function("own", name, ["x"], [f"t{len(callees) - 1}"], nodes, [])

    call = helper.make_node("F0", ["x"], ["y"], domain="own")
    for functions in (
        [function("F0", "F0")],
        [function("F0", "F1"), function("F1", "F2", "F0"), function("F2", "G")],
    ):
        assert "calls itself" in refused(5, save(tmp_path, model_of([call], functions=functions)))
    doubling = [function(f"F{i}", f"F{i + 1}", f"F{i + 1}") for i in range(40)]
    assert "expand" in refused(5, save(tmp_path, model_of([call], functions=doubling)))
    shared = [function(f"F{i}", f"F{i + 1}", f"F{i + 1}") for i in range(10)]
    assert read_onnx(save(tmp_path, model_of([call], functions=shared))).model.functions
    twice = [function("F0", "G"), function("F0", "H")]
    assert "defined twice" in refused(2, save(tmp_path, model_of([call], functions=twice)))
    relu = helper.make_function("", "Relu", ["x"], ["y"], [helper.make_node("Identity", ["x"], ["y"])], [])
    redefined = model_of([helper.make_node("Relu", ["x"], ["y"])], functions=[relu])
    assert "redefines" in refused(5, save(tmp_path, redefined))


def test_wiring(tmp_path: Path) -> None:
    relu = helper.make_node
    cases = {
        "two writers": model_of([relu("Relu", ["x"], ["y"]), relu("Relu", ["x"], ["y"])]),
        '"x" has two writers': model_of([relu("Relu", ["y"], ["x"])], outputs=["x"]),
        '"w" has two writers': model_of([relu("Relu", ["x"], ["w"])], [weight()], outputs=["w"]),
        'reads "z", which nothing writes': model_of([relu("Add", ["x", "z"], ["y"], name="bad")]),
        'output "z" is written by nothing': model_of([relu("Relu", ["x"], ["y"])], outputs=["z"]),
        "cycle": model_of([relu("Add", ["x", "b"], ["a"]), relu("Relu", ["a"], ["b"])], outputs=["b"]),
        "initialiser": model_of([relu("Relu", ["x"], ["y"])], [weight(), weight()]),
        "graph input": model_of([relu("Relu", ["x"], ["y"])], inputs=["x", "x"]),
        "graph output": model_of([relu("Relu", ["x"], ["y"])], outputs=["y", "y"]),
        "no output": model_of([relu("Relu", ["x"], ["y"])], outputs=[]),
    }
    for text, model in cases.items():
        assert text in refused(2, save(tmp_path, model)), text


def test_cycle_through_a_subgraph(tmp_path: Path) -> None:
    inner = helper.make_graph([helper.make_node("Relu", ["y"], ["t"])], "t", [], [value("t")])
    nodes = [
        helper.make_node("If", ["x"], ["s"], then_branch=inner),
        helper.make_node("Relu", ["s"], ["y"]),
    ]
    assert "cycle" in refused(2, save(tmp_path, model_of(nodes)))


def test_value_that_hides_another(tmp_path: Path) -> None:
    inner = helper.make_graph([helper.make_node("Relu", ["x"], ["w"])], "t", [], [value("w")])
    node = helper.make_node("If", ["x"], ["y"], then_branch=inner)
    assert "hides" in refused(2, save(tmp_path, model_of([node], [weight()])))


def test_unsorted_and_listed_initialisers_are_read(tmp_path: Path) -> None:
    nodes = [helper.make_node("Relu", ["t"], ["y"]), helper.make_node("MatMul", ["x", "w"], ["t"])]
    file = read_onnx(save(tmp_path, model_of(nodes, [weight()], inputs=["x", "w"])))
    assert len(file.model.graph.node) == 2


# Rows 10 and 16: tensors and bytes.


def test_numbers_that_are_not_finite(tmp_path: Path) -> None:
    for dtype in (np.float32, np.float64, np.float16):
        array = np.ones((2, 2), dtype)
        array[1, 0] = np.nan
        assert '"w", index [1, 0]' in refused(2, save(tmp_path, linear(weight(array))))
    # An infinity may be a mask or a limit; as a weight it is refused where it is used.
    for bad in (np.inf, -np.inf):
        array = np.array([[1, 1], [bad, 1]], np.float32)
        path = save(tmp_path, linear(weight(array)))
        assert read_onnx(path).model.graph.initializer
        with pytest.raises(InvalidFile, match=r'tensor "w", index \[1, 0\]'):
            extract_onnx(path, check=False)
    array = np.array([[1, 1], [np.nan, 1]], np.float32)
    typed = helper.make_tensor("w", TensorProto.FLOAT, [2, 2], array.ravel())
    assert typed.float_data
    assert '"w", index [1, 0]' in refused(2, save(tmp_path, linear(typed)))
    brain = TensorProto(name="w", data_type=TensorProto.BFLOAT16, dims=[2, 2])
    brain.raw_data = np.array([0x3F80, 0x3F80, 0x7FC0, 0x3F80], "<u2").tobytes()
    assert '"w", index [1, 0]' in refused(2, save(tmp_path, linear(brain)))
    constant = helper.make_node("Constant", [], ["w"], value=weight(array, ""), name="c")
    use = helper.make_node("MatMul", ["x", "w"], ["y"])
    assert '"c.value", index [1, 0]' in refused(2, save(tmp_path, model_of([constant, use])))
    leaky = helper.make_node("LeakyRelu", ["x"], ["y"], alpha=float("nan"), name="act")
    assert '"act" (LeakyRelu)' in refused(2, save(tmp_path, model_of([leaky])))


def test_tensors_that_contradict_themselves(tmp_path: Path) -> None:
    def changed(**fields: Any) -> Any:
        tensor = weight()
        for name, content in fields.items():
            if isinstance(content, list):
                del getattr(tensor, name)[:]
                getattr(tensor, name).extend(content)
            else:
                setattr(tensor, name, content)
        return linear(tensor)

    assert "needs 16 bytes" in refused(2, save(tmp_path, changed(raw_data=bytes(12))))
    assert "needs" in refused(2, save(tmp_path, changed(dims=[1 << 20, 1 << 20])))
    assert "needs" in refused(2, save(tmp_path, changed(dims=[1 << 62] * 16)))
    refused(2, save(tmp_path, changed(dims=[-2, -2])))
    refused(2, save(tmp_path, changed(dims=[2, 2] + [1] * 20)))
    assert "do not belong" in refused(2, save(tmp_path, changed(float_data=[1.0] * 4)))
    assert "do not belong" in refused(2, save(tmp_path, changed(raw_data=b"", int32_data=[1] * 4)))
    both = linear(weight())
    both.graph.initializer[0].data_location = TensorProto.EXTERNAL
    assert "both inside and outside" in refused(2, save(tmp_path, both))
    narrow = helper.make_tensor("w", TensorProto.INT8, [2], [1, 2])
    del narrow.int32_data[:]
    narrow.ClearField("raw_data")
    narrow.int32_data.extend([1, 300])
    assert "out of the range of INT8" in refused(2, save(tmp_path, linear(narrow)))
    half_bytes = TensorProto(name="w", data_type=TensorProto.INT4, dims=[2], raw_data=bytes(16))
    assert "needs 1 bytes" in refused(2, save(tmp_path, linear(half_bytes)))
    for kind in (TensorProto.COMPLEX64, TensorProto.FLOAT8E4M3FN, TensorProto.FLOAT8E5M2, 0, 99):
        odd = TensorProto(name="w", data_type=kind, dims=[2], raw_data=bytes(16))
        assert "element type" in refused(5, save(tmp_path, linear(odd)))


def test_bytes_that_are_no_model(tmp_path: Path) -> None:
    valid = linear(weight()).SerializeToString()
    for data in (
        valid[:-3],
        valid[: len(valid) // 2],
        b"\x08\x07",
        b"\x08\x07\x3a\xff\xff\xff\xff\x0f",
        b"\x08" * 99,
    ):
        refused(2, save(tmp_path, data))
    deep = b""
    for level in range(10_000):  # types of sequences of types, where no graph is looked for
        size, head = len(deep), b""
        while size > 127:
            head, size = head + bytes([size & 127 | 128]), size >> 7
        deep = (b"\x0a" if level % 2 == 0 else b"\x22") + head + bytes([size]) + deep
    refused(2, save(tmp_path, valid + wrapped(deep)))


def wrapped(kind: bytes) -> bytes:
    """A second `graph` field whose input has this type: protobuf merges it into the first."""

    def field(number: int, data: bytes) -> bytes:
        size, head = len(data), b""
        while size > 127:
            head, size = head + bytes([size & 127 | 128]), size >> 7
        return bytes([number << 3 | 2]) + head + bytes([size]) + data

    return field(7, field(11, field(1, b"z") + field(2, kind)))


def test_file_beyond_protobuf(tmp_path: Path) -> None:
    path = tmp_path / "large.onnx"
    with open(path, "wb") as file:
        file.write(b"\x08\x07")
        file.truncate(5 << 30)
    assert "more than the limit" in refused(2, path)


def test_names_that_are_not_text(tmp_path: Path) -> None:
    model = model_of([helper.make_node("Relu", ["x"], ["y"], name="NAME")]).SerializeToString()
    assert "not UTF-8" in refused(2, save(tmp_path, model.replace(b"NAME", b"\xff\xfe\xfd\xfc")))


# A file has one meaning.


def test_bytes_beside_the_model(tmp_path: Path) -> None:
    valid = linear(weight()).SerializeToString()
    assert "no part of the ONNX format" in refused(2, save(tmp_path, valid + b"\x50\x4b"))
    assert "no part of the ONNX format" in refused(
        2, save(tmp_path, valid + bytes([15 << 3 | 2, 3]) + b"abc")
    )
    assert 'gives field "graph" of ModelProto twice' in refused(2, save(tmp_path, valid + wrapped(b"")))
    refused(2, save(tmp_path, b"PK" + valid))
    twice = valid + b"\x08\x07"  # another version of the format behind everything
    assert 'field "ir_version"' in refused(2, save(tmp_path, twice))


def test_versions_of_the_format(tmp_path: Path) -> None:
    newer = linear(weight())
    newer.ir_version = onnx.IR_VERSION + 1
    assert "install a newer onnx" in refused(5, save(tmp_path, newer))
    newer.ir_version = 0
    assert "does not say which version" in refused(2, save(tmp_path, newer))


def test_two_definitions_of_one_name(tmp_path: Path) -> None:
    def sparse() -> Any:
        values = weight(np.ones(2, np.float32))
        return onnx.SparseTensorProto(values=values, indices=weight(np.array([0, 3])), dims=[2, 2])

    shadowed = linear(weight())
    shadowed.graph.node.append(helper.make_node("Constant", [], ["w"], value=weight(name="")))
    assert '"w" has two writers' in refused(2, save(tmp_path, shadowed))
    both = linear(weight())
    both.graph.sparse_initializer.append(sparse())
    assert 'initialiser "w" occurs twice' in refused(2, save(tmp_path, both))
    del both.graph.initializer[:]
    assert "sparse initialisers" in refused(5, save(tmp_path, both))


def test_attributes_of_another_type_than_they_say(tmp_path: Path) -> None:
    leaky = model_of([helper.make_node("LeakyRelu", ["x"], ["y"], alpha=0.5, name="act")])
    leaky.graph.node[0].attribute[0].i = 3
    assert "of another type than it says" in refused(2, save(tmp_path, leaky))
    leaky.graph.node[0].attribute[0].ClearField("i")
    leaky.graph.node[0].attribute[0].type = onnx.AttributeProto.INT
    assert "of another type than it says" in refused(2, save(tmp_path, leaky))


def test_what_an_output_does_not_need_is_not_refused(tmp_path: Path) -> None:
    from lipverify.pipeline import load

    nan = weight(np.full((2, 2), np.nan, np.float32), "bad")
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["y"]),
        helper.make_node("Strange", ["s", "bad"], ["z"], domain="nobody.knows"),
    ]
    path = save(tmp_path, model_of(nodes, [weight(), nan], inputs=["x", "s"], outputs=["y", "z"]))
    assert load(path).input_shape == (2,)
    assert load(path, output="y").output_shape == (2,)
    refused(2, path)
    for output in (1, "z"):
        with pytest.raises(LipverifyError):
            load(path, output=output)
    with pytest.raises(LipverifyError, match='there is no output "w"; the model has 0: "y", 1: "z"'):
        load(path, output="w")
