"""The run: models x questions x analyzers become tasks, tasks become answers, answers are held against the witnesses."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from itertools import product
from typing import Any

import torch
from torch import Tensor

from lipverify.analyzers.auto import AUTO, Given, chosen
from lipverify.comparison.cache import Cache, key_of
from lipverify.comparison.results import Answered, Comparison, Unreadable, listed
from lipverify.comparison.task import Solved, Task, failed, solve
from lipverify.errors import UsageError
from lipverify.failures import contradiction_words, keep_files
from lipverify.falsify import Box
from lipverify.ir.graph import Graph
from lipverify.ir.norm import Norm
from lipverify.ir.region import Ball, Bounded, Everywhere, Query, Region, misfit
from lipverify.reporting.format import Magnitude
from lipverify.units import Lost, results

Advance = Callable[[int, int], None]
Place = tuple[str, int, str | None]
"""Model, question, analyzer; None for the lower bound."""


def compare(
    models: Mapping[str, Graph | Unreadable],
    *,
    analyzers: Given = AUTO,
    norm: str | Norm | Sequence[str | Norm] = Norm.L2,
    norm_out: str | Norm | None = None,
    region: Region | Sequence[Region] | None = None,
    budget: float | None = None,
    device: str | torch.device = "cpu",
    seed: int = 0,
    box: Box | None = None,
    hints: Tensor | None = None,
    jobs: int = 1,
    scheduler: str | None = None,
    cache: Cache | None = None,
    advance: Advance | None = None,
    since: float | None = None,
) -> Comparison:
    """Every analyzer on every model, for every norm and region: upper bounds, and a lower bound for each question.

    Statement: every bound is what `lv.audit` of that model, question and analyzer states; a bound that a witness of the
        same question contradicts is never reported.

    Args:
        models: by the names they are shown under; `Unreadable` stands for a model that could not be read.
        analyzers: as of `audit`; of `auto` those that answer one of the questions.
        norm, norm_out, region: one or several norms and regions; every combination is a question.
        budget: seconds for everything together, shared out evenly over what is not in the cache.
        jobs: processes; with more than one, a script needs the usual `if __name__ == "__main__"` guard.
        scheduler: address of a Dask scheduler whose workers take the tasks instead.
        cache: where answers are kept; None keeps nothing.
        since: moment of `time.monotonic` from which the budget counts; default: now.
        advance: called with the number of answers so far and the number asked for.

    Raises:
        UsageError: nothing to compare, the same analyzer twice, a name or number that makes no sense.
    """
    started = time.monotonic() if since is None else since
    if not models:
        raise UsageError("a comparison needs at least one model")
    queries = _queries(norm, norm_out, region)
    fitting = [
        (model, query)
        for model, query in product(models.values(), queries)
        if not isinstance(model, Unreadable) and _misfit(model, query) is None
    ]
    wanted, choice = chosen(analyzers, fitting, budget)
    if choice is not None and budget is None:
        budget = choice.seconds
    methods = {method.name: method for method in wanted}
    if len(methods) < len(wanted):
        raise UsageError("each analyzer can be asked once; other settings need another name")
    tasks: dict[Place, Task] = {}
    solved: dict[Place, Solved] = {}
    for (name, model), index in product(models.items(), range(len(queries))):
        if isinstance(model, Unreadable):
            continue
        misfit = _misfit(model, queries[index])
        for analyzer, method in [(None, None), *methods.items()]:
            place = (name, index, analyzer)
            if misfit is not None:
                solved[place] = Solved("refused", {"analyzer": analyzer or "lower bound", "refused": misfit})
                continue
            near = hints if hints is not None and tuple(hints.shape[1:]) == model.input_shape else None
            search: dict[str, Any] = {"box": box, "hints": near} if method is None else {}
            tasks[place] = Task(model, queries[index], method, str(device), seed, budget, **search)
    kept: dict[Place, Solved] = (
        {}
        if cache is None
        else {place: entry for place, task in tasks.items() if (entry := cache.get(task.identity()))}
    )
    solved |= kept
    # Breadth first: when time is short, every model has its lower bound and the first analyzers' bounds before any has all.
    order: dict[str | None, int] = {None: 0, **{name: 1 + i for i, name in enumerate(methods)}}
    waiting = sorted((place for place in tasks if place not in kept), key=lambda place: order[place[2]])
    total = len(solved) + len(waiting)
    asked = ((tasks[place], key_of(tasks[place].identity())[:16]) for place in waiting)
    deadline = None if budget is None else started + budget
    for i, found in results(
        _unit, None, asked, len(waiting), jobs=jobs, scheduler=scheduler, deadline=deadline
    ):
        task = tasks[waiting[i]]
        answer: Solved = failed(task, found.reason) if isinstance(found, Lost) else found
        solved[waiting[i]] = answer
        if cache is not None and answer.lasting:
            cache.put(task.identity(), answer)
        if advance is not None:
            advance(len(solved), total)
    answered = {
        name: tuple(_answered(solved, name, index, tuple(methods)) for index in range(len(queries)))
        for name, model in models.items()
        if not isinstance(model, Unreadable)
    }
    seconds = time.monotonic() - started
    return Comparison(
        dict(models), queries, tuple(methods), answered, seconds, len(waiting), len(kept), choice=choice
    )


def _unit(shared: None, task: Task, name: str, seconds: float | None) -> Solved:
    return solve(task, seconds, name)


def _queries(
    norm: str | Norm | Sequence[str | Norm],
    norm_out: str | Norm | None,
    region: Region | Sequence[Region] | None,
) -> tuple[Query, ...]:
    norms = [Norm.parse(n) for n in ([norm] if isinstance(norm, str | Norm) else norm)]
    regions: list[Region] = []
    if region is None or isinstance(region, Everywhere | Bounded | Ball):
        regions.append(region or Everywhere())
    else:
        regions.extend(region)
    if not norms or not regions:
        raise UsageError("a comparison needs at least one norm and one region")
    out = None if norm_out is None else Norm.parse(norm_out)
    return tuple(Query(n, out or n, r) for n, r in product(norms, regions))


def _misfit(graph: Graph, query: Query) -> str | None:
    return misfit(query.region.center, graph.input_shape) if isinstance(query.region, Ball) else None


def _answered(solved: Mapping[Place, Solved], name: str, index: int, analyzers: Sequence[str]) -> Answered:
    """The rows of one model and question, none of them below what the witness shows."""
    low = solved[name, index, None]
    lower = low.document if low.kind == "bound" else None
    given = [solved[name, index, analyzer] for analyzer in analyzers]
    checked = [_held_against(answer, lower) for answer in given]
    kinds = {answer.kind for answer in (low, *given)}
    files = {file: data for answer in checked for file, data in answer.files.items()}
    return Answered(
        tuple(answer.document for answer in checked),
        lower,
        files,
        low.files.get("witness") if lower is not None else None,
        undecided="undecided" in kinds,
        failed="failed" in kinds,
        refuted=any(answer.kind == "refuted" for answer in checked),
    )


def _held_against(answer: Solved, lower: Mapping[str, Any] | None) -> Solved:
    """The answer, or a refusal where a witness contradicts it."""
    if answer.kind != "bound" or lower is None:
        return answer
    row = answer.document
    values = listed(lower["value"])
    bounds = [Magnitude(value) for value in listed(row["upper"])] if "upper" in row else []
    bounds = bounds or [Magnitude(log10=value) for value in listed(row["log10_upper"])]
    bounds = bounds * len(values) if len(bounds) == 1 else bounds
    for value, bound in zip(values, bounds, strict=True):
        if bound.is_below(value):
            place = values.index(value) if len(values) > 1 else None
            kept = keep_files(answer.files)
            reason = contradiction_words(value, bound.value or 0.0, row["analyzer"], place, kept)
            flags = {"failed": True, "refuted": True}
            return Solved("refuted", {"analyzer": row["analyzer"], "refused": reason, **flags})
    return answer
