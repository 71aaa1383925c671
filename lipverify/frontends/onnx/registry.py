"""Which function lowers which ONNX operator; other packages add theirs here."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import entry_points
from typing import Any, TypeVar

from lipverify.errors import InternalError, UsageError

F = TypeVar("F", bound=Callable[..., Any])
Translator = Callable[..., Any]

STANDARD_DOMAINS = ("", "ai.onnx")
DEFINED_DOMAINS = ("", "ai.onnx.ml")
"""Domains whose operators the installed onnx defines."""


class Lowering:
    """A table from (domain, operator) to translators.

    Operators of the standard domain are registered by their bare name (`Relu`), others as `domain::Name`. A translator is
    called with a `Call` and returns a value, a stored tensor, or a list of them, one for each output.
    """

    def __init__(self) -> None:
        self._translators: dict[tuple[str, str], Translator] = {}
        self._entry_points_loaded = False

    def register(self, *names: str) -> Callable[[F], F]:
        """Decorator: this function lowers exactly these operators.

        Raises:
            InternalError: a name already has a translator.
        """

        def add(function: F) -> F:
            for name in names:
                domain, _, op = name.rpartition("::")
                if (domain, op) in self._translators:
                    raise InternalError(f"two translators for {name}")
                self._translators[domain, op] = function
            return function

        return add

    def find(self, domain: str, op: str) -> Translator | None:
        """The translator of an operator; `ai.onnx` is another name of the standard domain."""
        return self._translators.get(("" if domain in STANDARD_DOMAINS else domain, op))

    def names(self) -> tuple[str, ...]:
        """All operators with a translator; documented tables are generated from this."""
        return tuple(sorted(f"{domain}::{op}" if domain else op for domain, op in self._translators))

    def load_entry_points(self) -> None:
        """Imports what other packages announce under `lipverify.operators`, once.

        Raises:
            UsageError: such a package cannot be imported.
        """
        if self._entry_points_loaded:
            return
        self._entry_points_loaded = True
        for point in entry_points(group="lipverify.operators"):
            try:
                point.load()
            except Exception as error:
                raise UsageError(
                    f"the operators of {point.value!r} cannot be loaded ({error}); repair or uninstall that package"
                ) from error


lower = Lowering()
