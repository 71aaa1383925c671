"""The written form of a certificate: `lipverify.certificate/2`, a JSON document with arrays beside it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from lipverify import checkers
from lipverify.checkers import About, Model, digest_of
from lipverify.checkers.claims import Balls, Claim, Constant, Convex, Monotone, Radius, inward, outward
from lipverify.checkers.deviation import Deviation
from lipverify.checkers.envelope import ROLES, SCHEMA
from lipverify.checkers.norms import Tokens
from lipverify.checkers.regions import BOX
from lipverify.documents import NOT_COVERED, environment, model_document
from lipverify.ir.graph import Graph
from lipverify.ir.region import Ball, Bounded, Region
from lipverify.loading.names import display
from lipverify.loading.putting import put
from lipverify.version import __version__


class Named(Protocol):
    """Whoever gave a bound: all that a certificate says about an analyzer is its name."""

    @property
    def name(self) -> str: ...


@dataclass(frozen=True)
class Issued:
    """A certificate as it is written: a JSON document and, for large arrays, the bytes of a safetensors file beside it."""

    document: dict[str, Any]
    arrays: bytes | None = None
    _verdicts: dict[str, checkers.Verdict] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def files(self, name: str) -> dict[str, bytes]:
        """File contents by name; `name` ends in .json, the arrays lie beside it."""
        document, files = dict(self.document), {}
        if self.arrays is not None:
            beside = name.removesuffix(".json") + ".safetensors"
            document["sidecar"] = {"name": beside, "sha256": hashlib.sha256(self.arrays).hexdigest()}
            files[beside] = self.arrays
        return {**files, name: (json.dumps(document, indent=1, allow_nan=False) + "\n").encode()}

    def save(self, path: str | Path) -> None:
        """Writes the certificate, and its arrays beside it. Raises UsageError: the path cannot be written."""
        path = Path(path)
        name = path.name if path.name.endswith(".json") else f"{path.name}.json"
        for file, data in self.files(name).items():
            target = path if file == name else path.with_name(file)
            put(target, data)

    def check(
        self,
        model: Model | Sequence[Model],
        exact: bool = False,
        expected: checkers.Expectation | None = None,
    ) -> checkers.Verdict:
        """The checker's verdict on exactly the bytes that `files` gives."""
        files = self.files("certificate.json")
        found = checkers.check(
            lambda: files["certificate.json"], files.__getitem__, lambda: model, exact, expected
        )
        self._verdicts[_digest_of(files)] = found
        return found

    @property
    def verdict(self) -> checkers.Verdict | None:
        """What the checker said in this process of exactly the bytes that `files` gives now; None where it was not asked."""
        return self._verdicts.get(_digest_of(self.files("certificate.json")))


def _digest_of(files: Mapping[str, bytes]) -> str:
    return hashlib.sha256(
        b"".join(hashlib.sha256(files[name]).digest() for name in sorted(files))
    ).hexdigest()


# -- regions


def region_arrays(region: Region) -> dict[str, Tensor]:
    """Centres [count, inputs], and the box [2, inputs] where one cuts the balls."""
    if not isinstance(region, Ball):
        return {}
    found = {"centres": region.center.flatten(1).contiguous()}
    if region.box is not None:
        ends = (end.expand(region.center.shape[1:]).flatten() for end in region.box)
        found["box"] = torch.stack(tuple(ends))
    return found


def balls_of(region: Region) -> Balls | None:
    """The region as a claim names it: centres and box by their digests."""
    if not isinstance(region, Ball):
        return None
    digests = {name: digest_of(array.numpy()) for name, array in region_arrays(region).items()}
    return Balls(str(region.norm), region.radius, len(region), digests["centres"], digests.get("box"))


def ball_document(norm: str, radius: float, centre: int, box: bool) -> dict[str, Any]:
    """One entry of `regions`: a ball around a row of the sidecar's centres; or the box of the sidecar itself."""
    if (norm, radius, centre, box) == BOX:
        return {"kind": "box", "norm": None, "radius_hex": None, "centre": None, "box": True}
    return {"kind": "ball", "norm": norm, "radius_hex": radius.hex(), "centre": centre, "box": box}


def radius_claim(region: Ball, labels: tuple[int, ...], radius: tuple[float, ...]) -> Radius:
    """The claim that points keep their labels. region: balls around them, whose own radius does not matter."""
    balls = balls_of(region)
    assert balls is not None
    return Radius(balls.norm, balls.centres, balls.box, labels, radius)


# -- claims


def _thrice(upper: Sequence[float]) -> dict[str, list[Any]]:
    return {
        "upper": list(upper),
        "upper_hex": [v.hex() for v in upper],
        "upper_decimal": [outward(v) for v in upper],
    }


def claim_document(claim: Claim | Deviation, *about: About) -> dict[str, Any]:
    """The claim as it is written, about one model or two; every number three times."""
    found: dict[str, Any] = {"kind": claim.kind}
    if isinstance(claim, Constant):
        numbers = _thrice(claim.upper)
        written = numbers if claim.balls is not None else {key: values[0] for key, values in numbers.items()}
        found |= {
            "norm_in": claim.norms[0],
            "norm_out": claim.norms[1],
            "region": _region(claim.balls) if claim.tokens is None else _bounded(claim.tokens),
            **written,
        }
    elif isinstance(claim, Radius):
        found |= {
            "norm": claim.norm,
            "count": len(claim.labels),
            "centres": claim.centres,
            "box": claim.box,
            "labels": list(claim.labels),
            "radius": list(claim.radius),
            "radius_hex": [v.hex() for v in claim.radius],
            "radius_decimal": [inward(v) for v in claim.radius],
        }
    elif isinstance(claim, Deviation):
        several = isinstance(claim.region, Balls)
        table = claim.differences
        found |= {
            "norm_out": claim.norm,
            "region": _region(claim.region) if isinstance(claim.region, Balls) else claim.region.to_json(),
            **{key: values if several else values[0] for key, values in _thrice(claim.upper).items()},
            "differences": None if table is None else [[v.hex() for v in row] for row in table],
            "labels": None if claim.labels is None else list(claim.labels),
        }
    elif isinstance(claim, Convex):
        found["entries"] = [{"output": i, "sign": sign} for i, sign in claim.entries]
    else:
        assert isinstance(claim, Monotone)
        entries = [{"output": i, "input": j, "sign": sign} for i, j, sign in claim.entries]
        found |= {"region": _region(claim.balls), "entries": entries}
    return {**found, "statement": claim.statement(*about)}


def tokens_of(region: Region, shape: tuple[int, ...]) -> Tokens | None:
    """Tokens of bounded size as a claim names them, for inputs of this shape."""
    if not isinstance(region, Bounded):
        return None
    return Tokens(str(region.norm), shape[-1] if shape else 1, region.most)


def _bounded(tokens: Tokens) -> dict[str, Any]:
    return {
        "kind": "bounded",
        "norm": f"{tokens.norm}/{tokens.width}",
        "most": tokens.most,
        "most_hex": tokens.most.hex(),
    }


def region_document(region: Region) -> dict[str, Any]:
    """The field `region` of a claim about all inputs, or about balls."""
    return _region(balls_of(region))


def _region(balls: Balls | None) -> dict[str, Any]:
    return {"kind": "everywhere"} if balls is None else {**balls.to_json(), "radius_hex": balls.radius.hex()}


# -- the document


@dataclass(frozen=True)
class Author:
    """Who made a certificate, and what it rests on beyond the proof; for people, the checker does not read it."""

    name: str
    made_by: str
    seconds: float
    assumptions: tuple[str, ...] = ()
    more: Mapping[str, Any] | None = None

    def to_json(self) -> dict[str, Any]:
        """The field `analyzer`."""
        return {"name": self.name, "made_by": self.made_by, "version": __version__, **(self.more or {})}


def document_of(graph: Graph, about: About, claim: Mapping[str, Any], author: Author) -> dict[str, Any]:
    """Everything but proof, regions, architecture and rigour; those of a certificate that proves nothing."""
    return {
        "schema": SCHEMA,
        "models": [_model(graph, about, "model")],
        "architecture": None,
        "tensors": {},
        **_rest(graph, claim, author),
    }


def document_of_two(
    graphs: Sequence[Graph], abouts: Sequence[About], claim: Mapping[str, Any], author: Author
) -> dict[str, Any]:
    """The same of a claim about two models: the original, and the changed one."""
    models = [_model(*each) for each in zip(graphs, abouts, ROLES[2], strict=True)]
    return {
        "schema": SCHEMA,
        "models": models,
        "architecture": [None, None],
        "tensors": [{}, {}],
        **_rest(graphs[0], claim, author),
    }


def _model(graph: Graph, about: About, role: str) -> dict[str, Any]:
    origin = graph.origin
    return {
        "name": display(Path(origin.path).name, 80) if origin.path else None,
        "sha256": about.sha256,
        "format": origin.format,
        "role": role,
        "graph_digest": graph.digest,
        "output": {"index": about.output, "name": about.output_name},
        "margin": None if about.margin is None else list(about.margin),
        **({} if about.reading is None else {"reading": about.reading.to_json()}),
        **({"beside": [{"name": n, "sha256": s} for n, s in about.beside]} if about.beside else {}),
    }


def _rest(graph: Graph, claim: Mapping[str, Any], author: Author) -> dict[str, Any]:
    return {
        "regions": [],
        "claim": dict(claim),
        "proof": None,
        "sidecar": None,
        "rigour": "real",
        "analyzer": author.to_json(),
        "import_check": model_document(graph).get("import_check"),
        "assumptions": list(author.assumptions),
        "not_covered": list(NOT_COVERED),
        "environment": environment(),
        "times": {"analyzer_seconds": author.seconds},
    }
