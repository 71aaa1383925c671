"""JSON of a certificate as typed values: exactly these fields, of this type, in this range; all else is unreadable."""

from __future__ import annotations

import math
from typing import Any

from lipverify.errors import UnreadableCertificate


def fields(table: Any, names: str) -> dict[str, Any]:
    """A JSON object with exactly these fields."""
    if not isinstance(table, dict) or table.keys() != set(names.split()):
        raise UnreadableCertificate(f"not an object with the fields {names}")
    return table


def integer(value: Any, low: int, high: int) -> int:
    """An integer of the range, both ends included; a truth value is none."""
    if type(value) is not int or not low <= value <= high:
        raise UnreadableCertificate(f"not an integer from {low} to {high}")
    return value


def text(value: Any, longest: int = 200) -> str:
    """A text of some length."""
    if not isinstance(value, str) or not 0 < len(value) <= longest:
        raise UnreadableCertificate("not a text, or one that is too long")
    return value


def texts(values: Any) -> list[str]:
    """A list of texts."""
    if not isinstance(values, list):
        raise UnreadableCertificate("not a list of texts")
    return [text(value) for value in values]


def hexadecimal(value: Any) -> float:
    """A finite float64 written as `float.hex` writes it."""
    if not isinstance(value, str) or len(value) > 30 or "0x" not in value:
        raise UnreadableCertificate("not a number in hexadecimal")
    try:
        found = float.fromhex(value)
    except (ValueError, OverflowError):
        raise UnreadableCertificate("not a number in hexadecimal") from None
    if not math.isfinite(found) or found.hex() != value:
        raise UnreadableCertificate("not a finite number in hexadecimal, written as usual")
    return found
