"""An independent checker of certificates: numpy alone (a runtime only to test that it reads what runs), nothing of the analyzers.

`reader` makes a program of a file, `kernel` proves facts about programs, `claims` and `envelope` are what a certificate says
around them. Trusted: this package, numpy's products and Cholesky under the assumptions of `kernel.arithmetic` (integers alone
with `exact`), SHA-256, the interpreter. Not trusted: whatever produced the certificate.
"""

from lipverify.checkers.claims import About, Claim, Expectation
from lipverify.checkers.deviation import Deviation
from lipverify.checkers.envelope import check, named_models, read_models, verify_file
from lipverify.checkers.reader import Model, digest_of, model_of_bytes, read_model
from lipverify.checkers.verdict import Verdict
from lipverify.errors import NotCovered

__all__ = ["About", "Claim", "Deviation", "Expectation", "Model", "NotCovered", "Verdict", "check", "digest_of", "model_of_bytes",
           "named_models", "read_model", "read_models", "verify_file"]  # fmt: skip
