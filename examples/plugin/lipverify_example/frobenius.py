"""An analyzer of our own: the product of Frobenius norms. Simple, valid, and rarely good."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from lipverify.analyzers.protocol import Compute
from lipverify.certificates import Part, Writer
from lipverify.errors import UnsupportedModel
from lipverify.ir.certificate import Certificate, Gains, Rigour, Step
from lipverify.ir.graph import Graph
from lipverify.ir.norm import Norm
from lipverify.ir.op import Input
from lipverify.ir.region import Everywhere, Query
from lipverify.linalg.rounding import Upper
from lipverify.ops import Linear
from lipverify.rules import gain


@dataclass(frozen=True)
class FrobeniusGains(Gains):
    """The stages, and how the checker proves their product."""

    def proof(self, writer: Writer, part: Part) -> int:
        """The checker's own product of spectral norms is below that of Frobenius norms, so that it carries this bound too."""
        return writer.product(part)


@dataclass(frozen=True)
class Frobenius:
    """Product of the Frobenius norms of the matrices and of the gains of everything else, along a chain.

    Statement: |f(x) - f(y)|_2 <= upper |x - y|_2 for all x, y.
    Source: elementary; the spectral norm of a matrix is at most its Frobenius norm.
    Sound when: the network is a chain and every other layer has a gain rule.
    """

    name: ClassVar[str] = "frobenius"

    def reject(self, graph: Graph, query: Query) -> str | None:
        """A reason names the node it is about."""
        if not (query.norm_in is query.norm_out is Norm.L2 and isinstance(query.region, Everywhere)):
            return "answers for l2 to l2 and the whole input space only"
        previous = graph.input.name
        for node in graph.nodes[1:]:
            if node.inputs != (previous,):
                return f"{node.describe()} does not follow the layer before it: not a chain"
            if isinstance(node.op, Linear) and len(node.shape) != 1:
                return f"{node.describe()} acts on several rows"
            if not isinstance(node.op, Linear) and not gain.covers(type(node.op)):
                return f"no gain rule for {node.describe()}"
            previous = node.name
        return None

    def bound(self, graph: Graph, query: Query, compute: Compute) -> Certificate:
        """Every product is rounded up (`Upper`). `real` until the independent checker has proved it from the evidence."""
        reason = self.reject(graph, query)
        if reason:
            raise UnsupportedModel(reason)
        reach, steps, shape = Upper.one(), [], graph.input_shape
        for node in graph.nodes:
            if isinstance(node.op, Input):
                continue
            if isinstance(node.op, Linear):
                factor = Upper.root_sum_squares(node.op.weight.double().abs().flatten().tolist())
            else:
                factor = Upper.of(gain(node.op, (shape,), Norm.L2, Norm.L2).factors[0])
            reach, shape = reach * factor, node.shape
            steps.append(Step((node.name,), float(factor), reach.log10() if reach else float("-inf")))
        return Certificate(
            upper=torch.tensor(float(reach), dtype=torch.float64),
            query=query,
            rigour=Rigour.REAL,
            evidence=FrobeniusGains(tuple(steps)),
            made_by=repr(self),
            graph_digest=graph.digest,
        )
