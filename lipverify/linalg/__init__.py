"""Operator norms of linear maps between l1, l2 and linf: every value is a certified upper bound.

Assumptions, shared by all float64 bounds of this package: IEEE round-to-nearest with gradual underflow, matrix
products made of ordinary inner products in any order (no Strassen, no emulated float64), elementary functions
(cos, sin, hypot) within 2 units in the last place. LAPACK results are never trusted, only used as candidates.
"""
