"""The record of one point under randomised smoothing of a graph."""

from __future__ import annotations

import time

import torch
from torch import Tensor

from lipverify.analyzers.protocol import Compute
from lipverify.interpreter import evaluate
from lipverify.ir.graph import Graph
from lipverify.robustness.constants import PairConstants
from lipverify.robustness.pairs import flat
from lipverify.robustness.plan import Plan, Record
from lipverify.robustness.smoothing.sampling import smooth


def smoothed_record(
    graph: Graph,
    plan: Plan,
    constants: PairConstants | None,
    index: int,
    x: Tensor,
    label: int | None,
    compute: Compute,
) -> Record:
    """The smoothed classifier's class and radius; the attack side is empty."""
    started = time.monotonic()
    network = flat(graph).to(dtype=graph.dtype, device=compute.device)

    def classifier(batch: Tensor) -> Tensor:
        return evaluate(network, batch.to(compute.device, graph.dtype))

    differences = None if constants is None else constants.rows
    found = smooth(classifier, x.to(torch.float64), plan.smoothing, compute.seed, differences)
    wanted = found.label if label is None else label
    correct = wanted == found.label
    radius = found.radius if correct else 0.0
    by_method = {"smoothing": radius}
    if found.constant is not None:
        by_method["smoothing without constant"] = found.radius_without_constant if correct else 0.0
    return Record(
        index=index,
        label=wanted,
        predicted=found.label,
        radius=radius,
        method="smoothing",
        attack_radius=None,
        seconds=time.monotonic() - started,
        margin=found.lower - found.rival,
        by_method=by_method,
        note="" if radius > 0 else ("undecided" if correct else "misclassified"),
        statistics=found.statistics,
    )
