"""Evidence of every kind against a claim: products, multipliers, ranges over balls, and parts of balls."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from lipverify.checkers.arithmetic import Array, NotCovered, above, need, outward, real
from lipverify.checkers.balls import Ball, Empty, Split, prove_empty
from lipverify.checkers.gains import prove_product
from lipverify.checkers.jacobians import prove_local
from lipverify.checkers.multipliers import System, prove_lipsdp
from lipverify.checkers.steps import Map, Program
from lipverify.errors import RefutedCertificate


def prove(proof: Mapping[str, Any], program: Program, output: str, norms: tuple[str, str], values: list[float],
           beside: Mapping[str, Array], exact: bool, balls: list[Ball] | None) -> None:  # fmt: skip
    """RefutedCertificate unless the evidence proves the values: one for the whole space, or one for each ball."""
    step = ending(program, output)
    if balls is None:
        _prove_for(proof, program, step, norms, min(values), beside, exact, None)
        return
    need(proof.keys() == {"kind", "proofs", "of"} and proof["kind"] == "balls", "a proof for every ball")
    need(len(proof["of"]) == len(values) == len(balls), "numbers for other balls")
    need(
        all(type(k) is int and 0 <= k < len(proof["proofs"]) for k in proof["of"]),
        "a proof that is not there",
    )
    for k, inner in enumerate(proof["proofs"]):
        mine = [(v, b) for v, b, own in zip(values, balls, proof["of"], strict=True) if own == k]
        # A product holds for the whole space: the smallest of its claims is all of them.
        for upper, ball in (
            [min(mine, key=lambda pair: pair[0])] if mine and inner["kind"] == "product" else mine
        ):
            _prove_for(inner, program, step, norms, upper, beside, exact, ball)


def _prove_for(proof: Mapping[str, Any], program: Program, step: str, norms: tuple[str, str], upper: float,
               beside: Mapping[str, Array], exact: bool, ball: Ball | None, splits: tuple[Split, ...] = (),
               outputs: Sequence[int] | None = None) -> None:  # fmt: skip
    """RefutedCertificate unless the evidence proves `upper`, for a part of a ball and some outputs where these are given."""
    kind = proof["kind"]
    if kind == "product" and proof.keys() == {"kind", "stages"}:
        _enough(above(prove_product(program, step, norms, proof["stages"], exact)), upper)
        return
    system, known = System(program, step, ball, splits), proof.keys() - {"kind"}
    wanted = range(system.outputs) if outputs is None else outputs
    if kind == "local" and not known and ball is not None and not exact:
        _enough(prove_local(system, norms, wanted), upper)
    elif kind == "empty" and known == {"weights"}:
        if not prove_empty(system, [real(w) for w in proof["weights"]]):
            raise RefutedCertificate("a part of a ball that is not shown to be empty")
    elif kind == "tree" and known == {"groups"} and ball is not None and not exact:
        need(
            [r for g in proof["groups"] for r in range(*g["rows"])] == list(wanted), "trees of other outputs"
        )
        need(len(proof["groups"]) == 1 or norms[1] == "linf", "trees of single outputs")
        for group in proof["groups"]:
            _prove_part(group["root"], splits, lambda inner, parts, rows=range(*group["rows"]): _prove_for(
                inner, program, step, norms, upper, beside, exact, ball, parts, rows))  # fmt: skip
    elif kind == "lipsdp" and known in ({"parts"}, {"parts", "slopes"}):
        system = system.within([beside[name].astype(np.float64) for name in proof.get("slopes", [])])
        rows = {part["row"] for part in proof["parts"]}
        need(rows == {None} or rows == set(wanted), "rows of the output")
        # One output by itself says nothing about l2; all of them in l2 are at least as large as in linf.
        if "l1" in norms or (None not in rows and norms[1] == "l2"):
            raise NotCovered(f"LipSDP from {norms[0]} to {norms[1]} is not covered by the checker")
        for part in proof["parts"]:
            need((part["weights"] is None) == (norms[0] == "l2"), "weights of the inputs")
            arrays = [beside[name].astype(np.float64) for name in part["blocks"]]
            weights = beside[part["weights"]].astype(np.float64) if norms[0] == "linf" else None
            prove_lipsdp(system, arrays, upper, exact, weights, part["row"])
    else:
        raise NotCovered(f"evidence of the kind {str(kind)[:40]!a} is not covered by the checker")


def _prove_part(node: Mapping[str, Any], splits: tuple[Split, ...], prove: Callable[..., None]) -> None:
    """Both sides of every split cover what was split, whatever it is; a side that holds no input needs no bound."""
    if node.keys() == {"split", "above", "below"}:
        layer, entry, at = node["split"]
        for side in ("above", "below"):
            _prove_part(node[side], (*splits, Split(layer, entry, real(at), side == "above")), prove)
        return
    try:
        prove(node, splits)
    except Empty:
        return


def _enough(found: float, upper: float) -> None:
    if not found <= upper:
        raise RefutedCertificate(f"its evidence proves {outward(found)}, not {outward(upper)}")


def ending(program: Program, output: str) -> str:
    """The step whose result is the output; one that puts places in order where they are not."""
    value, name = program.value(output), f"{output}/end"
    if np.array_equal(value.places.ravel(), np.arange(program.steps[value.sources[0]].size)):
        return value.sources[0]
    if name not in program.steps:
        index, size = np.arange(value.places.size)[None, :, None], value.places.size
        program.steps[name] = Map(value.sources, value.places.ravel(), size, np.ones((1, 1, 1)), index)
    return name
