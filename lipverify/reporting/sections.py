"""What a page is made of besides its numbers: tables, and bars from a lower to an upper number, as plain data."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Table:
    """title, a sentence below it, the head, rows of texts; the first column names the row. brief: also at the terminal."""

    title: str
    text: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    brief: bool = False


@dataclass(frozen=True)
class Bar:
    """What is known of one number: it lies between lower (shown) and upper (proved); mark: a number to hold it against."""

    label: str
    lower: float
    upper: float
    mark: float | None = None


@dataclass(frozen=True)
class Bars:
    """Bars on one axis. mark: what the mark means, in words; empty where no bar has one."""

    title: str
    text: str
    bars: tuple[Bar, ...]
    mark: str = ""


Section = Table | Bars
