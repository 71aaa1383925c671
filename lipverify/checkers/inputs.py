"""How a certificate tells what goes into a file: its JSON as the typed reading that the reader follows."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from lipverify.checkers.kernel.program import MAX_SIZE
from lipverify.checkers.reader.reading import FIXED_KINDS, Reading, Stated
from lipverify.checkers.tables import fields, hexadecimal, integer, text
from lipverify.errors import UnreadableCertificate

_MOST, _AXES = 64, 12
NAME = 120
"""Letters of a name: the sentence says all of them, so that no two inputs read alike."""
_FIXED = "name kind shape value digest"


def reading_of(table: Any) -> Reading:
    """From a certificate. Raises UnreadableCertificate."""
    fields(table, "inputs fixed")
    if not all(isinstance(table[key], list) and len(table[key]) <= _MOST for key in ("inputs", "fixed")):
        raise UnreadableCertificate("inputs that are no list, or too many")
    inputs = [(text(fields(i, "name shape")["name"], NAME), _shape(i["shape"], 1)) for i in table["inputs"]]
    fixed = [(text(fields(i, _FIXED)["name"], NAME), _stated(i)) for i in table["fixed"]]
    names = [name for name, _ in (*inputs, *fixed)]
    sizes = sum(math.prod(s) for s in (*(shape for _, shape in inputs), *(told.shape for _, told in fixed)))
    if not inputs or len(set(names)) != len(names) or sizes > MAX_SIZE:
        raise UnreadableCertificate("no input that varies, one name twice, or too many numbers")
    return Reading(tuple(inputs), dict(fixed))


def _stated(table: Mapping[str, Any]) -> Stated:
    kind, shape, value, digest = (
        text(table["kind"]),
        _shape(table["shape"], 0),
        table["value"],
        table["digest"],
    )
    if kind not in FIXED_KINDS or (value is None) == (digest is None):
        raise UnreadableCertificate("what stands for an input is of another type, or not one thing")
    if digest is not None:
        return Stated(kind, shape, None, text(digest))
    number: float | int = (
        hexadecimal(value) if kind.startswith("float") else integer(value, -(1 << 53), 1 << 53)
    )
    if not np.array_equal(np.array(number).astype(kind).astype(np.float64), np.float64(number)):
        raise UnreadableCertificate("a number that its type does not have")
    return Stated(kind, shape, number, None)


def _shape(value: Any, least: int) -> tuple[int, ...]:
    if not isinstance(value, list) or len(value) > _AXES:
        raise UnreadableCertificate("a shape that is no list, or of too many axes")
    found = tuple(integer(size, least, MAX_SIZE) for size in value)
    if math.prod(found) > MAX_SIZE:
        raise UnreadableCertificate("a shape of too many numbers")
    return found
