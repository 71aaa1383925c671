"""Extraction of an ONNX model: lower it for a batch of one, check it against a reader of the original."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
from onnx import numpy_helper
from torch import Tensor

from lipverify.errors import InvalidFile, UnsupportedModel, UsageError
from lipverify.frontends.builder import Masked, Value
from lipverify.frontends.onnx import translators as _translators  # registers them
from lipverify.frontends.onnx.agreement import Import, checked
from lipverify.frontends.onnx.call import Named
from lipverify.frontends.onnx.inputs import Constant, Layout, cut, fix_inputs, input_layout
from lipverify.frontends.onnx.lowering import OnnxBuilder
from lipverify.frontends.onnx.reading import chosen, joined, reading_of
from lipverify.frontends.onnx.references import Original, reason
from lipverify.frontends.onnx.registry import STANDARD_DOMAINS, lower
from lipverify.frontends.onnx.translators.classical import without_maps
from lipverify.frontends.onnx.versions import OPSETS
from lipverify.frontends.onnx.walk import Walk
from lipverify.ir.graph import Graph, Origin
from lipverify.ir.op import Shape
from lipverify.loading import read_onnx
from lipverify.loading.names import display
from lipverify.loading.onnx_structure import all_nodes, prune
from lipverify.loading.onnx_weights import Held, completed

del _translators

_MEMORY = "the model in memory"
_BATCH = 3


def extract_onnx(
    source: str | Path | onnx.ModelProto,
    *,
    input_shape: Sequence[int] | None = None,
    output: int | str | None = None,
    input: str | None = None,
    constants: Mapping[str, Constant] | None = None,
    steps: int | None = None,
    state: str = "given",
    check: bool = True,
) -> Graph:
    """The layer graph of an ONNX model, for a batch of one sample.

    Only what the output depends on is looked at: other inputs, nodes and tensors of the file may be anything.

    Args:
        source: a path, read under the loader's policy, or a model in memory without external data.
        input_shape: sizes of one sample, where the file leaves them open.
        output: which output alone to import, by position or by name; all of them without it.
        input: the name of the input that varies, where the output depends on several, or of a tensor inside: then the graph
            begins there.
        constants: numbers or tensors that the other inputs are fixed at, by name.
        steps: the length of its sequence, where the file leaves that open.
        state: what the other real inputs are, those without a constant: `given` (none may be left), `zero` (fixed at 0), or
            `free` (they vary too, all inputs as one vector).
        check: compare the graph with the model on random inputs; the largest difference is stored in
            `graph.origin.import_check`.

    Raises:
        InvalidFile: a damaged or contradictory model. UsageError: an input, input shape or output the model does not have.
        UnsupportedModel: several inputs, integer inputs, open sizes, an operator without a translation, samples of a batch
            that influence each other. ExtractionMismatch: the graph computes something else than the model.
        UnsafeInput: external data outside the model's folder.
    """
    lower.load_entry_points()
    model, origin, declared, held = _read(source, output)
    stored = {tensor.name for tensor in model.graph.initializer}
    declared, begun = cut(model, declared, input)
    choice = chosen(model.graph, input, constants or {}, state)
    fixed, notes = fix_inputs(model, declared, choice.input, choice.constants)
    parts: tuple[tuple[str, Shape], ...] = ()
    if choice.free:
        if input_shape is not None:
            raise UsageError("--input-shape is that of one input; of several that vary together give --steps")
        input, parts, words = joined(model, choice.free, steps)
        fixed = [*fixed, *words]
    else:
        input = choice.input
    fixed = [*begun, *fixed, *([] if steps is None else [f"{steps} steps"])]
    # Inputs may have a stored default: what is fixed, or varies, is no longer that.
    ours = {input, choice.input, *choice.constants, *choice.free}
    held = {name: array for name, array in held.items() if name not in ours}
    origin = replace(origin, notes=(*origin.notes, *notes, *fixed), part=", ".join(fixed) or None)
    remarks = without_maps(model)
    if model.functions or not _covered(model):
        # The tools of onnx that write a model anew know messages alone.
        model, held = completed(model, held), {}
    original = model
    model, conversions = _current(model)
    converted = None if model is original else model
    model = _inlined(model)
    names = [value.name for value in model.graph.output]
    prune(model, names)
    _refuse_foreign(model.graph)
    layout = input_layout(model.graph, input_shape, input, None if parts else steps)
    if not begun:
        given = [tensor for tensor in original.graph.initializer if tensor.name in choice.constants]
        arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in given}
        read = reading_of(declared, parts or ((layout.name, layout.source_shape),), arrays, stored, steps)
        origin = replace(origin, reading=read)
    versions = _versions(model)
    origin = replace(origin, notes=(*origin.notes, *conversions, *remarks))
    refused: UnsupportedModel | None = None
    try:
        found = _lowered(model, layout, names, versions, origin, held)
    except UnsupportedModel as error:
        if not layout.symbolic:
            raise UnsupportedModel(f"{error}{_about_batches(layout)}") from None
        # The function of a single sample may be there although the file mixes the samples of a larger batch.
        found = _lowered(model, replace(layout, symbolic=False), names, versions, origin, held)
        refused = error
    if not check:
        if refused is not None:
            raise refused
        return found.graph
    return checked(Original(original, held), found, layout, names, refused, converted)


def _about_batches(layout: Layout) -> str:
    """What a refusal may come from where the file fixes a batch of several samples."""
    if layout.batch is not None or len(layout.source_shape) < 2:
        return ""
    return (
        f" (the first axis of the input is fixed at {layout.source_shape[0]}, so all of it counts as one sample: if it is the "
        "batch, export with a batch of one or of open size)"
    )


def _read(
    source: str | Path | onnx.ModelProto, output: int | str | None
) -> tuple[Any, Origin, list[Any], Held]:
    """The model as far as the output needs it, where it comes from, the inputs of the whole file, and large tensors beside it."""
    if isinstance(source, onnx.ModelProto):
        return *_policed(source, output), {}
    file = read_onnx(Path(source), output, prune_to_output=True, hold=True)
    notes = tuple(f"external data {display(name)} (sha256 {digest})" for name, digest in file.external_files)
    origin = Origin(
        "onnx", file.path, file.sha256, notes=notes, outputs=file.outputs, beside=file.external_files
    )
    return file.model, origin, list(file.inputs), file.held


def _policed(model: onnx.ModelProto, output: int | str | None) -> tuple[Any, Origin, list[Any]]:
    """A copy of a model in memory, held to the rules for files."""
    from lipverify.loading.onnx_file import checked as held_to_policy
    from lipverify.loading.onnx_scan import scan
    from lipverify.loading.onnx_tensors import ExternalData, tensors

    try:
        data = model.SerializeToString()
    except ValueError as error:
        raise InvalidFile(f"{_MEMORY} cannot be serialised ({reason(error)})") from None
    scan(data, Path(_MEMORY))
    copy = onnx.ModelProto.FromString(data)
    copy.ClearField("training_info")
    named = [pair for scope in (copy.graph, *copy.functions) for pair in tensors(scope)]
    if any(tensor.data_location == onnx.TensorProto.EXTERNAL for _, tensor in named):
        raise UsageError(f"{_MEMORY} has external data; load it with its data, or give the path of the file")
    outputs = tuple(value.name for value in copy.graph.output)
    inputs, _ = held_to_policy(copy, Path(_MEMORY), ExternalData(Path(_MEMORY)), output, prune_to_output=True)
    return copy, Origin(format="onnx", outputs=outputs), inputs


def _current(model: Any) -> tuple[Any, tuple[str, ...]]:
    """A model of operator sets that are covered: older ones go through the converter of onnx."""
    if _covered(model):
        return model, ()
    import onnx.version_converter

    oldest = min(_standard(model))

    try:
        newer = onnx.version_converter.convert_version(model, OPSETS.start)
    except Exception as error:
        raise UnsupportedModel(
            f"the model uses version {oldest} of the ONNX operators, which onnx cannot convert ({reason(error)}); export "
            f"with opset_version {OPSETS.start} or later"
        ) from None
    return newer, (
        f"converted from version {oldest} of the ONNX operators to {OPSETS.start} by onnx {onnx.__version__}",
    )


def _standard(model: Any) -> list[int]:
    return [entry.version for entry in model.opset_import if entry.domain in STANDARD_DOMAINS]


def _covered(model: Any) -> bool:
    return min(_standard(model), default=OPSETS.start) >= OPSETS.start


def _inlined(model: Any) -> Any:
    """The model with calls of its own functions replaced by their bodies."""
    if not model.functions:
        return model
    import onnx.inliner

    try:
        flat = onnx.inliner.inline_local_functions(model)
    except Exception as error:
        raise UnsupportedModel(
            f"the model's own functions cannot be expanded ({reason(error)}); export a flat graph"
        ) from None
    return flat


def _refuse_foreign(graph: Any) -> None:
    """Refuses operators of other domains that nobody translates, before anything else is asked of the model."""
    for node in graph.node:
        if node.domain not in STANDARD_DOMAINS and lower.find(node.domain, node.op_type) is None:
            name = f"{display(node.domain, 40)}::{display(node.op_type, 40)}"
            where = node.name or next((name for name in node.output if name), "")
            # onnxruntime's quantiser writes these in one of its two formats; the other one is standard ONNX and read here.
            quantised = node.domain == "com.microsoft" and node.op_type.startswith("QLinear")
            way = (
                "quantise in onnxruntime's format QDQ"
                if quantised
                else "export with standard ONNX operators alone"
            )
            raise UnsupportedModel(
                f'{name} "{display(where)}": operators of this domain are not covered; {way}, or teach it to lipverify with '
                f"@lower.register({name!r})"
            )


def _versions(model: Any) -> dict[str, int]:
    """Operator set versions by domain; both spellings of the standard domain are one.

    Raises:
        UnsupportedModel: a version of the standard operators outside `OPSETS`.
    """
    found: dict[str, int] = {}
    for entry in model.opset_import:
        domain = "" if entry.domain in STANDARD_DOMAINS else entry.domain
        if found.setdefault(domain, entry.version) != entry.version:
            raise InvalidFile(
                f'the model imports operator set "{display(domain, 40)}" in two versions; export it again'
            )
    version = found.get("")
    if version is None and not any(node.domain in STANDARD_DOMAINS for node in all_nodes(model.graph)):
        # Where no node is of the standard domain, no version of it matters.
        version = found[""] = min(OPSETS.stop - 1, onnx.defs.onnx_opset_version())
    if version is None:
        raise InvalidFile(
            "the model does not say which version of the ONNX operators it uses; export it again"
        )
    if version not in OPSETS:
        raise UnsupportedModel(
            f"the model uses version {version} of the ONNX operators; versions {OPSETS.start} to {OPSETS.stop - 1} are "
            "covered: export with such an opset_version"
        )
    if version > onnx.defs.onnx_opset_version():
        raise UnsupportedModel(
            f"the model uses version {version} of the ONNX operators; the installed onnx {onnx.__version__} knows "
            f"{onnx.defs.onnx_opset_version()}: install a newer one"
        )
    return found


def _lowered(
    model: Any, layout: Layout, names: list[str], versions: dict[str, int], origin: Origin, held: Held
) -> Import:
    build = OnnxBuilder(layout.dtype, symbolic_batch=layout.symbolic)
    walk = Walk(build, versions)
    entry: dict[str, Named | None] = {
        layout.name: build.input(layout.source_shape, layout.batch, layout.name)
    }
    scope = walk.run(model.graph, entry, names, held)
    values: list[Value | Tensor] = []
    for name in names:
        build.where, build.what = name, "output"
        result = scope[name]
        if isinstance(result, Masked) or result is None:
            raise build.refuse(
                "this output holds -infinity" if result is not None else "this output is not covered"
            )
        values.append(result if isinstance(result, Value) else build.tensor(result))
    batches = tuple(value.batch if isinstance(value, Value) else None for value in values)
    notes = [*origin.notes, *layout.notes]
    if walk.folder.computed:
        places = ", ".join(display(name, 40) for name in walk.folder.computed[:3])
        more = ", ..." if len(walk.folder.computed) > 3 else ""
        notes.append(
            f"operations on stored numbers alone ({places}{more}) were carried out in the file's own types, as its readers "
            "do: what they give is what is certified"
        )
    known = {name: value for name, value in scope.items() if isinstance(value, Value)}
    return Import(build.graph(values, replace(origin, notes=tuple(notes))), batches, known)
