"""The search for a wrong bound: random networks over all operators, all analyzers, all norms, witnesses against every bound.

What is checked is held to more: a claim below the witness, with everything else consistent, must be refused by the checker.
"""

from __future__ import annotations

import copy
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
import torch

import lipverify as lv
from lipverify.certificates import Issued, model_of
from lipverify.errors import LipverifyError, RefutedCertificate, UnreadableCertificate
from lipverify.falsify import Search
from lipverify.ir.certificate import Rigour
from tests.networks import random_graph
from tests.soundness.certified import restated

NORMS = ("l2", "linf", "l1")
SEARCH = Search(restarts=8, rounds=8, seconds=0.4)


@dataclass
class Found:
    """Counts over many networks. wrong: sentences with the seed; any is a bug."""

    networks: int = 0
    answers: Counter[str] = field(default_factory=Counter)
    checked: Counter[str] = field(default_factory=Counter)
    operators: Counter[str] = field(default_factory=Counter)
    unchecked: Counter[str] = field(default_factory=Counter)
    refused_claims: int = 0
    processor_seconds: float = 0.0
    wrong: list[str] = field(default_factory=list)

    def __add__(self, other: Found) -> Found:
        pairs = ((getattr(self, f.name), getattr(other, f.name)) for f in fields(self))
        return Found(*(a + b for a, b in pairs))

    def to_json(self) -> dict[str, Any]:
        return {
            "networks": self.networks,
            "answers": dict(self.answers.most_common()),
            "checked": dict(self.checked.most_common()),
            "operators": dict(self.operators.most_common()),
            "not_covered_by_the_checker": dict(self.unchecked.most_common(12)),
            "claims_below_a_witness_refused": self.refused_claims,
            "processor_seconds": round(self.processor_seconds, 1),
            "wrong": self.wrong,
        }


def search(seeds: Iterable[int], budget: float = 20) -> Found:
    found, started = Found(), time.process_time()
    for seed in seeds:
        try:
            _one(seed, found, budget)
        except LipverifyError as error:
            found.wrong.append(f"seed {seed}: {type(error).__name__}: {error}")
    found.processor_seconds = time.process_time() - started
    return found


def _one(seed: int, found: Found, budget: float) -> None:
    rng = np.random.default_rng(seed)
    graph = random_graph(rng)
    norms = NORMS[seed % 3], NORMS[seed // 3 % 3]
    region, names = None, ["product", "lipsdp-fast"]
    if seed % 10 == 0:
        names = ["product", "lipsdp"]
    if seed % 2:
        centers = torch.tensor(rng.standard_normal((2, *graph.input_shape)))
        region = lv.Ball(centers, 10.0 ** rng.uniform(-4, 0.3), ("l2", "linf")[seed // 2 % 2])
        names = ["local", ("local:interval", "local:recurjac", "local-sdp")[seed // 4 % 3]]
        names += ["local-bab"] if seed % 101 == 0 else []
    found.networks += 1
    found.operators.update({node.op.kind() for node in graph.nodes})
    options: dict[str, Any] = {"norm": norms[0], "norm_out": norms[1], "region": region}
    result = lv.audit(graph, **options, analyzers=names, search=SEARCH, seed=seed, budget=budget)
    # A witness above a bound, evidence that does not check, or anything else that broke.
    found.wrong += [f"seed {seed}: {row.analyzer}: {row.refused}" for row in result.rows if row.failed]
    if result.lower.failed:
        found.wrong.append(f"seed {seed}: {result.lower.witness.note}")
    for row in result.rows:
        if row.certificate is None:
            continue
        found.answers[row.analyzer] += 1
        if row.certificate.rigour is Rigour.CHECKED:
            found.checked[row.analyzer] += 1
            assert isinstance(row.certificate.issued, Issued)
            witness = torch.as_tensor(result.lower.value).reshape(-1)
            for centre in range(len(witness)):
                _claim_below(seed, row.certificate.issued, graph, float(witness[centre]), centre, found)
        else:
            found.unchecked[row.certificate.unchecked] += 1


def _claim_below(
    seed: int, issued: Issued, graph: lv.Graph, witness: float, centre: int, found: Found
) -> None:
    """The witness is below the truth: a claim below the witness has no proof."""
    if witness <= 1e-9:
        return
    document = copy.deepcopy(issued.document)
    claimed = document["claim"]["upper"]
    claimed = claimed[centre] if isinstance(claimed, list) else claimed
    restated(document, witness * (1 - 1e-7) / claimed, centre)
    try:
        Issued(document, issued.arrays).check(model_of(graph))
    except (RefutedCertificate, UnreadableCertificate):
        found.refused_claims += 1
        return
    except LipverifyError as error:
        raise AssertionError(f"seed {seed}: {error}") from error
    found.wrong.append(f"seed {seed}: the checker accepts {witness * (1 - 1e-7)!r}, below a witness")
