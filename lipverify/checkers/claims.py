"""What a certificate can claim: each kind read into typed values, as a sentence, as facts that have to be proved.

The sentence is made from the typed values; a certificate with another one is refused, so that no text says more than was proved.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import ROUND_CEILING, ROUND_FLOOR, Context, Decimal
from typing import Any, ClassVar

import numpy as np

from lipverify.checkers.kernel.program import Array
from lipverify.checkers.norms import NORMS as TOKEN_NORMS
from lipverify.checkers.norms import Tokens
from lipverify.checkers.norms import norm_of as token_norm
from lipverify.checkers.reader.reading import Reading
from lipverify.checkers.tables import fields, hexadecimal, integer, text, texts
from lipverify.errors import RefutedCertificate, UnreadableCertificate

NORMS = ("l1", "l2", "linf")
MOST, MOST_RADIUS = 1 << 20, 2.0**100
"""Numbers that one certificate may claim; above every radius of a ball."""


def outward(value: float) -> str:
    """Nine significant decimal digits, rounded up."""
    return str(Context(prec=9, rounding=ROUND_CEILING).create_decimal(Decimal(value)))


def inward(value: float) -> str:
    """Nine significant decimal digits, rounded down."""
    return str(Context(prec=9, rounding=ROUND_FLOOR).create_decimal(Decimal(value)))


@dataclass(frozen=True)
class About:
    """What a claim is about: one output of one model, or the difference of two of its entries.

    sha256: of the model's file; digest: of the graph, which only a graph in memory is held against; reading: of the file's
    inputs, where it does not say itself what goes in; beside: name and sha256 of each file that holds tensors of it.
    """

    sha256: str | None
    digest: str | None
    output: int
    output_name: str | None
    margin: tuple[int, int] | None
    reading: Reading | None = None
    beside: tuple[tuple[str, str], ...] = ()

    def words(self, letter: str = "f") -> str:
        """What a letter stands for: `f the real-valued function of output 0 ('y') of the file with sha256 ...`."""
        return f"{letter} the real-valued function of {self.function()}"

    def function(self) -> str:
        """`entry 3 minus entry 5 of output 0 ('y') of the file with sha256 ...`, with what goes in."""
        name = "" if self.output_name is None else f" ({self.output_name[:80]!a})"
        entries = "" if self.margin is None else f"entry {self.margin[0]} minus entry {self.margin[1]} of "
        file = (
            f"the graph with digest {self.digest}"
            if self.sha256 is None
            else f"the file with sha256 {self.sha256}"
        )
        file += "".join(
            f", its tensors in {name[:80]!a} with sha256 {digest}" for name, digest in self.beside
        )
        inputs = "" if self.reading is None else self.reading.words()
        return f"{entries}output {self.output}{name} of {file}{inputs}"


@dataclass(frozen=True)
class Balls:
    """A ball of `norm` and `radius` around each of `count` centres, cut by the box where `box` names one; both by digests."""

    norm: str
    radius: float
    count: int
    centres: str
    box: str | None

    def words(self) -> str:
        """Where a claim holds."""
        return f"of one {self.norm} ball of radius {self.radius!r} around any of {_points(self.count, self.centres, self.box)}"

    def to_json(self) -> dict[str, Any]:
        """As in the claim."""
        return {"kind": "ball", "norm": self.norm, "radius": self.radius, "count": self.count,
                "centres": self.centres, "box": self.box}  # fmt: skip


def _points(count: int, centres: str, box: str | None, noun: str = "centres") -> str:
    cut = "" if box is None else f", cut by the box with digest {box}"
    return f"the {count} {noun} with digest {centres}{cut}"


@dataclass(frozen=True)
class Constant:
    """|f(x) - f(y)|_out <= upper |x - y|_in everywhere, for two points of one ball, with one number for each ball, or for tokens
    of bounded size.
    """

    norms: tuple[str, str]
    balls: Balls | None
    upper: tuple[float, ...]
    tokens: Tokens | None = None

    kind = "constant"

    def statement(self, about: About) -> str:
        """The claim as a sentence; of several numbers the largest."""
        where = "for all inputs x, y" + ("" if self.balls is None else f" {self.balls.words()}")
        if self.tokens is not None:
            where += f" with |x|_{_token_norm(self.tokens)} and |y|_{_token_norm(self.tokens)} at most {self.tokens.most!r}"
        most = outward(max(self.upper))
        legend = "".join(
            f" (|.|_{name}: the largest {'root of the mean square' if known.name == 'token-rms' else 'l2 norm'} of a run of "
            f"{known.width} numbers)"
            for name in dict.fromkeys(self.norms)
            if (known := token_norm(name)) is not None
        )
        return f"|f(x) - f(y)|_{self.norms[1]} <= {most} |x - y|_{self.norms[0]} {where}{legend}, {about.words()}"

    def to_json(self) -> dict[str, Any]:
        """Fields of a verdict."""
        region = {"kind": "everywhere"} if self.balls is None else self.balls.to_json()
        if self.tokens is not None:
            region = {"kind": "bounded", "norm": _token_norm(self.tokens), "most": self.tokens.most}
        upper = self.upper[0] if self.balls is None else list(self.upper)
        return {"upper": upper, "norm_in": self.norms[0], "norm_out": self.norms[1], "region": region}


@dataclass(frozen=True)
class Radius:
    """Every point keeps its label: no input within its radius of it (in the box) has another largest entry of the output."""

    norm: str
    centres: str
    box: str | None
    labels: tuple[int, ...]
    radius: tuple[float, ...]

    kind = "radius"

    def statement(self, about: About) -> str:
        """The claim as a sentence, with the smallest and the largest radius."""
        least, most = inward(min(self.radius)), inward(max(self.radius))
        points = _points(len(self.labels), self.centres, self.box, "points")
        return (
            f"for {points}: no input at most the point's {self.norm} radius away ({least} to {most}) has another largest entry "
            f"than the point's label, {about.words()}"
        )

    def to_json(self) -> dict[str, Any]:
        """Fields of a verdict."""
        region = {
            "kind": "points",
            "norm": self.norm,
            "count": len(self.labels),
            "centres": self.centres,
            "box": self.box,
        }
        return {
            "radius": list(self.radius),
            "labels": list(self.labels),
            "norm_in": self.norm,
            "region": region,
        }


@dataclass(frozen=True)
class Monotone:
    """Entry `output` of f never falls (sign 1) or rises (-1) when input entry `input` alone grows, everywhere or in one ball."""

    balls: Balls | None
    entries: tuple[tuple[int, int, int], ...]
    """(output, input, sign)."""

    kind = "monotone"

    def statement(self, about: About) -> str:
        """The claim as a sentence."""
        said = [
            f"entry {i} never {'falls' if sign > 0 else 'rises'} when input {j} alone grows"
            for i, j, sign in self.entries
        ]
        where = "for all inputs" + ("" if self.balls is None else f" {self.balls.words()}")
        return f"{'; '.join(said)}, {where}, {about.words()}"

    def to_json(self) -> dict[str, Any]:
        """Fields of a verdict."""
        entries = [{"output": i, "input": j, "sign": sign} for i, j, sign in self.entries]
        region = {"kind": "everywhere"} if self.balls is None else self.balls.to_json()
        return {"entries": entries, "region": region}


@dataclass(frozen=True)
class Convex:
    """Entry `output` of f is a convex (sign 1) or concave (-1) function of the input, everywhere."""

    entries: tuple[tuple[int, int], ...]
    """(output, sign)."""

    kind = "convex"
    balls: ClassVar[Balls | None] = None

    def statement(self, about: About) -> str:
        """The claim as a sentence."""
        said = [
            f"entry {i} is {'convex' if sign > 0 else 'concave'} in the input" for i, sign in self.entries
        ]
        return f"{'; '.join(said)}, everywhere, {about.words()}"

    def to_json(self) -> dict[str, Any]:
        """Fields of a verdict."""
        entries = [{"output": i, "sign": sign} for i, sign in self.entries]
        return {"entries": entries, "region": {"kind": "everywhere"}}


Claim = Constant | Radius | Monotone | Convex


def claim_of(table: Mapping[str, Any], about: About) -> Claim:
    """The claim of a certificate.

    Raises:
        UnreadableCertificate: not of a known form. RefutedCertificate: its numbers or its sentence contradict each other.
    """
    readers: dict[str, Callable[[Mapping[str, Any]], Claim]] = {
        "constant": _constant,
        "radius": _radius,
        "monotone": _monotone,
        "convex": _convex,
    }
    kind = table.get("kind")
    if not isinstance(kind, str) or kind not in readers:
        raise UnreadableCertificate("a claim of an unknown kind")
    found = readers[kind](table)
    if table["statement"] != found.statement(about):
        raise RefutedCertificate("its statement is not the one its numbers make")
    return found


def _constant(table: Mapping[str, Any]) -> Constant:
    fields(table, "kind norm_in norm_out region upper upper_hex upper_decimal statement")
    named = [table["norm_in"], table["norm_out"]]
    norms = tuple(n if isinstance(n, str) and token_norm(n) is not None else norm_of(n, NORMS) for n in named)
    tokens = _tokens(table["region"])
    balls, written = (
        None if tokens is not None else region_of_claim(table["region"]),
        [table[k] for k in ("upper", "upper_hex", "upper_decimal")],
    )
    if balls is None:
        written = [[each] for each in written]
    upper = numbers(written, outward, 1 if balls is None else balls.count)
    return Constant((norms[0], norms[1]), balls, upper, tokens)


def _tokens(table: Any) -> Tokens | None:
    """The region of a claim about tokens of bounded size; None for other regions."""
    if not isinstance(table, dict) or table.get("kind") != "bounded":
        return None
    fields(table, "kind norm most most_hex")
    known, most = token_norm(text(table["norm"])), hexadecimal(table["most_hex"])
    if (
        known is None
        or type(table["most"]) is not float
        or table["most"] != most
        or not 0.0 < most < 2.0**100
    ):
        raise UnreadableCertificate("a bound of tokens that is none")
    return Tokens(known.name, known.width, most)


def _token_norm(tokens: Tokens) -> str:
    return f"{tokens.norm}/{tokens.width}"


def _radius(table: Mapping[str, Any]) -> Radius:
    fields(table, "kind norm count centres box labels radius radius_hex radius_decimal statement")
    count = integer(table["count"], 1, MOST)
    radius = numbers([table[k] for k in ("radius", "radius_hex", "radius_decimal")], inward, count)
    labels = table["labels"]
    if not isinstance(labels, list) or len(labels) != count:
        raise UnreadableCertificate("labels of other points")
    centres, box = text(table["centres"]), None if table["box"] is None else text(table["box"])
    found = tuple(integer(label, 0, MOST) for label in labels)
    return Radius(norm_of(table["norm"], ("l2", "linf")), centres, box, found, radius)


def _monotone(table: Mapping[str, Any]) -> Monotone:
    fields(table, "kind region entries statement")
    entries = _signed(table["entries"], "output input sign")
    found = [(integer(e["output"], 0, MOST), integer(e["input"], 0, 1 << 30), e["sign"]) for e in entries]
    return Monotone(region_of_claim(table["region"]), tuple(found))


def _convex(table: Mapping[str, Any]) -> Convex:
    fields(table, "kind entries statement")
    entries = _signed(table["entries"], "output sign")
    return Convex(tuple((integer(e["output"], 0, MOST), e["sign"]) for e in entries))


def _signed(entries: Any, names: str) -> list[dict[str, Any]]:
    """A list of objects with exactly these fields, `sign` among them: 1 or -1."""
    if not isinstance(entries, list) or not 0 < len(entries) <= MOST:
        raise UnreadableCertificate("entries of a claim of signs")
    for entry in entries:
        fields(entry, names)
        if type(entry["sign"]) is not int or entry["sign"] not in (-1, 1):
            raise UnreadableCertificate("a sign")
    return entries


def region_of_claim(table: Any) -> Balls | None:
    if isinstance(table, dict) and table.get("kind") == "everywhere":
        fields(table, "kind")
        return None
    fields(table, "kind norm radius radius_hex count centres box")
    radius = hexadecimal(table["radius_hex"])
    if table["kind"] != "ball" or type(table["radius"]) is not float or table["radius"] != radius:
        raise UnreadableCertificate("a region of an unknown kind, or a radius written in two ways")
    if not 0.0 <= radius < MOST_RADIUS or math.copysign(1.0, radius) < 0:
        raise UnreadableCertificate("a radius that is none")
    count, box = integer(table["count"], 1, MOST), table["box"]
    return Balls(norm_of(table["norm"], ("l2", "linf")), radius, count, text(table["centres"]),
                 None if box is None else text(box))  # fmt: skip


def norm_of(value: Any, known: Sequence[str]) -> str:
    if not isinstance(value, str) or value not in known:
        raise UnreadableCertificate("an unknown norm")
    return value


def numbers(written: Sequence[Any], shown: Any, count: int) -> tuple[float, ...]:
    """Numbers >= 0 that are written as JSON numbers, in hexadecimal and as decimals rounded to the safe side, all alike."""
    if not all(isinstance(n, list) and len(n) == count for n in written):
        raise UnreadableCertificate("numbers of another count than the region's")
    plain, exact, decimal = written
    values = tuple(hexadecimal(value) for value in exact)
    texts(decimal)
    if not all(type(v) in (int, float) for v in plain) or not all(
        v >= 0 and math.copysign(1.0, v) > 0 for v in values
    ):
        raise UnreadableCertificate("a claimed number is not a finite number >= 0")
    if any(float(a) != b or shown(b) != c for a, b, c in zip(plain, values, decimal, strict=True)):
        raise RefutedCertificate("its numbers contradict each other")
    return values


# -- what somebody expects


@dataclass(frozen=True)
class Expectation:
    """What the reader of a certificate wants proved; None: says nothing about it.

    norm_in, norm_out: of tokens with their width, `token-rms/64`, or without, which asks for the last axis of the model.
    radius: of the balls, or the least that every point of a claim about radii has; at_most: of every constant; box: the input
    box that cuts the balls, one (low, high) for all inputs. everywhere: that it is about all inputs there are.
    """

    norm_in: str | None = None
    norm_out: str | None = None
    radius: float | None = None
    output: int | None = None
    margin: tuple[int, int] | None = None
    at_most: float | None = None
    box: tuple[float, float] | None = None
    digests: tuple[str | None, ...] | None = None
    """Of the graphs in memory that the certificate has to be about."""
    readings: tuple[Reading | None, ...] | None = None
    """Of the inputs of their files."""
    varying: frozenset[str] | None = None
    """Names of the inputs that vary, of a file that has several or leaves sizes open."""
    fixed: Mapping[str, Any] | None = None
    """What is to stand for the other inputs, by name: a number for all entries, or an array of as many."""
    everywhere: bool = False

    def disappointed(self, claim: Claim, about: About, widths: tuple[int, int]) -> str | None:
        """How the claim differs from what is expected, its region's box aside (`other_box`); None if it does not.

        widths: of the tokens of input and output.
        """
        if self.output is not None and about.output != self.output:
            return f"it is about output {about.output}, not {self.output}"
        if about.margin != self.margin and (self.margin is not None or self.output is not None):
            return f"it is about {entries_of(about.margin)}, not {entries_of(self.margin)}"
        norms = claim.norms if isinstance(claim, Constant) else None
        wanted_in, wanted_out = _of_width(self.norm_in, widths[0]), _of_width(self.norm_out, widths[1])
        norm_in = claim.norm if isinstance(claim, Radius) else None if norms is None else norms[0]
        if wanted_in is not None and norm_in != wanted_in:
            return f"it measures inputs in {norm_in}, not in {wanted_in}"
        # A radius has no norm at the output: a label is kept or not.
        if (
            wanted_out is not None
            and not isinstance(claim, Radius)
            and (norms is None or norms[1] != wanted_out)
        ):
            return f"it measures outputs in {None if norms is None else norms[1]}, not in {wanted_out}"
        if self.everywhere and (part := _part(claim)) is not None:
            return f"it is about {part}, not about all inputs"
        if self.radius is not None and (reason := _other_radius(claim, self.radius)) is not None:
            return reason
        balls = None if isinstance(claim, Radius) else claim.balls
        if (
            None not in (self.radius, self.norm_in, balls)
            and balls is not None
            and balls.norm != self.norm_in
        ):
            return f"it is about {balls.norm} balls, not about {self.norm_in} balls of radius {self.radius!r}"
        if self.at_most is not None:
            if not isinstance(claim, Constant):
                return f"it claims no constant, so none of at most {self.at_most!r}"
            if not max(claim.upper) <= self.at_most:
                return f"it proves {outward(max(claim.upper))}, not at most {self.at_most!r}"
        return None

    def other_inputs(self, reading: Reading | None, alone: str | None = None) -> str | None:
        """How the inputs of a claim, whose arrays are known, differ from the expected ones; None if they do not.

        alone: the name of the input of a file that has one, of which no reading says anything; None: it has no name.
        """
        if self.varying is None and self.fixed is None:
            if reading is not None and self.everywhere:
                return f"it is{reading.words()[1:]}: say so with --input, or with --constant"
            return None
        if reading is None and alone is None:
            return "the claim is about the one input of what it was read from, which has no name"
        names = {name for name, _ in reading.inputs} if reading is not None else {str(alone)}
        if self.varying is not None and names != self.varying:
            return f"it is about inputs {sorted(names)}, not about {sorted(self.varying)}"
        arrays = {} if reading is None else reading.arrays
        if self.fixed is None:
            # Where another input stands at 0, a network can be as flat as its author likes: that is not everywhere.
            free = self.everywhere and bool(arrays)
            return (
                f"of its author's choice are {sorted(arrays)}: say with --constant what they are"
                if free
                else None
            )
        if self.fixed.keys() != arrays.keys():
            return f"it fixes the inputs {sorted(arrays)}, not {sorted(self.fixed)}"
        for name, wanted in self.fixed.items():
            if not _stands_for(np.asarray(wanted), arrays[name]):
                return f"other numbers stand for input {name!a}"
        return None

    def other_box(self, centres: Array, box: tuple[Array, Array] | None) -> str | None:
        """How the input box of a claim differs from the expected one; None if it does not.

        centres: of its balls, [count, inputs]; box: (low, high) of every input, [inputs] each.
        """
        if self.box is None:
            # What a box leaves of a ball is no ball of that radius, whatever it is called: of one at a corner, next to nothing.
            reach = 0.0 if self.radius is None else self.radius
            cut = box is not None and bool(((centres - reach < box[0]) | (centres + reach > box[1])).any())
            return "an input box cuts balls of that radius: say which with --box" if cut else None
        if box is None:
            return "no input box cuts its region"
        alike = all(bool((end == wanted).all()) for end, wanted in zip(box, self.box, strict=True))
        return None if alike else "another input box cuts its region"


def _stands_for(wanted: Array, found: Array) -> bool:
    """Whether expected numbers are those that stand for an input: one for all, a list of all, or an array of its shape.

    A float type of the file takes the nearest number of that type; integers and truth values are equal or they are others.
    """
    if wanted.dtype.kind not in "biuf" or wanted.shape not in ((), (found.size,), found.shape):
        return False
    numbers = wanted.astype(found.dtype)
    if found.dtype.kind in "biu":
        back = numbers.astype(wanted.dtype)
        if not bool(((back == wanted) & ((numbers < 0) == (wanted < 0))).all()):
            return False
    return bool((numbers.reshape(-1) == found.reshape(-1)).all())


def _of_width(norm: str | None, width: int) -> str | None:
    """The norm as claims name it: of tokens with their width."""
    return f"{norm}/{width}" if norm in TOKEN_NORMS else norm


def _part(claim: Claim) -> str | None:
    """What a claim is about, in words; None: all inputs there are."""
    if isinstance(claim, Radius):
        return f"balls around {len(claim.labels)} points"
    if isinstance(claim, Constant) and claim.tokens is not None:
        return "tokens of bounded size"
    return None if claim.balls is None else f"{claim.balls.norm} balls of radius {claim.balls.radius!r}"


def _other_radius(claim: Claim, wanted: float) -> str | None:
    if isinstance(claim, Radius):
        least = min(claim.radius)
        return None if least >= wanted else f"the smallest of its radii is {inward(least)}, below {wanted!r}"
    if isinstance(claim, Constant) and claim.tokens is not None:
        return f"it is about tokens of bounded size, not about balls of radius {wanted!r}"
    if claim.balls is None:
        return f"it is about the whole input space, not about balls of radius {wanted!r}"
    known = claim.balls.radius
    return None if known == wanted else f"its balls have the radius {known!r}, not {wanted!r}"


def entries_of(margin: tuple[int, int] | None) -> str:
    """In words."""
    return "the whole output" if margin is None else f"the margin {margin[0]},{margin[1]}"
