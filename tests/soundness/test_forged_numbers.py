"""Theorems at the ends of their conditions: large arguments, rounded weights."""

from __future__ import annotations

import math
from decimal import Decimal, localcontext

import numpy as np
import pytest

from lipverify.checkers.kernel.curves import curve
from lipverify.checkers.kernel.gains import chain_gains, kernel_of
from lipverify.checkers.kernel.program import Affine, Lattice
from lipverify.checkers.reader.building import Stored
from lipverify.errors import NotCovered
from tests.unit.checkers.kernel.programs import Writing

PI = Decimal("3.14159265358979323846264338327950288419716939937510582097494459")


@pytest.mark.parametrize("law", ["Sin", "Cos"])
def test_a_sine_far_from_0(law: str) -> None:
    """Where float64 knows no multiple of pi well, a slope of 1 was missed: 0.76 was proved near 3e15."""
    f, covered = curve(law, (), None), 0
    for exponent in range(1, 16):
        for k in (10**exponent, 3 * 10**exponent + 1):
            with localcontext() as context:
                context.prec = 60
                turn = float(PI * k + (PI / 2 if law == "Cos" else 0))
            apart = 2 * math.ulp(turn)
            try:
                low, high = f.slopes(np.array([turn - apart]), np.array([turn + apart]))
            except NotCovered:
                assert exponent > 5
                continue
            covered += 1
            assert max(-low[0], high[0]) >= 1.0 - 1e-30
    assert covered >= 10


def test_weights_that_are_rounded_in_a_convolution() -> None:
    """The roundings behind folded weights count on a torus as they do in a matrix."""
    taps, padding = np.ones((1, 1, 1, 1)), ((0, 0),)
    for rounded, least in ((0, 1.0), (1 << 33, 1.0 + (1 << 33) * 2.0**-53)):
        w = Writing(4)
        lattice = Lattice(taps, (1, 4), (1,), (1,), padding, False)
        step = Affine(w.view(), 4, taps[:, :, 0], np.arange(4)[None, :, None], None, rounded, lattice)
        assert kernel_of([step])[1] == pytest.approx(rounded * 2.0**-53)
        for torus in (None, [(8, 0)]):
            assert chain_gains([step], least * (1 - 1e-9), torus, False) is None
            assert chain_gains([step], least * (1 + 1e-5), torus, False) is not None


def test_integers_of_32_bits_times_a_scale_are_rounded() -> None:
    """33 bits times 24 are more than float64 holds."""
    from lipverify.checkers.reader.building import Builder, stored
    from lipverify.checkers.reader.calls import Call
    from lipverify.checkers.reader.operators import run

    scale = stored(np.array(1.0 + 2.0**-23, np.float32))
    for kind, rounded in ((np.int32, 1), (np.int8, 0)):
        p = Builder((1, 1), np.dtype("<f4"), 0)
        q = stored(np.array([np.iinfo(kind).max], kind))
        (found,) = run(p, Call(p, "DequantizeLinear", 13, [q, scale], {}, 1))
        assert isinstance(found, Stored)
        assert found.rounded == rounded
