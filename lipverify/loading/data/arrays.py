"""Which arrays of an archive are the points and their labels."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from lipverify.errors import InvalidFile, UsageError
from lipverify.loading.data.settings import NO_LABELS, Settings
from lipverify.loading.files import Path
from lipverify.loading.names import display, sentence

POINTS = ("x", "image", "images", "input", "inputs", "data", "features", "samples", "obs", "observations")
LABELS = ("y", "label", "labels", "target", "targets", "class", "classes", "species", "digit")
"""Usual names, in lower case; `x_test` and `test_images` are read as `x` and `images` of one part of the data."""
_PARTS = ("test", "val", "valid", "validation", "train", "eval")


def choose(names: Collection[str], settings: Settings, path: Path) -> tuple[str, str | None, tuple[str, ...]]:
    """The names of the points and of the labels, and notes about names that were not given.

    Raises:
        InvalidFile: no array looks like points, or several do. UsageError: a name that is not there.
    """
    notes: list[str] = []
    if len(settings.x) > 1:
        raise UsageError("--data-x takes one name of an array; several are for the columns of a table")
    x = settings.x[0] if settings.x else _found(names, POINTS, "points", "--data-x", path)
    if x is None:
        listed = ", ".join(display(name, 20) for name in list(names)[:6]) or "nothing"
        remedy = f"name the array that holds the points: --data-x {display(next(iter(names), 'x'), 20)}"
        raise InvalidFile(sentence(path, f"has no array x (it holds {listed})", remedy))
    y: str | None
    if settings.y == NO_LABELS:
        y = None
    elif settings.y is not None:
        y = settings.y
    else:
        y = _partner(x, names) or (None if _part(x) else _found(names, LABELS, "labels", "--data-y", path))
    for name in (x, y):
        if name is not None and name not in names:
            listed = ", ".join(display(name, 20) for name in list(names)[:6])
            raise UsageError(sentence(path, f'has no array "{display(name, 40)}"', f"it holds {listed}"))
    if not settings.x and x != "x":
        notes.append(f'the points are the array "{display(x, 40)}"')
    if y is not None and settings.y is None and y != "y":
        notes.append(f'the labels are the array "{display(y, 40)}"')
    return x, y, tuple(notes)


def _word(name: str) -> str:
    """The word that says what an array is, without the part of the data."""
    words = [word for word in name.lower().replace("-", "_").replace(".", "_").split("_") if word]
    return "_".join(word for word in words if word not in _PARTS)


def _part(name: str) -> str:
    words = name.lower().replace("-", "_").replace(".", "_").split("_")
    return "_".join(word for word in words if word in _PARTS)


def _found(names: Collection[str], known: tuple[str, ...], what: str, option: str, path: Path) -> str | None:
    found = [name for name in names if _word(name) in known]
    exact = [name for name in found if name == known[0]]
    if exact:
        return exact[0]
    if len(found) > 1:
        listed = ", ".join(display(name, 20) for name in found[:6])
        remedy = f"name it: {option} {display(found[0], 20)}"
        raise InvalidFile(sentence(path, f"has several arrays that may hold the {what} ({listed})", remedy))
    return found[0] if found else None


def _partner(x: str, names: Collection[str]) -> str | None:
    """The labels of the same part of the data: y_test for x_test."""
    found = [name for name in names if _word(name) in LABELS and _part(name) == _part(x)]
    return found[0] if len(found) == 1 else None


def of_leaves(leaves: Mapping[tuple[str, ...], object], path: Path) -> dict[str, tuple[str, ...]]:
    """Names for the tensors of a torch file: a single one is the points, two in a row are points and labels."""
    keys = list(leaves)
    if keys == [()]:
        return {"x": ()}
    if keys == [("0",), ("1",)]:
        return {"x": ("0",), "y": ("1",)}
    if keys == [("0",)]:
        return {"x": ("0",)}
    return {".".join(key): key for key in keys}
