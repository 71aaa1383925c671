"""Structure of an ONNX graph: every value has one writer, every edge a source, and nothing calls itself.

The names of a whole file are checked first; then only what the wanted outputs need is kept (`pruned`), and only that is held
against what can be computed (`check_nodes`): a file may bring whatever it likes beside the output that is asked about.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any, NoReturn

from lipverify.errors import InvalidFile, UnsupportedModel, UsageError
from lipverify.loading.files import Path
from lipverify.loading.names import display, sentence
from lipverify.loading.onnx_scan import MAX_NODES

_STANDARD = ("", "ai.onnx")

FunctionKey = tuple[str, str, str]


def check_structure(model: Any, path: Path) -> None:
    """Names and edges of a whole file.

    Raises InvalidFile for two writers of a value, a dangling edge, a cycle, a name that is not text or an attribute that
    is not what it says; UnsupportedModel for functions that call themselves, expand to more than MAX_NODES nodes or
    redefine a standard operator."""
    _check_graph(model.graph, frozenset(), path)
    if not model.graph.output:
        raise InvalidFile(sentence(path, "the ONNX graph has no output", "export it again"))
    for function in model.functions:
        _check_scope(function, list(function.input), list(function.output), frozenset(), path)
    _check_calls(model, path)


def check_nodes(model: Any, path: Path) -> None:
    """What takes part in the computation.

    Raises InvalidFile for a number attribute that is not finite, UnsupportedModel for sparse tensors.
    """
    for scope in (model.graph, *model.functions):
        for graph in _all_graphs(scope):
            if getattr(graph, "sparse_initializer", ()):
                _unsupported(path, "the ONNX graph has sparse initialisers", "export dense weights")
        for node in all_nodes(scope):
            _check_numbers(node, path)


def selected_outputs(model: Any, output: int | str | None) -> list[str]:
    """Names of the outputs that are asked for: one, by its position or by its name, or all of them.

    Raises:
        UsageError: there is no such output.
    """
    names = [value.name for value in model.graph.output]
    if output is None:
        return names
    if isinstance(output, str) and output in names:
        return [output]
    if isinstance(output, int) and 0 <= output < len(names):
        return [names[output]]
    if str(output) in names:  # a name made of digits
        return [str(output)]
    listed = ", ".join(f'{i}: "{display(name, 30)}"' for i, name in enumerate(names[:8]))
    shown = f'"{display(output)}"' if isinstance(output, str) else str(output)
    only = "one output, " if len(names) == 1 else ""
    entries = " (its entries are asked for by --margin)" if only else ""
    raise UsageError(f"there is no output {shown}; the model has {only}{listed}{entries}")


def prune(model: Any, outputs: list[str]) -> None:
    """Keeps of the graph what these outputs depend on, in place: nodes, initialisers, inputs, and the outputs themselves."""
    graph = model.graph
    nodes, read = needed_nodes(graph, outputs)
    kept = set(nodes)
    _keep(graph.node, [position in kept for position in range(len(graph.node))])
    _keep(graph.initializer, [tensor.name in read for tensor in graph.initializer])
    _keep(graph.sparse_initializer, [tensor.values.name in read for tensor in graph.sparse_initializer])
    _keep(graph.input, [value.name in read for value in graph.input])
    _keep(graph.output, [value.name in outputs for value in graph.output])
    _keep(graph.value_info, [value.name in read for value in graph.value_info])
    _keep(graph.quantization_annotation, [note.tensor_name in read for note in graph.quantization_annotation])


def needed_nodes(graph: Any, outputs: Iterable[str]) -> tuple[list[int], set[str]]:
    """Positions of the nodes that these values depend on, in the order of the file, and all names those nodes read."""
    writer = {name: position for position, node in enumerate(graph.node) for name in node.output if name}
    read = set(outputs)
    stack = [writer[name] for name in read if name in writer]
    found: set[int] = set()
    while stack:
        position = stack.pop()
        if position in found:
            continue
        found.add(position)
        names = {name for name in names_read(graph.node[position]) if name}
        read |= names
        stack.extend(writer[name] for name in names if name in writer)
    return sorted(found), read


def names_read(node: Any) -> Iterator[str]:
    """What a node reads, its subgraphs included."""
    yield from node.input
    for inner in _subgraphs(node):
        for deeper in inner.node:
            yield from names_read(deeper)
        yield from (value.name for value in inner.output)


def _keep(fields: Any, wanted: list[bool]) -> None:
    if all(wanted):
        return
    left = [field for field, keep in zip(fields, wanted, strict=True) if keep]
    del fields[:]
    fields.extend(left)


def _check_graph(graph: Any, outer: frozenset[str], path: Path) -> set[str]:
    """Checks one graph; returns the names it captures from the graphs around it."""
    inputs = [value.name for value in graph.input]
    initializers = [tensor.name for tensor in graph.initializer]
    initializers += [tensor.values.name for tensor in graph.sparse_initializer]
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


# onnx.AttributeProto.AttributeType -> the field that holds its value
_VALUES = {
    1: "f", 2: "i", 3: "s", 4: "t", 5: "g", 6: "floats", 7: "ints", 8: "strings", 9: "tensors", 10: "graphs",
    11: "sparse_tensor", 12: "sparse_tensors", 13: "tp", 14: "type_protos",
}  # fmt: skip


def _check_node(node: Any, path: Path) -> None:
    texts = [node.name, node.op_type, node.domain, *node.input, *node.output]
    seen = set()
    for attribute in node.attribute:
        texts.append(attribute.name)
        shown = display(attribute.name, 40) if isinstance(attribute.name, str) else ascii(attribute.name)
        if attribute.name in seen:
            _invalid(path, f'{_where(node)} has attribute "{shown}" twice')
        seen.add(attribute.name)
        # Readers that look at another field than the declared one would see another value.
        filled = {field.name for field, _ in attribute.ListFields()} & set(_VALUES.values())
        if not filled <= {_VALUES.get(attribute.type, "")} or (filled and attribute.ref_attr_name):
            _invalid(path, f'{_where(node)} has attribute "{shown}" of another type than it says')
    if not all(isinstance(text, str) for text in texts):
        _invalid(path, f"{_where(node)} has a name that is not UTF-8")


# Where an infinite number means that there is no limit, or takes part in nothing but comparisons.
_MAY_BE_INFINITE = ("Clip", "Pad", "Constant")


def _check_numbers(node: Any, path: Path) -> None:
    for attribute in node.attribute:
        if attribute.HasField("sparse_tensor") or attribute.sparse_tensors:
            _unsupported(path, f"{_where(node)} holds a sparse tensor", "export dense weights")
        for number in (attribute.f, *attribute.floats):
            named = math.isnan(number) and node.op_type == "Imputer"  # what it replaces
            endless = math.isinf(number) and node.op_type in _MAY_BE_INFINITE
            if not (math.isfinite(number) or named or endless):
                _invalid(path, f'{_where(node)} has attribute "{display(attribute.name, 40)}" = {number}')


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
        calls[key] = [(node.domain, node.op_type, node.overload) for node in all_nodes(function)]
    sizes: dict[FunctionKey, int] = {}
    for start in calls:
        _expand(start, calls, sizes, path)
    total = 0
    for node in all_nodes(model.graph):
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


def _all_graphs(scope: Any) -> Iterator[Any]:
    yield scope
    for node in scope.node:
        for inner in _subgraphs(node):
            yield from _all_graphs(inner)


def all_nodes(scope: Any) -> Iterator[Any]:
    """The nodes of a graph and of the graphs inside them."""
    for node in scope.node:
        yield node
        for inner in _subgraphs(node):
            yield from all_nodes(inner)


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
