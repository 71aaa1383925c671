"""Archives and arrays built by an attacker, or damaged (rows 6, 7 and 28 of the threat table)."""

from __future__ import annotations

import io
import pickle
import stat
import struct
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
from lipverify.checkers import model_of_bytes

from .hostile import CHILD_SECONDS, Payload, archive, by_reader, npy, put, refused, small_model


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


def test_many_small_bombs(tmp_path: Path, little_memory: None) -> None:
    # Each member alone is small enough to be harmless.
    path = put(
        tmp_path / "x.npz", archive({f"{i}.npy": bytes(1 << 20) for i in range(40)}, zipfile.ZIP_DEFLATED)
    )
    assert "zip archive unpacks to more than" in refused(6, loading.read_npz, path, seconds=1.0)


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
        ({"x": np.ones((2, 2)), "y": np.array([0.0, np.nan])}, "which is no label"),
        ({"x": np.ones((0, 5))}, "no points"),
        ({"x": np.float64(3)}, "no points"),
        ({"a": np.ones((2, 2)), "b": np.ones(2, int)}, "no array x (it holds a, b)"),
        ({"x": np.ones((2, 2)), "y": np.full(2, 0.5)}, "not integers"),
        ({"x": np.ones((2, 2)), "y": np.ones(3, int)}, "x has 2 samples"),
        ({"x": np.ones((2, 2)), "y": np.ones((2, 2), int)}, "a single 1"),
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


@pytest.mark.parametrize(
    "name", ["DATA.PKL", "data/0x", "Data/0", "BYTEORDER", "constants.pkl", "code/a.py", "../n/data.pkl"]
)
def test_an_archive_holds_what_torch_writes_alone(name: str, tmp_path: Path) -> None:
    """torch.load takes DATA.PKL for data.pkl, and an archive with constants for a program: the checker proved other weights."""
    weights = torch.stack([torch.eye(2), 100.0 * torch.eye(2)])
    one, other = (entries({"w": weights[k]}) for k in (0, 1))
    plain = {f"m/{inner}": body for inner, body in one.items()}
    assert [t.shape for t in model_of_bytes("m.pt", archive(plain)).tensors.values()] == [(2, 2)]
    data = archive({**plain, f"m/{name}": other["data.pkl"]})
    assert not model_of_bytes("m.pt", data).tensors
    refused(6, loading.read_state_dict, put(tmp_path / "m.pt", data))


def entries(state: dict[str, torch.Tensor]) -> dict[str, bytes]:
    """What torch.save puts into the folder of an archive."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    with zipfile.ZipFile(buffer) as found:
        return {name.partition("/")[2]: found.read(name) for name in found.namelist()}
