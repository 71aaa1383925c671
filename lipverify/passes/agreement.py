"""The differential check behind every pass: the rewritten graph computes what the graph before it computed."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lipverify.errors import InternalError
from lipverify.interpreter import evaluate_all, evaluate_converted
from lipverify.ir.graph import Graph
from lipverify.passes.rewriting import graph_device

SCALES = (0.05, 1.0, 20.0)
"""Sizes of the random inputs: curved, usual and saturated parts of activations."""

TOLERANCE = 1e-10
"""Largest difference, as a part of the largest number met on the way to a node in the same sample. Both graphs compute the
same real function in float64; reordering a few operations changes it by some 1e-15 of the numbers they add, and the layers
between amplify that no more than they amplify the inputs' own rounding."""

_EVERY_NODE = 1 << 24
"""Up to so many numbers in all, every common node is compared; beyond, only the selected output, on one sample a size."""


def check_agreement(before: Graph, after: Graph, name: str, seed: int = 0) -> float:
    """The largest difference relative to the numbers met, over random inputs of several sizes.

    Raises:
        InternalError: the pass called `name` changed what some node computes.
    """
    every = compares_every_node(before)
    samples = 2 if every else 1
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn((len(SCALES), samples, *before.input_shape), generator=generator, dtype=torch.float64)
    x = x * torch.tensor(SCALES, dtype=torch.float64).reshape(-1, *(1,) * (x.ndim - 1))
    x = x.flatten(0, 1).to(graph_device(before))
    if not every:
        return _compare_outputs(before, after, x, name)
    graphs = [graph.to(dtype=torch.float64) for graph in (before, after)]
    values = [evaluate_all(graph, x) for graph in graphs]
    reach = _magnitudes(graphs[0], values[0])
    worst = 0.0
    for node in before.nodes:
        if node.name in values[1]:
            pair = values[0][node.name], values[1][node.name]
            worst = max(worst, _difference(*pair, reach[node.name], f"{name} changed {node.describe()}"))
    for old, new in zip(before.outputs, after.outputs, strict=True):
        worst = max(
            worst, _difference(values[0][old], values[1][new], reach[old], f"{name} changed output {old!r}")
        )
    return worst


def compares_every_node(graph: Graph) -> bool:
    """Whether the graph is small enough to keep the values of all its nodes for all samples."""
    return 2 * len(SCALES) * sum(node.size for node in graph.nodes) <= _EVERY_NODE


def _compare_outputs(before: Graph, after: Graph, x: Tensor, name: str) -> float:
    """The same check for a large graph: the selected output alone, relative to input and output, one sample at a time."""
    worst = 0.0
    for sample in x.split(1):
        old, new = evaluate_converted(before, sample), evaluate_converted(after, sample)
        met = torch.cat((_rows(old.abs().nan_to_num(posinf=0.0)), _rows(sample.abs())), dim=1)
        scale = met.amax(1) if met.shape[1] else met.new_zeros(1)
        worst = max(worst, _difference(old, new, scale, f"{name} changed {before.output.describe()}"))
    return worst


def _magnitudes(graph: Graph, values: dict[str, Tensor]) -> dict[str, Tensor]:
    """For every node the largest finite number in it and in everything it is computed from: [batch] or [1]."""
    reach: dict[str, Tensor] = {}
    for node in graph.nodes:
        found = _rows(values[node.name].abs().nan_to_num(posinf=0.0))
        largest = found.amax(1) if found.shape[1] else found.new_zeros(found.shape[0])
        for name in node.inputs:
            largest = torch.maximum(largest, reach[name])
        reach[node.name] = largest
    return reach


def _difference(old: Tensor, new: Tensor, scale: Tensor, what: str) -> float:
    if old.shape[1:] != new.shape[1:]:
        raise InternalError(f"{what}: its shape is now {list(new.shape[1:])}")
    # Where the original itself overflows or is undefined there is nothing to compare.
    gap = _rows(torch.where(old.isfinite(), (old - new).abs(), 0.0))
    gap = torch.where(gap.isnan(), torch.inf, gap) / scale.clamp_min(1e-300).unsqueeze(1)
    worst = float(gap.max()) if gap.numel() else 0.0
    if not worst <= TOLERANCE:
        raise InternalError(
            f"{what}: relative difference {worst:.3g} in float64; this is a bug of lipverify, please report it"
        )
    return worst


def _rows(values: Tensor) -> Tensor:
    """One row of numbers for each sample, also where a sample is a single number or empty."""
    return values.reshape(values.shape[0], math.prod(values.shape[1:]))
