"""How far can a changed copy of a network answer differently?"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Annotated, Any, ClassVar, Self

import torch
from torch import Tensor

from lipverify.analyzers.protocol import Compute
from lipverify.combine import Difference, difference
from lipverify.combine.survivors import Grown, grown
from lipverify.errors import UsageError
from lipverify.ir.graph import Graph
from lipverify.ir.graphs import one_row
from lipverify.ir.interval import Interval
from lipverify.ir.region import Ball
from lipverify.ir.shown import Shown
from lipverify.ir.taking import in_place
from lipverify.loading.names import display
from lipverify.loading.survivors import read_survivors
from lipverify.options import Scheduler
from lipverify.propagation import bounds
from lipverify.propagation.points import values
from lipverify.questions import compared, labels
from lipverify.questions.climb import strictly_inside
from lipverify.questions.deviation_proof import Asked, certified
from lipverify.questions.formula import Formula, fact, of
from lipverify.questions.options import Options, option
from lipverify.questions.question import Answer, Found, Proved, Subject
from lipverify.questions.regions import InputBox, asked_region, region_words
from lipverify.questions.sharing import ask_all
from lipverify.questions.splitting import refined
from lipverify.reporting.sections import Section

FORMULAS = {
    "linf": of("largest", of("absolute", fact("difference"))),
    "l2": of("length", fact("difference")),
    "pairs": of("largest", of("absolute", fact("pairs"))),
}


def display_name(path: str) -> str:
    """The last part of a path; the folders of a machine are nobody's business."""
    return display(os.path.basename(path.rstrip("/")), 60)


AT_ONCE = 1 << 14
"""Numbers of the widest layer, over all regions that are bounded together; others wait, or are left when time is over."""
PARTED = 8
"""The part of the time for facts, one in so many, that is spent on parts of regions."""
_OF_NETWORKS = {"grown", "carried", "graph"}
"""What a question has made of its networks alone."""
MEANS = {"linf": "in every output", "l2": "in l2", "pairs": "in every difference of two outputs"}


@dataclass(frozen=True, kw_only=True)
class DeviationOptions(Options):
    """How far to measure, and what fails."""

    norm_out: Annotated[str, option("linf, l2, or pairs: differences of two outputs")] = "linf"
    fail_on_change: Annotated[bool, option("exit 3 if a label is shown to change")] = False
    scheduler: Scheduler = None
    survivors: Annotated[
        Mapping[str, Any] | None,
        option(
            "JSON file for a copy with fewer channels: layer of the original -> its channels that are left",
            read_survivors,
            metavar="MAP",
        ),
    ] = None


@dataclass(frozen=True, eq=False)
class Deviation(Shown):
    """The largest difference of two networks over a region. x: points [n, *input shape] whose labels are asked about.

    Statement: |f(x) - g(x)|_out <= upper for every x of the region (of each ball, where there are several).
    Source: differential analysis of two networks, ReluDiff (ICSE 2020, arXiv 2001.03662), NeuroDiff (arXiv 2009.09943), VeryDiff
        (arXiv 2410.20207); backward linear bounds (CROWN, arXiv 1811.00866) through the carried difference of each layer, met
        with the difference of both networks bounded side by side.
    Sound when: as `lipverify.bounds`; the carried graph is exact over the reals; the interpreter holds it against both networks.

    Raises:
        UsageError: networks of different inputs or outputs, another word for `norm_out`, points of another shape; `survivors`
            that do not fit (`combine.survivors`).

    survivors: where g has fewer channels, layer of f -> its channels that g has; layers are paired by them then.
    """

    name: ClassVar[str] = "deviation"
    options: ClassVar[type[Any]] = DeviationOptions
    f: Graph
    g: Graph
    region: Ball
    norm_out: str = "linf"
    x: Tensor | None = None
    survivors: Mapping[str, Sequence[int]] | None = None

    def __post_init__(self) -> None:
        if not (isinstance(self.f, Graph) and isinstance(self.g, Graph) and isinstance(self.region, Ball)):
            raise UsageError(
                "Deviation(f, g, region) takes two graphs (lv.load, lv.extract) and a ball or lv.InputBox"
            )
        if (
            not isinstance(self.norm_out, str)
            or self.norm_out not in FORMULAS
            or (self.norm_out == "pairs" and not self._classes)
        ):
            raise UsageError(
                f"a deviation is measured in {', '.join(FORMULAS)} (pairs: 2 to {labels.MOST_CLASSES} outputs along one axis)"
            )
        if self.survivors is not None:
            _ = self.grown
        if self.x is not None:
            object.__setattr__(self, "x", in_place(self.x, "the points"))
            if isinstance(self.region, InputBox):
                self.region.demand(self.x)

    def __repr__(self) -> str:
        return f"Deviation({self.f!r}, {self.g!r}, {self.region!r}, {self.norm_out})"

    @property
    def _classes(self) -> bool:
        return 2 <= self.f.output.size <= labels.MOST_CLASSES and one_row(self.f)

    @property
    def subjects(self) -> tuple[Subject, ...]:
        return Subject("original", self.f), Subject("changed", self.g)

    @property
    def single(self) -> bool:
        return isinstance(self.region, InputBox)

    @property
    def formula(self) -> Formula:
        return FORMULAS[self.norm_out]

    def query(self) -> dict[str, Any]:
        words = f"how far apart can the networks be {MEANS[self.norm_out]}, {region_words(self.region)}?"
        return {"norm_out": self.norm_out, "region": self.region.to_json(), "words": words}

    def claim(self, upper: str) -> str:
        paths = [subject.graph.origin.path for subject in self.subjects]
        names = "the networks" if None in paths else " and ".join(display_name(str(path)) for path in paths)
        return f"outputs of {names} differ by at most {upper} {MEANS[self.norm_out]}, {region_words(self.region)}"

    @cached_property
    def grown(self) -> Grown:
        """The copy in the shape of the original."""
        return Grown(self.g) if self.survivors is None else grown(self.f, self.g, self.survivors)

    @cached_property
    def carried(self) -> Difference:
        return difference(self.f, self.grown.graph)

    @cached_property
    def graph(self) -> Graph:
        """Entries and pairs of the difference; pairs of f; pairs of g."""
        size = self.f.output.size
        rows = labels.pairs(size) if self._classes else torch.zeros(0, size, dtype=torch.float64)
        return self.carried.functionals(torch.cat([torch.eye(size, dtype=torch.float64), rows]), rows)

    def prepare(self) -> None:
        _ = self.carried

    def over(self, region: Ball) -> Self:
        """The same about other balls, nothing about labels of points; what was made of the networks stays."""
        made = replace(self, region=region, x=None)
        made.__dict__.update({key: self.__dict__[key] for key in _OF_NETWORKS & self.__dict__.keys()})
        return made

    def facts(self, compute: Compute) -> Iterator[Found]:
        if self.carried.zero:
            zeros = torch.zeros(len(self.region), self.graph.output.size, dtype=torch.float64)
            yield Found(self._facts(Interval(zeros, zeros)))
            return
        widest = max(node.size for node in self.graph.nodes)
        for method in ("interval", "linear"):
            ranges = bounds(
                self.graph,
                self.region,
                method=method,
                device=compute.device,
                expired=compute.expired,
                at_once=AT_ONCE // widest + 1,
            )
            box = ranges[self.graph.outputs[0]]
            yield Found(self._facts(box), more=ranges)
        first = Interval(box.lower.cpu(), box.upper.cpu())
        # A proof cannot follow far: its parts take ten times as long.
        aim = replace(compute, deadline=compute.share(PARTED))
        for box in refined(self.graph.select(0), self.region, first, self._value, aim, moving=self.f):
            yield Found(self._facts(box), more=ranges)

    def _value(self, box: Interval) -> Tensor:
        return self.formula.evaluate(self._facts(box)).upper

    def _facts(self, box: Interval) -> dict[str, Interval]:
        ends = [
            torch.zeros_like(end.cpu()) if self.carried.zero else end.cpu() for end in (box.lower, box.upper)
        ]
        size = self.f.output.size
        parts = {"difference": slice(0, size)} | ({"pairs": slice(size, None)} if self._classes else {})
        return {name: Interval(ends[0][:, part], ends[1][:, part]) for name, part in parts.items()}

    def search(self, compute: Compute) -> Tensor:
        hints = self.x if self.single else None
        return compared.search(self.carried, self.region, self.norm_out, hints, compute)

    def at(self, points: Tensor) -> Mapping[str, Interval]:
        return self._facts(values(self.graph.select(3), points, enough=1e-9))

    def findings(self, found: Found, compute: Compute) -> Mapping[str, Any]:
        data = self.x if self._classes else None
        return compared.findings(self.carried, self.graph, self.region, self.single, data, found, compute)

    def expects(self, fact: str | None) -> Mapping[str, Any]:
        """What its certificate has to say."""
        return {"norm_out": self.norm_out}

    def prove(self, upper: Tensor, found: Found, fields: Mapping[str, Any], compute: Compute) -> Proved:
        """The certificate; its bounds are improved until the deadline of `compute`."""
        kept = fields.get("kept", {}).get("label_kept")
        wanted = labels.labels(self.f, self.x).tolist() if kept and self.x is not None else []
        asked = Asked(
            self.f,
            self.g,
            self.region,
            self.norm_out,
            upper.tolist(),
            self.single and self._classes,
            [label if keep else None for label, keep in zip(wanted, kept, strict=True)] if kept else None,
            kept=self.grown.kept,
            carried=self.carried,
        )
        proved = certified(asked, compute)
        more: dict[str, Any] = {}
        if proved.differences is not None and self.x is not None and "kept" in fields:
            tau = torch.tensor(proved.differences, dtype=torch.float64)
            again = labels.kept_above(self.carried, self.graph, tau, self.x)
            more["kept"] = fields["kept"] | {"checked": again["certified"]}
        elif proved.labels is not None:
            shown = sum(label is not None for label in proved.labels) / len(self.region)
            more["kept"] = fields["kept"] | {"checked": shown}
        points = self._points(proved.far)
        return Proved(proved.issued, reason=proved.reason, fields=more, points=points)

    def _points(self, far: Mapping[int, Any]) -> Tensor | None:
        """An input of every region [count, *input shape]: those of a search, elsewhere the centres."""
        points = self.region.center.clone()
        for k, x in far.items():
            points[k] = torch.from_numpy(x).reshape(points.shape[1:])
        return strictly_inside(points, self.region) if far else None

    @classmethod
    def asked(cls, options: DeviationOptions, graphs: Sequence[Graph], x: Tensor | None) -> Iterator[Self]:
        region = asked_region(graphs[0], x, options.radius, options.ball, options.box)
        if options.survivors is not None and len(graphs) > 2:
            raise UsageError("--survivors is about one copy: give two models")
        for other in graphs[1:]:
            yield cls(graphs[0], other, region, options.norm_out, x, options.survivors)

    @staticmethod
    def sections(document: Mapping[str, Any]) -> Sequence[Section]:
        return compared.sections(document)

    @staticmethod
    def gate(options: DeviationOptions, document: Mapping[str, Any]) -> str | None:
        return compared.gate(options.fail_on_change, document)


def deviation(
    f: Graph,
    g: Graph,
    region: Ball,
    *,
    norm_out: str = "linf",
    x: Tensor | None = None,
    survivors: Mapping[str, Sequence[int]] | None = None,
    scheduler: str | None = None,
    **settings: Any,
) -> Answer:
    """The answer to `Deviation`; settings as in `ask`. In balls the labels are asked about their centres.

    scheduler: address of a Dask scheduler, whose workers look at some balls at a time; proofs are made here.
    """
    if x is None and not isinstance(region, InputBox):
        x = region.center
    asked = Deviation(f, g, region, norm_out, x, survivors)
    return next(ask_all([asked], scheduler=scheduler, **settings))
