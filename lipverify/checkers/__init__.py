"""An independent checker of certificates: numpy alone (onnx only to parse a model file), nothing of the analyzers.

Trusted: this package, numpy's products and Cholesky under the assumptions of `arithmetic` (integers alone with `exact`), SHA-256,
the interpreter. Not trusted: whatever produced the certificate.
"""

from lipverify.checkers.arithmetic import NotCovered
from lipverify.checkers.claims import Verdict, check, verify_file
from lipverify.checkers.files import Model, read_model

__all__ = ["Model", "NotCovered", "Verdict", "check", "read_model", "verify_file"]
