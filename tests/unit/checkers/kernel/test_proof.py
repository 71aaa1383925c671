"""Proofs of every kind of step on small programs, and what their fields may not be."""

from __future__ import annotations

import numpy as np
import pytest

from lipverify.checkers.kernel import Constant, Subject, parse_steps, prove
from lipverify.checkers.kernel.program import Affine
from lipverify.errors import RefutedCertificate
from tests.unit.checkers.kernel.programs import ball, mlp

ALL = {"start": 0, "end": 5}


def test_a_product_of_gains_is_proved_and_no_less(rng: np.random.Generator) -> None:
    program = mlp(rng, (3, 6, 6, 2))
    norms = [
        float(np.linalg.norm(s.kernel[0], 2)) * (1 + 1e-9) for s in program.steps if isinstance(s, Affine)
    ]
    gains = [
        {"step": "gain", "chain": [k], "torus": None, "limit": n.hex()}
        for k, n in zip((1, 3, 5), norms, strict=True)
    ]
    for slack in (1e-12, -1e-12):
        limit = float(np.prod(norms)) * (1 + slack)
        last = ALL | {"step": "product", "gains": [0, 1, 2], "norms": ["l2", "l2"], "limit": limit.hex()}
        steps = parse_steps([*gains, last], {}, Subject(program))
        if slack < 0:
            with pytest.raises(RefutedCertificate, match="prove"):
                prove(steps, Subject(program))
        else:
            fact = prove(steps, Subject(program))[-1]
            assert isinstance(fact, Constant)
            assert float(fact.limit) == limit


def test_derivatives_over_a_ball() -> None:
    program = mlp(np.random.default_rng(0), (3, 6, 6, 2))
    subject = Subject(program, [ball(np.zeros(3), 0.1)])
    ranges = {"step": "ranges", "region": 0, "conditions": []}
    claim = ALL | {"step": "jacobian", "ranges": 0, "rows": [0, 2], "norms": ["linf", "linf"]}
    for limit, holds in ((100.0, True), (1e-3, False)):
        steps = parse_steps([ranges, claim | {"limit": limit.hex()}], {}, subject)
        if not holds:
            with pytest.raises(RefutedCertificate, match="derivatives"):
                prove(steps, subject)
        else:
            assert isinstance(prove(steps, subject)[-1], Constant)
