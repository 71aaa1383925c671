"""`audit --convex`: which outputs are convex in the input."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from lipverify.commands.shell import Outcome
from lipverify.errors import Undecided

if TYPE_CHECKING:
    from lipverify.commands.audit import AuditOptions
    from lipverify.commands.start import Start


def work(options: AuditOptions, start: Start) -> Outcome:
    """Asks for convexity.

    Raises:
        LipverifyError: as `convex`.
    """
    from lipverify.commands.start import load
    from lipverify.convexity import convex
    from lipverify.reporting.places import WITNESS

    start.progress.start(f"reading {options.model}")
    graph = load(options, options.model)
    found = convex(graph, outputs=None if options.of is None else [options.of], seed=options.seed)
    found = replace(found, command=options.command)
    files = {WITNESS: found.witness_file(), **found.certificate_files()}
    return Outcome(
        found.to_json(), found.show, found.page, files, 0 if found.decided else Undecided.exit_code
    )
