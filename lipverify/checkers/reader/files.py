"""Files as the checker reads them: strict JSON, strict safetensors, and model files by their structure, not their name."""

from __future__ import annotations

import hashlib
import json
import math
import os
import stat
import struct
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from lipverify.checkers.kernel.program import Array, Program
from lipverify.checkers.reader.archives import parse_archive
from lipverify.checkers.reader.beside import joined
from lipverify.checkers.reader.onnx import read_onnx
from lipverify.checkers.reader.reading import Reading
from lipverify.checkers.reader.wire import is_protobuf
from lipverify.errors import BudgetEnded, LipverifyError, NotCovered, UnreadableCertificate

MAX_CERTIFICATE, MAX_MODEL = 16 << 20, 4 << 30
_TYPES = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "I64": "<i8",
    "I32": "<i4",
    "I16": "<i2",
    "I8": "i1",
    "U8": "u1",
    "BOOL": "?",
}
_OTHERS = {
    b"\x80": "pickles, and checkpoints in torch's old format,",
    b"MATLAB 5": "MATLAB files",
    b"\x89HDF": "HDF5 files",
    b"\x93NUMPY": "single arrays of numpy",
}
_OPAQUE = {"BF16": 2, "U16": 2, "U32": 4, "U64": 8, "F8_E4M3": 1, "F8_E5M2": 1}


@dataclass(frozen=True)
class Model:
    """What is known of a model without any certificate.

    binding: `file` (operators and weights are the file's), `weights` (a file of weights alone) or `graph` (a graph in memory).
    tensors: what the file stores, by `digest_of`. stored: how many tensors it has, by name or place; copies: of a file of
    weights, how many of each digest.
    program: what the file computes; None for weights alone, and where `reason` says why it is not covered. refused: why single
    outputs are not. unused: names of stored tensors that no covered output rests on. data: the bytes that were read, of ONNX;
    beside: name and sha256 of each file beside it that holds tensors of it, which `data` holds in their place; size: how many
    bytes there are in all files. reading: how its inputs are read, where a claim says it and not the file. several: whether it
    takes any number of samples at once; all is about one.
    """

    name: str
    sha256: str | None
    binding: str
    format: str
    tensors: Mapping[str, Array] = field(default_factory=dict)
    stored: int = 0
    copies: Mapping[str, int] = field(default_factory=dict)
    program: Program | None = None
    reason: str = ""
    refused: Mapping[int, str] = field(default_factory=dict)
    unused: tuple[str, ...] = ()
    digest: str | None = None
    data: bytes | None = field(default=None, repr=False)
    beside: tuple[tuple[str, str], ...] = ()
    size: int = 0
    several: bool = False
    reading: Reading | None = None

    def read_as(self, reading: Reading | None) -> Model:
        """The same file with its inputs read as a claim says.

        Raises:
            UnreadableCertificate: it is no ONNX file.
        """
        if reading == self.reading:
            return self
        _need(self.format == "onnx" and self.data is not None, "inputs of a model that is no ONNX file")
        assert self.data is not None
        read = _read_in(self.name, self.sha256, self.data, reading)
        return replace(read, beside=self.beside, size=self.size)

    def holds(self, array: Array) -> bool:
        """Whether these numbers are stored in the file."""
        return digest_of(array) in self.tensors


def _need(condition: object, message: str) -> None:
    if not condition:
        raise UnreadableCertificate(message)


def read_bytes(path: Path, limit: int) -> bytes:
    """A regular file of at most `limit` bytes.

    Raises:
        UnreadableCertificate: another kind of file, or a larger one. OSError: there is none.
    """
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        status = os.fstat(handle)
        _need(stat.S_ISREG(status.st_mode), f"{path.name[:80]!a} is not a regular file")
        _need(status.st_size <= limit, f"{path.name[:80]!a} is larger than {limit} bytes")
        with open(handle, "rb", closefd=False) as file:
            # Not more than is there: a buffer is made before anything is read.
            data = file.read(status.st_size + 1)
    finally:
        os.close(handle)
    _need(len(data) <= limit, f"{path.name[:80]!a} is larger than {limit} bytes")
    return data


def parse_json(data: bytes) -> Any:
    """JSON without duplicate names, infinities or long numbers.

    Raises:
        UnreadableCertificate: anything else.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        _need(len(dict(pairs)) == len(pairs), "a name occurs twice")
        return dict(pairs)

    def integer(digits: str) -> int:
        _need(len(digits) <= 18, "an integer has too many digits")
        return int(digits)

    def number(digits: str) -> float:
        _need(
            len(digits) <= 400 and math.isfinite(float(digits)),
            "a number has too many digits, or is not finite",
        )
        return float(digits)

    def refuse(word: str) -> None:
        _need(False, f"{word} is no number")

    try:
        text = data.decode("utf-8", "strict")
        return json.loads(
            text, object_pairs_hook=unique, parse_int=integer, parse_float=number, parse_constant=refuse
        )
    except (ValueError, RecursionError):
        raise UnreadableCertificate("not JSON in UTF-8") from None


def parse_safetensors(data: bytes) -> dict[str, Array]:
    """Tensors that tile the file exactly. Of types that numpy does not know, the bytes [n] alone, as F8 and the like.

    Raises:
        UnreadableCertificate: a header that does not describe the file.
    """
    _need(len(data) >= 8, "fewer than 8 bytes")
    (length,) = struct.unpack_from("<Q", data)
    _need(length <= len(data) - 8 and length <= 16 << 20 and data[8:9] == b"{", "a header that does not fit")
    header, base, end = parse_json(data[8 : 8 + length]), 8 + length, 0
    _need(isinstance(header, dict), "a header that is no table")
    more = header.pop("__metadata__", {})
    _need(isinstance(more, dict) and all(isinstance(v, str) for v in more.values()), "metadata")
    tensors: dict[str, Array] = {}
    for entry in header.values():
        _need(
            isinstance(entry, dict) and entry.keys() == {"dtype", "shape", "data_offsets"},
            "fields of a tensor",
        )
        sizes, shape = entry["data_offsets"], entry["shape"]
        _need(
            isinstance(sizes, list) and isinstance(shape, list) and len(sizes) == 2 and len(shape) <= 12,
            "fields of a tensor",
        )
        _need(all(type(n) is int and n >= 0 for n in (*sizes, *shape)), "sizes of a tensor")
    for name, entry in sorted(header.items(), key=lambda item: tuple(item[1]["data_offsets"])):
        (start, stop), shape, kind = entry["data_offsets"], entry["shape"], entry["dtype"]
        _need(start == end and start <= stop <= len(data) - base, "tensors overlap or leave a gap")
        _need(isinstance(kind, str) and (kind in _TYPES or kind in _OPAQUE), "a tensor of an unknown type")
        end, count = stop, math.prod(shape)
        dtype = np.dtype(_TYPES[kind]) if kind in _TYPES else np.dtype(("V", _OPAQUE[kind]))
        _need(stop - start == count * dtype.itemsize, "a tensor's bytes")
        tensors[name] = np.frombuffer(data, dtype, count, base + start).reshape(shape)
    _need(base + end == len(data), "tensors do not fill the file")
    return tensors


def digest_of(array: Array) -> str:
    """sha256 of type, shape and little-endian numbers of a stored tensor."""
    found = hashlib.sha256(f"{array.dtype.name}{list(array.shape)}".encode())
    found.update(_little(array).reshape(-1).view(np.uint8).data)
    return found.hexdigest()


def _little(array: Array) -> Array:
    return np.ascontiguousarray(array, array.dtype.newbyteorder("<"))


def read_model(path: Path) -> Model:
    """A model file, and what an ONNX file names beside it.

    What is not covered makes a model without a program, or without tensors, and with a reason.

    Raises:
        UnreadableCertificate: no regular file, or one that is too large.
    """
    data = read_bytes(path, MAX_MODEL)
    return _model(path.name, hashlib.sha256(data).hexdigest(), data, path.parent)


def model_of_bytes(name: str, data: bytes) -> Model:
    """`read_model`, of bytes: all that there is to read."""
    return _model(name, hashlib.sha256(data).hexdigest(), data, None)


def _model(name: str, sha256: str, data: bytes, folder: Path | None) -> Model:
    found = _of_a_kind(name, sha256, data, folder)
    return found if found.size else replace(found, size=len(data))


def _of_a_kind(name: str, sha256: str, data: bytes, folder: Path | None) -> Model:
    if data[8:9] == b"{" and not is_protobuf(data):
        try:
            tensors = parse_safetensors(data)
        except UnreadableCertificate as error:
            return Model(name, sha256, "weights", "safetensors", reason=str(error))
        except BudgetEnded:
            raise
        except Exception as error:
            reason = f"it cannot be followed ({type(error).__name__})"
            return Model(name, sha256, "weights", "safetensors", reason=reason)
        return _of_weights(name, sha256, "safetensors", list(tensors.values()), 0)
    if data[:4] == b"PK\x03\x04" and not is_protobuf(data):
        try:
            held, repeated, kind = parse_archive(data)
        except NotCovered as error:
            return Model(name, sha256, "weights", "zip", reason=str(error))
        except BudgetEnded:
            raise
        except Exception as error:  # whatever a stranger's bytes lead to is one refusal
            reason = f"it cannot be followed ({type(error).__name__})"
            return Model(name, sha256, "weights", "zip", reason=reason)
        return _of_weights(name, sha256, kind, held, repeated)
    for start, what in _OTHERS.items():
        if data.startswith(start) and not is_protobuf(data):
            reason = f"{what} are not covered by the checker: save the weights as safetensors, or export ONNX"
            return Model(name, sha256, "weights", "other", reason=reason)
    if folder is None:
        return _read_in(name, sha256, data, None)
    try:
        whole = joined(data, folder)
    except NotCovered as error:
        return Model(name, sha256, "file", "onnx", reason=str(error), data=data)
    read = _read_in(name, sha256, whole.data, None)
    return replace(read, beside=whole.files, size=len(data) + whole.size)


def _read_in(name: str, sha256: str | None, data: bytes, reading: Reading | None) -> Model:
    try:
        with np.errstate(all="ignore"):
            read = read_onnx(data, reading)
    except BudgetEnded:  # says nothing of the file
        raise
    except LipverifyError as error:
        return Model(name, sha256, "file", "onnx", reason=str(error), data=data, reading=reading)
    except Exception as error:  # whatever a stranger's bytes lead to is one refusal
        reason = f"it cannot be followed ({type(error).__name__})"
        return Model(name, sha256, "file", "onnx", reason=reason, data=data, reading=reading)
    unused = tuple(sorted(read.tensors.keys() - read.used))
    return Model(
        name,
        sha256,
        "file",
        "onnx",
        _by_digest(read.tensors.values()),
        stored=len(read.tensors),
        program=read.program,
        refused=read.refused,
        unused=unused,
        data=data,
        reading=reading,
        several=read.several,
    )


def _of_weights(name: str, sha256: str, kind: str, held: Sequence[Array], repeated: int) -> Model:
    copies = Counter(digest_of(array) for array in held)
    return Model(name, sha256, "weights", kind, _by_digest(held), stored=len(held) + repeated, copies=copies)


def _by_digest(tensors: Iterable[Array]) -> dict[str, Array]:
    return {digest_of(a): a for a in tensors}
