"""Proof of a product bound: one factor for every stage of the graph, joined along its paths.

A certificate names stages (chains of affine nodes, or single nodes) and a gain for those that need a proof; any partition and
any gains are sound, because each is proved on its own.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

import numpy as np

from lipverify.checkers import affine
from lipverify.checkers import arithmetic as arith
from lipverify.checkers.arithmetic import Array
from lipverify.checkers.graph import LINEAR, Graph, Node, NotCovered, need, pooled, real
from lipverify.errors import RefutedCertificate

Reach = dict[str, Fraction]
_SCALINGS = ("BatchNorm", "Scale", "DivideBy")
_WORK, _MOST = 1 << 24, 1 << 15


def prove_product(graph: Graph, norm: str, stages: list[dict[str, Any]], exact: bool = False) -> Fraction:
    """The proved constant of the graph's output, from `norm` to itself."""
    reach: Reach = {}
    for node in graph.nodes.values():
        if node.op == "Input":
            reach[node.name] = Fraction(1)
    for stage in stages:
        names = stage["nodes"]
        need(
            isinstance(names, list) and names and all(n in graph.nodes for n in names),
            "a stage of unknown nodes",
        )
        nodes = [graph.nodes[n] for n in names]
        chain = all(b.inputs == (a.name,) for a, b in itertools.pairwise(nodes))
        need(all(source in reach for source in nodes[0].inputs), "a stage before its inputs")
        need(
            (chain and len(nodes) == 1) or all(n.op in LINEAR and len(n.inputs) == 1 for n in nodes),
            "a stage that is no chain",
        )
        need(chain and names[-1] not in reach, "a stage that is no chain")
        terms = [reach[source] for source in nodes[0].inputs]
        by = stage["by"]
        if by == "rule":
            need(len(nodes) == 1 and "gain" not in stage, "a rule for several nodes")
            reach[names[-1]] = arith.trimmed(_rule(graph, nodes[0], norm, terms))
            continue
        gain = real(stage["gain"])
        need(math.isfinite(gain) and gain >= 0 and len(nodes[0].inputs) == 1, "a gain")
        if norm != "l2" or (exact and by != "dense"):
            raise NotCovered(f"a proof by {by} is not covered here")
        proved = _dense(graph, nodes, gain, exact) if by == "dense" else _by_symbol(graph, nodes, gain, stage)
        if not proved:
            raise RefutedCertificate(f"the gain {gain!r} of node {names[-1][:60]!a} is not proved")
        reach[names[-1]] = arith.trimmed(terms[0] * Fraction(gain))
    need(graph.output in reach, "no stage ends at the output")
    return reach[graph.output]


def _dense(graph: Graph, nodes: list[Node], gain: float, exact: bool) -> bool:
    """Through the matrix of the whole stage (of one block, where a single matrix acts on the last axis)."""
    matrix, error = matrix_of(graph, nodes)
    if not exact:
        return arith.norms_at_most(matrix, error, np.asarray(gain))
    if error:
        raise NotCovered("exact checking covers matrices that are stored as they are")
    return arith.exact_norm_at_most(matrix, gain) if matrix.any() else True


def matrix_of(graph: Graph, nodes: list[Node]) -> tuple[Array, float]:
    """The matrix of a chain of affine nodes, and how far it may be from the exact one in the l2 norm."""
    if len(nodes) == 1 and nodes[0].op == "Linear":
        return nodes[0].tensors["weight"], 0.0
    signal = affine.Signal.identity(affine.INPUT, math.prod(graph.sources(nodes[0])[0]))
    for node in nodes:
        signal = affine.apply(graph, node, [signal])
    error = float(arith.interpolated(signal.errors(affine.INPUT))) if signal.count else 0.0
    return signal.parts[affine.INPUT], error


# -- convolutions by their symbol


def _by_symbol(graph: Graph, nodes: list[Node], gain: float, stage: Mapping[str, Any]) -> bool:
    """One convolution with channelwise scalings around it.

    Statement: the convolution with zero padding is a compression of the one on the infinite lattice, and of the one on any torus
        of N points that no tap wraps around; its norm is at most the largest |S(f)|, S(f) = sum_a K[a] exp(2 pi i f.a), over all
        f, or over f in (Z + t) / N for t in {0, 1/2} (t: multiply by exp(2 pi i t x / N) on both sides). Strides: positions
        modulo the stride are channels.
    Source: Sedghi, Gupta, Long, ICLR 2019; between frequencies Bernstein-Szego (Borwein, Erdelyi, theorem 5.1.3): arccos(|S| / M)
        changes by at most 2 pi d_i per turn, d_i = (taps - 1) / 2.
    """
    kernel, relative, sizes = kernel_of(graph, nodes)
    taps, axes = kernel.shape[3:], kernel.ndim - 3
    active = [i for i, t in enumerate(taps) if t > 1]
    if stage["by"] == "torus":
        wanted = stage["torus"]
        need(isinstance(wanted, list) and len(wanted) == axes, "a torus")
        for axis, pair in enumerate(wanted):
            need(isinstance(pair, list) and len(pair) == 2 and all(type(v) is int for v in pair), "a torus")
            need(sizes[axis] <= pair[0] <= _MOST and pair[1] in (0, 1), "a torus that wraps around")
        grid = torus_points(kernel, wanted)
        return _symbols_at_most(kernel, relative, grid, gain)
    need(stage["by"] == "symbol", "an unknown proof")
    level = [max(2, math.ceil(math.log2(4 * len(active) * (t - 1) / 2))) if t > 1 else 0 for t in taps]
    boxes = np.array(list(itertools.product(*(range(1 << n) for n in level))), dtype=np.int64)
    if active:
        boxes = boxes[boxes[:, active[0]] >= 1 << (level[active[0]] - 1)]
    for _ in range(12):
        if len(boxes) == 0:
            return True
        if len(boxes) > _MOST:
            break
        # Box j of an axis has centre (2 j + 1) / 2^(level + 1) and half width 1 / 2^(level + 1).
        grid = np.stack(
            [
                np.stack([2 * boxes[:, a] + (n > 0), np.full(len(boxes), 2 << n)], -1)
                for a, n in enumerate(level)
            ],
            1,
        )
        angle = (
            math.pi * sum((t - 1) / 2 * 2.0**-n for t, n in zip(taps, level, strict=True)) * (1 + 2.0**-40)
        )
        limit = gain * (math.cos(angle) - 2.0**-50) * (1 - 2.0**-50) if angle < 1.5 else 0.0
        values = symbol_at(kernel.astype(np.float32).astype(np.float64), grid)
        held = np.linalg.norm(values, 2, (-2, -1)).max(-1) < limit * (1 - 2e-6)
        if held.any() and not _symbols_at_most(kernel, relative, grid[held], limit):
            return False
        boxes = boxes[~held]
        for axis in active:
            boxes = np.concatenate([np.stack([2 * boxes[:, a] + (side if a == axis else 0) if a == axis else boxes[:, a]
                                              for a in range(axes)], -1) for side in (0, 1)])  # fmt: skip
            level[axis] += 1
    return False


def torus_points(kernel: Array, torus: Any) -> Array:
    """Half of the frequencies (j + t) / N of each axis, as integers over 2 N: the other half has conjugate values."""
    taps, points, halved = kernel.shape[3:], [], False
    for count, (size, twist) in zip(taps, torus, strict=True):
        own = [(2 * j + twist, 2 * size) for j in range(size)] if count > 1 else [(0, 1)]
        points.append([(r, n) for r, n in own if 2 * r <= n] if count > 1 and not halved else own)
        halved |= count > 1
    need(math.prod(map(len, points)) <= _MOST << 4, "a torus with too many frequencies")
    return np.array(list(itertools.product(*points)), dtype=np.int64)


def kernel_of(graph: Graph, nodes: list[Node]) -> tuple[Array, float, list[int]]:
    """Kernel [groups, out, in, *taps] at stride 1, relative error of its entries, smallest torus for each axis."""
    places = [i for i, n in enumerate(nodes) if n.op == "Conv"]
    need(
        len(places) == 1 and all(n.op in (*_SCALINGS, "Conv") for n in nodes),
        "not one convolution with scalings",
    )
    conv, relative = nodes[places[0]], 0.0
    shape, groups = graph.sources(conv)[0], conv.groups
    kernel = conv.tensors["weight"].astype(np.float64)
    kernel = kernel.reshape(groups, len(kernel) // groups, *kernel.shape[1:])
    for i, node in enumerate(nodes):
        if i == places[0]:
            continue
        source = graph.sources(node)[0]
        factor = LINEAR[node.op](node, False, np.ones((1, *source)))[0]
        factor = factor.reshape(source[0], -1)
        need((factor == factor[:, :1]).all(), "a scaling that differs within a channel")
        split = factor[:, 0].reshape(groups, -1)
        split = split[:, None, :] if i < places[0] else split[:, :, None]
        for tensor in (*node.tensors.values(), split):
            affine.lowered(affine.lowered(0, kernel), tensor)
        scaled = kernel * split.reshape(*split.shape, *(1,) * (kernel.ndim - 3))
        kernel, relative = scaled, relative + arith.gamma(8)
    sizes = []
    for axis, n in enumerate(shape[1:]):
        s, d, (before, after) = conv.stride[axis], conv.dilation[axis], conv.padding[axis]
        moved = np.moveaxis(kernel, 3 + axis, -1)
        reach = d * (moved.shape[-1] - 1)
        coarse = reach // s + 1
        spread = np.zeros((*moved.shape[:-1], coarse * s))
        spread[..., : reach + 1 : d] = moved
        # Position s Q + phase: the phase joins the channels, Q counts taps.
        phases = np.moveaxis(np.moveaxis(spread.reshape(*moved.shape[:-1], coarse, s), -1, 3), -1, 4 + axis)
        kernel = phases.reshape(*kernel.shape[:2], -1, *phases.shape[4:])
        first, last, outputs = before // s, (n - 1 + before) // s, (n + before + after - reach - 1) // s + 1
        # Tap Q - p for inputs first..last and outputs p < outputs; no other tap is congruent to it modulo N.
        sizes.append(max(last + 1, coarse - first + outputs - 1, outputs, coarse))
    used = (kernel != 0).any((0, 1, *range(3, kernel.ndim)))
    return kernel[:, :, used] if used.any() else kernel, relative, sizes


def symbol_at(kernel: Array, grid: Array) -> Array:
    """S at frequencies grid[..., 0] / grid[..., 1] as real matrices [points, groups, 2 out, 2 in]."""
    taps = kernel.shape[3:]
    phase = np.ones((len(grid), 1), dtype=np.complex128)
    for axis, count in enumerate(taps):
        turns = (grid[:, axis, :1] * np.arange(count)) % grid[:, axis, 1:]
        angle = 2.0 * math.pi * (turns / grid[:, axis, 1:])
        own = np.cos(angle) + 1j * np.sin(angle)
        phase = (phase[:, :, None] * own[:, None, :]).reshape(len(grid), -1)
    flat = kernel.reshape(-1, phase.shape[1])
    re, im = (part @ flat.T for part in (phase.real, phase.imag))
    re, im = (part.reshape(len(grid), *kernel.shape[:3]) for part in (re, im))
    return np.concatenate([np.concatenate([re, -im], -1), np.concatenate([im, re], -1)], -2)


def _symbols_at_most(kernel: Array, relative: float, grid: Array, limit: float) -> bool:
    """|S(f)| <= limit at every frequency of the grid.

    A reduced turn is exact up to u, its angle to 4u relatively, so cosine and sine to 4u 2 pi + 4u < 32u; a product of two such
    numbers of modulus 1 adds its terms and 4u: 100u an axis is generous. Sums over taps add gamma_taps in either part.
    """
    taps = kernel.shape[3:]
    absolute = arith.interpolated(arith.sums(kernel, tuple(range(3, kernel.ndim)))).max()
    rounding = 2.0 * (100 * len(taps) * 2.0**-53 + arith.gamma(math.prod(taps) + 8)) + relative * (
        1 + 2.0**-20
    )
    error = float(absolute) * rounding * 1.01
    entries = 4 * kernel.shape[0] * max(kernel.shape[1:3]) ** 2
    step = max(1, _WORK // entries)
    for start in range(0, len(grid), step):
        values = symbol_at(kernel, grid[start : start + step])
        if not arith.norms_at_most(values, error, np.full(values.shape[:2], limit)):
            return False
    return True


# -- operators with a gain in closed form


def _rule(graph: Graph, node: Node, norm: str, terms: list[Fraction]) -> Fraction:
    """The constant after one node from those before it."""
    if node.op in ("Add", "Sub"):
        return sum(terms, Fraction(0))
    if node.op in ("Concat", "Maximum", "Minimum"):
        if norm == "l1":
            return sum(terms, Fraction(0))
        return max(terms) if norm == "linf" else arith.root_above(sum((t * t for t in terms), Fraction(0)))
    return terms[0] * _gain(node, graph.sources(node)[0], norm)


def _copies(counts: Array, norm: str) -> Fraction:
    largest: int = int(counts.max(initial=0))
    most = Fraction(largest)
    return most if norm == "l1" else arith.root_above(most) if norm == "l2" else min(Fraction(1), most)


def _gain(node: Node, shape: tuple[int, ...], norm: str) -> Fraction:
    op, one = node.op, Fraction(1)
    if op in ("Reshape", "Transpose", "GroupSort", "Slice", "ReduceMax", "ReduceMin"):
        return one
    if op == "Softmax":
        return Fraction(1, 2)  # every norm to itself: Nair 2025, arXiv 2510.23012
    slopes = node.slopes(shape)
    if slopes is not None:
        largest = max(float(np.abs(end).max(initial=0.0)) for end in slopes)
        return Fraction(largest)
    if op in ("Gather", "Upsample", "Expand", "Pad"):
        entries = np.arange(math.prod(shape), dtype=np.float64).reshape(1, *shape)
        moved = LINEAR[op](node, False, entries + 1).ravel().astype(np.int64)
        return _copies(np.bincount(moved)[1:], norm)
    if op == "MaxPool":
        held = pooled(node, shape)
        return _copies(np.bincount(held[held >= 0]), norm)
    if op in ("ReduceSum", "ReduceMean"):
        count = Fraction(math.prod(shape[a] for a in node.axes))
        total = {"l1": one, "l2": arith.root_above(count), "linf": count}[norm]
        inverse = {"l1": 1 / count, "l2": arith.root_above(1 / count), "linf": one}[norm]
        return total if op == "ReduceSum" else inverse
    if op in ("LayerNorm", "RMSNorm") and norm == "l2":
        # |J| <= 1 / sqrt(eps): the Jacobian before the weight is sqrt((1-t)/eps) times a matrix between 0 and I.
        weight = Fraction(float(np.abs(node.tensors.get("weight", np.ones(1))).max()))
        return weight * arith.root_above(1 / Fraction(node.eps))
    if op in _SCALINGS:
        largest = float(np.abs(LINEAR[op](node, True, np.ones((1, *shape)))).max(initial=0.0))
        return (Fraction(largest) + Fraction(arith.TINY)) * (1 + Fraction(arith.gamma(8)))
    if op in ("Linear", "Conv"):
        # Row and column sums; for a convolution over all taps, wherever they meet the image.
        w = np.abs(node.tensors["weight"])
        w = w if op == "Linear" else w.reshape(node.groups, -1, *w.shape[1:])
        rows, columns = (
            ((-1,), (-2,)) if op == "Linear" else (tuple(range(2, w.ndim)), (1, *range(3, w.ndim)))
        )
        if norm != "l2":
            return Fraction(float(arith.sums(w, rows if norm == "linf" else columns).max()))
    if op == "AvgPool" and norm == "linf":
        total = LINEAR[op](node, True, np.ones((1, *shape))).max()
        return Fraction(float(total)) * (1 + Fraction(arith.gamma(math.prod(node.kernel) + 8)))
    raise NotCovered(f"the gain of {op} ({norm}) is not covered by the checker")
