"""What people hold, to what the verbs take: models, points, labels, regions, times; anything else is refused by name and kind."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lipverify import pipeline
from lipverify.comparison.results import Unreadable
from lipverify.errors import UsageError
from lipverify.ir.graph import Graph
from lipverify.ir.interval import Interval
from lipverify.ir.region import Ball, Bounded, Everywhere, Region
from lipverify.ir.taking import number, numbers, pair, real, shown
from lipverify.loading import read_points
from lipverify.loading.arguments import parse_duration
from lipverify.loading.names import display
from lipverify.settings import choose_device

A_MODEL = "a graph (lv.load, lv.extract), a path, zoo:<name>, or a torch module with example=x"


def model(given: Any, example: Any = None, what: str = "the model") -> Graph:
    """A graph from what stands for a network.

    Args:
        example: of a torch module, a batch of inputs.

    Raises:
        UsageError: no network, or a module without an example. Others as `lv.load` and `lv.extract`.
    """
    if isinstance(given, Graph):
        return given
    if isinstance(given, str | os.PathLike):
        return pipeline.load(path(given, what))
    if isinstance(given, nn.Module):
        if example is None:
            raise UsageError(f"{what} is a torch module: give example=x, a batch of its inputs")
        return pipeline.extract(given, batch(given, example))
    hint = ""
    if isinstance(given, type) and issubclass(given, nn.Module):
        hint = "; make an object of the class first"
    elif type(given).__name__ == "ModelProto":
        hint = "; save it to a file (onnx.save) and give the path"
    elif callable(given):
        hint = "; a function has no weights to read: put it into a torch.nn.Module"
    raise UsageError(f"{what} must be {A_MODEL}, not {shown(given)}{hint}")


def path(given: Any, what: str) -> str | Path:
    """A path. Raises UsageError."""
    if not isinstance(given, str | os.PathLike) or not isinstance(os.fspath(given), str):
        raise UsageError(f"{what} must be a path, not {shown(given)}")
    if not os.fspath(given) or "\0" in os.fspath(given):
        raise UsageError(f"{what} must be a path, not {display(repr(os.fspath(given)), 40)}")
    return given if isinstance(given, str) else Path(given)


def batch(module: nn.Module, example: Any, what: str = "example") -> Tensor:
    """At least two samples for the export, in the type and on the device of the module. Raises UsageError."""
    x = real(example, what).detach() if isinstance(example, Tensor) else numbers(example, what)
    if x.ndim < 1 or len(x) < 1:
        raise UsageError(
            f"{what} must be a batch of inputs, first axis = samples, not of shape {list(x.shape)}"
        )
    tensors = [t for t in (*module.parameters(), *module.buffers()) if t.is_floating_point()]
    like = tensors[0] if tensors else torch.empty(0)
    # Whole numbers of 64 bits are words of a vocabulary, which the export refuses; bytes are grey values.
    floating = x.is_floating_point() or x.dtype is torch.uint8
    x = x.to(device=like.device, dtype=like.dtype if floating else x.dtype)
    # The samples are only looked at for their shape and type; a batch of one cannot be told from no batch.
    return x.clone() if len(x) > 1 else torch.cat([x, x])


def points(given: Any, graph: Graph | None = None, what: str = "x") -> Tensor:
    """Points [count, *sample shape], float64. One sample of just the shape of the network's input is a batch of one.

    Raises:
        UsageError: no numbers, or numbers that are not finite.
    """
    x = (
        torch.from_numpy(read_points(Path(path(given, what))).x)
        if isinstance(given, str | os.PathLike)
        else None
    )
    x = numbers(given, what) if x is None else x
    if graph is not None and tuple(x.shape) == graph.input_shape:
        x = x[None]
    if graph is not None and (tuple(x.shape[1:]) != graph.input_shape or x.ndim < 1 or len(x) < 1):
        raise UsageError(
            f"{what} has shape {list(x.shape)}; the model takes samples of {list(graph.input_shape)}, the first axis counts them"
        )
    if not bool(x.isfinite().all()):
        raise UsageError(f"{what} holds numbers that are not finite")
    return x


def labels(given: Any, what: str = "y") -> list[int] | None:
    """One whole number for each point; None stays None. Raises UsageError."""
    if given is None:
        return None
    found = numbers(given, what)
    if found.ndim == 0:
        found = found[None]
    if found.ndim != 1 or not bool(found.isfinite().all() and (found == found.round()).all()):
        raise UsageError(
            f"{what} must be labels, one whole number for each point, not of shape {list(found.shape)}"
        )
    return [int(label) for label in found.tolist()]


def seconds(given: Any, what: str = "budget") -> float | None:
    """A time: seconds, or words like `90s` and `10m`; None stays None. Raises UsageError unless positive."""
    if given is None:
        return None
    if isinstance(given, str):
        return parse_duration(given)
    if isinstance(given, float) and given == math.inf:
        return None
    found = number(given, what)
    if not found > 0:
        raise UsageError(f"{what} must be a time larger than 0 (seconds, or like 10m), not {shown(given)}")
    return found


def device(given: Any) -> torch.device:
    """A device. Raises UsageError."""
    if isinstance(given, torch.device):
        given = str(given)
    if not isinstance(given, str):
        raise UsageError(f"device must be auto, cpu or cuda, not {shown(given)}")
    return choose_device(given)


def region(given: Any) -> Region | None:
    """`Everywhere`, `Bounded` or a `Ball`; None stays None. Raises UsageError."""
    if given is None or isinstance(given, Everywhere | Bounded | Ball):
        return given
    if isinstance(given, str) and given.lower() == "everywhere":
        return Everywhere()
    raise UsageError(
        f"region must be lv.Everywhere(), lv.Bounded(most) or lv.Ball(x, radius), not {shown(given)}"
    )


def box_or_ball(given: Any) -> Any:
    """A region of single inputs: a `Ball`, or the two ends of a box. Raises UsageError."""
    if isinstance(given, Interval | Ball):
        return given
    if isinstance(given, list | tuple):
        return pair(given, "the box")
    raise UsageError(f"region must be a box (low, high) or lv.Ball(x, radius), not {shown(given)}")


def ball(given: Any) -> Ball:
    """A `Ball`. Raises UsageError."""
    if not isinstance(given, Ball):
        raise UsageError(f"ball must be lv.Ball(x, radius), not {shown(given)}")
    return given


def models(given: Any, example: Any = None) -> dict[str, Graph | Unreadable]:
    """Networks by name: a mapping, several in a list, or one. In a list they are called as their files, or counted.

    Raises:
        UsageError: no networks.
    """
    if isinstance(given, Mapping):
        named = {name if isinstance(name, str) else str(name): one for name, one in given.items()}
    else:
        several = list(given) if isinstance(given, list | tuple) else [given]
        named = {}
        for count, one in enumerate(several, 1):
            name = _name(one, count)
            named[name if name not in named else f"{name} ({count})"] = one
    if not named:
        raise UsageError("a comparison needs at least one model")
    return {
        name: one if isinstance(one, Unreadable) else model(one, example, f'model "{display(name, 60)}"')
        for name, one in named.items()
    }


def _name(given: Any, count: int) -> str:
    origin = given.origin.path if isinstance(given, Graph) else given
    if not isinstance(origin, str | os.PathLike) or not str(origin):
        return f"model {count}"
    text = str(origin)
    return display(text if text.startswith("zoo:") else Path(text).name or text, 60)


def called(given: Any, what: str) -> Any:
    """Something to call, or None. Raises UsageError."""
    if given is not None and not callable(given):
        raise UsageError(f"{what} must be a function, not {shown(given)}")
    return given


def word(given: Any, what: str) -> str:
    """A word. Raises UsageError."""
    if not isinstance(given, str) or not given.isprintable():
        raise UsageError(f"{what} must be a word, not {shown(given)}")
    return given


def of_kind(kind: type, what: str) -> Callable[[Any], Any]:
    """Takes objects of one kind, and None."""

    def take(given: Any) -> Any:
        if given is not None and not isinstance(given, kind):
            raise UsageError(f"{what} must be a {kind.__module__}.{kind.__name__}, not {shown(given)}")
        return given

    return take


def truth(given: Any, what: str) -> bool:
    """True or False. Raises UsageError."""
    if not isinstance(given, bool):
        raise UsageError(f"{what} must be True or False, not {shown(given)}")
    return given
