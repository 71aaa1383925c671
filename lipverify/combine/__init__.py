"""Graphs that combine graphs: exact over the reals, and each held against its parts by the interpreter."""

from lipverify.combine.difference import Difference, difference, minus
from lipverify.combine.parameter import with_parameter

__all__ = ["Difference", "difference", "minus", "with_parameter"]
