"""Files that ask for much memory or time: each is refused at once, within a fixed room, whatever sizes it names."""

from __future__ import annotations

import io
import json
import resource
import struct
import subprocess
import sys
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto

from lipverify.checkers.reader import MAX_CERTIFICATE, architecture, parse_json, parse_safetensors, read_model
from lipverify.errors import LipverifyError, NotCovered, UnreadableCertificate
from tests.clocks import within
from tests.onnx_models import ints, model, node, random

HUGE = 2**40


def chain(op: str, count: int, **attributes: Any) -> list[Any]:
    """x = a0, a1 = op(a0, a0), ..., a[count] = y."""
    return [node(op, [f"a{k}"] * 2, [f"a{k + 1}"], **attributes) for k in range(count)]


def doubled(op: str, count: int, **attributes: Any) -> Any:
    nodes = [
        node("Identity", ["x"], ["a0"]),
        *chain(op, count, **attributes),
        node("Identity", [f"a{count}"], ["y"]),
    ]
    return model(nodes, [1, 6], 13)


def one(op: str, shape: Any = (1, 1, 4, 4), opset: int = 13, constants: Any = None, **attributes: Any) -> Any:
    inputs = ["x", *(constants or {})]
    return model([node(op, inputs, ["y"], **attributes)], shape, opset, constants)


def declared(dims: list[int]) -> Any:
    source = model([node("MatMul", ["x", "w"], ["y"])], [1, 6], 13, {"w": random(6, 2)})
    del source.graph.initializer[0].dims[:]
    source.graph.initializer[0].dims.extend(dims)
    return source


def many_sources() -> Any:
    """A result of 3,000 steps, of which 3,000 others read one number each."""
    nodes = [node("Relu" if k % 2 else "Tanh", ["x"], [f"s{k}"]) for k in range(3000)]
    nodes.append(node("Concat", [f"s{k}" for k in range(3000)], ["c"], axis=1))
    nodes += [node("Gather", ["c", "i"], [f"g{k}"], axis=1) for k in range(3000)]
    nodes.append(node("Sum", [f"g{k}" for k in range(3000)], ["y"]))
    return model(nodes, [1, 1], 13, {"i": ints(0, -1)})


SCALES = {"r": np.zeros(0, np.float32), "s": np.full(4, 1e6, np.float32)}
COLUMN = {"s": ints(-1, 1)}


def column(op: str) -> Any:
    """All pairs of 2^15 numbers."""
    return model([node("Reshape", ["x", "s"], ["c"]), node(op, ["c", "x"], ["y"])], [1, 2**15], 13, COLUMN)


def filled(first: Any, second: str, stored: Any, **attributes: Any) -> Any:
    return model([first, node(second, ["x", "c"], ["y"], **attributes)], [1, 6], 13, stored)


def multiplied() -> Any:
    nodes = [node("Expand", ["x", "s"], ["a"]), node("Conv", ["a", "w"], ["y"])]
    return model(nodes, [1] * 4, 13, {"s": ints(1, 64, 512, 512), "w": np.ones((512, 64, 3, 3), np.float32)})


FILL, RANGE = node("ConstantOfShape", ["s"], ["c"]), node("Range", ["a", "b", "d"], ["c"])
MODELS: dict[str, Callable[[], Any]] = {
    "a padding of 40,000": lambda: one(
        "Pad", [1] * 4, constants={"p": ints(0, 0, 40000, 40000, 0, 0, 40000, 40000)}
    ),
    "a convolution padded by 40,000": lambda: one(
        "Conv", [1] * 4, constants={"w": random(1, 1, 1, 1)}, pads=[40000] * 4
    ),
    "a convolution padded by 2^62": lambda: one(
        "Conv", constants={"w": random(1, 1, 1, 1)}, pads=[2**62] * 4
    ),
    "a huge dilation": lambda: one(
        "Conv", constants={"w": random(1, 1, 2, 2)}, dilations=[HUGE, 1], pads=[HUGE, 0, 0, 0]
    ),
    "an adjoint with huge strides": lambda: one(
        "ConvTranspose", constants={"w": random(1, 1, 2, 2)}, strides=[2**20] * 2
    ),
    "a pool padded by 2^30": lambda: one("MaxPool", kernel_shape=[2, 2], pads=[2**30] * 4),
    "a pool of large windows": lambda: one("AveragePool", [1, 1, 600, 600], kernel_shape=[300, 300]),
    "an expansion": lambda: one("Expand", [1, 6], constants={"s": ints(HUGE, 1, 6)}),
    "a repetition": lambda: one("Tile", [1, 6], constants={"r": ints(HUGE, HUGE)}),
    "a resizing": lambda: one("Resize", [1] * 4, constants=SCALES),
    "a long resizing": lambda: one(
        "Resize", [1, 1], constants=SCALES | {"s": np.array([1, 2**23], np.float32)}
    ),
    "a gathering": lambda: one("Gather", [1, 4096], constants={"i": np.zeros(2**18, np.int64)}, axis=0),
    "a filling": lambda: filled(FILL, "Add", {"s": ints(HUGE)}),
    "a range": lambda: filled(
        RANGE, "Gather", {"a": np.int64(0), "b": np.int64(2**62), "d": np.int64(1)}, axis=1
    ),
    "an outer product": lambda: column("MatMul"),
    "maxima of all pairs": lambda: column("Max"),
    "a large input": lambda: one("Relu", [1, HUGE]),
    "an input without numbers": lambda: one("Relu", [1, 0]),
    "a stored tensor of 2^62 numbers": lambda: declared([2**62, 4]),
    "a stored tensor without numbers": lambda: declared([0, 2**62]),
    "a stored tensor of many axes": lambda: declared([1] * 2000),
    "joined with itself forty times": lambda: doubled("Concat", 40, axis=1),
    "many that read many": many_sources,
    "many multiplications": multiplied,
}


def nested(depth: int) -> bytes:
    """A node in a graph in a node, and so on."""
    data = b"\x22\x08Identity"
    for _ in range(depth):
        inner = data[:0] + b"\x32" + _size(len(data)) + data
        data = b"\x0a" + _size(len(inner)) + inner
    return b"\x08\x08\x3a" + _size(len(data)) + data


def _size(n: int) -> bytes:
    found = b""
    while n > 127:
        found, n = found + bytes([n & 127 | 128]), n >> 7
    return found + bytes([n])


def repeated(field: int, count: int) -> bytes:
    """A graph of so many empty messages: 2 bytes each."""
    body = bytes([field << 3 | 2, 0]) * count
    return b"\x08\x08\x3a" + _size(len(body)) + body


BYTES: dict[str, Callable[[], bytes]] = {
    "deep messages": lambda: nested(5000),
    "many empty nodes": lambda: repeated(1, 500_000),
    "many empty tensors": lambda: repeated(5, 500_000),
    "a field of 2^63 bytes": lambda: b"\x08\x08\x3a\xff\xff\xff\xff\xff\xff\xff\xff\x7f",
    "a long number": lambda: b"\x08" + b"\xff" * 1000,
    "a header of 2^63 bytes": lambda: struct.pack("<Q", 2**63 - 1) + b"{" + bytes(100),
    "an archive that unpacks to much": lambda: zipped({f"{k}.npy": bytes(2**27) for k in range(3)}),
}


def zipped(entries: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as target:
        for name, data in entries.items():
            target.writestr(name, data)
    return buffer.getvalue()


CHILD = """
import resource, sys, time
from pathlib import Path
resource.setrlimit(resource.RLIMIT_AS, (3 << 30, 3 << 30))
from lipverify.checkers.reader import read_model
for path in sorted(Path(sys.argv[1]).iterdir()):
    started = time.process_time()
    found = read_model(path)
    seconds, used = time.process_time() - started, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    print(found.program is not None or bool(found.tensors), round(seconds, 2), used, found.reason, sep="|")
"""


def test_files_that_ask_for_much(tmp_path: Path) -> None:
    """All in one process that holds little: a file that got what it asks for would end it."""
    for k, (_, make) in enumerate({**MODELS, **BYTES}.items()):
        made = make()
        (tmp_path / f"{k:03}.onnx").write_bytes(made if isinstance(made, bytes) else made.SerializeToString())
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(tmp_path)], capture_output=True, text=True, timeout=280, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    rows = [line.split("|") for line in done.stdout.splitlines()]
    assert len(rows) == len(MODELS) + len(BYTES)
    for (what, _), (accepted, seconds, used, reason) in zip({**MODELS, **BYTES}.items(), rows, strict=True):
        assert accepted == "False", what
        assert reason, what
        assert float(seconds) < 20, (what, seconds)
        assert int(used) < 1500, (what, used)


def test_what_is_large_but_fits() -> None:
    """Forty doublings by addition are forty steps; ten thousand layers are read."""
    from lipverify.checkers.reader import model_of_bytes

    found = model_of_bytes("m.onnx", doubled("Add", 40).SerializeToString())
    assert found.program is not None
    assert len(found.program.steps) == 41
    nodes = [node("Relu", [f"a{k}"], [f"a{k + 1}"]) for k in range(10_000)]
    nodes = [node("Identity", ["x"], ["a0"]), *nodes, node("Identity", ["a10000"], ["y"])]
    with within(20):
        found = model_of_bytes("m.onnx", model(nodes, [1, 6], 13).SerializeToString())
    assert found.program is not None
    assert len(found.program.steps) == 10_001


def test_what_is_on_the_way_to_a_small_result_is_small() -> None:
    """Resize of [1, n] to [m, 1] made [m, n] numbers; each Slice copied all of what it cuts from."""
    from lipverify.checkers.reader import model_of_bytes

    n = 1 << 14
    narrow = model([node("Resize", ["x", "", "", "s"], ["y"], coordinate_transformation_mode="asymmetric", nearest_mode="floor")],
                   [1, 1, 1, n], 13, {"s": ints(1, 1, n, 1)})  # fmt: skip
    cuts = [node("Slice", ["c", "s", "e", "a"], [f"c{k}"]) for k in range(40)]
    whole = node("Concat", ["x", *(f"c{k}" for k in range(40))], ["y"], axis=0)
    small = model([node("ConstantOfShape", ["h"], ["c"]), *cuts, whole],
                  [1, 2], 13, {"h": ints(1 << 19, 2), "s": ints(0, 0), "e": ints(1 << 30, 1), "a": ints(1, 0)})  # fmt: skip
    for source, most in ((narrow, 64 << 20), (small, 24 << 20)):
        tracemalloc.start()
        found = model_of_bytes("m.onnx", source.SerializeToString())
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert found.program is not None, found.reason
        assert peak < most


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"a":' * 50_000, "[" * 900 + "1" * 5000, "1" * 5000, "1e999", "-Infinity", "NaN"]
)
def test_json(text: str) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UnreadableCertificate):
        parse_json(text.encode())
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000


def test_certificates_are_small() -> None:
    assert MAX_CERTIFICATE <= 16 << 20


@pytest.mark.parametrize(
    "header",
    [
        {"w": {"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [0, 16]}},
        {"w": {"dtype": "F32", "shape": [0, 2**62], "data_offsets": [0, 16]}},
        {"w": {"dtype": "F32", "shape": [4], "data_offsets": [0, 2**50]}},
        {"w": {"dtype": "F32", "shape": [4], "data_offsets": [0, True]}},
        {"w": {"dtype": "F32", "shape": [True, 4], "data_offsets": [0, 16]}},
        {"w": {"dtype": "F32", "shape": [1] * 1000, "data_offsets": [0, 4]}},
        {name: {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]} for name in "wv"},
        {"w": {"dtype": "F32", "shape": [2], "data_offsets": [8, 16]}, "v": 3},
        {"w": {"dtype": ["F32"], "shape": [4], "data_offsets": [0, 16]}},
    ],
)  # fmt: skip
def test_safetensors(header: Any) -> None:
    text = json.dumps(header).encode()
    with pytest.raises(UnreadableCertificate):
        parse_safetensors(struct.pack("<Q", len(text)) + text + bytes(16))


def test_architectures_have_the_same_account() -> None:
    def document(*nodes: Any) -> Any:
        rows = [
            {"op": op, "inputs": inputs, "output": output, "given": given}
            for op, inputs, output, given in nodes
        ]
        return {"input": "x", "shape": [1, 6], "nodes": rows, "outputs": ["y"]}

    for nodes in (
        [("Repeat", ["x"], "y", {"factors": [1, HUGE]})],
        [("Expand", ["x"], "y", {"shape": [HUGE, 6]})],
        [("Pad", ["x"], "y", {"pads": [0, HUGE, 0, 0]})],
        [("Identity", ["x"], "a0", {}), *(("Concat", [f"a{k}"] * 2, f"a{k + 1}", {"axis": 1}) for k in range(40)),
         ("Identity", ["a40"], "y", {})],
    ):  # fmt: skip
        with pytest.raises(NotCovered):
            architecture(document(*nodes), {})
    with pytest.raises(LipverifyError):
        architecture(document() | {"shape": [1, HUGE]}, {})


def test_a_file_that_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(UnreadableCertificate, match="not a regular file"):
        read_model(tmp_path)
    with pytest.raises(UnreadableCertificate, match="not a regular file"):
        read_model(Path("/dev/zero"))
    sparse = tmp_path / "large.onnx"
    with open(sparse, "wb") as file:
        file.truncate(5 << 30)
    with pytest.raises(UnreadableCertificate, match="larger than"):
        read_model(sparse)


def test_element_types_without_numbers() -> None:
    from lipverify.checkers.reader import model_of_bytes

    source = one("Relu", [1, 6])
    source.graph.input[0].type.tensor_type.elem_type = TensorProto.STRING
    assert "element type 8" in model_of_bytes("m.onnx", source.SerializeToString()).reason
