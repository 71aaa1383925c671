"""How results show themselves in a notebook."""

from __future__ import annotations

import html
import io
from collections.abc import Callable, Iterable, Sequence
from typing import TextIO


def framed(page: str) -> str:
    """A report in a frame of its own: its styles stay away from the notebook's."""
    return f'<iframe srcdoc="{html.escape(page, quote=True)}" style="width: 100%; height: 48rem; border: 0"></iframe>'


def text_of(show: Callable[[TextIO], None]) -> str:
    """What a printer for terminals writes, as text."""
    found = io.StringIO()
    show(found)
    return "\n".join(line.rstrip() for line in found.getvalue().splitlines())


def table(caption: str, head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A plain table; every text is escaped."""

    def row(cells: Sequence[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"

    body = "".join(row(cells, "td") for cells in rows)
    return f"<table><caption>{html.escape(caption)}</caption>{row(head, 'th')}{body}</table>"
