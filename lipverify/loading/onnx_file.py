"""An ONNX file as a model in memory that no later step needs to distrust or to open a path for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lipverify.errors import InvalidFile
from lipverify.loading.files import Path, read_regular
from lipverify.loading.formats import Format, require_format
from lipverify.loading.names import sentence
from lipverify.loading.onnx_scan import scan
from lipverify.loading.onnx_structure import check_structure
from lipverify.loading.onnx_tensors import MAX_TOTAL_BYTES, ExternalData, check_tensors, tensors

if TYPE_CHECKING:
    import onnx


@dataclass(frozen=True)
class OnnxFile:
    """A checked model with all weights inside.

    `sha256` is that of the file, `external_files` holds name and SHA-256 of every file beside it that was used.
    """

    model: onnx.ModelProto
    path: str
    sha256: str
    external_files: tuple[tuple[str, str], ...]


def read_onnx(path: Path) -> OnnxFile:
    """Reads an ONNX file under the loader's policy.

    Raises InvalidFile (damaged or self-contradictory, NaN or infinite weights), UnsafeInput (another format
    that would run code, external data outside the model's folder), UnsupportedModel (too many nodes, nested
    too deep, functions that call themselves, element types without real numbers).
    """
    file = read_regular(path, MAX_TOTAL_BYTES)
    require_format(file, {Format.ONNX}, "an ONNX model")
    scan(file.data, path)
    model = _parse(file.data, path)
    external = ExternalData(path)
    check_structure(model, path)
    check_tensors((pair for scope in (model.graph, *model.functions) for pair in tensors(scope)), external)
    used = tuple((name, beside.sha256) for name, beside in sorted(external.files.items()))
    return OnnxFile(model, file.path, file.sha256, used)


def _parse(data: bytes, path: Path) -> onnx.ModelProto:
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    try:
        # Protobuf's own limits (2 GiB, 100 levels) end as DecodeError.
        model = onnx.ModelProto.FromString(data)
    except (DecodeError, RecursionError, ValueError, MemoryError):
        raise InvalidFile(sentence(path, "is a damaged ONNX file", "export it again")) from None
    if not model.HasField("graph"):
        raise InvalidFile(sentence(path, "is not an ONNX model: it has no graph", "export it again"))
    # Training graphs take no part in inference, and unknown fields in nothing: what stays was checked.
    model.ClearField("training_info")
    model.DiscardUnknownFields()
    return model
