"""How every long command begins: options that all have, the folder, progress, the model, the points."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lipverify import pipeline
from lipverify.errors import UsageError
from lipverify.ir.graph import Graph
from lipverify.loading import read_points
from lipverify.loading.names import display_path
from lipverify.loading.numpy_archive import Points as StoredPoints
from lipverify.reporting.places import RESULT
from lipverify.reporting.terminal import Progress
from lipverify.reporting.writing import OutputFolder
from lipverify.selection import choose_device


@dataclass(frozen=True, kw_only=True)
class Common:
    """Options of the command line that every long command has, parsed."""

    data: Path | None
    limit: int | None
    box: tuple[float, float] | None
    margin: tuple[int, int] | None
    budget: float | None
    output: int | str
    input: str | None
    constants: Mapping[str, Any]
    device: str
    seed: int
    out: Path | None
    force: bool
    resume: bool
    arch: str | None
    trust_code: bool
    input_shape: tuple[int, ...] | None
    quiet: bool
    command: str

    def load(self, model: str) -> Graph:
        """One model, without the margin. Raises as `pipeline.load`."""
        return pipeline.load(
            model,
            arch=self.arch,
            trust_code=self.trust_code,
            input_shape=self.input_shape,
            output=self.output,
            input=self.input,
            constants=self.constants,
        )

    def points(self) -> Points | None:
        """What --data and --limit name; None without --data. Raises UsageError."""
        if self.data is None:
            return None
        stored = read_points(self.data)
        y = None if stored.y is None else torch.from_numpy(stored.y[: self.limit])
        return Points(torch.from_numpy(stored.x[: self.limit]), y, stored)


@dataclass(frozen=True)
class Points:
    """x [points, *input shape] and labels y [points], as far as --limit goes."""

    x: Tensor
    y: Tensor | None
    stored: StoredPoints

    def require(self, graph: Graph) -> None:
        """Raises InvalidFile unless they fit the network."""
        self.stored.require(graph.input_shape, graph.output.size)


@dataclass(frozen=True)
class Start:
    """A command that has begun."""

    device: torch.device
    folder: OutputFolder | None
    progress: Progress


@contextmanager
def begun(options: Common, unfinished: str | None = None) -> Iterator[Start]:
    """The device is there, the folder is ours, progress is shown.

    Args:
        unfinished: pattern of files that an unfinished run of this command leaves behind.

    Raises:
        UsageError: no such device; a folder that is in use, foreign, or holds an unfinished run that is neither to be continued
            nor to be thrown away.
    """
    device = choose_device(options.device)
    with Progress(quiet=options.quiet) as progress:
        if options.out is None:
            yield Start(device, None, progress)
            return
        left = unfinished is not None and any(options.out.glob(unfinished))
        ours = left and not (options.out / RESULT).exists()
        if ours and not options.resume and not options.force:
            raise UsageError(
                f"{display_path(options.out)} holds an unfinished run; give --resume to go on with it or --force to begin again"
            )
        with OutputFolder(options.out, force=options.force or (options.resume and left)) as folder:
            yield Start(device, folder, progress)
