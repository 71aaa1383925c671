"""Two tiers: `make test`, and `make soundness`, which sets LIPVERIFY_SOUNDNESS=full and leaves nothing out.

docs/testing.md lists what the second one adds, and why; `test_docs.py` compares.
"""

from __future__ import annotations

import os

import pytest

FULL = os.environ.get("LIPVERIFY_SOUNDNESS") == "full"
long = pytest.mark.long
"""`long("why it is not in make test")`: of a test."""


def also(case: object, why: str) -> object:
    """A case of a parametrised test that `make soundness` alone runs."""
    return pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=long(why))


def tier(few: int, many: int) -> int:
    """How many cases: few in `make test`."""
    return many if FULL else few
