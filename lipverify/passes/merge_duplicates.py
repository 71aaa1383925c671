"""Computes equal things once, so that later passes see that two operands are the same tensor."""

from __future__ import annotations

import hashlib

from lipverify import ops
from lipverify.ir.graph import Graph, Node
from lipverify.ir.op import Input
from lipverify.passes.rewriting import Replacement, substitute

_LARGEST = 4096
"""Operators with more parameters are not compared: what exporters write twice is small, and weights are many bytes."""

_COMMUTATIVE = (ops.Add, ops.Mul, ops.Maximum, ops.Minimum)


def merge_duplicates(graph: Graph) -> Graph:
    """One node in place of several that apply the same operator with the same parameters to the same inputs."""
    first: dict[tuple[str, tuple[str, ...], str], str] = {}
    found: dict[str, Replacement] = {}
    resolved: dict[str, str] = {}
    for node in graph.nodes:
        inputs = tuple(resolved[name] for name in node.inputs)
        resolved[node.name] = node.name
        if isinstance(node.op, Input) or node.op.parameters() > _LARGEST:
            continue
        key = (
            _digest(node),
            tuple(sorted(inputs)) if isinstance(node.op, _COMMUTATIVE) else inputs,
            str(node.shape),
        )
        earlier = first.setdefault(key, node.name)
        if earlier != node.name:
            found[node.name] = resolved[node.name] = earlier
    return substitute(graph, found)


def _digest(node: Node) -> str:
    digest = hashlib.sha256()
    node.op.update_digest(digest)
    return digest.hexdigest()
