"""Walks an exported program and lowers it, operator by operator, into a graph for a batch of one."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx

from lipverify.errors import InternalError, UnsupportedModel
from lipverify.frontends.builder import Masked, Value
from lipverify.frontends.building.choices import Choice, Condition, Gated, Sign
from lipverify.frontends.building.pairs import REASON, REMEDY, Pairs
from lipverify.frontends.building.vanishing import may_vanish
from lipverify.frontends.torch_export.lowering import (
    INFINITE,
    NOISE,
    BatchSize,
    Forbidden,
    Lowerer,
)
from lipverify.frontends.torch_export.merged import Merged, batch_axis, lowered
from lipverify.frontends.torch_export.registry import lower
from lipverify.ir.op import Shape

_TORCH = str(Path(torch.__file__).parent)

# Stored tensors of a batch size may be built by these and by nothing that tells samples apart.
_BLIND_TO_SAMPLES = {
    "zeros", "ones", "full", "new_zeros", "new_ones", "new_full", "scalar_tensor",
    "view", "reshape", "_unsafe_view", "expand", "repeat", "broadcast_to", "alias", "clone",
}  # fmt: skip
# Further operators that give every sample the same result where all samples are the same.
_SAMPLE_BY_SAMPLE = {
    "add", "sub", "mul", "div", "neg", "linear", "to", "_to_copy", "unsqueeze", "squeeze", "transpose", "permute", "detach",
    "contiguous", "cat", "slice", "lift_fresh_copy", "split", "split_with_sizes", "chunk", "unsafe_split", "unsafe_chunk",
    "sigmoid", "tanh", "relu", "zeros_like", "ones_like", "full_like", "masked_fill", "where", "rsub", "exp", "abs", "clamp",
    "bitwise_not", "bitwise_and", "bitwise_or", "logical_not", "logical_and", "logical_or", "eq", "ne", "lt", "le", "gt", "ge",
}  # fmt: skip
# Exact rearrangements: folding them needs no remark.
_EXACT = _BLIND_TO_SAMPLES | {
    "t", "transpose", "permute", "unsqueeze", "squeeze", "detach", "contiguous", "slice", "select", "flatten",
    "lift_fresh_copy", "arange", "cat", "stack", "index", "index_select", "split", "split_with_sizes", "unbind", "chunk",
    "unsafe_split", "unsafe_chunk", "item", "zeros_like", "ones_like", "full_like", "masked_fill",
    "_local_scalar_dense", "copy", "fill",
}  # fmt: skip
_CONTRACTIONS = {"matmul", "mm", "bmm", "mv", "dot", "linear", "addmm", "einsum"}
_NORMS = {"norm", "linalg_vector_norm"}
_POWERS = {"pow", *_NORMS}
# Operators whose results are 0 where one of their factors is.
_PRODUCTS = (
    _CONTRACTIONS
    | _POWERS
    | {
        "mul", "multiply", "div", "divide", "true_divide", "reciprocal", "rsqrt", "square", "prod", "mean", "outer",
        "_weight_norm", "_weight_norm_interface", "exp",
    }
)  # fmt: skip
# Softmax, and what may stand between a mask and it.
_TAKE_MASKED = {
    "softmax", "_softmax", "_safe_softmax", "special_softmax", "add", "where", "masked_fill", "to", "_to_copy", "clone",
    "contiguous", "alias", "detach", "dropout",
}  # fmt: skip
_TAKE_CONDITIONS = {
    "where",
    "masked_fill",
    "mul",
    "multiply",
    "to",
    "_to_copy",
    "logical_not",
    "bitwise_not",
    "clone",
    "alias",
    "detach",
}
_TAKE_PAIRS = {"mul", "multiply", "view_as_real", "real", "imag", "clone", "contiguous", "alias", "detach"}
CHECKS_ONLY = ("aten._assert", "aten.sym_constrain", "aten._functional_assert", "aten._functional_sym")


class Walk:
    """One pass over an exported graph. env: what each of its nodes became."""

    def __init__(self, build: Lowerer) -> None:
        self.build = build
        self.env: dict[fx.Node, Any] = {}
        self.folded: list[str] = []

    def run(self, graph: fx.Graph, owner: torch.nn.Module) -> Any:
        """Lowers all nodes; placeholders must be in `env` already. Returns what the graph returns."""
        for node in graph.nodes:
            if node.op == "placeholder":
                continue
            if node.op == "get_attr":
                self.env[node] = operator.attrgetter(str(node.target))(owner)
            elif node.op == "output":
                return self._resolve(node.args[0])
            elif node.op == "call_function":
                self._locate(node)
                try:
                    self.env[node] = self._settle(self._lower(node, owner), node.meta.get("val"))
                except UnsupportedModel as error:
                    raise type(error)(f"{error}{_line_of(node)}") from None
            else:
                raise InternalError(f"an exported graph holds a node of kind {node.op}")
        raise InternalError("an exported graph has no output")

    # -- one node

    def _lower(self, node: fx.Node, owner: torch.nn.Module) -> Any:
        target = node.target
        if str(target).startswith(CHECKS_ONLY):
            return None
        if isinstance(target, torch._ops.HigherOrderOperator):
            return self._higher_order(node, owner)
        args, kwargs = self._resolve(node.args), self._resolve(dict(node.kwargs))
        if target is operator.getitem:
            whole, index = args
            return whole[index] if index < len(whole) else Forbidden("a side result that is not covered")
        if str(target).startswith("aten.sym_size"):
            v, axis = args
            size = v.source_shape[axis] if isinstance(v, (Value, Merged)) else v.shape[axis]
            return BatchSize(size) if self.build.counts_samples(node.meta["val"]) else size
        leaves = torch.utils._pytree.tree_leaves((args, kwargs))
        self._refuse_jumps(target, leaves)
        if not isinstance(target, torch._ops.OpOverload):
            return self._whole_number(node, args, leaves)
        if not any(isinstance(leaf, (Value, Masked, Merged, Choice, Pairs)) for leaf in leaves):
            return self._fold(node, target, args, kwargs, leaves)
        translate = lower.find(target)
        if translate is None:
            raise self.build.refuse(
                "this operator is not covered",
                [x for x in leaves if isinstance(x, (Value, Tensor))],
                f'replace it, or teach it to lipverify with @lower.register("{target}")',
            )
        self.build.expected = node.meta.get("val")
        if any(isinstance(leaf, Merged) for leaf in leaves):
            return lowered(self.build, translate, args, kwargs)
        return translate(self.build, *args, **kwargs)

    def _refuse_jumps(self, target: Any, leaves: Sequence[Any]) -> None:
        """Refuses to use positions of maxima and the like, and comparisons outside the few places that take them."""
        name = str(target).removeprefix("aten.").partition(".")[0]
        for leaf in leaves:
            misused = (
                isinstance(leaf, Forbidden)
                or (isinstance(leaf, Condition) and name not in _TAKE_CONDITIONS)
                or (isinstance(leaf, Gated) and name != "add")
                or (isinstance(leaf, Sign) and name not in ("mul", "multiply"))
            )
            tensor = leaf.inner if isinstance(leaf, Merged) else leaf
            if isinstance(tensor, Masked) and name not in _TAKE_MASKED:
                raise self.build.refuse(INFINITE, (tensor,))
            if isinstance(tensor, Pairs) and name not in _TAKE_PAIRS:
                raise self.build.refuse(REASON, (tensor.value,), REMEDY)
            if misused:
                raise self.build.refuse(leaf.reason, [x for x in leaves if isinstance(x, (Value, Tensor))])

    def _whole_number(self, node: fx.Node, args: Any, leaves: Sequence[Any]) -> Any:
        """Arithmetic of Python on sizes."""
        if not callable(node.target) or any(isinstance(leaf, (Value, Tensor)) for leaf in leaves):
            raise self.build.refuse("this call is not an operator of torch")
        result = node.target(*args)
        if not any(isinstance(leaf, BatchSize) for leaf in leaves):
            return result
        return BatchSize(result) if type(result) is int else Forbidden("computes with the batch size")

    def _fold(
        self, node: fx.Node, target: torch._ops.OpOverload, args: Any, kwargs: Any, leaves: Sequence[Any]
    ) -> Any:
        """Executes an operator whose arguments are all stored, in the module's own type."""
        name = target._schema.name.partition("::")[2]
        stored = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        if torch.Tag.nondeterministic_seeded in target.tags or name.startswith("empty"):
            raise self.build.refuse("draws random or uninitialised numbers", stored, NOISE)
        if any(isinstance(leaf, BatchSize) for leaf in leaves) and name not in _BLIND_TO_SAMPLES:
            raise self.build.refuse("computes with the batch size", stored)
        if any(self._samples(arg.meta.get("val")) for arg in node.all_input_nodes) and (
            name not in _BLIND_TO_SAMPLES | _SAMPLE_BY_SAMPLE
            or any(self._samples(val) != 1 for val in torch.utils._pytree.tree_leaves(node.meta.get("val")))
        ):
            raise self.build.refuse("computes with the batch size", stored)
        if name not in _EXACT and any(tensor.is_floating_point() for tensor in stored):
            self.folded.append(self.build.where)
        with torch.no_grad():
            found = target(*args, **kwargs)
            if name in _PRODUCTS and isinstance(found, Tensor) and found.is_floating_point():
                self._hold(found, target, name, args, kwargs, stored)
        return found

    def _hold(
        self,
        found: Tensor,
        target: torch._ops.OpOverload,
        name: str,
        args: Any,
        kwargs: Any,
        stored: Sequence[Tensor],
    ) -> None:
        """Refuses a product, quotient or power that underflows: a result near 0 where none of its factors is 0.

        The operator itself says where that is, with 1 in place of every number other than 0. Sums of products cancel; they
        are looked at only where a product in them can underflow.
        """
        if name in ("mul", "multiply") and len(stored) == 2:
            self.build.held(found, *stored)
            return
        pairs = combinations(stored, 2)
        two = name in _CONTRACTIONS and not kwargs and (name != "einsum" or len(stored) == 2)
        if two and not any(may_vanish(a, b) for a, b in pairs):
            return

        def marked(x: Any) -> Any:
            if isinstance(x, Tensor):
                return (x != 0).to(x.dtype) if x.is_floating_point() else x
            return 1.0 if isinstance(x, float) and x != 0 and name not in _POWERS else x

        present = torch.utils._pytree.tree_map(marked, (args, kwargs))
        there = target(*present[0], **present[1])
        self.build.held(found, there)
        if name in _NORMS:
            self.build.held(found.square(), there)
        elif name.startswith("_weight_norm"):
            rows = torch.movedim(stored[0], args[2] if len(args) > 2 else 0, 0).reshape(
                len(stored[1].reshape(-1)), -1
            )
            self.build.held(rows.square().sum(1), (rows != 0).sum(1))

    def _higher_order(self, node: fx.Node, owner: torch.nn.Module) -> Any:
        name = str(node.target)
        if name == "wrap_with_set_grad_enabled":
            _, body, *operands = node.args
            assert isinstance(body, fx.Node)
            inner = self.env[body]
            holes = [n for n in inner.graph.nodes if n.op == "placeholder"]
            self.env.update(zip(holes, self._resolve(operands), strict=True))
            return self.run(inner.graph, inner)
        advice = "export the branch you need as a model of its own" if name == "cond" else ""
        raise self.build.refuse("control flow and wrapped calls are not covered", (), advice)

    def _resolve(self, argument: Any) -> Any:
        if isinstance(argument, fx.Node):
            return self.env[argument]
        if isinstance(argument, (tuple, list)):
            return type(argument)(self._resolve(entry) for entry in argument)
        if isinstance(argument, dict):
            return {key: self._resolve(entry) for key, entry in argument.items()}
        return argument

    # -- shapes and names

    def _settle(self, result: Any, expected: Any) -> Any:
        """The result with its batch axis where the exported program has it.

        A batch of one hides which axis of size 1 is the batch axis and whether a slice picks single samples; the symbolic
        shape of the exported program does not.
        """
        if isinstance(result, (tuple, list)) and isinstance(expected, (tuple, list)):
            return [self._settle(entry, wanted) for entry, wanted in zip(result, expected, strict=False)]
        if not isinstance(result, Value) or not isinstance(expected, Tensor):
            return result
        build = self.build
        build.expected = expected
        batch, times = batch_axis(build, result)
        if times != 1 or len(expected.shape) != result.rank:
            raise build.refuse("picks, mixes or repeats samples of the batch", (result,))
        # A size that torch does not know, such as the count of a stored mask, is the one that was computed.
        sizes = [
            known if wanted == -1 else wanted
            for wanted, known in zip(build.sizes(), result.source_shape, strict=True)
        ]
        shape: Shape = tuple(size for axis, size in enumerate(sizes) if axis != batch)
        if (*shape[:batch], 1, *shape[batch:]) != result.source_shape:
            raise InternalError(
                f"{build.what} {build.where!r}: lowered to {list(result.source_shape)}, torch has {list(expected.shape)}"
            )
        return build.relabel(result, shape, batch)

    def _samples(self, val: Any) -> int:
        """How many axes of a tensor count samples."""
        return sum(self.build.counts_samples(size) for size in val.shape) if isinstance(val, Tensor) else 0

    def _locate(self, node: fx.Node) -> None:
        if node.target is operator.getitem:
            return
        name = str(node.target)
        packet = (
            name.removeprefix("aten.").rpartition(".")[0]
            if isinstance(node.target, torch._ops.OpOverload)
            else name
        )
        self.build.what = packet
        stack = node.meta.get("nn_module_stack") or {}
        path = next((entry[0] for entry in reversed(stack.values()) if isinstance(entry, tuple)), "")
        self.build.where = f"{path}.{packet}" if path else packet


def _line_of(node: fx.Node) -> str:
    """The line of the user's program that made a node, if it is known: the innermost one outside torch."""
    trace = node.meta.get("stack_trace") or ""
    frames = [line for line in trace.splitlines() if line.lstrip().startswith("File ")]
    own = [frame for frame in frames if not _path_of(frame).startswith(("torch/", "<", _TORCH))]
    if not own:
        return ""
    lines = trace.splitlines()
    code = lines[lines.index(own[-1]) + 1].strip() if own[-1] != lines[-1] else ""
    number = own[-1].partition(", line ")[2].partition(",")[0]
    return f" (line {number} of {Path(_path_of(own[-1])).name}: {code[:80]})"


def _path_of(frame: str) -> str:
    return frame.partition('"')[2].partition('"')[0]
