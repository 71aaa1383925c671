"""Constants of sequences of tokens, from the largest change of an input token to the largest change of an output token."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import ROUND_CEILING, Context, Decimal
from typing import Any, ClassVar

from lipverify.analyzers.protocol import Compute, certificate
from lipverify.certificates.tokens import Followed, followed, unread
from lipverify.errors import UnsupportedModel, UsageError
from lipverify.ir.certificate import Certificate, Gains, Step
from lipverify.ir.graph import Graph
from lipverify.ir.norm import Norm
from lipverify.ir.region import Ball, Query
from lipverify.ir.taking import number
from lipverify.linalg.rounding import Upper


@dataclass(frozen=True)
class TokenGains(Gains):
    """Evidence of a bound by norms of tokens: its stages. within: the tokens that it is about; None: all."""

    within: Any = None
    notes: tuple[str, ...] = ()

    def proof(self, writer: Any, part: Any) -> int:
        """The bound again: the checker follows the tokens through the program that it reads in the model."""
        found: int = writer.tokens(part, self.within)
        return found


@dataclass(frozen=True)
class Tokens:
    """Attention, normalisation, residual blocks: how far one token's change moves another, in the geometry of enforced constants.

    Statement: max_i |f(x)_i - f(y)_i| <= upper max_i |x_i - y_i| over the tokens of all x, y, or of those with tokens of bounded
    size; |.| the l2 norm of a token or its root mean square, at the output also the largest entry.
    Source: Newhouse, Hess, Cesista et al. 2025 (arXiv 2507.13338), corrected: heads join as the root of a sum of squares, or as
    one matrix; GELU has a slope of 1.1289042.
    Sound when: values are sums of matrices times tokens, softmax averages, products of bounded values, activations of bounded
    slope, and normalisations with eps > 0.
    `variance` is for a second number beside the bound, where something is normalised: what holds for two inputs between which
    everything that is normalised has a variance of at least this. It is a note; the certificate says nothing of it.
    Proof: lipverify/checkers/theories/tokens/__init__.py:constant_of
    """

    name: ClassVar[str] = "tokens"
    of_tokens: ClassVar[bool] = True
    variance: float = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "variance", number(self.variance, "the variance of normalised tokens"))
        if not 0 < self.variance < 2.0**100:
            raise UsageError(
                f"the variance of normalised tokens is a positive finite number, not {self.variance}"
            )

    def reject(self, graph: Graph, query: Query) -> str | None:
        """The norms, the shape of the input, an operator that the checker does not know."""
        if not query.norm_in.of_tokens:
            return "answers from a norm of tokens to a norm of tokens or to linf: give --norm token-rms or token-l2"
        if not (query.norm_out.of_tokens or query.norm_out is Norm.LINF):
            return (
                f"answers from a norm of tokens to one of tokens or to linf, not to {query.norm_out}: give --norm-out token-rms, "
                "token-l2 or linf"
            )
        if isinstance(query.region, Ball):
            return "answers for all inputs, or for tokens of bounded size (--within A), not in balls"
        return query.without_tokens(graph.input_shape) or unread(graph)

    def bound(self, graph: Graph, query: Query, compute: Compute) -> Certificate:
        """A bound, and a line for every stage.

        Raises:
            UnsupportedModel: something has no constant over these inputs, with the reason and a remedy.
        """
        reason = self.reject(graph, query)
        if reason:
            raise UnsupportedModel(reason)
        found = followed(graph, query)
        notes = (*_units(graph, query), *self._apart(graph, query, found))
        evidence = TokenGains(_steps(found, query), found.within, notes)
        return certificate(self, graph, query, Upper.of(found.value), evidence)

    def _apart(self, graph: Graph, query: Query, found: Followed) -> tuple[str, ...]:
        """The second number, rounded up, where something is normalised."""
        if all(stage.kind != "normalised" for _, stage in found.stages):
            return ()
        value = Upper.of(followed(graph, query, self.variance).value).value
        return (
            f"for two inputs between which all that is normalised has a variance (a mean square, without the mean) of at least "
            f"{self.variance:g}: at most {_rounded_up(value)}; not part of the certificate",
        )


def _rounded_up(value: Decimal) -> str:
    """Five digits, as a power of ten where it is far from 1."""
    power = float(value.log10()) if value else 0.0
    if abs(power) < 9.0:
        return f"{value.normalize(Context(5, ROUND_CEILING)):f}"
    return f"10^{math.ceil(1e4 * power + 1e-3) / 1e4:.4f}"


_WORDS: Mapping[str, str] = {
    "input": "tokens of the input",
    "scores": "scores, one by one",
    "softmax": "weights of the average (l1)",
    "average": "averages of tokens",
    "sum": "tokens of a sum",
    "normalised": "normalised tokens",
    "product": "products of values",
    "factor": "tokens of a factor of scores",
    "values": "tokens of the values",
}


def _steps(found: Followed, query: Query) -> tuple[Step, ...]:
    """What every stage knows, in the unit of the input's norm: how large tokens are, and what they change by."""
    rms = query.norm_in is Norm.TOKEN_RMS
    inner = Upper.of(found.stages[0][1].width).sqrt() if rms else Upper.one()
    lines = []
    for node, stage in found.stages:
        tokens = stage.kind not in ("scores", "softmax")
        own = (1.0 / stage.width) ** 0.5 if rms and tokens else 1.0
        change = (Upper.of(stage.slope).scale(stage.power) * inner).value * Decimal(own)
        size = f"{stage.size * own:.4g}" if stage.size < float("inf") else "unbounded"
        unit = "rms" if rms and tokens else "l2" if tokens else "size"
        note = f"{_WORDS.get(stage.kind, stage.kind)}: {unit} at most {size}"
        log10 = float(change.log10()) if change else float("-inf")
        lines.append(Step((stage.kind if node is None else node.name,), None, log10, note))
    return tuple(lines)


def _units(graph: Graph, query: Query) -> tuple[str, ...]:
    """The bound in other units: factors between norms of the same change."""
    d, n = graph.input_shape[-1], graph.input.size // graph.input_shape[-1]
    one = f"token-rms is token-l2 over sqrt({d}) = {d**0.5:.6g} at the input"
    if query.norm_out.of_tokens:
        w = graph.output_shape[-1] if graph.output_shape else 1
        one += f" and over sqrt({w}) = {w**0.5:.6g} at the output"
    return (
        f"{one}; the l2 norm of all {n} tokens together is between token-l2 and sqrt({n}) times token-l2: a bound in one of them "
        "says nothing about another without these factors",
    )
