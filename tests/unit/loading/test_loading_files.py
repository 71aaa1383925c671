"""Opening files: what is read, hashed and recognised."""

import hashlib
import os
import random
import subprocess
import sys
import zipfile
from hashlib import sha256
from pathlib import Path

import pytest

from lipverify.errors import InvalidFile, UnsafeInput, UnsupportedModel
from lipverify.loading import Format, detect, read_onnx, read_regular
from lipverify.loading.files import Range, read_inside


def test_bytes_and_hash(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"abc")
    (tmp_path / "link").symlink_to(path)
    for given in (path, str(path), tmp_path / "link"):
        file = read_regular(given)
        assert file.data == b"abc"
        assert file.sha256 == hashlib.sha256(b"abc").hexdigest()
    with pytest.raises(InvalidFile, match="more than the limit of 2"):
        read_regular(path, max_bytes=2)


def test_a_path_that_changes_between_look_and_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"abc")
    os.mkfifo(tmp_path / "fifo")
    really = os.open
    monkeypatch.setattr(os, "open", lambda _, flags: really(tmp_path / "fifo", flags))
    with pytest.raises(InvalidFile, match="not a regular file"):
        read_regular(path)


def test_inside_a_folder(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "w").write_bytes(b"abc")
    before = len(os.listdir("/proc/self/fd"))
    found: dict[int, bytes] = {}

    def read(folder: Path, location: str, most: int, *ranges: Range) -> tuple[int, str]:
        return read_inside(folder, location, most, "m.onnx", ranges, found.__setitem__)

    wanted = [Range(1, 3, "a"), Range(0, 2, "b"), Range(3, 3, "c"), Range(0, 3, "d"), Range(1, 1, "e")]
    assert read(tmp_path, "a/./b//w", 10, *wanted) == (3, sha256(b"abc").hexdigest())
    assert found == {0: b"bc", 1: b"ab", 2: b"", 3: b"abc", 4: b""}
    with pytest.raises(UnsafeInput):
        read(tmp_path, "a/b/../b/w", 10)
    with pytest.raises(UnsafeInput, match='tensor "far" reaches past the end'):
        read(tmp_path, "a/b/w", 10, Range(2, 4, "far"))
    with pytest.raises(InvalidFile, match="more than the limit"):
        read(tmp_path, "a/b/w", 2)
    with pytest.raises(InvalidFile):
        read(tmp_path / "absent", "w", 2)
    with pytest.raises(UnsafeInput, match="not a regular file"):
        read(tmp_path, "a/b/w/x", 2)
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"\x08\x07\x12\x07pytorch", Format.ONNX),
        (b"\x93NUMPY\x01\x00", Format.NPY),
        (b"\x89HDF\r\n\x1a\n" + bytes(8), Format.HDF5),
        (b"\x89HDF\r\n\x1a\n..keras_version..", Format.KERAS),
        (b"MATLAB 5.0 MAT-file", Format.MATLAB),
        (b"GGUF\x03\0\0\0", Format.GGUF),
        (b"\x1c\0\0\0TFL3", Format.TFLITE),
        (b"\x1f\x8b\x08", Format.COMPRESSED),
        (b"version https://git-lfs.github.com/spec/v1\n", Format.LFS_POINTER),
        (b"<!DOCTYPE html><html>", Format.TEXT),
        (b"\xde\xad\xbe\xef", Format.UNKNOWN),
        (b"\x02\0\0\0\0\0\0\0{}", Format.SAFETENSORS),
        (b"\0\0\0\0\0\0\0\x80{}", Format.SAFETENSORS),
        (b"\x80\x02\0\0\0\0\0\0{" + bytes(640), Format.SAFETENSORS),
        (b"\x28\0\0\0\0\0\0\0{" + bytes(40), Format.SAFETENSORS),
        (b"\x80\x04}\x94.", Format.PICKLE),
        (b"cos\nsystem\n(S'true'\ntR.", Format.PICKLE),
    ],
)
def test_formats_by_their_bytes(data: bytes, kind: Format) -> None:
    assert detect(data, "file") is kind


@pytest.mark.parametrize(
    ("names", "kind"),
    [
        (["x.npy"], Format.NPZ),
        (["m/data.pkl", "m/data/0"], Format.TORCH_ZIP),
        (["m/data.pkl", "m/constants.pkl", "m/code/a.py"], Format.TORCHSCRIPT),
        (["m/.data/extern_modules", "m/model/model.pkl"], Format.TORCH_PACKAGE),
        (["m/archive_format", "m/models/model.json"], Format.TORCH_EXPORT),
        (["serialized_exported_program.json"], Format.TORCH_EXPORT),
        (["config.json", "metadata.json", "model.weights.h5"], Format.KERAS),
        (["a.pkl"], Format.PICKLE),
        (["readme.txt"], Format.ZIP),
    ],
)
def test_formats_inside_zip(names: list[str], kind: Format, tmp_path: Path) -> None:
    path = tmp_path / "archive"
    with zipfile.ZipFile(path, "w") as target:
        for name in names:
            target.writestr(name, b"x")
    assert detect(path.read_bytes(), path) is kind


@pytest.mark.parametrize(
    ("data", "error", "text"),
    [
        (b"MATLAB 5.0 MAT-file", UnsupportedModel, "is a MATLAB file; convert"),
        (b"\x89HDF\r\n\x1a\n model_config", UnsafeInput, "Keras model, which can carry code"),
        (b"version https://git-lfs.github.com/spec/v1\n", InvalidFile, "git lfs pull"),
        (
            b"\x02\0\0\0\0\0\0\0{}",
            InvalidFile,
            "safetensors file, not an ONNX model; give the architecture: --arch",
        ),
        (b"<!DOCTYPE html>", InvalidFile, "is a text file, not an ONNX model"),
        (b"cposix\nsystem\n(S'true'\ntR.", UnsafeInput, "posix.system"),
    ],
)
def test_refusals_say_what_it_is(data: bytes, error: type[Exception], text: str, tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(data)
    with pytest.raises(error) as caught:
        read_onnx(path)
    assert text in str(caught.value)
    assert caught.type is error


def test_importing_the_loader_imports_neither_torch_nor_onnx() -> None:
    code = "import sys, lipverify.loading; sys.exit(bool({'torch', 'onnx'} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_ranges_over_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that passes in pieces of 1 to 5 bytes gives every range as the whole would."""
    data = bytes(range(40))
    (tmp_path / "w").write_bytes(data)
    rng = random.Random(0)
    real = os.read
    monkeypatch.setattr(os, "read", lambda fd, most: real(fd, min(most, rng.randint(1, 5))))
    wanted = [Range(a, b, "") for a in range(0, 41, 3) for b in range(a, 41, 4)]
    found: dict[int, bytes] = {}
    size, digest = read_inside(tmp_path, "w", 40, "m.onnx", wanted, found.__setitem__)
    assert (size, digest) == (40, sha256(data).hexdigest())
    assert [found[k] for k in range(len(wanted))] == [data[a:b] for a, b, _ in wanted]
