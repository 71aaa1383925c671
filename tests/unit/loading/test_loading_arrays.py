"""Safetensors and numpy archives against the libraries that define them."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load as reference_load
from safetensors.torch import save as reference_save

from lipverify.errors import InvalidFile
from lipverify.loading import parse_safetensors, read_npz, read_points, read_safetensors, write_safetensors
from lipverify.loading.numpy_archive import parse_npy
from lipverify.loading.zip_archive import members, read_member

DTYPES = [
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64,
    torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool,
]  # fmt: skip

tables = st.dictionaries(
    st.text(min_size=1, max_size=8).filter(lambda name: name != "__metadata__"),
    st.tuples(st.sampled_from(DTYPES), st.lists(st.integers(0, 4), max_size=3)),
    max_size=5,
)


@settings(deadline=None, max_examples=60)
@given(tables)
def test_safetensors_both_ways(table: dict[str, Any]) -> None:
    tensors = {
        name: torch.arange(int(np.prod(shape))).reshape(shape).to(dtype)
        for name, (dtype, shape) in table.items()
    }
    for data in (reference_save(tensors), write_safetensors(tensors, {"made": "here"})):
        for load in (reference_load, lambda data: parse_safetensors(data, "w")):
            found = load(data)
            assert found.keys() == tensors.keys()
            for name, tensor in tensors.items():
                assert found[name].dtype == tensor.dtype
                assert torch.equal(found[name], tensor)


def test_safetensors_own_their_memory(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    path.write_bytes(write_safetensors({"a": torch.zeros(3), "b": torch.zeros(3).t()}))
    tensors = read_safetensors(path)
    tensors["a"].add_(1)
    assert torch.equal(tensors["b"], torch.zeros(3))
    assert torch.equal(read_safetensors(path)["a"], torch.zeros(3))


def test_non_contiguous_tensors_are_written_dense() -> None:
    matrix = torch.arange(6.0).reshape(2, 3)
    assert torch.equal(parse_safetensors(write_safetensors({"t": matrix.t()}), "w")["t"], matrix.t())


def npz(path: Path, compress: bool = False, **arrays: Any) -> Path:
    (np.savez_compressed if compress else np.savez)(path, **arrays)
    return path


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("dtype", ["<f8", ">f8", "<f4", ">f4", "<f2"])
def test_points(compress: bool, dtype: str, tmp_path: Path) -> None:
    x = np.asfortranarray(np.random.default_rng(0).normal(size=(4, 3, 2)).astype(dtype))
    points = read_points(npz(tmp_path / "d.npz", compress, x=x, y=np.arange(4, dtype=">i2"), other=np.eye(2)))
    assert np.array_equal(points.x, x)
    assert points.x.dtype == np.float64
    assert points.x.flags.c_contiguous
    assert np.array_equal(points.y, [0, 1, 2, 3])
    assert points.y.dtype == np.int64


def test_points_without_labels(tmp_path: Path) -> None:
    x = np.ones((2, 5), np.float32)
    assert read_points(npz(tmp_path / "d.npz", x=x)).y is None
    np.save(tmp_path / "d.npy", x)
    assert np.array_equal(read_points(tmp_path / "d.npy").x, x)


def test_constant_arrays_pack_well_and_are_read(tmp_path: Path) -> None:
    points = read_points(npz(tmp_path / "d.npz", True, x=np.ones((100, 100)), y=np.zeros(100, int)))
    assert points.x.shape == (100, 100)


def test_all_arrays(tmp_path: Path) -> None:
    arrays = {
        "a": np.arange(3, dtype=np.uint8),
        "b": np.zeros((0, 2)),
        "c": np.array(True),
        "d": np.float16(2),
    }
    found = read_npz(npz(tmp_path / "d.npz", **arrays))
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
        assert np.array_equal(found[name], array)
        assert found[name].dtype == array.dtype


@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
def test_versions_of_npy(version: tuple[int, int]) -> None:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, np.eye(3), version)
    assert np.array_equal(parse_npy(buffer.getvalue(), "a", "d.npy"), np.eye(3))


class Stream(io.RawIOBase):
    """Cannot seek: the sizes then stand behind the data."""

    def __init__(self) -> None:
        self.data = bytearray()

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self.data += bytes(data)
        return len(data)


@pytest.mark.parametrize("compress", [False, True])
def test_streamed_archive(compress: bool) -> None:
    stream = Stream()
    (np.savez_compressed if compress else np.savez)(stream, x=np.eye(4), y=np.eye(3))
    data = bytes(stream.data)
    found = members(data, "d.npz")
    assert list(found) == ["x.npy", "y.npy"]
    assert np.array_equal(parse_npy(read_member(data, found["y.npy"], "d.npz"), "y", "d.npz"), np.eye(3))


def test_the_message_names_the_file_and_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(InvalidFile, match=r"d\.npz: y holds 0\.5, which is no label; .*; give class indices"):
        read_points(npz(tmp_path / "d.npz", x=np.zeros((2, 2)), y=np.array([0.5, 1.0])))


def test_metadata_is_kept() -> None:
    header = json.loads(write_safetensors({"a": torch.ones(1)}, {"k": "v"})[8:].split(b"}}")[0] + b"}}")
    assert header["__metadata__"] == {"k": "v"}
