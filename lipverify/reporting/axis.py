"""A logarithmic axis with sensible numbers on it, for bounds of any size. Positions are per cent of the width."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from decimal import Decimal
from itertools import pairwise

from lipverify.reporting.format import decimal_text, superscript

LEFT, RIGHT = 9.0, 91.0
_ZERO, _BREAK, _AFTER_ZERO = 5.0, 12.0, 19.0
_NARROW = 300.0  # pixels: the smallest width a figure is shown at; labels must not meet there
_CHARACTER = 6.6  # pixels of one character of a tick label, measured wide
_GAP = 10.0  # pixels between two labels
_SMALLEST_SPAN = math.log10(1.15)
_LARGEST_EVEN = 300.0  # decimal exponents up to which numbers between powers of ten are computed
_STEPS = (1, 2, 3, 5)


@dataclass(frozen=True)
class Tick:
    """A number on the axis."""

    at: float
    text: str


@dataclass(frozen=True)
class LogAxis:
    """From 10^low to 10^high; with `zero`, a place for zero left of a break in the axis."""

    low: float
    high: float
    zero: bool

    @staticmethod
    def around(positions: Iterable[float | None]) -> LogAxis:
        """The axis that shows all decimal logarithms; None means zero."""
        found = list(positions)
        known = [position for position in found if position is not None]
        zero = len(known) < len(found)
        low, high = (min(known), max(known)) if known else (-0.5, 0.5)
        # Beyond float64 every label is a power of ten, and near 10^1000000000 neighbouring logarithms lie far apart.
        size = max(abs(low), abs(high))
        missing = (max(2.2, 1e-9 * size) if size > _LARGEST_EVEN else _SMALLEST_SPAN) - (high - low)
        if missing > 0:
            low, high = low - missing / 2, high + missing / 2
        return LogAxis(low, high, zero)

    @property
    def start(self) -> float:
        """Where the logarithmic part begins."""
        return _AFTER_ZERO if self.zero else LEFT

    @property
    def gap(self) -> float | None:
        """Where the axis is broken between zero and the logarithmic part; None without zero."""
        return _BREAK if self.zero else None

    def at(self, position: float | None) -> float:
        """Per cent of the width for a decimal logarithm; None means zero."""
        if position is None:
            return _ZERO
        share = (position - self.low) / (self.high - self.low)
        return round(self.start + min(max(share, 0.0), 1.0) * (RIGHT - self.start), 3)

    def ticks(self) -> tuple[Tick, ...]:
        """Between one and seven numbers (and zero) whose labels do not meet even in a narrow figure; the finest such choice."""
        zero = (Tick(_ZERO, "0"),) if self.zero else ()
        alone: Tick | None = None
        for marks in self._ladders():
            ticks = [Tick(self.at(position), text) for position, text in marks]
            if 2 <= len(ticks) <= 7 and _fit([*zero, *ticks]):
                return (*zero, *ticks)
            if ticks and alone is None:
                alone = min(ticks, key=lambda tick: abs(tick.at - 50.0))
        return zero if alone is None else (*zero, alone)

    def _ladders(self) -> Iterator[list[tuple[float, str]]]:
        span, size = self.high - self.low, max(abs(self.high), abs(self.low))
        if span < 1.5 and size < _LARGEST_EVEN + 2:
            yield from self._even_steps()
        if span < 4 and size < _LARGEST_EVEN + 2:
            yield self._digits((1, 2, 5))
            yield self._digits((1, 3))
        for exponent in range(max(len(str(math.ceil(span))), 1) + 1):
            for step in _STEPS:
                pace = step * 10**exponent
                first = math.ceil(self.low / pace)
                count = math.floor(self.high / pace) - first + 1
                if count <= 7:
                    yield [((first + k) * pace, _power((first + k) * pace)) for k in range(count)]

    def _even_steps(self) -> Iterator[list[tuple[float, str]]]:
        """Round numbers at equal distances, from fine to coarse."""
        low, high = Decimal(10.0**self.low), Decimal(10.0**self.high)
        scale = Decimal(1).scaleb((high - low).adjusted() - 1)
        for factor in (1, 2, Decimal("2.5"), 5, 10, 20, 25, 50, 100):
            step = scale * factor
            first = math.ceil(low / step)
            count = math.floor(high / step) - first + 1
            if count <= 7:
                numbers = [(first + k) * step for k in range(count)]
                yield [(math.log10(number), _round(number)) for number in numbers if number > 0]

    def _digits(self, digits: tuple[int, ...]) -> list[tuple[float, str]]:
        marks = []
        for exponent in range(math.floor(self.low), math.ceil(self.high) + 1):
            for digit in digits:
                position = exponent + math.log10(digit)
                if self.low <= position <= self.high:
                    marks.append((position, _round(Decimal(digit).scaleb(exponent))))
        return marks


def label_width(text: str) -> float:
    """An estimate, on the wide side, of the pixels of a tick label."""
    return _CHARACTER * len(text)


def _fit(ticks: list[Tick]) -> bool:
    edges = sorted((t.at * _NARROW / 100, label_width(t.text) / 2) for t in ticks)
    inside = all(middle - half >= 0 and middle + half <= _NARROW for middle, half in edges)
    return inside and all(a[0] + a[1] + _GAP <= b[0] - b[1] for a, b in pairwise(edges))


def _power(exponent: int) -> str:
    """A power of ten."""
    if -3 <= exponent <= 4:
        return f"{Decimal(1).scaleb(exponent):f}"
    return f"10{superscript(exponent)}"


def _round(number: Decimal) -> str:
    """A round number as a label."""
    exponent = number.adjusted()
    if -4 <= exponent <= 5:
        text = f"{number:f}"
        return text.rstrip("0").rstrip(".") if "." in text else text
    mantissa = f"{number.scaleb(-exponent).normalize():f}"
    return _power(exponent) if mantissa == "1" else f"{mantissa}·10{superscript(exponent)}"


def linear_marks(largest: float) -> list[tuple[float, str]]:
    """Between three and six round numbers from 0 to the end of the axis."""
    scale = Decimal(1).scaleb(Decimal(largest).adjusted())
    for factor in (Decimal("0.2"), Decimal("0.5"), Decimal(1), Decimal(2), Decimal(5)):
        step = scale * factor
        count = int(Decimal(largest) / step)
        if count <= 5:
            return [(float(step * k), decimal_text(step * k)) for k in range(count + 1)]
    return [(0.0, "0")]
