"""Which function lowers which operator of a format: a table that other packages add to."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from importlib.metadata import entry_points
from typing import Any, Generic, TypeVar

from lipverify.errors import InternalError, UsageError

F = TypeVar("F", bound=Callable[..., Any])
Key = TypeVar("Key", bound=Hashable)
Translator = Callable[..., Any]


class Lowering(Generic[Key]):
    """A table from operators to translators; a format says what their names mean as keys."""

    def __init__(self) -> None:
        self.translators: dict[Key, Translator] = {}
        self._entry_points_loaded = False

    def key(self, name: str) -> Key:
        """The key of a name as it is registered."""
        raise NotImplementedError

    def register(self, *names: str) -> Callable[[F], F]:
        """Decorator: this function lowers exactly these operators.

        Raises:
            InternalError: a name already has a translator.
        """

        def add(function: F) -> F:
            for name in names:
                if self.key(name) in self.translators:
                    raise InternalError(f"two translators for {name}")
                self.translators[self.key(name)] = function
            return function

        return add

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
