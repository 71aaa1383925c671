"""From an ONNX model to our graph: `extract_onnx`, and `lower` to teach it further operators."""

from lipverify.frontends.onnx.extract import extract_onnx
from lipverify.frontends.onnx.registry import lower

__all__ = ["extract_onnx", "lower"]
