"""Numbers that people type: radii, boxes, durations, pairs of outputs."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import NoReturn

from lipverify.errors import UsageError
from lipverify.loading.names import display

MAX_LENGTH = 60

_DECIMAL = r"(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]{1,4})?"
_NUMBER = re.compile(rf"[+-]?{_DECIMAL}", re.ASCII)
_FRACTION = re.compile(rf"(?P<over>{_DECIMAL})(?:\s*/\s*(?P<under>{_DECIMAL}))?", re.ASCII)
_SIZE = re.compile(r"(?P<number>[0-9]+(?:\.[0-9]+)?)\s*(?P<unit>[kmgtKMGT])(?:i?[bB])?", re.ASCII)
_LEAST_MEMORY = 256 << 20
"""Less than the libraries take themselves."""
_PART = re.compile(r"\s*(?P<number>[0-9]+(?:\.[0-9]*)?|\.[0-9]+)\s*(?P<unit>[a-z]*)\s*", re.ASCII)
_CLOCK = re.compile(
    r"(?:(?P<hours>[0-9]{1,4}):(?=[0-9]{2}:))?(?P<minutes>[0-9]{1,4}):(?P<seconds>[0-5][0-9])", re.ASCII
)
_SECONDS = {
    **dict.fromkeys(("", "s", "sec", "secs", "second", "seconds"), 1.0),
    **dict.fromkeys(("m", "min", "mins", "minute", "minutes"), 60.0),
    **dict.fromkeys(("h", "hr", "hrs", "hour", "hours"), 3600.0),
    **dict.fromkeys(("d", "day", "days"), 86400.0),
    "ms": 0.001,
}


def parse_numbers(text: str) -> tuple[float, ...]:
    """Decimals with commas; none in an empty text. Raises UsageError."""
    parts = [part.strip() for part in text.split(",")] if text else []
    if not all(len(part) <= MAX_LENGTH and _NUMBER.fullmatch(part) for part in parts):
        _fail("numbers", text, "a decimal, or decimals with commas")
    return tuple(_float64(Fraction(part), "numbers", text) for part in parts)


def parse_scale(text: str) -> float:
    """A factor above 0, written as a radius is. Raises UsageError."""
    return parse_radius(text, "scale")


def parse_radius(text: str, what: str = "radius") -> float:
    """A radius as a positive decimal (`0.03`, `1e-3`) or fraction (`8/255`): the nearest float64.

    Every claim speaks about the returned number. Raises UsageError for zero, negative, infinite and NaN
    radii, numbers that float64 cannot hold at full precision, and decimal commas.
    """
    found = _FRACTION.fullmatch(text.strip()) if len(text) <= MAX_LENGTH else None
    if found is None:
        _fail(what, text, "a positive decimal or fraction like 0.03 or 8/255")
    over, under = Fraction(found["over"]), Fraction(found["under"] or 1)
    if over == 0 or under == 0:
        _fail(what, text, "larger than 0")
    return _float64(over / under, what, text)


@dataclass(frozen=True)
class Entries:
    """Numbers of single entries of an input: by name or position, or one for each in order (names None)."""

    names: tuple[str, ...] | None
    numbers: tuple[tuple[float, ...], ...]

    def table(self, size: int, features: Sequence[str], option: str) -> dict[int, tuple[float, ...]]:
        """Position -> numbers. size: entries of an input. Raises UsageError for entries that are not there, or twice."""
        if self.names is None:
            if len(self.numbers) != size:
                raise UsageError(f"{option} has {len(self.numbers)} entries, an input has {size}")
            return dict(enumerate(self.numbers))
        found = [self.position(name, size, features, option) for name in self.names]
        if len(set(found)) < len(found):
            raise UsageError(f"{option} names an entry twice")
        return dict(zip(found, self.numbers, strict=True))

    @staticmethod
    def position(name: str, size: int, features: Sequence[str], option: str) -> int:
        """Of a feature by its name in the data, or by its position from 0. Raises UsageError."""
        if name in features:
            return list(features).index(name)
        if re.fullmatch("[0-9]{1,9}", name, re.ASCII) and int(name) < size:
            return int(name)
        known = ", ".join(display(each, 20) for each in features[:8]) or "the data has no names"
        raise UsageError(
            f'{option}: no entry "{display(name, 40)}" (positions are 0 to {size - 1}; names: {known})'
        )


def parse_radii(text: str) -> float | Entries:
    """One radius, `NAME=RADIUS,...`, or one for each entry in order. Raises UsageError."""
    parts = [part.strip() for part in text.split(",")]
    if len(parts) == 1 and "=" not in text:
        return parse_radius(text)
    # The decimal comma of "0,1" is the likelier meaning of two digits than radii of two entries, one of them zero.
    if len(parts) == 2 and re.fullmatch(r"\s*0,[0-9]+\s*", text):
        return parse_radius(text)
    names, values = _named(parts, "radius", text)
    return Entries(names, tuple((parse_radius(value),) for value in values))


def parse_limits(text: str) -> tuple[float, float] | Entries:
    """`LO,HI` for all entries, `NAME=LO:HI,...`, or `LO:HI,...` for each entry in order. Raises UsageError."""
    if ":" not in text:
        return parse_box(text)
    names, values = _named([part.strip() for part in text.split(",")], "box", text)
    return Entries(names, tuple(parse_box(value.replace(":", ",")) for value in values))


def _named(parts: list[str], what: str, text: str) -> tuple[tuple[str, ...] | None, list[str]]:
    """The names before the equals signs, of all parts or of none."""
    pairs = [part.rpartition("=") for part in parts]
    if not any(mark for _, mark, _ in pairs):
        return None, parts
    if not all(name and mark for name, mark, _ in pairs):
        _fail(what, text, "NAME=VALUE for each entry that is meant, with commas")
    return tuple(name.strip() for name, _, _ in pairs), [value for _, _, value in pairs]


def parse_box(text: str) -> tuple[float, float]:
    """Limits `LO,HI` of every input coordinate, LO < HI. Raises UsageError."""
    parts = [part.strip() for part in text.split(",")] if len(text) <= 2 * MAX_LENGTH else []
    if len(parts) != 2 or not all(_NUMBER.fullmatch(part) for part in parts):
        _fail("box", text, "two decimals LO,HI like 0,1")
    low, high = (_float64(Fraction(part), "box", text) for part in parts)
    if low >= high:
        _fail("box", text, "LO,HI with LO < HI")
    return low, high


def parse_margin(text: str) -> tuple[int, int]:
    """Two different outputs `A,B`: the margin is output A minus output B. Raises UsageError."""
    parts = [part.strip() for part in text.split(",")]
    if len(parts) != 2 or not all(re.fullmatch("[0-9]{1,9}", part, re.ASCII) for part in parts):
        _fail("margin", text, "two output indices A,B like 3,5")
    first, second = (int(part) for part in parts)
    if first == second:
        _fail("margin", text, "two different outputs")
    return first, second


def parse_constant(text: str) -> tuple[str, float | list[float] | Path]:
    """`NAME=VALUE`: a number, numbers with commas, or the path of an .npy file. Raises UsageError."""
    name, equals, value = text.partition("=")
    if not (name and equals and value):
        raise UsageError(f'--constant takes NAME=VALUE, not "{display(text, 40)}"')
    if value.endswith(".npy"):
        return name, Path(value)
    parts = [part.strip() for part in value.split(",")]
    if not all(len(part) <= MAX_LENGTH and _NUMBER.fullmatch(part) for part in parts):
        _fail("constant", value, "a number, numbers with commas, or the path of an .npy file")
    numbers = [_float64(Fraction(part), "constant", value) for part in parts]
    return name, numbers[0] if len(numbers) == 1 else numbers


def parse_duration(text: str) -> float:
    """Seconds in a duration like `90`, `90s`, `10m`, `1h30m`, `500ms`, `1:30` or `2 minutes`.

    Raises UsageError unless positive.
    """
    stripped = text.strip().lower() if len(text) <= MAX_LENGTH else ""
    clock = _CLOCK.fullmatch(stripped)
    if clock is not None:
        hours, minutes, rest = (int(clock[name] or 0) for name in ("hours", "minutes", "seconds"))
        stripped = f"{3600 * hours + 60 * minutes + rest}"
    parts = list(_PART.finditer(stripped))
    whole = "".join(part[0] for part in parts) == stripped and all(part["unit"] in _SECONDS for part in parts)
    # A number without unit only alone: in "1h30" one reader sees minutes, the next seconds.
    if not parts or not whole or (len(parts) > 1 and any(not part["unit"] for part in parts)):
        _fail("duration", text, "a time like 90s, 10m, 1h30m or 1:30")
    seconds = math.fsum(float(part["number"]) * _SECONDS[part["unit"]] for part in parts)
    if not 0 < seconds < math.inf:
        _fail("duration", text, "a time larger than 0")
    return seconds


def parse_memory(text: str) -> int:
    """Bytes in a size like `4g`, `512m`, `1.5G` or `4GiB`, in powers of 1024. Raises UsageError below 256 MiB."""
    found = _SIZE.fullmatch(text.strip()) if len(text) <= MAX_LENGTH else None
    size = (
        0
        if found is None
        else int(Fraction(found["number"]) * 1024 ** (1 + "kmgt".index(found["unit"].lower())))
    )
    if size < _LEAST_MEMORY:
        _fail("memory", text, "a size of at least 256m, like 512m or 4g")
    return size


def _float64(value: Fraction, what: str, text: str) -> float:
    if value == 0:
        return 0.0
    # Below the smallest normal number float64 loses digits and then everything.
    if not Fraction(sys.float_info.min) <= abs(value) <= Fraction(sys.float_info.max):
        _fail(what, text, "of a size that float64 can hold")
    return float(value)


def _fail(what: str, text: str, wanted: str) -> NoReturn:
    comma = what in ("radius", "duration") and re.fullmatch(r"\s*[0-9]*,[0-9]+\s*", text[:MAX_LENGTH])
    hint = "; write a decimal point, not a comma" if comma else ""
    raise UsageError(f'{what} "{display(text, 40)}" must be {wanted}{hint}')
