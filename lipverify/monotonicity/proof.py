"""Certificates of directions: the sign of a derivative over a box, in parts where that is needed, proved by the checker."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from lipverify.analyzers.protocol import Report
from lipverify.certificates.format import Author, Issued, balls_of, region_arrays
from lipverify.certificates.issuing import subject_of, written
from lipverify.certificates.writing import Condition, Part, Writer
from lipverify.checkers.claims import Monotone
from lipverify.errors import LipverifyError, RefutedCertificate
from lipverify.ir.graph import Graph
from lipverify.ir.interval import Interval
from lipverify.ir.norm import Norm
from lipverify.ir.region import Ball
from lipverify.monotonicity.results import Finding, Verdict

PARTS, WORK = 256, 1 << 21
"""Parts of a box for one derivative, and how many numbers all their lines together hold, about."""
SIGNS = {Verdict.INCREASING: (1,), Verdict.DECREASING: (-1,), Verdict.CONSTANT: (1, -1)}


def certified(
    graph: Graph,
    region: Ball | None,
    boxes: Interval,
    entry: int,
    findings: Sequence[Finding],
    report: Report,
) -> tuple[tuple[Finding, ...], Issued | None]:
    """The findings, `checked` where the checker has proved them over every box, and the certificate of these.

    Statement: the entry of the output never falls (rises) when the feature alone grows, inside one box.
    Source: ranges of derivatives, or no path with a negative product (`checkers.kernel`, step `sign`).

    Args:
        region: the balls that the boxes are, where they are balls; else there is one box.
    """
    features = {f.feature for f in findings}
    signs: dict[int, tuple[int, ...]] = {}
    for feature in features:
        both = [set(SIGNS.get(f.verdict, ())) for f in findings if f.feature == feature]
        # One claim holds over all boxes.
        signs[feature] = tuple(sorted(set.intersection(*both), reverse=True))
    if not any(signs.values()):
        return tuple(findings), None
    ball = region if region is not None else around(boxes)
    try:
        subject = subject_of(graph)
    except (LipverifyError, OSError) as error:
        return tuple(replace(f, unchecked=str(error)) for f in findings), None
    arrays = region_arrays(ball)
    box = (arrays["box"][0].numpy(), arrays["box"][1].numpy()) if "box" in arrays else None
    writer = Writer(graph, subject.program, ball.center.flatten(1).numpy(), box)
    proved: dict[tuple[int, int], list[int]] = {}
    reasons: dict[int, str] = {}
    for feature in sorted(features):
        for sign in signs[feature]:
            report(f"proof of feature {feature}", None)
            try:
                with writer.attempt():
                    proved[feature, sign] = [
                        _sign(writer, ball, k, entry, feature, sign) for k in range(len(ball))
                    ]
            except RefutedCertificate as error:
                reasons[feature] = str(error)
    if not proved:
        return tuple(replace(f, unchecked=reasons.get(f.feature, "")) for f in findings), None
    entries = tuple((entry, feature, sign) for feature, sign in proved)
    facts = [proved[key][k] for k in range(len(ball)) for key in proved]
    claim = Monotone(balls_of(ball), entries)
    author = Author("monotone", "monotone", sum(f.seconds for f in findings))
    issued = written(writer, facts, claim, graph, subject, author, ball)
    try:
        issued.check(subject.model)
    except LipverifyError as error:
        return tuple(replace(f, unchecked=str(error)) for f in findings), None
    done = {f: signs[f] and all((f, sign) in proved for sign in signs[f]) for f in features}
    told = []
    for f in findings:
        whole = SIGNS.get(f.verdict) is not None and set(SIGNS[f.verdict]) == set(signs[f.feature])
        checked = bool(whole and done[f.feature])
        told.append(replace(f, checked=checked, unchecked="" if checked else reasons.get(f.feature, "")))
    return tuple(told), issued


def around(boxes: Interval) -> Ball:
    """A box as a ball that it cuts."""
    low, high = boxes.lower.cpu(), boxes.upper.cpu()
    centre: Tensor = torch.minimum(torch.maximum(low + (high - low) / 2, low), high)
    reach = float(torch.maximum(high - centre, centre - low).max())
    return Ball(centre, math.nextafter(reach, math.inf), Norm.LINF, (low[0], high[0]))


@dataclass
class _Left:
    parts: int


def _sign(writer: Writer, ball: Ball, centre: int, row: int, feature: int, sign: int) -> int:
    """The sign of a derivative over one box, cut in halves of inputs where that is needed."""
    region = writer.region(str(ball.norm), ball.radius, centre, ball.box is not None)
    part = writer.part(region, ("linf", "linf"), math.inf, centre)
    size = (sum(writer.layers(part)) + 1) * writer.program.steps[0].size
    left = _Left(max(8, min(PARTS, WORK // size)))
    bounds = writer.ends(region)

    def proved(inner: Part, low: np.ndarray, high: np.ndarray) -> int:
        left.parts -= 1
        ranges = writer.ranges(inner)
        if writer.is_empty(ranges):
            return ranges
        try:
            return writer.add("sign", ranges=ranges, row=row, input=feature, sign=sign)
        except RefutedCertificate:
            axis = int(((high - low) / np.maximum(bounds[1] - bounds[0], 1e-300)).argmax())
            middle = float(low[axis] / 2 + high[axis] / 2)
            if left.parts <= 0 or not low[axis] < middle < high[axis]:
                raise
        ends = []
        for above in (True, False):
            a, b = low.copy(), high.copy()
            (a if above else b)[axis] = middle
            ends.append(proved(inner.within(Condition(-1, axis, middle, above)), a, b))
        return writer.add("cover", above=ends[0], below=ends[1])

    return proved(part, *bounds)
