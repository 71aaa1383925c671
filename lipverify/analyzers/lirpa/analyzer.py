"""The analyzer `lirpa`: Jacobian bounds of auto_LiRPA, one point at a time (batches of several are wrong in 0.7.1)."""

from __future__ import annotations

import importlib.util
import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lipverify.analyzers.lirpa.module import Plain, plain_graph, reason_to_refuse
from lipverify.analyzers.local.analyzer import LocalInterval
from lipverify.analyzers.local.norms import from_rows
from lipverify.analyzers.protocol import Compute
from lipverify.errors import Refuted, Undecided, UnsupportedModel
from lipverify.interpreter import evaluate
from lipverify.ir.certificate import Certificate, Rigour
from lipverify.ir.graph import Graph
from lipverify.ir.interval import Interval
from lipverify.ir.norm import Norm
from lipverify.ir.region import Ball, Query
from lipverify.ops import Conv

INSTALL = "pip install --no-deps git+https://github.com/Verified-Intelligence/auto_LiRPA appdirs tqdm graphviz pyyaml"
"""Without its pins, which would replace torch."""
SINGLE = 1e-4
"""Relative slack of comparisons: auto_LiRPA computes in single precision."""
LOOSEST = 2.0
"""Linear bounds can be above interval arithmetic, by 8 % at most on networks with tanh; far beyond it is a defect."""
SAMPLES = 32


def available() -> bool:
    """Whether auto_LiRPA can be imported; it is not imported to find out."""
    return importlib.util.find_spec("auto_LiRPA") is not None


@dataclass(frozen=True)
class Foreign:
    """Evidence of a bound by other people's code: its version, and what the values were compared with."""

    version: str
    torch: str
    interval: tuple[float, ...]
    sampled: tuple[float, ...]

    def to_json(self) -> dict[str, Any]:
        return {
            "kind": "foreign",
            "package": "auto_LiRPA",
            "version": self.version,
            "torch": self.torch,
            "interval_bound": list(self.interval),
            "sampled_lower_bound": list(self.sampled),
        }


@dataclass(frozen=True)
class Lirpa:
    """Norms of all Jacobians over each ball, computed by auto_LiRPA in single precision.

    Statement: |f(x) - f(y)|_out <= upper |x - y|_inf for all x, y of one ball, in real arithmetic.
    Source: Shi et al., NeurIPS 2022 (arXiv 2210.07394); the package auto_LiRPA of the same authors.
    Sound when: that package is; each value lies above sampled gradients and is compared with interval arithmetic of our own.
    Proof: lipverify/analyzers/lirpa/analyzer.py:_compare
    """

    name: ClassVar[str] = "lirpa"
    optimize: bool = False
    """Also search the planes below values (alpha-CROWN), the default of auto_LiRPA: little gain for much time."""

    def reject(self, graph: Graph, query: Query) -> str | None:
        """Asks for linf balls and the package, and names the node that has no form for it."""
        region = query.region
        if not isinstance(region, Ball):
            return "needs a ball: give --data and --radius, in Python region=lv.Ball(x, radius)"
        if region.norm is not Norm.LINF or query.norm_in is not Norm.LINF:
            return "auto_LiRPA bounds local constants for linf balls and the linf norm at the input alone"
        if not available():
            return f"auto_LiRPA is not installed; {INSTALL}"
        reason = LocalInterval().reject(graph, query)
        return reason if reason is not None else reason_to_refuse(plain_graph(graph))

    def bound(self, graph: Graph, query: Query, compute: Compute) -> Certificate:
        """One number for each centre.

        Raises:
            Refuted: a value is below a sampled gradient, or far above interval arithmetic. UnsupportedModel: the package
            failed, with its words. Undecided: not finished within the budget.
        """
        reason = self.reject(graph, query)
        if reason is not None:
            raise UnsupportedModel(reason)
        ball = query.region
        assert isinstance(ball, Ball)
        bounded = _Bounded(plain_graph(graph), ball, compute.device, self.optimize)
        rows = []
        for index in range(len(ball)):
            if compute.remaining() <= 0:
                raise Undecided(f"auto_LiRPA finished {index} of {len(ball)} points within the budget")
            rows.append(bounded.rows(index))
            compute.report(f"lirpa {index + 1}/{len(ball)}", None)
        upper = from_rows(torch.stack(rows), query.norm_out).cpu()
        checked = LocalInterval().bound(graph, query, compute).upper
        assert checked is not None
        sampled = _sampled(graph, query, compute)
        _compare(upper, checked, sampled)
        return Certificate(
            upper=upper,
            query=query,
            rigour=Rigour.REAL,
            evidence=Foreign(
                bounded.version, torch.__version__, tuple(checked.tolist()), tuple(sampled.tolist())
            ),
            made_by=repr(self),
            graph_digest=graph.digest,
            assumptions=(
                f"auto_LiRPA {bounded.version} is right, and its rounding in single precision does not matter",
            ),
        )


class _Bounded:
    """One build of the bounded module for all points and rows: tables for tanh take seconds each."""

    def __init__(self, graph: Graph, ball: Ball, device: torch.device, optimize: bool = False) -> None:
        self.optimize = optimize
        with quietly():
            import auto_LiRPA
            from auto_LiRPA.bound_ops import GradNorm, JacobianOP
        self.package, self.version = auto_LiRPA, str(auto_LiRPA.__version__)
        plain = Plain(graph, torch.float32)

        class RowNorms(nn.Module):
            """l1 norms of the gradients of some functionals of the outputs."""

            def __init__(self) -> None:
                super().__init__()
                self.plain, self.norm = plain, GradNorm(norm=1)

            def forward(self, x: Tensor, rows: Tensor | None = None) -> Tensor:
                if rows is None:
                    found: Tensor = JacobianOP.apply(self.plain(x), x).flatten(2).abs().sum(-1)
                else:
                    # A sum written out here is bounded wrongly behind convolutions (8.4 for a gradient norm of 98).
                    found = self.norm(JacobianOP.apply(self.plain(x).matmul(rows), x))
                return found

        self.ball, self.device, self.outputs = ball, device, graph.output.size
        # Its gradients of convolutions take one output at a time, those of sums all of them together.
        single = graph.has(Conv)
        self.mask = torch.eye(self.outputs, 1, device=device) if single else None
        # A bounded tensor already here: with a plain one the gradient nodes are not built.
        example = auto_LiRPA.BoundedTensor(self._center(0))
        options = {"conv_mode": "matrix"}
        with quietly():
            self.module = auto_LiRPA.BoundedModule(
                RowNorms(), self._with_mask(example), bound_opts=options, device=str(device)
            )

    def _with_mask(self, x: Tensor) -> tuple[Tensor, ...]:
        return (x,) if self.mask is None else (x, self.mask)

    def _center(self, index: int) -> Tensor:
        return self.ball.center[index : index + 1].to(self.device, torch.float32)

    def rows(self, index: int) -> Tensor:
        """Bounds of the gradient norms of all outputs over one ball, float64: [outputs]."""
        ends = self.ball.enclosure()
        box = Interval(ends.lower[index : index + 1], ends.upper[index : index + 1])
        lower, upper = (end.to(self.device) for end in outward(box))
        around = self.package.PerturbationLpNorm(norm=torch.inf, x_L=lower, x_U=upper)
        x = self.package.BoundedTensor(self._center(index), around)
        if self.mask is None:
            return self._norms(x)
        found = []
        for row in range(self.outputs):
            self.mask.zero_()
            self.mask[row, 0] = 1.0
            found.append(self._norms(x))
        return torch.cat(found)

    def _norms(self, x: Tensor) -> Tensor:
        with quietly():
            inputs = self._with_mask(x)
            value = self.module.compute_jacobian_bounds(inputs, optimize=self.optimize, bound_lower=False)[1]
        found: Tensor = value.detach().double().flatten()
        return found


def outward(box: Interval) -> tuple[Tensor, Tensor]:
    """Ends of a box in single precision: rounding must not shrink it."""
    single = torch.finfo(torch.float32)
    lower, upper = (
        (end + sign * single.eps * (end.abs() + single.tiny)).float()
        for end, sign in ((box.lower, -2.0), (box.upper, 2.0))
    )
    return lower, upper


@contextmanager
def quietly() -> Iterator[None]:
    """Turns any failure of the package into a refusal with its words; what it prints and warns about goes nowhere."""
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        try:
            yield
        except Exception as error:
            said = (str(error).splitlines() or [type(error).__name__])[0][:200]
            raise UnsupportedModel(f"auto_LiRPA failed: {type(error).__name__}: {said}") from error


def _sampled(graph: Graph, query: Query, compute: Compute) -> Tensor:
    """Largest norms of gradients at the centre and at points of each ball, from below: [count]."""
    ball = query.region
    assert isinstance(ball, Ball)
    exact = graph.to(dtype=torch.float64, device=compute.device)
    generator = torch.Generator().manual_seed(compute.seed)
    shape = (SAMPLES, *ball.center.shape)
    step = (torch.rand(shape, generator=generator, dtype=torch.float64) * 2 - 1) * ball.radius
    step[0] = 0.0
    x = ball.project(ball.center + step).to(compute.device).flatten(0, 1).requires_grad_(True)
    y = evaluate(exact, x).flatten(1)
    rows = []
    for index in range(y.shape[1]):
        (gradient,) = torch.autograd.grad(y[:, index].sum(), x, retain_graph=True, materialize_grads=True)
        rows.append(gradient.flatten(1).abs().sum(1))
    # Every row is a lower bound of its own; other output norms are at least the largest row.
    found = torch.stack(rows).amax(0).reshape(SAMPLES, len(ball)).amax(0)
    return found.detach().cpu()


def _compare(upper: Tensor, interval: Tensor, sampled: Tensor) -> None:
    below = upper < sampled * (1.0 - SINGLE)
    above = upper > interval * LOOSEST
    for wrong, what, other in (
        (below, "below a sampled gradient", sampled),
        (above, "far above intervals", interval),
    ):
        if bool(wrong.any()):
            index = int(wrong.nonzero()[0])
            raise Refuted(
                f"auto_LiRPA gives {float(upper[index])!r} at centre {index}, {what} ({float(other[index])!r}); "
                "its bounds are not used"
            )
