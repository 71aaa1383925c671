"""Which format a file has, told by its bytes and never by its name, and why some formats are refused."""

from __future__ import annotations

import enum
import itertools
import pickletools
import re
from collections.abc import Iterator, Mapping, Set
from typing import Any

from lipverify.errors import InvalidFile, LipverifyError, UnsafeInput, UnsupportedModel
from lipverify.loading.files import FileBytes, Path
from lipverify.loading.names import display, sentence
from lipverify.loading.zip_archive import Member, looks_like_zip_end, members


class Format(enum.Enum):
    """A file format; the value is what a message calls it."""

    ONNX = "an ONNX model"
    SAFETENSORS = "a safetensors file"
    NPY = "a .npy array"
    NPZ = "an .npz archive"
    TORCH_ZIP = "a torch checkpoint"
    TORCH_LEGACY = "a torch checkpoint in the old format"
    PICKLE = "a pickle of Python objects"
    TORCHSCRIPT = "a TorchScript archive"
    TORCH_PACKAGE = "a torch.package archive"
    TORCH_EXPORT = "a torch.export archive (.pt2)"
    KERAS = "a Keras model"
    HDF5 = "an HDF5 file"
    PARQUET = "a Parquet file"
    MATLAB = "a MATLAB file"
    ZIP = "a zip archive of unknown content"
    COMPRESSED = "a compressed file"
    GGUF = "a GGUF file"
    TFLITE = "a TensorFlow Lite model"
    LFS_POINTER = "a Git LFS pointer, not the file itself"
    TEXT = "a text file"
    UNKNOWN = "in no format that lipverify knows"


WEIGHTS = frozenset((Format.SAFETENSORS, Format.NPZ, Format.TORCH_ZIP, Format.TORCH_LEGACY))

_EXECUTES = "executes code on load; export ONNX or a state dict"
_CONVERT = "convert it to ONNX or .safetensors"
# Formats that are refused whatever was asked for: what a message says, and the exception.
_REFUSED: dict[Format, tuple[type[LipverifyError], str]] = {
    Format.PICKLE: (UnsafeInput, _EXECUTES),
    Format.TORCHSCRIPT: (UnsafeInput, _EXECUTES),
    Format.TORCH_PACKAGE: (UnsafeInput, _EXECUTES),
    Format.TORCH_EXPORT: (UnsafeInput, _EXECUTES),
    Format.KERAS: (UnsafeInput, "can carry code (Lambda layers); export ONNX with tf2onnx"),
    Format.HDF5: (UnsupportedModel, _CONVERT),
    Format.MATLAB: (UnsupportedModel, "convert its matrices to ONNX, .npz or .safetensors"),
    Format.GGUF: (UnsupportedModel, _CONVERT),
    Format.TFLITE: (UnsupportedModel, "export ONNX with tf2onnx"),
    Format.ZIP: (InvalidFile, "give an ONNX model, an .npz or a state dict"),
    Format.COMPRESSED: (InvalidFile, "unpack it first"),
    Format.LFS_POINTER: (InvalidFile, "fetch it with git lfs pull"),
}

_BEGINNINGS: tuple[tuple[bytes, Format], ...] = (
    (b"\x93NUMPY", Format.NPY),
    (b"\x89HDF\r\n\x1a\n", Format.HDF5),
    (b"MATLAB ", Format.MATLAB),
    (b"GGUF", Format.GGUF),
    (b"PAR1", Format.PARQUET),
    (b"version https://git-lfs", Format.LFS_POINTER),
    (b"\x1f\x8b", Format.COMPRESSED),
    (b"BZh", Format.COMPRESSED),
    (b"\xfd7zXZ\x00", Format.COMPRESSED),
    (b"7z\xbc\xaf\x27\x1c", Format.COMPRESSED),
    (b"\x28\xb5\x2f\xfd", Format.COMPRESSED),
)
# The number that torch.save has always pickled first in its format before zip archives.
_TORCH_LEGACY = re.compile(rb"\x80[\x02-\x05](?:\x95.{8})?\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19", re.DOTALL)
# First byte of each field that ModelProto may begin with, as field number and wire type.
_ONNX_TAGS = frozenset((0x08, 0x12, 0x1A, 0x22, 0x28, 0x32, 0x3A, 0x42, 0x72, 0xA2, 0xCA))


def detect(data: bytes, path: Path) -> Format:
    """The format of these bytes. Raises UnsafeInput for a file that is a zip archive and something else at
    once, and what `members` raises for a damaged archive."""
    if data.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return _inside_zip(members(data, path))
    if looks_like_zip_end(data):
        what = "is a zip archive with something else in front of it"
        raise UnsafeInput(sentence(path, what, "save it again from a source you trust"))
    brace = data[8:9] == b"{"
    # Before the magic numbers: a header of 640 bytes begins like a pickle, one of 8 like an ONNX file.
    if brace and int.from_bytes(data[:8], "little") <= len(data) - 8:
        return Format.SAFETENSORS
    for beginning, kind in _BEGINNINGS:
        if data.startswith(beginning):
            keras = kind is Format.HDF5 and (b"keras_version" in data or b"model_config" in data)
            return Format.KERAS if keras else kind
    if data[:1] == b"\x80" and b"\x02" <= data[1:2] <= b"\x05":
        return Format.TORCH_LEGACY if _TORCH_LEGACY.match(data) else Format.PICKLE
    kind = _without_magic(data)
    return Format.SAFETENSORS if brace and kind in (Format.UNKNOWN, Format.TEXT) else kind


def require_format(file: FileBytes, wanted: Set[Format], asked: str) -> Format:
    """The format of the file when it is one of `wanted`; otherwise raises with what it is and what to do."""
    found = detect(file.data, file.path)
    if found in wanted:
        return found
    if found in _REFUSED:
        error, remedy = _REFUSED[found]
        joint = ", which " if error is UnsafeInput else "; "
        named = first_global(file.data) if found is Format.PICKLE else None
        what = f"{found.value} ({display(named, 40)})" if named else found.value
        raise error(sentence(file.path, f"is {what}{joint}{remedy}"))
    weights = found in WEIGHTS and Format.ONNX in wanted
    remedy = "give the architecture: --arch FILE.py:callable --trust-code" if weights else ""
    raise InvalidFile(sentence(file.path, f"is {found.value}, not {asked}", remedy))


def _inside_zip(found: Mapping[str, Member]) -> Format:
    # torch puts everything into one folder named after the file.
    inner = {name.partition("/")[2] or name for name in found}
    names = inner | found.keys()
    models = any(name.startswith("models/") and name.endswith(".json") for name in names)
    if models or {"archive_format", "serialized_exported_program.json"} & names:
        return Format.TORCH_EXPORT
    if any(name.startswith(".data/extern_modules") or name == ".data/python_version" for name in names):
        return Format.TORCH_PACKAGE
    if "constants.pkl" in names or any(name.startswith("code/") for name in names):
        return Format.TORCHSCRIPT
    if "data.pkl" in inner:
        return Format.TORCH_ZIP
    if "config.json" in found and any(name.endswith(".h5") for name in found):
        return Format.KERAS
    if found and all(name.endswith(".npy") for name in found):
        return Format.NPZ
    if any(name.endswith((".pkl", ".pickle")) for name in names):
        return Format.PICKLE
    return Format.ZIP


def _without_magic(data: bytes) -> Format:
    if data[4:8] == b"TFL3":
        return Format.TFLITE
    if _is_text_pickle(data):
        return Format.PICKLE
    # Before ONNX: a table may begin with a quotation mark or a digit that is the tag of a field there.
    if is_text(data):
        return Format.TEXT
    return Format.ONNX if data[:1] and data[0] in _ONNX_TAGS else Format.UNKNOWN


def is_text(data: bytes) -> bool:
    """Whether a file begins as text does: UTF-8 without control characters."""
    head = data[:512]
    if not head or not all(byte in b"\t\n\r" or (byte >= 32 and byte != 127) for byte in head):
        return False
    try:
        head.decode("utf-8")
    except UnicodeDecodeError as problem:
        # The last character may be cut.
        return problem.end == len(head) and problem.reason == "unexpected end of data"
    return True


def first_global(data: bytes) -> str | None:
    """The first function or class that a pickle would look up, read from its opcodes; nothing is executed."""
    texts: list[str] = []
    for name, argument in _opcodes(data):
        if name in ("GLOBAL", "INST"):
            return str(argument).replace(" ", ".")
        if name == "STACK_GLOBAL":
            return ".".join(texts[-2:])
        if isinstance(argument, str):
            texts.append(argument)
    return None


def _is_text_pickle(data: bytes) -> bool:
    """True for pickles of protocol 0 and 1, which have no magic number."""
    if data[:1] not in (b"c", b"(", b"]", b"}", b"i", b"I", b"S", b"V", b"P"):
        return False
    names = [name for name, _ in _opcodes(data)]
    return len(names) >= 3 and (names[-1] == "STOP" or "GLOBAL" in names or "INST" in names)


def _opcodes(data: bytes) -> Iterator[tuple[str, Any]]:
    """Opcodes of the beginning of a pickle, up to its end or the first byte that is none."""
    try:
        for opcode, argument, _ in itertools.islice(pickletools.genops(data[: 1 << 16]), 10_000):
            yield opcode.name, argument
    except Exception:  # whatever pickletools says about bytes that are no pickle
        return
