"""Certificates: a bound with a proof that its evidence writes in the checker's language, and the check that issues `checked`."""

from lipverify.certificates.format import Issued
from lipverify.certificates.issuing import bound_model, issue, model_of, model_path, unproved, verify
from lipverify.certificates.nodes import described
from lipverify.certificates.writing import Condition, Layer, Part, Writer

__all__ = [
    "Condition",
    "Issued",
    "Layer",
    "Part",
    "Writer",
    "bound_model",
    "described",
    "issue",
    "model_of",
    "model_path",
    "unproved",
    "verify",
]
