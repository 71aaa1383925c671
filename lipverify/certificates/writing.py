"""Proofs as they are written: steps of docs/proof-format.md, each held against the checker's kernel before the next one.

Nothing here needs trust: what is written is proved again from its bytes. Evidence (`Evidence.proof`) calls a `Writer` with what
its analyzer found: bounds, multipliers, parts of balls; the writer knows the program that the checker reads.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from functools import partial
from typing import Any

import numpy as np

from lipverify.certificates import chains
from lipverify.certificates.fitting import costliest, derivatives, filled, movable, neurons
from lipverify.certificates.recording import Array, Layer, Part, Record
from lipverify.checkers.kernel import theorems
from lipverify.checkers.kernel.arithmetic import above
from lipverify.checkers.kernel.elementary import Largest, behind
from lipverify.checkers.kernel.gains import by_sums
from lipverify.checkers.kernel.language import Rows
from lipverify.checkers.kernel.neurons import bilinear
from lipverify.checkers.kernel.program import Affine
from lipverify.checkers.kernel.ranges import Condition, Empty, Ranges
from lipverify.checkers.kernel.theorems import AtLeast, Constant, Emptiness, Gained, Known, lowest
from lipverify.checkers.norms import Norm, Tokens, norm_of
from lipverify.checkers.theories import frequencies
from lipverify.checkers.theories.tokens import constant_of
from lipverify.errors import NotCovered, RefutedCertificate

ROOM = (0.0, 2.0**-26, 2.0**-22, 1e-6, 1e-4, 1e-3, 1e-2, 4.9e-2)
"""What multipliers may need above the bound of their analyzer, relatively, tried in this order; the first are rounding."""
NOTHING = 2.0**-200
"""Beyond the smallest numbers a bound of 0, for a network that is constant there, would need none of the checker's margins."""
LITTLE = 1 << 24
"""Numbers of which derivatives everywhere are tried beside products of gains."""
LONG, FORESEEN = 1 << 26, 1e-5
"""Cubes of channels over frequencies together from which on the checker alone proves the step, and the room that it has."""
Flat = tuple[Sequence[float], Sequence[Array | None]]
"""Weights of conditions, and slopes below kinks for every layer."""


class Writer(Record):
    """A record that knows how what an analyzer found becomes steps."""

    took = 0.0
    """Seconds of the last ranges of derivatives, which whoever checks the proof needs as well; 0: none yet."""

    def ranges(self, part: Part) -> int:
        """What every layer reads over a part, or that no input is in it."""
        conditions = [
            [c.layer, c.entry, c.at.hex(), "above" if c.above else "below"] for c in part.conditions
        ]
        key = "ranges", part.region, part.conditions
        return self.once(key, lambda: self.add("ranges", region=part.region, conditions=conditions))

    def for_gradients(self, part: Part) -> int:
        """As `ranges`; over a whole region with maxima as layers of their own, if there are any."""
        whole = self.subject.whole
        if part.conditions or not any(isinstance(whole.steps[k], Largest) for k in whole.layers):
            return self.ranges(part)
        return self.once(("largest", part.region), lambda: self.add("largest", region=part.region))

    def carried(self, part: Part, pairs: Mapping[int, tuple[int, Sequence[int] | None]]) -> int:
        """The same, with the results of layers written as those of others, or of some of their neurons, plus a change."""
        conditions = [
            [c.layer, c.entry, c.at.hex(), "above" if c.above else "below"] for c in part.conditions
        ]
        written = [
            [layer, base, *([] if kept is None else [list(kept)])] for layer, (base, kept) in pairs.items()
        ]
        return self.add("carried", region=part.region, conditions=conditions, pairs=written)

    def at_least(self, ranges: int, rows: Rows, sign: int) -> tuple[int, float]:
        """A value of rows over a part, and the least it is shown to be; whoever checks the proof computes it again."""
        known = self.fact(ranges)
        if isinstance(known, Emptiness):
            return ranges, math.inf
        assert isinstance(known, Known)
        low = lowest(known.ranges, rows, sign)
        fields = {
            "ranges": ranges,
            "rows": [v for v in rows if v is not None],
            "sign": sign,
            "limit": low.hex(),
        }
        return self._put({"step": "value", **fields}, AtLeast(known.part, Fraction(low), rows, sign)), low

    def multiplies(self) -> bool:
        """Whether the program multiplies values, as gates and attention do."""
        return bilinear(self.subject.elements)

    def is_empty(self, number: int) -> bool:
        """Whether a fact is that no input is in its part."""
        return isinstance(self.fact(number), Emptiness)

    def empty(self, part: Part, weights: Sequence[float]) -> int:
        """A weighted sum of the conditions is negative everywhere."""
        return self.add("empty", ranges=self.ranges(part), weights=[float(w).hex() for w in weights])

    def product(self, part: Part) -> int:
        """Products of gains along the paths between two steps, everywhere; or, where they are larger than the analyzer's, ranges
        of all derivatives everywhere."""
        key = part.start, part.end, part.norms
        found = self.once(("product", *key), lambda: self._product(part))
        if self.limit(found) <= part.upper * (1.0 + 1e-6) + NOTHING or self._work(part) > LITTLE:
            return found
        wanted = replace(part.whole(), upper=part.upper)
        try:
            other = self.once(("derivatives", *key), lambda: self.jacobian(wanted))
        except RefutedCertificate:
            return found
        return other if self.limit(other) < self.limit(found) else found

    def _work(self, part: Part) -> int:
        """About how many numbers the derivatives of all rows are."""
        return (
            self.program.steps[part.end].size * sum(self.layers(part)) * self.program.steps[part.start].size
        )

    def _product(self, part: Part) -> int:
        gains: dict[int, int] = {}
        for stage in chains.stages(self.subject, part.start, part.end):
            if stage.kind == "implicit" and stage.last in gains:
                continue  # a smaller gain of the layer is proved
            try:
                gains[stage.last] = self.once(stage.key, partial(self._stage, stage))
            except RefutedCertificate:
                if stage.kind != "implicit":
                    raise
        missing = [k for k in chains.implicit_layers(self.subject, part.start, part.end) if k not in gains]
        if missing:
            raise NotCovered(
                f"the implicit layer at step {missing[0]} has no multipliers that the checker accepts"
            )
        proved = chains.constant(
            self.subject, part.start, part.end, part.norms, [self.fact(g) for g in gains.values()]
        )
        return self.add("product", start=part.start, end=part.end, gains=list(gains.values()), norms=list(part.norms),
                        limit=above(proved).hex())  # fmt: skip

    def _stage(self, stage: chains.Stage) -> int:
        fields = dict(stage.fields)
        if stage.kind == "implicit":
            fields["multipliers"] = self.array(fields["multipliers"])
        if not stage.roomy:
            return self.add(stage.kind, **fields)
        chain, limit = fields["chain"], Fraction(float.fromhex(fields["limit"]))
        maps = [s for k in chain if isinstance(s := self.program.steps[k], Affine)]
        sums = {
            (n, n): math.prod((by_sums(s, s.index, n) for s in maps), start=Fraction(1))
            for n in ("l1", "linf")
        }
        fact = Gained(chain[0], chain[-1], {("l2", "l2"): limit} | sums)
        return self._put({"step": stage.kind, **fields}, fact)

    def tokens(self, part: Part, within: Tokens | None) -> int:
        """The constant by norms of tokens, at most that of the part where it is about the same steps."""
        norms = self.token_norms(part)
        proved = above(constant_of(self.program, within, norms))
        limit = max(proved, part.upper) if proved <= part.upper * (1.0 + 1e-9) else proved
        bound = None if within is None else [f"{within.norm}/{within.width}", within.most.hex()]
        fact = Constant(
            theorems.Part(within=within), Fraction(limit), part.start, part.end, Rows(*part.rows), part.norms
        )
        return self._put(
            {"step": "tokens", "within": bound, "norms": list(part.norms), "limit": limit.hex()}, fact
        )

    @staticmethod
    def token_norms(part: Part) -> tuple[Norm, Norm | str]:
        """The norms of a part as the kernel reads them.

        Raises:
            NotCovered: norms of vectors.
        """
        first, last = norm_of(part.norms[0]), norm_of(part.norms[1])
        if first is None or (last is None and part.norms[1] != "linf"):
            raise NotCovered("norms of vectors have other proofs than norms of tokens")
        return first, part.norms[1] if last is None else last

    def jacobian(
        self,
        part: Part,
        most: float = math.inf,
        difference: tuple[int, int] | None = None,
        least: bool = False,
    ) -> int:
        """Ranges of all derivatives of some rows over a part, at most the bound of the analyzer where they are `ahead`.

        Args:
            difference: of two outputs, instead of the rows of the part. least: whether what they prove is stated where that is
                less than the bound of the analyzer.

        Raises:
            RefutedCertificate: they prove more than `most`.
        """
        rows, norms = Rows(*part.rows), part.norms
        if difference is not None:
            rows = Rows(difference[0], difference[0] + 1, difference[1])
        ranges = None if part.region is None else self.for_gradients(part)
        fields = {
            "start": part.start,
            "end": part.end,
            "ranges": ranges,
            "rows": [v for v in rows if v is not None],
            "norms": list(norms),
        }
        if self.ahead and not least and part.region is not None and not part.conditions:
            limit = part.upper * (1.0 + 2.0**-26) + NOTHING
        else:
            if ranges is not None and self.is_empty(ranges):
                return ranges
            try:
                begun = time.monotonic()
                proved = derivatives(self.subject, part.start, part.end, self._ranges(ranges), rows, norms)
                self.took = time.monotonic() - begun
            except Empty:
                assert ranges is not None
                empty = {"step": "jacobian", **fields, "limit": (0.0).hex()}
                return self._put(empty, self._emptiness(ranges))
            if not proved <= most:
                raise RefutedCertificate(f"ranges alone prove {proved:.6g}")
            near = proved <= part.upper * (1.0 + 1e-9) + NOTHING and math.isfinite(part.upper)
            limit = max(proved, part.upper) if near and not least else proved
        known = theorems.Part(part.region, part.conditions)
        fact = Constant(known, Fraction(limit), part.start, part.end, rows, norms)
        return self._put({"step": "jacobian", **fields, "limit": limit.hex()}, fact)

    def difference(self, part: Part, label: int, rival: int) -> int:
        """The constant of the difference of two outputs over a part or everywhere, where no search has found one.

        Derivatives of all of it where they are few; else the product up to the last step that is not affine, times the rest.
        """
        if self._work(part) <= LITTLE:
            return self.jacobian(part, difference=(label, rival))
        steps = self.program.steps
        cut = max(
            (k for k in behind(steps, part.end, part.start) if not isinstance(steps[k], Affine)), default=0
        )
        first = self.product(self.between(part, (part.start, cut), (part.norms[0], "l2"), math.inf))
        rest = self.between(part.whole(), (cut, part.end), ("l2", part.norms[1]), math.inf)
        second = self.jacobian(rest, difference=(label, rival))
        return self.add("compose", first=first, second=second)

    def value(self, part: Part, difference: tuple[int, int]) -> tuple[int, float]:
        """The least value of the difference of two outputs over a ball: its fact, and the number."""
        ranges = self._ranges(self.ranges(part))
        assert ranges is not None
        low = lowest(ranges, Rows(difference[0], difference[0] + 1, difference[1]), 1)
        rows = [difference[0], difference[0] + 1, difference[1]]
        key = "value", part.region, difference
        number = self.ranges(part)
        made = self.once(key, lambda: self.add("value", ranges=number, rows=rows, sign=1, limit=low.hex()))
        return made, low

    def value_in_parts(self, part: Part, difference: tuple[int, int], parts: int) -> tuple[int, float]:
        """As `value`, above 0: of parts of the ball where that is needed, at most so many, split at the kinks that cost most.

        Raises:
            RefutedCertificate: they are not enough.
        """
        rows = Rows(difference[0], difference[0] + 1, difference[1])
        left, (label, rival) = [parts], difference

        def proved(inner: Part) -> tuple[int, float]:
            left[0] -= 1
            number = self.ranges(inner)
            known = self.fact(number)
            if isinstance(known, Emptiness):
                return number, math.inf
            assert isinstance(known, Known)
            try:
                low = lowest(known.ranges, rows, 1)
            except Empty:
                low = math.inf
            if low > 0:
                limit = low if math.isfinite(low) else 0.0
                fields = {"rows": [v for v in rows if v is not None], "sign": 1, "limit": limit.hex()}
                return self.add("value", ranges=number, **fields), low
            place = costliest(self.subject, known.ranges, rows) if left[0] > 0 else None
            if place is None:
                raise RefutedCertificate(
                    f"the checker's own lines show no lead of {label} over {rival} on this ball, in {parts} parts of it"
                )
            sides = [proved(inner.within(Condition(*place, 0.0, side))) for side in (True, False)]
            return self.add("cover", above=sides[0][0], below=sides[1][0]), min(low for _, low in sides)

        with self.attempt():
            return proved(part)

    def value_in_tree(
        self, part: Part, difference: tuple[int, int], leaves: Mapping[tuple[Condition, ...], Flat]
    ) -> int:
        """As `value`, above 0, from parts by the signs of neurons. leaves: conditions -> weights of them, and slopes by layer.

        Raises:
            RefutedCertificate: a leaf is not shown to be positive.
        """
        ranges = self.ranges(part)
        rows = [difference[0], difference[0] + 1, difference[1]]

        def proved(inner: tuple[Condition, ...]) -> int:
            if inner in leaves:
                weights, slopes = leaves[inner]
                conditions = [[c.layer, c.entry, c.at.hex(), "above" if c.above else "below"] for c in inner]
                return self.add(
                    "leaf",
                    ranges=ranges,
                    conditions=conditions,
                    weights=[float(w).hex() for w in weights],
                    slopes=[None if s is None else self.array(s) for s in slopes],
                    rows=rows,
                    sign=1,
                    limit=NOTHING.hex(),
                )
            place = next(path[len(inner)] for path in leaves if path[: len(inner)] == inner)
            above, below = (proved((*inner, place._replace(above=side))) for side in (True, False))
            return self.add("cover", above=above, below=below)

        with self.attempt():
            return proved(())

    def walk(self, value: int, shells: Sequence[tuple[int, int]]) -> int:
        """From a value on a ball outward: (constant, larger ball) one after another."""
        if not shells:
            return value
        constants, regions = zip(*shells, strict=True)
        return self.add("walk", value=value, constants=list(constants), regions=list(regions))

    def multipliers(
        self,
        part: Part,
        diagonals: Sequence[Array],
        *,
        row: int | None = None,
        minus: int | None = None,
        weights: Array | None = None,
        layers: Callable[[], Sequence[Layer]] | None = None,
    ) -> int:
        """LipSDP over a part or everywhere. diagonals: of every layer with unknown slopes, for these alone or for all neurons.

        Args:
            row, minus: one output, less another; by default all of `part.rows`. weights: of the inputs, for linf.
            layers: whose neurons the multipliers are those of, where it may be others than the checker's.
        """
        ranges = None if part.region is None else self.ranges(part)
        if ranges is not None and self.is_empty(ranges):
            return ranges
        rows = list(part.rows) if row is None else [row, row + 1, *([] if minus is None else [minus])]
        blocks, wider = self._fitted(part, ranges, diagonals, weights, layers)
        fields: dict[str, Any] = {
            "start": part.start,
            "end": part.end,
            "ranges": ranges,
            "wider": wider,
            "blocks": [self.array(b) for b in blocks],
            "weights": None if weights is None else self.array(weights),
            "rows": rows,
            "norms": list(part.norms),
        }
        for room in ROOM:
            try:
                return self.add("multipliers", **fields, limit=(part.upper * (1.0 + room)).hex())
            except NotCovered:
                raise
            except RefutedCertificate:
                if room == ROOM[-1]:
                    raise
        raise AssertionError("unreachable")

    def frequencies(
        self,
        part: Part,
        behind: tuple[int, int],
        image: Sequence[int],
        torus: Sequence[int],
        channels: Sequence[Array],
        neurons: Sequence[Array],
    ) -> int:
        """LipSDP over frequencies. behind: the steps between which the dense part begins; neurons: multipliers from there on."""
        last, through = behind
        end = {"start": part.start, "last": last, "through": through, "end": part.end}
        inner = replace(part, start=through, rows=(0, self.program.steps[part.end].size))
        blocks, _ = self._fitted(inner, None, neurons, None, None)
        fields: dict[str, Any] = {**end, "image": list(image), "torus": list(torus)}
        fields |= {"channels": [self.array(m) for m in channels], "blocks": [self.array(b) for b in blocks]}
        if sum(len(m) ** 3 for m in channels) > LONG:
            # With room for its roundings, the proof, which takes minutes, is left to whoever checks it.
            return self._spread(fields, part, inner, part.upper * (1.0 + FORESEEN))
        # The factor of what the dense part reads takes the time, and is computed once.
        with np.errstate(all="ignore"):
            factor = frequencies.spread(self.subject, part.start, last, through, image, torus, channels)
        if factor is None:
            raise RefutedCertificate("the multipliers of channels are not shown to be feasible")
        for room in ROOM:
            limit = part.upper * (1.0 + room)
            if frequencies.held_behind(self.subject, through, part.end, factor, blocks, limit):
                return self._spread(fields, part, inner, limit)
        raise RefutedCertificate("the multipliers behind positions do not prove the bound")

    def _spread(self, fields: Mapping[str, Any], part: Part, inner: Part, limit: float) -> int:
        """The step `frequencies` with this limit, as proved."""
        rows = Rows(*inner.rows)
        fact = Constant(theorems.Part(), Fraction(limit), part.start, part.end, rows, part.norms)
        return self._put({"step": "frequencies", **fields, "limit": limit.hex()}, fact)

    def _fitted(
        self,
        part: Part,
        ranges: int | None,
        diagonals: Sequence[Array],
        weights: Array | None,
        layers: Callable[[], Sequence[Layer]] | None,
    ) -> tuple[list[Array], list[str | None] | None]:
        """Positive multipliers of all neurons of the checker's layers; and slopes as the analyzer knew them, if less."""
        places = self.subject.layers(part.start, part.end)
        known = self._ranges(ranges)
        found = neurons(self.subject, part.start, part.end, known, {})
        sizes = [self.subject.elements.size(k) for k in places]
        free = dict.fromkeys(places, np.empty(0, np.int64)) | {k: own for k, own, _ in found.layers}
        moving = free | movable(self.subject.elements, found)
        wider: dict[int, Array] = {}
        smooth = known is not None and any(k in known.bends for k in places)
        whole = {k: np.zeros(size) for k, size in zip(places, sizes, strict=True)}
        if [len(d) for d in diagonals] == sizes and not smooth:
            whole = {k: np.array(d) for k, d in zip(places, diagonals, strict=True)}
        elif layers is not None and (
            smooth or [len(d) for d in diagonals] != [len(free[k]) for k in places if len(free[k])]
        ):
            theirs, there = list(layers()), list(places)
            if len(theirs) != len(there):
                there = [k for k in places if len(moving[k]) or not len(free[k])]
            if [layer.size for layer in theirs] != [self.subject.elements.size(k) for k in there]:
                raise NotCovered("the checker arranges the layers of this network in another way")
            if [len(d) for d in diagonals] != [len(layer.free) for layer in theirs if len(layer.free)]:
                raise NotCovered("slopes are unknown of other neurons than where the bound was found")
            left = iter(diagonals)
            for k, layer in zip(there, theirs, strict=True):
                if len(layer.free):
                    whole[k][layer.free] = next(left)
                if known is not None and k in known.bends:
                    low, high = known.slopes[k]
                    wider[k] = np.array([np.minimum(layer.low, low), np.maximum(layer.high, high)])
            if wider:
                found = neurons(self.subject, part.start, part.end, known, wider)
        else:
            for theirs_of in (free, moving):
                there = [k for k in places if len(theirs_of[k])]
                if [len(d) for d in diagonals] == [len(theirs_of[k]) for k in there]:
                    break
            else:
                raise NotCovered("the checker arranges the neurons of this network in another way")
            for k, d in zip(there, diagonals, strict=True):
                whole[k][theirs_of[k]] = d
        blocks = [whole[k][own] for k, own, _ in found.layers]
        if any((b <= 0).any() for b in blocks):
            blocks = filled(blocks, found, weights)
        # What is known of a neuron needs no multiplier: any number stands for it.
        complete = {k: np.ones(size) for k, size in zip(places, sizes, strict=True)}
        for (k, own, _), block in zip(found.layers, blocks, strict=True):
            complete[k][own] = block
        names = [self.array(wider[k]) if k in wider else None for k in places] if wider else None
        return [complete[k] for k in places], names

    def _ranges(self, number: int | None) -> Ranges | None:
        if number is None:
            return None
        fact = self.fact(number)
        assert isinstance(fact, Known)
        return fact.ranges

    def rows(self, part: Part, facts: Sequence[int]) -> int:
        """Constants of rows that follow each other, in any order, as one of all."""
        if len(facts) == 1:
            return facts[0]
        constants = [(self.fact(number), number) for number in facts]
        if all(isinstance(fact, Emptiness) for fact, _ in constants):
            return facts[0]
        order = sorted((fact.rows.low, number) for fact, number in constants if isinstance(fact, Constant))
        return self.add("rows", of=[number for _, number in order], norm=part.norms[1])


__all__ = ["Condition", "Layer", "Part", "Writer"]
