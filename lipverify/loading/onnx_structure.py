"""Structure of an ONNX graph: every value has one writer, every edge a source, and nothing calls itself."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NoReturn

from lipverify.errors import InvalidFile, UnsupportedModel
from lipverify.loading.files import Path
from lipverify.loading.names import display, sentence
from lipverify.loading.onnx_scan import MAX_NODES

_STANDARD = ("", "ai.onnx")

FunctionKey = tuple[str, str, str]


def check_structure(model: Any, path: Path) -> None:
    """Raises InvalidFile for two writers of a value, a dangling edge, a cycle, a name that is not text, or a
    number attribute that is not finite; UnsupportedModel for functions that call themselves, expand to more
    than MAX_NODES nodes or redefine a standard operator, and for sparse tensors."""
    _check_graph(model.graph, frozenset(), path)
    if not model.graph.output:
        raise InvalidFile(sentence(path, "the ONNX graph has no output", "export it again"))
    for function in model.functions:
        _check_scope(function, list(function.input), list(function.output), frozenset(), path)
    _check_calls(model, path)


def _check_graph(graph: Any, outer: frozenset[str], path: Path) -> set[str]:
    """Checks one graph; returns the names it captures from the graphs around it."""
    if graph.sparse_initializer:
        _unsupported(path, "the ONNX graph has sparse initialisers", "export dense weights")
    inputs = [value.name for value in graph.input]
    initializers = [tensor.name for tensor in graph.initializer]
    _unique(inputs, "graph input", path)
    _unique(initializers, "initialiser", path)
    # An initialiser may be listed as an input too: all files of IR version 3 and below do.
    given = list(dict.fromkeys([*inputs, *initializers]))
    return _check_scope(graph, given, [value.name for value in graph.output], outer, path)


def _check_scope(
    scope: Any, given: list[str], outputs: list[str], outer: frozenset[str], path: Path
) -> set[str]:
    _unique(given, "input", path)
    _unique(outputs, "graph output", path)
    writers: dict[str, int] = dict.fromkeys(given, -1)
    for position, node in enumerate(scope.node):
        _check_node(node, path)
        for name in node.output:
            if name in writers:
                _invalid(path, f'value "{display(name)}" has two writers')
            if name:
                writers[name] = position
    for name in writers:
        if name in outer:
            _invalid(path, f'value "{display(name)}" of a subgraph hides one of the graph around it')
    visible = outer | writers.keys()
    captured: set[str] = set()
    sources: list[set[int]] = []
    for position, node in enumerate(scope.node):
        used = {name for name in node.input if name}
        for name in used - visible:
            _invalid(path, f'{_where(node, position)} reads "{display(name, 40)}", which nothing writes')
        for inner in _subgraphs(node):
            used |= _check_graph(inner, frozenset(visible), path)
        captured |= used - writers.keys()
        sources.append({writers[name] for name in used if writers.get(name, -1) >= 0})
    for name in outputs:
        if name not in visible or not name:
            _invalid(path, f'graph output "{display(name)}" is written by nothing')
        if name not in writers:
            captured.add(name)
    _check_acyclic(scope, sources, path)
    return captured


def _check_node(node: Any, path: Path) -> None:
    texts = [node.name, node.op_type, node.domain, *node.input, *node.output]
    seen = set()
    for attribute in node.attribute:
        texts.append(attribute.name)
        if attribute.name in seen:
            _invalid(path, f'{_where(node)} has attribute "{display(attribute.name, 40)}" twice')
        seen.add(attribute.name)
        if attribute.HasField("sparse_tensor") or attribute.sparse_tensors:
            _unsupported(path, f"{_where(node)} holds a sparse tensor", "export dense weights")
        # Clip without a limit is written with an infinite one; everywhere else the number takes part.
        allowed_infinite = node.op_type == "Clip"
        for number in (attribute.f, *attribute.floats):
            if math.isnan(number) or (math.isinf(number) and not allowed_infinite):
                _invalid(path, f'{_where(node)} has attribute "{display(attribute.name, 40)}" = {number}')
    if not all(isinstance(text, str) for text in texts):
        _invalid(path, f"{_where(node)} has a name that is not UTF-8")


def _check_acyclic(scope: Any, sources: list[set[int]], path: Path) -> None:
    readers: list[list[int]] = [[] for _ in sources]
    missing = [len(source) for source in sources]
    for position, source in enumerate(sources):
        for writer in source:
            readers[writer].append(position)
    ready = [position for position, count in enumerate(missing) if count == 0]
    done = 0
    while ready:
        done += 1
        for reader in readers[ready.pop()]:
            missing[reader] -= 1
            if missing[reader] == 0:
                ready.append(reader)
    if done != len(sources):
        position = next(position for position, count in enumerate(missing) if count)
        _invalid(path, f"{_where(scope.node[position], position)} lies on or behind a cycle")


def _check_calls(model: Any, path: Path) -> None:
    """Functions may call functions: the expansion must end, and stay below the limit of nodes."""
    calls: dict[FunctionKey, list[FunctionKey]] = {}
    for function in model.functions:
        key = (function.domain, function.name, function.overload)
        if not all(isinstance(part, str) for part in key):
            _invalid(path, "an ONNX function has a name that is not UTF-8")
        if key in calls:
            _invalid(path, f'ONNX function "{display(function.name, 60)}" is defined twice')
        if function.domain in _STANDARD:
            what = f'ONNX function "{display(function.name, 60)}" redefines a standard operator'
            _unsupported(path, what, "export without it")
        calls[key] = [(node.domain, node.op_type, node.overload) for node in _all_nodes(function)]
    sizes: dict[FunctionKey, int] = {}
    for start in calls:
        _expand(start, calls, sizes, path)
    total = 0
    for node in _all_nodes(model.graph):
        total += sizes.get((node.domain, node.op_type, node.overload), 1)
        if total > MAX_NODES:
            _unsupported(
                path, f"ONNX functions expand to more than {MAX_NODES} nodes", "export a smaller graph"
            )


def _expand(
    start: FunctionKey, calls: dict[FunctionKey, list[FunctionKey]], sizes: dict[FunctionKey, int], path: Path
) -> None:
    """Number of nodes after expansion, by a depth-first walk with its own stack."""
    open_calls: set[FunctionKey] = set()
    stack = [start]
    while stack:
        key = stack[-1]
        if key in sizes:
            stack.pop()
            continue
        inner = [callee for callee in calls[key] if callee in calls]
        waiting = [callee for callee in inner if callee not in sizes]
        if waiting and key in open_calls:
            _unsupported(path, f'ONNX function "{display(key[1], 60)}" calls itself', "export a flat graph")
        if waiting:
            open_calls.add(key)
            stack.extend(dict.fromkeys(waiting))
            continue
        sizes[key] = sum(sizes.get(callee, 1) for callee in calls[key])
        stack.pop()


def _all_nodes(scope: Any) -> Iterator[Any]:
    for node in scope.node:
        yield node
        for inner in _subgraphs(node):
            yield from _all_nodes(inner)


def _subgraphs(node: Any) -> list[Any]:
    return [
        graph
        for attribute in node.attribute
        for graph in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs)
    ]


def _unique(names: list[Any], what: str, path: Path) -> None:
    seen = set()
    for name in names:
        if not isinstance(name, str) or not name:
            _invalid(path, f"the name of a {what} is empty or not UTF-8")
        if name in seen:
            _invalid(path, f'{what} "{display(name)}" occurs twice')
        seen.add(name)


def _where(node: Any, position: int | None = None) -> str:
    name = display(node.name, 40) or ("unnamed" if position is None else f"number {position}")
    return f'node "{name}" ({display(node.op_type, 30)})'


def _invalid(path: Path, what: str) -> NoReturn:
    raise InvalidFile(sentence(path, what, "export the model again"))


def _unsupported(path: Path, what: str, remedy: str) -> NoReturn:
    raise UnsupportedModel(sentence(path, what, remedy))
