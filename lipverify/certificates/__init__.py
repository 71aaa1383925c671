"""Certificates: a bound with its evidence in the form the independent checker reads, and the check that issues `checked`."""

from lipverify.certificates.format import Issued
from lipverify.certificates.issuing import issue, model_of, model_path, unproved, verify
from lipverify.certificates.nodes import described

__all__ = ["Issued", "described", "issue", "model_of", "model_path", "unproved", "verify"]
