"""Random networks of attention held against witnesses: constants of tokens, of `product` and around points, ranges, radii.

A witness is a Jacobian at a point: its norm is the limit of slopes of pairs, so no constant of a region that holds a
neighbourhood of the point lies below it. Points are drawn near what bounds fear: tokens with nearly equal entries, long and
short ones, tokens that are each other's negative, the border of the region.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

import lipverify as lv
from lipverify import ops
from lipverify.analyzers.local.analyzer import Local
from lipverify.analyzers.product import Product
from lipverify.analyzers.protocol import Compute
from lipverify.analyzers.tokens import Tokens
from lipverify.certificates import issue
from lipverify.certificates.tokens import followed
from lipverify.errors import Undecided, UnsupportedModel
from lipverify.interpreter import evaluate_all
from lipverify.ir.certificate import Rigour
from lipverify.ir.graph import Graph
from lipverify.ir.norm import Norm
from lipverify.ir.region import Ball, Bounded, Everywhere, Query
from lipverify.robustness.plan import Plan
from lipverify.rules import forward
from tests.soundness.attention_kinds import network

RADII = (0.001, 0.01, 0.1, 1.0)
NORMS = ((Norm.LINF, Norm.LINF), (Norm.L2, Norm.L2), (Norm.LINF, Norm.L2), (Norm.L2, Norm.LINF))
SAMPLES = 32
SLACK = 1e-9
"""Relative: Jacobians are computed in float64."""


@dataclass
class Attended:
    """Counts over many networks. kinds: what was drawn; wrong and errors: sentences with the seed; any is a bug."""

    networks: int = 0
    answers: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    checked: Counter[str] = field(default_factory=Counter)
    compared: Counter[str] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)
    tightest: dict[str, float] = field(default_factory=dict)
    """The largest share of a bound that a witness reached, by question."""
    wrong: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    processor_seconds: float = 0.0

    def __add__(self, other: Attended) -> Attended:
        rest = {
            f.name: getattr(self, f.name) + getattr(other, f.name)
            for f in fields(self)
            if f.name != "tightest"
        }
        most = {
            k: max(self.tightest.get(k, 0.0), other.tightest.get(k, 0.0))
            for k in self.tightest | other.tightest
        }
        return Attended(**rest, tightest=most)

    def to_json(self) -> dict[str, Any]:
        return {
            "networks": self.networks,
            "answers": dict(self.answers.most_common()),
            "refused": dict(self.refused.most_common()),
            "checked": dict(self.checked.most_common()),
            "numbers_held_against_witnesses": dict(self.compared.most_common()),
            "largest_witness_over_bound": dict(sorted(self.tightest.items())),
            "kinds": dict(sorted(self.kinds.items())),
            "wrong": self.wrong,
            "errors": self.errors,
            "processor_seconds": round(self.processor_seconds, 1),
        }

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> Attended:
        """What `to_json` wrote."""
        counts = {name: Counter(document[name]) for name in ("answers", "refused", "checked", "kinds")}
        return cls(
            networks=document["networks"],
            compared=Counter(document["numbers_held_against_witnesses"]),
            tightest=document["largest_witness_over_bound"],
            wrong=document["wrong"],
            errors=document["errors"],
            processor_seconds=document["processor_seconds"],
            **counts,
        )


def attend(seeds: Iterable[int]) -> Attended:
    """All questions about the networks of these seeds."""
    found, started = Attended(), time.process_time()
    for seed in seeds:
        _One(seed, found).ask()
    found.processor_seconds = time.process_time() - started
    return found


class _One:
    def __init__(self, seed: int, found: Attended) -> None:
        self.seed, self.found = seed, found
        self.graph, self.kind = network(seed)
        self.rng = torch.Generator().manual_seed(seed)

    def ask(self) -> None:
        found, graph, seed = self.found, self.graph, self.seed
        found.networks += 1
        found.kinds.update([*self.kind.words(), *(f"input of {n} axes" for n in [len(graph.input_shape)])])
        if len(graph.input_shape) > 1:
            norm = (Norm.TOKEN_L2, Norm.TOKEN_RMS)[seed % 2]
            end = Norm.LINF if seed % 3 == 0 else norm
            most = float(10.0 ** self.uniform(-1.0, 1.0))
            self.tokens(Query(norm, end, Bounded(most, norm)), most, "bounded tokens")
            if seed % 3 == 1:
                self.tokens(Query(norm, end, Everywhere()), 1.0, "all tokens")
        match seed % 5:
            case 0:
                self.constant(
                    Product(), Query(*NORMS[seed // 5 % 2], Everywhere()), self.everywhere(1.0), "product"
                )
            case 1 | 2:
                ball = self.ball(seed // 5)
                query = Query(ball.norm, NORMS[seed // 5 % 4][1], ball)
                self.constant(Local(with_product=False), query, self.inside(ball), f"local {ball.norm}")
            case 3:
                ball = self.ball(seed // 5)
                self.ranges(ball, self.inside(ball))
            case _ if seed % 3 == 0 and len(graph.output_shape) == 1:
                ball = self.ball(seed // 5)
                self.radius(ball.center, ball.norm)

    # -- points

    def uniform(self, low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand(1, generator=self.rng))

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.rng, dtype=torch.float64)

    def everywhere(self, unit: float) -> Tensor:
        """Inputs of sizes around `unit`: as they come, nearly equal entries, one token against the others, long and short."""
        shape = self.graph.input_shape
        x = self.normal(SAMPLES, *shape)
        flat = self.normal(SAMPLES, *shape[:-1], 1).expand(SAMPLES, *shape)
        small = 10.0 ** (-4 * torch.rand(SAMPLES, *[1] * len(shape), generator=self.rng, dtype=torch.float64))
        some = torch.arange(SAMPLES).reshape(-1, *[1] * len(shape))
        x = torch.where(some % 4 == 1, flat + small * x, x)
        if len(shape) > 1:
            against = x[:, :1] * torch.where(torch.arange(shape[0]) % 2 == 0, 1.0, -1.0)[:, None]
            x = torch.where(some % 4 == 2, against + small * x, x)
        size = 10.0 ** (
            4 * torch.rand(SAMPLES, *[1] * len(shape), generator=self.rng, dtype=torch.float64) - 2
        )
        return unit * torch.where(some % 2 == 0, x, x * size)

    def ball(self, turn: int) -> Ball:
        """Of a radius at which the bound is near the truth, or far too large for it."""
        norm = NORMS[turn % len(NORMS)][0]
        radius = RADII[turn // 2 % len(RADII)]
        return Ball(self.normal(1, *self.graph.input_shape), radius, norm)

    def inside(self, ball: Ball) -> Tensor:
        step = self.normal(SAMPLES, ball.center[0].numel())
        step = step.sign() if ball.norm is Norm.LINF else step / step.norm(dim=1, keepdim=True)
        share = torch.rand(SAMPLES, 1, generator=self.rng, dtype=torch.float64).pow(0.2)
        return ball.center + ball.radius * (1 - 1e-9) * (step * share).reshape(
            SAMPLES, *ball.center.shape[1:]
        )

    # -- questions

    def asked(self, what: str, question: Any) -> Any:
        try:
            answer = question()
        except (UnsupportedModel, Undecided) as error:
            self.found.refused[f"{what}: {_reason(str(error))}"] += 1
            return None
        except Exception as error:  # anything but a refusal
            self.found.errors.append(f"seed {self.seed} {what}: {type(error).__name__}: {str(error)[:200]}")
            return None
        self.found.answers[what] += 1
        return answer

    def compare(self, what: str, met: Tensor, most: float) -> None:
        """Witnesses of any shape against a bound of all of them."""
        if not most >= 0:
            self.wrong(what, f"the bound is {most!r}")
            return
        largest = float(met.max()) if met.numel() else 0.0
        self.found.compared[what] += met.numel()
        if not largest <= most * (1 + SLACK) + 1e-300:
            self.wrong(what, f"{most!r} below {largest!r}")
        elif most > 0:
            self.found.tightest[what] = max(self.found.tightest.get(what, 0.0), largest / most)

    def wrong(self, what: str, words: str) -> None:
        self.found.wrong.append(f"seed {self.seed} {what}: {words}")

    def issued(self, what: str, certificate: Any, query: Query, analyzer: Any) -> Any:
        """What the checker makes of the bound, which may be a smaller one."""
        found = issue(certificate, self.graph, query, analyzer, 0.0)
        self.found.checked[f"{what}: {found.rigour}"] += 1
        if what.endswith("tokens") and found.rigour is not Rigour.CHECKED:
            self.wrong(what, f"not checked: {found.unchecked}")
        return found

    def tokens(self, query: Query, unit: float, what: str) -> None:
        """Norms of tokens, and the second number where all that is normalised varies enough."""
        analyzer = Tokens()
        certificate = self.asked(what, lambda: analyzer.bound(self.graph, query, Compute()))
        if certificate is None:
            return
        x = self.everywhere(unit)
        if isinstance(query.region, Bounded):
            x = query.region.project(x) * (1 - 1e-9)
        met = _token_slopes(_jacobians(self.graph, x), self.graph, query, self.rng)
        self.compare(what, met, float(certificate.upper))
        if self.seed % 16 < 2:
            self.issued(what, certificate, query, analyzer)
        least = _variances(self.graph, x)
        if least is None:
            return
        for floor in (1e-3, 0.3):
            found = followed(self.graph, query, floor)
            inside = least > floor * (1 + 1e-6)
            if bool(inside.any()):
                self.compare(f"{what}, variance", met[inside], float(found.value))

    def constant(self, analyzer: Any, query: Query, x: Tensor, what: str) -> None:
        certificate = self.asked(what, lambda: analyzer.bound(self.graph, query, Compute()))
        if certificate is None:
            return
        jacobian = _jacobians(self.graph, x).flatten(1 + len(self.graph.output_shape))
        jacobian = jacobian.flatten(1, -2) if jacobian.ndim > 2 else jacobian[:, None]
        if query.norm_in is query.norm_out is Norm.L2:
            met = torch.linalg.matrix_norm(jacobian, 2)
        elif query.norm_out is Norm.LINF:
            met = torch.linalg.vector_norm(jacobian, ord=query.norm_in.dual.order, dim=2).amax(1)
        else:
            start = jacobian.sum(1).sign()[..., None]
            met = _climbed(jacobian, start)
        self.compare(what, met, float(certificate.upper.max()))
        if isinstance(query.region, Ball):
            found = self.issued(what, certificate, query, analyzer)
            if found.rigour is Rigour.CHECKED:
                self.compare(f"{what}, checked", met, float(found.upper.max()))

    def ranges(self, ball: Ball, x: Tensor) -> None:
        """Values of all nodes inside their ranges, by linear bounds and by intervals."""
        method = "linear" if self.seed // 5 % 2 else "interval"
        what = f"ranges ({method})"
        found = self.asked(what, lambda: lv.bounds(self.graph, ball, method=method))
        if found is None:
            return
        for name, value in evaluate_all(self.graph, x).items():
            box = found[name]
            room = SLACK * (1.0 + float(value.abs().max()))
            self.found.compared[what] += value.numel()
            if bool((value < box.lower[0] - room).any() | (value > box.upper[0] + room).any()):
                self.wrong(what, f"{self.graph[name].describe()} leaves its range")

    def radius(self, center: Tensor, norm: Norm) -> None:
        """No sample inside a certified radius has another label."""
        plan = Plan(norm, "crown", looks=3, shells=1, attack=None)
        found = self.asked("radius", lambda: lv.radii(self.graph, center, norm=norm, plan=plan))
        radius = 0.0 if found is None else float(found.radius[0])
        if not radius > 0:
            return
        y = evaluate_all(self.graph, self.inside(Ball(center, min(radius, 1e6), norm)))[
            self.graph.output.name
        ]
        self.found.compared["radius"] += len(y)
        if bool((y.argmax(1) != int(found.predicted[0])).any()):
            self.wrong("radius", f"another label inside {radius!r}")


def _reason(words: str) -> str:
    """The part of a refusal that is the same for many networks."""
    for known in (
        "dot-product attention on raw tokens",
        "soft-capped",
        "values",
        "is not bounded over all inputs",
        "no bound",
    ):
        if known in words:
            return known
    return words[:80]


def _jacobians(graph: Graph, x: Tensor) -> Tensor:
    """[points, *output shape, *input shape] in float64."""
    x = x.clone().requires_grad_()
    y = _steep_values(graph, x)
    rows = [
        torch.autograd.grad(
            y.flatten(1)[:, k].sum(), x, retain_graph=True, allow_unused=True, materialize_grads=True
        )[0]
        for k in range(y[0].numel())
    ]
    return torch.stack(rows, 1).reshape(len(x), *graph.output_shape, *graph.input_shape).detach()


def _steep_values(graph: Graph, x: Tensor) -> Tensor:
    """The output, with derivatives that are right where they are tiny: torch's of GELU takes 1 + erf, which is 0 below -8.3."""
    values = {graph.input.name: x}
    for node in graph.nodes:
        if node.name in values:
            continue
        inputs = [values[name] for name in node.inputs]
        exact = isinstance(node.op, ops.GELU) and not node.op.tanh
        values[node.name] = (
            inputs[0] * torch.special.erfc(-inputs[0] / 2.0**0.5) / 2 if exact else forward(node.op, *inputs)
        )
    return values[graph.output.name].expand(len(x), *graph.output_shape)


def _variances(graph: Graph, x: Tensor) -> Tensor | None:
    """For every point the least variance (of RMSNorm the mean square) of all that is normalised; None where nothing is."""
    least = None
    values = evaluate_all(graph, x)
    for node in graph.nodes:
        if isinstance(node.op, ops.LayerNorm | ops.RMSNorm):
            z = values[node.inputs[0]]
            z = z - z.mean(-1, keepdim=True) if isinstance(node.op, ops.LayerNorm) else z
            own = z.square().mean(-1).flatten(1).amin(1).expand(len(x))
            least = own if least is None else torch.minimum(least, own)
    return least


def _climbed(jacobian: Tensor, step: Tensor, rounds: int = 4) -> Tensor:
    """From linf to l2: slopes of sign vectors, each turned towards what the last one made."""
    best = torch.zeros(len(jacobian), dtype=torch.float64)
    for _ in range(rounds):
        step = torch.where(step == 0, 1.0, step)
        y = jacobian @ step
        best = torch.maximum(best, torch.linalg.vector_norm(y.flatten(1), dim=1))
        step = (jacobian.mT @ y).sign()
    return best


def _token_slopes(jacobian: Tensor, graph: Graph, query: Query, rng: torch.Generator) -> Tensor:
    """Slopes [points] from a norm of tokens to one of tokens or to linf: every token moves by 1 in the best direction found."""
    shape, out = graph.input_shape, graph.output_shape
    n, d = int(np.prod(shape[:-1])), shape[-1]
    entries = query.norm_out is Norm.LINF
    width = 1 if entries or not out else out[-1]
    j = jacobian.reshape(len(jacobian), -1, width, n, d)
    u = torch.randn(*j.shape[:3], generator=rng, dtype=torch.float64)
    best = torch.zeros(len(j), dtype=torch.float64)
    for _ in range(1 if width == 1 else 6):
        pulled = torch.einsum("bowjd,bow->bojd", j, u)
        step = pulled / torch.linalg.vector_norm(pulled, dim=-1, keepdim=True).clamp_min(1e-300)
        u = torch.einsum("bowjd,bojd->bow", j, step)
        length = torch.linalg.vector_norm(u, dim=-1, keepdim=True)
        best = torch.maximum(best, length.amax((1, 2)))
        u = u / length.clamp_min(1e-300)
    rms = query.norm_in is Norm.TOKEN_RMS
    into = d**0.5 if rms else 1.0
    return best * into / (width**0.5 if rms and not entries else 1.0)
