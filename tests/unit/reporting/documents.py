"""Audit documents for the tests of reports, built in code: ordinary, large, refused, local, extreme and hostile ones."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

Document = dict[str, Any]

NOT_COVERED = (
    "the execution in floating point: the bound is about the real-valued function of the stored weights",
    "preprocessing outside the model file",
)


def node(name: str, op: str, inputs: Sequence[str], shape: Sequence[int], parameters: int = 0) -> Document:
    """One entry of `model.nodes`."""
    return {"name": name, "op": op, "inputs": list(inputs), "shape": list(shape), "parameters": parameters}


def model(nodes: Sequence[Document], path: str = "net.onnx") -> Document:
    """The `model` part, counted from its nodes."""
    operators = Counter(entry["op"] for entry in nodes if entry["op"] != "Input")
    return {
        "path": path,
        "sha256": "9f2c" * 16,
        "graph_digest": "07be" * 16,
        "format": "onnx",
        "input_shape": nodes[0]["shape"],
        "output_shape": nodes[-1]["shape"],
        "parameters": sum(entry["parameters"] for entry in nodes),
        "operators": dict(operators),
        "notes": [],
        "trusted_code": [],
        "import_check": {
            "samples": 64,
            "max_abs_difference": 3.1e-06,
            "max_abs_output": 18.25,
            "reference": "onnxruntime 1.31.1",
        },
        "nodes": list(nodes),
    }


def bound(analyzer: str, upper: Any, seconds: float = 0.4, rigour: str = "checked", **more: Any) -> Document:
    """A row with a bound; `log10_upper=` in `more` replaces the number."""
    row: Document = {"analyzer": analyzer, "rigour": rigour, "seconds": seconds}
    if "log10_upper" not in more:
        row["upper"] = upper
    row["certificate"] = f"certificates/{analyzer.replace('_', '-')}.json"
    return row | more


def document(
    nodes: Sequence[Document],
    results: Sequence[Document],
    lower: Any = None,
    region: Document | None = None,
    **more: Any,
) -> Document:
    """A whole document; `best` is the row with the smallest (for lists: smallest mean) bound."""
    given = [row for row in results if "refused" not in row]
    best = min(given, key=_size, default=None)
    found: Document = {
        "schema": "lipverify.audit/1",
        "tool": {"name": "lipverify", "version": "0.1.0"},
        "created": "2026-03-01T10:20:30+00:00",
        "command": "lipverify audit net.onnx --analyzers product,lipsdp --out reports/net",
        "model": model(nodes),
        "query": {
            "norm_in": "l2",
            "norm_out": "l2",
            "region": region or {"kind": "everywhere"},
            "words": "the largest ratio of output change (l2) to input change (l2), for all pairs of inputs",
        },
        "results": list(results),
        "lower": None
        if lower is None
        else {"value": lower, "method": "gradient-ascent", "witness": "witness.npz"},
        "best": None
        if best is None
        else {key: best[key] for key in ("analyzer", "upper", "log10_upper") if key in best},
        "assumptions": ["inner products of float64 are ordinary sums, without Strassen's scheme"],
        "not_covered": list(NOT_COVERED),
        "environment": {"python": "3.11.9", "torch": "2.13.0", "numpy": "2.4.0", "threads": 1, "cuda": None},
        "seconds": 23.8,
    }
    return found | more


def _size(row: Document) -> float:
    if "log10_upper" in row:
        return 1000.0
    upper = row["upper"] if isinstance(row["upper"], list) else [row["upper"]]
    return sum(math.log10(number) if number else -400.0 for number in upper) / len(upper)


def steps(nodes: Sequence[Document], gains: dict[str, float]) -> list[Document]:
    """Product steps: the gain of each node (1 unless given), sums where paths meet."""
    reach = {nodes[0]["name"]: 1.0}
    found = []
    for entry in nodes[1:]:
        incoming = sum(reach[name] for name in entry["inputs"])
        gain = gains.get(entry["name"], 1.0)
        reach[entry["name"]] = gain * incoming
        merges = len(entry["inputs"]) > 1
        found.append(
            {
                "nodes": [entry["name"]],
                "gain": None if merges else gain,
                "log10_reach": math.log10(reach[entry["name"]]) if reach[entry["name"]] else None,
                "note": "sum of two paths" if merges else "",
            }
        )
    return found


def chain(widths: Sequence[int], activation: str = "ReLU") -> list[Document]:
    """A fully connected network."""
    nodes = [node("input", "Input", [], [widths[0]])]
    for i, (before, after) in enumerate(pairwise(widths)):
        nodes.append(node(f"fc{i}", "Linear", [nodes[-1]["name"]], [after], (before + 1) * after))
        if i < len(widths) - 2:
            nodes.append(node(f"act{i}", activation, [nodes[-1]["name"]], [after]))
    return nodes


def mlp() -> Document:
    """A realistic MLP: two bounds, one refusal."""
    nodes = chain([784, 256, 256, 10])
    gains = {"fc0": 3.1, "fc1": 4.4, "fc2": 3.5419}
    product = 3.1 * 4.4 * 3.5419
    return document(
        nodes,
        [
            bound(
                "product",
                product,
                0.4,
                "real",
                steps=steps(nodes, gains),
                statement="|f(x) - f(y)| <= upper |x - y| for all x, y.",
                source="Szegedy et al. 2014, section 4.3",
                sound_when="every operator has a gain rule for the queried norms.",
                made_by="Product()",
                assumptions=[],
            ),
            bound("lipsdp", 9.72, 21.0, trace=[[0.3, 12.1], [2.0, 9.9], [21.0, 9.72]]),
            {"analyzer": "local", "refused": "needs a ball: give --data and --radius"},
        ],
        4.88,
    )


def residual_cnn() -> Document:
    """A residual CNN with 43 nodes, skip connections and a branch."""
    nodes = [node("input", "Input", [], [3, 32, 32])]
    gains: dict[str, float] = {}

    def add(
        name: str, op: str, inputs: Sequence[str], shape: Sequence[int], weights: int = 0, gain: float = 1.0
    ) -> str:
        nodes.append(node(name, op, inputs, shape, weights))
        gains[name] = gain
        return name

    last = add("stem.conv", "Conv2d", ["input"], [16, 32, 32], 448, 1.9)
    last = add("stem.relu", "ReLU", [last], [16, 32, 32])
    for b in range(6):
        channels, size = (16, 32) if b < 2 else (32, 16) if b < 4 else (64, 8)
        shape = [channels, size, size]
        inner = add(f"layer{b}.conv1", "Conv2d", [last], shape, 9 * channels**2, 1.3 + 0.1 * b)
        inner = add(f"layer{b}.relu1", "ReLU", [inner], shape)
        inner = add(f"layer{b}.conv2", "Conv2d", [inner], shape, 9 * channels**2, 0.72)
        skip = last
        if b in (2, 4):
            skip = add(f"layer{b}.shortcut", "Conv2d", [last], shape, channels**2 // 2, 0.81)
        last = add(f"layer{b}.add", "Add", [skip, inner], shape)
        last = add(f"layer{b}.relu2", "ReLU", [last], shape)
    last = add("head.norm", "BatchNorm", [last], [64, 8, 8], 128, 0.66)
    last = add("head.pool", "GlobalAveragePool", [last], [64, 1, 1], 0, 0.125)
    last = add("head.flatten", "Reshape", [last], [64])
    last = add("head.fc1", "Linear", [last], [64], 4160, 1.4)
    last = add("head.gelu", "GELU", [last], [64], 0, 1.1290)
    last = add("head.fc2", "Linear", [last], [32], 2080, 1.2)
    last = add("head.relu", "ReLU", [last], [32])
    add("head.fc3", "Linear", [last], [10], 330, 2.1)
    trail = steps(nodes, gains)
    upper = 10.0 ** trail[-1]["log10_reach"]
    return document(
        nodes,
        [
            bound("product", upper, 3.2, "real", steps=trail),
            {
                "analyzer": "lipsdp",
                "refused": 'no quadratic constraint for GlobalAveragePool (node "head.pool", [64, 1, 1])',
            },
        ],
        upper / 41.7,
    )


def refused() -> Document:
    """A model that no analyzer bounds."""
    nodes = [
        node("input", "Input", [], [16, 8]),
        node("attention.scores", "MatMul", ["input", "input"], [16, 16]),
        node("attention.softmax", "Softmax", ["attention.scores"], [16, 16]),
        node("attention.mix", "MatMul", ["attention.softmax", "input"], [16, 8]),
    ]
    reason = 'unbounded: MatMul "attention.scores" [16, 16] multiplies two inputs; give a ball with --data and --radius'
    return document(
        nodes,
        [{"analyzer": "product", "refused": reason}, {"analyzer": "lipsdp", "refused": reason}],
        13.5,
        command=None,
    )


def local(count: int = 20) -> Document:
    """A local region: bounds that spread over the centres."""
    lowers = [2.0 + 1.5 * math.sin(1.7 * i) + 0.02 * i for i in range(count)]
    tight = [low * (1.08 + 0.05 * (i % 7)) for i, low in enumerate(lowers)]
    return document(
        chain([784, 256, 256, 10]),
        [
            bound("local", tight, 7.9, "real"),
            bound("product", [48.31] * count, 0.4),
            bound("lirpa", [upper * 1.6 for upper in tight], 72.4, "real"),
        ],
        lowers,
        {"kind": "ball", "norm": "linf", "radius": 0.03, "count": count, "box": [0.0, 1.0]},
    )


def deep(count: int = 200) -> Document:
    """A long chain: most of the bound lies in a few layers, some layers contract."""
    nodes = chain([64] * (count // 2 + 2))
    linear = [entry["name"] for entry in nodes if entry["op"] == "Linear"]
    gains = {name: 1.0 + 0.01 * (i % 3) for i, name in enumerate(linear)}
    gains |= {linear[10]: 8.0, linear[40]: 0.05, linear[41]: 30.0, linear[90]: 3.0}
    trail = steps(nodes, gains)
    return document(nodes, [bound("product", 10.0 ** trail[-1]["log10_reach"], steps=trail)], 0.5)


def exploding() -> Document:
    """A chain whose constant reaches 10^250 and comes back: every number is long."""
    nodes = chain([64] * 9)
    gains = {f"fc{i}": 1.23456e31 for i in range(8)} | {"fc7": 1.9876e-260}
    trail = steps(nodes, gains)
    return document(
        nodes, [bound("product", 1.000001 * 10.0 ** trail[-1]["log10_reach"], steps=trail)], 1e-300
    )


def of_bounds(uppers: Sequence[float], lower: float | None, beyond: Sequence[float] = ()) -> Document:
    """A small network with any bounds; `beyond` are decimal logarithms."""
    rows = [bound(f"analyzer-{i}", upper) for i, upper in enumerate(uppers)]
    rows += [bound(f"beyond-{i}", None, log10_upper=number) for i, number in enumerate(beyond)]
    return document(chain([4, 3, 2]), rows, lower)


def extreme() -> Document:
    """Everything from zero to far beyond float64 in one figure."""
    found = of_bounds([0.0, 1e-300, 1.0, 1e20, 1.7e308], 0.0, [312.405, 5000.25])
    rows = found["results"]
    rows[1]["seconds"] = 0.0
    rows[2]["seconds"] = 86400.0
    return found


HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "' onmouseover='alert(1)",
    "javascript:alert(1)",
    "</style></title></svg><script>alert(2)</script>",
    "safe\u202egnp.exe",
    "\x1b[2J\x1b]0;owned\x07",
    "{{ 7 * 7 }}{% include 'style.css' %}",
    "[bold red]markup[/]",
    "a" * 100_000,
    "nul\x00cr\rlf\n",
)


def hostile() -> Document:
    """Every name that a stranger controls is an attack."""
    nodes = [node("input", "Input", [], [4])]
    for name in HOSTILE:
        nodes.append(node(name, "Linear", [nodes[-1]["name"]], [4], 20))
    found = document(
        nodes,
        [
            bound("product", 9.72, steps=steps(nodes, dict.fromkeys(HOSTILE, 1.2))),
            {"analyzer": HOSTILE[0], "refused": f"no rule for {HOSTILE[4]}"},
        ],
        4.88,
    )
    found["model"] |= {
        "path": f"/home/someone/{HOSTILE[1]}.onnx",
        "format": HOSTILE[0],
        "operators": {HOSTILE[0]: 3, HOSTILE[1]: 1},
        "notes": list(HOSTILE),
        "trusted_code": [HOSTILE[4]],
    }
    found["command"] = f"lipverify audit '{HOSTILE[4]}'"
    found["query"]["words"] = HOSTILE[0]
    found["assumptions"] = list(HOSTILE)
    found["not_covered"] = list(HOSTILE)
    found["environment"] = {HOSTILE[0]: HOSTILE[1]}
    found["results"][0] |= {
        "certificate": 'certificates/../../"><script>x</script>.json',
        "statement": HOSTILE[0],
        "made_by": HOSTILE[5],
    }
    found["lower"] |= {"method": HOSTILE[0], "witness": 'javascript:alert(1)"'}
    return found
