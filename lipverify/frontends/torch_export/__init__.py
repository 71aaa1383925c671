"""From a `torch.nn.Module` to our graph, through `torch.export`: `extract`, and `lower` to teach it further operators."""

from lipverify.frontends.torch_export.export import extract
from lipverify.frontends.torch_export.registry import lower

__all__ = ["extract", "lower"]
