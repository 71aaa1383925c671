"""Certificates: a bound with its evidence in the form the independent checker reads, and the check that issues `checked`.

What is built here needs no trust: gains and multipliers are candidates until `lipverify.checkers` has proved them.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from lipverify import __version__, checkers
from lipverify.analyzers.lipsdp.evidence import Multipliers
from lipverify.checkers import Model, NotCovered, arithmetic
from lipverify.checkers import lipsdp as lipsdp_checker
from lipverify.checkers import product as product_checker
from lipverify.checkers.certificate import SCHEMA, outward, statement
from lipverify.checkers.graph import IDLE, digest_of, node_of
from lipverify.checkers.graph import Graph as CheckedGraph
from lipverify.checkers.graph import Node as CheckedNode
from lipverify.documents import NOT_COVERED, environment, model_document
from lipverify.errors import InternalError, LipverifyError, RefutedCertificate, UnsupportedModel
from lipverify.ir.certificate import Certificate, Gains, Rigour
from lipverify.ir.graph import Graph
from lipverify.ir.norm import Norm
from lipverify.ir.region import Everywhere, Query
from lipverify.loading.names import display
from lipverify.loading.safetensors import write_safetensors

if TYPE_CHECKING:
    from lipverify.analyzers.protocol import Analyzer

TOLERANCE, CONVOLUTION_TOLERANCE = 1e-6, 2e-3
"""What a proof may add to a bound, relatively."""
_SLACKS = (2.0**-26, 2.0**-22, 0.99 * TOLERANCE, 1e-3)
_DENSE_WORK, _DENSE_ENTRIES = 2e10, 1 << 24
Array = np.ndarray[Any, np.dtype[Any]]


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


# -- the canonical graph as plain data


@dataclass(frozen=True)
class Described:
    """A graph as the certificate writes it, and as the checker reads that again."""

    nodes: list[dict[str, Any]]
    arrays: dict[str, Array]
    graph: CheckedGraph


def described(graph: Graph) -> Described:
    """The canonical form of a graph.

    Raises:
        NotCovered: an operator or a type of numbers that the checker does not know.
    """
    graph = graph.pruned()
    rows: list[dict[str, Any]] = []
    arrays: dict[str, Array] = {}
    nodes: dict[str, CheckedNode] = {}
    for node in graph.nodes:
        settings, tensors = {}, {}
        for field in fields(node.op):
            if field.name in IDLE:
                continue  # constants do not matter for differences, and the checker does not look at them
            value = getattr(node.op, field.name)
            if isinstance(value, Tensor):
                array = _array(value)
                digest = digest_of(array)
                arrays[digest] = array
                tensors[field.name] = digest
            elif value is not None:
                settings[field.name] = value
        kept = {k: (arrays[d], d) for k, d in tensors.items()}
        try:
            found = node_of(node.name, node.op.kind(), nodes, node.inputs, settings, kept, node.shape)
        except NotCovered as error:
            raise NotCovered(f"{node.describe()}: {error}") from None
        nodes[node.name] = found
        plain = {k: _plain(v) for k, v in settings.items()}
        rows.append({"name": node.name, "op": found.op, "inputs": list(node.inputs), "shape": list(node.shape),
                     "settings": plain, "tensors": tensors})  # fmt: skip
    return Described(rows, arrays, CheckedGraph(nodes, graph.output.name))


def _array(value: Tensor) -> Array:
    if value.dtype not in (torch.float16, torch.float32, torch.float64, torch.int64):
        raise NotCovered(f"tensors of type {value.dtype} are not covered by the checker")
    return value.detach().cpu().contiguous().numpy()


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return value.hex() if math.isfinite(value) else repr(value)
    return [_plain(v) for v in value] if isinstance(value, tuple) else value


# -- what the certificate is checked against


def model_of(graph: Graph) -> Model:
    """The graph in memory as the checker's model: its own tensors, bound by content."""
    known = described(graph)
    identity = known.graph.identity(known.graph.output)
    return Model(
        display(graph.origin.path or "graph", 80), graph.origin.sha256, known.arrays, "graph", (identity,)
    )


def _bound_model(graph: Graph) -> Model:
    """The model file a graph came from, read by the checker itself; the graph in memory where there is no file."""
    origin = graph.origin
    if origin.path is None or origin.sha256 is None:
        return model_of(graph)
    return _read(str(model_path(origin.path)), origin.sha256)


@lru_cache(maxsize=2)
def _read(path: str, sha256: str) -> Model:
    model = checkers.read_model(Path(path))
    if model.sha256 != sha256:
        raise NotCovered("the model file has changed since it was read")
    return model


def model_path(model: str) -> Path:
    """The file that a model argument names: for networks of the zoo their weights."""
    from lipverify import zoo

    folder = zoo.resolve(model)
    return Path(model) if folder is None else folder / "weights.safetensors"


# -- issuing


def issue(
    certificate: Certificate, graph: Graph, query: Query, analyzer: Analyzer, seconds: float
) -> Certificate:
    """The certificate in its written form, `checked` when the checker has proved it from that form alone.

    Where the checker has no proof for the evidence, the rigour stays and `unchecked` says why.

    Raises:
        InternalError: evidence the checker covers does not carry the bound.
    """
    if certificate.rigour < Rigour.REAL or certificate.upper is None:
        return certificate
    try:
        known = described(graph)
        model = _bound_model(graph)
        _refuse_other(model, known)
        proof, arrays, upper = _proof(certificate, known.graph, query)
        for slack in _SLACKS:
            # A proof in floating point needs a little room, and more of it on large networks.
            raised = upper if proof["kind"] == "product" else upper * (1 + slack)
            issued = _written(
                certificate, graph, query, analyzer, seconds, known, model, raised, proof, arrays
            )
            try:
                issued.check(model)
                if slack > TOLERANCE:
                    raise NotCovered(f"the checker alone proves {float(raised.max()):.6g}")
                break
            except RefutedCertificate as error:
                if isinstance(error, NotCovered) or slack == _SLACKS[-1]:
                    raise
    except NotCovered as error:
        return replace(certificate, unchecked=str(error))
    except OSError as error:
        return replace(certificate, unchecked=f"the model file cannot be read again ({error.strerror})")
    except LipverifyError as error:
        kind = type(error).__name__
        raise InternalError(
            f"the certificate of {analyzer.name} does not check ({kind}: {error}); please report it"
        ) from error
    return replace(certificate, upper=raised, rigour=Rigour.CHECKED, issued=issued)


def _refuse_other(model: Model, known: Described) -> None:
    """NotCovered where the checker's own reader of model files does not arrive at the same graph."""
    if model.reason:
        raise NotCovered(model.reason)
    if model.outputs is not None and known.graph.identity(known.graph.output) not in model.outputs:
        raise NotCovered("the checker's own reader spells the file's operators in another way")


def _proof(
    certificate: Certificate, graph: CheckedGraph, query: Query
) -> tuple[dict[str, Any], dict[str, Tensor], Tensor]:
    """Evidence in the checker's form, with the bound that it proves."""
    assert certificate.upper is not None
    if isinstance(certificate.evidence, Gains):
        if query.norm_in is not query.norm_out:
            raise NotCovered("different norms at input and output are not covered by the checker")
        stages = list(_stages(certificate.evidence, graph, query.norm_in))
        proved = product_checker.prove_product(graph, str(query.norm_in), stages)
        smooth = (
            CONVOLUTION_TOLERANCE if any(node.op == "Conv" for node in graph.nodes.values()) else TOLERANCE
        )
        upper = certificate.upper.clamp(min=arithmetic.above(proved))
        if bool((upper > certificate.upper * (1 + smooth)).any()):
            raise NotCovered(f"the checker alone proves {arithmetic.above(proved):.6g}")
        return {"kind": "product", "stages": stages}, {}, upper
    if isinstance(certificate.evidence, Multipliers):
        if not isinstance(query.region, Everywhere):
            raise NotCovered("slopes of a region are not covered by the checker")
        blocks = _multipliers(certificate.evidence, graph)
        named = {name: torch.from_numpy(d) for name, d in blocks.items()}
        return {"kind": "lipsdp", "blocks": list(blocks)}, named, certificate.upper
    raise NotCovered(
        f"evidence of the kind {type(certificate.evidence).__name__} is not covered by the checker"
    )


def _written(certificate: Certificate, graph: Graph, query: Query, analyzer: Analyzer, seconds: float, known: Described,
             model: Model, upper: Tensor, proof: dict[str, Any], arrays: dict[str, Tensor]) -> Issued:  # fmt: skip
    foreign = {d: a for d, a in known.arrays.items() if d not in model.tensors}
    beside = {**arrays, **{f"tensor.{d}": torch.from_numpy(a.copy()) for d, a in sorted(foreign.items())}}
    document = _document(replace(certificate, upper=upper, rigour=Rigour.CHECKED), graph, query, analyzer) | {
        "proof": proof,
        "graph": {"nodes": known.nodes, "output": known.graph.output},
        "tensors": {
            digest: {
                "dtype": array.dtype.name,
                "shape": list(array.shape),
                "source": "sidecar" if digest in foreign else "model",
            }
            for digest, array in sorted(known.arrays.items())
        },
        "times": {"analyzer_seconds": seconds},
    }
    document["subject"] |= {"sha256": model.sha256, "identity": known.graph.identity(known.graph.output)}
    return Issued(document, write_safetensors(beside) if beside else None)


def unproved(certificate: Certificate, graph: Graph, query: Query, analyzer: Analyzer) -> Issued:
    """A bound the checker has no proof for, written with its evidence; the checker refuses it."""
    document = _document(certificate, graph, query, analyzer)
    why = certificate.unchecked or "the checker was not asked"
    return Issued(document | {"not_covered": [*document["not_covered"], f"proof by the checker: {why}"]})


def _document(certificate: Certificate, graph: Graph, query: Query, analyzer: Analyzer) -> dict[str, Any]:
    """Everything but graph and proof."""
    upper, norms, region = (
        certificate.upper,
        (str(query.norm_in), str(query.norm_out)),
        query.region.to_json(),
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
            "statement": statement(norms, most, region["kind"]),
        }
    whole = model_document(graph)
    return {
        "schema": SCHEMA,
        "subject": {
            "name": display(Path(graph.origin.path).name, 80) if graph.origin.path else None,
            "sha256": graph.origin.sha256,
            "format": graph.origin.format,
            "graph_digest": graph.digest,
            "identity": None,
        },
        "claim": claim,
        "rigour": str(certificate.rigour),
        "analyzer": {"name": analyzer.name, "made_by": certificate.made_by, "version": __version__},
        "proof": certificate.evidence.to_json(),
        "sidecar": None,
        "graph": None,
        "tensors": {},
        "import_check": whole.get("import_check"),
        "assumptions": list(certificate.assumptions),
        "not_covered": list(NOT_COVERED),
        "environment": environment(),
        "times": {},
    }


# -- product: stages with gains


def _stages(evidence: Gains, graph: CheckedGraph, norm: Norm) -> Iterator[dict[str, Any]]:
    """The analyzer's stages, cut into pieces the checker has a proof for."""
    for step in evidence.steps:
        nodes = [graph.nodes[name] for name in step.nodes]
        convolves = any(node.op == "Conv" for node in nodes)
        joined = step.note == "matrix of the whole run" or (step.note == "fused layers" and not convolves)
        if joined and norm is Norm.L2:
            yield _dense(graph, nodes, step.gain)
            continue
        for piece in _pieces(nodes, norm):
            yield _stage(graph, piece, norm, step.gain if len(piece) == len(nodes) else None)


def _pieces(nodes: list[CheckedNode], norm: Norm) -> Iterator[list[CheckedNode]]:
    """Single nodes, except that channelwise scalings stay with the convolution beside them."""
    scalings = ("BatchNorm", "Scale", "DivideBy")
    piece: list[CheckedNode] = []
    for node in [*nodes, None]:
        together = [*piece, node] if node else piece
        fits = (
            all(n.op in (*scalings, "Conv") for n in together) and sum(n.op == "Conv" for n in together) <= 1
        )
        if piece and (node is None or not (norm is Norm.L2 and fits)):
            whole = any(n.op == "Conv" for n in piece)
            yield from [piece] if whole else ([n] for n in piece)
            piece = []
        piece = [*piece, node] if node else piece


def _stage(graph: CheckedGraph, nodes: list[CheckedNode], norm: Norm, hint: float | None) -> dict[str, Any]:
    names = [node.name for node in nodes]
    if norm is Norm.L2 and any(node.op == "Conv" for node in nodes):
        return _convolution(graph, nodes, hint)
    if norm is Norm.L2 and nodes[0].op in ("Linear", "AvgPool"):
        return _dense(graph, nodes, hint)
    return {"nodes": names, "by": "rule"}


def _dense(graph: CheckedGraph, nodes: list[CheckedNode], hint: float | None) -> dict[str, Any]:
    matrix = product_checker.matrix_of(graph, nodes)[0]
    size = float(np.linalg.norm(matrix, 2)) if hint is None and matrix.size else hint or 0.0
    # The shift of a verified Cholesky grows with the square of the side.
    slack = TOLERANCE / 100 + 3e-16 * min(matrix.shape) ** 2
    return {"nodes": [n.name for n in nodes], "by": "dense", "gain": (size * (1 + slack)).hex()}


def _convolution(graph: CheckedGraph, nodes: list[CheckedNode], hint: float | None) -> dict[str, Any]:
    """The cheapest of the checker's three proofs that comes near the analyzer's gain."""
    names = [node.name for node in nodes]
    rows, columns = nodes[-1].size, math.prod(graph.sources(nodes[0])[0])
    short, long = sorted((rows, columns))
    if 2.0 * short**2 * long + 1.5 * short**3 < _DENSE_WORK and rows * columns < _DENSE_ENTRIES:
        return _dense(graph, nodes, hint)
    kernel, _, sizes = product_checker.kernel_of(graph, nodes)
    best, torus = math.inf, None
    for choice in itertools.product(*([(n + more, t) for more in (0, 1) for t in (1, 0)] for n in sizes)):
        if math.prod(n for n, _ in choice) > 1 << 13:
            continue
        peak = max(_peaks(kernel, product_checker.torus_points(kernel, choice)))
        if peak < best:
            best, torus = peak, [list(pair) for pair in choice]
        if hint is not None and best <= hint * (1 + CONVOLUTION_TOLERANCE / 20):
            break
    gain = min(best, hint or math.inf) if torus is None else best
    if torus is not None and (hint is None or best <= hint * (1 + CONVOLUTION_TOLERANCE / 4)):
        return {"nodes": names, "by": "torus", "torus": torus, "gain": (gain * (1 + 1e-7)).hex()}
    if hint is None:
        raise NotCovered(
            "a convolution on a large image between other affine layers is not covered by the checker"
        )
    return {"nodes": names, "by": "symbol", "gain": (hint * (1 + CONVOLUTION_TOLERANCE / 4)).hex()}


def _peaks(kernel: Array, grid: Array) -> Iterator[float]:
    for start in range(0, len(grid), 256):
        values = product_checker.symbol_at(kernel, grid[start : start + 256])
        half = values.shape[-2] // 2, values.shape[-1] // 2
        whole = values[..., : half[0], : half[1]] + 1j * values[..., half[0] :, : half[1]]
        yield float(np.linalg.norm(whole, 2, (-2, -1)).max())


# -- LipSDP: multipliers


def _multipliers(evidence: Multipliers, graph: CheckedGraph) -> dict[str, Array]:
    """Positive float64 multipliers of every neuron.

    Neurons without influence have none of their own (zero): they get numbers so small, or so large, that they do not matter.
    """
    if len(evidence.diagonals) != 1:
        raise NotCovered("multipliers of several centres are not covered by the checker")
    diagonals = []
    for values, exponent in zip(evidence.diagonals[0], evidence.exponents[0], strict=True):
        diagonal = np.ldexp(values.detach().cpu().double().numpy(), 2 * exponent)
        if not bool(np.isfinite(diagonal).all()):
            raise NotCovered("multipliers beyond float64 are not covered by the checker")
        diagonals.append(diagonal)
    if any((d <= 0).any() for d in diagonals):
        diagonals = _filled(diagonals, lipsdp_checker.System(graph))
    return {f"multipliers.{k:04d}": d for k, d in enumerate(diagonals)}


def _filled(diagonals: list[Array], system: lipsdp_checker.System) -> list[Array]:
    known = np.concatenate([d[d > 0] for d in diagonals])
    low, high = (float(known.min()), float(known.max())) if len(known) else (1.0, 1.0)
    driven: list[Array] = []
    found = []
    for k, (block, d) in enumerate(zip(system.blocks, diagonals, strict=True)):
        reached = np.zeros(len(d), dtype=bool)
        for key, matrix in block.parts.items():
            mask = slice(None) if key < 0 else driven[key]
            reached |= (matrix[:, mask] != 0).any(1)
        driven.append(reached)
        step = 40 * (k + 1)
        filler = np.where(
            reached, math.ldexp(high, min(step, 900)), math.ldexp(low, step - 40 * (len(diagonals) + 1))
        )
        found.append(np.where(d > 0, d, filler))
    return found


def verify(
    certificate: Certificate | Issued | str | Path, model: Graph | str | Path, exact: bool = False
) -> checkers.Verdict:
    """Proves a certificate again, with nothing of the analyzer that made it.

    Args:
        certificate: a file, or one of `Audit.certificates`. model: a graph, or what `load` takes as a file.
        exact: integers alone, for networks small enough.

    Raises:
        RefutedCertificate: the evidence does not carry the claim, or the checker has no proof for it.
        UnreadableCertificate: damaged, or for another model. UnsupportedModel: the certificate was never issued.
    """
    if isinstance(certificate, str | Path):
        path = Path(certificate)
        if not isinstance(model, Graph):
            return checkers.verify_file(path, model_path(str(model)), exact)
        return checkers.verify_file(path, model_of(model), exact)
    issued = certificate.issued if isinstance(certificate, Certificate) else certificate
    if issued is None:
        assert isinstance(certificate, Certificate)
        raise UnsupportedModel(
            f"this bound has no certificate that can be checked: {certificate.unchecked or 'not audited'}"
        )
    bound = model_of(model) if isinstance(model, Graph) else checkers.read_model(model_path(str(model)))
    assert isinstance(issued, Issued)
    return issued.check(bound, exact)


__all__ = ["Issued", "described", "issue", "model_of", "model_path", "verify"]
