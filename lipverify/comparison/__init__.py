"""Many models, many analyzers, many questions in one run: cached, in parallel, one report."""

from lipverify.comparison.cache import Cache
from lipverify.comparison.results import Comparison, Unreadable
from lipverify.comparison.run import compare

__all__ = ["Cache", "Comparison", "Unreadable", "compare"]
