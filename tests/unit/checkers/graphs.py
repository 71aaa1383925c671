"""Graphs as the kernel sees them: what the checker knows of the values and gradients of a network over the balls of a region."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

import lipverify as lv
from lipverify.certificates import described
from lipverify.certificates.fitting import derivatives, neurons
from lipverify.certificates.format import region_arrays
from lipverify.checkers.evaluation import evaluate
from lipverify.checkers.kernel import Condition, Program, Region, Rows, Subject
from lipverify.checkers.kernel.neurons import Differences
from lipverify.checkers.kernel.ranges import Ranges
from lipverify.checkers.regions import Ball, region_of
from lipverify.ir.graph import Graph


def program_of(graph: Graph) -> Program:
    """The program that ends with the output of a graph."""
    return described(graph).program.ending(0)


def matrix_of(program: Program) -> np.ndarray:
    """The matrix [outputs, inputs] of an affine program."""
    size = program.steps[0].size
    return (evaluate(program, np.eye(size))[-1] - evaluate(program, np.zeros((1, size)))[-1]).T


def balls_of(region: lv.Ball) -> list[Region]:
    arrays = {name: array.numpy() for name, array in region_arrays(region).items()}
    box = (arrays["box"][0], arrays["box"][1]) if "box" in arrays else None
    centres = arrays["centres"]
    balls = (Ball(str(region.norm), region.radius, k, box is not None) for k in range(len(centres)))
    return [region_of(ball, centres, box) for ball in balls]


@dataclass(frozen=True)
class Known:
    """Ranges over one ball."""

    subject: Subject
    ranges: Ranges

    @property
    def last(self) -> int:
        return len(self.subject.program.steps) - 1

    def values(self) -> tuple[np.ndarray, np.ndarray]:
        return self.ranges.chain.ranges(self.ranges.output)

    def constant(self, norms: tuple[str, str]) -> float:
        rows = Rows(0, self.subject.program.steps[-1].size)
        return derivatives(self.subject, 0, self.last, self.ranges, rows, norms)

    def neurons(self) -> Differences:
        return neurons(self.subject, 0, self.last, self.ranges, {})


def known_of(graph: Graph, region: lv.Ball, conditions: tuple[Condition, ...] = ()) -> list[Known]:
    """What is known over every ball, within conditions."""
    balls = balls_of(region)
    subject = Subject(program_of(graph), balls)
    return [Known(subject, Ranges(subject.elements, ball, conditions)) for ball in balls]
