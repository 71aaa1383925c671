"""Norms of tokens as the checker follows them, for an analyzer: the constant, and what every stage knows, by node.

The rules are the kernel's (`checkers.theories.tokens`): there is one implementation, on the program that the checker reads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch

from lipverify.certificates.format import tokens_of
from lipverify.certificates.issuing import subject_of
from lipverify.checkers.evaluation import evaluate
from lipverify.checkers.kernel.program import Program
from lipverify.checkers.norms import Norm as TokenNorm
from lipverify.checkers.norms import Tokens
from lipverify.checkers.theories import tokens as kernel
from lipverify.checkers.theories.tokens.distances import lambert
from lipverify.errors import NotCovered, UnsupportedModel
from lipverify.interpreter import evaluate_all
from lipverify.ir.graph import Graph, Node
from lipverify.ir.norm import Norm
from lipverify.ir.region import Query

__all__ = ["Followed", "Stage", "computed_by", "followed", "lambert", "unread"]


class Stage(NamedTuple):
    """What is known of a family: what makes it, its largest size and constant (slope 2^power)."""

    kind: str
    width: int
    size: float
    slope: float
    power: int


@dataclass(frozen=True)
class Followed:
    """A constant, the tokens that it is about (None: all), and stages with the nodes that compute them, where one does."""

    value: Fraction
    within: Tokens | None
    stages: Sequence[tuple[Node | None, Stage]]


def unread(graph: Graph) -> str | None:
    """Why the checker does not read the model; None where it does."""
    try:
        subject_of(graph)
    except NotCovered as error:
        return f"{error}; norms of tokens are computed on what the checker reads of the model"
    except OSError as error:
        return f"the model file cannot be read again ({error.strerror})"
    return None


def followed(graph: Graph, query: Query, variance: float = 0.0) -> Followed:
    """The constant of a graph between norms of tokens.

    Args:
        variance: what is known from below of that of everything that is normalised.

    Raises:
        UnsupportedModel: something has no constant over these inputs, with node, reason and remedy.
    """
    within = tokens_of(query.region, graph.input_shape)
    program = subject_of(graph).program
    first, last = _norm(query.norm_in, graph.input_shape), _norm(query.norm_out, graph.output_shape)
    if isinstance(first, str):
        raise UnsupportedModel(f"{first} at the input is no norm of tokens")
    try:
        found = kernel.sequences(program, within, first.width, variance)
        value = kernel.norm_between(found, (first, last))
    except kernel.NoConstant as error:
        at = computed_by(graph, program, error.step)
        where = "" if at is None else f"{at.describe()}: "
        raise UnsupportedModel(f"{where}{error.reason}") from error
    except NotCovered as error:
        raise UnsupportedModel(str(error)) from error
    stages = [
        (
            computed_by(graph, program, f.step),
            Stage(f.kind, f.width, float(f.size.max()), float(f.slope.max()), f.power),
        )
        for f in found.families
    ]
    return Followed(value, within, stages)


def _norm(norm: Norm, shape: tuple[int, ...]) -> TokenNorm | str:
    return TokenNorm(norm.value, shape[-1] if shape else 1) if norm.of_tokens else norm.value


def computed_by(graph: Graph, program: Program, step: int) -> Node | None:
    """The first node with the same numbers, in any order; None where there is none. Nothing rests on it."""
    return _nodes(_Same(graph, program)).get(step)


class _Same:
    """A graph and its program as a key: the same objects."""

    def __init__(self, graph: Graph, program: Program) -> None:
        self.graph, self.program = graph, program

    def __hash__(self) -> int:
        return hash((id(self.graph), id(self.program)))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self.graph is other.graph and self.program is other.program


@lru_cache(maxsize=2)
def _nodes(same: _Same) -> dict[int, Node]:
    graph, program = same.graph, same.program
    points = np.random.default_rng(0).standard_normal((2, program.steps[0].size))
    with np.errstate(all="ignore"), torch.no_grad():
        results = [np.sort(r, 1) for r in evaluate(program, points)]
        shaped = torch.from_numpy(points).reshape(-1, *graph.input_shape)
        values = evaluate_all(graph.to(dtype=torch.float64), shaped)
    known = {
        name: np.sort(value.expand(2, *value.shape[1:]).reshape(2, -1).numpy(), 1)
        for name, value in values.items()
    }
    found = {}
    for step, result in enumerate(results):
        for node in graph.nodes:
            other = known[node.name]
            if other.shape == result.shape and np.allclose(other, result, rtol=1e-9, atol=1e-12):
                found[step] = node
                break
    return found
