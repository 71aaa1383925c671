"""Which function lowers which operator of torch; other packages add theirs here."""

from __future__ import annotations

from typing import Any

from lipverify.frontends.registry import Lowering, Translator


class TorchLowering(Lowering[str]):
    """From operator names to translators.

    A name is that of an overload (`aten.max.dim`) or of all overloads together (`aten.relu`); the overload's own entry is
    preferred. A translator is called with the builder and with the operator's own arguments: values for tensors that depend
    on the input, tensors for stored ones, plain Python numbers with the batch size taken as 1.
    """

    def key(self, name: str) -> str:
        """The name itself."""
        return name

    def find(self, target: Any) -> Translator | None:
        """The translator of an operator as it stands in an exported graph."""
        overload = str(target)
        return self.translators.get(overload) or self.translators.get(overload.rpartition(".")[0])

    def names(self) -> tuple[str, ...]:
        """All names with a translator; documented tables are generated from this."""
        return tuple(sorted(self.translators))


lower = TorchLowering()
