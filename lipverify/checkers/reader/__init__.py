"""From bytes to programs: model files, and the architecture a certificate states for weights. Nothing here knows of proofs."""

from __future__ import annotations

from lipverify.checkers.reader.architecture import architecture, tensors_read
from lipverify.checkers.reader.files import (
    MAX_CERTIFICATE,
    MAX_MODEL,
    Model,
    digest_of,
    model_of_bytes,
    parse_json,
    parse_safetensors,
    read_bytes,
    read_model,
)
from lipverify.checkers.reader.reading import FIXED_KINDS, Reading, stating

__all__ = ["FIXED_KINDS", "MAX_CERTIFICATE", "MAX_MODEL", "Model", "Reading", "architecture", "digest_of", "model_of_bytes",
           "parse_json", "parse_safetensors", "read_bytes", "read_model", "stating", "tensors_read"]  # fmt: skip
