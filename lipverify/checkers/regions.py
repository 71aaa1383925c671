"""Regions of a certificate: balls around centres that its arrays hold, and the input box; each as the kernel knows it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from lipverify.checkers.claims import Balls, Radius
from lipverify.checkers.deviation import AnyClaim, Deviation
from lipverify.checkers.deviation import Box as Ends
from lipverify.checkers.kernel import account
from lipverify.checkers.kernel.program import Array
from lipverify.checkers.kernel.ranges import Region
from lipverify.checkers.reader import digest_of
from lipverify.checkers.tables import fields, hexadecimal, integer
from lipverify.errors import UnreadableCertificate

REGION = "kind norm radius_hex centre box"
"""Fields of a region in a certificate."""
MAX_REGIONS = 1 << 16
FAR = 2.0**100
"""Inputs beyond which no ball is looked at: far from the ends of float64."""


class Ball(NamedTuple):
    """A region of a certificate: around a row of the centres, cut by the box or not; `BOX`: the box itself."""

    norm: str
    radius: float
    centre: int
    box: bool


BOX = Ball("box", 0.0, 0, True)
Box = tuple[Array, Array] | None


def region_in(table: Any) -> Ball:
    fields(table, REGION)
    if table["kind"] == "box":
        if [table[k] for k in ("norm", "radius_hex", "centre", "box")] != [None, None, None, True]:
            raise UnreadableCertificate("a box that is told as a ball")
        return BOX
    radius = hexadecimal(table["radius_hex"])
    if table["kind"] != "ball" or table["norm"] not in ("l2", "linf") or type(table["box"]) is not bool:
        raise UnreadableCertificate("a region of an unknown kind")
    if not 0.0 <= radius < FAR:
        raise UnreadableCertificate("a radius that is none")
    return Ball(table["norm"], radius, integer(table["centre"], 0, MAX_REGIONS), table["box"])


def centres_of(claim: AnyClaim, beside: Mapping[str, Array], size: int) -> tuple[Array, Box]:
    """Centres [count, inputs] and the box of the claim, as their digests say."""
    of = claim if isinstance(claim, Radius) else claim.region if isinstance(claim, Deviation) else claim.balls
    if of is None:
        return np.empty((0, size)), None
    box = None if of.box is None else array_beside(beside, "box", of.box, (2, size))
    if isinstance(of, Ends):
        assert box is not None
        if of.ends is not None and not bool((box == np.array(of.ends)[:, None]).all()):
            raise UnreadableCertificate("the ends of the box are other ones")
        if not bool((box[0] <= box[1]).all() and (np.abs(box) <= FAR).all()):
            raise UnreadableCertificate("a box without inputs, or near the ends of float64")
        return np.empty((0, size)), (box[0], box[1])
    count = len(claim.labels) if isinstance(claim, Radius) else of.count if isinstance(of, Balls) else 0
    centres = array_beside(beside, "centres", of.centres, (count, size))
    low, high = (np.full(size, -FAR), np.full(size, FAR)) if box is None else box
    if not bool(((low <= centres) & (centres <= high)).all()):
        raise UnreadableCertificate("a centre outside the box, or near the ends of float64")
    return centres, None if box is None else (box[0], box[1])


def array_beside(beside: Mapping[str, Array], name: str, digest: str, shape: tuple[int, ...]) -> Array:
    array = beside.get(name)
    if array is None or array.dtype != np.float64 or array.shape != shape or digest_of(array) != digest:
        raise UnreadableCertificate(f"the {name} are not there, or other ones")
    if not bool(np.isfinite(array).all()):
        raise UnreadableCertificate(f"the {name} are not finite")
    return array


def region_of(ball: Ball, centres: Array, box: Box) -> Region:
    """A ball with the smallest box around it, rounded outward and cut by the box; or the box, as a ball that holds it."""
    norm, radius, row, cut = ball
    if ball == BOX and box is not None:
        centre = np.clip(box[0] / 2 + box[1] / 2, *box)
        reach = np.maximum(box[1] - centre, centre - box[0]).max(initial=0.0)
        return Region(centre, float(np.nextafter(reach, np.inf)), "linf", *box)
    if row >= len(centres) or (cut and box is None):
        raise UnreadableCertificate("a region around a centre, or cut by a box, that is not there")
    centre = centres[row]
    account.charge(4 * centre.size)
    low, high = np.nextafter(centre - radius, -np.inf), np.nextafter(centre + radius, np.inf)
    if cut and box is not None:
        low, high = np.maximum(low, box[0]), np.minimum(high, box[1])
    return Region(centre, radius, norm, low, high)
