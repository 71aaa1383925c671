"""`--survivors`: which channels a pruned copy still has."""

from __future__ import annotations

import json
from typing import Any

from lipverify.errors import UsageError
from lipverify.loading.files import read_regular
from lipverify.loading.names import display

LARGEST = 1 << 24
"""Bytes of a file."""


def read_survivors(path: str) -> dict[str, Any]:
    """A JSON file: layer of the original -> the channels that the copy has, in its order; what they are is asked later.

    Raises:
        UsageError: no JSON object, or a layer twice in it. InvalidFile: as `read_regular`.
    """
    data = read_regular(path, LARGEST).data

    def fail(what: str) -> UsageError:
        return UsageError(
            f'--survivors: "{display(path, 60)}" {what}; write {{"layer of the original": [channels that are left]}}'
        )

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        table = dict(pairs)
        if len(table) != len(pairs):
            raise fail("names a layer twice")
        return table

    try:
        found = json.loads(data.decode("utf-8"), object_pairs_hook=unique)
    except (ValueError, RecursionError):
        raise fail("is not JSON in UTF-8") from None
    if not isinstance(found, dict) or not found:
        raise fail("names no layer")
    return found
