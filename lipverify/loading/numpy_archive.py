"""Strict reader of .npy and .npz files: plain numbers only, no pickled objects, sizes checked before anything
is allocated."""

from __future__ import annotations

import math
import re
import struct
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lipverify.errors import InvalidFile
from lipverify.loading.files import Path, read_regular
from lipverify.loading.formats import Format, require_format
from lipverify.loading.names import display, sentence
from lipverify.loading.zip_archive import members, read_member

MAX_NPY_HEADER = 1 << 14
MAX_RANK = 16

_MAGIC = b"\x93NUMPY"
# What numpy and the writers that imitate it produce; evaluating the header as Python is not needed.
_HEADER = re.compile(
    r"\{'descr': '(?P<descr>[^'\\]{1,16})', 'fortran_order': (?P<fortran>True|False), "
    r"'shape': \((?P<shape>[0-9, ]*)\),? ?\} *\n?"
)
_NUMBER = re.compile(r"(?:[<>=][fiu][248]|[|<>=][iub]1)")


@dataclass(frozen=True)
class Points:
    """Points in units of the model's raw input: x float64 [samples, ...], labels y int64 [samples]."""

    x: NDArray[np.float64]
    y: NDArray[np.int64] | None
    path: str
    sha256: str

    def require(self, input_shape: tuple[int, ...], classes: int) -> None:
        """Raises InvalidFile unless all points have the model's input shape and all labels name an output."""
        if self.x.shape[1:] != tuple(input_shape):
            what = f"x has points of shape {list(self.x.shape[1:])}, the model takes {list(input_shape)}"
            raise InvalidFile(sentence(self.path, what, "first axis = samples, then one input each"))
        if self.y is not None and bool((self.y >= classes).any()):
            index = int(np.argmax(self.y >= classes))
            what = f"label {self.y[index]} at index {index} is out of range for {classes} outputs"
            raise InvalidFile(sentence(self.path, what, f"labels are 0 to {classes - 1}"))


def read_points(path: Path) -> Points:
    """Reads `--data`: .npz with x (float, first axis = samples) and optionally y (int labels), or .npy of x.

    Raises InvalidFile when x is missing, empty, not of floating point or holds NaN or infinity, when y does
    not hold one non-negative integer per sample, and for any damage; UnsafeInput for an archive built as an
    attack.
    """
    file = read_regular(path)
    if require_format(file, {Format.NPZ, Format.NPY}, Format.NPZ.value) is Format.NPY:
        arrays = {"x": parse_npy(file.data, "x", path)}
    else:
        arrays = parse_npz(file.data, path, only=("x", "y"))
    x = arrays["x"]
    if x.dtype.kind != "f":
        remedy = "convert it to float, in the units of the model's input"
        raise InvalidFile(sentence(path, f"x has dtype {x.dtype}, not floating point", remedy))
    if x.ndim == 0 or x.size == 0:
        raise InvalidFile(sentence(path, f"x has shape {list(x.shape)}, which holds no points"))
    require_finite(x, "x", path)
    labels = arrays.get("y")
    return Points(
        np.ascontiguousarray(x, np.float64),
        None if labels is None else _labels(labels, len(x), path),
        file.path,
        file.sha256,
    )


def read_npz(path: Path) -> dict[str, NDArray[np.generic]]:
    """All arrays of an .npz file, native byte order, in the order of the archive. Raises as read_points."""
    file = read_regular(path)
    require_format(file, {Format.NPZ}, Format.NPZ.value)
    return parse_npz(file.data, path)


def read_npy(path: Path) -> NDArray[np.generic]:
    """The array of an .npy file, native byte order. Raises as read_points."""
    file = read_regular(path)
    require_format(file, {Format.NPY}, Format.NPY.value)
    return parse_npy(file.data, "array", path)


def require_finite(array: NDArray[np.generic], name: str, path: Path) -> None:
    """Raises InvalidFile naming array and index when an entry is NaN or infinite."""
    if array.dtype.kind != "f":
        return
    finite = np.isfinite(array)
    if finite.all():
        return
    index = [int(i) for i in np.unravel_index(int(np.argmin(finite)), array.shape)]
    what = f'holds {float(array[tuple(index)])} (array "{display(name, 60)}", index {index})'
    raise InvalidFile(sentence(path, what, "only finite numbers have a meaning here"))


def parse_npz(data: bytes, path: Path, only: tuple[str, ...] | None = None) -> dict[str, NDArray[np.generic]]:
    """Arrays in the bytes of an .npz file; `only` limits what is unpacked, its first name is required."""
    found = {name.removesuffix(".npy"): member for name, member in members(data, path).items()}
    if only is not None and only[0] not in found:
        listed = ", ".join(display(name, 20) for name in list(found)[:4]) or "nothing"
        remedy = f"name the array {only[0]}: np.savez(file, {only[0]}=...)"
        raise InvalidFile(sentence(path, f"has no array {only[0]} (it holds {listed})", remedy))
    wanted = [name for name in found if only is None or name in only]
    return {name: parse_npy(read_member(data, found[name], path), name, path) for name in wanted}


def parse_npy(data: bytes, name: str, path: Path) -> NDArray[np.generic]:
    """The array in the bytes of an .npy file, native byte order, memory of its own. Raises InvalidFile."""
    shown = display(name, 40)
    version = data[6:8]
    wide = version in (b"\x02\x00", b"\x03\x00")
    if not data.startswith(_MAGIC) or not (wide or version == b"\x01\x00") or len(data) < 12:
        raise InvalidFile(sentence(path, f'array "{shown}" is not in .npy format'))
    (length,) = struct.unpack_from("<I" if wide else "<H", data, 8)
    start = (12 if wide else 10) + length
    text = data[start - length : start].decode("latin-1") if length <= MAX_NPY_HEADER else ""
    header = _HEADER.fullmatch(text) if start <= len(data) else None
    if header is None:
        if "O'" in text or "[" in text:
            what = f'array "{shown}" holds Python objects or records, which are not read'
            raise InvalidFile(sentence(path, what, "save plain numbers"))
        raise InvalidFile(sentence(path, f'array "{shown}" has a damaged .npy header'))
    descr = header["descr"]
    if not _NUMBER.fullmatch(descr):
        kind = "Python objects" if "O" in descr else f"dtype {display(descr, 16)}"
        raise InvalidFile(
            sentence(path, f'array "{shown}" holds {kind}, not plain numbers', "save plain numbers")
        )
    dtype = np.dtype(descr)
    shape = _shape(header["shape"], shown, path)
    # The product of Python integers cannot overflow, and nothing is allocated before it matches the bytes.
    if math.prod(shape) * dtype.itemsize != len(data) - start:
        what = (
            f'array "{shown}" has {len(data) - start} bytes of data, its shape and dtype need another number'
        )
        raise InvalidFile(sentence(path, what))
    flat = np.frombuffer(data, dtype, offset=start)
    array = flat.reshape(shape, order="F" if header["fortran"] == "True" else "C")
    return array.astype(dtype.newbyteorder("="), order="C", copy=True)


def _shape(text: str, shown: str, path: Path) -> tuple[int, ...]:
    parts = [part.strip() for part in text.split(",")]
    if parts[-1] == "":
        parts.pop()
    if len(parts) > MAX_RANK or not all(part.isdigit() and len(part) <= 18 for part in parts):
        raise InvalidFile(sentence(path, f'array "{shown}" has an invalid shape'))
    return tuple(int(part) for part in parts)


def _labels(y: NDArray[np.generic], samples: int, path: Path) -> NDArray[np.int64]:
    if y.dtype.kind not in "iu":
        raise InvalidFile(sentence(path, f"y has dtype {y.dtype}, not integers", "give class indices"))
    if y.shape != (samples,):
        what = f"y has shape {list(y.shape)}, x has {samples} samples"
        raise InvalidFile(sentence(path, what, f"y needs shape [{samples}]"))
    if bool((y < 0).any()) or bool((y > np.iinfo(np.int32).max).any()):  # type: ignore[operator]
        raise InvalidFile(sentence(path, "y holds labels that are negative or absurdly large"))
    return y.astype(np.int64)
