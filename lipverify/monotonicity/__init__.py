"""Does an output only rise, or only fall, when one input feature grows? Proofs over boxes, or pairs that show neither."""

from lipverify.monotonicity.results import Finding, Monotonicity, Pair, Verdict
from lipverify.monotonicity.run import monotone

__all__ = ["Finding", "Monotonicity", "Pair", "Verdict", "monotone"]
