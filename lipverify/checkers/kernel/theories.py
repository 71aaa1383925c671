"""Theories: kinds of steps beyond the core, by the name of a theory. The core imports none of them.

A proof that uses no step of a theory does not load it, and rests on no line of it.
"""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

THEORIES: dict[str, tuple[str, ...]] = {
    "carried": ("carried",),
    "frequencies": ("frequencies",),
    "radii": ("leaf", "empty", "walk"),
    "signs": ("sign", "convex"),
    "tokens": ("tokens",),
}
"""Theory -> the kinds of steps that it adds, and no others: what a file says decides which of these are loaded, never what is."""


def theory_of(kind: str) -> str | None:
    """The theory that a kind of step belongs to; None for the core, and for what is none."""
    return next((name for name, kinds in THEORIES.items() if kind in kinds), None)


def opened(name: str) -> ModuleType:
    """A theory of the table, loaded."""
    if name not in THEORIES:
        raise ValueError(f"there is no theory {name!r}")
    return import_module(f"lipverify.checkers.theories.{name}")
