"""Operators that ONNX itself defines by other operators: where no translator knows one, its definition is walked.

The definition is the one of the installed onnx for the node's own operator set.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import onnx

from lipverify.frontends.builder import Masked, Value
from lipverify.frontends.onnx.call import Call, Result
from lipverify.frontends.onnx.element_types import type_proto

if TYPE_CHECKING:
    from lipverify.frontends.onnx.walk import Walk

_DEPTH = 8
"""Definitions inside definitions."""


def body(walk: Walk, call: Call, domain: str, node: Any, schema: Any) -> Any | None:
    """The definition of an operator by others, as a FunctionProto; None where there is none."""
    if schema is None:
        return None
    version = walk.versions[domain]
    if schema.has_function:
        usable = [v for v in schema.function_opset_versions if v <= version]
        data = schema.get_function_with_opset_version(max(usable)) if usable else None
        return None if data is None else onnx.FunctionProto.FromString(data)
    if schema.has_context_dependent_function:
        usable = [v for v in schema.context_dependent_function_opset_versions if v <= version]
        kinds = [
            type_proto(walk.types.known.get(name, 0), _shape(x)) if x is not None else b""
            for name, x in zip(node.input, call.raws(), strict=True)
        ]
        if usable:
            data = schema.get_context_dependent_function_with_opset_version(
                max(usable), node.SerializeToString(), kinds
            )
            return onnx.FunctionProto.FromString(data)
    return None


def _shape(x: Result) -> tuple[int, ...]:
    return x.source_shape if isinstance(x, (Value, Masked)) else tuple(x.shape)


def expanded(walk: Walk, call: Call, node: Any, schema: Any, function: Any) -> list[Result | None]:
    """The outputs of a node by its definition.

    Raises:
        UnsupportedModel: a node of the definition is not covered.
    """
    from lipverify.frontends.onnx.walk import Scope, Walk

    depth = 0 if walk.inside is None else walk.inside.count("/") + 1
    if depth > _DEPTH:
        raise call.refuse("is defined by operators that are defined by operators, too many times")
    versions = {**walk.versions, **{entry.domain: entry.version for entry in function.opset_import}}
    inner = Walk(walk.build, versions, outer=walk)
    graph = _with_attributes(function, node, schema)
    formal = dict.fromkeys(function.input)
    scope: Scope = dict(formal)
    for name, source, x in zip(function.input, node.input, call.inputs, strict=False):
        scope[name] = x
        if source in walk.types.known:
            inner.types.known[name] = walk.types.known[source]
    wanted = [name for name, used in zip(function.output, call.used, strict=False) if used]
    what = walk.build.what
    found = inner.run(graph, scope, wanted)
    walk.build.where, walk.build.what = inner.inside or "", what
    return [found[name] if name in wanted else None for name in function.output]


def _with_attributes(function: Any, node: Any, schema: Any) -> Any:
    """The definition with the node's attributes, or their defaults, in place of references to them."""
    given = {attribute.name: attribute for attribute in node.attribute}
    defaults = {a.name: a for a in function.attribute_proto}
    graph = onnx.FunctionProto()
    graph.CopyFrom(function)
    _filled(graph.node, {**defaults, **given}, schema)
    return graph


def _filled(nodes: Any, given: dict[str, Any], schema: Any) -> None:
    for inner in nodes:
        left = []
        for attribute in inner.attribute:
            if attribute.ref_attr_name:
                source = given.get(attribute.ref_attr_name) or _default(schema, attribute.ref_attr_name)
                if source is None:
                    continue
                renamed = onnx.AttributeProto()
                renamed.CopyFrom(source)
                renamed.name = attribute.name
                left.append(renamed)
                continue
            if attribute.HasField("g"):
                _filled(attribute.g.node, given, schema)
            left.append(attribute)
        del inner.attribute[:]
        inner.attribute.extend(left)


def _default(schema: Any, name: str) -> Any | None:
    known = schema.attributes.get(name)
    if known is None or known.default_value is None or not known.default_value.type:
        return None
    return known.default_value
