"""Small networks that are treated as large ones: what is chosen by size is reached without the size."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from unittest.mock import patch

LIMITS = {
    "certificates.chains.DENSE_WORK": 0.0,
    "certificates.writing.LITTLE": 0,
    "analyzers.affine_runs.DENSE_ENTRIES": 0,
    "linalg.convolution._QUICK_WORK": 0.0,
    "linalg.convolution._LARGEST_MATRIX": 0,
    "linalg.symbol._CHUNK_ENTRIES": 1,
    "analyzers.local.jacobian.MANY": 1,
    "analyzers.local.jacobian.REFINE_WORK": 1.0,
    "analyzers.local.jacobian.INPUT_WORK": 0.0,
    "analyzers.local.reach.LARGEST": 0,
    "analyzers.local.spread.WORK": 0.0,
    "analyzers.local.norms.LARGEST_MATRIX": 0,
    "analyzers.local.spelled.LARGEST": 0,
    "analyzers.local.emptiness.LARGEST": 0,
    "propagation.selections.WORK": 0.0,
    "propagation.points._VALUES": 1,
    "propagation.forms.softmax.CHUNK": 1,
    "propagation.forms.normalised.ENTRIES": 0,
    "analyzers.lipsdp.batched._ENTRIES": 1,
    "analyzers.lipsdp.factor._WORTH_SPARSE": 0,
    "analyzers.lipsdp.solver._SINGLE": 1,
    "frontends.onnx.by_matrix.LARGEST_MATRIX": 0,
    "frontends.checking._BUDGET": 1,
    "passes.agreement._EVERY_NODE": 0,
    "robustness.proof.WORK": 1,
    "robustness.balls.CHEAP": 0.0,
    "monotonicity.slopes.MEMORY": 1,
}
"""Limits of size -> a value below every network."""


@contextmanager
def pretended(pretend: bool = True) -> Iterator[None]:
    """Within it, every network that is not empty is above the limits."""
    with ExitStack() as stack:
        for name, value in LIMITS.items() if pretend else ():
            module, _, limit = name.rpartition(".")
            found = importlib.import_module(f"lipverify.{module}")
            assert type(getattr(found, limit)) in (int, float), name
            stack.enter_context(patch.object(found, limit, value))
        yield
