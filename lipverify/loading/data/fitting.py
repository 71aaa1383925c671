"""Points of a model's shape, in units of its input, from what a file holds."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lipverify.errors import InvalidFile, UsageError
from lipverify.loading.data.settings import Raw, Settings
from lipverify.loading.names import display, sentence
from lipverify.loading.numpy_archive import require_finite


@dataclass(frozen=True)
class Points:
    """Points in units of the model's raw input: x float64 [samples, ...], labels y int64 [samples].

    features: names of the entries of a point, from the columns of a table; notes: what was decided while the file was read;
    asked: what the user said about it.
    """

    x: NDArray[np.float64]
    y: NDArray[np.int64] | None
    path: str
    sha256: str
    features: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()
    asked: Settings = field(default_factory=Settings)

    @property
    def identity(self) -> dict[str, Any]:
        """What decides the numbers: the file, and how it was read."""
        return {"sha256": self.sha256, **self.asked.to_json()}

    def require(self, input_shape: tuple[int, ...], classes: int) -> None:
        """Raises InvalidFile unless all points have the model's input shape and all labels name an output."""
        if self.x.shape[1:] != tuple(input_shape):
            what = f"x has points of shape {list(self.x.shape[1:])}, the model takes {list(input_shape)}"
            raise InvalidFile(sentence(self.path, what, "first axis = samples, then one input each"))
        if self.y is not None and bool((self.y >= classes).any()):
            index = int(np.argmax(self.y >= classes))
            what = f"label {self.y[index]} at index {index} is out of range for {classes} outputs"
            one = bool(self.y.min() >= 1) and int(self.y.max()) == classes
            remedy = "they begin at 1: --first-label 1" if one else f"labels are 0 to {classes - 1}"
            raise InvalidFile(sentence(self.path, what, remedy))


def fit(
    raw: Raw,
    settings: Settings | None = None,
    shape: tuple[int, ...] | None = None,
    classes: int | None = None,
) -> Points:
    """Points for a model. shape: of one input; classes: how many outputs it has; None where there is no model yet.

    Raises:
        InvalidFile: points of another shape, or of a shape that could be laid out in two ways; labels that name no output;
            numbers that are not finite after scaling. UsageError: a mean or deviation of another length.
    """
    settings = settings or Settings()
    notes = list(raw.notes)
    x, said = _shaped(raw, shape)
    notes += said
    kept = np.array(x[: settings.limit], np.float64, order="C")
    if raw.x.dtype == np.uint8 and not settings.rescaled and kept.max() > 1:
        notes.append(
            f"values are whole numbers up to {kept.max():g}, taken as they are; for a model of inputs from 0 to 1: --scale 1/255"
        )
    if settings.rescaled:
        kept = _scaled(kept, settings)
        require_finite(kept, "x after --scale, --mean and --std", raw.path)
        notes.append(
            "points, radii and boxes are in units of the model's input, after --scale, --mean and --std"
        )
    y = None
    if raw.y is not None and classes == 1:
        notes.append("labels are left out: the model has a single output")
    elif raw.y is not None:
        y = _labels(raw, len(raw.x), settings, classes)[: settings.limit]
        if raw.classes:
            listed = ", ".join(display(name, 20) for name in raw.classes[:6]) + (
                ", ..." if len(raw.classes) > 6 else ""
            )
            notes.append(
                f"classes in alphabetical order ({listed}) are the outputs 0 to {len(raw.classes) - 1}"
            )
    asked = settings
    return Points(kept, y, raw.path, raw.sha256, raw.features, tuple(notes), raw.classes, asked)


# -- the shape of a point


def _shaped(raw: Raw, shape: tuple[int, ...] | None) -> tuple[NDArray[np.generic], list[str]]:
    """x with points of the model's shape: as they are, a single one, other axes of size one, another order, unrolled."""
    x, found = raw.x, raw.x.shape[1:]
    if shape is None or found == shape:
        return x, []
    if x.shape == shape:
        return x[None], ["the file holds a single point"]
    slim, wanted = (tuple(size for size in sizes if size != 1) for sizes in (found, shape))
    if slim == wanted or (len(slim) <= 1 and prod(found) == prod(shape)):
        # Axes of size one, or rows of numbers in the order in which the model reads them.
        unrolled = (
            []
            if slim == wanted
            else [f"rows of {prod(found)} numbers are read as inputs of shape {list(shape)}"]
        )
        return x.reshape(len(x), *shape), unrolled
    orders = [o for o in itertools.permutations(range(len(slim))) if tuple(slim[i] for i in o) == wanted]
    last_first = (len(slim) - 1, *range(len(slim) - 1))
    first_last = (*range(1, len(slim)), 0)
    moved = [order for order in orders if order in (last_first, first_last)]
    if len(slim) == 3 and len(moved) == 1:
        x = x.reshape(len(x), *slim).transpose(0, *(i + 1 for i in moved[0])).reshape(len(x), *shape)
        where = "last" if moved[0] == last_first else "first"
        return x, [
            f"points of shape {list(found)} have their channels {where}; the axes are put in the model's order"
        ]
    if len(wanted) == 1 and prod(found) == prod(shape) and len(slim) == 2:
        return x.reshape(len(x), *shape), [f"images of shape {list(found)} are read row by row"]
    what = f"x has points of shape {list(found)}, the model takes {list(shape)}"
    remedy = "first axis = samples, then one input each"
    if prod(found) == prod(shape):
        remedy = "there are several ways to lay them out; reshape them as the model was trained"
    raise InvalidFile(sentence(raw.path, what, remedy))


def _scaled(x: NDArray[np.float64], settings: Settings) -> NDArray[np.float64]:
    shape = x.shape[1:]
    mean = _along(settings.mean or (0.0,), shape, "--mean")
    std = _along(settings.std or (1.0,), shape, "--std")
    with np.errstate(over="ignore", invalid="ignore"):
        scaled: NDArray[np.float64] = (x * settings.scale - mean) / std
    return scaled


def _along(numbers: tuple[float, ...], shape: tuple[int, ...], option: str) -> NDArray[np.float64]:
    """One number for all entries, one for each entry of a row, or one for each channel of an image: in the shape of a point."""
    array = np.array(numbers)
    if len(numbers) == 1:
        return np.full(shape, array[0])
    if len(numbers) == prod(shape):
        return array.reshape(shape)
    # Channels are the last axis only where the first one is too long to be channels.
    axis = 2 if len(shape) == 3 and shape[0] > 4 >= shape[2] else 0
    if len(shape) != 3 or shape[axis] != len(numbers):
        wanted = f"1 number, or {prod(shape)}" + (
            f", or one for each of {shape[axis]} channels" if len(shape) == 3 else ""
        )
        raise UsageError(
            f"{option} has {len(numbers)} numbers; for inputs of shape {list(shape)} it takes {wanted}"
        )
    sizes = [1] * len(shape)
    sizes[axis] = len(numbers)
    return np.broadcast_to(array.reshape(sizes), shape)


# -- labels


def _labels(raw: Raw, samples: int, settings: Settings, classes: int | None) -> NDArray[np.int64]:
    """Positions of outputs [samples], from whole numbers, names of classes or rows with a single 1."""
    y = raw.y
    assert y is not None
    path = raw.path
    if raw.classes:
        if classes is not None and len(raw.classes) != classes:
            what = f"names {len(raw.classes)} classes, the model has {classes} outputs"
            raise InvalidFile(
                sentence(path, what, "give labels as whole numbers, or leave them out: --data-y none")
            )
        return np.asarray(y, np.int64)
    if y.dtype.kind not in "iufb":
        raise InvalidFile(sentence(path, f"y has dtype {y.dtype}, not integers", "give class indices"))
    if y.ndim == 2 and y.shape[1] > 1 and len(y) == samples:
        one_hot = ((y == 0) | (y == 1)).all() and bool((y.sum(1) == 1).all())
        if not one_hot or (classes is not None and y.shape[1] != classes):
            what = f"y has shape {list(y.shape)} and is not one row with a single 1 for each sample"
            raise InvalidFile(sentence(path, what, "give class indices"))
        return np.asarray(y.argmax(1), np.int64)
    if y.ndim == 2 and y.shape[1] == 1:
        y = y[:, 0]
    if y.shape != (samples,):
        what = f"y has shape {list(y.shape)}, x has {samples} samples"
        raise InvalidFile(sentence(path, what, f"y needs shape [{samples}]"))
    whole = y if y.dtype.kind in "iub" else np.where(y == np.rint(y), y, np.nan)
    if not bool(np.isfinite(whole).all()):
        remedy = "give class indices, or leave labels out: --data-y none"
        value = float(y[int(np.argmin(np.isfinite(whole)))])
        raise InvalidFile(
            sentence(
                path, f"y holds {value:g}, which is no label; y has dtype {y.dtype}, not integers", remedy
            )
        )
    low, high = int(whole.min()), int(whole.max())
    if low < settings.first_label or high > np.iinfo(np.int32).max:
        remedy = (
            ""
            if settings.first_label == 0
            else f"--first-label says that they begin at {settings.first_label}"
        )
        raise InvalidFile(sentence(path, "y holds labels that are negative or absurdly large", remedy))
    return whole.astype(np.int64) - settings.first_label
