"""From command-line words to a region and a device."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from lipverify.errors import UsageError
from lipverify.ir.graph import Graph
from lipverify.ir.norm import Norm
from lipverify.ir.region import Ball, Everywhere, Region
from lipverify.loading import read_points


def choose_region(
    graph: Graph,
    data: Path | None,
    radius: float | None,
    ball: str,
    box: tuple[float, float] | None,
    limit: int | None,
) -> tuple[Region, Tensor | None]:
    """The region of the query, and the data points as hints for the search when the region is everywhere.

    Raises:
        UsageError: data that does not fit the model.
    """
    if data is None:
        return Everywhere(), None
    points = read_points(data)
    points.require(graph.input_shape, graph.output.size)
    x = torch.from_numpy(points.x[:limit]).to(torch.float64)
    if radius is None:
        return Everywhere(), x
    return Ball(x, radius, Norm.parse(ball), box), None


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
