"""An ONNX file as a model in memory that no later step needs to distrust or to open a path for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from lipverify.errors import InvalidFile, UnsupportedModel
from lipverify.loading.files import Path, read_regular
from lipverify.loading.formats import Format, require_format
from lipverify.loading.names import sentence
from lipverify.loading.onnx_scan import scan
from lipverify.loading.onnx_structure import check_nodes, check_structure, prune, selected_outputs
from lipverify.loading.onnx_tensors import MAX_TOTAL_BYTES, ExternalData, check_tensors
from lipverify.loading.onnx_weights import Held, without_large

if TYPE_CHECKING:
    import onnx


@dataclass(frozen=True)
class OnnxFile:
    """A checked model with all weights inside, but for those that are `held` beside it.

    `sha256` is that of the file, `external_files` holds name and SHA-256 of every file beside it that was used, `inputs` and
    names of `outputs` are those of the whole file, whatever the model was pruned to.
    """

    model: onnx.ModelProto
    path: str
    sha256: str
    external_files: tuple[tuple[str, str], ...]
    inputs: tuple[onnx.ValueInfoProto, ...]
    outputs: tuple[str, ...]
    held: Held = field(default_factory=dict, repr=False)


def read_onnx(
    path: Path, output: int | str | None = None, *, prune_to_output: bool = False, hold: bool = False
) -> OnnxFile:
    """Reads an ONNX file under the loader's policy.

    prune_to_output: keep only what the output, by position or by name, depends on (all outputs for None); what is left out
    is held to the structure of a file, not to what can be computed, and its external data is not opened. hold: large tensors
    of the main graph stay beside the message (`onnx_weights`).

    Raises InvalidFile (damaged or self-contradictory, NaN weights), UnsafeInput (another format that would run code,
    external data outside the model's folder), UnsupportedModel (too many nodes, nested too deep, functions that call
    themselves, element types without real numbers, a format newer than the installed onnx), UsageError (no such output).
    """
    file = read_regular(path, MAX_TOTAL_BYTES)
    require_format(file, {Format.ONNX}, "an ONNX model")
    scan(file.data, path)
    name, digest = file.path, file.sha256
    message, taken = without_large(file.data) if hold else (file.data, None)
    del file  # what was taken from it is there a second time
    model = _parse(message, path)
    del message
    external = ExternalData(path)
    outputs = tuple(value.name for value in model.graph.output)
    inputs, held = checked(model, path, external, output, taken, prune_to_output=prune_to_output)
    return OnnxFile(model, name, digest, tuple(sorted(external.files.items())), tuple(inputs), outputs, held)


def checked(
    model: onnx.ModelProto,
    path: Path,
    external: ExternalData,
    output: int | str | None,
    taken: Mapping[str, bytearray] | None = None,
    *,
    prune_to_output: bool,
) -> tuple[list[onnx.ValueInfoProto], Held]:
    """Holds a scanned model to the policy, in place; its tensors are inside afterwards, or held beside it where some were taken
    from the message. Raises as `read_onnx`, and gives the inputs of the whole model."""
    check_version(model, path)
    check_structure(model, path)
    inputs = list(model.graph.input)
    if prune_to_output:
        prune(model, selected_outputs(model, output))
    check_nodes(model, path)
    return inputs, check_tensors(model, external, taken)


def check_version(model: onnx.ModelProto, path: Path) -> None:
    """Raises UnsupportedModel for a format newer than the installed onnx, InvalidFile where the version is missing."""
    import onnx

    version = model.ir_version
    if version < 1:
        raise InvalidFile(
            sentence(path, "does not say which version of the ONNX format it has", "export it again")
        )
    if version > onnx.IR_VERSION:
        what = f"has version {version} of the ONNX format; the installed onnx {onnx.__version__} knows {onnx.IR_VERSION}"
        raise UnsupportedModel(sentence(path, what, "install a newer onnx"))


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
    # Training graphs take no part in inference: what stays is checked.
    model.ClearField("training_info")
    return model
