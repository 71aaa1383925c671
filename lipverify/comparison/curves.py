"""Certified accuracy of one model, for a figure with several."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from lipverify.comparison.cache import Cache
from lipverify.comparison.task import Solved, code_digest, tensor_digest
from lipverify.errors import LipverifyError
from lipverify.failures import failure_words
from lipverify.ir.graph import Graph
from lipverify.robustness import Plan, radii


def accuracy_curve(
    name: str,
    graph: Graph,
    x: Tensor,
    y: Tensor | None,
    plan: Plan,
    *,
    budget: float | None = None,
    jobs: int = 1,
    scheduler: str | None = None,
    cache: Cache | None = None,
) -> dict[str, Any]:
    """One entry of `curves`: radii with the share of points certified there, or why there are none.

    Statement: of the points given, the share at a radius is classified correctly and keeps its label under every perturbation
        below that radius (`lipverify radius`).

    Args:
        name: the model's name in the comparison. x, y: points and labels as for `lv.radii`.
        budget: seconds for this model.
    """
    identity = {
        "kind": "curve",
        "code": code_digest(),
        "graph": graph.digest,
        "points": tensor_digest(x),
        "labels": None if y is None else tensor_digest(y),
        "plan": plan.to_json(),
        "budget": budget,
    }
    known = None if cache is None else cache.get(identity)
    if known is not None:
        return {"model": name, **known.document}
    head = {"norm": str(plan.norm), "method": plan.method}
    try:
        found = radii(graph, x, y, plan=plan, budget=budget, jobs=jobs, scheduler=scheduler)
    except LipverifyError as error:
        return {"model": name, **head, "refused": str(error)}
    except Exception as error:
        return {"model": name, **head, "refused": failure_words(error), "failed": True}
    curve = found.curve()
    document = {
        **head,
        "radii": list(curve.radii),
        "certified_accuracy": list(curve.certified_accuracy),
        "clean_accuracy": found.clean_accuracy,
        "points": len(found.records),
        "rigour": found.rigour,
        "seconds": found.seconds,
    }
    if cache is not None:
        cache.put(identity, Solved("bound", document))
    return {"model": name, **document}
