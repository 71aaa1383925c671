"""What this installation consists of: versions, devices, optional parts, and what is outside its tested range."""

from __future__ import annotations

import platform
import re
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any

from lipverify.version import __version__

PARTS = {
    "torch": "evaluates and analyses networks",
    "numpy": "numbers",
    "scipy": "linear algebra",
    "networkx": "graph views",
    "onnx": "reads ONNX files",
    "onnxruntime": "faster import check; without it the reference evaluator of onnx is used",
    "safetensors": "writes weights",
    "cvxpy": "reference solver of LipSDP",
    "scs": "cone solver behind cvxpy",
    "clarabel": "interior-point solver behind cvxpy",
    "jinja2": "reports",
    "typer": "command line",
    "pillow": "--data: folders of images",
    "pyarrow": "--data: Parquet",
    "distributed": "--scheduler: work on the workers of a cluster",
    "scikit-learn": "retrains the model zoo",
    "onnxscript": "torch.onnx.export of modules, which writes the ONNX files that are read here",
    "dp-accounting": "an epsilon of training with sampled batches",
    "auto_LiRPA": "optional analyzer of other authors",
}


def findings() -> dict[str, Any]:
    """Everything `lipverify doctor` prints."""
    import torch

    parts = []
    for name, purpose in PARTS.items():
        found = _version(name)
        parts.append({"name": name, "version": found, "purpose": purpose, "warning": _warning(name, found)})
    cuda = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "schema": "lipverify.doctor/1",
        "lipverify": __version__,
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "threads": torch.get_num_threads(),
        "cuda": cuda,
        "parts": parts,
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return _written_version(name)


def _written_version(name: str) -> str | None:
    """The version a package on the path states in its source, where it was put there without metadata; nothing is run."""
    from importlib.util import find_spec

    spec = find_spec(name) if name.isidentifier() else None
    if spec is None or spec.origin is None or not spec.origin.endswith("__init__.py"):
        return None
    found = re.search(
        r"^__version__ = ['\"]([^'\"]{1,40})['\"]", Path(spec.origin).read_text(encoding="utf-8"), re.M
    )
    return None if found is None else found[1]


def _warning(name: str, found: str | None) -> str | None:
    """A part outside the range that this package, or the part itself, declares."""
    from packaging.requirements import Requirement

    for line in requires("lipverify") or ():
        wanted = Requirement(line)
        if wanted.name.lower() != name.lower():
            continue
        if found is None:
            extra = re.search(r"extra == ['\"]([\w-]+)['\"]", str(wanted.marker or ""))
            if extra is not None:
                return f"absent; pip install 'lipverify[{extra[1]}]'"
            return f"missing; pip install '{wanted.name}{wanted.specifier}'"
        if not wanted.specifier.contains(found.split("+")[0], prereleases=True):
            return f"outside the declared range {wanted.specifier}"
    if name == "auto_LiRPA":
        if found is None:
            from lipverify.analyzers.lirpa.analyzer import INSTALL

            return f"absent; {INSTALL}"
        for line in _required(name):
            wanted = Requirement(line)
            other = _version(wanted.name)
            if other and not wanted.specifier.contains(other.split("+")[0], prereleases=True):
                return f"declares {wanted.name}{wanted.specifier}, found {other}: outside its declared range"
    return None


def _required(name: str) -> list[str]:
    """What a package declares; for auto_LiRPA without metadata the range of its version 0.7.1."""
    try:
        return list(requires(name) or ())
    except PackageNotFoundError:
        return ["torch>=2.0.0,<2.9.0"]


def print_findings(found: dict[str, Any]) -> None:
    """The findings as lines on standard output."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console()
    console.print(
        f"lipverify {found['lipverify']}, Python {found['python']}, {found['platform']}", highlight=False
    )
    devices = ", ".join(found["cuda"]) or "none"
    console.print(f"threads {found['threads']}, CUDA devices: {escape(devices)}", highlight=False)
    table = Table("part", "version")
    for title in ("for", "remark"):
        # A command to copy is shown whole.
        table.add_column(title, overflow="fold")
    for part in found["parts"]:
        table.add_row(
            part["name"], part["version"] or "absent", part["purpose"], escape(part["warning"] or "")
        )
    console.print(table)
