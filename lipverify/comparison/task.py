"""One piece of work of a comparison: one analyzer, or the search for a lower bound, on one model and one question."""

from __future__ import annotations

import hashlib
import io
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lipverify import pipeline
from lipverify.analyzers.protocol import Analyzer, Compute
from lipverify.documents import slug
from lipverify.failures import failure_words
from lipverify.falsify import Box, Search, falsify
from lipverify.ir.graph import Graph
from lipverify.ir.region import Ball, Query
from lipverify.version import __version__

ANSWER_WITH = ("numpy", "scipy", "cvxpy", "scs", "clarabel", "auto_LiRPA")
"""Packages whose version, or absence, may change an answer or a refusal."""
SPENT = "the budget was spent before this was begun; give more time with --budget"
LOWER_SECONDS = 10.0
"""Longest search for a lower bound; with a budget its share of it, if that is less."""


@dataclass(frozen=True)
class Task:
    """A question that can be asked in any process.

    method: None asks for the lower bound. budget: seconds the whole run was given; part of the identity, because an anytime
    method gives other numbers in another time. box, hints: where the search for the lower bound looks.
    """

    graph: Graph
    query: Query
    method: Analyzer | None
    device: str = "cpu"
    seed: int = 0
    budget: float | None = None
    box: Box | None = None
    hints: Tensor | None = None

    @property
    def name(self) -> str:
        """What its row is called."""
        return "lower bound" if self.method is None else self.method.name

    def identity(self) -> dict[str, Any]:
        """Everything that decides the answer. Two tasks with equal identities have the same answer, times aside."""
        names = "\0".join(node.name for node in self.graph.nodes)
        found: dict[str, Any] = {
            "code": code_digest(),
            "graph": self.graph.digest,
            "names": hashlib.sha256(names.encode("utf-8", "surrogatepass")).hexdigest(),
            "model": [self.graph.origin.sha256, *map(list, self.graph.origin.beside)],
            "query": self.query.to_json(),
            "method": "lower bound" if self.method is None else repr(self.method),
            "method_code": None if self.method is None else _method_code(type(self.method).__module__),
            "device": self.device,
            "seed": self.seed,
            "budget": self.budget,
        }
        region = self.query.region
        if isinstance(region, Ball):
            found["centres"] = tensor_digest(region.center)
            found["box"] = None if region.box is None else [tensor_digest(end) for end in region.box]
        if self.method is None:
            found["search_box"] = None if self.box is None else [str(end) for end in self.box]
            found["hints"] = None if self.hints is None else tensor_digest(self.hints)
        return found


@dataclass(frozen=True)
class Solved:
    """An answer as plain data. kind: `bound`, `refused`, `undecided`, `failed` or `refuted`; files: certificates by file name."""

    kind: str
    document: dict[str, Any]
    files: Mapping[str, bytes] = field(default_factory=dict)

    @property
    def lasting(self) -> bool:
        """Whether asking again would give the same: not where time ran out or something broke."""
        return self.kind in ("bound", "refused")


def solve(task: Task, seconds: float | None, name: str) -> Solved:
    """The answer to a task; what goes wrong inside an analyzer is an answer too, of kind `failed`.

    Args:
        seconds: time for this task; with none left it is not begun.
        name: distinguishes its certificate from those of other tasks.
    """
    if seconds is not None and seconds <= 0.0:
        return Solved("undecided", {"analyzer": task.name, "refused": SPENT})
    deadline = None if seconds is None else time.monotonic() + seconds
    compute = Compute(torch.device(task.device), task.seed, deadline)
    if task.method is None:
        return _lower(task, compute, seconds)
    try:
        row = pipeline.answer(task.method, task.graph, task.query, compute)
    except (KeyboardInterrupt, SystemExit):
        raise
    except Exception as error:
        return failed(task, error)
    if row.certificate is None:
        kinds = {"refuted": row.refuted, "failed": row.failed, "undecided": row.undecided, "refused": True}
        kind = next(name for name, holds in kinds.items() if holds)
        return Solved(kind, row.to_json())
    document = row.to_json()
    certificate = f"{slug(row.analyzer)}-{name}.json"
    if row.certificate.issued is None:
        del document["certificate"]
        return Solved("bound", document)
    document["certificate"] = f"certificates/{certificate}"
    return Solved("bound", document, row.certificate.issued.files(certificate))


def failed(task: Task, what: Exception | str) -> Solved:
    """The row of a task that broke."""
    return Solved("failed", {"analyzer": task.name, "refused": failure_words(what), "failed": True})


def _lower(task: Task, compute: Compute, seconds: float | None) -> Solved:
    search = Search(seconds=LOWER_SECONDS if seconds is None else min(LOWER_SECONDS, max(0.5, seconds)))
    try:
        witness = falsify(task.graph, task.query, compute, search, box=task.box, hints=task.hints)
    except (KeyboardInterrupt, SystemExit):
        raise
    except Exception as error:
        return failed(task, error)
    buffer = io.BytesIO()
    np.savez(buffer, **witness.arrays())
    local = isinstance(task.query.region, Ball)
    value = witness.value.tolist() if local else float(witness.value[0])
    document = {"value": value, "method": witness.method} | ({"note": witness.note} if witness.note else {})
    return Solved("bound", document, {"witness": buffer.getvalue()})


def tensor_digest(value: Any) -> str:
    """sha256 of numbers, their type and their shape."""
    array = torch.as_tensor(value).detach().cpu().contiguous().numpy()
    head = f"{array.dtype} {array.shape} ".encode()
    return hashlib.sha256(head + array.tobytes()).hexdigest()


@cache
def code_digest() -> str:
    """sha256 over the sources of this package and the versions it computes with: another program is another answer."""
    versions = [f"{name} {_version(name)}" for name in ANSWER_WITH]
    digest = hashlib.sha256(" ".join([__version__, torch.__version__, *versions]).encode())
    root = Path(pipeline.__file__).parent
    for path in sorted(root.rglob("*.py")):
        if path.parent == root / "reporting":
            continue  # shows answers and decides none
        digest.update(str(path.relative_to(root)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


@cache
def _method_code(module: str) -> str | None:
    """Versions of the packages that an analyzer of somebody else comes from; its source, where it has a file."""
    import sys

    top = module.partition(".")[0]
    if top == "lipverify":
        return None
    found = [f"{package} {_version(package)}" for package in packages_distributions().get(top, [])]
    file = getattr(sys.modules.get(module), "__file__", None)
    if file is not None:
        found.append(hashlib.sha256(Path(file).read_bytes()).hexdigest())
    return ", ".join(found)
