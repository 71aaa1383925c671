"""The page of a derivation: the sentence, the number, what went in, and how to prove it again."""

from __future__ import annotations

from dataclasses import dataclass

from lipverify.loading.names import display
from lipverify.reporting.answers import Document
from lipverify.reporting.html import environment_facts, template, tool_text


@dataclass(frozen=True)
class Given:
    """A number that went in. source: a certificate's claim, or that it was stated."""

    name: str
    text: str
    source: str


def render_derived(document: Document, side: str, rigour: str, claims: dict[str, str]) -> str:
    """The page as one self-contained HTML file. claims: of constants with a certificate, what that says."""
    given = [row for name, found in document["numbers"].items() for row in _rows(name, found, claims)]
    return template("derived.html.j2").render(
        rule=display(document["rule"]),
        statement=display(document["statement"], 4000),
        number=f"{document['value']:.6g}",
        side=side,
        rigour=rigour,
        given=given,
        tool=tool_text(document),
        environment=environment_facts(document),
    )


def _rows(name: str, found: object, claims: dict[str, str]) -> list[Given]:
    if not isinstance(found, list):
        return [_given(name, name, found, claims)]
    if any(isinstance(one, dict) for one in found):
        return [_given(f"{name} {i}", f"{name}-{i}", one, claims) for i, one in enumerate(found)]
    return [Given(display(name), _text(found), "stated")]


def _given(title: str, label: str, found: object, claims: dict[str, str]) -> Given:
    if isinstance(found, dict):
        return Given(display(title), _text(found["upper_hex"]), display(claims.get(label, "certified"), 600))
    return Given(display(title), _text(found), "stated")


def _text(found: object) -> str:
    if isinstance(found, list):
        return f"[{', '.join(_text(one) for one in found)}]"
    return f"{float.fromhex(found):.6g}" if isinstance(found, str) else str(found)
