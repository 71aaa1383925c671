"""What the graph takes: which input, which of its axes is the batch, which sizes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from lipverify.errors import UnsupportedModel, UsageError
from lipverify.ir.op import Shape
from lipverify.loading.names import display

_FLOATS: dict[int, torch.dtype] = {1: torch.float32, 10: torch.float16, 11: torch.float64, 16: torch.bfloat16}
"""Floating-point codes of onnx.TensorProto.DataType."""
_MAX_INPUT = 1 << 27


@dataclass(frozen=True)
class Layout:
    """The one input. source_shape: of the file's tensor for a batch of one; batch: its batch axis; symbolic: any size."""

    name: str
    dtype: torch.dtype
    source_shape: Shape
    batch: int | None
    symbolic: bool
    notes: tuple[str, ...] = ()

    @property
    def sample_shape(self) -> Shape:
        """Without the batch axis."""
        return self.source_shape if self.batch is None else self.source_shape[1:]


def input_layout(graph: Any, input_shape: Sequence[int] | None) -> Layout:
    """The layout of the input of a graph. input_shape: sizes of one sample given by the user, batch axis left out.

    The first axis is the batch axis where it is open or 1 and there are others; any other first axis belongs to the sample.

    Raises:
        UnsupportedModel: several inputs, an input that is no floating-point tensor, or open sizes.
        UsageError: the user's shape contradicts the file.
    """
    value = _only_input(graph)
    tensor = value.type.tensor_type
    shown = f'input "{display(value.name)}"'
    if tensor.elem_type not in _FLOATS:
        raise UnsupportedModel(
            f"{shown} is of ONNX element type {tensor.elem_type}, not floating point; a Lipschitz constant needs a real "
            "input: for token models, export the part behind the embedding"
        )
    declared = None
    if tensor.HasField("shape"):
        declared = [d.dim_value if d.dim_value > 0 else None for d in tensor.shape.dim]
    sizes = _filled(declared, input_shape, shown)
    if math.prod(sizes) > _MAX_INPUT:
        raise UnsupportedModel(f"{shown} has {math.prod(sizes)} numbers; give a smaller --input-shape")
    opened = declared is None or (len(declared) > 0 and declared[0] is None)
    batched = len(sizes) >= 2 and sizes[0] == 1
    notes = []
    if not batched:
        notes.append(f"{shown} {list(sizes)} has no batch axis: the whole tensor is one sample")
    return Layout(
        value.name, _FLOATS[tensor.elem_type], sizes, 0 if batched else None, opened and batched, tuple(notes)
    )


def _only_input(graph: Any) -> Any:
    stored = {tensor.name for tensor in graph.initializer}
    free = [value for value in graph.input if value.name not in stored]
    if len(free) == 1:
        value = free[0]
        if not value.type.HasField("tensor_type"):
            raise UnsupportedModel(
                f'input "{display(value.name)}" is no tensor; export a model that takes one tensor'
            )
        return value
    if not free:
        raise UnsupportedModel(
            "the graph has no input, so it computes a constant; export the model with its input"
        )
    listed = ", ".join(f'"{display(value.name, 30)}"' for value in free[:6]) + (
        ", ..." if len(free) > 6 else ""
    )
    raise UnsupportedModel(
        f"the graph has {len(free)} inputs ({listed}); export one floating-point input, with the others (states, masks, "
        "rates) as constants"
    )


def _filled(declared: list[int | None] | None, given: Sequence[int] | None, shown: str) -> Shape:
    """The sizes for a batch of one: the file's, with the user's where the file leaves them open."""
    if given is not None and any(size < 1 for size in given):
        raise UsageError(f"the input shape {list(given)} has a size below 1")
    if declared is None:
        if given is None:
            raise UnsupportedModel(
                f"{shown} has no declared shape; give the sizes of one sample with --input-shape"
            )
        return (1, *given)
    if given is not None:
        return _matched(declared, given, shown)
    sizes = [1 if a == 0 and size is None and len(declared) > 1 else size for a, size in enumerate(declared)]
    if any(size is None for size in sizes):
        listed = [size or "?" for size in declared]
        raise UnsupportedModel(
            f"{shown} [{', '.join(map(str, listed))}] leaves sizes open; export fixed sizes, or give those of one sample "
            "with --input-shape"
        )
    return tuple(size for size in sizes if size is not None)


def _matched(declared: list[int | None], given: Sequence[int], shown: str) -> Shape:
    listed = [size or "?" for size in declared]
    if len(given) == len(declared):
        sizes = tuple(given)
    elif len(given) == len(declared) - 1 and declared[0] in (None, 1):
        sizes = (1, *given)
    else:
        raise UsageError(f"{shown} is {listed}; the input shape {list(given)} does not fit it")
    if any(size not in (None, new) for size, new in zip(declared, sizes, strict=True)):
        raise UsageError(f"{shown} is {listed}; the input shape {list(given)} does not fit it")
    return sizes
