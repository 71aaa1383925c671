"""The difference of two networks as one graph: as a subtraction, and with the difference of every layer carried along.

Legend: f, g the networks, h_f and h_g the values of one layer in each, d = h_f - h_g.
Source: ReluDiff (ICSE 2020, arXiv 2001.03662), NeuroDiff (arXiv 2009.09943), VeryDiff (arXiv 2410.20207), here as a rewriting
into operators that have ranges and planes (`ops.change`), for any graph.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lipverify import memory, ops
from lipverify.combine.agreement import require_close, samples
from lipverify.combine.carry import (
    RUNS,
    Draft,
    Pair,
    Step,
    alike,
    carried,
    covered,
    equal,
    run_changed,
    saturated,
)
from lipverify.deadline import look
from lipverify.errors import UsageError
from lipverify.interpreter import evaluate, evaluate_all
from lipverify.ir.graph import Graph, Node
from lipverify.ir.graphs import joined, require_alike
from lipverify.ir.op import Constant
from lipverify.ops.change import Same, has_change

_WEIGHTS = ops.Linear, ops.Conv, ops.ConvTranspose
LISTED = 8
"""Places where the structures differ that are named."""
MOST = 1 << 26
"""Bytes of values at once where the difference is looked at on random inputs."""


@dataclass(frozen=True)
class Layer:
    """A pair of layers, all names in the graph of the difference: the two nodes, the node of d, and the nodes of what the layer's
    own parameters add to it."""

    first: str
    second: str
    change: str
    own: tuple[str, ...]


@dataclass(frozen=True)
class Difference:
    """x -> f(x) - g(x). graph: its output is the difference, [*output shape].

    first, second, carried: the nodes of f(x), of g(x) and of the carried difference of both in it.

    zero: f and g are one function by their structure, so that the difference is 0 exactly (the graph then says so too).
    apart: where the structures differ, in words; the difference is that of two separate branches there.
    """

    graph: Graph
    first: str
    second: str
    carried: str
    layers: tuple[Layer, ...]
    apart: tuple[str, ...]
    zero: bool

    def functionals(self, rows: Tensor, of_each: Tensor) -> Graph:
        """A graph with four outputs: `rows` [count, size] of the flattened difference; `of_each` of f(x), and of g(x); and `rows`
        of the difference of the two branches alone, which single inputs are evaluated by."""
        draft = Draft({node.name: node.shape for node in self.graph.nodes}, "rows.")
        draft.source = "output"

        def linear(name: str, matrix: Tensor) -> str:
            size = math.prod(draft.shapes[name])
            flat = name if len(draft.shapes[name]) == 1 else draft.add(ops.Reshape((size,)), name)
            return draft.add(ops.Linear(matrix.to(torch.float64), None), flat)

        apart = draft.add(ops.Sub(), self.first, self.second)
        branches = linear(apart, rows)
        met = draft.add(Same(), linear(self.carried, rows), branches)
        outputs = (met, linear(self.first, of_each), linear(self.second, of_each), branches)
        return Graph((*self.graph.nodes, *draft.nodes), outputs)


def minus(f: Graph, g: Graph) -> Graph:
    """x -> f(x) - g(x): two branches that meet in a subtraction. Parameters become float64.

    Raises:
        UsageError: inputs or outputs of different shapes, or by names that say they are others.
    """
    both = joined(*_prepared(f, g))
    first, second = both.outputs
    nodes = (*both.nodes, Node("difference", ops.Sub(), (first, second), both[first].shape))
    found = Graph(nodes, ("difference",))
    x = samples(f)
    parts = [evaluate(graph.to(dtype=torch.float64), x) for graph in (f, g)]
    wanted = (parts[0].flatten(1) - parts[1].flatten(1)).reshape(evaluate(found, x).shape)
    require_close(wanted, evaluate(found, x), "minus")
    return found


def difference(f: Graph, g: Graph) -> Difference:
    """x -> f(x) - g(x) with the difference of every layer carried: exact over the reals, checked by the interpreter.

    Layers pair up from the outputs on. An affine layer gives W_g d + (W_f - W_g) h_f, an activation `Change`; where structures
    differ the two branches are subtracted.

    Raises:
        UsageError: inputs or outputs of different shapes, or by names that say they are others.
    """
    f, g = _prepared(f, g)
    turned = _weight(f) < _weight(g)
    both = joined(g, f, ("g.", "f.")) if turned else joined(f, g)
    first, second = reversed(both.outputs) if turned else both.outputs
    work = _Rewriting(both)
    output = work.run()
    draft = work.draft
    draft.source = "output"
    if output is None:
        carried_output = draft.add(ops.Constant(torch.zeros(f.output_shape, dtype=torch.float64)))
    elif turned:
        carried_output = draft.add(ops.Scale(torch.tensor(-1.0, dtype=torch.float64), None), output)
    else:
        carried_output = output
    end = carried_output if output is None else draft.met(carried_output, first, second)
    graph = Graph((*both.nodes, *draft.nodes), (end,))
    found = Difference(
        graph, first, second, carried_output, tuple(work.layers), tuple(work.apart), output is None
    )
    _check(found)
    return found


def _weight(graph: Graph) -> tuple[float, str]:
    """How large the parameters are. The carried difference goes through those of the network with the smaller ones, which
    amplify it less; and the answer is the same whichever network comes first."""
    total = 0.0
    for node in graph.nodes:
        for value in vars(node.op).values():
            if isinstance(value, torch.Tensor) and value.is_floating_point():
                total += float(value.double().abs().sum())
    return total, graph.digest


def _prepared(f: Graph, g: Graph) -> tuple[Graph, Graph]:
    """Both in float64, with outputs of one shape."""
    require_alike(f, g)
    # Axes of size 1 aside: in what order numbers stand is the same then.
    if [n for n in f.output_shape if n != 1] != [n for n in g.output_shape if n != 1]:
        raise UsageError(
            f"the networks give outputs of different shapes, {list(f.output_shape)} and {list(g.output_shape)}; "
            "they cannot be subtracted"
        )
    found = []
    for graph in (f, g):
        graph = graph.to(dtype=torch.float64).pruned()
        if f.output_shape != g.output_shape:
            graph = graph.append(ops.Reshape((graph.output.size,)), (graph.output.size,), "flatten")
        found.append(graph)
    return found[0], found[1]


class _Rewriting:
    """Pairs of nodes of a joined graph, each with the node of its difference (None: zero)."""

    def __init__(self, both: Graph) -> None:
        self.both = both
        self.draft = Draft({node.name: node.shape for node in both.nodes})
        self.found: dict[tuple[str, str], str | None] = {}
        self.layers: list[Layer] = []
        self.apart: list[str] = []

    def run(self) -> str | None:
        """The node of the difference of the outputs."""
        first, second = self.both.outputs
        place = {node.name: index for index, node in enumerate(self.both.nodes)}
        needed, todo = set[tuple[str, str]](), [(first, second)]
        while todo:
            pair = todo.pop()
            if pair not in needed:
                needed.add(pair)
                todo.extend(self._plan(*pair).pairs)
        for pair in sorted(needed, key=lambda pair: (place[pair[0]], place[pair[1]])):
            self.found[pair] = self._difference(*pair)
        return self.found[first, second]

    def _plan(self, first: str, second: str) -> _Plan:
        """How the difference of this pair is made of those of pairs in front of it."""
        m, n = self.both[first], self.both[second]
        if m.shape != n.shape or first == second:
            return _Plan("apart" if first != second else "same")
        if isinstance(m.op, Constant) and isinstance(n.op, Constant):
            return _Plan("alike")
        shapes = [tuple(self.both[name].shape for name in node.inputs) for node in (m, n)]
        if m.inputs and alike(m.op, n.op, (shapes[0], shapes[1])):
            return _Plan("alike", tuple(zip(m.inputs, self._order(m, n), strict=True)))
        if self._saturates(n) and self._like(first, n.inputs[0]):
            return _Plan("second saturates", ((first, n.inputs[0]),))
        if self._saturates(m) and self._like(m.inputs[0], second):
            return _Plan("first saturates", ((m.inputs[0], second),))
        if self._scalar(m, n):
            return _Plan("scalar", ((m.inputs[0], n.inputs[0]),))
        one, other = self._run(first), self._run(second)
        cuts = [
            (i, j)
            for i in range(len(one) + 1)
            for j in range(len(other) + 1)
            if i < len(one) or j < len(other)
        ]
        for i, j in sorted(cuts, key=sum):  # the longest runs first
            p, q = one[i:], other[j:]
            ends = p[0][1] if p else first, q[0][1] if q else second
            same = self.both[ends[0]].shape == self.both[ends[1]].shape
            if same and (self._like(*ends) or self._replaced(*ends)):
                return _Plan("run", (ends,), p, q)
        return _Plan("apart")

    def _run(self, name: str) -> list[Step]:
        """The run of `RUNS` that ends here, each operator with the node it reads."""
        run: list[Step] = []
        while isinstance(self.both[name].op, RUNS):
            (before,) = self.both[name].inputs
            run.insert(0, (self.both[name].op, before))
            name = before
        return run

    def _saturates(self, node: Node) -> bool:
        """Whether it limits what is rounded behind it to what integers represent."""
        readers = (self.both[name].op for name in self.both.consumers[node.name])
        return isinstance(node.op, ops.Clip) and any(isinstance(op, ops.Quantize) for op in readers)

    def _scalar(self, m: Node, n: Node) -> bool:
        """Whether both are scalar operators of one argument, one of them a saturation."""
        scalar = all(has_change(node.op) and len(node.inputs) == 1 for node in (m, n))
        return scalar and (self._saturates(m) or self._saturates(n))

    def _replaced(self, first: str, second: str) -> bool:
        """Whether one is a saturation in the place of the other's activation: a least integer that stands for 0 is a ReLU too."""
        m, n = self.both[first], self.both[second]
        least = [node.op.low for node in (m, n) if self._saturates(node) and isinstance(node.op, ops.Clip)]
        return 0.0 in least and self._scalar(m, n) and self._like(m.inputs[0], n.inputs[0])

    def _like(self, first: str, second: str) -> bool:
        """Whether two values are likely to be counterparts; a wrong pair is valid, and loose."""
        return bool(self._natures(first) & self._natures(second))

    def _natures(self, name: str) -> set[tuple[str, int]]:
        """What a value is, whatever affine spelling, rounding and saturation lie between: the operator it comes from, and through
        how many layers with weights. Of a saturation at 0 behind weights or a sum, that it is a ReLU, too."""
        weights, found = 0, set[tuple[str, int]]()
        while isinstance(self.both[name].op, RUNS) or self._saturates(self.both[name]):
            node = self.both[name]
            weights += isinstance(node.op, _WEIGHTS)
            (name,) = node.inputs
            behind = isinstance(self.both[name].op, (*_WEIGHTS, *RUNS, ops.Add, ops.Sub))
            if behind and not found and isinstance(node.op, ops.Clip) and node.op.low == 0.0:
                found.add((ops.ReLU.kind(), weights))
        return found | {(self.both[name].op.kind(), weights)}

    def _order(self, m: Node, n: Node) -> tuple[str, ...]:
        """The inputs of n in the order that suits m: a sum may be written either way."""
        if not isinstance(m.op, ops.Add) or m.inputs[0] == n.inputs[0]:
            return n.inputs
        kinds = [[self.both[name].op.kind() for name in node.inputs] for node in (m, n)]
        turned = kinds[0] != kinds[1] and kinds[0] == kinds[1][::-1]
        return n.inputs[::-1] if turned else n.inputs

    def _difference(self, first: str, second: str) -> str | None:
        plan = self._plan(first, second)
        if plan.kind == "same":
            return None
        m, n = self.both[first], self.both[second]
        self.draft.source = m.source or m.name
        self.draft.own = []
        if plan.kind == "apart":
            self.apart.append(f"{m.describe()} against {n.describe()}")
            return self.draft.add(ops.Sub(), first, second)
        d = tuple(self.found[pair] for pair in plan.pairs)
        if plan.kind == "run":
            change = run_changed(plan.p, plan.q, first, plan.pairs[0][0], d[0], self.draft)
        elif plan.kind == "second saturates":
            change = saturated(n.op, first, n.inputs[0], d[0], self.draft, turned=False)
        elif plan.kind == "first saturates":
            change = saturated(m.op, m.inputs[0], second, d[0], self.draft, turned=True)
        elif all(each is None for each in d) and equal(m.op, n.op):
            return None
        elif not covered(m.op):
            self.apart.append(f"{m.describe()}, whose change has no rule")
            return self.draft.add(ops.Sub(), first, second)
        else:
            b = tuple(pair[1] for pair in plan.pairs)
            change = carried(m.op, n.op, Pair(self.draft, first, second, m.inputs, b, d))
        if change is not None:
            self.layers.append(Layer(first, second, change, tuple(self.draft.own)))
        return change


@dataclass(frozen=True)
class _Plan:
    """kind: how; pairs: what it needs; p, q: the runs of both networks, where it is by runs."""

    kind: str
    pairs: tuple[tuple[str, str], ...] = ()
    p: list[Step] = field(default_factory=list)
    q: list[Step] = field(default_factory=list)


def _check(found: Difference) -> None:
    """Every carried difference is that of its two layers, on random inputs; and the output that of the networks."""
    graph = found.graph
    pairs = [(layer.first, layer.second, layer.change) for layer in found.layers]
    pairs.append((found.first, found.second, graph.output.name))
    # All values of a row are there at once.
    rows = max(memory.share(MOST) // (8 * max(sum(node.size for node in graph.nodes), 1)), 1)
    for x in samples(graph).split(rows):
        values = evaluate_all(graph, x)
        sizes = [v.abs().flatten(1).amax(1).expand(len(x)) for v in values.values() if v[0].numel()]
        largest = torch.stack(sizes).amax(0)
        for first, second, name in pairs:
            look()
            wanted = values[first] - values[second]
            change = values[name].expand(wanted.shape)
            if not bool(change.isfinite().all()):
                raise UsageError(
                    f"the parameters of {graph[first].describe()} are so far apart that their difference is beyond float64"
                )
            require_close(wanted, change, "difference", largest[: len(wanted)])
