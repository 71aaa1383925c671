"""Files built by an attacker, or damaged: each is refused with the right exit code, in one sentence, in time.

Exit codes: 2 damaged or invalid, 5 unsupported, 6 unsafe. Every payload here would leave a file behind; none may.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import socket
import stat
import struct
import subprocess
import time
import tracemalloc
import warnings
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lipverify import loading
from lipverify.errors import LipverifyError

READERS = [loading.read_onnx, loading.read_state_dict, loading.read_safetensors, loading.read_points]
by_reader = pytest.mark.parametrize("read", READERS, ids=lambda read: read.__name__)

CHILD_SECONDS = 60.0  # starting torch in a fresh process on a busy machine


def refused(code: int, call: Callable[..., Any], *args: Any, seconds: float = 2.0) -> str:
    """The message of the refusal, after checking exit code, form and time."""
    start = time.perf_counter()
    with pytest.raises(LipverifyError) as caught:
        call(*args)
    assert time.perf_counter() - start < seconds
    message = str(caught.value)
    assert caught.value.exit_code == code, message
    assert len(message) <= 200, message
    assert all(" " <= character <= "~" for character in message), ascii(message)
    return message


def put(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


class Payload:
    """Pickles to a call that creates a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.system, (f"touch {self.marker}",))


@pytest.fixture
def marker(tmp_path: Path):
    path = tmp_path / "payload-was-run"
    yield path
    assert not path.exists(), "a payload was executed"


def test_the_payload_of_these_tests_works(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    pickle.loads(pickle.dumps(Payload(marker)))
    assert marker.exists()


# Rows 1 and 2: what is no file, or no complete one.


@by_reader
def test_no_file(read: Callable[..., Any], tmp_path: Path) -> None:
    assert "no such file" in refused(2, read, tmp_path / "absent.onnx")
    assert "folder" in refused(2, read, tmp_path)
    assert "empty" in refused(2, read, put(tmp_path / "empty", b""))
    refused(2, read, put(tmp_path / "seven", b"\x08\x07\x12\x01a\x3a\x05"))
    refused(2, read, "nul\0byte.onnx")
    refused(2, read, "x" * 5000)
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    refused(2, read, loop)


@by_reader
def test_unreadable(read: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def deny(*_: Any) -> int:
        raise PermissionError(13, "Permission denied")  # root, who runs many test machines, reads everything

    path = put(tmp_path / "secret", b"x")
    monkeypatch.setattr(os, "open", deny)
    assert "permission denied" in refused(2, read, path)


@by_reader
def test_not_a_regular_file(read: Callable[..., Any], tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with socket.socket(socket.AF_UNIX) as server:
        os.chdir(tmp_path)  # the name of a socket may only be short
        server.bind("socket")
        for path in (tmp_path / "fifo", tmp_path / "socket", "/dev/zero", "/dev/null", "/dev/stdin"):
            if not stat.S_ISREG(os.stat(path).st_mode):
                assert "not a regular file" in refused(2, read, path, seconds=1.0)


@pytest.fixture(autouse=True)
def same_folder_afterwards():
    folder = os.getcwd()
    yield
    os.chdir(folder)


# Row 3: pickles with foreign globals.


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
@by_reader
def test_bare_pickle(read: Callable[..., Any], protocol: int, tmp_path: Path, marker: Path) -> None:
    path = put(tmp_path / "model.pt", pickle.dumps(Payload(marker), protocol))
    message = refused(6, read, path)
    assert "system" in message
    assert "executes code on load" in message


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("nested", [True, False])
def test_checkpoint_with_payload(
    zipped: bool, nested: bool, tmp_path: Path, marker: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model.pt"
    payload = Payload(marker)
    content = {"state_dict": {"w": torch.ones(2)}, "epoch": payload} if nested else payload
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    started = []
    popen = subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", lambda *a, **k: started.append(a) or popen(*a, **k))
    message = refused(6, loading.read_state_dict, path, seconds=CHILD_SECONDS)
    assert "posix.system" in message
    assert len(started) == 1, "there is no second attempt"


def test_checkpoint_that_breaks_the_safe_mode(tmp_path: Path, marker: Path) -> None:
    # The safe unpickler stops at an opcode it does not know (EXT1) before the payload behind it.
    data = b"\x80\x02\x82\x01" + pickle.dumps(Payload(marker), 2)[2:]
    buffer = io.BytesIO()
    torch.save({"w": torch.ones(2)}, buffer)
    path = tmp_path / "model.pt"
    with zipfile.ZipFile(buffer) as old, zipfile.ZipFile(path, "w") as new:
        for info in old.infolist():
            new.writestr(info.filename, data if info.filename.endswith("data.pkl") else old.read(info))
    refused(6, loading.read_state_dict, path, seconds=CHILD_SECONDS)


# Rows 4 and 5: formats that are programs.


def test_whole_modules(tmp_path: Path) -> None:
    for zipped in (True, False):
        path = tmp_path / f"module-{zipped}.pt"
        torch.save(torch.nn.Sequential(torch.nn.Linear(2, 2)), path, _use_new_zipfile_serialization=zipped)
        message = refused(6, loading.read_state_dict, path, seconds=CHILD_SECONDS)
        assert "torch.nn.modules" in message


@by_reader
def test_programs(read: Callable[..., Any], programs: dict[str, Path]) -> None:
    for name, path in programs.items():
        message = refused(6, read, path)
        assert "executes code on load; export ONNX or a state dict" in message, name
        assert name in message


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("programs")
    module = torch.nn.Sequential(torch.nn.Linear(2, 2)).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.trace(module, torch.ones(2, 2)).save(folder / "script.pt")
        torch.export.save(torch.export.export(module, (torch.ones(2, 2),)), folder / "export.pt2")
        with torch.package.PackageExporter(folder / "package.pt") as exporter:
            exporter.save_source_string("evil", "raise SystemExit")
            exporter.save_pickle("model", "model.pkl", {"a": 1})
    return {
        "TorchScript": folder / "script.pt",
        "torch.export": folder / "export.pt2",
        "torch.package": folder / "package.pt",
    }


def test_architecture_without_trust(tmp_path: Path, marker: Path) -> None:
    code = put(tmp_path / "arch.py", f"open({str(marker)!r}, 'w')\n".encode())
    weights = put(tmp_path / "w.safetensors", loading.write_safetensors({"w": torch.ones(2)}))
    message = refused(6, loading.load_weights, weights, f"{code}:build", False)
    assert "--trust-code" in message


# Rows 6 and 7: archives.


def archive(entries: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as target:
        for name, data in entries.items():
            target.writestr(name, data)
    return buffer.getvalue()


def npy(array: Any) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.asarray(array), allow_pickle=True)
    return buffer.getvalue()


def checkpoint(compressed: bool) -> bytes:
    buffer = io.BytesIO()
    torch.save({"w": torch.zeros(1 << 18)}, buffer)
    with zipfile.ZipFile(buffer) as old:
        entries = {info.filename: old.read(info) for info in old.infolist()}
    return archive(entries, zipfile.ZIP_DEFLATED if compressed else zipfile.ZIP_STORED)


@pytest.fixture
def little_memory():
    tracemalloc.start()
    yield
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100 << 20


def test_compressed_checkpoint(tmp_path: Path, little_memory: None) -> None:
    message = refused(6, loading.read_state_dict, put(tmp_path / "m.pt", checkpoint(True)), seconds=1.0)
    assert "compressed" in message
    plain = loading.read_state_dict(put(tmp_path / "m.pt", checkpoint(False)))
    assert plain.tensors["w"].shape == (1 << 18,)


def test_bomb(tmp_path: Path, little_memory: None) -> None:
    zeros = npy(np.zeros(0))[:-1]  # only a place for the member's data: the sizes alone decide
    packed = zlib.compressobj(9, zlib.DEFLATED, -15)
    data = b"".join(packed.compress(bytes(1 << 20)) for _ in range(200)) + packed.flush()
    crc = zlib.crc32(zeros)
    head = struct.pack("<HHHHHIIIHH", 20, 0, 8, 0, 0x21, crc, len(data), 200 << 20, 5, 0)
    local = b"PK\x03\x04" + head + b"x.npy" + data
    central = b"PK\x01\x02" + struct.pack("<H", 20) + head + struct.pack("<HHHII", 0, 0, 0, 0, 0) + b"x.npy"
    end = b"PK\x05\x06" + struct.pack("<HHHHIIH", 0, 0, 1, 1, len(central), len(local), 0)
    message = refused(6, loading.read_points, put(tmp_path / "x.npz", local + central + end), seconds=1.0)
    assert "unpacks to more than 20 times" in message


def test_member_that_lies_about_its_size(tmp_path: Path, little_memory: None) -> None:
    data = archive({"x.npy": bytes(200 << 20)}, zipfile.ZIP_DEFLATED)
    lie = struct.pack("<I", 200 << 20)
    assert data.count(lie) == 2
    short = data.replace(lie, struct.pack("<I", 1 << 19))
    tracemalloc.reset_peak()
    refused(2, loading.read_points, put(tmp_path / "x.npz", short), seconds=1.0)


def test_a_million_members(tmp_path: Path) -> None:
    record = b"PK\x06\x06" + struct.pack("<QHHIIQQQQ", 44, 45, 45, 0, 0, 10**6, 10**6, 46, 30)
    locator = b"PK\x06\x07" + struct.pack("<IQI", 0, 76, 1)
    end = b"PK\x05\x06" + struct.pack("<HHHHIIH", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0)
    path = put(tmp_path / "x.npz", b"PK\x03\x04" + bytes(72) + record + locator + end)
    assert "1000000 members" in refused(6, loading.read_points, path, seconds=1.0)


def test_many_real_members(tmp_path: Path) -> None:
    path = put(tmp_path / "x.npz", archive({f"{i}.npy": b"" for i in range(20_000)}))
    assert "20000 members" in refused(6, loading.read_points, path, seconds=1.0)


@pytest.mark.parametrize("read", [loading.read_points, loading.read_state_dict], ids=lambda r: r.__name__)
@pytest.mark.parametrize(
    "name", ["../x.npy", "/x.npy", "a/../../x.npy", "C:/x.npy", "a\\..\\x.npy", "x\x01.npy", "./x.npy", "x/"]
)
def test_names_that_leave_the_folder(name: str, read: Callable[..., Any], tmp_path: Path) -> None:
    path = put(tmp_path / "x.npz", archive({name: npy(np.ones((2, 2)))}))
    assert "not a plain relative file name" in refused(6, read, path, seconds=1.0)


def test_symbolic_link_member(tmp_path: Path) -> None:
    info = zipfile.ZipInfo("x.npy")
    info.create_system, info.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as target:
        target.writestr(info, "/etc/passwd")
    assert "symbolic link" in refused(6, loading.read_points, tmp_path / "x.npz", seconds=1.0)


def test_duplicate_and_overlapping_members(tmp_path: Path) -> None:
    member = npy(np.ones((2, 2)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with zipfile.ZipFile(tmp_path / "twice.npz", "w") as target:
            target.writestr("x.npy", member)
            target.writestr("x.npy", member)
    assert "twice" in refused(6, loading.read_points, tmp_path / "twice.npz", seconds=1.0)
    data = archive({"x.npy": member, "y.npy": member})
    second = data.rindex(b"PK\x01\x02")
    overlapping = data[: second + 42] + struct.pack("<I", 0) + data[second + 46 :]
    refused(6, loading.read_points, put(tmp_path / "overlap.npz", overlapping), seconds=1.0)


def test_member_inside_another(tmp_path: Path) -> None:
    # The data of `a` are a whole member `x`, and the directory lists both: how small bombs unpack to petabytes.
    inner = archive({"x.npy": npy(np.ones((2, 2)))})
    local, listing = inner[: inner.index(b"PK\x01\x02")], inner[inner.index(b"PK\x01\x02") : -22]
    outer = archive({"a.npy": local})
    start = outer.index(b"PK\x01\x02")
    inside = outer.index(b"PK\x03\x04", 4)
    listing = outer[start:-22] + listing[:42] + struct.pack("<I", inside) + listing[46:]
    end = b"PK\x05\x06" + struct.pack("<HHHHIIH", 0, 0, 2, 2, len(listing), start, 0)
    path = put(tmp_path / "x.npz", outer[:start] + listing + end)
    assert np.load(path)["x"].shape == (2, 2), "a lenient reader accepts the file"
    assert "overlap" in refused(6, loading.read_points, path, seconds=1.0)


def test_bytes_hidden_between_members(tmp_path: Path) -> None:
    data = archive({"x.npy": npy(np.ones((2, 2)))})
    start = data.index(b"PK\x01\x02")
    end = data[-22:-6] + struct.pack("<IH", start + 9, 0)
    path = put(tmp_path / "x.npz", data[:start] + b"#!/bin/sh" + data[start:-22] + end)
    assert np.load(path)["x"].shape == (2, 2), "a lenient reader accepts the file"
    assert "hidden bytes" in refused(6, loading.read_points, path, seconds=1.0)
    two = archive({"x.npy": npy(np.ones((2, 2))), "y.npy": npy(np.arange(2))})
    second, start = two.index(b"PK\x03\x04", 4), two.index(b"PK\x01\x02")
    last = two.rindex(b"PK\x01\x02")
    listing = two[start : last + 42] + struct.pack("<I", second + 4) + two[last + 46 : -22]
    end = two[-22:-6] + struct.pack("<IH", start + 4, 0)
    path = put(tmp_path / "x.npz", two[:second] + b"evil" + two[second:start] + listing + end)
    assert np.load(path)["y"].shape == (2,), "a lenient reader accepts the file"
    assert "hidden bytes between" in refused(6, loading.read_points, path, seconds=1.0)


def test_small_bomb(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "x.npz", x=np.zeros(1 << 20))
    message = refused(6, loading.read_points, tmp_path / "x.npz", seconds=1.0)
    assert '"x.npy" unpacks to more than 20 times' in message


def test_directory_that_contradicts_its_members(tmp_path: Path) -> None:
    data = archive({"x.npy": npy(np.ones((2, 2)))})
    renamed = data.replace(b"x.npy", b"z.npy", 1)
    # The sizes and the CRC of the header before the data lie at bytes 14 to 26.
    other_crc, other_size = bytearray(data), bytearray(data)
    other_crc[14] ^= 1
    other_size[22] ^= 1
    for changed in (renamed, other_crc, other_size):
        message = refused(6, loading.read_points, put(tmp_path / "x.npz", bytes(changed)), seconds=1.0)
        assert "contradicts" in message


def test_damaged_archive(tmp_path: Path) -> None:
    data = archive({"x.npy": npy(np.ones((20, 20)))})
    for length in (4, 30, 100, len(data) // 2, len(data) - 30, len(data) - 1):
        refused(2, loading.read_points, put(tmp_path / "cut.npz", data[:length]), seconds=1.0)
    wrong = bytearray(data)
    wrong[1000] ^= 1
    assert "CRC" in refused(2, loading.read_points, put(tmp_path / "crc.npz", bytes(wrong)), seconds=1.0)


def test_damaged_checkpoint(tmp_path: Path) -> None:
    data = bytearray(checkpoint(False))
    refused(2, loading.read_state_dict, put(tmp_path / "cut.pt", data[: len(data) // 2]))
    data[len(data) // 2] ^= 1
    assert "CRC" in refused(2, loading.read_state_dict, put(tmp_path / "crc.pt", data))
    buffer = io.BytesIO()
    torch.save({"w": torch.ones(100)}, buffer, _use_new_zipfile_serialization=False)
    cut = put(tmp_path / "legacy.pt", buffer.getvalue()[:-40])
    refused(2, loading.read_state_dict, cut, seconds=CHILD_SECONDS)


@by_reader
def test_polyglots(read: Callable[..., Any], tmp_path: Path, marker: Path) -> None:
    valid = archive({"x.npy": npy(np.ones((2, 2)))})
    evil = pickle.dumps(Payload(marker))
    model = small_model().SerializeToString()
    weights = loading.write_safetensors({"w": torch.ones(2)})
    for name, data in {
        "behind": valid + b"#!/bin/sh",
        "comment": valid[:-2] + struct.pack("<H", 4) + b"evil",
        "pickle first": evil + valid,
        "onnx first": model + valid,
        "weights first": weights + valid,
        "script first": b"#!/bin/sh\n" + valid,
    }.items():
        refused(6, read, put(tmp_path / name, data), seconds=1.0)


def test_tensor_larger_than_its_file(tmp_path: Path) -> None:
    path = tmp_path / "m.pt"
    torch.save({"w": torch.ones(1).expand(1 << 40)}, path)
    refused(6, loading.read_state_dict, path, seconds=CHILD_SECONDS)


# Rows 8 and 9: safetensors.


def safetensors(header: str | bytes, body: bytes = b"", length: int | None = None) -> bytes:
    text = header.encode() if isinstance(header, str) else header
    return struct.pack("<Q", len(text) if length is None else length) + text + body


def entry(shape: str = "[1]", start: Any = 0, stop: Any = 4, dtype: str = '"F32"') -> str:
    return f'{{"dtype": {dtype}, "shape": {shape}, "data_offsets": [{start}, {stop}]}}'


FOUR = bytes(4)
BAD_SAFETENSORS = {
    "header 2^63": safetensors("{}", length=1 << 63),
    "header 10^9": safetensors("{}", length=10**9),
    "header past the end": safetensors("{}", length=3),
    "negative size": safetensors(f'{{"w": {entry("[-1]")}}}', FOUR),
    "two negative sizes": safetensors(f'{{"w": {entry("[-1, -1]")}}}', FOUR),
    "bool size": safetensors(f'{{"w": {entry("[true]")}}}', FOUR),
    "float size": safetensors(f'{{"w": {entry("[1.0]")}}}', FOUR),
    "overflowing shape": safetensors(f'{{"w": {entry("[4294967296, 4294967296]")}}}', FOUR),
    "too many axes": safetensors(f'{{"w": {entry("[" + ",".join("1" * 17) + "]")}}}', FOUR),
    "overlap": safetensors(f'{{"a": {entry()}, "b": {entry()}}}', FOUR),
    "gap": safetensors(f'{{"a": {entry()}, "b": {entry("[1]", 8, 12)}}}', bytes(12)),
    "trailing bytes": safetensors(f'{{"a": {entry()}}}', bytes(5)),
    "too short": safetensors(f'{{"a": {entry()}}}', bytes(3)),
    "offsets backwards": safetensors(f'{{"a": {entry("[1]", 4, 0)}}}', FOUR),
    "bool offsets": safetensors(f'{{"a": {entry("[]", "false", "true", chr(34) + "U8" + chr(34))}}}', b"1"),
    "no dtype": safetensors('{"a": {"shape": [1], "data_offsets": [0, 4]}}', FOUR),
    "unknown field": safetensors(
        '{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4], "x": 1}}', FOUR
    ),
    "dtype number": safetensors(f'{{"a": {entry(dtype="7")}}}', FOUR),
    "list": safetensors("[]"),
    "list in object": safetensors('{"a": []}'),
    "metadata not text": safetensors('{"__metadata__": {"a": 1}}'),
    "duplicate key": safetensors(f'{{"a": {entry()}, "a": {entry()}}}', FOUR),
    "duplicate field": safetensors(
        '{"a": {"dtype": "F32", "dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}', FOUR
    ),
    "5000 digits": safetensors(f'{{"w": {entry("[" + "9" * 5000 + "]")}}}', FOUR),
    "NaN constant": safetensors(f'{{"w": {entry("[NaN]")}}}', FOUR),
    "invalid UTF-8": safetensors(b'{"\xff\xfe": 1}'),
    "bool tensor of 2": safetensors(
        f'{{"w": {entry("[4]", dtype=chr(34) + "BOOL" + chr(34))}}}', b"\2\0\1\1"
    ),
}


@pytest.mark.parametrize("name", BAD_SAFETENSORS)
def test_bad_safetensors(name: str, tmp_path: Path) -> None:
    data = BAD_SAFETENSORS[name]
    for read in (loading.read_safetensors, loading.read_state_dict):
        refused(2, read, put(tmp_path / "w.safetensors", data))
    best = min(timed(loading.parse_safetensors, data, "w.safetensors") for _ in range(5))
    assert best < 0.002


def timed(call: Callable[..., Any], *args: Any) -> float:
    start = time.perf_counter()
    with pytest.raises(LipverifyError):
        call(*args)
    return time.perf_counter() - start


def test_deep_json(tmp_path: Path) -> None:
    for header in ("[" * 900_000, '{"a":' * 300_000, '{"w": ' + "[" * 900_000):
        refused(2, loading.read_safetensors, put(tmp_path / "w.safetensors", safetensors(header)))


def test_unsupported_element_type(tmp_path: Path) -> None:
    data = safetensors(f'{{"w": {entry("[4]", dtype=chr(34) + "F8_E4M3" + chr(34))}}}', FOUR)
    assert "F8_E4M3" in refused(5, loading.read_safetensors, put(tmp_path / "w.safetensors", data))


# Row 10: numbers that are none.


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_not_finite(value: float, tmp_path: Path) -> None:
    for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16):
        weight = torch.ones(2, 3, dtype=dtype)
        weight[1, 2] = value
        data = loading.write_safetensors({"ok": torch.ones(2), "fc.weight": weight})
        for read in (loading.read_safetensors, loading.read_state_dict):
            message = refused(2, read, put(tmp_path / "w.safetensors", data))
            assert '"fc.weight", index [1, 2]' in message
    torch.save({"fc.weight": weight}, tmp_path / "w.pt")
    message = refused(2, loading.read_state_dict, tmp_path / "w.pt", seconds=CHILD_SECONDS)
    assert '"fc.weight", index [1, 2]' in message


@pytest.mark.parametrize("kind", ["sparse", "complex", "meta", "quantised", "float8"])
def test_tensors_of_other_kinds(kind: str, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tensor = {
            "sparse": lambda: torch.eye(3).to_sparse(),
            "complex": lambda: torch.ones(3, dtype=torch.complex64),
            "meta": lambda: torch.ones(3, device="meta"),
            "quantised": lambda: torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8),
            "float8": lambda: torch.ones(3).to(torch.float8_e4m3fn),
        }[kind]()
        torch.save({"layer.w": tensor}, tmp_path / "w.pt")
    message = refused(5, loading.read_state_dict, tmp_path / "w.pt", seconds=CHILD_SECONDS)
    assert "layer.w" in message


# Row 17 stands in tests/unit/loading/test_architecture_loading.py.
# Row 21: names.


def test_names_in_messages(tmp_path: Path) -> None:
    for name in (
        "\x1b[31mred",
        "\x1b]0;title\x07",
        "a\rb",
        "\u202egnp.exe",
        "nul\0",
        "x" * (1 << 20),
        "\n\n",
    ):
        header = json.dumps({name: {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}})
        data = safetensors(header, struct.pack("<f", float("nan")))
        message = refused(2, loading.read_safetensors, put(tmp_path / "w.safetensors", data))
        if len(name) > 80:
            assert "x...#" in message
        else:
            assert loading.display(name) in message


def test_name_of_the_file(tmp_path: Path) -> None:
    refused(2, loading.read_onnx, put(tmp_path / "\x1b[31m\u202e\n.onnx", b"\x08"))
    refused(2, loading.read_onnx, put(tmp_path / ("y" * 250), b"\x08"))


# Row 28: data.


@pytest.mark.parametrize(
    ("arrays", "text"),
    [
        ({"x": np.array([{"a": 1}], dtype=object)}, "Python objects"),
        ({"x": np.ones((2, 2)), "y": np.array(["a", "b"], dtype=object)}, "Python objects"),
        ({"x": np.array(["a"])}, "dtype <U1"),
        ({"x": np.ones(2, dtype=[("a", "f4")])}, "records"),
        ({"x": np.ones((2, 2), complex)}, "dtype <c16"),
        ({"x": np.array([[1.0, 2.0], [3.0, np.nan]])}, "index [1, 1]"),
        ({"x": np.array([[1.0, np.inf]])}, "index [0, 1]"),
        ({"x": np.ones((2, 2), np.uint8)}, "not floating point"),
        ({"x": np.ones((0, 5))}, "no points"),
        ({"x": np.float64(3)}, "no points"),
        ({"images": np.ones((2, 2)), "labels": np.ones(2, int)}, "no array x (it holds images, labels)"),
        ({"x": np.ones((2, 2)), "y": np.ones(2)}, "not integers"),
        ({"x": np.ones((2, 2)), "y": np.ones(3, int)}, "x has 2 samples"),
        ({"x": np.ones((2, 2)), "y": np.ones((2, 1), int)}, "y needs shape [2]"),
        ({"x": np.ones((2, 2)), "y": np.array([0, -1])}, "negative"),
        ({"x": np.ones((2, 2)), "y": np.array([0, 2**63], np.uint64)}, "large"),
    ],
)
def test_data(arrays: dict[str, Any], text: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", **arrays, allow_pickle=True)
    assert text in refused(2, loading.read_points, tmp_path / "d.npz")


def test_data_with_a_payload(tmp_path: Path, marker: Path) -> None:
    np.save(tmp_path / "d.npy", np.array([Payload(marker)], dtype=object), allow_pickle=True)
    refused(2, loading.read_points, tmp_path / "d.npy")


@pytest.mark.parametrize(
    "header",
    [
        "{'descr': '<f8', 'fortran_order': False, 'shape': (1125899906842624,), }",
        "{'descr': '<f8', 'fortran_order': False, 'shape': (-1,), }",
        "{'descr': '<f8', 'fortran_order': False, 'shape': (4294967296, 4294967296), }",
        "{'descr': '<f8', 'fortran_order': False, 'shape': (" + "(" * 5000 + "), }",
        "__import__('os').system('true')",
        "",
    ],
)
def test_npy_header(header: str, tmp_path: Path) -> None:
    text = header.encode()
    data = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + bytes(8)
    refused(2, loading.read_points, put(tmp_path / "d.npy", data), seconds=0.5)


def test_data_that_does_not_fit_the_model(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", x=np.ones((2, 3)), y=np.array([0, 4]))
    points = loading.read_points(tmp_path / "d.npz")
    points.require((3,), 5)
    assert "[3]" in refused(2, points.require, (1, 3), 5)
    assert "label 4 at index 1" in refused(2, points.require, (3,), 4)


# Row 29: radii.


@pytest.mark.parametrize(
    "text",
    ["-1", "nan", "inf", "1e-9999", "1e9999", "0,03", "0", "", "8/0", "0x10", "1_0", "8/-255", "-0.1", "٣"],
)
def test_radius(text: str) -> None:
    refused(2, loading.parse_radius, text, seconds=0.1)
    refused(2, loading.parse_radius, "1" * 10**6, seconds=0.1)


# Mutations: whatever happens to a valid file, the answer is an answer or one of our refusals.


def small_model() -> Any:
    from onnx import TensorProto, helper, numpy_helper

    weight = numpy_helper.from_array(np.ones((2, 2), np.float32), "w")
    node = helper.make_node("MatMul", ["x", "w"], ["y"], name="fc")
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 2]) for name in "xy")
    return helper.make_model(helper.make_graph([node], "g", [x], [y], [weight]))


@pytest.mark.parametrize("kind", ["onnx", "safetensors", "npz"])
def test_mutations(kind: str, tmp_path: Path) -> None:
    valid, read = {
        "onnx": (small_model().SerializeToString(), loading.read_onnx),
        "safetensors": (
            loading.write_safetensors({"a": torch.ones(3), "b": torch.ones(2, 2)}),
            loading.read_safetensors,
        ),
        "npz": (archive({"x.npy": npy(np.ones((2, 2))), "y.npy": npy(np.arange(2))}), loading.read_points),
    }[kind]
    rng = np.random.default_rng(20)
    path = tmp_path / "mutant"
    start, accepted, codes, longest = time.perf_counter(), 0, set(), 0
    for _ in range(1500):
        data = bytearray(valid)
        for _ in range(int(rng.integers(1, 4))):
            place = int(rng.integers(len(data)))
            choice = rng.integers(4)
            if choice == 0:
                data[place] = int(rng.integers(256))
            elif choice == 1:
                data[place] ^= 1 << int(rng.integers(8))
            elif choice == 2:
                del data[place : place + int(rng.integers(1, 9))]
            else:
                data[place:place] = rng.bytes(int(rng.integers(1, 9)))
            if not data:
                data = bytearray(b"\0")
        path.write_bytes(data)
        try:
            read(path)
            accepted += 1
        except LipverifyError as problem:
            codes.add(problem.exit_code)
            longest = max(longest, len(str(problem)))
    assert codes <= {2, 5, 6}
    assert 0 < longest <= 200
    assert time.perf_counter() - start < 30
    assert accepted < 1500
