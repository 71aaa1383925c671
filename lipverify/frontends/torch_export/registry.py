"""Which function lowers which operator of torch; other packages add theirs here."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import entry_points
from typing import Any, TypeVar

from lipverify.errors import InternalError, UsageError

F = TypeVar("F", bound=Callable[..., Any])
Translator = Callable[..., Any]


class Lowering:
    """A table from operator names to translators.

    A name is that of an overload (`aten.max.dim`) or of all overloads together (`aten.relu`); the overload's own entry is
    preferred. A translator is called with the builder and with the operator's own arguments: values for tensors that depend
    on the input, tensors for stored ones, plain Python numbers with the batch size taken as 1.
    """

    def __init__(self) -> None:
        self._translators: dict[str, Translator] = {}
        self._entry_points_loaded = False

    def register(self, *names: str) -> Callable[[F], F]:
        """Decorator: this function lowers exactly these operators.

        Raises:
            InternalError: a name already has a translator.
        """

        def add(function: F) -> F:
            for name in names:
                if name in self._translators:
                    raise InternalError(f"two translators for {name}")
                self._translators[name] = function
            return function

        return add

    def find(self, target: Any) -> Translator | None:
        """The translator of an operator as it stands in an exported graph."""
        overload = str(target)
        return self._translators.get(overload) or self._translators.get(overload.rpartition(".")[0])

    def names(self) -> tuple[str, ...]:
        """All names with a translator; documented tables are generated from this."""
        return tuple(sorted(self._translators))

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
