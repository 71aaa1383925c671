"""The page of convexity: what every output is, and where the construction breaks."""

from __future__ import annotations

from typing import Any

from lipverify.loading.names import display
from lipverify.reporting.answers import Document
from lipverify.reporting.html import environment_facts, model_name, template, tool_text


def render_convexity(document: Document) -> str:
    """The page as one self-contained HTML file."""
    outputs = document["outputs"]
    counts = {
        word: sum(f["verdict"] == word for f in outputs)
        for word in ("convex", "concave", "affine", "neither", "undecided")
    }
    proved = [
        f"{f['output']} {f['verdict']}" for f in outputs if f["verdict"] in ("convex", "concave", "affine")
    ]
    return template("facts.html.j2").render(
        about="Convexity in the input",
        title=model_name(document["model"]),
        key=[(word, str(count), f"of {len(outputs)} outputs") for word, count in counts.items() if count],
        statement=f"everywhere, outputs are: {', '.join(proved)}"
        if proved
        else "no output is shown to be convex or concave",
        heading="Outputs",
        head=("Output", "Verdict", "Proof", "Why it is not convex by construction"),
        rows=[_row(f) for f in outputs],
        note="Neither: three points on a line refute convexity, and concavity (witness.npz). Breaks are read from the output on.",
        environment=environment_facts(document),
        tool=tool_text(document),
    )


def _row(found: dict[str, Any]) -> tuple[str, str, str, str]:
    edge = found["breaks"]["convex"]
    why = "" if edge is None else f"entry {edge['entry']} of {edge['node']} would have to be {edge['wanted']}"
    if edge is not None and edge["weight"] is not None:
        why += f"; {edge['reader']} takes it with weight {edge['weight']:.6g}"
    proof = found["rigour"] if found["verdict"] in ("convex", "concave", "affine") else ""
    return str(found["output"]), found["verdict"], proof, display(why, 300)
