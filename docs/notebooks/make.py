"""Runs the notebooks of the documentation and writes them with their outputs: `python docs/notebooks/make.py [NAME ...]`.

A notebook is a script in cells (`# %%`, `# %% [markdown]`), so that it can be read, checked and changed as code; the `.ipynb`
beside it is made from it. Cells run in one namespace; what they print and the value of a last expression are their output.
"""

from __future__ import annotations

import ast
import contextlib
import io
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

HERE = Path(__file__).resolve().parent
_CELL = re.compile(r"^# %%( \[markdown\])?\n", re.MULTILINE)


def sources() -> list[Path]:
    """The scripts that are notebooks."""
    return sorted(path for path in HERE.glob("*.py") if path != Path(__file__).resolve())


def cells(text: str) -> Iterator[tuple[str, str]]:
    """The kind and the source of each cell."""
    parts = _CELL.split(text)
    for mark, body in zip(parts[1::2], parts[2::2], strict=True):
        if mark:
            yield (
                "markdown",
                "\n".join(line.removeprefix("#").removeprefix(" ") for line in body.strip().splitlines()),
            )
        else:
            yield "code", body.strip()


def made(source: Path) -> dict[str, Any]:
    """The notebook of a script, executed; format 4.5 of Jupyter."""
    namespace: dict[str, Any] = {"__name__": "__main__"}
    found = []
    for index, (kind, text) in enumerate(cells(source.read_text(encoding="utf-8"))):
        cell: dict[str, Any] = {
            "cell_type": kind,
            "id": f"cell-{index}",
            "metadata": {},
            "source": text.splitlines(True),
        }
        if kind == "code":
            count = sum(each["cell_type"] == "code" for each in found) + 1
            cell |= {"execution_count": count, "outputs": list(_outputs(text, namespace, count))}
        found.append(cell)
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    return {"cells": found, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}


def _outputs(text: str, namespace: dict[str, Any], count: int) -> Iterator[dict[str, Any]]:
    tree = ast.parse(text)
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    printed, value = io.StringIO(), None
    with contextlib.redirect_stdout(printed):
        exec(compile(tree, "<cell>", "exec"), namespace)
        if isinstance(last, ast.Expr):
            value = eval(compile(ast.Expression(last.value), "<cell>", "eval"), namespace)
    if printed.getvalue():
        yield {"output_type": "stream", "name": "stdout", "text": printed.getvalue().splitlines(True)}
    if value is not None:
        data = {"text/plain": [repr(value)]}
        yield {"output_type": "execute_result", "execution_count": count, "metadata": {}, "data": data}


def main() -> None:
    """Writes all notebooks, or those that are named."""
    torch.set_num_threads(1)
    for source in sources():
        if len(sys.argv) > 1 and source.stem not in sys.argv[1:]:
            continue
        text = json.dumps(made(source), indent=1, ensure_ascii=False) + "\n"
        source.with_suffix(".ipynb").write_text(text, encoding="utf-8")
        print(f"docs/notebooks/{source.stem}.ipynb")


if __name__ == "__main__":
    main()
