"""Norms of tokens, and inputs whose tokens have bounded ones: words that claims and the theory of tokens share."""

from __future__ import annotations

from typing import NamedTuple

NORMS = ("token-rms", "token-l2")


class Tokens(NamedTuple):
    """All inputs whose tokens (runs of `width` numbers) have at most the norm `most`, in `token-rms` or `token-l2`."""

    norm: str
    width: int
    most: float


class Norm(NamedTuple):
    """The largest over runs of `width` numbers of their l2 norm (`token-l2`), or of that over the root of the width."""

    name: str
    width: int

    def __str__(self) -> str:
        return f"{self.name}/{self.width}"


def norm_of(text: str) -> Norm | None:
    """`token-rms/64` and the like; None for other norms."""
    name, slash, width = text.partition("/")
    plain = name in NORMS and slash and width.isascii() and width.isdigit() and 0 < len(width) < 10
    return Norm(name, int(width)) if plain and width[0] != "0" else None
