"""What the graph takes: which input, which of its axes is the batch, which sizes."""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import numpy_helper

from lipverify.errors import UnsupportedModel, UsageError
from lipverify.ir.op import Shape
from lipverify.loading.names import display
from lipverify.loading.onnx_structure import prune

FLOATS: dict[int, torch.dtype] = {1: torch.float32, 10: torch.float16, 11: torch.float64, 16: torch.bfloat16}
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


def input_layout(
    graph: Any, input_shape: Sequence[int] | None, name: str | None = None, steps: int | None = None
) -> Layout:
    """The layout of the one input of a graph that is not stored. input_shape: sizes of one sample given by the user, batch axis
    left out; name: of the input, where the user says which; steps: of its sequence, where that is open.

    The first axis is the batch axis where it is open or 1 and there are others; any other first axis belongs to the sample.

    Raises:
        UnsupportedModel: several inputs, an input that is no floating-point tensor, or open sizes.
        UsageError: the user's shape contradicts the file.
    """
    value = _only_input(graph, name)
    tensor = value.type.tensor_type
    shown = f'input "{display(value.name)}"'
    if tensor.elem_type not in FLOATS:
        raise UnsupportedModel(
            f"{shown} is of ONNX element type {tensor.elem_type}, not floating point; a Lipschitz constant needs a real "
            f"input: for token models, take the tensor behind the embedding as the input, --input {_embedded(graph, value.name)} "
            "(Python: input=)"
        )
    from lipverify.frontends.onnx.reading import sizes_of

    declared = declared_sizes(value)
    timed = sizes_of(graph, value.name, input_shape, steps)
    sizes = filled(declared, input_shape, shown) if timed is None else timed.shape
    if math.prod(sizes) > _MAX_INPUT:
        raise UnsupportedModel(f"{shown} has {math.prod(sizes)} numbers; give a smaller --input-shape")
    opened = declared is None or (len(declared) > 0 and declared[0] is None)
    batched = len(sizes) >= 2 and sizes[0] == 1 and (timed is None or timed.time != 0)
    notes = []
    if not batched:
        notes.append(f"{shown} {list(sizes)} has no batch axis: the whole tensor is one sample")
    return Layout(
        value.name, FLOATS[tensor.elem_type], sizes, 0 if batched else None, opened and batched, tuple(notes)
    )


def _embedded(graph: Any, name: str) -> str:
    """The tensors of rows that an input chooses, in words for a command; NAME where it chooses none."""
    same, found = {name}, []
    for node in graph.node:
        if node.op_type in ("Cast", "Identity", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Transpose"):
            same |= set(node.output) if same & set(node.input[:1]) else set()
        elif node.op_type == "Gather" and same & set(node.input[1:]):
            found.append(display(node.output[0], 60))
    return " or ".join(found[:3]) or "NAME"


def _rows_of(node: Any, graph: Any) -> tuple[int, list[int | None]] | None:
    """The type and sizes of the rows that a node reads from a stored table; None of other nodes, and of open tables."""
    if node.op_type != "Gather" or any(a.name == "axis" and a.i != 0 for a in node.attribute):
        return None
    tables = [tensor for tensor in graph.initializer if tensor.name == node.input[0] and len(tensor.dims)]
    chosen = [
        sizes for v in graph.input if v.name == node.input[1] and (sizes := declared_sizes(v)) is not None
    ]
    return (tables[0].data_type, [*chosen[0], *tables[0].dims[1:]]) if tables and chosen else None


def declared_sizes(value: Any) -> list[int | None] | None:
    """The sizes that a file declares, None for open ones; None where it declares no shape."""
    tensor = value.type.tensor_type
    return (
        [d.dim_value if d.dim_value > 0 else None for d in tensor.shape.dim]
        if tensor.HasField("shape")
        else None
    )


def _only_input(graph: Any, name: str | None) -> Any:
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
            "the output depends on no input, so it is a constant; choose another output, or export the model with its input"
        )
    listed = ", ".join(f'"{display(value.name, 30)}"' for value in free[:6]) + (
        ", ..." if len(free) > 6 else ""
    )
    if name is not None:
        listed = ", ".join(f'"{display(value.name, 30)}"' for value in free if value.name != name)
        raise UnsupportedModel(
            f"the output also depends on {listed}; fix them, for example --constant NAME=0 (Python: constants={{name: 0}}), or "
            "let all vary together, --state free"
        )
    raise UnsupportedModel(
        f"the output depends on {len(free)} inputs ({listed}); choose one with --input NAME and fix the others with "
        "--constant NAME=VALUE (Python: input=, constants=), or let all vary together, --state free"
    )


Constant = float | Sequence[float] | NDArray[Any]
"""What an input may be fixed at: one number for all entries, or a tensor."""


def cut(model: Any, declared: list[Any], name: str | None) -> tuple[list[Any], list[str]]:
    """Makes a computed tensor of this name the input, in place: what computes it is dropped. The inputs then, and this in words.

    Its type and sizes are those that the file notes, or of the rows of a stored table; else it is float32 of sizes that the user
    gives.
    """
    graph = model.graph
    if name is None or name in {value.name for value in declared}:
        return declared, []
    writers = [(node, k) for node in graph.node for k, output in enumerate(node.output) if output == name]
    if not writers or name in {value.name for value in graph.output}:
        return declared, []
    ((node, position),) = writers
    kind, sizes = _rows_of(node, graph) or (onnx.TensorProto.FLOAT, None)
    every = {output for other in graph.node for output in other.output}
    node.output[position] = next(
        free for k in itertools.count() if (free := f"{name}/computed{k or ''}") not in every
    )
    noted = [value for value in graph.value_info if value.name == name]
    value = noted[0] if noted else onnx.helper.make_tensor_value_info(name, kind, sizes)
    graph.input.append(value)
    prune(model, [output.name for output in graph.output])
    return [*declared, value], [f'tensor "{display(name, 40)}" as its input']


def fix_inputs(
    model: Any, declared: Sequence[Any], name: str | None, constants: Mapping[str, Constant]
) -> tuple[list[str], list[str]]:
    """Turns all inputs but one into stored tensors, in place; in words, what was fixed, and notes.

    declared: the inputs of the whole file; those that the output does not need are gone from the model. name: the input that
    stays, where the user says which; an initialiser of that name is only its default and is dropped.

    Raises:
        UsageError: there is no such input, or a value does not fit it.
    """
    graph = model.graph
    every = {value.name: value for value in declared}
    for wanted in (*([] if name is None else [name]), *constants):
        if wanted not in every:
            listed = ", ".join(f'"{display(known, 30)}"' for known in list(every)[:6])
            raise UsageError(f'there is no input "{display(wanted)}"; the model has {listed or "none"}')
    if name in constants:
        raise UsageError(f'input "{display(str(name))}" cannot be both the input and a constant')
    left = {value.name for value in graph.input}
    if name is not None and name not in left:
        raise UsageError(f'the output does not depend on input "{display(name)}", so its constant is 0')
    default = {tensor.name for tensor in graph.initializer} & left
    fixed, notes = [], []
    for wanted, value in constants.items():
        if wanted not in left:
            notes.append(f'the output does not depend on input "{display(wanted)}"')
            continue
        tensor, words = _stored(every[wanted], value)
        _drop(graph.initializer, wanted)
        graph.initializer.append(tensor)
        fixed.append(f'input "{display(wanted, 40)}" fixed at {words}')
    if name is not None and name in default:
        _drop(graph.initializer, name)
    stored = {tensor.name for tensor in graph.initializer}
    if model.ir_version >= 4:
        others = sorted((default & stored) - set(constants) - {name})
        notes += [f'input "{display(other, 40)}" has its stored default' for other in others]
        kept = [value for value in graph.input if value.name not in stored]
        del graph.input[:]
        graph.input.extend(kept)
    return fixed, notes


def _drop(tensors: Any, name: str) -> None:
    for position in reversed([i for i, tensor in enumerate(tensors) if tensor.name == name]):
        del tensors[position]


def _stored(value: Any, given: Constant) -> tuple[Any, str]:
    """The tensor that an input is fixed at, and the same in words."""
    shown = f'input "{display(value.name)}"'
    if not value.type.HasField("tensor_type"):
        raise UsageError(f"{shown} is no tensor and cannot be fixed")
    tensor = value.type.tensor_type
    kind = _dtype(tensor.elem_type, shown)
    sizes = [d.dim_value if d.dim_value > 0 else None for d in tensor.shape.dim]
    known = tensor.HasField("shape")
    array = np.asarray(given)
    if array.dtype.kind not in "biuf":
        raise UsageError(f"{shown} is fixed at real numbers, not at {array.dtype}")
    if not bool(np.isfinite(array.astype(np.float64)).all()):
        raise UsageError(f"{shown} is fixed at finite numbers only")
    single = tuple(size or 1 for size in sizes)  # open sizes are those of a single sample
    if known and (array.ndim == 0 or (array.ndim < len(sizes) and array.size == math.prod(single))):
        shape = single
    else:
        shape = array.shape
        fits = not known or (
            len(shape) == len(sizes) and all(s in (None, n) for s, n in zip(sizes, shape, strict=True))
        )
        if not fits:
            raise UsageError(f"{shown} has shape {[size or '?' for size in sizes]}, not {list(shape)}")
    if math.prod(shape) > _MAX_INPUT:
        raise UsageError(f"{shown} has {math.prod(shape)} numbers, which is too many to fix")
    if array.ndim == 0:
        array = np.full(shape, array)
    found = np.ascontiguousarray(array).astype(kind).reshape(shape)
    if kind.kind in "biu" and bool((found != array.reshape(shape)).any()):
        raise UsageError(f"{shown} takes numbers of type {kind}")
    if found.size and bool((found == found.reshape(-1)[0]).all()):
        words = f"{found.reshape(-1)[0]!s}"
    else:
        digest = hashlib.sha256(found.astype(np.float64).tobytes()).hexdigest()
        words = f"a tensor {list(shape)} (sha256 {digest[:16]} in float64)"
        if found.size <= 4:
            words = "[" + ", ".join(str(n) for n in found.reshape(-1).tolist()) + "]"
    return numpy_helper.from_array(found, value.name), words


def _dtype(code: int, shown: str) -> np.dtype[Any]:
    kinds = {
        1: np.float32, 2: np.uint8, 3: np.int8, 4: np.uint16, 5: np.int16, 6: np.int32, 7: np.int64, 9: np.bool_,
        10: np.float16, 11: np.float64, 12: np.uint32, 13: np.uint64,
    }  # fmt: skip
    if code not in kinds:
        raise UsageError(f"{shown} is of ONNX element type {code} and cannot be fixed")
    return np.dtype(kinds[code])


def filled(declared: list[int | None] | None, given: Sequence[int] | None, shown: str) -> Shape:
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
            "with --input-shape, or the length of its sequence with --steps"
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
