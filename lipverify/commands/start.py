"""How every long command begins: the device, the folder, progress, the model, the points."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lipverify import memory, pipeline
from lipverify.analyzers import registry
from lipverify.analyzers.protocol import refusal
from lipverify.deadline import look, within
from lipverify.documents import model_document, nodes_document
from lipverify.errors import BudgetEnded, InvalidFile, Undecided, UsageError
from lipverify.interpreter import evaluate
from lipverify.ir.graph import Graph
from lipverify.ir.norm import Norm
from lipverify.ir.region import Ball, Query
from lipverify.loading import read_points
from lipverify.loading.data import Points as StoredPoints
from lipverify.loading.data import label_hint
from lipverify.loading.names import display_path, sentence
from lipverify.options import Options, Reading
from lipverify.reporting.places import RESULT
from lipverify.reporting.terminal import Progress
from lipverify.reporting.writing import OutputFolder
from lipverify.settings import choose_device

STARTING = 2.0
"""Seconds that reading a model may take beyond a budget: as much is gone before a line of ours has run."""


def load(options: Reading, model: str) -> Graph:
    """One model, without a margin. Raises as `pipeline.load`; Undecided: the budget ended before it was read."""
    budget = options.budget if isinstance(options, Options) else None
    try:
        with within(options.end + STARTING if isinstance(options, Options) and options.end else None):
            look()
            return pipeline.load(
                model,
                arch=options.arch,
                trust_code=options.trust_code,
                input_shape=options.input_shape,
                output=options.output,
                input=options.input,
                constants=options.constants,
                steps=options.steps,
                state=options.state,
            )
    except BudgetEnded:
        raise Undecided(
            f"not run: the budget of {budget:g} s ended while {display_path(model)} was being read; give a larger --budget"
        ) from None


def points_of(options: Options, graph: Graph | None, progress: Progress) -> Points | None:
    """What --data names, read as the options say; None without --data.

    Args:
        graph: the model they are for, which tells what a table's columns and an image's axes are; None where none could be read.
        progress: hears what was decided on the way.

    Raises:
        InvalidFile, UnsafeInput, UsageError: as `read_points`, and for points or labels that do not fit the model.
    """
    if options.data is None:
        return None
    shape = None if graph is None else graph.input_shape
    classes = None if graph is None else graph.output.size
    stored = read_points(options.data, options.settings, shape, classes)
    for note in stored.notes:
        progress.note(f"data: {note}")
    y = None if stored.y is None else torch.from_numpy(stored.y)
    found = Points(torch.from_numpy(stored.x), y, stored)
    if graph is not None:
        found.require(graph)
    return found


@dataclass(frozen=True)
class Points:
    """x [points, *input shape] and labels y [points], as far as --limit goes."""

    x: Tensor
    y: Tensor | None
    stored: StoredPoints

    def require(self, graph: Graph) -> None:
        """Raises InvalidFile unless they fit the network."""
        self.stored.require(graph.input_shape, graph.output.size)

    def require_labels(self, graph: Graph) -> None:
        """Raises InvalidFile where every label is wrong, with the reading that makes most of them right."""
        hint = self.hint(graph)
        if hint is not None:
            raise InvalidFile(sentence(self.stored.path, hint))

    def hint(self, graph: Graph) -> str | None:
        """Why every label is wrong, where every one is; None otherwise, and for points of another shape."""
        if tuple(self.x.shape[1:]) != graph.input_shape:
            return None
        exact = graph.to(dtype=torch.float64)

        def predict(x: Any) -> Any:
            with torch.no_grad():
                return evaluate(exact, torch.from_numpy(x)).flatten(1).argmax(1).numpy()

        return label_hint(self.stored, predict)

    def to_json(self) -> dict[str, Any]:
        """What documents say about the data: the file, how it was read, what was decided on the way."""
        found = {"path": self.stored.path, "points": len(self.x), **self.stored.identity}
        return found | ({"notes": list(self.stored.notes)} if self.stored.notes else {})


@dataclass(frozen=True)
class Start:
    """A command that has begun."""

    device: torch.device
    folder: OutputFolder | None
    progress: Progress


@contextmanager
def begun(options: Options, unfinished: str | None = None) -> Iterator[Start]:
    """The device is there, the folder is ours, progress is shown.

    Args:
        unfinished: pattern of files that an unfinished run of this command leaves behind.

    Raises:
        UsageError: no such device; a folder that is in use, foreign, or holds an unfinished run that is neither to be continued
            nor to be thrown away.
    """
    memory.limit(options.memory)
    device = choose_device(options.device)
    with Progress(quiet=options.quiet, verbose=options.verbose) as progress:
        if options.budget is not None:
            progress.limit(options.budget)
        if options.out is None:
            yield Start(device, None, progress)
            return
        left = unfinished is not None and any(options.out.glob(unfinished))
        ours = left and not (options.out / RESULT).exists()
        resume = bool(getattr(options, "resume", False))
        if ours and not resume and not options.force:
            raise UsageError(
                f"{display_path(options.out)} holds an unfinished run; give --resume to go on with it or --force to begin again"
            )
        with OutputFolder(options.out, force=options.force or (resume and left)) as folder:
            yield Start(device, folder, progress)


def inspect_document(graph: Graph) -> dict[str, Any]:
    """The document of `inspect --json`: `analyzers` over the whole space in l2, `around_points` in a linf ball."""
    ball = Ball(torch.zeros(1, *graph.input_shape, dtype=torch.float64), 0.1, Norm.LINF)
    return {
        "schema": "lipverify.inspect/1",
        "model": model_document(graph),
        "nodes": nodes_document(graph),
        "analyzers": _reasons(graph, Query()),
        "around_points": _reasons(graph, Query(Norm.LINF, Norm.LINF, ball)),
    }


def _reasons(graph: Graph, query: Query) -> dict[str, str | None]:
    """What every analyzer would say: None where it can answer."""
    return {name: refusal(registry.resolve(name), graph, query) for name in registry.names()}
