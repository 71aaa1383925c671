"""Ctrl-C while the checker proves: bounds that were found are kept, as `real` as they were, and the run says so."""

from __future__ import annotations

import numpy as np
import pytest

import lipverify as lv
from lipverify import ops
from lipverify.falsify import Search
from lipverify.ir.certificate import Rigour
from lipverify.pipeline import exit_code
from tests.interrupts import Stop
from tests.networks import chain, tensor


@pytest.mark.parametrize("stage", ["product", "lipsdp-fast"])
def test_an_interrupt_of_a_proof_keeps_the_bounds(stage: str, rng: np.random.Generator) -> None:
    names = ["product", "lipsdp-fast", "lipsdp"]
    graph = chain([tensor(rng, 8, 5), tensor(rng, 3, 8)], ops.ReLU())
    search = Search(seconds=0.1)
    whole = lv.audit(graph, analyzers=names, search=search)
    stopped = lv.audit(graph, analyzers=names, search=search, report=Stop(f"proof of {stage}", 1))
    before = names[: names.index(stage)]
    assert exit_code(whole) == 0
    assert exit_code(stopped) == 130
    for row, known in zip(stopped.rows, whole.rows, strict=True):
        assert row.certificate is not None
        assert known.certificate is not None
        # A proof may raise a bound by its rounding.
        assert row.upper == pytest.approx(known.upper, rel=1e-6)
        if row.analyzer in before:
            assert row.certificate.rigour is Rigour.CHECKED
        else:
            assert row.certificate.rigour is Rigour.REAL
            assert row.certificate.issued is None
            assert "interrupted" in row.certificate.unchecked
