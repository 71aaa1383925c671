"""Extraction of a `torch.nn.Module`: export with a symbolic batch, lower, check against the module itself."""

from __future__ import annotations

import contextlib
import copy
import functools
import inspect
import io
import logging
import operator
import warnings
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lipverify.errors import ExtractionMismatch, UnsupportedModel, UsageError
from lipverify.frontends.builder import Masked, Value
from lipverify.frontends.checking import TOLERANCE, check_import
from lipverify.frontends.torch_export import translators as _translators  # registers them
from lipverify.frontends.torch_export.lowering import INFINITE, Lowerer
from lipverify.frontends.torch_export.merged import Merged
from lipverify.frontends.torch_export.registry import lower
from lipverify.frontends.torch_export.sequence import chained
from lipverify.frontends.torch_export.walk import CHECKS_ONLY, Walk
from lipverify.ir.graph import Graph, ImportCheck, Origin
from lipverify.loading.names import display

if TYPE_CHECKING:  # a second of imports, which chains of torch's own modules do without
    from torch.export import ExportedProgram

del _translators

_BATCHES = (1, 2, 7)
_EVAL = "call module.eval() first"
# These keep state or draw numbers although their schemas do not say so, unless this argument says no.
_STATEFUL = {
    "batch_norm": "training", "instance_norm": "use_input_stats", "rrelu": "training", "dropout": "train",
    "alpha_dropout": "train", "feature_dropout": "train", "feature_alpha_dropout": "train",
    "scaled_dot_product_attention": "dropout_p", "native_batch_norm": "training", "lstm": "train", "gru": "train",
    "rnn_tanh": "train", "rnn_relu": "train",
}  # fmt: skip
_MADE_OF_NUMBERS = {"arange", "full", "ones", "scalar_tensor", "zeros"}


def extract(module: nn.Module, example: Tensor, *, check: bool = True) -> Graph:
    """The layer graph of a torch module, in the mode (training or evaluation) the module is in.

    example [batch, *sample shape]: floating point, at least two samples; only its shape, type and device matter. The graph
    lies on the CPU, whatever the device of the module; parameters keep the module's type. With `check` the graph is compared
    with the module on random inputs, and the largest difference is stored in `graph.origin.import_check`.

    Raises:
        UsageError: the example is no floating-point batch of at least two samples.
        UnsupportedModel: the module is no continuous function of single samples that the operators cover: active dropout or
            batch statistics, branches on data, results that depend on the batch size, operators without a translation.
        ExtractionMismatch: the graph does not compute what the module computes.
    """
    _require_batch(module, example)
    module = _outside_inference(getattr(module, "_orig_mod", module))  # what torch.compile wraps
    lower.load_entry_points()
    graph = chained(module, example)
    if graph is None:
        graph = traced(module, example)
    return _checked(graph, module, example) if check else graph


def traced(module: nn.Module, example: Tensor) -> Graph:
    """The graph as `torch.export` sees the module, not compared with it."""
    program = _decomposed(_exported(module, example))
    _refuse_state(program, module)
    return _lowered(program, module, example)


def _outside_inference(module: nn.Module) -> nn.Module:
    """The module, or a copy of one that was made in inference mode, whose tensors tracing cannot take."""
    tensors = {id(t): t for t in (*module.parameters(), *module.buffers()) if t.is_inference()}
    if not tensors:
        return module
    known: dict[int, Any] = {}
    for key, tensor in tensors.items():
        plain = tensor.detach().clone()
        known[key] = nn.Parameter(plain, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else plain
    return copy.deepcopy(module, known)


def _require_batch(module: nn.Module, example: Tensor) -> None:
    if not isinstance(module, nn.Module):
        raise UsageError(f"extract needs a torch.nn.Module, not {type(module).__name__}")
    if isinstance(module, torch.jit.ScriptModule):
        raise UsageError("extract needs the original torch.nn.Module, not its TorchScript form")
    if not isinstance(example, Tensor):
        raise UsageError(f"the example is a tensor [batch, *sample shape], not {type(example).__name__}")
    if example.ndim == 0 or example.shape[0] < 2:
        raise UsageError(
            f"the example has shape {list(example.shape)}; give a batch of at least 2 samples, so that the batch axis "
            "can be told from the others"
        )
    if example.is_floating_point() and example.dtype not in TOLERANCE:
        raise UsageError(f"the example is of type {example.dtype}; use one of 16, 32 or 64 bits")
    if not example.is_floating_point():
        raise UsageError(
            f"the example is of type {example.dtype}; a Lipschitz constant needs a floating-point input "
            "(for token models, start behind the embedding)"
        )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps torch's graph listings and notices about its own insides off the user's screen; the exception says it all."""
    logger = logging.getLogger("torch")
    inner = [logging.getLogger(name) for name in ("torch.fx", "torch._dynamo", "torch.export")]
    levels = [(log, log.level) for log in (logger, *inner)]
    for log, _ in levels:
        log.setLevel(logging.CRITICAL)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        for log, level in levels:
            log.setLevel(level)


@contextlib.contextmanager
def _listed_once() -> Iterator[None]:
    """torch lists all its operators anew for each of its dozens of namespaces whenever it decomposes: once is enough."""
    module: Any = torch._export.utils
    lists = getattr(module, "_materialize_cpp_cia_ops", None)
    if lists is None:
        yield
        return
    module._materialize_cpp_cia_ops = functools.cache(lists)
    try:
        yield
    finally:
        module._materialize_cpp_cia_ops = lists


@contextlib.contextmanager
def _masks_as_given() -> Iterator[None]:
    """Encoders and decoders of torch look whether a mask is the causal one, to choose a faster kernel: a branch on stored
    numbers, which tracing cannot take. Without that hint they apply the mask itself, to the same result."""
    module: Any = torch.nn.modules.transformer
    looks = module._detect_is_causal_mask
    module._detect_is_causal_mask = lambda mask, is_causal=None, size=None: is_causal is True
    try:
        yield
    finally:
        module._detect_is_causal_mask = looks


@contextlib.contextmanager
def _distances_as_defined() -> Iterator[None]:
    """`torch.cdist` computes distances by a matrix product from 26 rows on: a branch on the batch size, the same function on
    both sides. Tracing follows the definition."""
    module: Any = torch
    distances = module.cdist
    module.cdist = lambda x1, x2, p=2.0, compute_mode=None: distances(
        x1, x2, p, "donot_use_mm_for_euclid_dist"
    )
    try:
        yield
    finally:
        module.cdist = distances


def _exported(module: nn.Module, example: Tensor) -> ExportedProgram:
    axes: Any = {0: torch.export.Dim("batch")}
    parameters = list(inspect.signature(module.forward).parameters.values())
    if parameters and parameters[0].kind is inspect.Parameter.VAR_POSITIONAL:
        axes = (axes,)  # forward(self, *inputs)
    sample = torch.zeros_like(
        example
    )  # tracing never sees the user's tensor, nor can the module write into it
    try:
        with _quiet(), _masks_as_given(), _distances_as_defined(), torch.no_grad():
            return torch.export.export(module, (sample,), dynamic_shapes=(axes,), strict=False)
    except Exception as error:
        raise UnsupportedModel(_why_not_exported(error)) from error


def _why_not_exported(error: Exception) -> str:
    """torch's refusal in one sentence."""
    text, kind = str(error), type(error).__name__
    first = display(text.strip().splitlines()[0] if text.strip() else kind, 200)
    if "Constraints violated" in text or "ConstraintViolation" in kind:
        return (
            "the model treats batch sizes differently (its code branches on the batch size or fixes it), so it is no function "
            "of one sample; write shapes with x.shape[0] or -1 in place of numbers"
        )
    if "DataDependent" in kind or "data-dependent" in text or "data dependent" in text:
        return (
            "the model branches on the values of its input (an if, a loop or an index that depends on data), which has no "
            "layer graph; export the branch you need as a model of its own"
        )
    if "higher order op" in text.lower() or "HigherOrder" in kind:
        return f"control flow inside the model is not covered: {first}; export the branch you need as a model of its own"
    return f"torch.export cannot trace the model: {kind}: {first}"


def _decomposed(program: ExportedProgram) -> ExportedProgram:
    """Functional form with all operators kept whole; those nobody translates are decomposed as far as torch can."""
    if _is_functional(program):
        # torch would go through its whole table of operators to change nothing: half of the time of an extraction.
        return program
    _settle_slopes(program)
    with _quiet(), _listed_once():
        whole: ExportedProgram = program.run_decompositions({})
        unknown = {
            node.target
            for node in whole.graph.nodes
            if isinstance(node.target, torch._ops.OpOverload) and not _is_taken(node)
        }
        if unknown:
            table = {op: rule for op, rule in torch.export.default_decompositions().items() if op in unknown}
            whole = whole.run_decompositions(table) if table else whole
        return whole


def _settle_slopes(program: ExportedProgram) -> None:
    """RReLU in place, in evaluation mode, becomes the leaky ReLU that it is: torch's functional form of it asks for random
    numbers even where it does not use them, and would be refused for that."""
    for node in program.graph.nodes:
        if node.target is torch.ops.aten.rrelu_.default:
            given = dict(zip(("x", "lower", "upper", "training"), node.args, strict=False)) | node.kwargs
            if not given.get("training", False):
                slope = (given.get("lower", 0.125) + given.get("upper", 1 / 3)) / 2
                node.target, node.args, node.kwargs = (
                    torch.ops.aten.leaky_relu_.default,
                    (node.args[0], slope),
                    {},
                )


def _is_functional(program: ExportedProgram) -> bool:
    """Whether every operator is taken whole, writes nothing, draws nothing and keeps no state, whatever its arguments: then the
    program is its own functional form."""
    return all(
        node.op in ("placeholder", "output")
        or (node.op == "call_function" and (_is_python(node.target) or (_is_pure(node) and _is_taken(node))))
        for node in program.graph.nodes
    )


def _is_python(target: Any) -> bool:
    """Whether a call picks an entry or computes with sizes, which the walk does as Python does."""
    return getattr(target, "__module__", None) == operator.getitem.__module__


def _is_taken(node: Any) -> bool:
    """Whether the walk takes one call of an operator of torch whole: by a translator, as a size, a check of sizes or types that
    computes nothing, or as a stored tensor made of numbers alone."""
    name = str(node.target)
    return (
        lower.find(node.target) is not None
        or name.startswith(("aten.sym_size", *CHECKS_ONLY))
        or name.removeprefix("aten.").partition(".")[0] in _MADE_OF_NUMBERS
    )


def _is_pure(node: Any) -> bool:
    """Whether one call writes nothing, draws nothing and keeps no state."""
    target = node.target
    if not isinstance(target, torch._ops.OpOverload) or target._schema.is_mutable:
        return False
    name = target._schema.name.partition("::")[2]
    if name in _STATEFUL:
        expected = target._schema.arguments
        given = {a.name: a.default_value for a in expected if a.has_default_value()}
        given |= dict(zip((a.name for a in expected), node.args, strict=False)) | dict(node.kwargs)
        return given.get(_STATEFUL[name]) in (False, 0.0)
    return torch.Tag.nondeterministic_seeded not in target.tags


def _refuse_state(program: ExportedProgram, module: nn.Module) -> None:
    """Refuses a module that changes its buffers while it computes."""
    changed = sorted(program.graph_signature.buffers_to_mutate.values())
    if not changed:
        return
    shown = ", ".join(display(name) for name in changed[:3]) + (", ..." if len(changed) > 3 else "")
    remedy = _EVAL if any(part.training for part in module.modules()) else "remove that from forward"
    raise UnsupportedModel(
        f"the model updates its buffers ({shown}) whenever it computes, so its outputs depend on earlier calls; {remedy}"
    )


def _lowered(program: ExportedProgram, module: nn.Module, example: Tensor) -> Graph:
    from torch.export.graph_signature import InputKind, OutputKind

    placeholders = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
    inputs = [spec for spec in program.graph_signature.input_specs if spec.kind is InputKind.USER_INPUT]
    node = placeholders[inputs[0].arg.name]
    build = Lowerer(example.dtype, example.device, node.meta["val"].shape[0])
    walk = Walk(build)
    walk.env[node] = build.input((1, *example.shape[1:]), 0)
    for spec in program.graph_signature.input_specs:
        if spec.kind is not InputKind.USER_INPUT:
            walk.env[placeholders[spec.arg.name]] = _stored(program, spec)
    results = walk.run(program.graph, program.graph_module)
    outputs = []
    for spec, result in zip(program.graph_signature.output_specs, results, strict=True):
        if spec.kind is not OutputKind.USER_OUTPUT or result is None:
            continue
        build.where, build.what = spec.arg.name or "output", "output"
        if isinstance(result, Merged):
            raise build.refuse("this output merges the batch axis with others", (result.inner,))
        if not isinstance(result, Value):
            if isinstance(result, Masked):
                raise build.refuse(INFINITE, (result,))
            raise build.refuse(getattr(result, "reason", "this output does not depend on the input"))
        outputs.append(result)
    if not outputs:
        raise UnsupportedModel("the model returns no tensor; return what is to be bounded")
    notes = tuple(_remarks(walk, module, example))
    return build.graph(outputs, Origin(format="torch", notes=notes)).to(device="cpu")


def _stored(program: ExportedProgram, spec: Any) -> Any:
    """What a parameter, buffer or constant of the program holds."""
    for table in (program.state_dict, program.constants):
        if spec.target in table:
            found = table[spec.target]
            # A copy: later training of the module must not change what was certified.
            return found.detach().clone() if isinstance(found, Tensor) else found
    raise UnsupportedModel(f"the exported program does not hold {display(str(spec.target))}")


def _remarks(walk: Walk, module: nn.Module, example: Tensor) -> Iterator[str]:
    if walk.folded:
        places = list(dict.fromkeys(walk.folded))
        shown = ", ".join(places[:3]) + (", ..." if len(places) > 3 else "")
        dtype = str(example.dtype).removeprefix("torch.")
        yield (
            f"operations on parameters alone ({shown}) were carried out in {dtype}, as the module does: the weights they "
            "give are what is certified"
        )
    if module.training:
        yield "the module was in training mode; nothing in its graph depends on the mode"


def _checked(graph: Graph, module: nn.Module, example: Tensor) -> Graph:
    """The graph with its largest difference to the module, over batches of several sizes.

    Raises:
        ExtractionMismatch: they differ by more than rounding, or the module gives other shapes or fails on a batch size.
    """

    def reference(x: NDArray[np.generic]) -> list[NDArray[np.generic]]:
        batch = torch.from_numpy(np.asarray(x, np.float64)).to(
            example
        )  # exact: x is of the type of the example
        try:
            with torch.no_grad():
                found = torch.utils._pytree.tree_leaves(module(batch))
        except Exception as error:
            raise ExtractionMismatch(
                f"the module fails on a batch of {len(x)}: {display(str(error), 200)}; so it is no function of one sample"
            ) from error
        return [output.detach().double().cpu().numpy() for output in found if isinstance(output, Tensor)]

    name = f"torch {torch.__version__}"
    done = [
        check_import(graph, reference, name=name, dtype=example.dtype, samples=samples, seed=samples)
        for samples in _BATCHES
    ]
    whole = ImportCheck(
        sum(part.samples for part in done),
        max(part.max_abs_difference for part in done),
        max(part.max_abs_output for part in done),
        name,
    )
    return replace(graph, origin=replace(graph.origin, import_check=whole))
