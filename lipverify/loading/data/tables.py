"""Tables of text: CSV with commas, semicolons or tabs, with a line of names or without one."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice

import numpy as np
from numpy.typing import NDArray

from lipverify.errors import InvalidFile, UsageError
from lipverify.loading.data.arrays import LABELS
from lipverify.loading.data.settings import NO_LABELS, Raw, Settings
from lipverify.loading.files import FileBytes, Path
from lipverify.loading.names import display, sentence

MAX_TABLE_BYTES = 1 << 30
MAX_COLUMNS = 1 << 20
_BLOCK = 1 << 20
"""Cells that are turned into numbers at once, so that their text is never all in memory."""
# Without "nan", "inf" and underscores, which float() would take.
_NUMBER = re.compile(r"\s*[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]{1,4})?\s*", re.ASCII)
_PLAIN = re.compile(r"[0-9+\-.eE,]*", re.ASCII)


@dataclass(frozen=True)
class Table:
    """Columns with names (empty: none were given); numbers [rows, columns], NaN where a column of words was."""

    names: tuple[str, ...]
    numbers: NDArray[np.float64]
    words: dict[int, list[str]]
    path: Path
    first: int
    """The line of the file that holds the first row, for messages."""


def read_csv(file: FileBytes, settings: Settings, inputs: int | None) -> Raw:
    """The points of a table. inputs: how many numbers a point of the model has, None where that is not known.

    Raises:
        InvalidFile: not UTF-8, rows of different lengths, a cell that is no number (row and column are named), no rows;
            more columns than the model takes. UsageError: a column that is not there.
    """
    if len(file.data) > MAX_TABLE_BYTES:
        what = f"has {len(file.data)} bytes, more than the limit of {MAX_TABLE_BYTES} for text"
        raise InvalidFile(sentence(file.path, what, "save it as .npz"))
    try:
        text = file.data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise InvalidFile(sentence(file.path, "is not UTF-8 text", "save it as UTF-8")) from None
    return points_of(_table(text, file.path), settings, inputs, file.sha256)


def _table(text: str, path: Path) -> Table:
    delimiter = _delimiter(text.partition("\n")[0])
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    lines = (row for row in rows if any(cell.strip() for cell in row))
    try:
        head = next(lines, None)
        if head is None:
            raise InvalidFile(sentence(path, "holds no rows"))
        if len(head) > MAX_COLUMNS:
            raise InvalidFile(sentence(path, f"has {len(head)} columns, more than {MAX_COLUMNS}"))
        # A line of names holds no number; a row of data holds at least one.
        named = not any(_NUMBER.fullmatch(cell) for cell in head)
        names = tuple(cell.strip() for cell in head) if named else ()
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise InvalidFile(sentence(path, f'two columns are called "{display(twice, 40)}"'))
        body = lines if named else chain([head], lines)
        return _numbers(body, names, len(head), path, 2 if named else 1)
    except csv.Error as problem:
        raise InvalidFile(sentence(path, f"line {rows.line_num} is no CSV ({problem})")) from None


def _delimiter(line: str) -> str:
    return max(",;\t", key=lambda mark: (line.count(mark), mark == ","))


def _numbers(
    rows: Iterator[Sequence[str]], names: tuple[str, ...], width: int, path: Path, first: int
) -> Table:
    blocks: list[NDArray[np.float64]] = []
    words: dict[int, list[str]] = {}
    count = 0
    while block := list(islice(rows, max(_BLOCK // width, 1))):
        for offset, row in enumerate(block):
            if len(row) != width:
                what = f"row {first + count + offset} has {len(row)} cells, the first one {width}"
                raise InvalidFile(sentence(path, what))
        columns = [list(column) for column in zip(*block, strict=True)]
        if not count:
            words = {i: [] for i, column in enumerate(columns) if not any(map(_NUMBER.fullmatch, column))}
        for index in words:
            words[index] += columns[index]
        blocks.append(
            _block(
                [[] if i in words else c for i, c in enumerate(columns)],
                len(block),
                names,
                path,
                first + count,
            )
        )
        count += len(block)
    if not count:
        raise InvalidFile(sentence(path, "holds names of columns and no rows"))
    return Table(names, np.concatenate(blocks), words, path, first)


def _block(
    columns: list[list[str]], rows: int, names: tuple[str, ...], path: Path, first: int
) -> NDArray[np.float64]:
    """Numbers [rows, columns], NaN in columns without text."""
    found = np.full((rows, len(columns)), np.nan)
    for index, column in enumerate(columns):
        if not column:
            continue
        # One look at the whole column; cell by cell only where something is wrong or unusual.
        if "" in column or not _PLAIN.fullmatch(",".join(column)) or any("," in cell for cell in column):
            for offset, cell in enumerate(column):
                if not _NUMBER.fullmatch(cell):
                    raise InvalidFile(_no_number(cell, first + offset, index, names, path))
        try:
            found[:, index] = np.array(column, dtype=np.str_).astype(np.float64)
        except ValueError:
            bad = next(o for o, cell in enumerate(column) if not _NUMBER.fullmatch(cell))
            raise InvalidFile(_no_number(column[bad], first + bad, index, names, path)) from None
        if not np.isfinite(found[:, index]).all():
            bad = int(np.argmin(np.isfinite(found[:, index])))
            raise InvalidFile(_no_number(column[bad], first + bad, index, names, path))
    return found


def _no_number(cell: str, row: int, column: int, names: tuple[str, ...], path: Path) -> str:
    where = f'column "{display(names[column], 30)}"' if names else f"column {column}"
    if not cell.strip():
        return sentence(path, f"row {row} has an empty cell in {where}", "fill it or leave the row out")
    remedy = "cells are decimals that float64 can hold"
    if re.fullmatch(r"\s*[+-]?[0-9]+,[0-9]+\s*", cell):
        remedy = "write a decimal point, not a comma"
    return sentence(path, f'row {row}, {where} holds "{display(cell, 30)}", which is no number', remedy)


# -- which column is what


def points_of(table: Table, settings: Settings, inputs: int | None, sha256: str) -> Raw:
    """x, y and their names. Raises as `read_csv`."""
    notes: list[str] = []
    everything = list(range(table.numbers.shape[1]))
    index = _index_column(table)
    if index is not None and not settings.x:
        everything.remove(index)
        notes.append("the first column, which has no name and counts the rows, is left out")
    label = _label(table, settings, everything, inputs)
    chosen = [_position(table, name) for name in settings.x] or [c for c in everything if c != label]
    wordy = [column for column in chosen if column in table.words]
    if wordy:
        cell = table.words[wordy[0]][0]
        where = _called(table, wordy[0])
        what = f'{where} holds "{display(cell, 30)}", which is no number'
        remedy = f"if it is the label: --data-y {_option(table, wordy[0])}; else name the columns: --data-x"
        raise InvalidFile(sentence(table.path, what, remedy))
    if not chosen:
        raise InvalidFile(sentence(table.path, "has no column of numbers beside the label"))
    if inputs is not None and len(chosen) != inputs:
        beside = "" if label is None else f" besides the label ({_called(table, label)})"
        what = f"has {len(chosen)} columns{beside}, a point of the model has {inputs} numbers"
        sample = ",".join(_option(table, column) for column in chosen[: min(inputs, 3)])
        remedy = f"name them in order: --data-x {sample},...; and the label: --data-y NAME or none"
        raise InvalidFile(sentence(table.path, what, remedy))
    if settings.y == NO_LABELS:
        label = None
    elif label is not None and settings.y is None:
        notes.append(f"the labels are {_called(table, label)}")
    classes: tuple[str, ...] = ()
    y: NDArray[np.generic] | None = None
    if label is not None and label in table.words:
        cells = [cell.strip() for cell in table.words[label]]
        classes = tuple(sorted(set(cells)))
        y = np.searchsorted(np.array(classes), np.array(cells)).astype(np.int64)
    elif label is not None:
        y = table.numbers[:, label]
    x = table.numbers[: settings.limit, chosen]
    features = tuple(table.names[column] for column in chosen) if table.names else ()
    y = None if y is None else y[: settings.limit]
    return Raw(np.ascontiguousarray(x), y, str(table.path), sha256, features, tuple(notes), classes)


def _index_column(table: Table) -> int | None:
    """The first column where it is the counter that data frames write in front: without a name, 0, 1, 2, ..."""
    rows = np.arange(len(table.numbers))
    nameless = bool(table.names) and table.names[0] in ("", "Unnamed: 0")
    return 0 if nameless and 0 not in table.words and np.array_equal(table.numbers[:, 0], rows) else None


def _label(table: Table, settings: Settings, columns: list[int], inputs: int | None) -> int | None:
    """The column of the labels, also where they are not wanted: the one named, called like one, left over, or in words."""
    if settings.y is not None and settings.y != NO_LABELS:
        return _position(table, settings.y)
    if inputs is not None and len(columns) == inputs and not settings.x:
        return None
    called = [c for c in columns if table.names and table.names[c].lower() in LABELS]
    wordy = [c for c in columns if c in table.words]
    for found in (called, wordy):
        if len(found) == 1:
            return found[0]
    if settings.x or inputs is None or len(columns) != inputs + 1:
        return None
    # One column more than the model takes: it is the first or the last, whichever can be a label.
    can = [c for c in (columns[0], columns[-1]) if _may_be_labels(table.numbers[:, c])]
    if len(can) == 1:
        return can[0]
    remedy = f"name it: --data-y {_option(table, columns[-1])} or --data-y {_option(table, columns[0])}"
    what = f"has one column more than the {inputs} of a point, and it is open which one is the label"
    raise InvalidFile(sentence(table.path, what, remedy))


def _may_be_labels(column: NDArray[np.float64]) -> bool:
    return bool(((column == np.rint(column)) & (column >= 0)).all())


def _position(table: Table, name: str) -> int:
    """A column by its name, or by its position from 0, from the end where negative."""
    if name in table.names:
        return table.names.index(name)
    width: int = table.numbers.shape[1]
    if re.fullmatch(r"-?[0-9]{1,7}", name, re.ASCII) and -width <= int(name) < width:
        return int(name) % width
    listed = (
        ", ".join(display(known, 20) for known in table.names[:8])
        or f"columns 0 to {width - 1}, without names"
    )
    raise UsageError(sentence(table.path, f'has no column "{display(name, 40)}"', f"it has {listed}"))


def _called(table: Table, column: int) -> str:
    return f'column "{display(table.names[column], 30)}"' if table.names else f"column {column}"


def _option(table: Table, column: int) -> str:
    return display(table.names[column], 30) if table.names else str(column)


def of_columns(names: tuple[str, ...], columns: Sequence[Sequence[object]], path: Path) -> Table:
    """A table of columns that are read already. Raises InvalidFile for anything but numbers and words."""
    if not columns or not len(columns[0]):
        raise InvalidFile(sentence(path, "holds no rows"))
    words: dict[int, list[str]] = {}
    numbers = np.full((len(columns[0]), len(columns)), np.nan)
    for index, column in enumerate(columns):
        if all(isinstance(cell, str) for cell in column):
            words[index] = [str(cell) for cell in column]
            continue
        for row, cell in enumerate(column):
            if not isinstance(cell, int | float) or not abs(cell) <= np.finfo(np.float64).max:
                shown = "" if cell is None else str(cell)
                raise InvalidFile(_no_number(shown, 1 + row, index, names, path))
            numbers[row, index] = cell
    return Table(names, numbers, words, path, 1)
