"""The unit of work: everything about one point, independent of all other points."""

from __future__ import annotations

import math
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from lipverify import memory
from lipverify.analyzers.lipsdp.analyzer import LipSDP
from lipverify.analyzers.lirpa.margins import ForeignMargins, refuses_margins
from lipverify.analyzers.protocol import Compute
from lipverify.deadline import within
from lipverify.errors import BudgetEnded, InternalError, LipverifyError, Refuted, UnsupportedModel
from lipverify.failures import BUG, failure_words
from lipverify.falsify import multiplications
from lipverify.ir.graph import Graph
from lipverify.ir.norm import Norm
from lipverify.ir.region import Query
from lipverify.propagation import refuses_ranges
from lipverify.propagation.forms import mixes
from lipverify.robustness.arithmetic import LARGEST
from lipverify.robustness.attack import Example, attack, farthest
from lipverify.robustness.balls import Balls, gradient_work, refuses_gradients
from lipverify.robustness.branching import CANDIDATES, STEPS
from lipverify.robustness.carried import Carried
from lipverify.robustness.constants import EFFORT, PairConstants, pair_constants
from lipverify.robustness.march import POSITIVE, bracket, grow, march
from lipverify.robustness.pairs import differences, enclosed, predict
from lipverify.robustness.plan import Plan, Record
from lipverify.robustness.shells import Shell, Shells, between, refuse

BRANCH_EFFORT = 4e9
"""Multiplications of one run of branch and bound where no time is given."""
FEWEST_LEAVES = 48
"""Fewer parts than these gain nothing."""
GRADIENTS_A_SECOND = 5e6
"""Of `gradient_work`, a tenth of what a core does in a second: so that ten looks fit into the time of a point."""
NEAR = 2e-2
"""Resolution of the search before branch and bound: what it may lose costs that one ball."""
COARSE = 2e-3
"""Resolution for networks with attention: each look takes a second, and half a dozen find the end."""
SIDE_EFFORT = EFFORT / 50
"""Effort for global constants where they are one part of `auto`."""


@dataclass(frozen=True)
class Work:
    """What a worker needs to answer for any point; can be sent to another process."""

    graph: Graph
    plan: Plan
    constants: PairConstants | None
    refused: dict[str, str]
    """Methods of the plan that cannot answer for this network, and why."""
    device: str = "cpu"
    failed: tuple[str, ...] = ()
    """Of the refused ones those that broke."""


def prepare(graph: Graph, plan: Plan, compute: Compute, constants: PairConstants | None = None) -> Work:
    """Asks every method of the plan once, and computes what all points share.

    Args:
        constants: of an earlier run, instead of computing them.

    Raises:
        UnsupportedModel: no method of the plan covers the network.
    """
    refused: dict[str, str] = {}
    failed: list[str] = []
    reason = refuses_ranges(graph)
    if reason is not None:
        refused = {
            name: f"margins need interval arithmetic: {reason}" for name in plan.parts if name != "smoothing"
        }
    if "local" in plan.parts and "local" not in refused:
        reason = refuses_gradients(graph, plan.norm)
        if reason is not None:
            refused["local"] = reason
    if "lirpa" in plan.parts and "lirpa" not in refused:
        reason = refuses_margins(differences(graph, 0))
        if reason is not None:
            refused["lirpa"] = reason
    if "global" in plan.parts and "global" not in refused and constants is None:
        try:
            # In linf a global constant is rarely the best part of `auto`.
            side = plan.method != "global"
            effort = SIDE_EFFORT if side and plan.norm is Norm.LINF else EFFORT
            with within(_wall(compute)):
                constants = pair_constants(graph, plan.norm, compute, effort, side)
        except UnsupportedModel as error:
            refused["global"] = str(error)
        except BudgetEnded:
            refused["global"] = "not run: the budget ended before there were constants of the whole space"
        except Exception as error:
            refused["global"] = _broken(error)
            failed.append("global")
    if plan.method == "smoothing" and plan.smoothing.simplex_map != "hardmax" and constants is None:
        try:
            constants = pair_constants(graph, plan.norm, compute, SIDE_EFFORT)
        except UnsupportedModel as error:
            refused["constants of the maps"] = str(error)
        except Exception as error:
            refused["constants of the maps"] = _broken(error)
            failed.append("constants of the maps")
    elif len(refused) == len(plan.parts):
        if failed:
            raise InternalError("; ".join(f"{name}: {refused[name]}" for name in failed))
        raise refuse(refused)
    return Work(graph, plan, constants, refused, str(compute.device), tuple(failed))


def _wall(compute: Compute) -> float | None:
    """A little after a deadline: the end of what aims at it and misses. What is owed without any time has half a second."""
    if compute.deadline is None:
        return None
    return max(compute.deadline, time.monotonic()) + max(0.5, 0.2 * compute.remaining())


def _broken(error: Exception) -> str:
    """What a method's row says where it broke; errors of the user are raised.

    Raises:
        LipverifyError: the error itself, where it is no bug.
    """
    if isinstance(error, LipverifyError) and not isinstance(error, InternalError):
        raise error
    return failure_words(error)


def answered(
    work: Work,
    index: int,
    x: Tensor,
    label: int | None,
    seconds: float | None = None,
    before: Record | None = None,
) -> Record:
    """As `answer`; what breaks is a record without a radius, and loses no other point."""
    started = time.monotonic()
    try:
        found = memory.halving(lambda: answer(work, index, x, label, seconds, before))
        return found if before is None else _further(before, found)
    except BudgetEnded:
        return before or not_run(work, index, label, time.monotonic() - started)
    except Refuted as error:
        return broken(work, index, label, str(error), time.monotonic() - started, refuted=True)
    except Exception as error:
        if isinstance(error, LipverifyError) and not isinstance(error, InternalError):
            raise
        words = f"not run: {memory.words(error)}" if memory.failed(error) else failure_words(error)
        if before is not None:
            return replace(before, note=f"searched further in vain: {words}")
        return broken(work, index, label, words, time.monotonic() - started)


def _further(before: Record, found: Record) -> Record:
    """The larger radius and the nearer example of two searches at one point.

    A radius beyond the other search's example withdraws both: one of the two is wrong.
    """
    seconds = before.seconds + found.seconds
    if found.failed:
        return replace(found, seconds=seconds)
    nearer = before if _example_size(before) <= _example_size(found) else found
    best = found if found.radius > before.radius else before
    by_method = {
        name: max(before.by_method.get(name, 0.0), found.by_method.get(name, 0.0))
        for name in (*before.by_method, *(n for n in found.by_method if n not in before.by_method))
    }
    if best.radius > _example_size(nearer):
        note = (
            f"refuted: the certified radius {best.radius!r} exceeds {nearer.attack_radius!r}, the distance of an adversarial "
            f"example, and is withdrawn; {BUG}"
        )
        return replace(best, radius=0.0, by_method={}, note=note, failed=True, refuted=True, seconds=seconds)
    return replace(
        best,
        by_method=by_method,
        seconds=seconds,
        cut=found.cut,
        checked=best.checked and best is before,
        attack_radius=nearer.attack_radius,
        attack_label=nearer.attack_label,
        example=nearer.example,
    )


def _example_size(record: Record) -> float:
    return math.inf if record.attack_radius is None else record.attack_radius


def not_run(work: Work, index: int, label: int | None, seconds: float = 0.0) -> Record:
    """The record of a point that the budget left no time for."""
    why = "not run: the budget ended before anything was known of this point"
    return replace(broken(work, index, label, why, seconds), failed=False, cut=True)


def broken(
    work: Work, index: int, label: int | None, why: str, seconds: float = 0.0, refuted: bool = False
) -> Record:
    """The record of a point that nothing is known of; its prediction is -1."""
    return Record(
        index=index,
        label=-2 if label is None else label,
        predicted=-1,
        radius=0.0,
        method=work.plan.method,
        attack_radius=None,
        seconds=seconds,
        margin=0.0,
        note=why,
        failed=True,
        refuted=refuted,
    )


def answer(
    work: Work,
    index: int,
    x: Tensor,
    label: int | None,
    seconds: float | None = None,
    before: Record | None = None,
) -> Record:
    """The record of one point x [*input shape]; label None: the predicted one.

    Args:
        seconds: for this point, if less than those of the plan; without any left, only what all points share is used.
        before: of an earlier search at this point. Branch and bound goes on from its trees, with its example; other methods
            begin anew, with the time of both.

    An adversarial example inside a certified radius withdraws it: one of the two is wrong.
    """
    started = time.monotonic()
    plan = work.plan
    limit = min((s for s in (seconds, plan.seconds) if s is not None), default=None)
    if limit is not None and before is not None and not plan.grows:
        limit += before.seconds
    deadline = None if limit is None else started + limit
    if limit is not None:
        plan = replace(plan, seconds=max(limit, 1e-9))
        work = replace(work, plan=plan)
    seed = (plan.seed * 1_000_003 + index) % (1 << 62)
    compute = Compute(torch.device(work.device), seed, deadline)
    if plan.method == "smoothing":
        from lipverify.robustness.smoothing.points import smoothed_record

        return smoothed_record(work.graph, plan, work.constants, index, x, label, compute)
    predicted = predict(work.graph, x)
    wanted = predicted if label is None else label
    empty: dict[str, Any] = {"index": index, "label": wanted, "predicted": predicted, "attack_radius": None}
    if predicted != wanted:
        return Record(
            **empty,
            radius=0.0,
            method=plan.method,
            seconds=time.monotonic() - started,
            margin=0.0,
            note="misclassified",
        )
    graph = differences(work.graph, predicted)
    margin = enclosed(graph.to(dtype=torch.float64), x).lower
    found, carried = None, None
    if before is not None and before.example is not None and before.attack_radius is not None:
        found = Example(torch.from_numpy(before.example), before.attack_radius, int(before.attack_label or 0))
    elif plan.attack is not None and not compute.expired():
        # An attack takes at most a third of a limited time.
        share = replace(
            compute, deadline=None if deadline is None else time.monotonic() + plan.seconds_for_attack()
        )
        with suppress(BudgetEnded), within(_wall(share)):
            found = attack(work.graph, x, predicted, plan.norm, plan.box, plan.attack, share)
    if not bool((margin > 0).all()):
        by_method, note = (
            {name: 0.0 for name in plan.parts if name not in work.refused},
            "two outputs are equal up to rounding",
        )
        radius, method = 0.0, plan.method
    else:
        shells = _shells(work, graph, x, predicted, margin, found, compute, before)
        radius, method, by_method = _radii(work, shells)
        note = "" if radius > 0 else "undecided"
        carried = (
            Carried(shells.paths(radius), shells.multipliers, shells.trees_on(radius)) if radius > 0 else None
        )
        if compute.remaining() <= 0 and not shells.known:
            note = "no time was left"
    refuted = found is not None and radius > found.size
    if found is not None and refuted:
        note = (
            f"refuted: the certified radius {radius!r} ({method}) exceeds {found.size!r}, the distance of an adversarial "
            f"example, and is withdrawn; {BUG}"
        )
        radius, by_method = 0.0, {}
    if plan.box is not None:
        # Beyond the farthest input of the box a radius says nothing more, and would read as if it did.
        reach = farthest(x.cpu(), plan.box, plan.norm)
        radius, by_method = min(radius, reach), {name: min(each, reach) for name, each in by_method.items()}
    return Record(
        index=index,
        label=wanted,
        predicted=predicted,
        radius=radius,
        method=method,
        attack_radius=None if found is None else found.size,
        attack_label=None if found is None else found.label,
        seconds=time.monotonic() - started,
        margin=float(margin.min()),
        by_method=by_method,
        note=note,
        failed=refuted,
        refuted=refuted,
        carried=carried,
        cut=deadline is not None and compute.expired(),
        example=None if found is None else found.point.detach().cpu().double().numpy(),
    )


def _shells(
    work: Work,
    graph: Graph,
    x: Tensor,
    label: int,
    margin: Tensor,
    found: Example | None,
    compute: Compute,
    before: Record | None,
) -> Shells:
    plan = work.plan
    parts = set(plan.parts) - set(work.refused)
    if parts == {"lirpa"}:
        foreign = ForeignMargins(graph, x, plan.norm, plan.box, compute.seed)
        shells = Shells(margin.cpu(), None, lambda radius: Shell(radius, foreign.over(radius)))
        farthest = LARGEST if found is None else found.size
        bracket(
            shells, _guess(x) if found is None else _first(0.0, farthest), farthest, plan.resolution, compute
        )
        return shells
    constants = work.constants.rows(label) if "global" in parts and work.constants is not None else None
    local = "local" in parts and (plan.norm is Norm.L2 or _affordable(plan, graph))
    crown = bool(parts & {"crown", "alpha-crown", "branching"})
    marching = plan.norm is Norm.L2 and local
    balls = Balls(
        graph,
        x,
        plan.norm,
        plan.box,
        crown or marching,
        local and not marching,
        compute,
        bool(parts & {"alpha-crown", "branching"}),
        _leaves(work, graph),
        semidefinite=LipSDP().reject(graph, Query(Norm.L2, Norm.L2)) is None,
    )
    shells = Shells(margin.cpu(), constants, balls.look)
    # A look that the end interrupts leaves those before it as they were.
    if before is not None and plan.grows and before.radius > 0.0 and before.carried is not None:
        # What was certified is not shown again: a larger ball has a proof of its own, or the record of before stays.
        certain = torch.full_like(shells.margin, POSITIVE)
        shells.known.append(Shell(before.radius, None, None, certain, branched=True))
        balls.trees.update(before.carried.trees)
        most, trial = LARGEST if found is None else found.size, mixes(graph)
        with suppress(BudgetEnded), within(_wall(compute)):
            grow(shells, balls.prove, most, None, plan.resolution, compute, trial)
        shells.trees = balls.trees
        return shells
    with suppress(BudgetEnded), within(_wall(compute)):
        _searched(work, shells, balls, parts, found, x, graph, local, crown, marching, compute)
    shells.multipliers = balls.multipliers if marching else shells.multipliers
    shells.trees = balls.trees
    return shells


def _searched(
    work: Work,
    shells: Shells,
    balls: Balls,
    parts: set[str],
    found: Example | None,
    x: Tensor,
    graph: Graph,
    local: bool,
    crown: bool,
    marching: bool,
    compute: Compute,
) -> None:
    """Looks at balls where the certified radius gains most, until nothing is gained or the time is over."""
    plan = work.plan
    if not (local or crown) or compute.remaining() <= 0:
        return
    certain = shells.radius()
    farthest = LARGEST if found is None else found.size
    if certain >= LARGEST:
        return
    resolution = max(plan.resolution, COARSE) if mixes(graph) else plan.resolution
    first = _first(certain, farthest) if found is not None else max(2.0 * certain, _guess(x))
    if plan.norm is Norm.L2 and (marching or plan.method == "crown"):
        bracket(shells, first, farthest, resolution, compute)
        if marching:
            march(shells, balls.steepen, farthest, plan.shells, resolution, compute)
        return
    # Half of a limited time is kept for branching.
    share = replace(compute, deadline=compute.share(2)) if "branching" in parts else compute
    branching = "branching" in parts and (balls.leaves is None or balls.leaves >= FEWEST_LEAVES)
    timed = branching and plan.seconds is not None
    resolution = max(resolution, NEAR) if timed else resolution
    if crown and mixes(graph):
        # The margin of forms falls like a power of the radius: a secant needs half the looks of a bisection.
        bracket(shells, first, farthest, resolution, share)
        if local and shells.known:
            shells.steepen(farthest, plan.looks, resolution, share)
    else:
        shells.search(first, farthest, plan.looks, resolution, local, share)
    if branching:
        looks = None if timed else plan.harder_looks
        grow(shells, balls.prove, farthest, looks, plan.resolution, compute, mixes(graph))


def _affordable(plan: Plan, graph: Graph) -> bool:
    """Whether a limited time leaves room for several looks with constants; without a limit always."""
    return plan.seconds is None or gradient_work(graph) <= GRADIENTS_A_SECOND * plan.seconds


def _leaves(work: Work, graph: Graph) -> int | None:
    """Parts of a ball that are affordable; with a limited time the deadline decides, else a count of multiplications."""
    if work.plan.seconds is not None:
        return None
    passes = BRANCH_EFFORT / ((3 * STEPS + 2 * CANDIDATES) * multiplications(graph))
    return min(work.plan.leaves, int(passes))


def _first(certain: float, farthest: float) -> float:
    """The first ball between a radius that is certain and one that is hopeless."""
    if farthest > 4.0 * certain:
        return between(certain, 0.7 * farthest)
    return max(0.7 * farthest, 1.01 * certain)


def _guess(x: Tensor) -> float:
    """A first radius where nothing is known: a hundredth of the largest coordinate."""
    return 0.01 * max(float(x.abs().max()), 1e-3)


def _radii(work: Work, shells: Shells) -> tuple[float, str, dict[str, float]]:
    """The radius, the method it is due to, and what every single method gives; without those that never looked at a ball."""
    plan, single = work.plan, dict[str, float]()
    looked = any(shell.best is not None for shell in shells.known)
    if "global" in plan.parts and shells.constants is not None:
        single["global"] = Shells(shells.margin, shells.constants, shells.look).radius()
    if "crown" in plan.parts and "crown" not in work.refused and looked:
        single["crown"] = shells.linear()
    if "lirpa" in plan.parts and "lirpa" not in work.refused and looked:
        single["lirpa"] = shells.linear()
    if "alpha-crown" in plan.parts and "alpha-crown" not in work.refused and looked:
        single["alpha-crown"] = shells.optimised()
    if "branching" in plan.parts and "branching" not in work.refused and looked:
        single["branching"] = shells.branched()
    if "local" in plan.parts and "local" not in work.refused and shells.steepened:
        single["local"] = Shells(shells.margin, None, shells.look, list(shells.known)).integral()
    if plan.method == "auto":
        # Balls are chosen for all methods together: one that kept no label on any of them has no radius of its own.
        single = {
            name: radius for name, radius in single.items() if radius > 0.0 or name in ("global", "local")
        }
    if plan.method != "auto":
        single.setdefault(plan.method, 0.0)
        return single[plan.method], plan.method, single
    together = shells.radius()
    if not single:
        return together, plan.method, {}
    best = max(single, key=lambda name: single[name])
    if together > single[best]:
        return together, "auto", {**single, "auto": together}
    return single[best], best, {**single, "auto": single[best]}
