"""The questions one may ask of an operator.

A rule is a table from operator types to functions. Dispatch is by exact type: a subclass never inherits an answer, because
its parent's answer may be unsound for it. What no function covers is refused with the operator named.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from torch import Tensor

from lipverify.deadline import look
from lipverify.errors import InternalError, UnsupportedModel
from lipverify.ir.graph import Node
from lipverify.ir.interval import Interval
from lipverify.ir.norm import Norm
from lipverify.ir.op import Op, Shape

Answer = TypeVar("Answer")
F = TypeVar("F", bound=Callable[..., Any])


class Unbounded(UnsupportedModel):
    """The operator has no finite constant over the region asked for; the message says why."""


class Rule(Generic[Answer]):
    """One question, answered by one function for each operator type."""

    def __init__(self, name: str, question: str) -> None:
        self.name = name
        self.question = question
        self._answers: dict[type[Op], Callable[..., Answer]] = {}

    def register(self, *kinds: type[Op]) -> Callable[[F], F]:
        """Decorator: this function answers for exactly these operator types.

        Raises:
            InternalError: a type already has an answer.
        """

        def add(function: F) -> F:
            for kind in kinds:
                if kind in self._answers:
                    raise InternalError(f"two {self.name} rules for {kind.__name__}")
                self._answers[kind] = function
            return function

        return add

    def __call__(self, op: Op, *args: Any) -> Answer:
        look()
        answer = self._answers.get(type(op))
        if answer is None:
            raise UnsupportedModel(
                f"no {self.name} rule for {op.kind()}; register one in the operator's file"
            )
        return answer(op, *args)

    def covers(self, kind: type[Op]) -> bool:
        """Whether this operator type has an answer."""
        return kind in self._answers

    def missing(self, nodes: Iterable[Node]) -> tuple[Node, ...]:
        """The nodes without an answer."""
        return tuple(node for node in nodes if type(node.op) not in self._answers)

    def coverage(self) -> tuple[type[Op], ...]:
        """All operator types with an answer, by name; documented tables are generated from this."""
        return tuple(sorted(self._answers, key=lambda kind: kind.__name__))


@dataclass(frozen=True)
class Gain:
    """How far an operator can amplify changes of its inputs.

    Statement: |op(x) - op(y)|_out <= joint_i( factors[i] * |x_i - y_i|_in ) for all x, y, where `joint` is the l1 norm (sum),
    l2 norm (root of sum of squares) or linf norm (maximum) over the inputs i. Factors are float64, finite, never below the truth.
    """

    factors: tuple[float, ...]
    joint: Norm = Norm.L1


@dataclass(frozen=True)
class Slopes:
    """Range of difference quotients of a scalar function: lower <= (f(x) - f(y)) / (x - y) <= upper, elementwise."""

    lower: Tensor
    upper: Tensor


@dataclass(frozen=True)
class Plane:
    """An affine function of terms: sum over i of slopes[i] * term i, plus the offset; all elementwise.

    Slopes and offset are float64 and broadcast to [batch, *shape of the result].
    """

    slopes: tuple[Tensor, ...]
    offset: Tensor


@dataclass(frozen=True)
class Relaxation:
    """Affine functions below and above an operator: lower(x) <= op(x) <= upper(x) for every x in the boxes.

    Statement: holds in real arithmetic for exactly the stored numbers.
    Term i is input i where `entries` is None. Otherwise the operator has one input, and term i of a result is the input's
    entry `entries[i]` there: entries [terms, *shape of the result], row-major positions in a sample.
    """

    lower: Plane
    upper: Plane
    entries: Tensor | None = None


forward: Rule[Tensor] = Rule(
    "forward", "what does it compute? (op, *inputs [batch, *shape]) -> [batch, *shape]"
)
linear: Rule[Tensor] = Rule(
    "linear",
    "for affine operators only: the part without the constant, same signature as forward; forward(x) = linear(x) + forward(0)",
)
magnitude: Rule[Tensor] = Rule(
    "magnitude",
    "for affine operators: |A| |x| + |constants|, same signature as forward, for x >= 0; a computed forward, linear or adjoint "
    "result of sums over n terms is off by at most gamma_(n+8) times this, entry by entry or in any inner product",
)
interval: Rule[Interval] = Rule(
    "interval", "which box holds all results? (op, *boxes) -> Interval, rounded outward"
)
slopes: Rule[Slopes] = Rule(
    "slopes",
    "scalar activations: the proven range of slopes. "
    "(op, None, shape) over the whole line, (op, box, shape) over a box [batch, *shape]",
)
relax: Rule[Relaxation] = Rule(
    "relax",
    "for operators that are not affine: affine functions below and above it. (op, *boxes [batch, *shape]) -> Relaxation",
)
gain: Rule[Gain] = Rule(
    "gain",
    "how far can it amplify a change? (op, input shapes, norm_in, norm_out) -> Gain; raises Unbounded",
)
Word = tuple[str, Sequence[Tensor | int | None], Mapping[str, Any]]
"""One operator of the checker: its name there, operands (a stored tensor; None, left out; k >= 0, the operator's k-th input;
-1, the result of the word before), settings."""
stated: Rule[Word | Sequence[Word]] = Rule(
    "stated",
    "what is it in the words of the checker (`checkers.reader.operators.WORDS`)? (op, node) -> a word whose operands follow the "
    "operator's inputs, or several words with all their operands, of which the last is the result",
)


@contextmanager
def naming(node: Node) -> Iterator[None]:
    """Whatever is refused inside names the node."""
    try:
        yield
    except UnsupportedModel as error:
        raise type(error)(f"{node.describe()}: {error}") from None


def gain_of(node: Node, input_shapes: tuple[Shape, ...], norm_in: Norm, norm_out: Norm) -> Gain:
    """The gain of a node; a refusal names the node.

    Raises:
        UnsupportedModel: no rule covers the operator, or it is unbounded.
    """
    with naming(node):
        return gain(node.op, input_shapes, norm_in, norm_out)
