"""How results show themselves: as text, as a page, in a notebook."""

from __future__ import annotations

import html
import io
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

from lipverify.loading.putting import put


def framed(page: str) -> str:
    """A report in a frame of its own: its styles stay away from the notebook's."""
    return f'<iframe srcdoc="{html.escape(page, quote=True)}" style="width: 100%; height: 48rem; border: 0"></iframe>'


def text_of(show: Callable[[TextIO], None]) -> str:
    """What a printer for terminals writes, as text."""
    found = io.StringIO()
    show(found)
    return "\n".join(line.rstrip() for line in found.getvalue().splitlines())


class Result(ABC):
    """What a verb gives back: a document, and what is made of it."""

    @abstractmethod
    def to_json(self) -> dict[str, Any]:
        """The document of `--json`."""

    @abstractmethod
    def show(self, document: dict[str, Any], file: TextIO | None = None) -> None:
        """What a person at a terminal sees."""

    @abstractmethod
    def page(self, document: dict[str, Any]) -> str:
        """The self-contained page."""

    def to_html(self, path: str | Path | None = None) -> str:
        """The self-contained report; also written to `path` when given. Raises UsageError: it cannot be written."""
        text = self.page(self.to_json())
        if path is not None:
            put(path, text)
        return text

    def __str__(self) -> str:
        return text_of(lambda file: self.show(self.to_json(), file))

    def _repr_html_(self) -> str:
        return framed(self.to_html())
