"""The written form of a certificate: `lipverify.certificate/1`, a JSON document with arrays beside it."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lipverify import __version__, checkers
from lipverify.checkers import Model
from lipverify.checkers.arithmetic import outward
from lipverify.checkers.claims import SCHEMA, statement
from lipverify.checkers.files import digest_of
from lipverify.documents import NOT_COVERED, environment, model_document
from lipverify.ir.certificate import Certificate
from lipverify.ir.graph import Graph
from lipverify.ir.region import Ball, Query, Region
from lipverify.loading.names import display

if TYPE_CHECKING:
    from lipverify.analyzers.protocol import Analyzer


@dataclass(frozen=True)
class Issued:
    """A certificate as it is written: a JSON document and, for large arrays, the bytes of a safetensors file beside it."""

    document: dict[str, Any]
    arrays: bytes | None = None

    def files(self, name: str) -> dict[str, bytes]:
        """File contents by name; `name` ends in .json, the arrays lie beside it."""
        document, files = dict(self.document), {}
        if self.arrays is not None:
            beside = name.removesuffix(".json") + ".safetensors"
            document["sidecar"] = {"name": beside, "sha256": hashlib.sha256(self.arrays).hexdigest()}
            files[beside] = self.arrays
        return {**files, name: (json.dumps(document, indent=1, allow_nan=False) + "\n").encode()}

    def save(self, path: str | Path) -> None:
        """Writes the certificate, and its arrays beside it."""
        path = Path(path)
        name = path.name if path.name.endswith(".json") else f"{path.name}.json"
        for file, data in self.files(name).items():
            target = path if file == name else path.with_name(file)
            target.write_bytes(data)

    def check(self, model: Model, exact: bool = False) -> checkers.Verdict:
        """The checker's verdict on exactly the bytes that `files` gives."""
        files = self.files("certificate.json")
        return checkers.check(lambda: files["certificate.json"], files.__getitem__, lambda: model, exact)


def region_arrays(region: Region) -> dict[str, Tensor]:
    """Centres [count, inputs], and the box [2, inputs] where one cuts the balls."""
    if not isinstance(region, Ball):
        return {}
    found = {"centres": region.center.flatten(1).contiguous()}
    if region.box is not None:
        ends = (end.expand(region.center.shape[1:]).flatten() for end in region.box)
        found["box"] = torch.stack(tuple(ends))
    return found


def region_document(region: Region) -> dict[str, Any]:
    """The region of a claim; arrays by their digests."""
    if not isinstance(region, Ball):
        return region.to_json()
    digests = {name: digest_of(array.numpy()) for name, array in region_arrays(region).items()}
    known = {
        "kind": "ball",
        "norm": str(region.norm),
        "radius": region.radius,
        "radius_hex": region.radius.hex(),
    }
    return {**known, "count": len(region), "centres": digests["centres"], "box": digests.get("box")}


def document_of(certificate: Certificate, graph: Graph, query: Query, analyzer: Analyzer) -> dict[str, Any]:
    """Everything but graph and proof."""
    upper, norms, region = (
        certificate.upper,
        (str(query.norm_in), str(query.norm_out)),
        region_document(query.region),
    )
    claim: dict[str, Any] = {"norm_in": norms[0], "norm_out": norms[1], "region": region}
    if upper is None:
        claim["log10_upper"] = certificate.log10_upper
    else:
        numbers = [float(v) for v in upper.reshape(-1)]
        decimals, several = [outward(v) for v in numbers], upper.ndim > 0
        most = max(zip(numbers, decimals, strict=True))[1]
        claim |= {
            "upper": numbers if several else numbers[0],
            "upper_hex": [v.hex() for v in numbers] if several else numbers[0].hex(),
            "upper_decimal": decimals if several else decimals[0],
            "statement": statement(norms, most, region),
        }
    return {
        "schema": SCHEMA,
        "subject": {
            "name": display(Path(graph.origin.path).name, 80) if graph.origin.path else None,
            "sha256": graph.origin.sha256,
            "format": graph.origin.format,
            "graph_digest": graph.digest,
            "output": None,
        },
        "claim": claim,
        "rigour": str(certificate.rigour),
        "analyzer": {"name": analyzer.name, "made_by": certificate.made_by, "version": __version__},
        "proof": certificate.evidence.to_json(),
        "sidecar": None,
        "graph": None,
        "tensors": {},
        "import_check": model_document(graph).get("import_check"),
        "assumptions": list(certificate.assumptions),
        "not_covered": list(NOT_COVERED),
        "environment": environment(),
        "times": {},
    }
