"""Chunks that become smaller where an allocation fails."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest

import lipverify as lv
from lipverify import memory
from lipverify.analyzers.product import Product
from lipverify.analyzers.protocol import Compute
from lipverify.ir.certificate import Certificate
from lipverify.ir.graph import Graph
from lipverify.ir.region import Query
from tests.unit.test_failures import QUICK, network

FIXED = RuntimeError(
    "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 4096 bytes."
)


@pytest.mark.parametrize("error", [MemoryError(), FIXED], ids=["python", "torch"])
def test_work_begins_again_with_chunks_of_half_the_size(error: Exception) -> None:
    sizes: list[int] = []

    def work() -> int:
        sizes.append(memory.share(1 << 26))
        if sizes[-1] > 1 << 24:
            raise error
        return sizes[-1]

    assert memory.halving(work) == 1 << 24
    assert sizes == [1 << 26, 1 << 25, 1 << 24]
    assert memory.share(1 << 26) == 1 << 26  # what failed here says nothing of what comes later


def test_what_does_not_ask_for_a_size_is_not_repeated() -> None:
    calls: list[int] = []

    def work() -> None:
        calls.append(1)
        raise MemoryError

    with pytest.raises(MemoryError):
        memory.halving(work)
    assert calls == [1]


def test_halving_ends_and_lets_every_other_error_through() -> None:
    sizes: list[int] = []

    def work() -> None:
        sizes.append(memory.share(1 << 26))
        raise MemoryError

    with pytest.raises(MemoryError):
        memory.halving(work)
    assert sizes == [1 << 26 - k for k in range(7)]

    def wrong() -> None:
        memory.share(1 << 26)
        raise ValueError("no allocation")

    with pytest.raises(ValueError, match="no allocation"):
        memory.halving(wrong)


@dataclass(frozen=True)
class Hungry(Product):
    """Wants all of its first chunk, which is not there."""

    name: ClassVar[str] = "hungry"

    def bound(self, graph: Graph, query: Query, compute: Compute) -> Certificate[Any]:
        if memory.share(1 << 26) > 1 << 25:
            raise MemoryError
        return super().bound(graph, query, compute)


def test_an_analyzer_whose_chunk_was_too_large_has_its_bound() -> None:
    row = lv.audit(network(), analyzers=[Hungry()], search=QUICK).rows[0]
    assert row.upper == pytest.approx(3.0)


def test_freed_memory_is_kept_for_the_next_array() -> None:
    """In processes of their own: it stays asked for."""
    line = (
        "import resource, sys, numpy as np; from lipverify.memory import keep_freed; "
        "asked = keep_freed() if sys.argv[1] == 'keep' else True; "
        "faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt; "
        "np.ones(1 << 23).sum(); before = faults(); "
        "[np.ones(1 << 23).sum() for _ in range(10)]; print(int(asked), faults() - before)"
    )
    made = [
        subprocess.run([sys.executable, "-c", line, how], capture_output=True, text=True)
        for how in ("keep", "not")
    ]
    (asked, kept), (_, given_back) = (map(int, done.stdout.split()) for done in made)
    if not asked:
        pytest.skip("not the GNU C library")
    assert 4 * kept < given_back
