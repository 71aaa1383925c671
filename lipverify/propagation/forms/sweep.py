"""One forward sweep: the form of every node, from the input to the output."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from lipverify import ops
from lipverify.errors import Undecided, UnsupportedModel
from lipverify.ir.graph import Graph, Node
from lipverify.ir.interval import Interval
from lipverify.ir.norm import Norm
from lipverify.ir.op import Constant, Input
from lipverify.linalg.lengths import euclidean_norm
from lipverify.linalg.rounding import gamma
from lipverify.propagation.forms.domain import FAR, Domain, Front
from lipverify.propagation.forms.symbols import Facts, Form, Symbols, checked
from lipverify.propagation.interval import interval_ranges
from lipverify.propagation.knowledge import is_affine
from lipverify.propagation.strips import Strip
from lipverify.rules import forward, interval, linear, magnitude

COARSE = 2.0**-30
"""Of a node's gradients: slack beyond this share gets symbols of its own."""
GAIN = 0.98
"""A second sweep goes on while its gradients of a softmax are below this share of those of the first."""
_UNDERFLOW = 2.0**-900
"""What products of numbers that underflow may lack in a node, with room for factors of 2^100 and sums of as many terms."""
_HUGE = 2.0**200
"""Factor that makes the constants of an affine map negligible: |A| x = (|A| (x t) + |b|) / t, rounded up."""
_MOVES = (ops.Reshape, ops.Transpose, ops.Slice, ops.Gather, ops.Concat, ops.Expand)


class Looser(Exception):
    """A softmax moves about as far as another sweep says, or further, over every ball: what follows will gain nothing."""


Refine = Callable[["Sweep", str, Facts], Interval]


def _with_underflow(node: Node, form: Form) -> Form:
    """Rounding is charged relatively; a product below the normal numbers may lose all of itself, and later factors restore it."""
    if isinstance(node.op, (Input, Constant, *_MOVES)):
        return form
    slack = form.slack.clone()
    if form.matrix is None:
        slack[:, 0] += _UNDERFLOW
    else:
        slack += _UNDERFLOW
    return replace(form, slack=slack)


@dataclass
class Sweep:
    """What is known so far; everything [count, ...].

    point: the exact values at the middle of every ball, enclosed; within: facts from elsewhere about the same balls; refine:
    asked for a tighter range of every node that is looked at, with the sweep so far; forms, facts: of the nodes passed; boxes:
    what node rules know of their results, beyond forms; shares: of the rows of a softmax; middles: where products take a factor
    to be; strips: what a reference and its errors say about values alone.
    """

    graph: Graph
    domain: Domain
    symbols: Symbols
    point: Mapping[str, Interval]
    within: Mapping[str, Facts] = field(default_factory=dict)
    expired: Callable[[], bool] = lambda: False
    refine: Refine | None = None
    rival: Mapping[str, Facts] = field(default_factory=dict)
    shells: int = 4
    forms: dict[str, Form] = field(default_factory=dict)
    facts: dict[str, Facts] = field(default_factory=dict)
    boxes: dict[str, Facts] = field(default_factory=dict)
    shares: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    middles: dict[str, Tensor] = field(default_factory=dict)
    strips: dict[str, Strip] = field(default_factory=dict)

    @classmethod
    def start(
        cls,
        graph: Graph,
        domain: Domain,
        memory: int,
        within: Mapping[str, Facts] | None = None,
        expired: Callable[[], bool] = lambda: False,
        refine: Refine | None = None,
        rival: Mapping[str, Facts] | None = None,
    ) -> Sweep:
        """A sweep over a float64 graph on the device of the domain; nothing computed yet but the values at the middle."""
        point = interval_ranges(graph, Interval(domain.middle, domain.middle))
        return cls(
            graph, domain, Symbols.none(domain, memory), point, within or {}, expired, refine, rival or {}
        )

    def run(self) -> Form:
        """The form of the output.

        Raises:
            UnsupportedModel: a node without a rule, not bounded here, or too large; it is named. Undecided: no time was left.
            Looser: than the rival.
        """
        waiting = {name: len(readers) for name, readers in self.graph.consumers.items()}
        for node in self.graph.nodes:
            if self.expired():
                raise Undecided(f"no time was left at {node.describe()}")
            try:
                self.forms[node.name] = _with_underflow(node, self._form(node))
            except UnsupportedModel as error:
                raise type(error)(f"{node.describe()}: {error}") from None
            for name in node.inputs:
                waiting[name] -= 1
                if waiting[name] == 0 and name != self.graph.output.name:
                    self.forms.pop(name, None)
            self._compress(node.name)
        self.ask(self.graph.output.name)
        return self.forms[self.graph.output.name]

    def ask(self, name: str) -> Facts:
        """Everything known of a node that is still there."""
        if name not in self.facts:
            form, point = self.forms[name], self.point[name]
            found, form = self.symbols.facts(form, point)
            if name in self.boxes:
                found = found.meet(self.boxes[name])
            if name in self.rival and isinstance(self.graph[name].op, ops.Softmax | ops.MaskedSoftmax):
                self._compare(found, self.rival[name])
            if name in self.within:
                found = found.meet(self.within[name])
            if (
                self.refine is not None and name in self.graph.consumers
            ):  # not a node that a rule put in between
                found = found.within(self.refine(self, name, found))
            if form.matrix is not None and _coarse(form, found):
                form = self.symbols.spelled(form)
            self.forms[name], self.facts[name] = form, checked(found, name)
        return self.facts[name]

    def _compare(self, found: Facts, rival: Facts) -> None:
        """Raises Looser where gradients of a softmax are no smaller than the rival's by more than `GAIN` over every ball.

        Later nodes follow: on trained vision transformers the bound at the end was larger each time.
        """
        ours, theirs = (facts.slopes.flatten(1).sum(1) for facts in (found, rival))
        if bool((ours > GAIN * theirs).all()):
            raise Looser

    def lost(self, known: Tensor, reached: Tensor) -> Tensor:
        """Rows of which constants know more than forms, which have exploded: [count, rows]; both [count, 1 + kinds, rows, n].

        Of their gradients; of their values in a sweep that ranges are refined with, which asks for margins: forms of values
        explode later, and a constant forgets how rows move together.
        """
        place = 1 if self.refine is None else 0
        return known[:, place].sum(-1) < 0.5 * reached[:, place].sum(-1)

    def offset(self, name: str, middle: Tensor) -> Tensor:
        """|value at the middle of the ball - middle| entry by entry, at most."""
        point = self.point[name]
        return torch.maximum((point.upper - middle).abs(), (middle - point.lower).abs()) * FAR

    def radius(self, name: str, middle: Tensor) -> Tensor:
        """How far a node's entries are from `middle` at most: [count, *shape]."""
        found = self.ask(name)
        far = torch.maximum((found.upper - middle).abs(), (middle - found.lower).abs())
        return torch.nextafter(far, torch.full_like(far, torch.inf))

    def fence(self, node: Node, slopes: Tensor | None = None) -> None:
        """Keeps what interval arithmetic says of a node that is not affine, and bounds of its gradients by another rule."""
        ranges = [Interval(found.lower, found.upper) for found in (self.ask(name) for name in node.inputs)]
        box = interval(node.op, *ranges)
        size = self.domain.count, *node.shape
        if slopes is None:
            slopes = box.lower.new_full((size[0], len(self.domain.kinds), *node.shape), torch.inf)
        self.boxes[node.name] = Facts(box.lower.expand(size), box.upper.expand(size), slopes)

    # -- affine nodes

    def _form(self, node: Node) -> Form:
        from lipverify.propagation.forms import nonlinear

        if isinstance(node.op, Input):
            return self._input(node)
        if isinstance(node.op, Constant):
            value = self.point[node.name]
            size = self.domain.count, *node.shape
            return Form.constant(value.lower.expand(size).contiguous(), len(self.domain.kinds))
        if is_affine(node):
            return self._affine(node, [self.forms[name] for name in node.inputs])
        return nonlinear.form_of(self, node)

    def _input(self, node: Node) -> Form:
        middle, size = self.domain.middle, node.size
        self.symbols._afford(size, size)
        matrix = torch.eye(size, dtype=torch.float64, device=middle.device).reshape(1, size, *node.shape)
        none = middle.new_zeros(self.domain.count, 1 + len(self.domain.kinds), *node.shape)
        sizes = none + 1.0
        sizes[:, 0] = middle.abs() + self.domain.half.reshape(-1, *node.shape)
        return Form(middle, matrix, none, sizes)

    def _affine(self, node: Node, inputs: list[Form]) -> Form:
        """A z for an affine map: exact up to rounding, gamma of the absolute terms."""
        op = node.op
        centre = forward(op, *(form.centre for form in inputs)).expand(self.domain.count, *node.shape)
        slack, size = self._absolute(node, [f.slack for f in inputs]), self._sizes(node, inputs)
        if not isinstance(op, _MOVES):
            terms = sum(self.graph[name].size for name in node.inputs)
            slack = slack + 2.0 * gamma(terms + 16) * size
        present = [form.matrix for form in inputs if form.matrix is not None]
        if not present:
            return Form(centre, None, slack, size)
        count = max(len(matrix) for matrix in present)
        rows = iter(self.symbols.same_rows(*present))
        most = max(matrix.shape[1] for matrix in present)
        self._afford(node, count * most)
        flat = [
            form.centre.new_zeros(1, *form.centre.shape[1:]).expand(count * most, *form.centre.shape[1:])
            if form.matrix is None
            else _flat(next(rows), count)
            for form in inputs
        ]
        matrix = linear(op, *flat).reshape(count, most, *node.shape)
        return Form(centre, matrix, slack, size)

    def _afford(self, node: Node, rows: int) -> None:
        need = 8 * rows * node.size
        if need > self.symbols.memory:
            raise UnsupportedModel(
                f"its affine form takes {rows} x {node.size} numbers, {need / 1e9:.1f} GB and more than the "
                f"{self.symbols.memory / 1e9:.1f} GB allowed; take a part of the network or a smaller input"
            )

    def _absolute(self, node: Node, parts: list[Tensor]) -> Tensor:
        """|A| s for s >= 0, [count, 1 + kinds, *shape] for each input, rounded up; constants do not count."""
        flat = [part.flatten(0, 1) * _HUGE for part in parts]
        found = magnitude(node.op, *flat) / _HUGE
        found = found.expand(len(flat[0]), *node.shape)
        terms = sum(self.graph[name].size for name in node.inputs)
        found = found * (FAR + 4.0 * gamma(terms + 16))
        return found.reshape(self.domain.count, -1, *node.shape)

    def _sizes(self, node: Node, inputs: list[Form]) -> Tensor:
        """As `_absolute` for the sizes of terms; constants count among values."""
        size = self._absolute(node, [form.size for form in inputs])
        values = magnitude(node.op, *(form.size[:, 0] for form in inputs))
        terms = sum(self.graph[name].size for name in node.inputs)
        size[:, 0] = values * (FAR + 4.0 * gamma(terms + 16))
        return size

    # -- fewer rows

    def _compress(self, name: str) -> None:
        """Where all later nodes read this one only, its entries take the place of the inputs.

        In linf the matrix F of the map so far is kept aside: t enters as F't. In l2 with F = Q R + D: F't = R'v + D't with
        v = Q't, |v| <= |Q| |t|.
        """
        form, domain = self.forms.get(name), self.domain
        if form is None or form.matrix is None or self.symbols.blocks or len(form.matrix) != 1:
            return
        alive = [n for n, f in self.forms.items() if f.matrix is not None]
        rows, columns = form.matrix.shape[1], form.matrix[0, 0].numel()
        if alive != [name] or rows <= columns or (domain.front is not None and not domain.euclidean):
            return
        matrix = form.matrix[0].flatten(1)
        if domain.euclidean:
            basis, first = torch.linalg.qr(matrix)
            left = matrix - basis @ first
            rest = euclidean_norm(left, dim=0)
            rest = rest + 2.0 * gamma(rows + 16) * euclidean_norm(
                matrix.abs() + basis.abs() @ first.abs(), dim=0
            )
            rest = (rest * domain.stretch * FAR).reshape(form.centre.shape[1:])
            defect = basis.T @ basis - torch.eye(columns, dtype=basis.dtype, device=basis.device)
            wrong = float(torch.linalg.matrix_norm(defect)) + 2.0 * gamma(rows + 16) * float(
                basis.square().sum()
            )
            reach = domain.reach.reshape(-1, *[1] * rest.ndim)
            slack = form.slack + torch.stack([rest * reach, rest.expand(len(reach), *rest.shape)], 1)
            form = replace(form, matrix=first.reshape(1, columns, *form.centre.shape[1:]), slack=slack)
            domain.stretch *= 1.0 + wrong
        else:
            domain.front = Front.of(matrix)
            identity = torch.eye(columns, dtype=matrix.dtype, device=matrix.device)
            form = replace(form, matrix=identity.reshape(1, columns, *form.centre.shape[1:]))
        domain.rows = columns
        self.forms[name] = form


def _coarse(form: Form, facts: Facts) -> bool:
    """Whether slack is more than a sliver of a node's gradients."""
    return bool((form.slack[:, 1:].flatten(1).amax(1) > COARSE * facts.slopes.flatten(1).amax(1)).any())


def _flat(matrix: Tensor, count: int) -> Tensor:
    return matrix.expand(count, *matrix.shape[1:]).reshape(-1, *matrix.shape[2:])


def euclidean(domain: Domain) -> bool:
    """Whether l2 norms of gradients are asked, and norms of blocks of symbols count."""
    return Norm.L2 in domain.kinds
