"""Ranges of every value of a graph over balls of inputs: interval arithmetic, and linear bounds pushed back to the input."""

from lipverify.propagation.interval import (
    bounded_slopes,
    everywhere,
    interval_ranges,
    refuse_without_intervals,
    refuses_ranges,
)
from lipverify.propagation.linear import Bounds, bounds, never

__all__ = [
    "Bounds",
    "bounded_slopes",
    "bounds",
    "everywhere",
    "interval_ranges",
    "never",
    "refuse_without_intervals",
    "refuses_ranges",
]
