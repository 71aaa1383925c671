"""Files of weights: read whole by a strict structure, or refused with a reason; no file is weights and something else."""

from __future__ import annotations

import io
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from safetensors.torch import save

from lipverify import deadline
from lipverify.checkers.reader import Model, digest_of, model_of_bytes, parse_safetensors
from lipverify.checkers.reader.wire import is_protobuf
from lipverify.errors import BudgetEnded, UnreadableCertificate
from tests.clocks import within
from tests.onnx_models import model, node, random

A, B = random(3, 4), random(5)


def refused(data: bytes, reason: str) -> Model:
    found = model_of_bytes("weights", data)
    assert found.program is None
    assert not found.tensors
    assert reason in found.reason
    return found


def tensors() -> bytes:
    return save({"a": torch.from_numpy(A), "b": torch.from_numpy(B)})


def npz(compressed: bool = False) -> bytes:
    buffer = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(buffer, a=A, b=np.asfortranarray(B))
    return buffer.getvalue()


def checkpoint() -> bytes:
    buffer = io.BytesIO()
    torch.save({"a": torch.from_numpy(A), "b": torch.from_numpy(B)}, buffer)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "make", [tensors, npz, lambda: npz(True), checkpoint], ids=["safetensors", "npz", "packed", "torch"]
)
def test_weights_are_found(make: Any) -> None:
    found = model_of_bytes("weights", make())
    assert found.binding == "weights"
    assert not found.reason
    assert found.holds(A)
    assert found.holds(B)
    assert not found.holds(A + 1)
    assert not found.holds(A[::-1])


def test_digests_tell_types_and_shapes_apart() -> None:
    assert len({digest_of(x) for x in (A, A.astype(np.float64), A.reshape(4, 3), A.reshape(-1), A + 1)}) == 5
    assert digest_of(A) == digest_of(np.asfortranarray(A)) == digest_of(A.astype(">f4").astype("<f4"))


@pytest.mark.parametrize("make", [tensors, npz, checkpoint], ids=["safetensors", "npz", "torch"])
@pytest.mark.parametrize("change", ["before", "behind", "cut", "twice"])
def test_weights_with_something_beside(make: Any, change: str) -> None:
    data = make()
    changed = {"before": b"\0" + data, "behind": data + b"\0", "cut": data[:-1], "twice": data + data}[change]
    found = model_of_bytes("weights", changed)
    assert not found.tensors
    assert found.reason


def test_a_checkpoint_tells_types_and_shapes() -> None:
    """The bytes of a float32 matrix were taken for float16 numbers, "whose weights lie in the file"."""
    whole = torch.arange(12.0).reshape(3, 4)
    kept = {
        "a": whole,
        "view": whole[1:, ::2],
        "turned": whole.t(),
        "half": whole[0].half(),
        "count": torch.tensor(7),
        "learned": torch.nn.Parameter(2.0 * whole),
    }
    buffer = io.BytesIO()
    torch.save({"state": kept, "p": torch.nn.Parameter(-whole), "wide": torch.ones(1).expand(99)}, buffer)
    found = model_of_bytes("weights", buffer.getvalue())
    assert not found.reason
    for tensor in (*kept.values(), -whole):
        assert found.holds(tensor.detach().numpy())
    assert len(found.tensors) == 7
    a = whole.numpy()
    for other in (
        a.reshape(4, 3),
        a.reshape(-1),
        np.frombuffer(a.tobytes(), np.float16),
        a.view(np.int32),
        np.ones(99, "f4"),
    ):
        assert not found.holds(other)


def name(words: str) -> bytes:
    """A global in a pickle."""
    return f"c{words}\n".replace(" ", "\n").encode()


def values(*given: Any) -> bytes:
    """A tuple in a pickle, of numbers, words and what is written already."""
    written = {int: lambda n: b"J" + struct.pack("<i", n), str: lambda w: b"X" + struct.pack("<I", len(w)) + w.encode(),
               bytes: bytes}  # fmt: skip
    return b"(" + b"".join(written[type(value)](value) for value in given) + b"t"


def storage(count: int = 12, key: str = "0", kind: str = "Float", place: str = "cpu") -> bytes:
    return values("storage", name(f"torch {kind}Storage"), key, place, count) + b"Q"


REBUILD = name("torch._utils _rebuild_tensor_v2")
PLAIN = values(3, 4), values(4, 1)


def rebuilt(held: bytes, start: int = 0, sizes: bytes = PLAIN[0], strides: bytes = PLAIN[1]) -> bytes:
    return REBUILD + values(held, start, sizes, strides) + b"R"


def written(words: bytes) -> bytes:
    """The archive of one storage of 48 bytes, by hand."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("x/data.pkl", words + b".")
        archive.writestr("x/data/0", bytes(48))
    return buffer.getvalue()


FROM_TYPE = name("torch._tensor _rebuild_from_type_v2") + values(REBUILD, values(storage(), 0, *PLAIN)) + b"R"
PICKLES: dict[str, tuple[bytes, str]] = {
    "behind the end": (rebuilt(storage(), 1), "beyond its storage"),
    "ahead of it": (rebuilt(storage(), -1), "beyond its storage"),
    "long strides": (rebuilt(storage(), 0, PLAIN[0], values(4, 2)), "beyond its storage"),
    "another size": (rebuilt(storage(13)), "a storage of another size"),
    "a negative size": (rebuilt(storage(), 0, values(-1), values(1)), "an invalid shape"),
    "fewer strides": (rebuilt(storage(), 0, PLAIN[0], values(1)), "an invalid shape"),
    "two types": (rebuilt(storage()) + rebuilt(storage(12, kind="Int")), "a storage of two types"),
    "an unknown type": (rebuilt(storage(12, kind="QInt8")), "a storage of an unknown type"),
    "another way to make a tensor": (rebuilt(storage()) + FROM_TYPE, "used in an unknown way"),
    "a storage alone": (rebuilt(storage()) + b"]" + storage() + b"a", "used in an unknown way"),
    "a storage in an object": (rebuilt(storage()) + values(storage()) + b"b", "used in an unknown way"),
    "an operation that calls": (rebuilt(storage()) + b"(ios\nsystem\n", "a pickle with INST"),
    "nothing reads it": (b"}", "a storage that no tensor reads"),
    "a bit beside the numbers": (
        REBUILD + values(storage(), 0, *PLAIN, 0, 0)[:-1] + b"}X\x03\x00\x00\x00neg\x88stR", "of an unknown form"),
    "a tensor of another type": (
        name("torch._utils _rebuild_device_tensor_from_cpu_tensor") + values(rebuilt(storage()), name("torch bool"), "cpu", 0)
        + b"R", "used in an unknown way"),
    "an entry of a tensor": (rebuilt(storage()) + values(0)[1:-1] + values(1)[1:-1] + b"s", "another thing than a table"),
    "a tensor with a state": (rebuilt(storage()) + b"}b", "used in an unknown way"),
    "a state with a tensor": (b"}" + rebuilt(storage()) + b"b", "used in an unknown way"),
    "a table with words of its own": (b"]" + rebuilt(storage()) + b"a" + b"}}" + values("keys", 1)[1:-1] + b"sb",
                                        "changes what it has made"),
    "a state in pairs": (b"]" + rebuilt(storage()) + b"a" + b"}]" + values("keys", 1) + b"ab", "changes what it has made"),
    "a function of nothing": (rebuilt(storage()) + name("torch set_default_dtype") + b")R", "used in an unknown way"),
    "an object": (rebuilt(storage()) + name("torch.nn Linear") + b")\x81", "a pickle with NEWOBJ"),
    "a storage without numbers": (rebuilt(storage(place="meta")), "without numbers"),
    "a number of many bits": (b"\x8a\x09" + bytes(8) + b"\1" + rebuilt(storage()), "more than 64 bits"),
    "a tensor of many parts": (REBUILD + values(storage(), 0, *PLAIN, *[0] * 9) + b"R", "of an unknown form"),
    "a tensor of many axes": (rebuilt(storage(), 0, values(*[1] * 13), values(*[1] * 13)), "an invalid shape"),
    "more behind it": (rebuilt(storage()) + b".]", "bytes behind its end"),
}  # fmt: skip


@pytest.mark.parametrize("what", PICKLES)
def test_checkpoints_that_hold_more_than_their_tensors(what: str) -> None:
    """What torch would make of them is another network than the one whose tensors are known."""
    assert len(model_of_bytes("weights", written(rebuilt(storage()))).tensors) == 1
    refused(written(PICKLES[what][0]), PICKLES[what][1])


def test_one_storage_in_very_many_shapes() -> None:
    views = b"".join(rebuilt(storage(), k) for k in (0,) * 100)
    assert len(model_of_bytes("weights", written(views)).tensors) == 1
    views = b"".join(
        rebuilt(storage(), 0, values(n, m), values(m, 1)) for n in range(2, 12) for m in range(1, 1 + 12 // n)
    )
    refused(written(views + rebuilt(storage())), "too many tensors in one storage")


def test_an_onnx_file_is_no_archive() -> None:
    """Before an archive's end there may be anything, for most libraries; before an ONNX file an unknown field."""
    source = model([node("MatMul", ["x", "w"], ["y"])], [1, 3], 13, {"w": A}).SerializeToString()
    refused(b"PK" + source, "field 10 of Model is unknown")
    refused(b"PK\x03\x04" + source, "")
    refused(source + npz(), "")
    assert is_protobuf(source)
    assert not is_protobuf(tensors())
    assert not is_protobuf(npz())
    assert not is_protobuf(checkpoint())


def test_more_fields_than_a_model_has_are_not_walked_through() -> None:
    """Behind the eight bytes that make it look like safetensors a group never ends: a minute for 100 MB."""
    data = b"\x08\x00" * 4 + b"{" + b"\x08\x00" * 2_000_000
    with within(0.5):
        assert is_protobuf(data)
        refused(data, "occurs twice")


def test_an_ended_budget_is_no_reason_of_a_file() -> None:
    """The model was kept with the reason "the budget ended", as if nobody could ever read it."""
    data = model([node("Relu", ["x"], ["y"])], [1, 3], 13).SerializeToString()
    with deadline.within(0.0), pytest.raises(BudgetEnded):
        model_of_bytes("m.onnx", data)
    assert model_of_bytes("m.onnx", data).program is not None


def polyglot(source: bytes) -> bytes:
    """An ONNX model for a lenient library, and safetensors.

    The length of the header is the field `producer_name`; its brace begins a group, which lenient libraries step over; from the
    name of the tensor on, unknown fields (R) step over the rest of the header; the numbers are the model.
    """
    length = struct.unpack("<Q", b"\x12\x06" + bytes(6))[0]
    tail = b'":{"dtype":"U8","shape":[%d],"data_offsets":[0,%d]}}' % (len(source), len(source))
    name, rest = b" " * 33 + b"|", length - 36
    while rest > 128:
        step = min(122, rest - 2 - 80)
        name, rest = name + b"R" + bytes([step]) + b"." * step, rest - 2 - step
    name += b"R" + bytes([rest - 2]) + b"." * (rest - 2 - len(tail))
    header = b'{"' + name + tail
    assert len(header) == length
    return struct.pack("<Q", length) + header + source


def test_bytes_that_are_safetensors_and_a_model() -> None:
    source = model([node("MatMul", ["x", "w"], ["y"])], [1, 3], 13, {"w": A}).SerializeToString()
    data = polyglot(source)
    assert len(parse_safetensors(data)) == 1
    assert is_protobuf(data)
    assert onnx.ModelProto.FromString(data).graph.node[0].op_type == "MatMul"
    assert refused(data, "unknown").binding == "file"


def archive(entries: dict[str, bytes], comment: bytes = b"", **options: Any) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", **options) as target:
        for name, data in entries.items():
            target.writestr(name, data)
        target.comment = comment
    return buffer.getvalue()


def array(value: Any, **options: Any) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.asarray(value), **options)
    return buffer.getvalue()


def header(shape: str) -> bytes:
    """An array without numbers, of this shape."""
    text = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}}}".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (archive({"a.npy": array(A)}, b"note"), "behind its end"),
        (archive({"a.txt": b"text"}), "another kind"),
        (archive({"a.npy": array(A), "b.txt": b""}), "another kind"),
        (archive({"a.npy": array(A), "../b.npy": array(A)[:-1]}), "another size"),
        (archive({"a.npy": array([None], allow_pickle=True)}), "another type"),
        (archive({"a.npy": array(np.zeros(2, [("x", "<f4")]))}), "another type"),
        (archive({"a.npy": array(["text"])}), "another type"),
        (archive({"a.npy": array(A) + b"\0"}), "another size"),
        (archive({"a.npy": b"\x93NUMPY\x01\x00\xff\xff"}), "no array"),
        (archive({"a.npy": b"text"}), "no array"),
        (archive({"a.npy": b"\x93NUMPY\x01\x00"}), "cannot be followed"),
        (archive({"a.npy": header(f"(0, {10**23})")}), "cannot be followed"),
        (archive({"a/data.pkl": b"", "a/byteorder": b"big", "a/data/0": bytes(8)}), "large end first"),
        (archive({"a/data.pkl": b"", "b/data/0": bytes(8)}), "another kind"),
    ],
)
def test_archives_that_are_refused(data: bytes, reason: str) -> None:
    refused(data, reason)


def test_archives_with_two_tables() -> None:
    """The table at the end and the headers of the entries say the same, and the entries fill the file."""
    data = archive({"a.npy": array(A), "b.npy": array(B)})
    start = data.index(b"PK\x01\x02")
    assert model_of_bytes("w", data).tensors
    refused(data[:30] + b"c.npy" + data[35:], "two tables")
    refused(data.replace(b"b.npy", b"a.npy"), "one name twice")
    refused(data[: start - 1] + b"\0" + data[start - 1 :], "")
    hidden = data[:start] + b"\0" * 8 + data[start:-6] + struct.pack("<I", start + 8) + data[-2:]
    refused(hidden, "between its entries")
    refused(data[:60] + bytes([data[60] ^ 1]) + data[61:], "damaged")


def wide(fields: bytes) -> bytes:
    """An archive of one array, whose place (0) stands in the fields of 64 bits."""
    data = archive({"a.npy": array(np.ones(3))})
    at, end = data.index(b"PK\x01\x02"), data.index(b"PK\x05\x06")
    entry = bytearray(data[at:end])
    entry[30:32], entry[42:46] = struct.pack("<H", len(fields)), b"\xff" * 4
    closing = bytearray(data[end:])
    closing[12:16] = struct.pack("<I", len(entry) + len(fields))
    return data[:at] + entry + fields + closing


def field(kind: int, *values: int) -> bytes:
    return struct.pack(f"<HH{len(values)}Q", kind, 8 * len(values), *values)


def test_a_place_of_64_bits_is_stated_once() -> None:
    """numpy and torch take the first of two such fields: a certificate for one set of weights, 1e6 times steeper ones loaded."""
    (found,) = model_of_bytes("m.npz", wide(field(1, 0))).tensors.values()
    assert found.shape == (3,)
    assert len(model_of_bytes("m.npz", wide(field(9, 5) + field(1, 0))).tensors) == 1
    for extra in (
        field(1, 40) + field(1, 0),
        field(1, 0) * 2,
        field(1, 0) + b"\0\0",
        field(1, 0)[:-4],
        field(9, 0),
        b"",
    ):
        refused(wide(extra), "a damaged archive")


@pytest.mark.parametrize(
    ("start", "what"),
    [(b"\x80\x02\x8a\nl\xfc\x9cF", "pickles"), (b"MATLAB 5.0 MAT-file", "MATLAB"), (b"\x89HDF\r\n\x1a\n", "HDF5"),
     (b"\x93NUMPY\x01\x00", "single arrays"), (b"", "version None"), (b"\x08\x08", "without a graph"),
     (b"text", "wrong wire type")],
)  # fmt: skip
def test_files_of_other_kinds(start: bytes, what: str) -> None:
    assert what in model_of_bytes("m", start).reason
    if len(start) > 2:
        refused(start + bytes(40), "")


def test_nothing_but_the_file_is_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import builtins

    from lipverify.checkers import reader

    path = tmp_path / "w.safetensors"
    path.write_bytes(tensors())
    data = reader.read_bytes(path, 1 << 20)
    source = model([node("MatMul", ["x", "w"], ["y"])], [1, 3], 13, {"w": A}).SerializeToString()

    def refuse(*arguments: Any, **options: Any) -> Any:
        raise AssertionError("something is opened")

    monkeypatch.setattr(builtins, "open", refuse)
    monkeypatch.setattr("os.open", refuse)
    assert reader.model_of_bytes("w", data).tensors
    assert reader.model_of_bytes("m", source).program is not None


@pytest.mark.parametrize("kind", ["BF16", "U16", "F8_E4M3"])
def test_types_that_are_bytes_alone(kind: str) -> None:
    header = b'{"w":{"dtype":"%s","shape":[2],"data_offsets":[0,%d]}}' % (
        kind.encode(),
        2 if kind[0] == "F" else 4,
    )
    data = struct.pack("<Q", len(header)) + header + bytes(2 if kind[0] == "F" else 4)
    assert list(parse_safetensors(data)) == ["w"]
    with pytest.raises(UnreadableCertificate):
        parse_safetensors(data + b"\0")
