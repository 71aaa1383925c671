"""Chains of torch's own modules, lowered without tracing them.

`torch.export` takes two to three seconds to import and trace, whatever the network. What an `nn.Sequential` of torch's own
modules computes needs no tracing: each of them is one operator. Here each is given to the translator of that operator, as tracing
would have done, under the same names; whatever is not of exactly these types and settings is left to `torch.export`, refusals
included. The graph is compared with the module afterwards like every other one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as _modules

from lipverify.errors import UnsupportedModel
from lipverify.frontends.builder import Value
from lipverify.frontends.torch_export.lowering import Lowerer
from lipverify.frontends.torch_export.registry import lower
from lipverify.ir.graph import Graph, Origin

Call = tuple[Any, tuple[Any, ...]]
"""An operator, and its arguments after the input."""
_NOTHING = (nn.Identity, nn.Dropout, nn.Dropout2d)
"""In evaluation mode."""
aten = torch.ops.aten


class _Traced(Exception):
    """This module is to be traced."""


def _convolution(op: Any) -> Callable[[Any], Call]:
    def call(m: Any) -> Call:
        if m.padding_mode != "zeros" or isinstance(m.padding, str):
            raise _Traced
        return op, (m.weight, m.bias, m.stride, m.padding, m.dilation, m.groups)

    return call


def _batch_norm(m: Any) -> Call:
    if m.running_mean is None or m.running_var is None:
        raise _Traced  # batch statistics
    return aten.batch_norm.default, (
        m.weight,
        m.bias,
        m.running_mean,
        m.running_var,
        False,
        0.0 if m.momentum is None else m.momentum,
        m.eps,
        True,
    )


def _in_place(op: Any, *names: str) -> Callable[[Any], Call]:
    def call(m: Any) -> Call:
        if m.inplace:
            raise _Traced  # it may write into the input of the network
        return op, tuple(getattr(m, name) for name in names)

    return call


def _max_pool(m: Any) -> Call:
    if m.return_indices:
        raise _Traced
    return aten.max_pool2d.default, (
        m.kernel_size,
        m.stride,
        m.padding,
        m.dilation,
        m.ceil_mode,
    )


def _flatten(m: Any) -> Call:
    if m.start_dim < 1 or m.end_dim == 0:
        raise _Traced  # with samples
    return aten.flatten.using_ints, (m.start_dim, m.end_dim)


_RANKS: Mapping[type[nn.Module], tuple[int, ...]] = {
    nn.Conv1d: (3,), nn.Conv2d: (4,), nn.BatchNorm1d: (2, 3), nn.BatchNorm2d: (4,), nn.MaxPool2d: (4,), nn.AvgPool2d: (4,),
}  # fmt: skip
"""Of the batch that these take; torch takes a tensor of one axis less for a single sample."""
_CALLS: Mapping[type[nn.Module], Callable[[Any], Call]] = {
    nn.Linear: lambda m: (aten.linear.default, (m.weight, m.bias)),
    nn.Conv1d: _convolution(aten.conv1d.default),
    nn.Conv2d: _convolution(aten.conv2d.default),
    nn.BatchNorm1d: _batch_norm,
    nn.BatchNorm2d: _batch_norm,
    nn.MaxPool2d: _max_pool,
    nn.AvgPool2d: lambda m: (
        aten.avg_pool2d.default,
        (
            m.kernel_size,
            m.stride,
            m.padding,
            m.ceil_mode,
            m.count_include_pad,
            m.divisor_override,
        ),
    ),
    nn.Flatten: _flatten,
    nn.ReLU: _in_place(aten.relu.default),
    nn.LeakyReLU: _in_place(aten.leaky_relu.default, "negative_slope"),
    nn.ELU: _in_place(aten.elu.default, "alpha"),
    nn.SELU: _in_place(aten.selu.default),
    nn.SiLU: _in_place(aten.silu.default),
    nn.Tanh: lambda m: (aten.tanh.default, ()),
    nn.Sigmoid: lambda m: (aten.sigmoid.default, ()),
}


def chained(module: nn.Module, example: Tensor) -> Graph | None:
    """The graph of a chain of torch's own modules; None where it has to be traced, or is to be refused.

    example: a batch [batch, *sample shape], of which the shape, the type and the device count.
    """
    try:
        parts = list(_parts(module, ""))
        if not parts:
            return None
        _require_plain(module, example)
        build = Lowerer(example.dtype, example.device, None)
        value = build.input((1, *example.shape[1:]), 0)
        x = example.new_zeros((1, *example.shape[1:]))  # the shapes that torch gives are those of the graph
        for path, part in parts:
            if x.ndim not in _RANKS.get(type(part), (x.ndim,)):
                return None
            op, arguments = _CALLS[type(part)](part)
            translate = lower.find(op)
            if translate is None:
                return None
            build.what = str(op).removeprefix("aten.").rpartition(".")[0]
            build.where = f"{path}.{build.what}" if path else build.what
            with torch.no_grad():
                x = op(x, *arguments)
            # Copies: later training of the module must not change what was certified.
            kept = [a.detach().clone() if isinstance(a, Tensor) else a for a in arguments]
            # The translator of reshapes asks an exported program where the samples are; flattened axes keep them apart.
            if type(part) is not nn.Flatten:
                found = translate(build, value, *kept)
                if not isinstance(found, Value) or found.source_shape != tuple(x.shape):
                    return None
                value = found
            value = build.relabel(value, tuple(x.shape[1:]), 0)
        return build.graph([value], Origin(format="torch")).to(device="cpu")
    except (_Traced, UnsupportedModel, RuntimeError):
        return None


def _parts(module: nn.Module, path: str) -> Iterator[tuple[str, nn.Module]]:
    """The modules that compute something, in order, with their paths."""
    if module.training or _is_hooked(module):
        raise _Traced
    if type(module) is nn.Sequential:
        for name, part in module._modules.items():
            if part is None:
                raise _Traced
            yield from _parts(part, f"{path}.{name}" if path else name)
    elif type(module) in _CALLS:
        yield path, module
    elif type(module) not in _NOTHING:
        raise _Traced


def _is_hooked(module: nn.Module) -> bool:
    """Whether a call of the module is more than its class's `forward`."""
    own = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    everywhere = ("_global_forward_hooks", "_global_forward_pre_hooks")
    return (
        "forward" in module.__dict__
        or any(getattr(module, name, None) for name in own)
        or any(getattr(_modules, name, None) for name in everywhere)
    )


def _require_plain(module: nn.Module, example: Tensor) -> None:
    """Tensors of torch's own classes, of the type and on the device of the example."""
    for tensor in (*module.parameters(), *module.buffers()):
        plain = type(tensor) in (Tensor, nn.Parameter) and tensor.layout is torch.strided
        if not plain or tensor.device != example.device:
            raise _Traced
        if tensor.is_floating_point() and tensor.dtype != example.dtype:
            raise _Traced
    if type(example) is not Tensor:
        raise _Traced
