"""Certified Lipschitz bounds for trained networks: one graph, many analyzers, a witness beside every bound.

    import lipverify as lv

    graph = lv.load("net.onnx")
    result = lv.audit(graph, norm="l2", analyzers=["product"])
    print(result.lower.value, result.best.upper)

Names are imported when they are first used, so that importing the package does not import torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOMES = {
    "lipverify.pipeline": ("audit", "extract", "load", "margin"),
    "lipverify.certificates": ("verify",),
    "lipverify.results": ("Audit",),
    "lipverify.execution": ("ExecutionError", "execution_error"),
    "lipverify.comparison": ("Comparison", "compare"),
    "lipverify.ir.region": ("Ball", "Everywhere", "Query"),
    "lipverify.ir.norm": ("Norm",),
    "lipverify.ir.graph": ("Graph", "Node"),
    "lipverify.ir.certificate": ("Certificate", "Rigour", "Witness"),
    "lipverify.interpreter": ("evaluate",),
    "lipverify.robustness": ("Radii", "radii"),
    "lipverify.monotonicity": ("Monotonicity", "monotone"),
    "lipverify.propagation": ("Bounds", "bounds"),
    "lipverify.questions": ("Answer", "InputBox", "ask"),
    "lipverify.questions.deviation": ("Deviation", "deviation"),
    "lipverify.errors": (
        "ExtractionMismatch",
        "InternalError",
        "InvalidFile",
        "LipverifyError",
        "Refuted",
        "RefutedCertificate",
        "Undecided",
        "UnreadableCertificate",
        "UnsafeInput",
        "UnsupportedModel",
        "UsageError",
    ),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = ["__version__", *sorted(_HOME_OF)]

if TYPE_CHECKING:
    from lipverify.certificates import verify
    from lipverify.comparison import Comparison, compare
    from lipverify.errors import (
        ExtractionMismatch,
        InternalError,
        InvalidFile,
        LipverifyError,
        Refuted,
        RefutedCertificate,
        Undecided,
        UnreadableCertificate,
        UnsafeInput,
        UnsupportedModel,
        UsageError,
    )
    from lipverify.execution import ExecutionError, execution_error
    from lipverify.interpreter import evaluate
    from lipverify.ir.certificate import Certificate, Rigour, Witness
    from lipverify.ir.graph import Graph, Node
    from lipverify.ir.norm import Norm
    from lipverify.ir.region import Ball, Everywhere, Query
    from lipverify.monotonicity import Monotonicity, monotone
    from lipverify.pipeline import audit, extract, load, margin
    from lipverify.propagation import Bounds, bounds
    from lipverify.questions import Answer, InputBox, ask
    from lipverify.questions.deviation import Deviation, deviation
    from lipverify.results import Audit
    from lipverify.robustness import Radii, radii


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'lipverify' has no attribute {name!r}")
    return getattr(import_module(_HOME_OF[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME_OF})
