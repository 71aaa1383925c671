"""What broke: a sentence for the row that takes its place, and the certificate kept for the report of the bug.

One analyzer, or one point, that fails loses its own answer and no other.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from lipverify.errors import InternalError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lipverify.analyzers.protocol import Analyzer
    from lipverify.ir.certificate import Certificate
    from lipverify.ir.graph import Graph
    from lipverify.ir.region import Query

BUG = "this is a bug of lipverify, or of the package that the analyzer comes from; please report it with the model"


def failure_words(error: BaseException | str) -> str:
    """Why there is no answer, in one sentence."""
    if isinstance(error, InternalError):
        return f"internal error: {error}"
    if isinstance(error, MemoryError) or "memory" in str(error).lower():
        return f"internal error: there was not enough memory ({type(error).__name__}: {_short(error)})"
    what = error if isinstance(error, str) else f"{type(error).__name__}: {_short(error)}"
    return f"internal error ({what}); {BUG}"


def _short(error: BaseException | str) -> str:
    """The first line; some libraries add a page."""
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else "no message"


def contradiction_words(value: float, bound: float, analyzer: str, centre: int | None, kept: str) -> str:
    """Why a bound is withdrawn: a proved slope lies above it."""
    where = "" if centre is None else f" of centre {centre}"
    return (
        f"refuted: the witness{where} has slope {value!r}, above the bound {bound!r} of {analyzer}, which is withdrawn; "
        f"{BUG}{kept}"
    )


def keep_certificate(certificate: Certificate, graph: Graph, query: Query, analyzer: Analyzer) -> str:
    """Writes a bound that does not hold, with its evidence, into a new folder: `` and <path>`` for the end of a sentence."""
    from lipverify.certificates import unproved

    issued = certificate.issued or unproved(certificate, graph, query, analyzer)
    return keep_files(issued.files("certificate.json"))


def keep_files(files: Mapping[str, bytes]) -> str:
    """As `keep_certificate`, for a certificate that is written already; nothing where there is none."""
    if not files:
        return ""
    try:
        folder = Path(tempfile.mkdtemp(prefix="lipverify-bug-"))
        for name, data in files.items():
            (folder / name).write_bytes(data)
    except OSError:
        return ""
    return f" and {folder}"
