"""Strict reader of .npy and .npz files: plain numbers only, no pickled objects, sizes checked before anything
is allocated."""

from __future__ import annotations

import math
import re
import struct

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


def read_npz(path: Path) -> dict[str, NDArray[np.generic]]:
    """All arrays of an .npz file, native byte order, in the order of the archive. Raises InvalidFile, UnsafeInput."""
    file = read_regular(path)
    require_format(file, {Format.NPZ}, Format.NPZ.value)
    return parse_npz(file.data, path)


def read_npy(path: Path) -> NDArray[np.generic]:
    """The array of an .npy file, native byte order. Raises InvalidFile, UnsafeInput."""
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


def parse_npz(
    data: bytes, path: Path, only: tuple[str, ...] | None = None, copy: bool = True
) -> dict[str, NDArray[np.generic]]:
    """Arrays in the bytes of an .npz file; `only` limits what is unpacked. copy: as of `parse_npy`."""
    found = {name.removesuffix(".npy"): member for name, member in members(data, path).items()}
    wanted = [name for name in found if only is None or name in only]
    return {name: parse_npy(read_member(data, found[name], path), name, path, copy) for name in wanted}


def parse_npy(data: bytes, name: str, path: Path, copy: bool = True) -> NDArray[np.generic]:
    """The array in the bytes of an .npy file, native byte order. Raises InvalidFile.

    copy: with memory of its own; without, it may look into the bytes, and nobody writes to it.
    """
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
    return array.astype(dtype.newbyteorder("="), order="C", copy=copy)


def _shape(text: str, shown: str, path: Path) -> tuple[int, ...]:
    parts = [part.strip() for part in text.split(",")]
    if parts[-1] == "":
        parts.pop()
    if len(parts) > MAX_RANK or not all(part.isdigit() and len(part) <= 18 for part in parts):
        raise InvalidFile(sentence(path, f'array "{shown}" has an invalid shape'))
    return tuple(int(part) for part in parts)
