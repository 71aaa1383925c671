"""The check that ends every import: the graph computes what its source computes, on random inputs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lipverify.errors import ExtractionMismatch, UnsupportedModel
from lipverify.interpreter import evaluate, evaluate_all
from lipverify.ir.graph import Graph, ImportCheck
from lipverify.ir.interval import Interval
from lipverify.ir.op import Input
from lipverify.loading.names import display
from lipverify.ops import Quantize
from lipverify.rules import interval

SCALES = (0.1, 1.0, 10.0)
"""Standard deviations of the random inputs, which have both signs; each size also occurs with positive entries alone."""

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}
"""Largest difference allowed, as a part of the largest output over the inputs of one size and sign. Both sides round in the
same type, in another order; a wrong rule or wiring differs by parts of order 1."""

_BUDGET = 1 << 28
"""Numbers computed in all samples of the check together."""

_AT_ONCE = 1 << 26
"""Numbers of all nodes kept in memory together."""

Reference = Callable[[NDArray[Any]], Sequence[NDArray[Any]]]
"""The source: a batch [batch, *input shape] to its outputs, each [batch, *output shape]."""


@dataclass(frozen=True)
class Difference:
    """The largest difference found in one output, and the largest output beside it."""

    output: str
    gap: float
    largest: float
    allowed: float
    finite: bool
    """Whether some number could be compared, or there is none."""

    @property
    def agrees(self) -> bool:
        """Whether rounding explains it."""
        return self.gap <= self.allowed


def check_import(
    graph: Graph, reference: Reference, *, name: str, dtype: torch.dtype, samples: int = 4, seed: int = 0
) -> ImportCheck:
    """Compares all outputs of a graph with its source on random inputs of several sizes and signs.

    dtype: the type the source computes in; the graph is evaluated in it too (16-bit types in float32). The difference is the
    largest absolute one, relative to the largest output over the inputs of the same size and sign. `samples` of each are
    taken, fewer where the graph is large.

    Raises:
        ExtractionMismatch: they differ by more than `TOLERANCE`, in shape, or in where they are finite.
    """
    worst = largest = 0.0
    count = 0
    finite: set[str] = set()
    own = graph.to(dtype=evaluated_in(dtype))
    for x in inputs(graph, samples, seed):
        for found in differences(own, reference, x, dtype):
            if not found.agrees:
                raise ExtractionMismatch(_mismatch(found, name))
            worst, largest = max(worst, found.gap), max(largest, found.largest)
            finite |= {found.output} if found.finite else set()
        count += len(x)
    for output in graph.outputs:
        if output not in finite:
            raise ExtractionMismatch(
                f'output "{display(output)}" of {name} has no finite number on random inputs, so it cannot be checked'
            )
    return ImportCheck(count, worst, largest, name)


def evaluated_in(dtype: torch.dtype) -> torch.dtype:
    """The type a graph is evaluated in beside a source of this type: the same, but float32 for 16-bit types."""
    return torch.float64 if dtype is torch.float64 else torch.float32


def inputs(graph: Graph, samples: int, seed: int) -> Iterator[Tensor]:
    """Batches [samples, *input shape] in float64, one for each size and sign; fewer samples where the graph is large."""
    numbers = max(1, sum(node.size for node in graph.nodes))
    groups = 2 * len(SCALES)
    count = max(1, min(samples, _BUDGET // (groups * numbers)))
    generator = torch.Generator().manual_seed(seed)
    for scale in SCALES:
        for positive in (False, True):
            x = scale * torch.randn((count, *graph.input_shape), generator=generator, dtype=torch.float64)
            yield x.abs() if positive else x


def differences(graph: Graph, reference: Reference, x: Tensor, dtype: torch.dtype) -> Iterator[Difference]:
    """How far a graph and its source, which computes in `dtype`, differ on one batch, output by output.

    The graph's parameters are of the type `evaluated_in(dtype)`.

    Raises:
        ExtractionMismatch: shapes differ, or where the outputs are finite.
    """
    rounded = x.to(dtype)
    values = _outputs(graph, rounded.to(evaluated_in(dtype)))
    source = reference(as_numpy(rounded))
    for output, wanted in zip(graph.outputs, source, strict=True):
        value = values[output]
        left = value.expand(len(x), *value.shape[1:]).double().numpy()
        right = np.asarray(wanted, np.float64)
        if left.shape != right.shape:
            raise ExtractionMismatch(
                f'output "{display(output)}" has shape {list(right.shape[1:])} in the source, {list(left.shape[1:])} in the graph'
            )
        if graph.has(Quantize):
            left = _either_way(graph.select(graph.outputs.index(output)), rounded, left, right)
        yield compare(output, left, right, TOLERANCE[dtype])


def _either_way(
    graph: Graph, x: Tensor, left: NDArray[np.float64], right: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Of what the graph may give where a value next to a tie is rounded either way, the numbers nearest to those of the source.

    Where no value is next to a tie the range is that of float64 rounding, and nothing changes.
    """
    exact = graph.to(dtype=torch.float64)
    boxes: dict[str, Interval] = {}
    for node in exact.nodes:
        inputs = (boxes[name] for name in node.inputs)
        point = Interval(x.double(), x.double())
        try:
            boxes[node.name] = point if isinstance(node.op, Input) else interval(node.op, *inputs)
        except UnsupportedModel:
            return left
    ends = (getattr(boxes[graph.output.name], side).expand(left.shape).numpy() for side in ("lower", "upper"))
    low, high = np.minimum(next(ends), left), np.maximum(next(ends), left)
    found: NDArray[np.float64] = np.where(
        np.isfinite(left) & np.isfinite(right), np.clip(right, low, high), left
    )
    return found


def _outputs(graph: Graph, x: Tensor) -> dict[str, Tensor]:
    """The outputs of a graph for a batch; one after the other where all nodes together would take much memory."""
    if len(x) * sum(node.size for node in graph.nodes) <= _AT_ONCE:
        return evaluate_all(graph, x)
    return {name: evaluate(graph.select(i), x) for i, name in enumerate(graph.outputs)}


def compare(
    output: str, left: NDArray[np.float64], right: NDArray[np.float64], tolerance: float
) -> Difference:
    """Two computations of the same tensor. Where one is infinite or undefined, the other has to be as well."""
    both = np.isfinite(left) & np.isfinite(right)
    largest = float(np.abs(right[both]).max(initial=0.0))
    gap = float(np.abs(left[both] - right[both]).max(initial=0.0))
    if bool((np.isfinite(left) != np.isfinite(right)).any()):
        gap = math.inf
    return Difference(output, gap, largest, tolerance * largest, bool(both.any()) or right.size == 0)


def _mismatch(found: Difference, name: str) -> str:
    return (
        f'output "{display(found.output)}" differs from {name} by {found.gap:.3g} (largest output {found.largest:.3g}); '
        "the imported graph is wrong or the model is unstable in its own type: please report it with the model"
    )


def as_numpy(x: Tensor) -> NDArray[Any]:
    """The same numbers in numpy, bfloat16 included."""
    if x.dtype is torch.bfloat16:
        import ml_dtypes

        found: NDArray[Any] = x.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
        return found
    array: NDArray[Any] = x.numpy()
    return array
