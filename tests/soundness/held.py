"""Random ONNX models held against samples: ranges of every value, constants, radii, signs of slopes, float32 execution.

Ranges hold every value at every sample in float64; constants are at least every slope; and whatever goes wrong is a refusal that
names the node, never an error of another kind. Bounds are asked of the analyzers alone, without certificates.
"""

from __future__ import annotations

import itertools
import re
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from torch import Tensor

import lipverify as lv
from lipverify import ops
from lipverify.analyzers.lipsdp.analyzer import LipSDP
from lipverify.analyzers.lipsdp.solver import Settings
from lipverify.analyzers.local.bab import LocalBaB
from lipverify.analyzers.local.sdp import LocalSDP
from lipverify.analyzers.protocol import Analyzer, Compute
from lipverify.analyzers.registry import resolve
from lipverify.certificates import issue
from lipverify.errors import ExtractionMismatch, InvalidFile, Undecided, UnsupportedModel, UsageError
from lipverify.execution import execution_error
from lipverify.interpreter import evaluate_all
from lipverify.ir.graph import Graph
from lipverify.ir.norm import Norm
from lipverify.ir.region import Ball, Everywhere, Query
from lipverify.monotonicity import branching
from lipverify.robustness.plan import Plan
from tests.soundness.models import Model, Reached, model, pairs

METHODS = ("interval", "linear", "alpha")
LOCAL = (
    "local",
    "local:recurjac",
    "local:interval",
    "local:float32",
    "local-sdp",
    "local-bab",
    "lipsdp",
    "lipsdp-fast",
)
RADII = ("local", "crown", "branching", "local", "alpha-crown", "crown", "auto")
GLOBAL = ("product", "product", "lipsdp", "lipsdp-fast")
SHORT: dict[str, Analyzer] = {
    "lipsdp": LipSDP(settings=Settings(max_iterations=8, restart=False)),
    "local-sdp": LocalSDP(settings=Settings(max_iterations=8, restart=False)),
    "local-bab": LocalBaB(leaves=4, sdp=False),
}
"""Searches that end early: their bounds are as valid, and looser."""
SAMPLES = 96
CERTIFIED = 8
"""Of so many models one has its bounds proved as well."""
SLACK = 1e-11
"""Of the largest value on the way: samples are evaluated in float64, which rounds on its own."""


@dataclass
class Held:
    """Counts over many models. wrong and errors: sentences with the seed; any is a bug."""

    models: int = 0
    answers: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    values: int = 0
    """Ranges of single values that were held against samples."""
    reached: Reached = field(default_factory=Reached)
    wrong: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    processor_seconds: float = 0.0

    def __add__(self, other: Held) -> Held:
        return Held(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    def to_json(self) -> dict[str, Any]:
        return {
            "models": self.models,
            "answers": dict(self.answers.most_common()),
            "refused": dict(self.refused.most_common()),
            "ranges_of_single_values_held_against_samples": self.values,
            "wrong": self.wrong,
            "errors": self.errors,
            "processor_seconds": round(self.processor_seconds, 1),
            "reached": self.reached.to_json(),
        }


def hold(seeds: Iterable[int]) -> Held:
    """All checks on the models of these seeds."""
    held, started = Held(), time.process_time()
    with warnings.catch_warnings(), tempfile.TemporaryDirectory() as folder:
        warnings.simplefilter("ignore")
        for seed in seeds:
            _One(seed, held).check(Path(folder) / "model.onnx")
    held.processor_seconds = time.process_time() - started
    return held


def drawn(seed: int, reached: Reached | None = None) -> Model:
    """The model of a seed; consecutive seeds go through all ordered pairs of operators."""
    listed = pairs()
    return model(np.random.default_rng(seed), reached or Reached(), listed[seed * 7919 % len(listed)])


class _One:
    def __init__(self, seed: int, held: Held) -> None:
        self.seed, self.held = seed, held
        self.rng = np.random.default_rng((seed, 1))
        self.said = ""

    def check(self, path: Path) -> None:
        found = drawn(self.seed, self.held.reached)
        self.held.models += 1
        self.said = " -> ".join(found.pair)
        path.write_bytes(found.proto.SerializeToString())
        # Numbers that are none on random inputs, or that float32 loses, cannot be compared with other readers.
        output = int(self.rng.integers(found.outputs)) if self.rng.random() < 0.3 else found.main
        graph = self.asked("load", lambda: loaded(path, output), ExtractionMismatch)
        if graph is None:
            return
        graph = self.longer(graph)
        self.held.reached.nodes.update(node.op.kind() for node in graph.nodes)
        ball = self.ball(graph.input_shape)
        points = self.points(ball)
        if (
            self.asked("evaluate", lambda: lv.evaluate(graph.to(dtype=torch.float64), points.flatten(0, 1)))
            is None
        ):
            return  # an equilibrium that is not found
        self.ranges(graph, ball, points)
        self.constants(graph, ball, points)
        self.others(graph, ball, points)

    def asked(self, what: str, question: Callable[[], Any], *also: type[Exception]) -> Any:
        """The answer; None where it is refused. Whatever else is raised is an error."""
        try:
            found = question()
        except (UnsupportedModel, Undecided, *also) as error:
            self.held.refused[what] += 1
            self.refusal(what, str(error))
            return None
        except Exception as error:
            place = error.__traceback__
            while place is not None and place.tb_next is not None:
                place = place.tb_next
            where = (
                "" if place is None else f"{Path(place.tb_frame.f_code.co_filename).name}:{place.tb_lineno}"
            )
            self.held.errors.append(
                f"seed {self.seed} ({self.said}) {what}: {type(error).__name__} at {where}: {str(error)[:200]}"
            )
            return None
        self.held.answers[what] += 1
        return found

    def refusal(self, what: str, words: str) -> None:
        if what not in ("load", "evaluate") and not re.search(
            r'"[^"]+" \[|exceed|overflow|GiB|measures|outputs in l2', words
        ):
            self.held.errors.append(
                f"seed {self.seed} ({self.said}) {what}: a refusal that names no node: {words[:200]}"
            )

    def wrong(self, what: str, words: str) -> None:
        self.held.wrong.append(f"seed {self.seed} ({self.said}) {what}: {words}")

    def longer(self, graph: Graph) -> Graph:
        """With what no ONNX operator says, sometimes: reflections, sorts in groups, implicit layers."""
        if self.rng.random() > 0.08 or len(graph.output_shape) != 1:
            return graph
        size = graph.output.size
        weight = torch.tensor(self.rng.standard_normal((size, size)), dtype=torch.float32)
        op: Any = ops.Implicit(0.3 * weight / (1 + weight.abs().sum(1).max()), weight, None, ops.ReLU())
        group = next(g for g in (4, 3, 2, 1) if size % g == 0)
        if (choice := int(self.rng.integers(3))) == 0:
            op = ops.Householder(
                torch.tensor(self.rng.standard_normal((size // group, group)), dtype=torch.float32), 0
            )
        elif choice == 1:
            op = ops.GroupSort(group, 0, bool(self.rng.integers(2)))
        return graph.append(op, (size,), "behind")

    def ball(self, shape: tuple[int, ...]) -> Ball:
        centre = torch.tensor(self.rng.standard_normal((2, *shape)))
        if self.rng.random() < 0.3:
            centre = centre.round()
        radius = float(self.rng.choice([0.0, 1e-3, 0.05, 0.5, 2.0]))
        norm = ("l2", "linf")[int(self.rng.integers(2))]
        box = (float(centre.min()) - 0.1, float(centre.max()) + 0.3) if self.rng.random() < 0.25 else None
        return Ball(centre, radius, norm, box)

    def points(self, ball: Ball) -> Tensor:
        """Of the balls: the centre, corners, and points everywhere. [samples, count, *shape]"""
        shape = ball.center.shape
        step = torch.tensor(self.rng.uniform(-1, 1, (SAMPLES, *shape)))
        extreme = torch.tensor(self.rng.random((SAMPLES, *shape)) < 0.3)
        step = torch.where(extreme, step.sign(), step)
        if ball.norm is Norm.L2:
            length = torch.linalg.vector_norm(step.flatten(2), dim=2).reshape(
                SAMPLES, -1, *[1] * (len(shape) - 1)
            )
            share = torch.tensor(np.maximum(self.rng.random((SAMPLES, 1)), self.rng.random((SAMPLES, 1))))
            step = step / length * share.reshape(SAMPLES, *[1] * len(shape))
        step[0] = 0.0
        size = shape[1:].numel()
        if ball.norm is Norm.LINF and size <= 5:
            corners = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=size)), dtype=torch.float64)
            step[1 : 1 + len(corners)] = corners.reshape(-1, 1, *shape[1:])
        return ball.project(ball.center + ball.radius * (1 - 1e-12) * step)

    # -- ranges

    def ranges(self, graph: Graph, ball: Ball, points: Tensor) -> None:
        exact = graph.to(dtype=torch.float64)
        values = [evaluate_all(exact, points[:, index]) for index in range(len(ball))]
        for method in METHODS if self.seed % 3 == 0 else METHODS[:2]:
            found = self.asked(
                f"bounds {method}", lambda method=method: lv.bounds(graph, ball, method=method)
            )  # type: ignore[misc]
            if found is None:
                continue
            for index, at in enumerate(values):
                largest = 1.0
                for node in graph.nodes:
                    value, box = at[node.name], found[node.name]
                    if box.lower.shape != (len(ball), *node.shape):
                        self.wrong(method, f"a range of shape {list(box.lower.shape)} for {node.describe()}")
                        break
                    finite = value[value.isfinite()]
                    largest = max(largest, float(finite.abs().max())) if finite.numel() else largest
                    # Compared, not subtracted: what is above float64 equals the end of its range.
                    slack = SLACK * largest
                    held = (value >= box.lower[index] - slack) & (value <= box.upper[index] + slack)
                    if not bool(held.all()):
                        beyond = torch.maximum(box.lower[index] - value, value - box.upper[index])[~held]
                        self.wrong(method, f"{node.describe()} leaves its range by {float(beyond.max())!r}")
                        break
            self.held.values += sum(node.size for node in graph.nodes) * len(ball)

    # -- constants

    def constants(self, graph: Graph, ball: Ball, points: Tensor) -> None:
        chosen = [LOCAL[self.seed % len(LOCAL)]]
        norms = self._norms()
        local = Query(*norms, ball)
        self.answered(chosen, graph, local, points)
        wide = torch.tensor(self.rng.standard_normal((SAMPLES, 1, *graph.input_shape))) * 10.0 ** float(
            self.rng.uniform(-1, 1)
        )
        self.answered([GLOBAL[self.seed % len(GLOBAL)]], graph, Query(*norms, Everywhere()), wide)

    def _norms(self) -> tuple[Norm, Norm]:
        if self.rng.random() < 0.6:
            return (Norm.L2, Norm.L2) if self.rng.random() < 0.5 else (Norm.LINF, Norm.LINF)
        return tuple(list(Norm)[int(self.rng.integers(3))] for _ in range(2))  # type: ignore[return-value]

    def answered(self, names: list[str], graph: Graph, query: Query, points: Tensor) -> None:
        slopes: Tensor | None = None
        for name in dict.fromkeys(names):
            method = SHORT.get(name) or resolve(name)
            what = name if isinstance(query.region, Ball) else f"{name} everywhere"
            certificate = self.asked(what, lambda method=method: _bound(method, graph, query))  # type: ignore[misc]
            if certificate is None or certificate.upper is None:
                continue
            upper = certificate.upper.reshape(-1)
            count = len(query.region) if isinstance(query.region, Ball) else 1
            if upper.shape != (count,) or not bool((upper >= 0).all()):
                self.wrong(what, f"the bound is {upper.tolist()}")
                continue
            if self.seed // 8 % CERTIFIED == 4:  # eight in a row: every analyzer
                upper = self.issued(what, certificate, graph, query, method, upper)
            slopes = _slopes(graph, points, query) if slopes is None else slopes
            above = slopes > upper * (1 + 1e-9) + 1e-12
            if bool(above.any()):
                index = int(above.nonzero()[0])
                pair = _pair(graph, points[:, index], query, float(upper[index]))
                if pair > float(upper[index]) * (1 + 1e-6) + 1e-9:
                    self.wrong(
                        what,
                        f"{query.norm_in} -> {query.norm_out}: {float(upper[index])!r} below a slope {pair!r}",
                    )

    def issued(
        self, what: str, certificate: Any, graph: Graph, query: Query, method: Analyzer, upper: Tensor
    ) -> Tensor:
        """The smaller one of the bound and of what the checker proves, which may lie below it."""
        found = self.asked(f"{what}, certificate", lambda: issue(certificate, graph, query, method, 0.0))
        if found is None or found.issued is None:
            return upper
        self.held.answers["proved"] += 1
        return torch.minimum(upper, found.upper.reshape(-1))

    # -- radii, signs, execution

    def others(self, graph: Graph, ball: Ball, points: Tensor) -> None:
        exact = graph.to(dtype=torch.float64)
        match self.seed % 8:
            case 0 if self.seed % 16 == 0 and graph.output.size > 1 and len(graph.output_shape) == 1:
                norm = ("l2", "linf")[self.seed // 16 % 2]
                method = RADII[self.seed // 16 % len(RADII)]
                if method == "auto" and graph.output.size > 4:
                    method = "crown"  # a search over multipliers for every pair of outputs
                plan = Plan(
                    Norm.parse(norm),
                    method,
                    looks=4,
                    shells=1,
                    leaves=8,
                    harder_looks=1,
                    attack=None,
                )
                found = self.asked(
                    "radii", lambda: lv.radii(graph, ball.center, norm=norm, plan=plan), UsageError
                )
                if found is not None:
                    self.radius(exact, ball, found, norm)
            case 1:
                entry = int(self.rng.integers(graph.output.size))
                region = Ball(ball.center[:1], ball.radius, Norm.LINF)
                settings = branching.Settings(boxes=3, samples=32)
                found = self.asked(
                    "monotone", lambda: lv.monotone(graph, region, output=entry, settings=settings)
                )
                if found is not None:
                    self.signs(exact, region, found, entry)
            case 2:
                box = (float(ball.center.min()) - ball.radius, float(ball.center.max()) + ball.radius)
                error = self.asked("float32 execution", lambda: execution_error(graph, box))
                if error is not None:
                    x = points.flatten(0, 1).clamp(*box).float()
                    rounded = lv.evaluate(graph.to(dtype=torch.float32), x).double() - lv.evaluate(
                        exact, x.double()
                    )
                    if not bool((rounded.abs() <= error.entries).all()):
                        self.wrong(
                            "float32 execution",
                            f"off by {float((rounded.abs() - error.entries).max())!r} more",
                        )

    def radius(self, exact: Graph, ball: Ball, found: Any, norm: str) -> None:
        for index, (radius, label) in enumerate(
            zip(found.radius.tolist(), found.predicted.tolist(), strict=True)
        ):
            if not radius > 0:
                continue
            around = Ball(ball.center[index : index + 1], min(radius, 1e6), norm)
            y = lv.evaluate(exact, self.points(around)[:, 0])
            rest = y.clone()
            rest[:, label] = -torch.inf
            ahead = y[:, label] - rest.amax(1)
            if not bool((ahead >= -1e-9 * y.abs().amax(1)).all()):
                self.wrong("radii", f"another label inside the radius {radius!r}")

    def signs(self, exact: Graph, region: Ball, found: Any, entry: int) -> None:
        x = self.points(region)[:, 0]
        for finding in found.findings:
            y = x.clone().flatten(1)
            low, high = (
                end.flatten(1)[0, finding.feature]
                for end in (region.enclosure().lower, region.enclosure().upper)
            )
            y[:, finding.feature] = low + (high - low) * torch.tensor(self.rng.random(len(y)))
            steps = (y - x.flatten(1))[:, finding.feature]
            change = (lv.evaluate(exact, y.reshape(x.shape)) - lv.evaluate(exact, x)).flatten(1)[:, entry]
            least, most = finding.slope
            size = 1e-11 * (1.0 + lv.evaluate(exact, x).abs().max())
            ends = (steps * least, steps * most)
            inside = (change >= torch.minimum(*ends) - size) & (change <= torch.maximum(*ends) + size)
            if not bool(inside.all()):
                self.wrong("monotone", f"a slope in feature {finding.feature} leaves [{least!r}, {most!r}]")


def loaded(path: Path, output: int) -> Graph:
    """The graph. A file that stores what is no number is rightly called damaged; any other so called is an error here."""
    try:
        return lv.load(path, output=output)
    except InvalidFile as error:
        if computes_no_number(onnx.load(path)):
            raise Undecided(str(error)) from None
        raise


def computes_no_number(proto: onnx.ModelProto) -> bool:
    """Whether onnxruntime finds infinity or NaN somewhere on an ordinary input: the square root of a stored -1, say."""
    names = {value.name for value in proto.graph.output}
    proto.graph.output.extend(
        onnx.ValueInfoProto(name=name)
        for node in proto.graph.node
        for name in node.output
        if name not in names
    )
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    first = session.get_inputs()[0]
    x = np.random.default_rng(0).standard_normal([n if isinstance(n, int) else 1 for n in first.shape])
    found = session.run(None, {first.name: x.astype(np.float32)})
    return any(not np.isfinite(value).all() for value in found if np.asarray(value).dtype.kind == "f")


def _bound(method: Analyzer, graph: Graph, query: Query) -> Any:
    """As the pipeline asks, without a certificate."""
    reason = method.reject(graph, query)
    if reason is not None:
        raise UnsupportedModel(reason)
    return method.bound(graph, query, Compute())


def _slopes(graph: Graph, points: Tensor, query: Query) -> Tensor:
    """The largest slope seen in each region: operator norms of Jacobians at the points, and slopes of pairs. [count]"""
    exact = graph.to(dtype=torch.float64)
    found = []
    for index in range(points.shape[1]):
        x = points[1:, index]
        best = float(_norms(_jacobians(exact, x), query).max())
        other = x[torch.randperm(len(x), generator=torch.Generator().manual_seed(0))]
        found.append(max(best, float(_quotients(exact, x, other, query).max())))
    return torch.tensor(found, dtype=torch.float64)


def _jacobians(exact: Graph, x: Tensor) -> Tensor:
    """[points, outputs, inputs]; what is not finite is left out."""
    x = x.clone().requires_grad_(True)
    y = lv.evaluate(exact, x).flatten(1)
    if not y.requires_grad:
        return torch.zeros(len(x), y.shape[1], x[0].numel(), dtype=torch.float64)
    rows = [torch.autograd.grad(y[:, k].sum(), x, retain_graph=True)[0].flatten(1) for k in range(y.shape[1])]
    return torch.stack(rows, 1).nan_to_num(0.0, 0.0, 0.0)


def _quotients(exact: Graph, x: Tensor, y: Tensor, query: Query) -> Tensor:
    change = (lv.evaluate(exact, x) - lv.evaluate(exact, y)).flatten(1)
    # In units of the largest entry, whose square may be no number; an infinite one is a slope above all.
    unit = change.abs().amax(1, keepdim=True).clamp_min(1e-300) if change.shape[1] else change.new_ones(1, 1)
    change = torch.where(unit < torch.inf, change / unit, torch.ones_like(change))
    above = torch.linalg.vector_norm(change, ord=query.norm_out.order, dim=1) * unit[:, 0]
    below = torch.linalg.vector_norm((x - y).flatten(1), ord=query.norm_in.order, dim=1)
    return torch.where(below > 1e-9, above / below.clamp_min(1e-9), torch.zeros_like(below)).nan_to_num(0.0)


def _norms(jacobians: Tensor, query: Query) -> Tensor:
    """At most the operator norms, attained for small sizes: over signs where one side has corners."""
    p, q = query.norm_in, query.norm_out
    if p is Norm.L2 and q is Norm.L2:
        return torch.linalg.matrix_norm(jacobians, ord=2)
    if p is Norm.L1:
        return torch.linalg.vector_norm(jacobians, ord=q.order, dim=1).amax(1)
    if q is Norm.LINF:
        return torch.linalg.vector_norm(jacobians, ord=p.dual.order, dim=2).amax(1)
    matrices = jacobians if p is Norm.LINF else jacobians.mT  # l2 -> l1 is the dual of linf -> l2
    size = matrices.shape[2]
    signs = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=min(size, 7))), dtype=torch.float64)
    signs = torch.nn.functional.pad(signs, (0, size - signs.shape[1]), value=1.0)
    order = q.order if p is Norm.LINF else 2
    return torch.linalg.vector_norm(signs @ matrices.mT, ord=order, dim=2).amax(1)


def _pair(graph: Graph, points: Tensor, query: Query, upper: float) -> float:
    """The largest slope of pairs of points close together: what a Jacobian promises, seen without one."""
    exact = graph.to(dtype=torch.float64)
    x, best = points[1:], 0.0
    jacobian = _jacobians(exact, x)
    directions = [torch.linalg.svd(jacobian).Vh[:, 0], jacobian[:, 0].sign()]
    directions += [
        torch.eye(jacobian.shape[2], dtype=torch.float64)[i].expand(len(x), -1)
        for i in range(jacobian.shape[2])
    ]
    directions += [row.sign() for row in jacobian.unbind(1)]
    directions += list(jacobian.unbind(1))
    for direction in directions:
        for step in (1e-5, 1e-7):
            y = (x.flatten(1) + step * direction).reshape(x.shape)
            best = max(best, float(_quotients(exact, x, y, query).max()))
    return max(best, float(_quotients(exact, x, x.flip(0), query).max()))
