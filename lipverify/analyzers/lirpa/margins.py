"""Lower bounds of all outputs over balls around one point by auto_LiRPA: for radii, on the network of the logit differences."""

from __future__ import annotations

import torch
from torch import Tensor

from lipverify.analyzers.lirpa.analyzer import INSTALL, SINGLE, available, outward, quietly
from lipverify.analyzers.lirpa.module import Plain, plain_graph, reason_to_refuse
from lipverify.errors import Refuted, UnsupportedModel
from lipverify.interpreter import evaluate
from lipverify.ir.graph import Graph
from lipverify.ir.norm import Norm
from lipverify.ir.region import Ball

SAMPLES = 32


def refuses_margins(graph: Graph) -> str | None:
    """Why auto_LiRPA cannot bound the outputs: it is absent, or a node has no form for it; None if it can."""
    if not available():
        return f"auto_LiRPA is not installed; {INSTALL}"
    return reason_to_refuse(plain_graph(graph))


class ForeignMargins:
    """CROWN of auto_LiRPA in single precision, one build for all balls around one point.

    Statement: every output is at least its bound on the whole ball, in real arithmetic.
    Source: Zhang et al., NeurIPS 2018 (CROWN); the package auto_LiRPA (Xu et al., NeurIPS 2020, arXiv 2002.12920).
    Sound when: that package is; each bound lies below the outputs at sampled points of the ball.
    """

    def __init__(
        self, graph: Graph, x: Tensor, norm: Norm, box: tuple[float, float] | None, seed: int
    ) -> None:
        reason = refuses_margins(graph)
        if reason is not None:
            raise UnsupportedModel(reason)
        self.exact, self.x, self.norm, self.box = graph.to(dtype=torch.float64), x.double(), norm, box
        self.generator = torch.Generator().manual_seed(seed)
        with quietly():
            import auto_LiRPA

            self.package = auto_LiRPA
            self.center = self.x[None].float()
            self.module = auto_LiRPA.BoundedModule(
                Plain(plain_graph(graph), torch.float32), self.center, bound_opts={"conv_mode": "matrix"}
            )

    def over(self, radius: float) -> Tensor:
        """Lower bounds over the ball, float64: [outputs]. In l2 the box is not used, which only makes them smaller.

        Raises:
            Refuted: a bound is above a sampled output. UnsupportedModel: the package failed, with its words.
        """
        ball = Ball(self.x[None], radius, self.norm, self.box)
        if self.norm is Norm.LINF:
            lower, upper = outward(ball.enclosure())
            around = self.package.PerturbationLpNorm(norm=torch.inf, x_L=lower, x_U=upper)
        else:
            # The centre moves when it is rounded to single precision.
            moved = float(torch.linalg.vector_norm((self.center.double() - self.x[None]).flatten()))
            around = self.package.PerturbationLpNorm(norm=2, eps=(radius + moved) * (1.0 + 1e-6))
        with quietly():
            x = self.package.BoundedTensor(self.center, around)
            found = self.module.compute_bounds(x=(x,), method="CROWN", bound_upper=False)[0]
        margins: Tensor = found.detach().double().flatten()
        self._compare(margins, ball)
        return margins

    def _compare(self, margins: Tensor, ball: Ball) -> None:
        step = torch.randn(SAMPLES, *self.x.shape, generator=self.generator, dtype=torch.float64)
        if self.norm is Norm.LINF:
            step = step.sign() * ball.radius
        else:
            length = torch.linalg.vector_norm(step.flatten(1), dim=1).reshape(-1, *(1,) * self.x.ndim)
            step = step * (ball.radius / length)
        step[0] = 0.0
        # [samples, centres, *shape]
        points = ball.project(self.x[None, None] + step[:, None])[:, 0]
        with torch.no_grad():
            smallest = evaluate(self.exact, points).flatten(1).amin(0)
        above = margins > smallest + SINGLE * (1.0 + smallest.abs())
        if bool(above.any()):
            j = int(above.nonzero()[0])
            raise Refuted(
                f"auto_LiRPA bounds a margin by {float(margins[j])!r} on a ball where it is {float(smallest[j])!r}; "
                "its bounds are not used"
            )
