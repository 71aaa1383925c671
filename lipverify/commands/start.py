"""How every long command begins: the device, the folder, progress, the model, the points."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from lipverify import pipeline
from lipverify.errors import UsageError
from lipverify.ir.graph import Graph
from lipverify.loading import read_points
from lipverify.loading.names import display_path
from lipverify.loading.numpy_archive import Points as StoredPoints
from lipverify.options import Options, Reading
from lipverify.reporting.places import RESULT
from lipverify.reporting.terminal import Progress
from lipverify.reporting.writing import OutputFolder


def load(options: Reading, model: str) -> Graph:
    """One model, without a margin. Raises as `pipeline.load`."""
    return pipeline.load(
        model,
        arch=options.arch,
        trust_code=options.trust_code,
        input_shape=options.input_shape,
        output=options.output,
        input=options.input,
        constants=options.constants,
    )


def points_of(options: Options) -> Points | None:
    """What --data and --limit name; None without --data. Raises UsageError."""
    if options.data is None:
        return None
    stored = read_points(options.data)
    y = None if stored.y is None else torch.from_numpy(stored.y[: options.limit])
    return Points(torch.from_numpy(stored.x[: options.limit]), y, stored)


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
def begun(options: Options, unfinished: str | None = None) -> Iterator[Start]:
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
        resume = bool(getattr(options, "resume", False))
        if ours and not resume and not options.force:
            raise UsageError(
                f"{display_path(options.out)} holds an unfinished run; give --resume to go on with it or --force to begin again"
            )
        with OutputFolder(options.out, force=options.force or (resume and left)) as folder:
            yield Start(device, folder, progress)


def choose_device(name: str) -> torch.device:
    """`auto` takes CUDA where there is one.

    Raises:
        UsageError: CUDA is asked for and absent, or the word is unknown.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name not in {"cpu", "cuda"}:
        raise UsageError(f"unknown device {name!r}; choose auto, cpu or cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise UsageError("no CUDA device is available; `lipverify doctor` shows what torch sees")
    return torch.device(name)
