"""Reading reports back: their structure, the numbers printed in them, and where the labels of a figure lie."""

from __future__ import annotations

from dataclasses import dataclass, field
from decimal import Decimal
from html.parser import HTMLParser

VOID = {"meta", "link", "br", "hr", "img", "input", "line", "rect", "path"}
_RAISED = str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "-0123456789")


@dataclass
class Element:
    """An element with its attributes, its text, and the elements inside."""

    tag: str
    attributes: dict[str, str]
    text: str = ""
    children: list[Element] = field(default_factory=list)

    def all(self, tag: str, kind: str | None = None) -> list[Element]:
        """Every element of a tag (and class) inside, in order."""
        found = []
        for child in self.children:
            if child.tag == tag and (kind is None or kind in child.attributes.get("class", "").split()):
                found.append(child)
            found += child.all(tag, kind)
        return found

    def elements(self) -> list[Element]:
        """Everything inside."""
        return [found for child in self.children for found in (child, *child.elements())]

    def whole_text(self) -> str:
        """The text of this element and of everything inside, without regard to order."""
        return " ".join([self.text, *(child.whole_text() for child in self.children)])


class _Builder(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.root = Element("root", {})
        self.open = [self.root]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        element = Element(tag, {name: value or "" for name, value in attrs})
        self.open[-1].children.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.open[-1].children.append(Element(tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open[-1].tag == tag, f"</{tag}> closes <{self.open[-1].tag}>"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        self.open[-1].text += data


def parse(text: str) -> Element:
    """The page as a tree; every element must be closed in order."""
    builder = _Builder()
    builder.feed(text)
    builder.close()
    assert builder.open == [builder.root], f"<{builder.open[-1].tag}> is never closed"
    return builder.root


def number(text: str) -> Decimal:
    """A printed number, back as a number."""
    mantissa, _, power = text.replace("\u00a0", " ").partition(" × 10")
    return Decimal(mantissa).scaleb(int(power.translate(_RAISED))) if power else Decimal(mantissa)


def text_boxes(svg: Element, width: float) -> list[tuple[float, float, float, float, str]]:
    """Left, top, right, bottom of every text of a figure shown `width` pixels wide, letters measured wide."""
    boxes = []
    for text in svg.all("text"):
        size = 12.0 if text.attributes["class"] == "tick" else 13.0
        length = len(text.text) * size * (0.53 if text.attributes["class"] == "tick" else 0.6)
        at = text.attributes["x"]
        x = float(at.removesuffix("%")) * width / 100
        y = float(text.attributes["y"])
        left = x - {"start": 0.0, "middle": 0.5, "end": 1.0}[text.attributes["text-anchor"]] * length
        boxes.append((left, y - size, left + length, y + 0.25 * size, text.text))
    return boxes


def overlaps(boxes: list[tuple[float, float, float, float, str]]) -> list[tuple[str, str]]:
    """Every pair of texts that share a place."""
    return [
        (a[4], b[4])
        for i, a in enumerate(boxes)
        for b in boxes[i + 1 :]
        if min(a[2], b[2]) > max(a[0], b[0]) and min(a[3], b[3]) > max(a[1], b[1])
    ]
