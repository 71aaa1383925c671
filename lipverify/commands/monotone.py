"""`audit --monotone`: from options to verdicts and a folder with the result, the page and the pairs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from lipverify.commands.shell import Outcome
from lipverify.errors import Undecided, UsageError
from lipverify.options import words

if TYPE_CHECKING:
    from lipverify.commands.audit import AuditOptions
    from lipverify.commands.regions import Box
    from lipverify.commands.start import Points, Start
    from lipverify.monotonicity.run import Region

DEFAULT_BUDGET = 60.0
"""Seconds, when the command line gives none: branch and bound on a wide box need not end."""


def work(options: AuditOptions, start: Start) -> Outcome:
    """Asks for the directions.

    Raises:
        LipverifyError: as `monotone`; UsageError also where no region is given.
    """
    from lipverify import pipeline
    from lipverify.commands.regions import limits
    from lipverify.commands.start import load, points_of
    from lipverify.monotonicity import monotone
    from lipverify.reporting.places import WITNESS

    if options.margin is not None and options.of is not None:
        raise UsageError(
            "--margin asks about the difference of two outputs, --of about one; give one of them"
        )
    assert options.monotone is not None
    start.progress.start(f"reading {options.model}")
    graph = load(options, options.model)
    points = points_of(options, graph, start.progress)
    region = _region(options, points, *limits(graph, points, options.radius, options.box, options.free))
    if options.margin is not None:
        graph = pipeline.margin(graph, *options.margin)
    found = monotone(
        graph,
        region,
        None if options.monotone == "all" else words(options.monotone),
        output=options.of,
        names=_names(options, points),
        budget=DEFAULT_BUDGET if options.budget is None else options.left(),
        device=start.device,
        seed=options.seed,
        report=start.progress.report,
    )
    found = replace(found, command=options.command)
    files = {WITNESS: found.witness_file(), **found.certificate_files()}
    code = 0 if found.decided else Undecided.exit_code
    document = found.to_json() | ({} if points is None else {"data": points.to_json()})
    return Outcome(document, found.show, found.page, files, code)


def _names(options: AuditOptions, points: Points | None) -> Sequence[str] | None:
    """Names of the features: as given, or those of the columns of a table."""
    if options.names is not None:
        return words(options.names)
    return (points.stored.features or None) if points is not None else None


def _region(options: AuditOptions, points: Points | None, radius: float | None, box: Box | None) -> Region:
    """A box for all inputs alike, which holds the points if there are any, balls around these, or the smallest box of them."""
    from lipverify.ir.norm import Norm
    from lipverify.ir.region import Ball
    from lipverify.questions.regions import InputBox

    if points is None:
        if box is None:
            raise UsageError(
                "--monotone needs a region: --box LO,HI, or --data with --radius, or --data alone for its range"
            )
        return box
    x = points.x.double()
    if radius is not None:
        return Ball(x, radius, Norm.LINF, box)
    if box is not None:
        InputBox(x.shape[1:], *box).demand(x)
        return box
    return x.amin(0), x.amax(0)
