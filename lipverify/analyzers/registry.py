"""Names to analyzers, in one place: the package's own and those of other packages are found through the same entry points."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import entry_points

from lipverify.analyzers.protocol import Analyzer
from lipverify.errors import UsageError, did_you_mean
from lipverify.loading.names import display

GROUP = "lipverify.analyzers"

BUILT_IN = {
    "product": "lipverify.analyzers.product:Product",
    "tokens": "lipverify.analyzers.tokens:Tokens",
    "local": "lipverify.analyzers.local.analyzer:Local",
    "local:float32": "lipverify.analyzers.local.analyzer:LocalSingle",
    "local:recurjac": "lipverify.analyzers.local.analyzer:LocalRecurJac",
    "local-sdp": "lipverify.analyzers.local.sdp:LocalSDP",
    "local-bab": "lipverify.analyzers.local.bab:LocalBaB",
    "local:interval": "lipverify.analyzers.local.analyzer:LocalInterval",
    "lirpa": "lipverify.analyzers.lirpa.analyzer:Lirpa",
    "lipsdp": "lipverify.analyzers.lipsdp.analyzer:LipSDP",
    "lipsdp-fast": "lipverify.analyzers.lipsdp.analyzer:LipSDPFast",
    "lipsdp:frequencies": "lipverify.analyzers.lipsdp.frequencies.analyzer:LipSDPFrequencies",
    "lipsdp-cvxpy": "lipverify.analyzers.lipsdp.analyzer:LipSDPReference",
    "lipsdp-cvxpy:scs": "lipverify.analyzers.lipsdp.compared:LipSDPBySCS",
    "lipsdp-cvxpy:group": "lipverify.analyzers.lipsdp.compared:LipSDPGroup",
    "lipsdp-cvxpy:group-diagonal": "lipverify.analyzers.lipsdp.compared:LipSDPGroupDiagonal",
}
"""Kept here so that a source tree without metadata works. Names without a colon are entry points in pyproject.toml too; behind a
colon stands a variant for comparison."""


def names() -> tuple[str, ...]:
    """Every analyzer that can be asked for by name, built-in ones first."""
    others = sorted({entry.name for entry in entry_points(group=GROUP)} - set(BUILT_IN))
    return (*BUILT_IN, *others)


def resolve(wanted: str | Analyzer) -> Analyzer:
    """An analyzer object from a registered name; objects pass through.

    Raises:
        UsageError: no such name, or the package that registered it does not offer an analyzer.
    """
    if not isinstance(wanted, str):
        if isinstance(wanted, type) or not isinstance(wanted, Analyzer):
            hint = "; give an object, not its class" if isinstance(wanted, type) else ""
            raise UsageError(f"{display(repr(wanted))} is neither an analyzer nor the name of one{hint}")
        return wanted
    if wanted in BUILT_IN:
        module, _, attribute = BUILT_IN[wanted].partition(":")
        return _made(wanted, getattr(import_module(module), attribute))
    for entry in entry_points(group=GROUP):
        if entry.name == wanted:
            return _made(wanted, entry.load())
    near = did_you_mean(wanted, ("auto", *names()))
    raise UsageError(
        f"there is no analyzer {display(wanted)!r}{near or '; choose from auto, ' + ', '.join(names())}"
    )


def _made(name: str, kind: type) -> Analyzer:
    analyzer = kind()
    if not isinstance(analyzer, Analyzer):
        raise UsageError(f"the package behind analyzer {name!r} offers {kind!r}, which is not an analyzer")
    return analyzer
