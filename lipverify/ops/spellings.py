"""What formats call operators that have no settings there: the rows of activations, and special cases with names of their own."""

from __future__ import annotations

from lipverify.ops import piecewise, smooth
from lipverify.ops.activation import Spelling, spellings

SPELLINGS = (
    *spellings(),
    Spelling(piecewise.Clip(0.0, 6.0), "", ("relu6",)),
    Spelling(piecewise.Hardsigmoid(1 / 6, 0.5), "", ("hardsigmoid",)),
    Spelling(smooth.Power(2.0), "", ("square",)),
)
