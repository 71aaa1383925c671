"""The check of an imported graph against a reader of the ONNX model, one sample at a time and several at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor

from lipverify.errors import ExtractionMismatch, InvalidFile, UnsupportedModel
from lipverify.frontends.builder import Value
from lipverify.frontends.checking import TOLERANCE, as_numpy, check_import, compare, evaluated_in, inputs
from lipverify.frontends.onnx.inputs import Layout
from lipverify.frontends.onnx.lowering import Stored
from lipverify.frontends.onnx.references import Original, Runner, advice, reason, runners
from lipverify.interpreter import evaluate_all
from lipverify.ir.graph import Graph
from lipverify.ir.op import Shape
from lipverify.loading.names import display

_BATCH = 3
_LOCATED = 1 << 25
"""Up to so many numbers in a graph, the first node that differs is looked for."""


@dataclass(frozen=True)
class Import:
    """A graph before its check.

    batches: where the outputs have the batch axis in the source's tensors; values: what the source's tensors became, in order.
    """

    graph: Graph
    batches: tuple[int | None, ...]
    values: dict[str, Value]


def checked(
    original: Original,
    found: Import,
    layout: Layout,
    names: list[str],
    refused: UnsupportedModel | None,
    converted: Any | None = None,
) -> Graph:
    """The graph with its import check, made by the first reader that runs the model.

    refused: why the graph was not lowered for batches of any size, where the file leaves the size open. converted: the model in
    newer operators, for readers that do not know its own.

    Raises:
        InvalidFile: neither onnxruntime nor onnx.checker takes the model.
        ExtractionMismatch: the graph computes something else, or no reader runs the model.
        UnsupportedModel: the samples of a batch influence each other.
    """
    failures: list[str] = []
    model = original.model
    positions = [[value.name for value in model.graph.output].index(name) for name in names]
    for source, reader, start in _readers(original, converted, layout.name):
        try:
            run = start()
            run(as_numpy(_batch(torch.zeros((1, *layout.sample_shape), dtype=layout.dtype), layout)))
        except Exception as error:
            failures.append(f"{reader}: {reason(error)}")
            _require_valid(source, failures[-1])
            continue
        reference = _one_by_one(run, found, layout, positions)
        try:
            done = check_import(found.graph, reference, name=reader, dtype=layout.dtype)
        except ExtractionMismatch as error:
            raise ExtractionMismatch(
                f"{error}{_first_difference(source, found, layout, reader)}{advice(reader)}"
            ) from None
        notes = [*(f"not run by {failure}" for failure in failures), *_declared(model, found)]
        if layout.symbolic:
            notes += _batch_notes(run, reference, found, layout, positions, refused)
        origin = found.graph.origin
        return replace(found.graph, origin=replace(origin, import_check=done, notes=(*origin.notes, *notes)))
    tried = "; ".join(failures) + advice(failures[-1])
    raise ExtractionMismatch(
        f"no reader runs the model, so the import cannot be checked ({tried}); export it again"
    )


def _readers(
    model: Original, converted: Any | None, feed: str
) -> Iterator[tuple[Original, str, Callable[[], Runner]]]:
    """Models and what may run them, best first. The evaluator of onnx misreads operator sets that need conversion."""
    for reader, start in runners(model, feed):
        if converted is None or reader.startswith("onnxruntime"):
            yield model, reader, start
    if converted is not None:
        newer = Original(converted)
        for reader, start in runners(newer, feed):
            yield newer, f"{reader} (converted)", start


def _require_valid(model: Original, failure: str) -> None:
    """What one reader does not run is only read by the evaluator of onnx if it is a valid model at all.

    Raises:
        InvalidFile: onnx.checker does not take it either.
    """
    complete = onnx.ModelProto()
    complete.CopyFrom(model.whole())
    for value in (*complete.graph.input, *complete.graph.output):
        if value.type.HasField("tensor_type"):
            value.type.tensor_type.shape.SetInParent()  # which nothing depends on
    try:
        onnx.checker.check_model(complete)
    except Exception as error:
        raise InvalidFile(
            f"the model is taken neither by {failure} nor by onnx.checker ({reason(error)}); export it again"
        ) from None


def _declared(model: Any, found: Import) -> Iterator[str]:
    """Outputs whose shape is not the one that the file declares."""
    declared = {value.name: value.type.tensor_type for value in model.graph.output}
    for name, batch, output in zip(
        (value.name for value in model.graph.output), found.batches, found.graph.outputs, strict=True
    ):
        if not declared[name].HasField("shape"):
            continue
        says = [d.dim_value if d.dim_value > 0 else None for d in declared[name].shape.dim]
        shape = list(found.graph[output].shape)
        if batch is not None:
            shape.insert(batch, 1)
        if len(says) != len(shape) or any(
            a is not None and a != n for a, n in zip(says, shape, strict=False)
        ):
            listed = [size or "?" for size in says]
            yield f'output "{display(name, 40)}" is declared as {listed}; the model computes {shape}'


def _batch(x: Tensor, layout: Layout) -> Tensor:
    """Samples in the axes of the source: as they are, or the only one without its batch axis."""
    return x if layout.batch is not None else x[0]


def _one_by_one(
    run: Runner, found: Import, layout: Layout, positions: list[int]
) -> Callable[[Stored], list[Stored]]:
    """The model as a function of a batch, one sample after the other, in the axes of the graph."""

    def reference(x: Stored) -> list[Stored]:
        rows = [run(x[i : i + 1] if layout.batch is not None else np.asarray(x[i])) for i in range(len(x))]
        return [
            np.stack([_sample(row[p], batch, found.graph[output].shape) for row in rows])
            for p, batch, output in zip(positions, found.batches, found.graph.outputs, strict=True)
        ]

    return reference


def _sample(result: Stored, batch: int | None, shape: Shape) -> Stored:
    """One sample, of this shape, of a result for a batch of one."""
    result = np.asarray(result)
    # Squeeze without axes drops the batch axis too where there is one sample alone.
    if batch is None or result.shape == shape:
        return result
    if result.ndim <= batch or result.shape[batch] != 1:
        raise ExtractionMismatch(f"an output has shape {list(result.shape)} for a batch of one")
    return np.squeeze(result, batch)


def _batch_notes(
    run: Runner,
    reference: Callable[[Stored], list[Stored]],
    found: Import,
    layout: Layout,
    positions: list[int],
    refused: UnsupportedModel | None,
) -> tuple[str, ...]:
    """What the model does with several samples at once.

    Raises:
        UnsupportedModel: a sample's result depends on the other samples, or on how many there are.
    """
    generator = torch.Generator().manual_seed(1)
    x = as_numpy(torch.randn((_BATCH, *layout.sample_shape), generator=generator).to(layout.dtype))
    try:
        together = run(x)
    except Exception as error:
        remark = "the file takes batches of one sample only, although it leaves the batch size open"
        return (f"{remark} ({reason(error)})",)
    for single, position, batch in zip(reference(x), positions, found.batches, strict=True):
        same = _rows(np.asarray(together[position]), single, batch)
        if same is None or not _agree(same, single, TOLERANCE[layout.dtype]):
            raise refused or UnsupportedModel(
                "a sample's result depends on the other samples of its batch, or on how many there are; export in evaluation "
                "mode, or with a fixed batch of one"
            )
    if refused is None:
        return ()
    remark = f"on random batches of {_BATCH} the samples did not influence each other"
    return (f"holds for a batch of one sample ({refused}); {remark}",)


def _rows(joint: Stored, single: Stored, batch: int | None) -> Stored | None:
    """A result for several samples as one row for each, if it has such a form."""
    if batch is not None and joint.ndim == single.ndim and joint.shape[batch] == len(single):
        rows = np.moveaxis(joint, batch, 0)
        return rows if rows.shape == single.shape else None
    if joint.shape == single.shape[1:]:  # it does not depend on the input at all
        return np.broadcast_to(joint, single.shape)
    # The samples may stand one after the other along the first axis.
    return joint.reshape(single.shape) if joint.size == single.size else None


def _agree(left: Stored, right: Stored, tolerance: float) -> bool:
    return compare("", left.astype(np.float64), right.astype(np.float64), tolerance).agrees


def _first_difference(source: Original, found: Import, layout: Layout, reader: str) -> str:
    """Which tensor of the source is the first that differs, as the end of a sentence; empty if that cannot be told."""
    if sum(node.size for node in found.graph.nodes) > _LOCATED:
        return ""
    kept = {node.name for node in found.graph.nodes}
    values = {name: v for name, v in found.values.items() if v.name in kept and name != layout.name}
    probe = onnx.ModelProto()
    probe.CopyFrom(source.model)
    del probe.graph.output[:]
    probe.graph.output.extend(onnx.ValueInfoProto(name=name) for name in values)
    start = dict(runners(Original(probe, source.held), layout.name))[reader.removesuffix(" (converted)")]
    own = evaluated_in(layout.dtype)
    graph = found.graph.to(dtype=own)
    try:
        run = start()
        for batch in islice(inputs(found.graph, 1, 0), 4):
            x = batch[:1].to(layout.dtype)
            mine, theirs = evaluate_all(graph, x.to(own)), run(as_numpy(_batch(x, layout)))
            for (name, v), wanted in zip(values.items(), theirs, strict=True):
                if not _agree(
                    mine[v.name][0].numpy(), _sample(wanted, v.batch, v.shape), TOLERANCE[layout.dtype]
                ):
                    return f'; the first tensor that differs is "{display(name, 60)}"'
    except Exception:  # a reader's own; the difference itself is reported in any case
        return ""
    return ""
