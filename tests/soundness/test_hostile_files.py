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
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lipverify import loading
from lipverify.errors import LipverifyError
from lipverify.loading import state_dict
from tests.clocks import processor_seconds

from .hostile import CHILD_SECONDS, Payload, archive, by_reader, npy, put, refused, small_model


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
    popen = state_dict.subprocess.Popen
    monkeypatch.setattr(state_dict.subprocess, "Popen", lambda *a, **k: started.append(a) or popen(*a, **k))
    message = refused(6, loading.read_state_dict, path, seconds=CHILD_SECONDS)
    assert "posix.system" in message
    assert len(started) == 1, "there is no second attempt"


def test_checkpoint_that_breaks_the_safe_mode(tmp_path: Path, marker: Path, system_child: None) -> None:
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


# Row 17 stands in tests/unit/loading/test_loading_weights.py.
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
        header = json.dumps({name: {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
        data = struct.pack("<Q", len(header)) + header + struct.pack("<f", float("nan"))
        message = refused(2, loading.read_safetensors, put(tmp_path / "w.safetensors", data))
        if len(name) > 80:
            assert "x...#" in message
        else:
            assert loading.display(name) in message


def test_name_of_the_file(tmp_path: Path) -> None:
    refused(2, loading.read_onnx, put(tmp_path / "\x1b[31m\u202e\n.onnx", b"\x08"))
    refused(2, loading.read_onnx, put(tmp_path / ("y" * 250), b"\x08"))


# Row 29: radii.


@pytest.mark.parametrize(
    "text",
    ["-1", "nan", "inf", "1e-9999", "1e9999", "0,03", "0", "", "8/0", "0x10", "1_0", "8/-255", "-0.1", "٣"],
)
def test_radius(text: str) -> None:
    refused(2, loading.parse_radius, text, seconds=0.1)
    refused(2, loading.parse_radius, "1" * 10**6, seconds=0.1)


# Mutations: whatever happens to a valid file, the answer is an answer or one of our refusals.


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
    begun, accepted, codes, longest = processor_seconds(), 0, set(), 0
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
    assert processor_seconds() - begun < 30
    assert accepted < 1500
