"""Lower bounds: two stored inputs whose outputs differ much, relative to their distance, and what is proved of them.

The search (`search.py`) is not trusted: it may be as clever or as careless as it likes. What is reported is the slope of a stored
pair as `propagation.points` proves it, every rounding accounted for (`witness.py`).
"""

from lipverify.falsify.cost import multiplications, seconds_of
from lipverify.falsify.search import Box, Search
from lipverify.falsify.witness import falsify

__all__ = ["Box", "Search", "falsify", "multiplications", "seconds_of"]
