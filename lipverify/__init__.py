"""Certified Lipschitz bounds for trained networks: one graph, many analyzers, a witness beside every bound.

    import lipverify as lv

    graph = lv.load("net.onnx")
    result = lv.audit(graph, norm="l2")
    print(result.lower.value, result.best.upper)

Names are imported when they are first used, so that importing the package does not import torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from lipverify.version import __version__

_HOMES = {
    "lipverify.verbs": (
        "ask",
        "audit",
        "bounds",
        "closed_loop",
        "compare",
        "convex",
        "deviation",
        "evaluate",
        "execution_error",
        "extract",
        "game",
        "load",
        "margin",
        "monotone",
        "radii",
        "sensitivity",
        "verify",
    ),
    "lipverify.convexity": ("Convexity",),
    "lipverify.results": ("Audit",),
    "lipverify.execution": ("ExecutionError",),
    "lipverify.comparison": ("Comparison",),
    "lipverify.ir.region": ("Ball", "Bounded", "Everywhere", "Query"),
    "lipverify.ir.norm": ("Norm",),
    "lipverify.ir.graph": ("Graph", "Node"),
    "lipverify.ir.certificate": ("Certificate", "Rigour", "Witness"),
    "lipverify.robustness": ("Radii",),
    "lipverify.monotonicity": ("Monotonicity",),
    "lipverify.propagation": ("Bounds",),
    "lipverify.questions": ("Answer", "InputBox"),
    "lipverify.questions.deviation": ("Deviation",),
    "lipverify.derived": ("Derived",),
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
    from lipverify.comparison import Comparison
    from lipverify.convexity import Convexity
    from lipverify.derived import Derived
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
    from lipverify.execution import ExecutionError
    from lipverify.ir.certificate import Certificate, Rigour, Witness
    from lipverify.ir.graph import Graph, Node
    from lipverify.ir.norm import Norm
    from lipverify.ir.region import Ball, Everywhere, Query
    from lipverify.monotonicity import Monotonicity
    from lipverify.propagation import Bounds
    from lipverify.questions import Answer, InputBox
    from lipverify.questions.deviation import Deviation
    from lipverify.results import Audit
    from lipverify.robustness import Radii
    from lipverify.verbs import (
        ask,
        audit,
        bounds,
        closed_loop,
        compare,
        convex,
        deviation,
        evaluate,
        execution_error,
        extract,
        game,
        load,
        margin,
        monotone,
        radii,
        sensitivity,
        verify,
    )


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        from lipverify.errors import did_you_mean

        raise AttributeError(f"module 'lipverify' has no attribute {name!r}{did_you_mean(name, __all__)}")
    return getattr(import_module(_HOME_OF[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME_OF})
