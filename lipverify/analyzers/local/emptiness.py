"""Proofs that a part of a ball holds no input: a combination of its conditions that is negative everywhere."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from lipverify.analyzers.local.parts import Splits
from lipverify.ir.op import Input
from lipverify.linalg.rounding import gamma
from lipverify.propagation.functionals import Functionals
from lipverify.propagation.knowledge import Knowledge

LARGEST = 1 << 16
"""Numbers in the linear program of one part, beyond which it is not tried."""


def proofs_of_emptiness(known: Knowledge, parts: Sequence[Splits]) -> list[tuple[float, ...] | None]:
    """For every part (centre of `known`) weights of its splits that prove it empty, or None.

    Statement: with conditions s_i (z_i - m_i) >= 0, s_i = +-1, and weights beta_i >= 0, an upper bound below zero of
        sum_i beta_i s_i (z_i - m_i) over the part's box shows that no input fulfils all conditions.
    Source: Farkas' lemma on linear bounds of every condition (`propagation.functionals`); the weights are the multipliers of
        a linear program, whose claim is not used: the combination is bounded again with every rounding.
    """
    found: list[tuple[float, ...] | None] = [None] * len(parts)
    size = known.graph.input.size
    chosen = [
        index for index, splits in enumerate(parts) if len(splits) > 1 and (len(splits) + 1) * size <= LARGEST
    ]
    if not chosen:
        return found
    rows = [(index, split) for index in chosen for split in parts[index]]
    owner = torch.tensor([index for index, _ in rows])
    start: dict[str, Tensor] = {}
    for row, (_, split) in enumerate(rows):
        if split.node not in start:
            node = known.graph[split.node]
            start[split.node] = torch.zeros(len(rows), node.size, dtype=torch.float64)
        start[split.node][row, split.entry] = 1.0 if split.above else -1.0
    device = known.box.lower.device
    first = {name: a.reshape(-1, *known.graph[name].shape).to(device) for name, a in start.items()}
    walk = Functionals.start(known, first, owner.to(device))
    for node in reversed(known.graph.nodes):
        if not isinstance(node.op, Input):
            walk.step(node)
    name = known.graph.input.name
    slope = walk.coefficients.get(name)
    if slope is None:
        return found
    a = slope.flatten(1).cpu().numpy()
    thresholds = np.array([split.threshold if split.above else -split.threshold for _, split in rows])
    c, error = walk.constant.cpu().numpy() - thresholds, walk.error.cpu().numpy()
    error = error + 4.0 * gamma(4) * (np.abs(c) + np.abs(thresholds))
    low, high = known.box.lower.flatten(1).cpu().numpy(), known.box.upper.flatten(1).cpu().numpy()
    begin = 0
    for index in chosen:
        end = begin + len(parts[index])
        weights = _weights(a[begin:end], c[begin:end], low[index], high[index])
        if weights is not None and _negative(
            weights, a[begin:end], c[begin:end], error[begin:end], low[index], high[index]
        ):
            found[index] = tuple(weights.tolist())
        begin = end
    return found


Array = np.ndarray[tuple[int, ...], np.dtype[np.float64]]


def _weights(a: Array, c: Array, low: Array, high: Array) -> Array | None:
    """Multipliers of max t with a x + c >= t over the box, where its optimum is negative."""
    from scipy.optimize import linprog  # half a second, for trees that ask

    count, size = a.shape
    if not (np.isfinite(a).all() and np.isfinite(c).all()):
        return None
    objective = np.zeros(size + 1)
    objective[-1] = -1.0
    matrix = np.concatenate([-a, np.ones((count, 1))], 1)
    limits = [*zip(low.tolist(), high.tolist(), strict=True), (None, None)]
    result = linprog(objective, A_ub=matrix, b_ub=c, bounds=limits, method="highs")
    if result.status != 0 or not result.fun > 0.0:
        return None
    weights: Array = np.maximum(-result.ineqlin.marginals, 0.0)
    total = float(weights.sum())
    return weights / total if total > 0.0 else None


def _negative(weights: Array, a: Array, c: Array, error: Array, low: Array, high: Array) -> bool:
    """Whether sum_i weights_i (a_i x + c_i + error_i) < 0 for all x in the box, rounding included."""
    count, size = a.shape
    v, magnitude = weights @ a, weights @ np.abs(a)
    largest = np.maximum(np.abs(low), np.abs(high))
    value = float(np.maximum(v * low, v * high).sum() + weights @ c + weights @ error)
    terms = float(magnitude @ largest + weights @ np.abs(c) + weights @ error)
    return value + 8.0 * gamma(count + size + 32) * terms < 0.0
