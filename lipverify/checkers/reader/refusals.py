"""Refusing what is not understood: one function, so that no check is longer than the line it guards."""

from __future__ import annotations

from lipverify.errors import NotCovered


def need(condition: object, message: str) -> None:
    """NotCovered with this message unless the condition holds."""
    if not condition:
        raise NotCovered(message)


def shown(name: object) -> str:
    """A name of the file in a message: short, and without control characters."""
    return ascii(str(name)[:40])
