"""Which function lowers which ONNX operator; other packages add theirs here."""

from __future__ import annotations

from lipverify.frontends.registry import Lowering, Translator

STANDARD_DOMAINS = ("", "ai.onnx")
DEFINED_DOMAINS = ("", "ai.onnx.ml")
"""Domains whose operators the installed onnx defines."""


class OnnxLowering(Lowering[tuple[str, str]]):
    """From (domain, operator) to translators.

    Operators of the standard domain are registered by their bare name (`Relu`), others as `domain::Name`. A translator is
    called with a `Call` and returns a value, a stored tensor, or a list of them, one for each output.
    """

    def key(self, name: str) -> tuple[str, str]:
        """Domain and operator."""
        domain, _, op = name.rpartition("::")
        return domain, op

    def find(self, domain: str, op: str) -> Translator | None:
        """The translator of an operator; `ai.onnx` is another name of the standard domain."""
        return self.translators.get(("" if domain in STANDARD_DOMAINS else domain, op))

    def names(self) -> tuple[str, ...]:
        """All operators with a translator; documented tables are generated from this."""
        return tuple(sorted(f"{domain}::{op}" if domain else op for domain, op in self.translators))


lower = OnnxLowering()
