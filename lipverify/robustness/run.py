"""Runs over points: one after another, or in a pool of processes; with a journal, the ones already done are not repeated."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lipverify.analyzers.protocol import Compute, Report, silent
from lipverify.errors import UsageError
from lipverify.falsify import multiplications
from lipverify.interpreter import evaluate
from lipverify.ir.graph import Graph
from lipverify.ir.norm import Norm
from lipverify.loading.data.hints import all_wrong
from lipverify.robustness.attack import Box
from lipverify.robustness.constants import PairConstants
from lipverify.robustness.journal import Journal
from lipverify.robustness.pairs import classes
from lipverify.robustness.plan import Plan, Record
from lipverify.robustness.points import Work, answered, broken, not_run, prepare
from lipverify.robustness.proof import certified
from lipverify.robustness.results import Radii
from lipverify.units import Lost, results

Advance = Callable[[int, int], None]
SEARCHED = 0.65
"""The part of a limited time that is for searches; the rest is for proofs."""
QUICK = 1e7
"""Multiplications of a network for whose points closed forms are given even when no time is left."""
FEW = 100
"""How many points are given them then."""
SHARED = 10
"""The part of a limited time that constants of the whole input space may take: one in so many."""


def radii(
    graph: Graph,
    x: Tensor,
    y: Tensor | None = None,
    norm: str | Norm = Norm.LINF,
    method: str = "auto",
    *,
    box: Box | None = None,
    budget: float | None = None,
    device: str | torch.device = "cpu",
    seed: int = 0,
    plan: Plan | None = None,
    jobs: int = 1,
    scheduler: str | None = None,
    journal: Journal | None = None,
    report: Report | None = None,
    advance: Advance | None = None,
    proofs: bool = True,
) -> Radii:
    """For every point the largest perturbation certified not to change its label, and an adversarial example above it.

    Statement: for a point with radius r > 0, every x' with |x' - x| < r (in the box) has the same largest output, which is the
        label's; for `smoothing` with the confidence stated, about the smoothed classifier.
    Source: `global`: Tsuzuku et al., NeurIPS 2018 (arXiv 1802.04034), with a constant for each logit difference; `crown`: Zhang
        et al., NeurIPS 2018; `local`: integral of the local constants of the differences over shells; `smoothing`: Cohen et
        al., ICML 2019 (arXiv 1902.02918), Delattre et al., ICLR 2024 (arXiv 2309.16883).
    Sound when: the constants and linear bounds used are; margins at the point are enclosed with every rounding.

    Args:
        x: [points, *input shape]; y: labels [points], by default the predicted ones.
        box: limits LO, HI of every input coordinate; perturbations stay inside.
        budget: seconds for everything, of which what all points share takes about a tenth and every point an even part of
            what is left when it begins; without it numbers do not depend on the machine's speed.
        plan: all settings at once, instead of norm, method, box, seed and budget.
        proofs: whether the independent checker proves the radii, after the searches; a certificate holds them (`Radii.issued`).
        jobs: processes; scheduler: address of a Dask scheduler whose workers take the points instead.

    Raises:
        UsageError: points of another shape, outside the box, labels that are none, or ten and more that are all wrong.
        UnsupportedModel: no method covers the network. InternalError: every method broke before any point. What breaks at one
        point is its record (`Record.failed`), and no journal keeps it.
    """
    started = time.monotonic()
    if plan is None:
        plan = Plan(Norm.parse(norm), method, box, seed=seed)
    x = torch.as_tensor(x).detach().cpu().double()
    labels = None if y is None else [int(label) for label in torch.as_tensor(y).tolist()]
    _require(graph, x, labels, plan)
    report = report or silent
    deadline = None if budget is None else started + budget / SHARED
    compute = Compute(torch.device(device), seed, deadline, report)
    stored = None if journal is None or journal.shared is None else journal.shared.get("constants")
    constants = None if stored is None else PairConstants.from_json(stored)
    work = prepare(graph, plan, compute, constants)
    if journal is not None and journal.shared is None:
        journal.share({"constants": None if work.constants is None else work.constants.to_json()})
    done = {} if journal is None else {i: Record.from_json(r) for i, r in journal.records.items()}
    waiting = [index for index in range(len(x)) if index not in done]
    if budget is not None or plan.seconds is not None:
        # Time is given again: it goes to the radii that it can still make larger.
        waiting += [index for index, record in sorted(done.items()) if plan.unfinished(record)]
    report("certifying points", None)
    end = None if budget is None else started + (SEARCHED if proofs else 1.0) * budget
    owed = len(waiting) <= FEW and multiplications(graph) <= QUICK
    asked = ((i, x[i].numpy(), None if labels is None else labels[i], done.get(i), owed) for i in waiting)
    for place, answer in results(
        _unit, work, asked, len(waiting), jobs=jobs, scheduler=scheduler, deadline=end
    ):
        index = waiting[place]
        label = None if labels is None else labels[index]
        lost = isinstance(answer, Lost)
        record = done.get(index) or broken(work, index, label, answer.reason) if lost else answer
        if journal is not None and not record.failed:
            journal.add(record.stored())
        done[record.index] = record
        if advance is not None:
            advance(len(done), len(x))
    records = tuple(done[index] for index in range(len(x)))
    issued = None
    if proofs:
        until = None if budget is None else started + budget
        found = certified(graph, plan, records, x, work.constants, report, until)
        records, issued = found.records, found.issued
    return Radii(
        graph,
        plan,
        records,
        time.monotonic() - started,
        work.constants,
        work.refused,
        inputs=x,
        issued=issued,
        failed_methods=work.failed,
    )


def _require(graph: Graph, x: Tensor, labels: list[int] | None, plan: Plan) -> None:
    count = classes(graph)
    if tuple(x.shape[1:]) != graph.input_shape or len(x) < 1:
        raise UsageError(
            f"the points have shape {list(x.shape)}; the model takes samples of {list(graph.input_shape)}"
        )
    if not bool(x.isfinite().all()):
        raise UsageError("a point is not finite")
    if labels is not None and (len(labels) != len(x) or not all(0 <= y < count for y in labels)):
        raise UsageError(f"labels are one number from 0 to {count - 1} for each of the {len(x)} points")
    if plan.box is not None:
        low, high = plan.box
        outside = ((x < low) | (x > high)).flatten(1).any(1)
        if not low < high or bool(outside.any()):
            index = int(outside.double().argmax())
            raise UsageError(f"point {index} lies outside the input box [{low:g}, {high:g}]")
    if labels is not None:
        exact = graph.to(dtype=torch.float64)

        def predict(some: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
            found: np.ndarray[Any, Any] = evaluate(exact, torch.from_numpy(some)).flatten(1).argmax(1).numpy()
            return found

        if all_wrong(x.numpy(), np.array(labels), predict):
            raise UsageError(
                f"all {len(labels)} labels are wrong, which says more about how the data is read than about the network; "
                "are they in the order of the outputs, from 0, and the points in the units of training? "
                "y=None certifies what is predicted"
            )


def _unit(
    work: Work,
    index: int,
    x: np.ndarray[Any, Any],
    label: int | None,
    before: Record | None,
    owed: bool,
    seconds: float | None,
) -> Record:
    if seconds is not None and seconds <= 0.0 and (before or not owed):
        return before or not_run(work, index, label)
    return answered(work, index, torch.from_numpy(x), label, seconds, before)
